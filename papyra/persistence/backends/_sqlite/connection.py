"""Connections: how a database is opened, and the transactions in it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from papyra.exceptions import StoreNotWritable
from papyra.persistence.backends._sqlite.errors import is_damage

__all__ = (
    "Synchronous",
    "connect",
    "connect_to_read",
    "is_cut_off",
    "made_whole",
    "snapshot",
    "transaction",
)

Synchronous: TypeAlias = Literal["off", "normal", "full", "extra"]

#: KiB of pages that a connection keeps in memory: the busy part of the index by actor.
_CACHE = 32 * 1024
#: Pages in the write-ahead log from which on they go into the database.
_CHECKPOINT = 4_000
#: What SQLite says that can make no log in the directory of a database.
_NO_LOG = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
#: Bytes that the file of the write-ahead log keeps when it has gone into the database.
_LOG = 64 * 1024 * 1024


def connect(path: Path, synchronous: Synchronous, busy_timeout: float) -> sqlite3.Connection:
    """Return a connection that writes, with a write-ahead log; make the file if there is none."""
    connection = _connect(path, "mode=rwc", busy_timeout)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != b"wal":
            raise StoreNotWritable(
                f"{path}: SQLite can't keep a write-ahead log here, as on a network file system: "
                f"its journal mode is {mode.decode()!r}"
            )
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        # On macOS, where a plain sync leaves it in the cache of the device.
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """Return a connection that reads beside a writer."""
    try:
        return _connect(path, "mode=ro", busy_timeout)
    except sqlite3.OperationalError as error:
        log = path.with_name(path.name + "-wal")
        if error.sqlite_errorcode & 0xFF not in _NO_LOG or log.exists():
            raise
        # Nobody can have it open: there is no log, and none can be made in this directory.
        return _connect(path, "mode=ro&immutable=1", busy_timeout)


def _connect(path: Path, query: str, busy_timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?{query}",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,  # transactions are begun by name
    )
    connection.text_factory = bytes
    try:
        _open_file(connection)
        connection.execute(f"PRAGMA cache_size = -{_CACHE}")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _open_file(connection: sqlite3.Connection) -> None:
    """Open the file of a connection, also one that was cut off."""
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        # Then SQLite goes by how long the file is, and not by how long it says that it is.
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("PRAGMA schema_version").fetchone()


def is_cut_off(connection: sqlite3.Connection) -> bool:
    """Return whether pages are missing, so that it may be read, and recovered, but not written."""
    return bool(connection.execute("PRAGMA writable_schema").fetchone()[0])


def made_whole(connection: sqlite3.Connection) -> None:
    """Let a database be written that has all of its pages again."""
    connection.execute("PRAGMA writable_schema = RESET")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is written within, or, where that or the commit raises, none of it."""
    _roll_back(connection)
    # A transaction that begins with a read would not wait for another writer.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A failure of the disk may have left it open, and then it fails again here.
        with contextlib.suppress(sqlite3.Error):
            _roll_back(connection)
        raise


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Read within as of one moment."""
    _roll_back(connection)
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with contextlib.suppress(sqlite3.Error):
            _roll_back(connection)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
