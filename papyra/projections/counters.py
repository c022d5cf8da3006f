"""What a projection has done since its runner began."""

from __future__ import annotations

from collections import deque

from papyra.clock import Clock

__all__ = ("Counters",)

#: Seconds over which events a second are counted.
_SPAN = 10.0


class Counters:
    """Counts what is handled, and how fast."""

    def __init__(self, clock: Clock) -> None:
        self.handled = self.commits = self.retries = self.skipped = self.parked = 0
        #: Unix time of the last event that was handled
        self.handled_at: float | None = None
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque()
        self._began = clock.monotonic()

    def add(self, count: int, timestamp: float) -> None:
        """Count the events of a transaction; the last of them is of this Unix time."""
        self.handled += count
        self.commits += 1
        self.handled_at = timestamp
        now = self._clock.monotonic()
        self._recent.append((now, count))
        while self._recent and self._recent[0][0] < now - _SPAN:
            self._recent.popleft()

    @property
    def rate(self) -> float:
        """Events a second."""
        now = self._clock.monotonic()
        count = sum(count for at, count in self._recent if at >= now - _SPAN)
        return count / max(min(now - self._began, _SPAN), 1e-3)
