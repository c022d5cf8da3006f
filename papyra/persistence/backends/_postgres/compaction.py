"""Compaction: rows that retention hides are deleted, but for those of histories.

Of these, only what a base stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from papyra.persistence.backends._postgres.blocks import rebuild, totals
from papyra.persistence.backends._postgres.reading import Hidden, hidden_by
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.trimming import count_freed, trim
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends.store import NewBase
from papyra.persistence.records import Kind
from papyra.persistence.reports import CompactedKind
from papyra.persistence.retention import RetentionPolicy

__all__ = ("Compacted", "compact", "count_stored", "preview")

#: How many records of each kind there are, and their encoded bytes.
Stored = Mapping[Kind, tuple[int, int]]

_HIDDEN = "system_id = %(system)s AND (seq <= %(through)s OR timestamp < %(oldest)s)"


class Compacted(NamedTuple):
    """The outcome of a compaction."""

    kinds: dict[Kind, CompactedKind]
    #: events that are hidden, and stay because they are part of histories
    kept: int


def compact(
    system: System, policy: RetentionPolicy, now: float, bases: Sequence[NewBase]
) -> Compacted:
    """Have histories begin with their bases, and delete what is hidden, within a transaction."""
    before = count_stored(system)
    hidden = _hidden(system, policy, now)
    trim(system, bases)
    kept = _count_kept(system, hidden)
    changed = _delete_hidden(system, hidden)
    if bases:
        changed.add("event")
    for kind in changed:
        rebuild(system, kind)
    return Compacted(_compacted(before, count_stored(system)), kept)


def preview(
    system: System, policy: RetentionPolicy, now: float, bases: Sequence[NewBase]
) -> Compacted:
    """Return what `compact` would come to, and change nothing."""
    before = count_stored(system)
    hidden = _hidden(system, policy, now)
    removed = _count_hidden(system, hidden)
    freed = count_freed(system, bases)
    removed["event"] = (removed["event"][0] + freed.records, removed["event"][1] + freed.bytes)
    after = {
        kind: (records - removed[kind][0], size - removed[kind][1])
        for kind, (records, size) in before.items()
    }
    # All that a base stands for is hidden.
    kept = _count_kept(system, hidden) - freed.records
    return Compacted(_compacted(before, after), kept)


def count_stored(system: System) -> Stored:
    """Return what is stored of each kind."""
    found = {kind: totals(system, kind) for kind in TABLES}
    return {
        kind: (each.records, each.bytes) if each is not None else (0, 0)
        for kind, each in found.items()
    }


def _hidden(system: System, policy: RetentionPolicy, now: float) -> Mapping[Kind, Hidden]:
    return {kind: hidden_by(system, kind, policy.of(kind), now) for kind in TABLES}


def _count_hidden(system: System, hidden: Mapping[Kind, Hidden]) -> dict[Kind, tuple[int, int]]:
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


def _count_kept(system: System, hidden: Mapping[Kind, Hidden]) -> int:
    """Return how many events are hidden, and stay because they are part of histories."""
    (kept,) = system.row(
        f"SELECT count(*) FROM {{schema}}.events WHERE {_HIDDEN}"  # noqa: S608 - a constant
        " AND revision IS NOT NULL",
        **hidden["event"]._asdict(),
    )
    return int(kept)


def _delete_hidden(system: System, hidden: Mapping[Kind, Hidden]) -> set[Kind]:
    """Delete what is hidden, and return the kinds of which there was something."""
    return {
        kind
        for kind, limits in hidden.items()
        if system.run(
            f"DELETE FROM {{schema}}.{TABLES[kind].name} WHERE {_condition(kind)}",  # noqa: S608
            **limits._asdict(),
        )
    }


def _compacted(before: Stored, after: Stored) -> dict[Kind, CompactedKind]:
    """Return what a compaction has left of each kind."""
    return {
        kind: CompactedKind(before[kind][0], after[kind][0], before[kind][1], after[kind][1])
        for kind in TABLES
    }


def _condition(kind: Kind) -> str:
    return f"{_HIDDEN} AND revision IS NULL" if kind == "event" else _HIDDEN
