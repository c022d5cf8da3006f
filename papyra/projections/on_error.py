"""Policies for an event that a projection can't handle."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy
from papyra.retry import Retry, RetryThen

__all__ = ("DeadLetter", "OnError", "Outcome", "Pause", "Skip", "policy_of")


class Pause(msgspec.Struct, frozen=True):
    """Stop at the event, until an operator says how to go on."""


class Skip(msgspec.Struct, frozen=True):
    """Pass over the event."""


class DeadLetter(msgspec.Struct, frozen=True):
    """Park the event, and hold back later ones of its actor, until an operator decides."""


Outcome: TypeAlias = Pause | Skip | DeadLetter
OnError: TypeAlias = Outcome | Retry | RetryThen[Outcome]

_ONCE = Retry(1)


def policy_of(on_error: object) -> RetryThen[Outcome]:
    """Return `on_error` with both of its parts. Raises `InvalidPolicy`."""
    match on_error:
        case RetryThen(_, Pause() | Skip() | DeadLetter()):
            return on_error
        case Retry():
            return on_error.then(Pause())
        case Pause() | Skip() | DeadLetter():
            return _ONCE.then(on_error)
    raise InvalidPolicy(
        "on_error is Pause(), Skip(), DeadLetter(), or Retry(...).then(one of them), "
        f"not {shown(on_error)}"
    )
