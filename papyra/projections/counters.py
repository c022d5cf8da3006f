"""What a projection has done since its runner began, and all of them for the metrics."""

from __future__ import annotations

from collections import deque

from papyra.clock import Clock
from papyra.persistence.metrics import PersistenceMetrics

__all__ = ("Counters",)

#: Seconds over which events a second are counted.
_SPAN = 10.0


class Counters:
    """Counts what is handled, and how fast; and the same in `metrics`, which others share."""

    def __init__(self, clock: Clock, metrics: PersistenceMetrics) -> None:
        self.handled = self.commits = self.retries = self.skipped = self.pauses = 0
        #: how many of those that were parked are so now
        self.parked = 0
        #: Unix time of the last event that was handled
        self.handled_at: float | None = None
        self._clock = clock
        self._metrics = metrics
        self._recent: deque[tuple[float, int]] = deque()
        self._began = clock.monotonic()

    def add(self, count: int, timestamp: float) -> None:
        """Count the events of a transaction; the last of them is of this Unix time."""
        self._add_handled(count)
        self.commits += 1
        self.handled_at = timestamp
        now = self._clock.monotonic()
        self._recent.append((now, count))
        while self._recent and self._recent[0][0] < now - _SPAN:
            self._recent.popleft()

    def retry(self) -> None:
        """Count an attempt after a first one."""
        self.retries += 1
        self._metrics.projection_retries += 1

    def skip(self) -> None:
        """Count an event that is passed over."""
        self.skipped += 1
        self._metrics.projection_skipped += 1

    def pause(self) -> None:
        """Count a pause."""
        self.pauses += 1
        self._metrics.projection_pauses += 1

    def park(self, count: int = 1) -> None:
        """Count events that are parked, or held back."""
        self.parked += count
        self._metrics.projection_parked += count

    def handle_parked(self) -> None:
        """Count a parked event that is handled."""
        self.parked -= 1
        self._add_handled(1)

    def skip_parked(self) -> None:
        """Count a parked event that is passed over."""
        self.parked -= 1
        self.skip()

    def _add_handled(self, count: int) -> None:
        self.handled += count
        self._metrics.projection_handled += count

    @property
    def age(self) -> float:
        """Seconds that the last event is old that was handled; or that none has been, so far."""
        if self.handled_at is None:
            return self._clock.monotonic() - self._began
        return max(0.0, self._clock.time() - self.handled_at)

    @property
    def rate(self) -> float:
        """Events a second."""
        now = self._clock.monotonic()
        count = sum(count for at, count in tuple(self._recent) if at >= now - _SPAN)
        return count / max(min(now - self._began, _SPAN), 1e-3)
