"""Histories: the events of one actor, by the index over their revisions."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping

from papyra.persistence.backends._sql.tables import text_key
from papyra.persistence.backends.paging import records_wanted
from papyra.persistence.messages import ReadHistory

__all__ = ("history_rows", "last_revisions")

_HISTORY = "WHERE system_id = ? AND actor = ? AND revision IS NOT NULL AND revision > ?"
_SPAN = (
    "SELECT count(*), min(seq), max(seq) FROM (SELECT seq FROM events INDEXED BY histories "  # noqa: S608
    f"{_HISTORY} ORDER BY revision, seq LIMIT ?)"
)
_ROWS = (
    "SELECT seq, crc, record FROM events {} "  # noqa: S608 - constants
    f"{_HISTORY} AND seq BETWEEN ? AND ? ORDER BY {{}}"
)
_BY_INDEX = _ROWS.format("INDEXED BY histories", "revision, seq")
#: Where one follows the other, this takes half the time: each is not looked up for itself.
_BY_POSITION = _ROWS.format("NOT INDEXED", "seq")
#: Positions for each event of the actor up to which they are read all.
_DENSE = 2


def history_rows(
    connection: sqlite3.Connection, system_id: str, request: ReadHistory
) -> sqlite3.Cursor:
    """Return a cursor over the rows of an actor's events after a revision.

    They are those of a page, and one more if there is one.
    """
    values = (system_id, text_key(request.actor), request.after_revision)
    limit = records_wanted(request) + 1
    count, first, last = connection.execute(_SPAN, (*values, limit)).fetchone()
    is_dense = count and last - first < _DENSE * count
    return connection.execute(_BY_POSITION if is_dense else _BY_INDEX, (*values, first, last))


def last_revisions(
    connection: sqlite3.Connection, system_id: str, actors: Collection[str]
) -> Mapping[str, int]:
    """Return the greatest revision of each of `actors` that has a history."""
    found = {
        actor: connection.execute(
            "SELECT max(revision) FROM events INDEXED BY histories "
            "WHERE system_id = ? AND actor = ? AND revision IS NOT NULL",
            (system_id, text_key(actor)),
        ).fetchone()[0]
        for actor in actors
    }
    return {actor: revision for actor, revision in found.items() if revision is not None}
