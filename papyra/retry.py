"""Retry: how often to try again, after which errors, and after which delays."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Generic, TypeVar

from papyra._durations import LONGEST, is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy

__all__ = ("Retry", "RetryThen")

ThenT = TypeVar("ThenT")


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """How often to try, the first attempt included, and how long to wait before each further one.

    One class for all that is tried again: ``ref.ask(message, retry=...)``, restarts
    (``OneForOne(retry=...)``), timers that fire, events that a projection handles. Raises
    `InvalidPolicy` for what makes no sense.
    """

    #: attempts in all, 1 or more; `None` for as many as it takes
    max_attempts: int | None
    #: seconds before the second attempt; before each further one twice as long, ...
    backoff: float = 0.0
    #: the share of each delay that is left to chance, from 0 to 1: so many who failed together do
    #: not come back together
    jitter: float = 0.0
    #: ... but no longer than this
    max_backoff: float = dataclasses.field(default=30.0, kw_only=True)
    #: the errors after which there is another attempt: a type or a tuple of them
    on: type[Exception] | tuple[type[Exception], ...] = dataclasses.field(
        default=Exception, kw_only=True
    )

    def __post_init__(self) -> None:
        attempts = self.max_attempts
        if attempts is not None and (type(attempts) is not int or attempts < 1):
            raise InvalidPolicy(
                f"max_attempts is a whole number, 1 or more, or None, not {shown(attempts)}"
            )
        for name in ("backoff", "max_backoff"):
            value = getattr(self, name)
            if not is_seconds(value, finite=True):
                raise InvalidPolicy(f"{name} is seconds, 0 or more, not {shown(value)}")
            object.__setattr__(self, name, float(min(value, LONGEST)))
        if not is_seconds(self.jitter) or self.jitter > 1:
            raise InvalidPolicy(f"jitter is a share, from 0 to 1, not {shown(self.jitter)}")
        object.__setattr__(self, "on", _types(self.on))

    def covers(self, error: BaseException) -> bool:
        """Return whether there is to be another attempt after `error`, were there no limit."""
        return issubclass(type(error), self.on)

    def delay(self, attempts: int) -> float:
        """Return the seconds to wait after so many attempts, 1 or more, have failed."""
        # 2.0 ** 1024 would be too large, and any delay has met its limit by then.
        longest = min(self.backoff * 2.0 ** min(attempts - 1, 1000), self.max_backoff)
        if not self.jitter:
            return longest
        return longest * (1 - self.jitter * random.random())  # noqa: S311 - no secret

    def delay_after(self, attempts: int, error: BaseException) -> float | None:
        """Return the seconds to wait after so many attempts have failed, the last with `error`.

        `None` is to give up: there were `max_attempts`, or `error` is none that `on` names.
        """
        if self.max_attempts is not None and attempts >= self.max_attempts:
            return None
        return self.delay(attempts) if self.covers(error) else None

    def then(self, outcome: ThenT) -> RetryThen[ThenT]:
        """Return this, followed by what is to be done once it gives up."""
        return RetryThen(self, outcome)


@dataclasses.dataclass(frozen=True, slots=True)
class RetryThen(Generic[ThenT]):
    """A `Retry`, and what follows when it gives up: ``Retry(3).then(...)``."""

    retry: Retry
    outcome: ThenT


def _types(value: Any) -> tuple[type[Exception], ...]:
    types = value if isinstance(value, tuple) else (value,)
    for each in types:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise InvalidPolicy(
                f"on is a type of exceptions, or a tuple of them, not {shown(each)}"
            )
    return types
