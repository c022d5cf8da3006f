"""Stores of older versions, made of the text that a dump of one is."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

__all__ = ("make_version", "schema_of")


def make_version(version: int, path: Path) -> None:
    """Make the database of two systems, ``papyra`` and ``shop``, that an older program left."""
    text = Path(__file__).with_name(f"version_{version}.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(text)
        # By the number of its file a store tells whether it is a copy.
        database.execute("UPDATE systems SET inode = ?", (path.stat().st_ino,))


def schema_of(path: Path) -> list[tuple[str, ...]]:
    """Return the tables and indexes of a database, as their statements have made them."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        query = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
        return [
            (kind, name, " ".join((sql or "").split()))
            for kind, name, sql in database.execute(query)
        ]
