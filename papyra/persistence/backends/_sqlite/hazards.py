"""Warnings of what may damage a database, and is for its user to avoid."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from papyra.persistence.backends._files.network import network_file_system
from papyra.persistence.backends._sqlite import schema
from papyra.persistence.outbox import is_log_sound

__all__ = ("warn_of_network", "warn_of_other_writers")

logger = logging.getLogger("papyra")


def warn_of_other_writers(connection: sqlite3.Connection, place: Path) -> None:
    """Warn of others that may write at the same time, where this version can't stand that."""
    if is_log_sound(sqlite3.sqlite_version_info[:3]):
        return
    (systems,) = connection.execute("SELECT count(*) FROM systems").fetchone()
    others = schema.other_tables(connection)
    if systems == 1 and not others:
        return
    found = f"{systems} systems" if systems > 1 else f"tables of others ({', '.join(others)})"
    logger.warning(
        "%s holds %s: where several programs write it at once, SQLite %s may damage it on rare "
        "occasions, which 3.51.3 mends. Let one write at a time, or give each its own database",
        *(place, found, sqlite3.sqlite_version),
    )


def warn_of_network(path: Path, place: Path) -> None:
    """Warn of a database on a file system that is shared with other machines."""
    kind = network_file_system(path)
    if kind is not None:
        logger.warning(
            "%s is on a network file system (%s): a write-ahead log can't be shared by machines, "
            "and its locks may keep nobody out. Keep the database on a local disk",
            *(place, kind),
        )
