"""The service that brings durable timers to their actors, when they are due."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol
from weakref import WeakValueDictionary

import anyio
from anyio.lowlevel import checkpoint

from papyra._cancellation import shield_from_interrupts
from papyra._logs import fields
from papyra._runtime.entities import EntityRegistry
from papyra._runtime.timer_checkpoint import TimerCheckpoint
from papyra._runtime.timer_index import IndexedTimer, TimerIndex, TimersOfActor
from papyra._safe_repr import shown, text_of, type_and_text
from papyra.address import unescaped
from papyra.clock import Clock, move_on_at
from papyra.durable_timers import (
    ScheduledTimer,
    TimerDue,
    TimerFailed,
    TimerFigures,
    TimerMetrics,
    TimersChanged,
)
from papyra.entity import EntityRef
from papyra.exceptions import PapyraError, StoreReplaced
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.messages import Flush, ReadAll
from papyra.persistence.records import PersistedEvent, Record
from papyra.persistence.timer_changes import (
    TIMER,
    TIMER_INDEX,
    Failed,
    Fired,
    Unscheduled,
)
from papyra.persistence.verbs import PersistenceVerbs
from papyra.ref import ActorRef

logger = logging.getLogger("papyra")

#: How many actors handle timers at the same time.
MAX_AT_HAND = 256
#: How many timers are found to be due, at most, before others have their turn.
_DUE_AT_ONCE = 1_000
#: Seconds between two looks at the wall clock while timers are pending.
LOOK_INTERVAL = 30.0
#: Seconds until a timer comes again whose failure could not be noted, at first and at most; as long
#: is waited for a store that can't be read.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
#: Seconds by which a wall clock has to go back for a warning.
_BACK = 60.0
#: The types of events that the index is made of.
_TYPES = frozenset({TIMER, TIMER_INDEX, BASE_TYPE})
#: The names in the address of an entity: the system, the type, the id.
_ENTITY_NAMES = 3


class StoredBatch(Protocol):
    """Records that were stored next to each other."""

    @property
    def first_seq(self) -> int: ...

    @property
    def records(self) -> Any: ...


class Watchable(Protocol):
    """The part of a backend that tells of commits."""

    def watch_commits(self, watcher: Callable[[Any], None]) -> Callable[[], None]:
        """Call `watcher` with each batch that was stored; return what ends that."""


class StartTask(Protocol):
    """Starts tasks that are no actors'."""

    def __call__(
        self,
        name: str,
        function: Callable[[], Coroutine[Any, Any, None]],
        has_begun: Callable[[], bool],
        /,
    ) -> None:
        """Run `function` in a task of its own."""


