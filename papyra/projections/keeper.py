"""Keeper: where a projection's position is kept, and where its events are handled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from papyra._safe_repr import shown
from papyra.persistence.records import Record
from papyra.projections.builds import Build, Parked

__all__ = ("HandlerFailed", "Keeper", "Taken", "TakenOver")


class HandlerFailed(Exception):
    """A handler has raised `error`, and nothing of what it was given is committed."""

    def __init__(self, index: int | None, error: Exception) -> None:
        super().__init__(f"event {index}: {shown(error)}")
        #: of the event in what was to be handled; `None` if it is not known which it was
        self.index = index
        self.error = error


class TakenOver(Exception):
    """Another runner has the build, or has moved it on, or it is retired."""


class Taken(NamedTuple):
    """Some events are handled, or held back."""

    build: Build
    #: how many of those that were given, from the first on
    number: int
    #: those that are held back behind parked ones, of these
    held: tuple[int, ...] = ()


class Keeper(Protocol):
    """The keeper of one projection's builds; for one task.

    Whatever concerns the view's database itself raises `ViewUnavailable`. A build that is given is
    one that was returned before, and `TakenOver` is raised if it is not as it was.
    """

    @property
    def lease(self) -> float:
        """The seconds after which another runner may take over; infinity if there is none."""

    @property
    def has_begun_build(self) -> bool:
        """Whether there is a build that was begun beside the one that was claimed."""

    async def open(self) -> None:
        """Connect."""

    async def close(self, build: Build | None) -> None:
        """Let go of a build, and of the connection."""

    def hurry(self, seconds: float) -> None:
        """Take so many seconds more for what is under way, at most: the system stops."""

    async def claim(self) -> Build | None:
        """Return the build to go on with, made anew if there is none; `None` if it is another's.

        Raises `ProjectionOutdated`, and `SetupFailed`.
        """

    async def parked(self, build: Build) -> Sequence[Parked]:
        """Return the parked events."""

    async def handle(self, build: Build, records: Sequence[Record]) -> Taken:
        """Handle some of these records, at least one, and move the position behind them.

        Raises `HandlerFailed`, `HandlerCommitted` and `HandlerTimedOut`.
        """

    async def move(self, build: Build, position: int, live_position: int) -> Build:
        """Move positions on, over what need not be handled; keep the lease. Return all there is."""

    async def handle_parked(self, build: Build, record: Record) -> None:
        """Handle a parked event, and park it no more. Raises as `handle` does."""

    async def park(self, build: Build, record: Record, reason: str) -> Build:
        """Park an event, and move the position behind it."""

    async def unpark(self, build: Build, seq: int) -> None:
        """Park an event no more."""

    async def pause(self, build: Build, reason: str, seq: int | None) -> Build:
        """Note that it is paused, and why."""

    async def resume(self, build: Build) -> Build:
        """Note that it goes on."""

    async def catch_up(self, build: Build) -> Build | None:
        """Note that the end was reached; return `None` if the live build is further than this.

        A build that was not live takes the place of the one that was.
        """

    async def answer(self, build: Build) -> Build:
        """Note that what was asked for in the view is done."""

    async def add_build(self) -> int:
        """Make a further build, to be built beside the live one, and return its number.

        One that was begun, and is not at its end, is gone on with. Raises `SetupFailed`.
        """

    async def drop_old(self) -> int:
        """Drop the tables of retired builds, and return how many builds that were."""
