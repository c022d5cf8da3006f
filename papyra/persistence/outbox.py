"""The outbox: events that an application hands over in a transaction of its own.

An application that keeps its own tables in the database of a store adds events to the table
``papyra_outbox`` there, in the transaction in which it changes its own. The system that writes the
store takes them over: each is removed from the outbox and appended in one transaction, so it is
there exactly once, and never if the application's transaction was rolled back.

`add` is all that an application needs. It takes a plain connection, of sqlite3 or psycopg, and no
actor system::

    with connection:
        connection.execute("INSERT INTO orders VALUES (?, ?)", (7, "tea"))
        outbox.add(connection, PersistedEvent("shop", "shop/orders", "Ordered", {"id": 7}, now))

The columns of ``papyra_outbox`` are ``id``, which is given by the database and says the order;
``system_id``, of the system in the database that is to have the event; and ``record``, the event as
JSON, as the table ``events`` has it. What is there that is no such event is moved to
``papyra_outbox_refused``, with a ``reason``, and ``refused_at`` as Unix time in seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import (
    InvalidRecord,
    InvalidRequest,
    StoreError,
    StoreOutdated,
    UnsupportedPlatform,
)
from papyra.persistence import codec
from papyra.persistence.records import RESERVED, PersistedEvent

__all__ = ("HandedOver", "RefusedEvent", "add", "event_of")

#: The first versions of SQLite, from the newest on, in which several connections that write at once
#: can't damage the log: the last one, and what was mended of older ones.
_SOUND = ((3, 51, 3), (3, 50, 7), (3, 44, 6))

_INSERT = (
    "INSERT INTO main.papyra_outbox (system_id, record) "
    "SELECT system_id, ? FROM main.systems WHERE system_id = ?"
)


_INSERT_IN_POSTGRES = (
    "INSERT INTO {outbox} (system_id, record) "
    "SELECT system_id, %s::json FROM {systems} WHERE system_id = %s"
)


class HandedOver(msgspec.Struct, frozen=True):
    """What waits in an outbox, be it an event or not."""

    id: int
    data: bytes


class RefusedEvent(msgspec.Struct, frozen=True):
    """What was set aside, as it is no event that could be appended."""

    id: int
    reason: str


def add(
    connection: Any, *events: PersistedEvent, system_id: str = "papyra", schema: str = "papyra"
) -> None:
    """Hand over `events` in the transaction of `connection`, of sqlite3 or (not async) psycopg.

    Whoever commits that transaction has handed them over, in this order, and they are as durable as
    the rest of it; if it is rolled back, they were never there. The system appends them when it
    next looks, each at a position of its own; their `seq` counts for nothing, and they have no
    revision. `system_id` is that of `SQLitePersistence` or `PostgresPersistence`, and so is the
    `schema`, which PostgreSQL has.

    Raises `InvalidRecord` or `UnencodablePayload` for an event that could not be appended;
    `InvalidRequest` for a connection that commits each statement by itself; `StoreError` where the
    tables, or the system, are not there, and `StoreOutdated` where they have to be migrated; and
    `UnsupportedPlatform` where several connections that checkpoint could damage the database: with
    SQLite before 3.51.3 (but for 3.50.7 and 3.44.6), unless this one leaves that to the system, by
    ``PRAGMA wal_autocheckpoint = 0``. Nothing is added then. Otherwise as ``execute`` does.
    """
    encoded = [_encoded(event) for event in events]
    if _is_of("sqlite3", connection):
        _add_to_sqlite(connection, encoded, system_id)
    elif _is_of("psycopg", connection):
        _add_to_postgres(connection, encoded, system_id, schema)
    else:
        raise InvalidRequest(
            f"an outbox takes a connection of sqlite3 or psycopg, not {shown(connection)}: that of "
            "the application's own transaction"
        )


def is_log_sound(version: tuple[int, ...]) -> bool:
    """Return whether several connections may write a log at once with this version of SQLite."""
    newest, *older = _SOUND
    return version >= newest or any(
        version[:2] == mended[:2] and version >= mended for mended in older
    )


def event_of(data: bytes) -> tuple[PersistedEvent, bytes]:
    """Return the event that was handed over, and encoded as an append does.

    Raises `InvalidRecord` for what can't be appended.
    """
    try:
        record = codec.decode(data, 0)
    except StoreError as error:
        raise InvalidRecord(f"it can't be read: {error.__cause__ or error}") from error
    event = _checked(record)
    # Nobody else has seen this event yet, so it may still lose the position that it never had.
    msgspec.structs.force_setattr(event, "seq", None)
    (encoded,) = codec.encode([event])
    return event, encoded


def _encoded(event: object) -> str:
    (encoded,) = codec.encode([_checked(event)])
    return encoded.decode()


def _checked(event: object) -> PersistedEvent:
    if type(event) is not PersistedEvent:
        raise InvalidRecord(f"an outbox takes PersistedEvents, not {shown(event)}")
    if event.revision is not None:
        raise InvalidRecord(
            f"an event of an outbox has no revision, not {shown(event.revision)}: histories are "
            "those of their actors, which tell what comes next"
        )
    if type(event.event_type) is str and event.event_type.startswith(RESERVED):
        raise InvalidRecord(
            f"types that begin with {RESERVED!r} are Papyra's own: {shown(event.event_type)}"
        )
    return event


def _is_of(module: str, connection: Any) -> bool:
    # Whoever has a connection has imported it; and there are Pythons without it.
    driver = sys.modules.get(module)
    return driver is not None and isinstance(connection, driver.Connection)


def _add_to_sqlite(connection: Any, encoded: Sequence[str], system_id: str) -> None:
    cursor = connection.cursor()
    cursor.row_factory = None
    commits_by_itself = (
        connection.isolation_level is None or getattr(connection, "autocommit", False) is True
    )
    if commits_by_itself and not connection.in_transaction:
        raise _no_transaction()
    _require_sound_log(cursor)
    for data in encoded:
        _insert(cursor, data, system_id)


def _add_to_postgres(connection: Any, encoded: Sequence[str], system_id: str, schema: str) -> None:
    psycopg = sys.modules["psycopg"]
    idle = psycopg.pq.TransactionStatus.IDLE
    if connection.autocommit and connection.info.transaction_status == idle:
        raise _no_transaction()
    tables = {
        "outbox": psycopg.sql.Identifier(schema, "papyra_outbox"),
        "systems": psycopg.sql.Identifier(schema, "systems"),
    }
    statement = psycopg.sql.SQL(_INSERT_IN_POSTGRES).format(**tables)
    cursor = connection.cursor()
    for data in encoded:
        try:
            cursor.execute(statement, (data, system_id))
        except psycopg.errors.UndefinedTable as error:
            raise StoreError(
                f"there is no outbox in the schema {schema!r} of this database: make it with "
                "papyra migrate, or open it once as a PostgresPersistence"
            ) from error
        _require_added(cursor, system_id)


def _no_transaction() -> InvalidRequest:
    """Return the error for what would be committed, whatever becomes of the rest."""
    return InvalidRequest(
        "this connection is in no transaction, and commits each statement by itself: begin one, "
        "and hand over the event in it with what else it is about"
    )


def _require_added(cursor: Any, system_id: str) -> None:
    if cursor.rowcount != 1:
        raise StoreError(
            f"there is no system {system_id!r} in this database: open its store once, or make it "
            "with papyra migrate"
        )


def _require_sound_log(cursor: Any) -> None:
    """Raise `UnsupportedPlatform` where another checkpoint than the system's could do damage.

    The fault is in a checkpoint that begins while the whole log is in the database already, and
    another connection begins the log anew. The system's own ones come after commits of its own,
    so part of the log is not in the database, and nobody can begin it anew: as long as no other
    connection checkpoints, it can't happen.
    """
    (text,) = cursor.execute("SELECT sqlite_version()").fetchone()
    # Of bytes, if the connection gives these for text.
    number = text.decode() if isinstance(text, bytes) else str(text)
    if is_log_sound(tuple(map(int, number.split(".")))):
        return
    if cursor.execute("PRAGMA wal_autocheckpoint").fetchone()[0] > 0:
        raise UnsupportedPlatform(
            f"SQLite {number} may damage a database on rare occasions if several of its "
            "connections checkpoint; 3.51.3, 3.50.7 and 3.44.6 don't. Use one of these, or leave "
            "checkpoints to the system: execute 'PRAGMA wal_autocheckpoint = 0' on every "
            "connection of your programs that writes this database, after opening it"
        )


def _insert(cursor: Any, data: str, system_id: str) -> None:
    sqlite3 = sys.modules["sqlite3"]
    try:
        cursor.execute(_INSERT, (data, system_id))
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        raise _missing(cursor) from error
    _require_added(cursor, system_id)


def _missing(cursor: Any) -> StoreError:
    """Return the error for a database without an outbox: of an older version, or of others."""
    query = "SELECT 1 FROM main.sqlite_master WHERE name = 'papyra_schema'"
    if cursor.execute(query).fetchone():
        return StoreOutdated(
            "the tables of this database have no outbox yet: papyra migrate adds it"
        )
    return StoreError(
        "there are no tables of Papyra's in this database: open it once as a SQLitePersistence, "
        "or make them with papyra migrate"
    )
