"""Operations: what operators have a projection do between two batches."""

from __future__ import annotations

import msgspec

from papyra.exceptions import EventsCompacted, ProjectionStopped
from papyra.projections.commands import Command, Verb
from papyra.projections.course import Course, error_text
from papyra.projections.facts import ProjectionResumed, ProjectionSkipped
from papyra.projections.handling import Handling
from papyra.projections.keeper import HandlerFailed
from papyra.projections.place import find_record

__all__ = ("Operations",)


class Operations:
    """Carries out commands. Raises `ProjectionStopped` for what makes no sense now."""

    def __init__(self, course: Course, handling: Handling) -> None:
        self._course = course
        self._handling = handling

    async def carry_out(self, command: Command) -> None:
        """Carry out a command, unless it is one for whoever has the whole projection."""
        match command.verb:
            case Verb.PAUSE:
                if not self._course.own.is_paused:
                    await self._course.pause(
                        None, None, command.reason or "an operator wanted it to"
                    )
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
                await self._course.keeper.drop_old()
            case Verb.REBUILD:
                raise ProjectionStopped(f"{self._course.name}: it can't be rebuilt now")

    async def _resume(self) -> None:
        if not self._course.own.is_paused:
            return
        self._course.replaced = None
        self._course.take(await self._course.keeper.resume(self._course.own))
        self._course.error, self._course.error_seq = "", None
        self._course.set("starting")
        await self._course.record(ProjectionResumed(self._course.own.position))

    async def _skip_here(self, reason: str) -> None:
        build = self._course.own
        if not build.is_paused:
            raise ProjectionStopped(
                f"{build.name}: it is not paused at any event: name a parked one, or pause it"
            )
        seq = build.error_seq
        if seq is None:
            # What is missing, if anything is: up to here, once and for all.
            self._course.accepted = self._course.host.backend.last_seq
        elif seq > build.position:
            record = await find_record(self._course.host.backend, seq)
            if record is not None:
                await self._handling.pass_over(record, reason)
        else:
            self._course.take(msgspec.structs.replace(build, live_position=seq))
            await self._course.move(build.position)
            self._course.counters.skip()
            await self._course.record(ProjectionSkipped(seq, reason))
        await self._resume()

    async def _retry_parked(self, seq: int) -> None:
        """Handle a parked event, and then those that are held back behind it, as far as it goes."""
        parked = await self._course.keeper.parked(self._course.own)
        first = next((each for each in parked if each.seq == seq), None)
        if first is None:
            raise ProjectionStopped(f"{self._course.name}: no event {seq} is parked")
        for each in parked:
            if each.seq != seq and not (each.actor == first.actor and each.seq > seq):
                continue
            if each.seq != seq and not each.is_held:
                break  # parked for a reason of its own
            await self._retry_one(each.seq)

    async def _retry_one(self, seq: int) -> None:
        record = await find_record(self._course.host.backend, seq)
        if record is None:
            raise EventsCompacted(
                f"{self._course.name}: event {seq} is parked, and was removed from the store"
            )
        try:
            await self._course.keeper.handle_parked(self._course.own, record)
        except HandlerFailed as failure:
            raise ProjectionStopped(
                f"{self._course.name}: event {seq} stays parked: {error_text(failure.error)}"
            ) from failure.error
        self._course.counters.handle_parked()

    async def _skip_parked(self, seq: int, reason: str) -> None:
        """Pass over a parked event; handle those that are held back behind it."""
        parked = await self._course.keeper.parked(self._course.own)
        first = next((each for each in parked if each.seq == seq), None)
        if first is None:
            raise ProjectionStopped(f"{self._course.name}: no event {seq} is parked")
        await self._course.keeper.unpark(self._course.own, seq)
        self._course.counters.skip_parked()
        await self._course.record(ProjectionSkipped(seq, reason))
        behind = (each for each in parked if each.actor == first.actor and each.seq > seq)
        held = next(behind, None)
        if held is not None and held.is_held:
            await self._retry_parked(held.seq)
