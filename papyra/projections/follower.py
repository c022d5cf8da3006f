"""Follower: has one build of a projection handle what is stored, event after event."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import anyio

from papyra.exceptions import (
    ActorStopped,
    BackendClosed,
    EventsCompacted,
    MailboxClosed,
    ProjectionError,
    ProjectionStopped,
    StoreError,
    StoreReplaced,
    SystemNotRunning,
    ViewUnavailable,
)
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import Record
from papyra.persistence.subscription import CaughtUp, FellBehind, Item, Subscription
from papyra.projections.builds import Build
from papyra.projections.commands import Command, Verb
from papyra.projections.course import Course, error_text
from papyra.projections.facts import ProjectionPaused, ProjectionRebuilt, is_fact
from papyra.projections.handling import Handling
from papyra.projections.keeper import HandlerFailed, Keeper, TakenOver
from papyra.projections.operations import Operations
from papyra.projections.place import check_place, store_id_of
from papyra.projections.side_effects import SideEffects

__all__ = ("Follower",)

logger = logging.getLogger("papyra")

#: Seconds to the next try where a view, or the store, is not to be had: at first, and at most.
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
#: What the store raises once it is closed for good.
_ENDED = (ActorStopped, BackendClosed, MailboxClosed, SystemNotRunning)


class _Ended(Exception):
    """Nothing more will be stored."""


class Follower:
    """Follows the store with one keeper, in one task; until it is stopped, or the store ends.

    `keep` makes the keeper, once the id of the store is known. `obey_above` carries out a command
    for whoever has the whole projection, and returns whether it was one.
    """

    def __init__(
        self,
        course: Course,
        keep: Callable[[str | None], Keeper],
        obey_above: Callable[[Command], Awaitable[bool]],
    ) -> None:
        self.course = course
        #: called when the build takes the place of another one
        self.took_over: Callable[[], None] = lambda: None
        self._keep = keep
        self._obey_above = obey_above
        self._side_effects = SideEffects(course)
        self._handling = Handling(course, self._side_effects, self._obey)
        self._operations = Operations(course, self._handling)
        self._items: Subscription | None = None
        #: whether it waits in the subscription; whether that has no more at hand
        self._is_at_rest = self._is_at_end = False
        self._failures = 0
        self._compactions = 0

    @property
    def position(self) -> int:
        """The position up to which everything is handled, or need not be."""
        handled = self.course.build.position if self.course.build is not None else 0
        if self._is_at_rest and self._items is not None:
            return max(handled, self._items.position)
        return handled

    @property
    def is_live(self) -> bool:
        """Whether it is the build that is read."""
        return self.course.build is not None and self.course.build.is_live

    async def run(self) -> None:
        """Follow the store until it ends, or this is cancelled."""
        unwatch = self.course.host.backend.watch_commits(self._saw)
        try:
            with contextlib.suppress(_Ended):
                while True:
                    await self._run_once()
        finally:
            unwatch()
            self.course.set("stopped")
            with anyio.CancelScope(shield=True):
                if self.course.keeper_there is not None:
                    await self.course.keeper.close(self.course.build)
            for command in self.course.commands:
                command.fail(ProjectionStopped(f"{self.course.name} has stopped"))

    def hurry(self, seconds: float) -> None:
        """Take so many seconds more for the batch at hand, at most."""
        if self.course.keeper_there is not None:
            self.course.keeper.hurry(seconds)

    async def command(self, command: Command) -> None:
        """Have a command carried out between two batches, and wait until it is."""
        if self.course.state == "stopped":
            raise ProjectionStopped(f"{self.course.name} has stopped")
        self.course.commands.append(command)
        if self.course.wait is not None:
            self.course.wait.cancel()
        await command.wait()

    async def add_build(self) -> int:
        """Add a build, to be built beside this one, and return its number."""
        return await self.course.keeper.add_build()

    async def _run_once(self) -> None:
        """Open the view, and follow with it until something goes wrong that is tried again."""
        try:
            await self._session()
        except TakenOver:
            logger.warning("projection %s: another runner has it now", self.course.name)
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
            logger.exception("projection %s failed", self.course.name)
            await self._wait_out(error)

    async def _session(self) -> None:
        self.course.set("starting" if self.course.state != "waiting" else "waiting")
        store_id = await store_id_of(self.course.host.backend)
        if self.course.keeper_there is None:
            self.course.keeper_there = self._keep(store_id)
        await self.course.keeper.open()
        self.course.take(await self._claim())
        self._failures = 0
        if self.course.keeper.has_begun_build:
            self.course.commands.append(Command(Verb.REBUILD))
        while True:
            if self.course.own.is_paused:
                await self._rest_paused()
            else:
                await self._check_place(store_id)
                await self._follow()

    async def _claim(self) -> Build:
        while True:
            build = await self.course.keeper.claim()
            if build is not None:
                return build
            self.course.build = None
            self.course.set("standby")
            await self.course.rest(self.course.tick)
            self.course.refuse_commands("another runner has it")

    async def _check_place(self, store_id: str | None) -> None:
        """Pause if the store does not go on after the position as it did."""
        self._compactions = self.course.host.backend.metrics.compactions
        build = self.course.own
        try:
            if self.course.replaced is not None:
                raise self.course.replaced
            await check_place(
                *(self.course.host.backend, build.position, build.anchor, store_id),
                self.course.wanted.kinds,
            )
        except EventsCompacted as error:
            if self.course.accepted <= build.position:
                await self.course.pause(error, None)
        except StoreReplaced as error:
            await self.course.pause(error, None)

    async def _follow(self) -> None:
        """Handle what comes, until it is paused."""
        if self.course.own.is_paused:
            return
        self.course.set(self.course.own.state if self.course.own.state != "retired" else "stopped")
        await self._side_effects.catch_up()
        wanted, backend = self.course.wanted, self.course.host.backend
        async with backend.subscribe(
            after=self.course.own.position,
            kinds=wanted.kinds,
            types=wanted.types,
            entity=wanted.entity,
            waiting=self._store_waits,
        ) as items:
            self._items, self._is_at_end = items, False
            try:
                while not self.course.own.is_paused:
                    await self._take_batch(items)
            finally:
                self._items = None

    async def _take_batch(self, items: Subscription) -> None:
        found, is_drained = await self._next(items)
        self._is_at_end = self._is_at_end and not any(isinstance(i, FellBehind) for i in found)
        if self.course.state == "waiting":
            self.course.set(
                self.course.own.state if self.course.own.state != "retired" else "stopped"
            )
        if self.course.replaced is not None:
            await self.course.pause(self.course.replaced, None)
            return
        for item in found:
            if isinstance(item, CaughtUp):
                self._is_at_end = True
        if self.course.host.backend.metrics.compactions != self._compactions:
            await self._check_place(await store_id_of(self.course.host.backend))
            if self.course.own.is_paused:
                return
        await self._handling.handle(self._records(found))
        if self.course.own.is_paused:
            return
        if is_drained and self._is_at_end and self.course.own.state == "building":
            await self._end_building(items)
        await self._obey(items.position if is_drained else None)

    async def _next(self, items: Subscription) -> tuple[Sequence[Item], bool]:
        """Return what comes next; nothing when it is time to look at something else.

        And whether nothing else is queued, so that what was not given out need not be handled.
        """
        if self.course.commands:
            return (), False
        # Behind the end a tick might cut off a page again and again; the lease goes on by commits.
        seconds = self.course.tick if self._is_at_end else math.inf
        found: Sequence[Item] = ()
        with self.course.host.clock.move_on_after(seconds) as scope:
            self.course.wait, self._is_at_rest = scope, True
            self.course.tell()
            try:
                found = await items.batch(self.course.projection.batch_size)
            except StopAsyncIteration:
                raise _Ended from None
            finally:
                self.course.wait, self._is_at_rest = None, False
        return found, not found or isinstance(found[-1], CaughtUp)

    def _records(self, items: Sequence[Item]) -> Sequence[Record]:
        """Return what is to be handled of what the subscription gives out."""
        if items and isinstance(items[-1], CaughtUp):
            items = items[:-1]
        if items and isinstance(items[0], FellBehind):
            items = items[1:]
        records = cast("Sequence[Record]", items)
        if self.course.wanted.types is not None and self.course.wanted.decode is not None:
            return records  # and facts are of no such class
        return [each for each in records if not is_fact(each)]

    async def _end_building(self, items: Subscription) -> None:
        """Have the build run from now on, be it in place of another one."""
        if items.position > self.course.own.position:
            await self.course.move(items.position)
        was_live = self.is_live
        build = await self.course.keeper.catch_up(self.course.own)
        if build is None:
            return
        self.course.take(build)
        self.course.set("running")
        if not was_live:
            self.took_over()
            await self.course.record(ProjectionRebuilt(build.build, build.version, build.position))
            await self._side_effects.catch_up()

    async def _obey(self, position: int | None = None) -> None:
        """Carry out what was asked for, here and in the view, and renew the lease now and then.

        Everything up to `position`, if it is given, is handled, or need not be.
        """
        if self.course.host.clock.monotonic() - self.course.renewed >= self.course.tick:
            await self._look(self.course.own.position if position is None else position)
        while self.course.commands:
            command = self.course.commands.popleft()
            try:
                if not await self._obey_above(command):
                    await self._operations.carry_out(command)
            except (ProjectionError, HandlerFailed) as error:
                command.fail(error)
                if isinstance(error, ViewUnavailable):
                    raise
            except BaseException:
                command.fail(ProjectionStopped(f"{self.course.name}: it was interrupted"))
                raise
            else:
                command.finish()

    async def _look(self, position: int) -> None:
        """Renew the lease, and take over what is asked for in the view."""
        self.course.renewed = self.course.host.clock.monotonic()
        await self.course.move(max(position, self.course.own.position))
        request = self.course.own.request
        if request:
            self.course.take(await self.course.keeper.answer(self.course.own))
            command = Command.parsed(request)
            if command is None:
                logger.warning("projection %s: nobody knows %r", self.course.name, request)
            else:
                command.posted = f"{self.course.name}: {request!r}"
                self.course.commands.append(command)

    async def _rest_paused(self) -> None:
        self.course.set("paused")
        self.course.error, self.course.error_seq = (
            self.course.own.error,
            self.course.own.error_seq,
        )
        self.course.tell()
        while self.course.own.is_paused:
            await self.course.rest(self.course.tick)
            await self._obey()

    async def _stand(self, error: Exception) -> None:
        """Be paused for what can't be noted in the view, until somebody says how to go on."""
        self.course.error, self.course.error_seq = error_text(error), None
        self.course.set("paused")
        self.course.counters.pause()
        logger.error("projection %s is paused: %s", self.course.name, self.course.error)
        position = self.course.build.position if self.course.build is not None else 0
        await self.course.record(ProjectionPaused(position, None, self.course.error))
        while True:
            await self.course.rest(self.course.tick)
            while self.course.commands:
                command = self.course.commands.popleft()
                if command.verb in (Verb.RESUME, Verb.RETRY) and command.seq is None:
                    command.finish()
                    self.course.error = ""
                    return
                if command.verb is Verb.PAUSE:
                    command.finish()
                else:
                    command.fail(ProjectionStopped(f"{self.course.name}: {self.course.error}"))

    async def _wait_out(self, error: Exception) -> None:
        """Wait for the view or the store to be there again."""
        self.course.error = error_text(error)
        if self.course.state != "waiting":
            logger.warning("projection %s waits: %s", self.course.name, self.course.error)
        self.course.set("waiting")
        delay = min(FIRST_WAIT * 2.0 ** min(self._failures, 20), LONGEST_WAIT)
        self._failures += 1
        await self.course.rest(delay)
        self.course.refuse_commands(self.course.error)

    def _store_waits(self, error: StoreError) -> None:
        self.course.error = error_text(error)
        self.course.set("waiting")
        logger.warning("projection %s waits: %s", self.course.name, self.course.error)

    def _saw(self, batch: Batch) -> None:
        """Notice if positions are given again that were handled."""
        if self.course.build is not None and batch.first_seq <= self.position:
            self.course.replaced = StoreReplaced(
                f"the store has given position {batch.first_seq} again, and everything up to "
                f"{self.position} was handled: what was there was lost"
            )
            if self.course.wait is not None:
                self.course.wait.cancel()
