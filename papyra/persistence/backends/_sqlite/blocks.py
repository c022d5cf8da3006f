"""The totals of the records in each run of positions, so that nobody has to count them.

A block is 1024 positions. Its totals are stored, one row a kind, in the transaction that gives the
first position of a later block; those of the last block are counted when they are asked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import cast

from papyra.persistence.backends._sql.blocks import (
    BLOCK,
    Totals,
    differences,
    total_of,
    totals_of_batch,
)
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import Kind

__all__ = ("blocks", "rebuild", "seal", "totals", "wrong_blocks")

_COUNT = """
SELECT system_id, '{kind}', seq / {block}, count(*), sum(length(CAST(record AS BLOB))),
    min(timestamp), max(timestamp)
FROM {table} WHERE system_id = ? AND seq >= ? AND seq < ? GROUP BY seq / {block}
"""


def _count(kind: Kind) -> str:
    return _COUNT.format(kind=kind, block=BLOCK, table=TABLES[kind].name)


def seal(connection: sqlite3.Connection, system_id: str, before: int, batch: Batch) -> None:
    """Store the totals of blocks that a batch completes, as the last position was `before` it.

    What was there before is counted in the database, and the batch here, as it is at hand.
    """
    start = before // BLOCK * BLOCK
    stop = (batch.first_seq + len(batch.records) - 1) // BLOCK * BLOCK
    if start == stop:
        return
    found: dict[tuple[Kind, int], Totals] = {}
    for kind in TABLES:
        for _, _, *numbers in connection.execute(_count(kind), (system_id, start, before + 1)):
            _add(found, kind, Totals._make(numbers))
    for kind, totals_of_part in totals_of_batch(batch, stop, BLOCK):
        _add(found, kind, totals_of_part)
    connection.executemany(
        "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(system_id, kind, *each) for (kind, _), each in found.items()],
    )


def _add(found: dict[tuple[Kind, int], Totals], kind: Kind, more: Totals) -> None:
    """Add totals to those of the same block."""
    there = found.get((kind, more.block))
    both = more if there is None else cast("Totals", total_of((there, more)))
    found[kind, more.block] = both._replace(block=more.block)


def rebuild(connection: sqlite3.Connection, system_id: str, kind: Kind, last_seq: int) -> None:
    """Count the records of a kind in all blocks anew."""
    connection.execute("DELETE FROM blocks WHERE system_id = ? AND kind = ?", (system_id, kind))
    connection.execute(
        f"INSERT INTO blocks {_count(kind)}",
        (system_id, 0, last_seq // BLOCK * BLOCK),
    )


def blocks(
    connection: sqlite3.Connection, system_id: str, kind: Kind, *, newest: bool
) -> Iterator[Totals]:
    """Yield the totals of every block in which there are records of a kind, in this order."""
    last_seq = _last_seq(connection, system_id)
    if newest:
        yield from _last_block(connection, system_id, kind, last_seq)
    stored = connection.execute(
        "SELECT block, records, bytes, oldest, newest FROM blocks "  # noqa: S608 - a constant
        "WHERE system_id = ? AND kind = ? AND block < ? "
        f"ORDER BY block {'DESC' if newest else 'ASC'}",
        (system_id, kind, last_seq // BLOCK),
    )
    yield from map(Totals._make, stored)
    if not newest:
        yield from _last_block(connection, system_id, kind, last_seq)


def totals(connection: sqlite3.Connection, system_id: str, kind: Kind) -> Totals | None:
    """Return the totals of all records of a kind, `None` if there are none."""
    return total_of(blocks(connection, system_id, kind, newest=False))


def wrong_blocks(connection: sqlite3.Connection, system_id: str, kind: Kind) -> Iterator[str]:
    """Yield in words which blocks do not hold as many records as was noted when they were full."""
    stop = _last_seq(connection, system_id) // BLOCK * BLOCK
    stored = {
        each.block: each.records
        for each in blocks(connection, system_id, kind, newest=False)
        if each.block * BLOCK < stop
    }
    found = {
        block: records
        for _, _, block, records, *_ in connection.execute(_count(kind), (system_id, 0, stop))
    }
    return differences(kind, stored, found)


def _last_seq(connection: sqlite3.Connection, system_id: str) -> int:
    row = connection.execute(
        "SELECT last_seq FROM systems WHERE system_id = ?", (system_id,)
    ).fetchone()
    return int(row[0]) if row else 0


def _last_block(
    connection: sqlite3.Connection, system_id: str, kind: Kind, last_seq: int
) -> Iterator[Totals]:
    start = last_seq // BLOCK * BLOCK
    counted = connection.execute(_count(kind), (system_id, start, start + BLOCK))
    for _, _, *numbers in counted.fetchall():
        yield Totals._make(numbers)
