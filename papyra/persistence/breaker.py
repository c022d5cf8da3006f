"""Between the persistence actor and its store: do not ask a store that fails every time."""

from __future__ import annotations

import msgspec

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy


class CircuitBreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a circuit breaker: when it opens, and when it tries the store again.

    Raises `InvalidPolicy` when a limit makes no sense.
    """

    #: writes that fail, one after the other, until it opens; `None` to ask every time
    max_failures: int | None = 10
    #: seconds that it stays open; then one write is let through, and decides
    reset_timeout: float = 5.0

    def __post_init__(self) -> None:
        failures, timeout = self.max_failures, self.reset_timeout
        if failures is not None and (type(failures) is not int or failures < 1):
            raise InvalidPolicy(f"max_failures is a whole number above 0, not {shown(failures)}")
        if not is_seconds(timeout, above=True, finite=True):
            raise InvalidPolicy(f"reset_timeout is seconds, more than 0, not {shown(timeout)}")


class CircuitBreaker:
    """Counts failures, after Akka's ``CircuitBreaker``: closed, open, and half-open for one try."""

    __slots__ = ("_opened_at", "_policy", "failures")

    def __init__(self, policy: CircuitBreakerPolicy) -> None:
        self._policy = policy
        #: writes that failed since one did not; a plain number, as every commit looks at it
        self.failures = 0
        self._opened_at: float | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it lets everything through."""
        return self._opened_at is None

    def seconds_left(self, now: float) -> float:
        """Return for how long it will let nothing through; 0 if it would now."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._policy.reset_timeout - now)

    def succeeded(self) -> None:
        """Close it: the store has written something."""
        self.failures = 0
        self._opened_at = None

    def failed(self, now: float) -> None:
        """Count a failure of the store, and open if there were enough of them."""
        self.failures += 1
        limit = self._policy.max_failures
        if limit is not None and self.failures >= limit:
            self._opened_at = now
