"""Compaction: rows that retention hides are deleted, but for those of histories."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends._sqlite.blocks import rebuild, totals
from papyra.persistence.backends._sqlite.reading import Hidden
from papyra.persistence.records import Kind

__all__ = ("count_hidden", "count_stored", "delete_hidden")


def count_stored(connection: sqlite3.Connection, system_id: str) -> tuple[int, int]:
    """Return how many records there are, and their encoded bytes."""
    found = [each for kind in TABLES if (each := totals(connection, system_id, kind))]
    return sum(each.records for each in found), sum(each.bytes for each in found)


def count_hidden(
    connection: sqlite3.Connection, system_id: str, hidden: Mapping[Kind, Hidden]
) -> tuple[int, int]:
    """Return how many records would be deleted, and their encoded bytes."""
    records = size = 0
    for kind, limits in hidden.items():
        count, length = connection.execute(
            "SELECT count(*), ifnull(sum(length(CAST(record AS BLOB))), 0) FROM "  # noqa: S608
            f"{TABLES[kind].name} WHERE {_condition(kind)}",
            (system_id, *limits),
        ).fetchone()
        records, size = records + count, size + length
    return records, size


def delete_hidden(
    connection: sqlite3.Connection,
    system_id: str,
    hidden: Mapping[Kind, Hidden],
    last_seq: int,
) -> None:
    """Delete what is hidden, and count what is left."""
    for kind, limits in hidden.items():
        deleted = connection.execute(
            f"DELETE FROM {TABLES[kind].name} WHERE {_condition(kind)}",  # noqa: S608 - constants
            (system_id, *limits),
        )
        if deleted.rowcount:
            rebuild(connection, system_id, kind, last_seq)


def _condition(kind: Kind) -> str:
    hidden = "system_id = ? AND (seq <= ? OR timestamp < ?)"
    return f"{hidden} AND revision IS NULL" if kind == "event" else hidden
