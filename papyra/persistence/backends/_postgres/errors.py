"""What PostgreSQL and libpq say, by the names that it has here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import psycopg

from papyra.exceptions import (
    PersistenceError,
    StoreAccessDenied,
    StoreDamaged,
    StoreError,
    StoreFenced,
    StoreFull,
    StoreMissing,
    StoreNotReady,
    StoreNotWritable,
    StoreUnreachable,
    StoreWrongType,
)

__all__ = ("is_answer", "is_damage", "message_of", "store_error")

#: By SQLSTATE, or by how it begins.
_NAMED: Mapping[str, tuple[type[PersistenceError], str]] = {
    "08": (StoreUnreachable, "the connection is lost"),
    "0A000": (StoreNotReady, "a statement that was prepared does not fit any more"),
    "22P05": (StoreWrongType, "the database can't hold all of Unicode"),
    # Positions are given under the writer's row, by who has the right epoch: this is a rival.
    "23505": (StoreFenced, "another writer has stored something there"),
    "25006": (StoreNotWritable, "it takes no writes: a standby, or a role that may only read"),
    "26000": (
        StoreNotReady,
        "a prepared statement is gone, as behind a pool that does not say that it is one",
    ),
    "28": (StoreAccessDenied, "it wants another user or password"),
    "3D000": (StoreMissing, "there is no such database"),
    "3F000": (StoreMissing, "there is no such schema"),
    "40": (StoreNotReady, "it gave way to another transaction"),
    "42501": (StoreAccessDenied, "this role may not do that"),
    "42703": (StoreWrongType, "a table has other columns"),
    "42P01": (StoreMissing, "a table of Papyra's is not there"),
    "42P05": (
        StoreNotReady,
        "a prepared statement is another's, as behind a pool that does not say that it is one",
    ),
    "53100": (StoreFull, "its disk is full"),
    "53": (StoreNotReady, "it has no room, or too many connections"),
    "55P03": (StoreNotReady, "a lock was not to be had in time"),
    "57014": (StoreNotReady, "it took too long, or was cancelled"),
    "57P03": (StoreNotReady, "it starts up, or shuts down"),
    "57P04": (StoreMissing, "the database was dropped"),
    "57P": (StoreUnreachable, "it has ended the connection"),
    "XX001": (StoreDamaged, "a page is damaged: a scan says where"),
    "XX002": (StoreDamaged, "an index is damaged: REINDEX makes it anew"),
}
#: What libpq says about a connection that was not made, for which it gives no SQLSTATE.
_SAID: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r'database ".*" does not exist'), "3D000"),
    (re.compile("starting up|shutting down|recovery mode|not yet accepting"), "57P03"),
    (re.compile("too many (clients|connections)|connection slots"), "53300"),
    (re.compile("read-only|hot standby|not in hot standby"), "25006"),
    (re.compile("password|authentication|pg_hba|certificate|denied|role .* does not"), "28000"),
)


def store_error(error: psycopg.Error, location: str) -> PersistenceError:
    """Return the error that says what one of psycopg means for the store at `location`."""
    message = message_of(error)
    if not isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return StoreError(f"{location}: psycopg failed ({message})")
    code = error.sqlstate or next((code for said, code in _SAID if said.search(message)), "08000")
    meant: type[PersistenceError] = StoreError
    why = "PostgreSQL failed"
    for length in (5, 3, 2):
        if code[:length] in _NAMED:
            meant, why = _NAMED[code[:length]]
            break
    name = f"{error.sqlstate}: " if error.sqlstate else ""
    return meant(f"{location}: {why} ({name}{message})")


def is_answer(error: psycopg.Error) -> bool:
    """Return whether an error is the server's word that nothing of the statement was done."""
    if error.sqlstate is None:  # of psycopg itself, but where the connection was lost
        return not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return not error.sqlstate.startswith(("08", "57P"))


def is_damage(error: psycopg.Error) -> bool:
    """Return whether an error is about a damaged page, or what is on one."""
    return error.sqlstate in {"XX001", "XX002"}


def message_of(error: psycopg.Error) -> str:
    """Return the error's message in one line, without details, in which there may be records."""
    message = error.diag.message_primary or str(error)
    return " ".join(message.split()) or type(error).__name__
