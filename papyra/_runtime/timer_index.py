"""The index of the durable timers that are pending: what the changes in a store add up to.

Timers that are scheduled one after the other are put into it together, once somebody looks: many
are replaced before that, and each by itself takes longer.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.records import PersistedEvent
from papyra.persistence.timer_changes import (
    TIMER,
    Change,
    Failed,
    Fired,
    MadeDue,
    Scheduled,
    change_in,
    timers_in_base,
)
from papyra.persistence.timer_checkpoints import Kept

#: Entries of timers that are over, and may stay in the heap, however few others there are.
_KEPT = 64
#: Timers that are put in together, at most.
_NEW = 1_000


class IndexedTimer(msgspec.Struct, eq=False):
    """A timer that is pending."""

    owner: TimersOfActor
    name: str
    #: the revision with which it was scheduled
    generation: int
    #: Unix time in seconds of the occurrence that comes next
    due: float
    #: Unix time in seconds at which it is brought
    comes_at: float
    #: how often handling that has failed
    attempts: int = 0
    #: Unix time in seconds at which it was first seen to be due; `None` before
    seen: float | None = None
    #: how often it was put off, as its failure could not even be noted
    put_off: int = 0
    #: whether this occurrence is over, or another one has taken its place
    is_over: bool = False
    #: whether it is in the heap
    is_waiting: bool = False


class TimersOfActor:
    """The timers of one actor."""

    __slots__ = ("address", "at_hand", "by_name", "ready")

    def __init__(self, address: str) -> None:
        self.address = address
        self.by_name: dict[str, IndexedTimer] = {}
        #: those that are due, in the order in which they are brought
        self.ready: deque[IndexedTimer] | None = None
        #: the one that was brought, and not answered
        self.at_hand: IndexedTimer | None = None


class TimerIndex:
    """Timers by their actors, and a heap of when they come."""

    def __init__(self, system_id: str) -> None:
        self._prefix = f"{system_id}/"
        self._actors: dict[str, TimersOfActor] = {}
        #: what was scheduled last, and is not in the rest yet, oldest first: address, name,
        #: revision, and Unix time in seconds
        self._new: list[tuple[str, str, int, float]] = []
        self._numbers = itertools.count()
        #: Unix time in seconds, a number to keep those of one moment in order, and the timer
        self._heap: list[tuple[float, int, IndexedTimer]] = []
        self._over = 0
        self._count = 0
        #: changes so far
        self.changes = 0
        #: whether no other system has timers, in all that was taken in
        self.is_alone = True

    def __len__(self) -> int:
        self._put_new()
        return self._count

    def __iter__(self) -> Iterator[IndexedTimer]:
        self._put_new()
        for actor in tuple(self._actors.values()):
            yield from tuple(actor.by_name.values())

    def find(self, address: str, name: str) -> IndexedTimer | None:
        """Return the timer of that name of an actor, if one is pending."""
        self._put_new()
        actor = self._actors.get(address)
        return None if actor is None else actor.by_name.get(name)

    @property
    def next_at(self) -> float:
        """Unix time in seconds at which the next one comes; infinity if there is none."""
        self._put_new()
        while self._heap and self._heap[0][2].is_over:
            heapq.heappop(self._heap)
            self._over -= 1
        return self._heap[0][0] if self._heap else math.inf

    def pop_due(self, now: float) -> IndexedTimer | None:
        """Return the next timer that is due at Unix time `now`, which is in the heap no more."""
        if self.next_at > now or not self._heap:
            return None
        timer = heapq.heappop(self._heap)[2]
        timer.is_waiting = False
        return timer

    def put_off(self, timer: IndexedTimer, moment: float) -> None:
        """Have a timer that was popped come again, at Unix time `moment`."""
        timer.comes_at = moment
        self._push(timer)

    def schedule(self, record: PersistedEvent) -> float | None:
        """Take in an event that schedules a timer of this system, as its actor writes it.

        Return Unix time in seconds of the first occurrence; `None` for any other event, which is
        for `take_in`.
        """
        scheduled, address, revision = record.payload, record.actor_address, record.revision
        if (
            type(scheduled) is not Scheduled
            or type(name := scheduled.name) is not str
            or type(due := scheduled.due) is not float
            or revision is None
            or not address.startswith(self._prefix)
        ):
            return None
        # Without the message, which may be large.
        self._new.append((address, name, revision, due))
        self.changes += 1
        if len(self._new) >= _NEW:
            self._put_new()
        return due

    def take_in(self, record: PersistedEvent) -> Change | None:
        """Move on by an event, if it is about timers of this system; return the change.

        Raises `InvalidTimerEvent`, `InvalidBase` or `msgspec.DecodeError` for what can't be read.
        """
        if record.revision is None:
            return None
        if not record.actor_address.startswith(self._prefix):
            self.is_alone = self.is_alone and record.event_type not in {TIMER, BASE_TYPE}
            return None
        if record.event_type == TIMER:
            change = change_in(record.payload)
            self._put_new()
            self._change(record.actor_address, change, record.revision)
            return change
        if record.event_type == BASE_TYPE:
            self._put_new()
            self._begin_with(record)
        return None

    def all(self) -> list[IndexedTimer]:
        """Return all timers that are pending now, for a checkpoint."""
        self._put_new()
        actors = self._actors.values()
        return [timer for actor in actors for timer in actor.by_name.values()]

    def restore(self, kept: Iterable[Kept]) -> None:
        """Begin with the timers of a checkpoint."""
        for each in kept:
            if each.actor.startswith(self._prefix):
                self._put(
                    each.actor, each.name, each.generation, each.due, each.attempts, each.not_before
                )

    def clear(self) -> None:
        """Forget all of them."""
        self._new.clear()
        for actor in self._actors.values():
            for timer in actor.by_name.values():
                timer.is_over = True
            actor.by_name.clear()
        self._heap.clear()
        self._over = self._count = 0
        self.is_alone = True
        self._forget_idle()

    def forget(self, actor: TimersOfActor) -> None:
        """Let go of an actor without timers, of which nothing is under way."""
        is_idle = not actor.by_name and actor.at_hand is None
        if is_idle and self._actors.get(actor.address) is actor:
            del self._actors[actor.address]

    def _forget_idle(self) -> None:
        for actor in tuple(self._actors.values()):
            self.forget(actor)

    def _put_new(self) -> None:
        """Put in what was scheduled since the last time; of one name, the newest one."""
        if not self._new:
            return
        newest: dict[tuple[str, str], tuple[int, float]] = {}
        for address, name, revision, due in reversed(self._new):
            newest.setdefault((address, name), (revision, due))
        self._new.clear()
        for (address, name), (revision, due) in reversed(newest.items()):
            self._put(address, name, revision, due)

    def _change(self, address: str, change: Change, revision: int) -> None:
        self.changes += 1
        if type(change) is Scheduled:
            self._put(address, change.name, revision, change.due)
            return
        timer = self.find(address, change.name)
        if timer is None:
            return
        match change:
            case Fired(due=due, next_due=next_due):
                if due != timer.due:
                    return
                if next_due is not None:
                    self._put(address, change.name, timer.generation, next_due)
                    return
            case Failed(due=due):
                if due == timer.due:
                    self._put(
                        *(address, change.name, timer.generation, due),
                        *(change.attempts, change.not_before),
                    )
                return
            case MadeDue(due=due):
                self._put(address, change.name, timer.generation, due)
                return
        self._remove(timer)

    def _begin_with(self, record: PersistedEvent) -> None:
        """Take over what the base of a history holds, in place of all that was before."""
        timers = timers_in_base(record)
        actor = self._actors.get(record.actor_address)
        for timer in () if actor is None else tuple(actor.by_name.values()):
            self._remove(timer)
        for each in timers.values():
            self._put(
                *(record.actor_address, each.name, each.generation, each.due),
                *(each.attempts, each.not_before),
            )

    def _put(
        self,
        address: str,
        name: str,
        generation: int,
        due: float,
        attempts: int = 0,
        not_before: float | None = None,
    ) -> None:
        actor = self._actors.get(address)
        if actor is None:
            actor = self._actors[address] = TimersOfActor(address)
        before = actor.by_name.get(name)
        if before is not None:
            self._end(before)
        comes_at = due if not_before is None else max(due, not_before)
        timer = IndexedTimer(actor, name, generation, due, comes_at, attempts)
        if before is not None and before.due == due:
            timer.seen = before.seen
        actor.by_name[name] = timer
        self._count += 1
        self._push(timer)

    def _push(self, timer: IndexedTimer) -> None:
        timer.is_waiting = True
        heapq.heappush(self._heap, (timer.comes_at, next(self._numbers), timer))

    def _remove(self, timer: IndexedTimer) -> None:
        self._end(timer)
        del timer.owner.by_name[timer.name]
        self.forget(timer.owner)

    def _end(self, timer: IndexedTimer) -> None:
        timer.is_over = True
        self._count -= 1
        self._over += timer.is_waiting
        if self._over > _KEPT + len(self._heap) // 2:
            self._heap = [each for each in self._heap if not each[2].is_over]
            heapq.heapify(self._heap)
            self._over = 0
