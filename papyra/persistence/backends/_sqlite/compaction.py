"""The tables of one system in SQLite, as a compaction uses them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from papyra.persistence.backends._sql.blocks import Totals
from papyra.persistence.backends._sql.hidden import Hidden
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends._sql.trimming import Freed
from papyra.persistence.backends._sqlite.blocks import rebuild, totals
from papyra.persistence.backends._sqlite.reading import hidden_of
from papyra.persistence.backends._sqlite.trimming import count_freed, trim
from papyra.persistence.backends.store import NewBase
from papyra.persistence.records import Kind
from papyra.persistence.retention import Limits

__all__ = ("SystemTables",)

_HIDDEN = "system_id = ? AND (seq <= ? OR timestamp < ?)"


class SystemTables(NamedTuple):
    """Those of one system; see `_sql.compaction.SystemTables`."""

    connection: sqlite3.Connection
    system_id: str
    last_seq: int

    def totals(self, kind: Kind) -> Totals | None:
        """Return the totals of a kind."""
        return totals(self.connection, self.system_id, kind)

    def hidden(self, kind: Kind, limits: Limits, now: float) -> Hidden:
        """Return what is hidden of a kind."""
        return hidden_of(self.connection, self.system_id, kind, limits, now)

    def count_hidden(self, kind: Kind, hidden: Hidden) -> tuple[int, int]:
        """Count what is hidden of a kind, and its bytes."""
        records, size = self.connection.execute(
            "SELECT count(*), ifnull(sum(length(CAST(record AS BLOB))), 0) FROM "  # noqa: S608
            f"{TABLES[kind].name} WHERE {_condition(kind)}",
            (self.system_id, *hidden),
        ).fetchone()
        return records, size

    def count_kept(self, hidden: Hidden) -> int:
        """Count the hidden events of histories."""
        (kept,) = self.connection.execute(
            f"SELECT count(*) FROM events WHERE {_HIDDEN} AND revision IS NOT NULL",  # noqa: S608
            (self.system_id, *hidden),
        ).fetchone()
        return int(kept)

    def delete_hidden(self, kind: Kind, hidden: Hidden) -> int:
        """Delete what is hidden of a kind."""
        return self.connection.execute(
            f"DELETE FROM {TABLES[kind].name} WHERE {_condition(kind)}",  # noqa: S608 - constants
            (self.system_id, *hidden),
        ).rowcount

    def rebuild(self, kind: Kind) -> None:
        """Count the blocks of a kind anew."""
        rebuild(self.connection, self.system_id, kind, self.last_seq)

    def trim(self, bases: Sequence[NewBase]) -> None:
        """Have histories begin with their bases."""
        trim(self.connection, self.system_id, bases)

    def count_freed(self, bases: Sequence[NewBase]) -> Freed:
        """Count what bases free."""
        return count_freed(self.connection, self.system_id, bases)


def _condition(kind: Kind) -> str:
    return f"{_HIDDEN} AND revision IS NULL" if kind == "event" else _HIDDEN
