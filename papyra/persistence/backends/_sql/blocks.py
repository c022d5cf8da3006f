"""The totals of the records in each run of positions, so that nobody has to count them.

A block is 1024 positions. What a database stores of those that are full, and counts of the rest, is
summed up and compared here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from papyra.persistence.backends._sql.tables import Part, parts_by_kind
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import Kind

__all__ = ("BLOCK", "Totals", "differences", "total_of", "totals_of_batch")

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


def totals_of_batch(batch: Batch, stop: int, size: int) -> Iterator[tuple[Kind, Totals]]:
    """Yield the totals of the records of a batch in each block, by kind, before position `stop`.

    A block is of so many positions.
    """
    first, last = batch.first_seq, min(batch.first_seq + len(batch.records), stop)
    while first < last:
        following = min((first // size + 1) * size, last)
        part = slice(first - batch.first_seq, following - batch.first_seq)
        in_block = Batch(first, batch.records[part], batch.encoded[part])
        for kind, of_kind in parts_by_kind(in_block).items():
            yield kind, _totals(first // size, of_kind)
        first = following


def _totals(block: int, part: Part) -> Totals:
    times = part.timestamps()
    return Totals(block, len(times), sum(map(len, part.encoded)), min(times), max(times))


def differences(kind: Kind, stored: Mapping[int, int], found: Mapping[int, int]) -> Iterator[str]:
    """Yield in words which blocks do not hold as many records as was noted when they were full."""
    for block in sorted(stored.keys() | found.keys()):
        if stored.get(block, 0) != found.get(block, 0):
            yield (
                f"positions {block * BLOCK} to {(block + 1) * BLOCK - 1} hold "
                f"{found.get(block, 0)} records of kind {kind}, and held {stored.get(block, 0)}"
            )
