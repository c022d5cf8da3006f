"""A store of version 1, made of the text that a dump of one is."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

__all__ = ("make_version_1", "schema_of")

TEXT = Path(__file__).with_suffix(".sql")


def make_version_1(path: Path) -> None:
    """Make the database of two systems, ``papyra`` and ``shop``, that an older program left."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(TEXT.read_text(encoding="utf-8"))
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
