"""Follower: has one build of a projection handle what is stored, event after event."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import anyio
import msgspec

from papyra._safe_repr import type_and_text
from papyra.exceptions import (
    ActorStopped,
    BackendClosed,
    EventsCompacted,
    HandlerCommitted,
    HandlerTimedOut,
    MailboxClosed,
    PapyraError,
    ProjectionError,
    ProjectionStopped,
    StoreError,
    StoreReplaced,
    SystemNotRunning,
    ViewUnavailable,
)
from papyra.persistence.backends.store import Batch
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.messages import Append
from papyra.persistence.records import PersistedEvent, Record
from papyra.persistence.subscription import CaughtUp, FellBehind, Item, Received, Subscription
from papyra.projections.builds import Build
from papyra.projections.cause import caused_by
from papyra.projections.commands import Command, Verb
from papyra.projections.counters import Counters
from papyra.projections.facts import (
    FOLDER,
    Fact,
    ProjectionParked,
    ProjectionPaused,
    ProjectionRebuilt,
    ProjectionResumed,
    ProjectionSkipped,
    actor_of,
    is_fact,
)
from papyra.projections.host import Host
from papyra.projections.keeper import HandlerFailed, Keeper, TakenOver
from papyra.projections.on_error import DeadLetter, Pause, Skip, policy_of
from papyra.projections.place import check_place, find_record, store_id_of
from papyra.projections.projection import Projection, Wanted
from papyra.projections.status import ProjectionState

__all__ = ("Follower",)

logger = logging.getLogger("papyra")

#: Seconds between two looks at what is asked for in the view; with each, the lease is renewed.
TICK = 1.0
#: Seconds to the next try where a view, or the store, is not to be had: at first, and at most.
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0


#: What the store raises once it is closed for good.
_ENDED = (ActorStopped, BackendClosed, MailboxClosed, SystemNotRunning)


class _Ended(Exception):
    """Nothing more will be stored."""


class Follower:
    """Follows the store with one keeper, in one task; until it is stopped, or the store ends."""

    def __init__(
        self,
        host: Host,
        projection: Projection,
        wanted: Wanted,
        keep: Callable[[str | None], Keeper],
        obey: Callable[[Command], Awaitable[bool]],
    ) -> None:
        self.state: ProjectionState = "starting"
        self.build: Build | None = None
        self.counters = Counters(host.clock)
        self.error = ""
        self.error_seq: int | None = None
        #: set, and replaced, whenever anything of this has changed
        self.changed = anyio.Event()
        self._host = host
        self._projection = projection
        self._wanted = wanted
        self._decode = decoder(wanted)
        self._policy = policy_of(projection.on_error)
        self._keep = keep
        self._obey_above = obey
        self._keeper: Keeper | None = None
        self._commands: deque[Command] = deque()
        self._wait: anyio.CancelScope | None = None
        self._items: Subscription | None = None
        #: called when the build takes the place of another one
        self.took_over: Callable[[], None] = lambda: None
        self._is_at_rest = self._is_at_end = False
        self._failures = 0
        #: positions up to which what was compacted away is done without
        self._accepted = 0
        self._replaced: StoreReplaced | None = None
        self._compactions = 0
        #: when the lease was renewed last
        self._renewed = 0.0

    @property
    def position(self) -> int:
        """The position up to which everything is handled, or need not be."""
        handled = self.build.position if self.build is not None else 0
        if self._is_at_rest and self._items is not None:
            return max(handled, self._items.position)
        return handled

    @property
    def is_live(self) -> bool:
        """Whether it is the build that is read."""
        return self.build is not None and self.build.is_live

    async def run(self) -> None:
        """Follow the store until it ends, or this is cancelled."""
        unwatch = self._host.backend.watch_commits(self._saw)
        try:
            with contextlib.suppress(_Ended):
                while True:
                    await self._run_once()
        finally:
            unwatch()
            self._set("stopped")
            with anyio.CancelScope(shield=True):
                if self._keeper is not None:
                    await self._keeper.close(self.build)
            for command in self._commands:
                command.fail(ProjectionStopped(f"{self._projection.name} has stopped"))

    async def command(self, command: Command) -> None:
        """Have a command carried out between two batches, and wait until it is."""
        if self.state == "stopped":
            raise ProjectionStopped(f"{self._projection.name} has stopped")
        self._commands.append(command)
        if self._wait is not None:
            self._wait.cancel()
        await command.wait()

    async def add_build(self) -> int:
        """Add a build, to be built beside this one, and return its number."""
        return await self._keeper_now.add_build()

    async def _run_once(self) -> None:
        """Open the view, and follow with it until something goes wrong that is tried again."""
        try:
            await self._session()
        except TakenOver:
            logger.warning("projection %s: another runner has it now", self._projection.name)
        except ViewUnavailable as error:
            await self._wait_out(error)
        except ProjectionError as error:
            await self._stand(error)
        except StoreReplaced as error:
            await self._stand(error)
        except _ENDED as error:
            raise _Ended from error
        except (StoreError, OSError) as error:
            await self._wait_out(error)
        except _Ended:
            raise
        except Exception as error:  # a bug is said, and no reason to end the system
            logger.exception("projection %s failed", self._projection.name)
            await self._wait_out(error)

    async def _session(self) -> None:
        self._set("starting" if self.state != "waiting" else "waiting")
        store_id = await store_id_of(self._host.backend)
        if self._keeper is None:
            self._keeper = self._keep(store_id)
        await self._keeper.open()
        self._take(await self._claim(self._keeper))
        self._failures = 0
        if self._keeper.has_begun_build:
            self._commands.append(Command(Verb.REBUILD))
        while True:
            if self._own.is_paused:
                await self._rest_paused()
            else:
                await self._check_place(store_id)
                await self._follow()

    async def _claim(self, keeper: Keeper) -> Build:
        while True:
            build = await keeper.claim()
            if build is not None:
                return build
            self.build = None
            self._set("standby")
            await self._rest(self._tick)
            self._refuse_commands("another runner has it")

    async def _check_place(self, store_id: str | None) -> None:
        """Pause if the store does not go on after the position as it did."""
        self._compactions = self._host.backend.metrics.compactions
        build = self._own
        try:
            if self._replaced is not None:
                raise self._replaced
            await check_place(
                *(self._host.backend, build.position, build.anchor, store_id),
                self._wanted.kinds,
            )
        except EventsCompacted as error:
            if self._accepted <= build.position:
                await self._pause(error, None)
        except StoreReplaced as error:
            await self._pause(error, None)

    async def _follow(self) -> None:
        """Handle what comes, until it is paused."""
        if self._own.is_paused:
            return
        self._set(self._own.state if self._own.state != "retired" else "stopped")
        await self._catch_up_live()
        wanted, backend = self._wanted, self._host.backend
        async with backend.subscribe(
            after=self._own.position,
            kinds=wanted.kinds,
            types=wanted.types,
            entity=wanted.entity,
            waiting=self._store_waits,
        ) as items:
            self._items, self._is_at_end = items, False
            try:
                while not self._own.is_paused:
                    await self._take_batch(items)
            finally:
                self._items = None

    async def _take_batch(self, items: Subscription) -> None:
        found, is_drained = await self._next(items)
        self._is_at_end = self._is_at_end and not any(isinstance(i, FellBehind) for i in found)
        if self.state == "waiting":
            self._set(self._own.state if self._own.state != "retired" else "stopped")
        if self._replaced is not None:
            await self._pause(self._replaced, None)
            return
        for item in found:
            if isinstance(item, CaughtUp):
                self._is_at_end = True
        if self._host.backend.metrics.compactions != self._compactions:
            await self._check_place(await store_id_of(self._host.backend))
            if self._own.is_paused:
                return
        await self._handle(self._records(found))
        if self._own.is_paused:
            return
        if is_drained and self._is_at_end and self._own.state == "building":
            await self._end_building(items)
        await self._obey(items.position if is_drained else None)

    async def _next(self, items: Subscription) -> tuple[Sequence[Item], bool]:
        """Return what comes next; nothing when it is time to look at something else.

        And whether nothing else is queued, so that what was not given out need not be handled.
        """
        if self._commands:
            return (), False
        # Behind the end a tick might cut off a page again and again; the lease goes on by commits.
        seconds = self._tick if self._is_at_end else math.inf
        found: Sequence[Item] = ()
        with self._host.clock.move_on_after(seconds) as scope:
            self._wait, self._is_at_rest = scope, True
            self._tell()
            try:
                found = await items.batch(self._projection.batch_size)
            except StopAsyncIteration:
                raise _Ended from None
            finally:
                self._wait, self._is_at_rest = None, False
        return found, not found or isinstance(found[-1], CaughtUp)

    def _records(self, items: Sequence[Item]) -> Sequence[Record]:
        """Return what is to be handled of what the subscription gives out."""
        if items and isinstance(items[-1], CaughtUp):
            items = items[:-1]
        if items and isinstance(items[0], FellBehind):
            items = items[1:]
        records = cast("Sequence[Record]", items)
        if self._wanted.types is not None and self._wanted.decode is not None:
            return records  # and facts are of no such class
        return [each for each in records if not is_fact(each)]

    async def _end_building(self, items: Subscription) -> None:
        """Have the build run from now on, be it in place of another one."""
        if items.position > self._own.position:
            await self._move(items.position)
        was_live = self.is_live
        build = await self._keeper_now.catch_up(self._own)
        if build is None:
            return
        self._take(build)
        self._set("running")
        if not was_live:
            self.took_over()
            await self._record(ProjectionRebuilt(build.build, build.version, build.position))
            await self._catch_up_live()

    # Handling

    async def _handle(self, records: Sequence[Record]) -> None:
        """Handle records; isolate those that can't be handled."""
        todo = deque([records])
        while todo and not self._own.is_paused:
            part = todo.popleft()
            if not part:
                continue
            try:
                taken = await self._keeper_now.handle(self._own, part)
            except HandlerFailed as failure:
                if failure.index == 0 or len(part) == 1:
                    todo.appendleft(part[1:])
                    await self._handle_alone(part[0], failure.error)
                    continue
                middle = failure.index
                if middle is None:
                    middle = len(part) // 2
                    todo.extendleft((part[middle:], part[:middle]))
                else:
                    todo.extendleft((part[middle + 1 :], part[middle : middle + 1], part[:middle]))
            except (HandlerCommitted, HandlerTimedOut) as error:
                if isinstance(error, HandlerTimedOut):
                    raise
                await self._pause(error, part[0].seq)
            else:
                self._handled(taken.build, part[: taken.number], len(taken.held))
                if taken.number < len(part):
                    todo.appendleft(part[taken.number :])
                await self._tell_live(part[: taken.number])
            if self._commands:
                await self._obey()

    async def _handle_alone(self, record: Record, error: Exception) -> None:
        """Try an event again that has failed alone; then do as the policy says."""
        attempts = 1
        while (delay := self._policy.retry.delay_after(attempts, error)) is not None:
            self.error, self.error_seq = _text(error), record.seq
            await self._rest(delay)
            await self._obey()
            if self._own.is_paused:
                return
            attempts += 1
            self.counters.retries += 1
            try:
                taken = await self._keeper_now.handle(self._own, [record])
            except HandlerFailed as failure:
                error = failure.error
                continue
            self.error, self.error_seq = "", None
            self._handled(taken.build, [record], len(taken.held))
            await self._tell_live([record])
            return
        await self._give_up(record, error)

    async def _give_up(self, record: Record, error: Exception) -> None:
        seq, reason = record.seq or 0, _text(error)
        match self._policy.outcome:
            case Pause():
                await self._pause(error, seq)
            case Skip():
                await self._pass_over(record, reason)
            case DeadLetter():
                self._take(await self._keeper_now.park(self._own, record, reason))
                self.counters.parked += 1
                self.error, self.error_seq = reason, None
                await self._record(ProjectionParked(seq, actor_of(record), reason))

    async def _pass_over(self, record: Record, reason: str) -> None:
        seq = record.seq or 0
        await self._move(seq)
        self.counters.skipped += 1
        self.error, self.error_seq = reason, None
        await self._record(ProjectionSkipped(seq, reason))

    async def _move(self, position: int) -> None:
        build = self._own
        live = position if self._is_nothing_new(build) else build.live_position
        self._take(await self._keeper_now.move(build, position, live))

    def _handled(self, build: Build, records: Sequence[Record], held: int) -> None:
        self.counters.add(len(records) - held, records[-1].timestamp)
        self.counters.parked += held
        self._take(build)
        self._renewed = self._host.clock.monotonic()

    # Side effects

    def _is_nothing_new(self, build: Build) -> bool:
        return build.state == "building" or not self._projection.has_live

    async def _catch_up_live(self) -> None:
        """Have the side effects of what was handled before, and has had none yet."""
        build = self._own
        if self._is_nothing_new(build) or build.live_position >= build.position:
            return
        wanted = self._wanted
        async with self._host.backend.subscribe(
            after=build.live_position,
            kinds=wanted.kinds,
            types=wanted.types,
            entity=wanted.entity,
        ) as items:
            while items.position < build.position:
                found = await items.batch(self._projection.batch_size)
                await self._tell_live(
                    [each for each in self._records(found) if (each.seq or 0) <= build.position]
                )
                if self._own.is_paused:
                    return

    async def _tell_live(self, records: Sequence[Any]) -> None:
        """Call `live` for records that are handled, and note up to where that was done."""
        build = self._own
        if self._is_nothing_new(build):
            return
        for record in records:
            if (record.seq or 0) <= build.live_position:
                continue
            for received in self._decode(record):
                if not await self._tell_one(record, received):
                    return
            build = msgspec.structs.replace(build, live_position=record.seq)
            self._take(build)
        if records:
            self._take(await self._keeper_now.move(build, build.position, build.live_position))

    async def _tell_one(self, record: Record, received: object) -> bool:
        """Call `live` once or more; return whether it went well."""
        attempts = 0
        while True:
            try:
                with caused_by(f"{self._projection.name}/live", record.seq):
                    result = self._projection.live(received)
                    if inspect.isawaitable(result):
                        await result
            except Exception as error:  # noqa: BLE001 - users' code
                attempts += 1
                delay = self._policy.retry.delay_after(attempts, error)
                if delay is None:
                    await self._pause(error, record.seq)
                    return False
                self.counters.retries += 1
                await self._rest(delay)
            else:
                return True

    # What operators want

    async def _obey(self, position: int | None = None) -> None:
        """Carry out what was asked for, here and in the view, and renew the lease now and then.

        Everything up to `position`, if it is given, is handled, or need not be.
        """
        if self._host.clock.monotonic() - self._renewed >= self._tick:
            await self._look(self._own.position if position is None else position)
        while self._commands:
            command = self._commands.popleft()
            try:
                if not await self._obey_above(command):
                    await self._carry_out(command)
            except (ProjectionError, HandlerFailed) as error:
                command.fail(error)
                if isinstance(error, ViewUnavailable):
                    raise
            except BaseException:
                command.fail(ProjectionStopped(f"{self._projection.name}: it was interrupted"))
                raise
            else:
                command.finish()

    async def _look(self, position: int) -> None:
        """Renew the lease, and take over what is asked for in the view."""
        self._renewed = self._host.clock.monotonic()
        await self._move(max(position, self._own.position))
        request = self._own.request
        if request:
            self._take(await self._keeper_now.answer(self._own))
            command = Command.parsed(request)
            if command is None:
                logger.warning("projection %s: nobody knows %r", self._projection.name, request)
            else:
                self._commands.append(command)

    async def _carry_out(self, command: Command) -> None:
        match command.verb:
            case Verb.PAUSE:
                if not self._own.is_paused:
                    await self._pause(None, None, command.reason or "an operator wanted it to")
            case Verb.RESUME:
                await self._resume()
            case Verb.RETRY:
                await (self._resume() if command.seq is None else self._retry_parked(command.seq))
            case Verb.SKIP:
                reason = command.reason or "an operator has decided so"
                if command.seq is None:
                    await self._skip_here(reason)
                else:
                    await self._skip_parked(command.seq, reason)
            case Verb.DROP_OLD:
                await self._keeper_now.drop_old()
            case Verb.REBUILD:
                raise ProjectionStopped(f"{self._projection.name}: it can't be rebuilt now")

    async def _pause(self, error: Exception | None, seq: int | None, reason: str = "") -> None:
        reason = _text(error) if error is not None else reason
        self._take(await self._keeper_now.pause(self._own, reason, seq))
        logger.warning(
            "projection %s is paused at position %d: %s",
            *(self._projection.name, self._own.position, reason),
        )
        await self._record(ProjectionPaused(self._own.position, seq, reason))

    async def _resume(self) -> None:
        if not self._own.is_paused:
            return
        self._replaced = None
        self._take(await self._keeper_now.resume(self._own))
        self.error, self.error_seq = "", None
        self._set("starting")
        await self._record(ProjectionResumed(self._own.position))

    async def _skip_here(self, reason: str) -> None:
        build = self._own
        if not build.is_paused:
            raise ProjectionStopped(
                f"{build.name}: it is not paused at any event: name a parked one, or pause it"
            )
        seq = build.error_seq
        if seq is None:
            # What is missing, if anything is: up to here, once and for all.
            self._accepted = self._host.backend.last_seq
        elif seq > build.position:
            record = await find_record(self._host.backend, seq)
            if record is not None:
                await self._pass_over(record, reason)
        else:
            self._take(msgspec.structs.replace(build, live_position=seq))
            await self._move(build.position)
            self.counters.skipped += 1
            await self._record(ProjectionSkipped(seq, reason))
        await self._resume()

    async def _retry_parked(self, seq: int) -> None:
        """Handle a parked event, and then those that are held back behind it, as far as it goes."""
        parked = await self._keeper_now.parked(self._own)
        first = next((each for each in parked if each.seq == seq), None)
        if first is None:
            raise ProjectionStopped(f"{self._projection.name}: no event {seq} is parked")
        for each in parked:
            if each.seq != seq and not (each.actor == first.actor and each.seq > seq):
                continue
            if each.seq != seq and not each.is_held:
                break  # parked for a reason of its own
            await self._retry_one(each.seq)

    async def _retry_one(self, seq: int) -> None:
        record = await find_record(self._host.backend, seq)
        if record is None:
            raise EventsCompacted(
                f"{self._projection.name}: event {seq} is parked, and was removed from the store"
            )
        try:
            await self._keeper_now.handle_parked(self._own, record)
        except HandlerFailed as failure:
            raise ProjectionStopped(
                f"{self._projection.name}: event {seq} stays parked: {_text(failure.error)}"
            ) from failure.error
        self.counters.parked -= 1
        self.counters.handled += 1

    async def _skip_parked(self, seq: int, reason: str) -> None:
        """Pass over a parked event; handle those that are held back behind it."""
        parked = await self._keeper_now.parked(self._own)
        first = next((each for each in parked if each.seq == seq), None)
        if first is None:
            raise ProjectionStopped(f"{self._projection.name}: no event {seq} is parked")
        await self._keeper_now.unpark(self._own, seq)
        self.counters.parked -= 1
        self.counters.skipped += 1
        await self._record(ProjectionSkipped(seq, reason))
        behind = (each for each in parked if each.actor == first.actor and each.seq > seq)
        held = next(behind, None)
        if held is not None and held.is_held:
            await self._retry_parked(held.seq)

    # Waiting

    async def _rest_paused(self) -> None:
        self._set("paused")
        self.error, self.error_seq = self._own.error, self._own.error_seq
        self._tell()
        while self._own.is_paused:
            await self._rest(self._tick)
            await self._obey()

    async def _stand(self, error: Exception) -> None:
        """Be paused for what can't be noted in the view, until somebody says how to go on."""
        self.error, self.error_seq = _text(error), None
        self._set("paused")
        logger.error("projection %s is paused: %s", self._projection.name, self.error)
        position = self.build.position if self.build is not None else 0
        await self._record(ProjectionPaused(position, None, self.error))
        while True:
            await self._rest(self._tick)
            while self._commands:
                command = self._commands.popleft()
                if command.verb in (Verb.RESUME, Verb.RETRY) and command.seq is None:
                    command.finish()
                    self.error = ""
                    return
                if command.verb is Verb.PAUSE:
                    command.finish()
                else:
                    command.fail(ProjectionStopped(f"{self._projection.name}: {self.error}"))

    async def _wait_out(self, error: Exception) -> None:
        """Wait for the view or the store to be there again."""
        self.error = _text(error)
        if self.state != "waiting":
            logger.warning("projection %s waits: %s", self._projection.name, self.error)
        self._set("waiting")
        delay = min(FIRST_WAIT * 2.0 ** min(self._failures, 20), LONGEST_WAIT)
        self._failures += 1
        await self._rest(delay)
        self._refuse_commands(self.error)

    async def _rest(self, seconds: float) -> None:
        """Wait so long, or until there is a command."""
        if self._commands:
            return
        with self._host.clock.move_on_after(seconds) as scope:
            self._wait = scope
            try:
                await anyio.sleep_forever()
            finally:
                self._wait = None

    def _refuse_commands(self, why: str) -> None:
        while self._commands:
            command = self._commands.popleft()
            command.fail(ProjectionStopped(f"{self._projection.name}: {why}"))

    def _store_waits(self, error: StoreError) -> None:
        self.error = _text(error)
        self._set("waiting")
        logger.warning("projection %s waits: %s", self._projection.name, self.error)

    def _saw(self, batch: Batch) -> None:
        """Notice if positions are given again that were handled."""
        if self.build is not None and batch.first_seq <= self.position:
            self._replaced = StoreReplaced(
                f"the store has given position {batch.first_seq} again, and everything up to "
                f"{self.position} was handled: what was there was lost"
            )
            if self._wait is not None:
                self._wait.cancel()

    # State

    @property
    def _own(self) -> Build:
        if self.build is None:
            raise TakenOver
        return self.build

    @property
    def _tick(self) -> float:
        return TICK if self._keeper is None else min(TICK, self._keeper.lease / 3)

    @property
    def _keeper_now(self) -> Keeper:
        if self._keeper is None:
            raise TakenOver
        return self._keeper

    def _take(self, build: Build) -> None:
        self.build = build
        self._tell()

    def _set(self, state: ProjectionState) -> None:
        follows = state in ("running", "building")
        if follows and self.state in ("waiting", "paused", "starting"):
            self.error, self.error_seq = "", None
        self.state = state
        self._tell()

    def _tell(self) -> None:
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    async def _record(self, fact: Fact) -> None:
        """Store a fact; that it can't be is no reason not to go on."""
        host = self._host
        address = f"{host.system_id}/{FOLDER}/{self._projection.name}"
        record = PersistedEvent(
            host.system_id, address, type(fact).__name__, fact, host.clock.time()
        )
        try:
            await host.backend.execute(Append(record))
        except PapyraError as error:
            logger.warning("not recorded, as the store has failed (%s): %r", error, fact)


def decoder(wanted: Wanted) -> Callable[[Record], Sequence[Any]]:
    """Return what returns what a projection is given for a record; it raises what decoding does."""
    decode = wanted.decode
    if decode is None:
        return functools.partial(_decoded, wanted)

    def decode_event(record: Record) -> Sequence[Any]:
        if not isinstance(record, PersistedEvent) or record.event_type == BASE_TYPE:
            return _decoded(wanted, record)
        events = decode(record)
        if type(events) is tuple and len(events) == 1:  # as nearly all are
            return (Received(events[0], record),)
        return [Received(event, record) for event in events]

    return decode_event


def _decoded(wanted: Wanted, record: Record) -> Sequence[Any]:
    if isinstance(record, PersistedEvent) and record.event_type == BASE_TYPE:
        raise EventsCompacted(
            f"the events of {record.actor_address} up to revision {record.revision}, which is at "
            f"position {record.seq}, were removed from the store"
        )
    if wanted.decode is None or not isinstance(record, PersistedEvent):
        return (record,)
    return [Received(event, record) for event in wanted.decode(record)]


def _text(error: BaseException) -> str:
    if isinstance(error, PapyraError):
        return f"{type(error).__name__}: {error}"
    return type_and_text(error)
