"""Records in an SQLite database."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from papyra.persistence.backends._files.location import Place
from papyra.persistence.backends._sqlite.connection import Synchronous
from papyra.persistence.backends._sqlite.database_file import is_database
from papyra.persistence.backends._sqlite.store import DEFAULT_SYSTEM, SQLiteStore
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.urls import path_and_options
from papyra.persistence.reports import ReportProgress
from papyra.persistence.retention import RetentionPolicy

__all__ = ("SQLitePersistence",)

_SUFFIXES = frozenset({".sqlite", ".sqlite3", ".db"})


class SQLitePersistence(PersistenceBackend):
    """Keep facts in an SQLite database: in tables that people may query, join and index.

    A batch is one transaction, in
    a write-ahead log. With ``synchronous="full"``, an acknowledged record is on the device. With
    ``"normal"`` it survives the process, but the last ones not always the machine; with ``"off"``,
    a machine that loses power may leave a damaged database. ``"extra"`` is as ``"full"`` here.

    One database holds any number of systems, each by its `system_id`, with positions of its own,
    and one writer at a time: another one gets `BackendInUse`. Should it get past that (somebody
    removed the lock file, say), the one before gets `StoreFenced`. With `read_only` it takes no
    lock, changes nothing, and reads beside a writer what is committed by then.

    Where another program keeps the database locked for more than `busy_timeout` seconds, that is
    `StoreNotReady`. What takes longer than `call_timeout` seconds fails with a `StoreError`; until
    the disk answers, everything else fails at once. Raises `UnsupportedPlatform` where SQLite is
    too old.
    """

    store: SQLiteStore

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        system_id: str = DEFAULT_SYSTEM,
        synchronous: Synchronous = "full",
        busy_timeout: float = 10.0,
        call_timeout: float | None = 30.0,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
    ) -> None:
        store = SQLiteStore(
            Place(path),
            system_id=system_id,
            synchronous=synchronous,
            busy_timeout=busy_timeout,
            call_timeout=call_timeout,
            read_only=read_only,
        )
        super().__init__(store, retention_policy=retention_policy, clock=clock)

    @property
    def path(self) -> Path:
        """The file, as it was named."""
        return self.store.place.name

    @property
    def is_damaged(self) -> bool:
        """Whether damage has been seen by now, which reads pass over; only a scan sees all."""
        return self.store.blocking.is_damaged

    def reader(
        self, *, index_directory: Path | None = None, opening: ReportProgress | None = None
    ) -> SQLitePersistence:
        """Return a backend that reads the same system, with `read_only`. Opening reads little."""
        del index_directory, opening
        store = self.store
        return SQLitePersistence(
            store.place,
            system_id=store.system_id,
            synchronous=store.synchronous,
            busy_timeout=store.busy_timeout,
            call_timeout=store.call_timeout,
            retention_policy=self.retention,
            clock=self.clock,
            read_only=True,
        )


def from_url(url: str, *, read_only: bool) -> SQLitePersistence:
    """Return the backend on the database that a URL names."""
    path, options = path_and_options(
        url, {"system_id": str, "synchronous": str, "busy_timeout": float}
    )
    return SQLitePersistence(path, read_only=read_only, **cast("dict[str, Any]", options))


def is_path(name: str) -> bool:
    """Return whether there is a database at a path, or one may be made there."""
    path = Path(os.path.expanduser(name))
    if path.exists() and (path.is_dir() or path.stat().st_size):
        return is_database(path)
    return path.suffix in _SUFFIXES and not name.endswith("/")


def for_test(directory: Callable[[], Path], options: Mapping[str, Any]) -> SQLitePersistence:
    """Return a backend for a test. Nobody pulls the plug of a test."""
    return SQLitePersistence(directory() / "events.sqlite", synchronous="off", **options)
