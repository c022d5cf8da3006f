"""The tables of one system in PostgreSQL, as a compaction uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from papyra.persistence.backends._postgres.blocks import rebuild, totals
from papyra.persistence.backends._postgres.reading import hidden_of
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.trimming import count_freed, trim
from papyra.persistence.backends._sql.blocks import Totals
from papyra.persistence.backends._sql.hidden import Hidden
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends._sql.trimming import Freed
from papyra.persistence.backends.store import NewBase
from papyra.persistence.records import Kind
from papyra.persistence.retention import Limits

__all__ = ("SystemTables",)

_HIDDEN = "system_id = %(system)s AND (seq <= %(through)s OR timestamp < %(oldest)s)"


class SystemTables(NamedTuple):
    """Those of one system; see `_sql.compaction.SystemTables`."""

    system: System

    def totals(self, kind: Kind) -> Totals | None:
        """Return the totals of a kind."""
        return totals(self.system, kind)

    def hidden(self, kind: Kind, limits: Limits, now: float) -> Hidden:
        """Return what is hidden of a kind."""
        return hidden_of(self.system, kind, limits, now)

    def count_hidden(self, kind: Kind, hidden: Hidden) -> tuple[int, int]:
        """Count what is hidden of a kind, and its bytes."""
        records, size = self.system.row(
            "SELECT count(*), coalesce(sum(bytes), 0)::bigint"  # noqa: S608 - constants
            f" FROM {{schema}}.{TABLES[kind].name} WHERE {_condition(kind)}",
            **hidden._asdict(),
        )
        return records, size

    def count_kept(self, hidden: Hidden) -> int:
        """Count the hidden events of histories."""
        (kept,) = self.system.row(
            f"SELECT count(*) FROM {{schema}}.events WHERE {_HIDDEN}"  # noqa: S608 - a constant
            " AND revision IS NOT NULL",
            **hidden._asdict(),
        )
        return int(kept)

    def delete_hidden(self, kind: Kind, hidden: Hidden) -> int:
        """Delete what is hidden of a kind."""
        return self.system.run(
            f"DELETE FROM {{schema}}.{TABLES[kind].name} WHERE {_condition(kind)}",  # noqa: S608
            **hidden._asdict(),
        )

    def rebuild(self, kind: Kind) -> None:
        """Count the blocks of a kind anew."""
        rebuild(self.system, kind)

    def trim(self, bases: Sequence[NewBase]) -> None:
        """Have histories begin with their bases."""
        trim(self.system, bases)

    def count_freed(self, bases: Sequence[NewBase]) -> Freed:
        """Count what bases free."""
        return count_freed(self.system, bases)


def _condition(kind: Kind) -> str:
    return f"{_HIDDEN} AND revision IS NULL" if kind == "event" else _HIDDEN
