"""Side effects: the calls of `Projection.live`, once or more for each new event."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import msgspec

from papyra._cancellation import enable_interrupts
from papyra.persistence.records import Record
from papyra.persistence.subscription import CaughtUp, FellBehind, Received
from papyra.projections.cause import caused_by
from papyra.projections.course import Course
from papyra.projections.facts import is_fact
from papyra.projections.user_code import user_code

__all__ = ("SideEffects",)


class SideEffects:
    """Calls `live` for what is handled, and notes up to where that was done."""

    def __init__(self, course: Course) -> None:
        self._course = course

    async def catch_up(self) -> None:
        """Have the side effects of what was handled before, and has had none yet."""
        build = self._course.own
        if self._course.is_nothing_new(build) or build.live_position >= build.position:
            return
        wanted = self._course.wanted
        async with self._course.host.backend.subscribe(
            after=build.live_position,
            kinds=wanted.kinds,
            types=wanted.types,
            entity=wanted.entity,
        ) as items:
            while items.position < build.position:
                found = await items.batch(self._course.projection.batch_size)
                await self.tell(
                    [
                        each
                        for each in found
                        if not isinstance(each, (Received, CaughtUp, FellBehind))
                        and (each.seq or 0) <= build.position
                        and not is_fact(each)
                    ]
                )
                if self._course.own.is_paused:
                    return

    async def tell(self, records: Sequence[Record]) -> None:
        """Call `live` for records that are handled, and note up to where that was done."""
        build = self._course.own
        if self._course.is_nothing_new(build):
            return
        for record in records:
            if (record.seq or 0) <= build.live_position:
                continue
            for part, received in enumerate(self._course.decode(record)):
                if not await self._tell_one(record, received, part):
                    return
            build = msgspec.structs.replace(build, live_position=record.seq)
            self._course.take(build)
        if records:
            self._course.take(
                await self._course.keeper.move(build, build.position, build.live_position)
            )

    async def _tell_one(self, record: Record, received: object, part: int) -> bool:
        """Call `live` once or more; return whether it went well."""
        attempts, name = 0, f"{self._course.projection.name}/live"
        while True:
            try:
                with caused_by(name, record.seq, part), user_code("live"):
                    await enable_interrupts(self._call_live)(received)
            except Exception as error:  # noqa: BLE001 - users' code
                await self._course.end_with_system()
                attempts += 1
                delay = self._course.policy.retry.delay_after(attempts, error)
                if delay is None:
                    await self._course.pause(error, record.seq)
                    return False
                self._course.counters.retry()
                await self._course.rest(delay)
            else:
                return True

    async def _call_live(self, received: object) -> None:
        result = self._course.projection.live(received)
        if inspect.isawaitable(result):
            await result
