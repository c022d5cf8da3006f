"""The table of positions, which those who follow the store keep in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

__all__ = ("list_positions", "load", "remove", "save")


def load(connection: sqlite3.Connection, system_id: str, name: str) -> bytes | None:
    """Return what a name has, or `None`."""
    row: tuple[bytes] | None = connection.execute(
        "SELECT data FROM papyra_positions WHERE system_id = ? AND name = ?", (system_id, name)
    ).fetchone()
    return None if row is None else row[0]


def save(connection: sqlite3.Connection, system_id: str, name: str, data: bytes) -> None:
    """Store what a name is to have, in place of what is there."""
    connection.execute(
        "INSERT OR REPLACE INTO papyra_positions (system_id, name, data) VALUES (?, ?, ?)",
        (system_id, name, data),
    )


def remove(connection: sqlite3.Connection, system_id: str, name: str) -> None:
    """Remove what a name has."""
    connection.execute(
        "DELETE FROM papyra_positions WHERE system_id = ? AND name = ?", (system_id, name)
    )


def list_positions(
    connection: sqlite3.Connection, system_id: str, after: str | None, limit: int
) -> Sequence[str]:
    """Return up to `limit` names, after one of them."""
    rows = connection.execute(
        "SELECT name FROM papyra_positions WHERE system_id = ? AND name > ? ORDER BY name LIMIT ?",
        (system_id, after or "", limit),
    )
    return [name.decode() for (name,) in rows]
