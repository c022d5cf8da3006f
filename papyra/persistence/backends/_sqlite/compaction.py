"""Compaction: rows that retention hides are deleted, but for those of histories.

Of these, only what a base stands for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends._sqlite.blocks import rebuild, totals
from papyra.persistence.backends._sqlite.reading import Hidden, hidden_by
from papyra.persistence.backends._sqlite.trimming import count_freed, trim
from papyra.persistence.backends.store import NewBase
from papyra.persistence.records import Kind
from papyra.persistence.reports import CompactedKind
from papyra.persistence.retention import RetentionPolicy

__all__ = ("Compacted", "compact", "count_stored", "preview")

#: How many records of each kind there are, and their encoded bytes.
Stored = Mapping[Kind, tuple[int, int]]

_HIDDEN = "system_id = ? AND (seq <= ? OR timestamp < ?)"


class Compacted(NamedTuple):
    """The outcome of a compaction."""

    kinds: dict[Kind, CompactedKind]
    #: events that are hidden, and stay because they are part of histories
    kept: int


def compact(
    connection: sqlite3.Connection,
    system_id: str,
    policy: RetentionPolicy,
    now: float,
    bases: Sequence[NewBase],
    last_seq: int,
) -> Compacted:
    """Have histories begin with their bases, and delete what is hidden, within a transaction."""
    before = count_stored(connection, system_id)
    hidden = _hidden(connection, system_id, policy, now)
    trim(connection, system_id, bases)
    kept = _count_kept(connection, system_id, hidden)
    changed = _delete_hidden(connection, system_id, hidden)
    if bases:
        changed.add("event")
    for kind in changed:
        rebuild(connection, system_id, kind, last_seq)
    return Compacted(_compacted(before, count_stored(connection, system_id)), kept)


def preview(
    connection: sqlite3.Connection,
    system_id: str,
    policy: RetentionPolicy,
    now: float,
    bases: Sequence[NewBase],
) -> Compacted:
    """Return what `compact` would come to, and change nothing."""
    before = count_stored(connection, system_id)
    hidden = _hidden(connection, system_id, policy, now)
    removed = _count_hidden(connection, system_id, hidden)
    freed = count_freed(connection, system_id, bases)
    removed["event"] = (removed["event"][0] + freed.records, removed["event"][1] + freed.bytes)
    after = {
        kind: (records - removed[kind][0], size - removed[kind][1])
        for kind, (records, size) in before.items()
    }
    # All that a base stands for is hidden.
    kept = _count_kept(connection, system_id, hidden) - freed.records
    return Compacted(_compacted(before, after), kept)


def count_stored(connection: sqlite3.Connection, system_id: str) -> Stored:
    """Return what is stored of each kind."""
    found = {kind: totals(connection, system_id, kind) for kind in TABLES}
    return {
        kind: (each.records, each.bytes) if each is not None else (0, 0)
        for kind, each in found.items()
    }


def _hidden(
    connection: sqlite3.Connection, system_id: str, policy: RetentionPolicy, now: float
) -> Mapping[Kind, Hidden]:
    return {kind: hidden_by(connection, system_id, kind, policy.of(kind), now) for kind in TABLES}


def _count_hidden(
    connection: sqlite3.Connection, system_id: str, hidden: Mapping[Kind, Hidden]
) -> dict[Kind, tuple[int, int]]:
    """Return what would be deleted of each kind."""
    return {
        kind: connection.execute(
            "SELECT count(*), ifnull(sum(length(CAST(record AS BLOB))), 0) FROM "  # noqa: S608
            f"{TABLES[kind].name} WHERE {_condition(kind)}",
            (system_id, *limits),
        ).fetchone()
        for kind, limits in hidden.items()
    }


def _count_kept(
    connection: sqlite3.Connection, system_id: str, hidden: Mapping[Kind, Hidden]
) -> int:
    """Return how many events are hidden, and stay because they are part of histories."""
    (kept,) = connection.execute(
        f"SELECT count(*) FROM events WHERE {_HIDDEN} AND revision IS NOT NULL",  # noqa: S608
        (system_id, *hidden["event"]),
    ).fetchone()
    return int(kept)


def _delete_hidden(
    connection: sqlite3.Connection, system_id: str, hidden: Mapping[Kind, Hidden]
) -> set[Kind]:
    """Delete what is hidden, and return the kinds of which there was something."""
    return {
        kind
        for kind, limits in hidden.items()
        if connection.execute(
            f"DELETE FROM {TABLES[kind].name} WHERE {_condition(kind)}",  # noqa: S608 - constants
            (system_id, *limits),
        ).rowcount
    }


def _compacted(before: Stored, after: Stored) -> dict[Kind, CompactedKind]:
    """Return what a compaction has left of each kind."""
    return {
        kind: CompactedKind(before[kind][0], after[kind][0], before[kind][1], after[kind][1])
        for kind in TABLES
    }


def _condition(kind: Kind) -> str:
    return f"{_HIDDEN} AND revision IS NULL" if kind == "event" else _HIDDEN
