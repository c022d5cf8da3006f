"""Histograms: how often values of which size have occurred, in as many numbers as bounds."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

__all__ = ("RECORDS", "SECONDS", "Distribution", "Histogram")

#: Upper bounds of durations, in seconds.
SECONDS: Final = (
    *(0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
#: Upper bounds of numbers of records.
RECORDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 10_000.0)


class Distribution(msgspec.Struct, frozen=True):
    """How often values of which size have occurred."""

    #: ascending; a value belongs to the first bound that it is not above
    bounds: tuple[float, ...]
    #: how many values belong to each bound, and last how many are above all of them
    counts: tuple[int, ...]
    #: the sum of all values
    total: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Histogram:
    """Counts values by their size."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> Distribution:
        """Return what was counted up to now."""
        return Distribution(self._bounds, tuple(self._counts), self._total)
