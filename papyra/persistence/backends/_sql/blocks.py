"""The totals of the records in each run of positions, so that nobody has to count them.

A block is 1024 positions. What a database stores of those that are full, and counts of the rest, is
summed up and compared here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import NamedTuple

from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import Kind, Record

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
        records, encoded = batch.records[part], batch.encoded[part]
        types = set(map(type, records))
        for kind, table in TABLES.items():
            if types == {table.record_type}:
                yield kind, _totals(first // size, records, encoded)
            elif table.record_type in types:
                chosen = [type(record) is table.record_type for record in records]
                of_kind = list(compress(records, chosen)), list(compress(encoded, chosen))
                yield kind, _totals(first // size, *of_kind)
        first = following


def _totals(block: int, records: Sequence[Record], encoded: Sequence[bytes]) -> Totals:
    times = [float(record.timestamp) for record in records]
    return Totals(block, len(records), sum(map(len, encoded)), min(times), max(times))


def differences(kind: Kind, stored: Mapping[int, int], found: Mapping[int, int]) -> Iterator[str]:
    """Yield in words which blocks do not hold as many records as was noted when they were full."""
    for block in sorted(stored.keys() | found.keys()):
        if stored.get(block, 0) != found.get(block, 0):
            yield (
                f"positions {block * BLOCK} to {(block + 1) * BLOCK - 1} hold "
                f"{found.get(block, 0)} records of kind {kind}, and held {stored.get(block, 0)}"
            )
