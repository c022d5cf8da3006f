"""Compaction: rows that retention hides are deleted, but for those of histories."""

from __future__ import annotations

from collections.abc import Mapping

from papyra.persistence.backends._postgres.blocks import rebuild, totals
from papyra.persistence.backends._postgres.reading import Hidden
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.records import Kind
from papyra.persistence.reports import CompactedKind

__all__ = ("Stored", "compacted", "count_hidden", "count_kept", "count_stored", "delete_hidden")

#: How many records of each kind there are, and their encoded bytes.
Stored = Mapping[Kind, tuple[int, int]]

_HIDDEN = "system_id = %(system)s AND (seq <= %(through)s OR timestamp < %(oldest)s)"


def count_stored(system: System) -> Stored:
    """Return what is stored of each kind."""
    found = {kind: totals(system, kind) for kind in TABLES}
    return {
        kind: (each.records, each.bytes) if each is not None else (0, 0)
        for kind, each in found.items()
    }


def count_hidden(system: System, hidden: Mapping[Kind, Hidden]) -> Stored:
    """Return what would be deleted of each kind."""
    found: dict[Kind, tuple[int, int]] = {}
    for kind, limits in hidden.items():
        records, size = system.row(
            "SELECT count(*), coalesce(sum(bytes), 0)::bigint"  # noqa: S608 - constants
            f" FROM {{schema}}.{TABLES[kind].name} WHERE {_condition(kind)}",
            **limits._asdict(),
        )
        found[kind] = records, size
    return found


def count_kept(system: System, hidden: Mapping[Kind, Hidden]) -> int:
    """Return how many events are hidden, and stay because they are part of histories."""
    (kept,) = system.row(
        f"SELECT count(*) FROM {{schema}}.events WHERE {_HIDDEN}"  # noqa: S608 - a constant
        " AND revision IS NOT NULL",
        **hidden["event"]._asdict(),
    )
    return int(kept)


def delete_hidden(system: System, hidden: Mapping[Kind, Hidden]) -> None:
    """Delete what is hidden, and count what is left."""
    for kind, limits in hidden.items():
        deleted = system.run(
            f"DELETE FROM {{schema}}.{TABLES[kind].name} WHERE {_condition(kind)}",  # noqa: S608
            **limits._asdict(),
        )
        if deleted:
            rebuild(system, kind)


def compacted(before: Stored, after: Stored) -> dict[Kind, CompactedKind]:
    """Return what a compaction has left of each kind."""
    return {
        kind: CompactedKind(before[kind][0], after[kind][0], before[kind][1], after[kind][1])
        for kind in TABLES
    }


def _condition(kind: Kind) -> str:
    return f"{_HIDDEN} AND revision IS NULL" if kind == "event" else _HIDDEN
