"""What a row of the table is, and how two things are compared."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

__all__ = ("LOOPS", "Loop", "Options", "Result", "Row", "compare", "times_as_long")


@dataclass(frozen=True)
class Loop:
    """An event loop to run on."""

    name: str
    backend: str
    options: dict[str, Any]

    def run(self, function: Callable[..., Awaitable[float]], *args: object) -> float:
        """Return what `function` returns, on this loop."""
        return anyio.run(function, *args, backend=self.backend, backend_options=self.options)


LOOPS = [
    Loop("asyncio", "asyncio", {}),
    Loop("uvloop", "asyncio", {"use_uvloop": True}),
    Loop("trio", "trio", {}),
]


@dataclass(frozen=True)
class Result:
    """What a row came to: one ratio for each repetition, and the figure behind the median."""

    ratios: list[float]
    subject: str

    @property
    def ratio(self) -> float:
        """The median."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Row:
    """A subject, its reference, and the ratio that counts as done."""

    name: str
    reference: str
    bar: float
    at_most: bool
    measure: Callable[[Loop, Options], Result]
    needs_flights: bool = False

    def meets_bar(self, result: Result) -> bool:
        """Say whether the median is good enough."""
        return result.ratio <= self.bar if self.at_most else result.ratio >= self.bar


@dataclass(frozen=True)
class Options:
    """How much to measure."""

    repeat: int
    scale: float
    flights: Path | None

    def count(self, full: int) -> int:
        """Return `full` scaled."""
        return max(100, round(full * self.scale))


def compare(
    options: Options, count: int, reference: Callable[[], float], subject: Callable[[], float]
) -> Result:
    """Take turns, so that a noisy moment hits both; a ratio is speed over reference speed."""
    ratios, subjects = [], []
    for _ in range(options.repeat):
        reference_seconds = reference()
        seconds = subject()
        ratios.append(reference_seconds / seconds)
        subjects.append(seconds)
    per_item = statistics.median(subjects) / count
    return Result(ratios, f"{per_item * 1e6:.2f} µs")


def times_as_long(
    options: Options, count: int, reference: Callable[[], float], subject: Callable[[], float]
) -> Result:
    """Take turns; a ratio is the subject's time over that of the reference."""
    ratios, subjects = [], []
    for _ in range(options.repeat):
        reference_seconds = reference()
        subjects.append(subject())
        ratios.append(subjects[-1] / reference_seconds)
    return Result(ratios, f"{statistics.median(subjects) / count * 1e6:.2f} µs")
