"""Compaction: rows that retention hides are deleted, but for those of histories.

Of these, only what a base stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from papyra.persistence.backends._sql.blocks import Totals
from papyra.persistence.backends._sql.hidden import Hidden
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends._sql.trimming import Freed
from papyra.persistence.backends.store import NewBase
from papyra.persistence.records import Kind
from papyra.persistence.reports import CompactedKind
from papyra.persistence.retention import Limits, RetentionPolicy

__all__ = ("Compacted", "SystemTables", "compact", "count_stored", "preview")

#: How many records of each kind there are, and their encoded bytes.
Stored = Mapping[Kind, tuple[int, int]]


class Compacted(NamedTuple):
    """The outcome of a compaction."""

    kinds: dict[Kind, CompactedKind]
    #: events that are hidden, and stay because they are part of histories
    kept: int


class SystemTables(Protocol):
    """The tables of one system, within a transaction.

    Events with a revision are part of histories: they are neither deleted nor counted as hidden.
    """

    def totals(self, kind: Kind) -> Totals | None:
        """Return the totals of all records of a kind, `None` if there are none."""

    def hidden(self, kind: Kind, limits: Limits, now: float) -> Hidden:
        """Return what `limits` hide of a kind at Unix time `now`."""

    def count_hidden(self, kind: Kind, hidden: Hidden) -> tuple[int, int]:
        """Return how many records of a kind are hidden, and their bytes."""

    def count_kept(self, hidden: Hidden) -> int:
        """Return how many events are hidden, and stay because they are part of histories."""

    def delete_hidden(self, kind: Kind, hidden: Hidden) -> int:
        """Delete what is hidden of a kind, and return how many records that were."""

    def rebuild(self, kind: Kind) -> None:
        """Count the records of a kind in all blocks anew."""

    def trim(self, bases: Sequence[NewBase]) -> None:
        """Have histories begin with their bases."""

    def count_freed(self, bases: Sequence[NewBase]) -> Freed:
        """Return what `trim` would free."""


def compact(
    tables: SystemTables, policy: RetentionPolicy, now: float, bases: Sequence[NewBase]
) -> Compacted:
    """Have histories begin with their bases, and delete what is hidden."""
    before = count_stored(tables)
    hidden = _hidden(tables, policy, now)
    tables.trim(bases)
    kept = tables.count_kept(hidden["event"])
    changed = {kind for kind in TABLES if tables.delete_hidden(kind, hidden[kind])}
    if bases:
        changed.add("event")
    for kind in changed:
        tables.rebuild(kind)
    return Compacted(_compacted(before, count_stored(tables)), kept)


def preview(
    tables: SystemTables, policy: RetentionPolicy, now: float, bases: Sequence[NewBase]
) -> Compacted:
    """Return what `compact` would come to, and change nothing."""
    before = count_stored(tables)
    hidden = _hidden(tables, policy, now)
    removed = {kind: tables.count_hidden(kind, hidden[kind]) for kind in TABLES}
    freed = tables.count_freed(bases)
    removed["event"] = (removed["event"][0] + freed.records, removed["event"][1] + freed.bytes)
    after = {
        kind: (records - removed[kind][0], size - removed[kind][1])
        for kind, (records, size) in before.items()
    }
    # All that a base stands for is hidden.
    kept = tables.count_kept(hidden["event"]) - freed.records
    return Compacted(_compacted(before, after), kept)


def count_stored(tables: SystemTables) -> Stored:
    """Return what is stored of each kind."""
    found = {kind: tables.totals(kind) for kind in TABLES}
    return {
        kind: (each.records, each.bytes) if each is not None else (0, 0)
        for kind, each in found.items()
    }


def _hidden(tables: SystemTables, policy: RetentionPolicy, now: float) -> Mapping[Kind, Hidden]:
    return {kind: tables.hidden(kind, policy.of(kind), now) for kind in TABLES}


def _compacted(before: Stored, after: Stored) -> dict[Kind, CompactedKind]:
    """Return what a compaction has left of each kind."""
    return {
        kind: CompactedKind(before[kind][0], after[kind][0], before[kind][1], after[kind][1])
        for kind in TABLES
    }
