"""The totals of the records in each run of positions, so that nobody has to count them.

A block is 1024 positions. Totals are stored, one row a kind, with the append that gives the last of
them; up to which block they are, the row of the system says, and what comes after is counted when
it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from papyra.persistence.backends._postgres.arrays import FloatArray, IntArray, TextArray
from papyra.persistence.backends._postgres.system import System
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

__all__ = (
    "SEAL",
    "block_of",
    "blocks",
    "rebuild",
    "totals",
    "unseal",
    "values_to_seal",
    "wrong_blocks",
)

#: Rows that are fetched together.
_FETCHED = 256


_SUMS = "seq / %(block)s, count(*), sum(bytes)::bigint, min(timestamp), max(timestamp)"


def _counted(kind: Kind) -> str:
    table = TABLES[kind].name
    return (
        f"SELECT w.system_id, '{kind}', {_SUMS} FROM writer AS w"  # noqa: S608 - constants
        f" JOIN {{schema}}.{table} AS r ON r.system_id = w.system_id"
        " AND r.seq >= %(sealed)s * %(block)s AND r.seq < %(counted)s GROUP BY 1, 3"
    )


_TOTALS = ("kind", "block", "records", "bytes", "oldest", "newest")
_GIVEN = f"""SELECT w.system_id, g.*
    FROM writer AS w, unnest({", ".join(f"%(sealed_{name})b" for name in _TOTALS)}) AS g"""  # noqa: S608

#: Part of an append, as ``writer``: stores the totals of the blocks that it completes. What was
#: there before is counted in the tables, and the batch is at hand.
SEAL = f"""blocks_sealed AS (
    INSERT INTO {{schema}}.blocks
    SELECT system_id, kind, block, sum(records), sum(bytes), min(oldest), max(newest)
    FROM ({" UNION ALL ".join((*map(_counted, TABLES), _GIVEN))})
        AS found(system_id, {", ".join(_TOTALS)})
    GROUP BY 1, 2, 3
    ON CONFLICT (system_id, kind, block) DO UPDATE SET records = excluded.records,
        bytes = excluded.bytes, oldest = excluded.oldest, newest = excluded.newest
), system_sealed AS (
    UPDATE {{schema}}.systems AS s SET sealed = %(seal)s FROM writer AS w
    WHERE s.system_id = w.system_id
)"""  # noqa: S608 - constants


def block_of(seq: int) -> int:
    """Return the block that a position is in, which is how many are full before it."""
    return seq // BLOCK


def values_to_seal(batch: Batch, sealed: int, seal: int) -> dict[str, object]:
    """Return the values of `SEAL` for a batch, with which the blocks before `seal` are full."""
    found = list(totals_of_batch(batch, seal * BLOCK, BLOCK))
    of_blocks = [totals for _, totals in found]
    return {
        "block": BLOCK,
        "sealed": sealed,
        "seal": seal,
        "counted": min(batch.first_seq, seal * BLOCK),
        "sealed_kind": TextArray.of([kind for kind, _ in found]),
        "sealed_block": IntArray.of([each.block for each in of_blocks]),
        "sealed_records": IntArray.of([each.records for each in of_blocks]),
        "sealed_bytes": IntArray.of([each.bytes for each in of_blocks]),
        "sealed_oldest": FloatArray.of([each.oldest for each in of_blocks]),
        "sealed_newest": FloatArray.of([each.newest for each in of_blocks]),
    }


def unseal(system: System, seq: int) -> None:
    """Have the records counted again in the block that a position is in, and in later ones."""
    system.run(
        "UPDATE {schema}.systems SET sealed = least(sealed, %(first)s)"
        " WHERE system_id = %(system)s",
        first=block_of(seq),
    )
    system.run(
        "DELETE FROM {schema}.blocks WHERE system_id = %(system)s AND block >= %(first)s",
        first=block_of(seq),
    )


def rebuild(system: System, kind: Kind) -> None:
    """Count the records of a kind in all blocks anew that were sealed."""
    system.run(
        "DELETE FROM {schema}.blocks WHERE system_id = %(system)s AND kind = %(kind)s", kind=kind
    )
    system.run(
        f"INSERT INTO {{schema}}.blocks SELECT %(system)s, '{kind}', {_SUMS}"  # noqa: S608
        f" FROM {{schema}}.{TABLES[kind].name} WHERE system_id = %(system)s"
        " AND seq < %(stop)s GROUP BY 3",
        block=BLOCK,
        stop=_sealed(system) * BLOCK,
    )


def blocks(system: System, kind: Kind, *, newest: bool) -> Iterator[Totals]:
    """Yield the totals of every block in which there are records of a kind, in this order."""
    sealed = _sealed(system)
    if newest:
        yield from _count(system, kind, sealed, newest=True)
    yield from _stored(system, kind, sealed, newest=newest)
    if not newest:
        yield from _count(system, kind, sealed, newest=False)


def totals(system: System, kind: Kind) -> Totals | None:
    """Return the totals of all records of a kind, `None` if there are none."""
    return total_of(blocks(system, kind, newest=False))


def wrong_blocks(system: System, kind: Kind) -> Iterator[str]:
    """Yield in words which blocks do not hold as many records as was noted when they were full."""
    sealed = _sealed(system)
    stored = {each.block: each.records for each in _stored(system, kind, sealed, newest=False)}
    found = {
        each.block: each.records
        for each in _count(system, kind, 0, newest=False)
        if each.block < sealed
    }
    return differences(kind, stored, found)


def _sealed(system: System) -> int:
    rows = system.rows("SELECT sealed FROM {schema}.systems WHERE system_id = %(system)s")
    return int(rows[0][0]) if rows else 0


def _stored(system: System, kind: Kind, sealed: int, *, newest: bool) -> Iterator[Totals]:
    order, sign = ("DESC", "<") if newest else ("ASC", ">")
    last = sealed if newest else -1
    while True:
        rows = system.rows(
            "SELECT block, records, bytes, oldest, newest FROM {schema}.blocks"  # noqa: S608
            f" WHERE system_id = %(system)s AND kind = %(kind)s AND block {sign} %(last)s"
            f" AND block < %(sealed)s ORDER BY block {order} LIMIT {_FETCHED}",
            kind=kind,
            last=last,
            sealed=sealed,
        )
        yield from map(Totals._make, rows)
        if len(rows) < _FETCHED:
            return
        last = rows[-1][0]


def _count(system: System, kind: Kind, first: int, *, newest: bool) -> Iterator[Totals]:
    """Yield what is counted from a block on."""
    rows = system.rows(
        f"SELECT {_SUMS} FROM {{schema}}.{TABLES[kind].name}"  # noqa: S608 - constants
        " WHERE system_id = %(system)s AND seq >= %(first)s"
        f" GROUP BY 1 ORDER BY 1 {'DESC' if newest else 'ASC'}",
        block=BLOCK,
        first=first * BLOCK,
    )
    yield from map(Totals._make, rows)
