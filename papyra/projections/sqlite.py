"""Views in SQLite."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from papyra._durations import is_seconds
from papyra._safe_repr import is_really, shown
from papyra.exceptions import InvalidPolicy, ViewUnavailable
from papyra.persistence.backends._files.location import Place
from papyra.projections.database import ViewDatabase
from papyra.projections.view import View, checked_lease

__all__ = ("SQLiteView",)

#: What is about the database, its disk or its locks, and not about what was asked of it.
_OUTAGES = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOTADB),
        *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL),
    }
)


class SQLiteView(View[sqlite3.Connection]):
    """A view in an SQLite database, which is made if there is none.

    It has a write-ahead log, so that others read while it is written. `busy_timeout` is how many
    seconds a transaction waits for another program's; the projection then waits, and tries again.
    `lease` is how many seconds after it was last heard of another runner takes over from one.
    A commit may be lost to a power failure; then its position is, too, and its events are handled
    again. Raises `InvalidPath` and `InvalidPolicy`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, busy_timeout: float = 5.0, lease: float = 10.0
    ) -> None:
        # Absolute from now on: who changes the working directory means the same file.
        self._path = Place(path).path
        if not is_seconds(busy_timeout, finite=True):
            raise InvalidPolicy(f"busy_timeout is seconds, 0 or more, not {shown(busy_timeout)}")
        self.lease = checked_lease(lease)
        self._busy_timeout = busy_timeout

    @property
    def location(self) -> str:
        """The path of the database."""
        return str(self._path)

    def is_there(self) -> bool:
        """Return whether there is such a file."""
        return self._path.exists()

    def database(self) -> SQLiteDatabase:
        """Return a connection that is to be opened."""
        return SQLiteDatabase(self._path, self._busy_timeout)


class SQLiteDatabase(ViewDatabase[sqlite3.Connection]):
    """One connection to an SQLite database."""

    now = "((julianday('now') - 2440587.5) * 86400.0)"

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._connection: sqlite3.Connection | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection. Raises `ViewUnavailable` if there is none."""
        if self._connection is None:
            raise ViewUnavailable(f"{self._path}: it is not open")
        return self._connection

    def open(self, *, to_read: bool = False) -> None:
        """Connect, and have a write-ahead log."""
        mode = "ro" if to_read else "rwc"
        try:
            connection = sqlite3.connect(
                f"{self._path.as_uri()}?mode={mode}",
                uri=True,
                timeout=self._busy_timeout,
                isolation_level=None,  # transactions are begun by name
            )
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        try:
            if not to_read:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                # The position goes the way of the view, so nothing needs to be synced.
                connection.execute("PRAGMA synchronous = NORMAL")
            connection.set_authorizer(self._authorize)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            raise self._unavailable(error) from error
        self._connection = connection

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def interrupt(self) -> None:
        """Have the statement that is being executed fail."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.interrupt()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock within; a transaction that reads first could not wait for it."""
        connection = self.connection
        self._roll_back(connection)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            # Not by a statement with this text: a handler that has it would get the same one.
            connection.commit()
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._roll_back(connection)
            raise

    def transaction_check(self) -> Callable[[], bool]:
        """Return what returns whether there is one."""
        return functools.partial(getattr, self.connection, "in_transaction")

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        cursor = self.connection.cursor()
        cursor.row_factory = None  # whatever users have set for theirs
        return cursor.execute(sql, parameters).fetchall()

    def change(self, sql: str, *parameters: Any) -> int:
        """Execute a statement, and return how many rows it has changed."""
        return self.connection.execute(sql, parameters).rowcount

    def has_tables(self) -> bool:
        """Return whether Papyra's own tables are there."""
        sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'papyra_parked'"
        return bool(self.rows(sql))

    def outage(self, error: BaseException) -> str | None:
        """Return what SQLite says of the file, its disk and its locks."""
        if is_really(error, ViewUnavailable):
            return str(error)
        if not is_really(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorcode", None)
        return self._text(error) if code is not None and code & 0xFF in _OUTAGES else None

    def is_refused(self, error: BaseException) -> bool:
        """Return whether the authorizer has said no."""
        if not is_really(error, sqlite3.Error):
            return False
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        self.in_handler = False
        if connection.in_transaction:
            connection.rollback()

    def _authorize(
        self, action: int, first: object, second: object, database: object, source: object
    ) -> int:
        del first, second, database, source
        if self.in_handler and action == sqlite3.SQLITE_TRANSACTION:
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _unavailable(self, error: sqlite3.Error) -> ViewUnavailable:
        return ViewUnavailable(self._text(error))

    def _text(self, error: sqlite3.Error) -> str:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return f"{self._path}: SQLite can't use it now ({name}: {error})"
