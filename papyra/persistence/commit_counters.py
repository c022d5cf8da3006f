"""Commits by their size and their time, where a system measures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from papyra._histogram import RECORDS, Histogram

__all__ = ("CommitCounters",)


class CommitCounters:
    """Counts the commits of a store that have succeeded, by how long they took, and their size."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.seconds = Histogram()
        #: how many records each had
        self.records = Histogram(RECORDS)

    async def observe(self, committing: Awaitable[None], records: int) -> None:
        """Await a commit of so many records, and count it."""
        began = self._monotonic()
        await committing
        self.seconds.add(self._monotonic() - began)
        self.records.add(records)
