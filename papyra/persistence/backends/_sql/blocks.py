"""The totals of the records in each run of positions, so that nobody has to count them.

A block is 1024 positions. What a database stores of those that are full, and counts of the rest, is
summed up and compared here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from papyra.persistence.records import Kind

__all__ = ("BLOCK", "Totals", "differences", "total_of")

#: Positions in a block.
BLOCK = 1024


class Totals(NamedTuple):
    """The totals of the records of one kind in one block."""

    block: int
    records: int
    #: encoded
    bytes: int
    #: Unix times in seconds
    oldest: float
    newest: float


def total_of(blocks: Iterable[Totals]) -> Totals | None:
    """Return the totals of all records in some blocks, `None` if there are none."""
    every = list(blocks)
    if not every:
        return None
    return Totals(
        0,
        sum(each.records for each in every),
        sum(each.bytes for each in every),
        min(each.oldest for each in every),
        max(each.newest for each in every),
    )


def differences(kind: Kind, stored: Mapping[int, int], found: Mapping[int, int]) -> Iterator[str]:
    """Yield in words which blocks do not hold as many records as was noted when they were full."""
    for block in sorted(stored.keys() | found.keys()):
        if stored.get(block, 0) != found.get(block, 0):
            yield (
                f"positions {block * BLOCK} to {(block + 1) * BLOCK - 1} hold "
                f"{found.get(block, 0)} records of kind {kind}, and held {stored.get(block, 0)}"
            )
