"""Handling: events in batches, those that fail isolated, and what becomes of these."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from papyra.exceptions import HandlerCommitted
from papyra.persistence.records import Record
from papyra.projections.builds import Build
from papyra.projections.course import Course, error_text
from papyra.projections.facts import ProjectionParked, ProjectionSkipped, actor_of
from papyra.projections.keeper import HandlerFailed
from papyra.projections.on_error import DeadLetter, Pause, Skip
from papyra.projections.side_effects import SideEffects

__all__ = ("Handling",)


class Handling:
    """Has records handled; `obey` carries out what operators want between two attempts."""

    def __init__(
        self, course: Course, side_effects: SideEffects, obey: Callable[[], Awaitable[None]]
    ) -> None:
        self._course = course
        self._side_effects = side_effects
        self._obey = obey

    async def handle(self, records: Sequence[Record]) -> None:
        """Handle records; isolate those that can't be handled."""
        todo = deque([records])
        while todo and not self._course.own.is_paused:
            part = todo.popleft()
            if not part:
                continue
            try:
                taken = await self._course.handle(part)
            except HandlerFailed as failure:
                await self._course.end_with_system()
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
            except HandlerCommitted as error:
                await self._course.pause(error, part[0].seq)
            else:
                self._handled(taken.build, part[: taken.number], len(taken.held))
                if taken.number < len(part):
                    todo.appendleft(part[taken.number :])
                await self._side_effects.tell(part[: taken.number])
            if self._course.commands:
                await self._obey()

    async def _handle_alone(self, record: Record, error: Exception) -> None:
        """Try an event again that has failed alone; then do as the policy says."""
        attempts = 1
        while (delay := self._course.policy.retry.delay_after(attempts, error)) is not None:
            self._course.error, self._course.error_seq = error_text(error), record.seq
            await self._course.rest(delay)
            await self._obey()
            if self._course.own.is_paused:
                return
            attempts += 1
            self._course.counters.retry()
            try:
                taken = await self._course.handle([record])
            except HandlerFailed as failure:
                await self._course.end_with_system()
                error = failure.error
                continue
            self._course.error, self._course.error_seq = "", None
            self._handled(taken.build, [record], len(taken.held))
            await self._side_effects.tell([record])
            return
        await self._give_up(record, error)

    async def _give_up(self, record: Record, error: Exception) -> None:
        seq, reason = record.seq or 0, error_text(error)
        match self._course.policy.outcome:
            case Pause():
                await self._course.pause(error, seq)
            case Skip():
                await self.pass_over(record, reason)
            case DeadLetter():
                self._course.take(await self._course.keeper.park(self._course.own, record, reason))
                self._course.counters.park()
                self._course.error, self._course.error_seq = reason, None
                await self._course.record(ProjectionParked(seq, actor_of(record), reason))

    async def pass_over(self, record: Record, reason: str) -> None:
        """Move the position behind an event that is not handled, and record that."""
        seq = record.seq or 0
        await self._course.move(seq)
        self._course.counters.skip()
        self._course.error, self._course.error_seq = reason, None
        await self._course.record(ProjectionSkipped(seq, reason))

    def _handled(self, build: Build, records: Sequence[Record], held: int) -> None:
        self._course.counters.add(len(records) - held, records[-1].timestamp)
        self._course.counters.park(held)
        self._course.take(build)
        self._course.renewed = self._course.host.clock.monotonic()
