"""The facts that projections leave in the store: the payloads of events of ``$projections``."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from papyra.persistence.records import PersistedAudit, PersistedDeadLetter, Record

__all__ = (
    "Fact",
    "ProjectionParked",
    "ProjectionPaused",
    "ProjectionRebuilt",
    "ProjectionResumed",
    "ProjectionSkipped",
    "actor_of",
    "is_fact",
)

#: The name in the addresses of those who have stored them; users' names don't start like this.
FOLDER = "$projections"


class ProjectionPaused(msgspec.Struct, frozen=True):
    """A projection has stopped before an event, or because somebody wanted it to."""

    #: everything up to it is handled
    position: int
    #: the event that it is about; `None` if it is about none
    seq: int | None
    #: the error, or what an operator said
    reason: str


class ProjectionResumed(msgspec.Struct, frozen=True):
    """A projection that was paused goes on."""

    position: int


class ProjectionSkipped(msgspec.Struct, frozen=True):
    """An event was passed over, by policy or by an operator."""

    seq: int
    reason: str


class ProjectionParked(msgspec.Struct, frozen=True):
    """An event was parked, and what follows of its actor is held back."""

    seq: int
    actor: str
    reason: str


class ProjectionRebuilt(msgspec.Struct, frozen=True):
    """A new build has taken the place of the live one."""

    build: int
    version: int
    position: int


Fact: TypeAlias = (
    ProjectionPaused | ProjectionResumed | ProjectionSkipped | ProjectionParked | ProjectionRebuilt
)


def actor_of(record: Record) -> str:
    """Return the address of the actor that a record is about; of an audit, the empty string."""
    match record:
        case PersistedDeadLetter():
            return record.target
        case PersistedAudit():
            return ""
        case _:
            return record.actor_address


def is_fact(record: Record) -> bool:
    """Return whether a record is a projection's own, which no projection is to handle."""
    return f"/{FOLDER}/" in actor_of(record)
