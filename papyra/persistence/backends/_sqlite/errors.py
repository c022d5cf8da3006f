"""What SQLite and the system say, by the names that it has here."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator, Mapping

from papyra.exceptions import (
    PersistenceError,
    StoreAccessDenied,
    StoreDamaged,
    StoreError,
    StoreFenced,
    StoreFull,
    StoreMoved,
    StoreNotReady,
    StoreNotWritable,
    StoreWrongType,
)

__all__ = ("is_damage", "store_error", "suppressed_damage", "system_error")

_NAMED: Mapping[int, tuple[type[PersistenceError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreNotReady, "another program has it locked for too long"),
    sqlite3.SQLITE_LOCKED: (StoreNotReady, "another program has it locked for too long"),
    sqlite3.SQLITE_FULL: (StoreFull, "the disk, or what may be used of it, is full"),
    sqlite3.SQLITE_READONLY: (StoreNotWritable, "this process may not write it"),
    # Positions are given under a lock, and by who has the right epoch: this is a rival.
    sqlite3.SQLITE_CONSTRAINT: (StoreFenced, "another writer has stored something there"),
    sqlite3.SQLITE_PERM: (StoreAccessDenied, "this process may not use it"),
    sqlite3.SQLITE_AUTH: (StoreAccessDenied, "this process may not use it"),
    sqlite3.SQLITE_CANTOPEN: (StoreAccessDenied, "it, or its log beside it, can't be opened"),
    sqlite3.SQLITE_NOTADB: (StoreWrongType, "this is no SQLite database, or its head is damaged"),
    sqlite3.SQLITE_CORRUPT: (
        StoreDamaged,
        "a page of it is damaged: a scan says where, and a recovery keeps what can be read",
    ),
}
#: For what is written beside a database: its lock, what is put aside of it.
_OF_SYSTEM: Mapping[int, type[PersistenceError]] = {
    errno.EACCES: StoreAccessDenied,
    errno.EPERM: StoreAccessDenied,
    errno.EROFS: StoreNotWritable,
    errno.ENOSPC: StoreFull,
    errno.EDQUOT: StoreFull,
}


def store_error(error: sqlite3.Error, place: str) -> PersistenceError:
    """Return the error that says what an error of SQLite means for the store at `place`."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return StoreMoved(f"{place} was renamed or removed while it was open")
    meant, why = _NAMED.get((code or 0) & 0xFF, (StoreError, "SQLite failed"))
    return meant(f"{place}: {why} ({name}: {error})")


def system_error(error: OSError) -> Exception:
    """Return the error that says what one of the system means; that itself if it is no other."""
    meant = _OF_SYSTEM.get(error.errno or 0)
    return error if meant is None else meant(str(error))


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error is about a damaged page."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == sqlite3.SQLITE_CORRUPT


@contextlib.contextmanager
def suppressed_damage() -> Iterator[None]:
    """Leave what is within where it comes to a damaged page."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