class TimerService:
    """Brings each timer to its actor when it is due, one at a time to each, until it is noted.

    What is pending is learned from the store: from all that is in it, and then from each commit of
    this process, before those who asked for it get their replies. So the index is never behind the
    store. Where a commit may have been missed, the store is read again from there.
    """

    def __init__(
        self,
        system_id: str,
        clock: Clock,
        entities: EntityRegistry,
        start_task: StartTask,
        store: Callable[[], ActorRef],
    ) -> None:
        self._system_id = system_id
        self._clock = clock
        self._entities = entities
        self._start_task = start_task
        self._index = TimerIndex(system_id)
        self._checkpoint = TimerCheckpoint(system_id, clock, self._index, store, self._wake)
        self._backend: PersistenceVerbs | None = None
        #: spawned actors that have timers, by their addresses
        self._spawned: WeakValueDictionary[str, ActorRef] = WeakValueDictionary()
        #: actors with timers that are due
        self._turns: deque[TimersOfActor] = deque()
        self._at_hand = 0
        #: actors with timers that are due, and that nobody can be woken for, by what is missing
        self._stranded: dict[str, dict[str, TimersOfActor]] = {}
        #: the position up to which the index knows the store; what was committed here reaches to
        self._head = self._committed = 0
        self._is_current = self._is_running = self._is_closed = self._is_wanted = False
        #: whether an append has failed that may be stored all the same
        self._is_in_doubt = False
        #: whether the checkpoint was looked for
        self._is_loaded = False
        self._changed = anyio.Event()
        #: Unix time in seconds at which the task looks again, if nothing changes before
        self._wakes_at = math.inf
        self._pause = 0.0
        #: how far the wall clock is ahead of the monotonic one
        self._offset = 0.0
        self._given_up = self._skipped = 0
        #: occurrences that were handled, and tries that failed
        self.fired = self.failed = 0
        self._last_late = 0.0
        #: seconds by which one was late when it was done, at most
        self.longest_late = 0.0
        entities.on_new_type = self._know

    # What others see.

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[ScheduledTimer]:
        for each in self._index:
            yield ScheduledTimer(each.owner.address, each.name, each.due, each.attempts)

    def metrics(self) -> TimerMetrics:
        """Return what has come of them."""
        now = self._clock.time()
        return TimerMetrics(
            len(self._index),
            sum(each.due <= now for each in self._index),
            *(self.fired, self.failed, self._given_up, self._skipped),
            *(self._last_late, self.longest_late),
        )

    def figures(self) -> TimerFigures:
        """Return the same, without looking at each of those that are pending."""
        return TimerFigures(
            len(self._index),
            *(self.fired, self.failed, self._given_up, self._skipped),
            *(self._last_late, self.longest_late),
        )

    def follow(self) -> None:
        """Begin to look after timers. Does not wait."""
        if not self._is_wanted:
            self._is_wanted = True
            self._changed.set()
        if self._backend is not None:
            self._start()

    def attend(self, ref: ActorRef) -> None:
        """Look after timers, as this actor has some, or is about to. Does not wait."""
        if not (self._is_running and self._is_wanted):
            self.follow()
        if isinstance(ref, EntityRef):
            return
        address = str(ref.address)
        if self._spawned.get(address) is not ref:
            self._spawned[address] = ref
            self._rescue(address.split("/")[1])

    def is_current(self, actor: str, name: str, generation: int, due: float) -> bool:
        """Return whether this is what comes next of a timer, as far as is known here."""
        timer = self._index.find(actor, name)
        return timer is not None and (timer.generation, timer.due) == (generation, due)

    def suspect(self) -> None:
        """Look into the store, as nobody knows what has become of an append there."""
        self._is_in_doubt = True
        self._read_on()

    def _wake(self) -> None:
        self._changed.set()

    def _read_on(self) -> None:
        """Read what the index may not know of."""
        self._is_current = False
        self._changed.set()

    # What the system says.

    def begin(self, backend: PersistenceVerbs, *, looks: bool) -> None:
        """Take note that the system has started, with this backend.

        Where no class is known yet that has timers, look whether there have ever been any if
        `looks` says so.
        """
        self._backend = backend
        if self._is_wanted or looks:
            self._start()

    def close(self) -> None:
        """Bring nothing any more."""
        self._is_closed = True
        self._changed.set()

    # Following the store.

    def _know(self, type_name: str, actor_class: type) -> None:
        """Take note of a type of entities."""
        if _has_timers(actor_class):
            self.follow()
            self._rescue(type_name)

    def _start(self) -> None:
        """Start the task, unless it runs."""
        if self._is_running or self._is_closed:
            return
        self._is_running = True
        begun = False
        watching: Watchable = self._backend  # type: ignore[assignment]
        unwatch = watching.watch_commits(self._saw)

        async def run() -> None:
            nonlocal begun
            begun = True
            try:
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    while await self._load() and not self._is_closed:
                        await self._turn()
            finally:
                unwatch()
                self._is_running = self._is_current = False

        self._start_task("papyra timers", shield_from_interrupts(run), lambda: begun)

    async def _load(self) -> bool:
        """Begin with the checkpoint; return whether there is anything to look after."""
        while not self._is_loaded and not self._is_closed:
            assert self._backend is not None
            try:
                self._head = await self._checkpoint.load(self._backend)
                self._is_loaded = True
            except PapyraError as error:
                await self._wait_for_store(error)
        return self._is_wanted or self._checkpoint.exists

    async def _wait_for_store(self, error: Exception) -> None:
        if not self._pause and not self._is_closed:
            logger.warning("timers can't be read, and are tried again: %s", error)
        self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
        self._changed = anyio.Event()
        if not self._is_closed:
            with self._clock.move_on_after(self._pause):
                await self._changed.wait()

    async def _turn(self) -> None:
        """Catch up with the store if need be; bring what is due; wait for more."""
        self._changed = anyio.Event()
        if not self._is_current:
            try:
                await self._catch_up()
            except StoreReplaced:
                self._begin_anew()
                return
            except PapyraError as error:
                await self._wait_for_store(error)
                return
            self._pause = 0.0
        self._checkpoint.save_if_due(self._head)
        await self._checkpoint.write_if_due()
        self._look_at_clock()
        now = self._clock.time()
        for _ in range(_DUE_AT_ONCE):
            if (timer := self._index.pop_due(now)) is None:
                break
            self._make_ready(timer, now)
        self._bring()
        if timer is not None:  # there may be more of them, and others have their turn before
            await checkpoint()
            return
        self._wakes_at = self._index.next_at
        if self._wakes_at == math.inf:
            await self._changed.wait()
        else:
            with move_on_at(self._clock, self._wakes_at, LOOK_INTERVAL):
                await self._changed.wait()

    def _begin_anew(self) -> None:
        """Read the whole store again."""
        self._index.clear()
        self._head = 0
        self._read_on()

    async def _catch_up(self) -> None:
        """Read what the index does not know of. Raises `PapyraError`."""
        assert self._backend is not None
        if self._is_in_doubt:
            # Reads show what is in doubt when the store was asked where it ends.
            await self._backend.execute(Flush())
            self._is_in_doubt = False
        while not self._is_current and not self._is_closed:
            before = self._head, self._committed
            page = await self._backend.execute(ReadAll(self._head))
            for record in page.records:
                self._take_in(record)
            self._head = page.next_after
            if before == (self._head, self._committed):
                self._committed = page.head  # there is no more, whatever was said before
            # What was committed while this page was on its way is behind it.
            self._is_current = self._head >= max(page.head, self._committed)

    def _saw(self, batch: StoredBatch) -> None:
        """Take in what was committed."""
        last = batch.first_seq + len(batch.records) - 1
        self._committed = last
        if self._is_current and batch.first_seq == self._head + 1:
            for seq, record in enumerate(batch.records, batch.first_seq):
                if type(record) is PersistedEvent and record.event_type in _TYPES:
                    due = self._index.schedule(record)
                    if due is None:
                        self._head = seq
                        self._take_in(record)
                    elif due < self._wakes_at:
                        self._wakes_at = due
                        self._changed.set()
            self._head = last
            if self._checkpoint.is_due(last):
                self._changed.set()
        else:
            self._read_on()

    def _take_in(self, record: Record) -> None:
        if type(record) is not PersistedEvent or record.revision is None:
            return
        if self._checkpoint.is_own(record):
            if self._is_current:
                self._checkpoint.take(self._head)
            return
        try:
            change = self._index.take_in(record)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, its actor says so
            logger.warning(
                "a timer of %s can't be read: %s",
                *(shown(record.actor_address), text_of(error)),
                extra=fields(actor=record.actor_address, seq=record.seq, revision=record.revision),
            )
            return
        if self._is_current:
            self._count(change)
            if isinstance(change, Unscheduled) and change.by_operator:
                self._tell_of_change(record.actor_address)
            if self._index.next_at != self._wakes_at:
                self._changed.set()

    def _tell_of_change(self, address: str) -> None:
        """Have an actor read its history, as an operator has written it."""
        ref = self._ref_of(address)
        if ref is not None and not self._is_closed:
            with contextlib.suppress(PapyraError):
                ref.request(TimersChanged(), _ignore)

    def _count(self, change: object) -> None:
        if isinstance(change, Fired):
            if change.outcome == "handled":
                self.fired += 1
                self._last_late = max(0.0, self._clock.time() - change.due)
                self.longest_late = max(self.longest_late, self._last_late)
            elif change.outcome == "skipped":
                self._skipped += 1
            else:
                self.failed += 1
                self._given_up += 1
        elif isinstance(change, Failed):
            self.failed += 1

    def _look_at_clock(self) -> None:
        """Warn if the wall clock has gone back."""
        offset = self._clock.time() - self._clock.monotonic()
        if self._offset - offset > _BACK and len(self._index):
            logger.warning(
                "the wall clock went back by %.0f s: %d timers wait until it shows their time",
                *(self._offset - offset, len(self._index)),
            )
        self._offset = offset

    # Bringing what is due.

    def _make_ready(self, timer: IndexedTimer, now: float) -> None:
        if timer.seen is None:
            timer.seen = now
        actor = timer.owner
        if actor.ready is None:
            actor.ready = deque()
        actor.ready.append(timer)
        if len(actor.ready) == 1 and actor.at_hand is None:
            self._turns.append(actor)

    def _bring(self) -> None:
        """Bring timers, as many as may be."""
        while self._turns and self._at_hand < MAX_AT_HAND and not self._is_closed:
            self._bring_next(self._turns.popleft())

    def _bring_next(self, actor: TimersOfActor) -> None:
        """Bring the next timer of an actor that is due, if it is there or can be woken."""
        ready = actor.ready
        while ready and ready[0].is_over:
            ready.popleft()
        if not ready:
            actor.ready = None
            self._index.forget(actor)
            return
        ref = self._recipient(actor)
        if ref is None:
            return
        timer = ready.popleft()
        assert timer.seen is not None
        self._send(ref, timer, TimerDue(timer.name, timer.generation, timer.due, timer.seen))

    def _send(self, ref: ActorRef, timer: IndexedTimer, message: object) -> None:
        actor = timer.owner
        actor.at_hand = timer
        self._at_hand += 1

        def answered(reply: object, error: Exception | None) -> None:
            actor.at_hand = None
            self._at_hand -= 1
            self._answered(ref, timer, message, reply, error)

        try:
            ref.request(message, answered)
        except PapyraError as error:
            actor.at_hand = None
            self._at_hand -= 1
            self._put_off(timer, error)
            others, actor.ready = actor.ready or (), None
            for other in others:
                if not other.is_over:
                    self._put_off(other, None)

    def _answered(
        self,
        ref: ActorRef,
        timer: IndexedTimer,
        message: object,
        reply: object,
        error: Exception | None,
    ) -> None:
        if timer.is_over:
            self._go_on(timer.owner)
            return
        if self._is_closed:
            return
        if error is None and reply == "stale" and self._is_current:
            # The actor has just read its history, and knows better: something was missed here.
            logger.warning("the index of timers is not what is stored: it is made anew")
            self._begin_anew()
        elif error is not None and isinstance(message, TimerDue):
            notice = TimerFailed(timer.name, timer.generation, timer.due, error)
            self._send(ref, timer, notice)
            return
        else:
            self._put_off(timer, error)
        self._go_on(timer.owner)

    def _go_on(self, actor: TimersOfActor) -> None:
        """Let an actor that has answered have its turn again, after the others."""
        if actor.ready:
            self._turns.append(actor)
        else:
            actor.ready = None
            self._index.forget(actor)
        self._bring()

    def _put_off(self, timer: IndexedTimer, error: Exception | None) -> None:
        """Have a timer come again, of which nothing could be noted."""
        timer.put_off += 1
        pause = min(FIRST_PAUSE * 2.0 ** min(timer.put_off - 1, 30), LONGEST_PAUSE)
        if error is not None:
            logger.warning(
                "timer %s of %s comes again in %g s, as it could not be handled: %s",
                *(shown(timer.name), timer.owner.address, pause, type_and_text(error)),
                extra=fields(actor=timer.owner.address),
            )
        self._index.put_off(timer, self._clock.time() + pause)
        self._changed.set()

    def _recipient(self, actor: TimersOfActor) -> ActorRef | None:
        """Return who handles the timers of an actor; set it aside if there is nobody."""
        ref = self._ref_of(actor.address)
        if ref is None:
            self._set_aside(actor, actor.address.split("/")[1])
        return ref

    def _ref_of(self, address: str) -> ActorRef | None:
        """Return who handles the timers of the actor at an address, be it asleep."""
        spawned = self._spawned.get(address)
        if spawned is not None and spawned.is_alive:
            return spawned
        names = address.split("/")
        if len(names) != _ENTITY_NAMES:
            return None
        actor_class = self._entities.class_of(names[1])
        if actor_class is None or not _has_timers(actor_class):
            return None
        return self._entities.find(actor_class, unescaped(names[2]))

    def _set_aside(self, actor: TimersOfActor, name: str) -> None:
        stranded = self._stranded.setdefault(name, {})
        if not stranded:
            logger.warning(
                "timers of %s are due, and nobody can be woken for them: is it of a class of "
                "entities with timer_messages, as ActorSystem(..., entities=[...]) names them? "
                "Those of an actor that was spawned wait until it is spawned again",
                actor.address,
                extra=fields(actor=actor.address),
            )
        stranded[actor.address] = actor

    def _rescue(self, name: str) -> None:
        """Give those their turns who could not be woken before."""
        stranded = self._stranded.pop(name, None)
        if stranded:
            self._turns += stranded.values()
            self._changed.set()


def _ignore(reply: object, error: Exception | None) -> None:
    """Take the answer that nobody waits for."""


def _has_timers(actor_class: type) -> bool:
    return bool(getattr(actor_class, "timer_messages", ()))
