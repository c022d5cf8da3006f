"""Histories: the events of one actor, by the index over their revisions."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping

from papyra.persistence.backends._sql.tables import text_key
from papyra.persistence.messages import ReadHistory

__all__ = ("history_rows", "last_revisions")


def history_rows(
    connection: sqlite3.Connection, system_id: str, request: ReadHistory
) -> sqlite3.Cursor:
    """Return a cursor over the rows of an actor's events after a revision."""
    return connection.execute(
        "SELECT seq, crc, record FROM events INDEXED BY histories "
        "WHERE system_id = ? AND actor = ? AND revision IS NOT NULL AND revision > ? "
        "ORDER BY revision, seq",
        (system_id, text_key(request.actor), request.after_revision),
    )


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
