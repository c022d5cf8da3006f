"""Course: where one build of a projection is, and how it goes, for all that move it on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import anyio

from papyra._logs import fields
from papyra._safe_repr import is_really, type_and_text
from papyra.exceptions import PapyraError, ProjectionStopped, StoreReplaced
from papyra.persistence.messages import Append
from papyra.persistence.records import PersistedEvent, Record
from papyra.projections.builds import Build
from papyra.projections.commands import Command
from papyra.projections.counters import Counters
from papyra.projections.decoding import Decoder
from papyra.projections.facts import FOLDER, Fact, ProjectionPaused
from papyra.projections.host import Host
from papyra.projections.keeper import Keeper, Taken, TakenOver
from papyra.projections.on_error import policy_of
from papyra.projections.projection import Projection, Wanted
from papyra.projections.status import ProjectionState

__all__ = ("TICK", "Course", "error_text")

logger = logging.getLogger("papyra")

#: Seconds between two looks at what is asked for in the view; with each, the lease is renewed.
TICK = 1.0


class Course:
    """The state of one build, its place in the view, and what everybody does with these."""

    def __init__(self, host: Host, projection: Projection, wanted: Wanted) -> None:
        self.host = host
        self.projection = projection
        self.name = projection.name
        self.wanted = wanted
        self.decode = Decoder(wanted)
        self.policy = policy_of(projection.on_error)
        self.counters = Counters(host.clock, host.backend.metrics)
        self.state: ProjectionState = "starting"
        self.error = ""
        self.error_seq: int | None = None
        #: as it is in the view; `None` while another runner has it
        self.build: Build | None = None
        #: once the store is known
        self.keeper_there: Keeper | None = None
        #: what operators want, to be carried out
        self.commands: deque[Command] = deque()
        #: the scope of the wait at hand, which a command ends
        self.wait: anyio.CancelScope | None = None
        #: set, and replaced, whenever anything of this has changed
        self.changed = anyio.Event()
        #: when the lease was renewed last
        self.renewed = 0.0
        #: what was found out about the store, until somebody resumes
        self.replaced: StoreReplaced | None = None
        #: the position up to which what was compacted away is done without
        self.accepted = 0

    @property
    def own(self) -> Build:
        """The build. Raises `TakenOver` if another runner has it."""
        if self.build is None:
            raise TakenOver
        return self.build

    @property
    def keeper(self) -> Keeper:
        """The keeper. Raises `TakenOver` if there is none yet."""
        if self.keeper_there is None:
            raise TakenOver
        return self.keeper_there

    @property
    def tick(self) -> float:
        """The seconds between two looks at the view."""
        return TICK if self.keeper_there is None else min(TICK, self.keeper_there.lease / 3)

    def handle(self, records: Sequence[Record]) -> Coroutine[Any, Any, Taken]:
        """Return what has the keeper handle some of these records."""
        handling = self.keeper.handle(self.own, records)
        telemetry = self.host.telemetry
        if telemetry is None:
            return handling
        events = [each for each in records if isinstance(each, PersistedEvent)]
        causes = [each.metadata for each in events if each.metadata]
        return telemetry.projection(self.name, causes, len(records), handling)

    def take(self, build: Build) -> None:
        """Note where the build is now."""
        self.build = build
        self.tell()

    def set(self, state: ProjectionState) -> None:
        """Note the state; who follows again has no error any more."""
        follows = state in ("running", "building")
        if follows and self.state in ("waiting", "paused", "starting"):
            self.error, self.error_seq = "", None
        self.state = state
        self.tell()

    def tell(self) -> None:
        """Wake everybody who waits for a change."""
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def is_nothing_new(self, build: Build) -> bool:
        """Return whether what is handled has no side effects."""
        return build.state == "building" or not self.projection.has_live

    async def move(self, position: int) -> None:
        """Move the position on, over what need not be handled; renew the lease."""
        build = self.own
        live = position if self.is_nothing_new(build) else build.live_position
        self.take(await self.keeper.move(build, position, live))

    async def pause(self, error: Exception | None, seq: int | None, reason: str = "") -> None:
        """Pause at an event, or at none, for an error, or for a reason that somebody gave."""
        reason = error_text(error) if error is not None else reason
        self.take(await self.keeper.pause(self.own, reason, seq))
        self.counters.pause()
        logger.warning(
            "projection %s is paused at position %d: %s",
            *(self.name, self.own.position, reason),
            extra=fields(seq=seq),
        )
        await self.record(ProjectionPaused(self.own.position, seq, reason))

    async def record(self, fact: Fact) -> None:
        """Store a fact; that it can't be is no reason not to go on."""
        host = self.host
        address = f"{host.system_id}/{FOLDER}/{self.name}"
        record = PersistedEvent(
            host.system_id, address, type(fact).__name__, fact, host.clock.time()
        )
        try:
            await host.backend.execute(Append(record))
        except PapyraError as error:
            logger.warning("not recorded, as the store has failed (%s): %r", error, fact)

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until there is a command."""
        if self.commands:
            return
        with self.host.clock.move_on_after(seconds) as scope:
            self.wait = scope
            try:
                await anyio.sleep_forever()
            finally:
                self.wait = None

    async def end_with_system(self) -> None:
        """Wait to be cancelled if the system stops: what fails then is no failure of an event.

        It is handled when the system is there again.
        """
        if not self.host.is_running:
            await anyio.sleep_forever()

    def refuse_commands(self, why: str) -> None:
        """Let those raise `ProjectionStopped` who wait for a command."""
        while self.commands:
            command = self.commands.popleft()
            command.fail(ProjectionStopped(f"{self.name}: {why}"))


def error_text(error: BaseException) -> str:
    """Return what is shown of an error."""
    if is_really(error, PapyraError):
        return f"{type(error).__name__}: {error}"
    return type_and_text(error)
