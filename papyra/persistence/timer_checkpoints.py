"""Checkpoints of the index of durable timers, as they are stored: what was pending at a position.

A checkpoint is the snapshot of a history of its own, next to the histories of a system's actors.
"""

from __future__ import annotations

import msgspec

from papyra.persistence.snapshots import Snapshot
from papyra.persistence.timer_changes import INDEX_NAME

#: Raised whenever what is kept means something else.
CHECKPOINT_VERSION = 1


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A timer as a checkpoint holds it; what it is of does not change as long as it is pending."""

    actor: str
    name: str
    generation: int
    due: float
    attempts: int = 0
    not_before: float | None = None


class Checkpoint(msgspec.Struct, frozen=True):
    """The timers of a system that were pending right after the event at a position."""

    #: the position in the store
    position: int
    #: whether up to there no other system has timers in the store
    is_alone: bool = False
    timers: list[Kept] = []


def index_address(system_id: str) -> str:
    """Return the address of the history whose snapshots are the checkpoints of a system."""
    return f"{system_id}/{INDEX_NAME}"


def checkpoint_in(snapshot: Snapshot) -> Checkpoint:
    """Return the checkpoint that a snapshot holds. Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(snapshot.state, type=Checkpoint)
