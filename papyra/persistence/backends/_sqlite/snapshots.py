"""The table of snapshots."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from papyra.persistence.backends._sql.tables import text_key
from papyra.persistence.backends.store import StoredSnapshot

__all__ = ("list_snapshots", "load", "remove", "revisions", "save")


def save(
    connection: sqlite3.Connection, system_id: str, actor: str, revision: int, data: bytes
) -> None:
    """Store a snapshot, in place of what was there."""
    connection.execute(
        "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", (system_id, actor, revision, data)
    )


def revisions(connection: sqlite3.Connection, system_id: str, actor: str) -> list[int]:
    """Return the revisions of an actor's snapshots."""
    rows = connection.execute(
        "SELECT revision FROM snapshots WHERE system_id = ? AND actor = ?",
        (system_id, text_key(actor)),
    )
    return [revision for (revision,) in rows]


def load(connection: sqlite3.Connection, system_id: str, actor: str, revision: int) -> bytes | None:
    """Return a snapshot, or `None`."""
    row: tuple[bytes] | None = connection.execute(
        "SELECT data FROM snapshots WHERE system_id = ? AND actor = ? AND revision = ?",
        (system_id, text_key(actor), revision),
    ).fetchone()
    return None if row is None else row[0]


def remove(connection: sqlite3.Connection, system_id: str, actor: str, revision: int) -> None:
    """Remove a snapshot, if it is there."""
    connection.execute(
        "DELETE FROM snapshots WHERE system_id = ? AND actor = ? AND revision = ?",
        (system_id, text_key(actor), revision),
    )


def list_snapshots(
    connection: sqlite3.Connection, system_id: str, after: StoredSnapshot | None, limit: int
) -> Sequence[StoredSnapshot]:
    """Return up to `limit` snapshots by actor and revision, after one of them."""
    actor, revision = ("", -1) if after is None else (after.owner, after.revision)
    # The length of a blob is known without reading it.
    rows = connection.execute(
        "SELECT actor, revision, length(data) FROM snapshots "
        "WHERE system_id = ? AND (actor, revision) > (?, ?) ORDER BY actor, revision LIMIT ?",
        (system_id, text_key(actor), revision, limit),
    )
    return [StoredSnapshot(owner.decode(), number, size) for owner, number, size in rows]
