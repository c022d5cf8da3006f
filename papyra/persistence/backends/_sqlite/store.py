"""The `Store` of the SQLite backend."""

from __future__ import annotations

import sqlite3
from typing import get_args

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import (
    InvalidPolicy,
    InvalidSetting,
    PersistenceError,
    StoreAccessDenied,
    StoreNotWritable,
)
from papyra.persistence.backends._files.disk import whose
from papyra.persistence.backends._files.location import Place, printable
from papyra.persistence.backends._io.threaded_parts import (
    ThreadedEncodedHistories,
    ThreadedInbox,
    ThreadedMigrating,
    ThreadedOutbox,
    ThreadedPositions,
    ThreadedRebasing,
)
from papyra.persistence.backends._sqlite.blocking_store import DEFAULT_SYSTEM, NAME, BlockingStore
from papyra.persistence.backends._sqlite.connection import Synchronous
from papyra.persistence.backends._sqlite.database_file import DatabaseFile
from papyra.persistence.backends._sqlite.errors import store_error, system_error
from papyra.persistence.backends._sqlite.schema import require_sqlite

__all__ = ("DEFAULT_SYSTEM", "SQLiteStore")

#: Characters of the id of a system: it is part of a file's name.
_LONGEST = 50


class SQLiteStore(
    ThreadedEncodedHistories,
    ThreadedRebasing,
    ThreadedPositions,
    ThreadedInbox,
    ThreadedMigrating,
    ThreadedOutbox,
):
    """A `Store` in an SQLite database."""

    name = NAME
    blocking: BlockingStore
    _driver_errors = (sqlite3.Error, OSError)

    def __init__(
        self,
        place: Place,
        *,
        system_id: str,
        synchronous: Synchronous,
        busy_timeout: float,
        call_timeout: float | None,
        read_only: bool,
    ) -> None:
        require_sqlite()
        _check(system_id, synchronous, busy_timeout, call_timeout)
        self.place = place
        self.system_id = system_id
        self.synchronous: Synchronous = synchronous
        self.busy_timeout = busy_timeout
        blocking = BlockingStore(
            DatabaseFile(place),
            system_id,
            synchronous=synchronous,
            busy_timeout=float(busy_timeout),
            read_only=read_only,
        )
        super().__init__(
            blocking,
            thread_name=f"papyra {place.name.name}",
            shown_name=str(place.name),
            read_only=read_only,
            call_timeout=call_timeout,
        )

    @property
    def location(self) -> str:
        """The path of the database."""
        return printable(self.place.name)

    def _named(self, error: Exception, operation: str = "") -> Exception:
        """Return what an error means for this database."""
        del operation  # which a `StoreError` says
        if isinstance(error, PersistenceError):
            return error
        path = str(self.place.path)
        meant = error
        if isinstance(error, sqlite3.Error):
            meant = store_error(error, path)
        elif isinstance(error, OSError):
            meant = system_error(error)
        if isinstance(meant, (StoreAccessDenied, StoreNotWritable)):
            return type(meant)(f"{meant}: {whose(path)}")
        return meant


def _check(
    system_id: str, synchronous: str, busy_timeout: float, call_timeout: float | None
) -> None:
    if type(system_id) is not str or not 0 < len(system_id) <= _LONGEST:
        raise InvalidSetting(
            f"system_id is a string of up to {_LONGEST} characters, not {shown(system_id)}"
        )
    if not system_id.isprintable():
        raise InvalidSetting(f"system_id is printable, which {shown(system_id)} is not")
    if synchronous not in get_args(Synchronous):
        known = ", ".join(get_args(Synchronous))
        raise InvalidPolicy(f"synchronous is one of {known}, not {shown(synchronous)}")
    for name, seconds in (("busy_timeout", busy_timeout), ("call_timeout", call_timeout)):
        if name == "call_timeout" and seconds is None:
            continue
        if not is_seconds(seconds, above=True, finite=True):
            raise InvalidPolicy(f"{name} is seconds, more than 0, not {shown(seconds)}")
