"""The status of a projection, as its runner gives it out."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

__all__ = ("ProjectionState", "ProjectionStatus")

ProjectionState: TypeAlias = Literal[
    "starting", "standby", "building", "running", "waiting", "paused", "stopped"
]


class ProjectionStatus(msgspec.Struct, frozen=True):
    """A projection at one moment. The counters begin with its runner."""

    name: str
    version: int
    #: the build that is followed
    build: int
    #: ``standby``: another runner has it; ``waiting``: for the view's database, or the store
    state: ProjectionState
    #: where the view is; empty without one
    location: str
    #: whether each event has its effect exactly once; else at least once
    is_exact: bool
    #: everything up to it is handled
    position: int
    #: the greatest position in the store that is known
    head: int
    #: Unix time of the last event that was handled; `None` before the first
    handled_at: float | None
    #: while there are events to be handled, seconds that the last one handled is old, or that its
    #: runner has handled none; else 0
    lag_seconds: float
    #: events handled a second, over the last ten seconds or so
    rate: float
    handled: int
    #: transactions, or events where there are none
    commits: int
    #: attempts after a first one that has failed
    retries: int
    skipped: int
    #: events that are parked or held back behind those
    parked: int
    #: why it is paused, or what it waits for, or the last error since it runs
    error: str
    #: the event that it is paused at
    error_seq: int | None
    #: the version of the build beside the live one, where it stands; `None` if there is none
    rebuilding: int | None = None
    #: how often it has paused
    pauses: int = 0

    @property
    def lag(self) -> int:
        """The positions that it is behind the head."""
        return max(0, self.head - self.position)
