"""Compaction: rows that retention hides are deleted, but for those of histories."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends._sqlite.blocks import rebuild, totals
from papyra.persistence.backends._sqlite.reading import Hidden
from papyra.persistence.records import Kind
from papyra.persistence.reports import CompactedKind

__all__ = ("Stored", "compacted", "count_hidden", "count_kept", "count_stored", "delete_hidden")

#: How many records of each kind there are, and their encoded bytes.
Stored = Mapping[Kind, tuple[int, int]]

_HIDDEN = "system_id = ? AND (seq <= ? OR timestamp < ?)"


def count_stored(connection: sqlite3.Connection, system_id: str) -> Stored:
    """Return what is stored of each kind."""
    found = {kind: totals(connection, system_id, kind) for kind in TABLES}
    return {
        kind: (each.records, each.bytes) if each is not None else (0, 0)
        for kind, each in found.items()
    }


def count_hidden(
    connection: sqlite3.Connection, system_id: str, hidden: Mapping[Kind, Hidden]
) -> Stored:
    """Return what would be deleted of each kind."""
    return {
        kind: connection.execute(
            "SELECT count(*), ifnull(sum(length(CAST(record AS BLOB))), 0) FROM "  # noqa: S608
            f"{TABLES[kind].name} WHERE {_condition(kind)}",
            (system_id, *limits),
        ).fetchone()
        for kind, limits in hidden.items()
    }


def count_kept(
    connection: sqlite3.Connection, system_id: str, hidden: Mapping[Kind, Hidden]
) -> int:
    """Return how many events are hidden, and stay because they are part of histories."""
    (kept,) = connection.execute(
        f"SELECT count(*) FROM events WHERE {_HIDDEN} AND revision IS NOT NULL",  # noqa: S608
        (system_id, *hidden["event"]),
    ).fetchone()
    return int(kept)


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


def compacted(before: Stored, after: Stored) -> dict[Kind, CompactedKind]:
    """Return what a compaction has left of each kind."""
    return {
        kind: CompactedKind(before[kind][0], after[kind][0], before[kind][1], after[kind][1])
        for kind in TABLES
    }


def _condition(kind: Kind) -> str:
    return f"{_HIDDEN} AND revision IS NULL" if kind == "event" else _HIDDEN
