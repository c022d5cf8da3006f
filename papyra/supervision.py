"""Supervision: the policy by which a parent decides about a child that failed."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping

import msgspec
from msgspec.structs import force_setattr

from papyra._durations import LONGEST, is_seconds, seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy
from papyra.retry import Retry


class Decision(enum.Enum):
    """A directive for an actor that failed."""

    #: go on with the next message, state as it is
    RESUME = "resume"
    #: start over with a new instance; address, name and mailbox stay
    RESTART = "restart"
    #: stop it; its children stop with it
    STOP = "stop"
    #: treat it as a failure of the parent, on which the parent's own parent decides
    ESCALATE = "escalate"


class SupervisionPolicy(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How an actor supervises its children. Use `OneForOne` or `OneForAll`.

    Raises `InvalidPolicy` when a limit makes no sense.
    """

    #: what to do about an error whose type is not in `on`
    default: Decision = Decision.RESTART
    #: what to do about errors of these types; the most specific type decides
    on: Mapping[type[Exception], Decision] = {}
    #: how often one child may restart within `within` seconds; once more, and it is stopped
    max_restarts: int = 10
    #: seconds; infinity counts the restarts of a whole life
    within: float = 60.0
    #: seconds before the first restart within `within`; each further one waits twice as long, ...
    backoff: float = 0.0
    #: ... but no longer than this
    max_backoff: float = 30.0
    #: in place of `max_restarts`, `backoff` and `max_backoff`: the life that fails first is the
    #: first attempt, each restart `within` a further one. An error that `retry.on` does not name is
    #: no reason to restart, unless `on` says so: the child is stopped
    retry: Retry | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.default, Decision):
            raise InvalidPolicy(f"default is a Decision, not {shown(self.default)}")
        if not isinstance(self.on, Mapping):
            raise InvalidPolicy(
                f"on maps types of exceptions to decisions, and is not {shown(self.on)}"
            )
        for error_type, decision in self.on.items():
            if not (isinstance(error_type, type) and issubclass(error_type, Exception)):
                raise InvalidPolicy(
                    f"on maps types of exceptions to decisions, not {shown(error_type)}"
                )
            if not isinstance(decision, Decision):
                raise InvalidPolicy(f"on maps to decisions, not to {shown(decision)}")
        if type(self.max_restarts) is not int or self.max_restarts < 0:
            raise InvalidPolicy(
                f"max_restarts is a whole number, 0 or greater, not {shown(self.max_restarts)}"
            )
        if not is_seconds(self.within, above=True):
            raise InvalidPolicy(f"within is seconds, greater than 0, not {shown(self.within)}")
        for name in ("backoff", "max_backoff"):
            value = getattr(self, name)
            if not is_seconds(value, finite=True):
                raise InvalidPolicy(f"{name} is seconds, 0 or more, not {shown(value)}")
        self._check_retry()
        for name in ("within", "backoff", "max_backoff"):
            value = getattr(self, name)
            force_setattr(self, name, seconds(value) if name == "within" else min(value, LONGEST))

    def decide(self, error: Exception) -> Decision:
        """Return the decision about `error`."""
        for error_type in type(error).__mro__:
            if error_type in self.on:
                return self.on[error_type]
        if self.default is Decision.RESTART and self.retry and not self.retry.covers(error):
            return Decision.STOP
        return self.default

    @property
    def most_restarts(self) -> float:
        """How often one child may restart within `within` seconds; infinity for no limit."""
        if self.retry is None:
            return self.max_restarts
        attempts = self.retry.max_attempts
        return math.inf if attempts is None else attempts - 1

    def delay(self, restarts: int) -> float:
        """Return the seconds to wait before a restart, the `restarts`-th within `within`."""
        if self.retry is not None:
            return self.retry.delay(restarts)
        # 2.0 ** 1024 would be too large, and any delay has met its limit by then.
        return min(self.backoff * 2.0 ** min(restarts - 1, 1000), self.max_backoff)

    def _check_retry(self) -> None:
        if self.retry is None:
            return
        if not isinstance(self.retry, Retry):
            raise InvalidPolicy(f"retry is a Retry, not {shown(self.retry)}")
        if (self.max_restarts, self.backoff, self.max_backoff) != (10, 0.0, 30.0):
            raise InvalidPolicy(
                "retry stands for max_restarts, backoff and max_backoff: give it, or these"
            )


class OneForOne(SupervisionPolicy, frozen=True, kw_only=True):
    """Restart or stop the child that failed, and leave its siblings alone."""


class OneForAll(SupervisionPolicy, frozen=True, kw_only=True):
    """Restart or stop all children when one of them fails: for those that share their state."""
