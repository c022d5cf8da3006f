"""The steps of an actor's life, as the runtime records them: the payloads of lifecycle events."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

__all__ = (
    "ActorCrashed",
    "ActorRecoveredWithout",
    "ActorRecoveryFailed",
    "ActorRestarted",
    "ActorStarted",
    "ActorStopped",
    "LifecycleEvent",
)


class ActorStarted(msgspec.Struct, frozen=True):
    """``on_start`` succeeded; the actor handles messages from now on."""

    #: the name of its class
    actor_type: str


class ActorCrashed(msgspec.Struct, frozen=True):
    """The actor raised."""

    #: the name of the exception's type
    error_type: str
    error: str
    #: where it was: ``__init__``, ``on_start``, ``receive``, ``receive_batch`` or ``on_stop``
    where: str
    #: what was decided: a `Decision`'s value; ``None`` for an actor that was stopping anyway
    decision: str | None
    #: the name of the type of the message it handled
    message_type: str | None = None


class ActorRecoveryFailed(msgspec.Struct, frozen=True):
    """An event-sourced actor could not be brought to the state that its history says."""

    #: the revision that could not be reached, or 0 if the history could not be read
    revision: int
    #: the event that stands there, if any does
    event_type: str
    #: the error, in words
    reason: str


class ActorRecoveredWithout(msgspec.Struct, frozen=True):
    """An event-sourced actor has its state without some of its events, as operators have decided.

    Recoveries that begin with a snapshot behind the decision do not say it again.
    """

    #: of the events that were passed over
    revisions: tuple[int, ...]


class ActorRestarted(msgspec.Struct, frozen=True):
    """A new instance took over, with the address, the name and the mailbox of the old one."""

    #: restarts in this actor's life so far, this one included
    restarts: int


class ActorStopped(msgspec.Struct, frozen=True):
    """The actor has stopped, and its children before it."""

    reason: Literal["stopped", "failed", "cancelled"]
    #: messages that it left unhandled; each of them is a dead letter
    unhandled: int


LifecycleEvent: TypeAlias = ActorStarted | ActorCrashed | ActorRestarted | ActorStopped
