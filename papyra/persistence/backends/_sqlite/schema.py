"""The schema: the tables of a database, and which version of them it has.

Tables are for people to read, as the guide to the backends describes them. ``blocks`` is an index:
the totals of the records in each run of 1024 positions, once all of these were given.
"""

from __future__ import annotations

import sqlite3

from papyra.exceptions import StoreWrongType, UnsupportedPlatform
from papyra.persistence.backends._sql.migrations import Migration, pending, require_version
from papyra.persistence.backends._sqlite.connection import transaction
from papyra.persistence.backends._sqlite.migrations import (
    MIGRATIONS,
    OLDEST_READABLE,
    OUTBOX_SINCE,
    POSITIONS_SINCE,
    VERSION,
)

__all__ = (
    "NAMES",
    "create",
    "has_outbox",
    "has_positions",
    "is_there",
    "migrate",
    "other_tables",
    "require_readable",
    "require_sqlite",
    "version_of",
)

#: The first that compares several values at once.
_OLDEST_SQLITE = (3, 15)

#: The tables that are ours.
NAMES = frozenset(name for migration in MIGRATIONS for name in migration.tables)


def require_sqlite() -> None:
    """Raise `UnsupportedPlatform` where Python has an SQLite that is too old."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise UnsupportedPlatform(
            f"this Python has SQLite {sqlite3.sqlite_version}: a store in it needs {oldest} or "
            "later, which another build of Python brings; a store in files needs none"
        )


def create(connection: sqlite3.Connection) -> None:
    """Create the tables of a database that has none of ours, or refuse one of another version."""
    with transaction(connection):
        if is_there(connection):
            require_version(MIGRATIONS, version_of(connection), VERSION)
            return
        for migration in MIGRATIONS:
            _carry_out(connection, migration)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to the newest version, each step in a transaction of its own."""
    for migration in pending(MIGRATIONS, version_of(connection)):
        with transaction(connection):
            if migration in pending(MIGRATIONS, version_of(connection)):
                _carry_out(connection, migration)


def _carry_out(connection: sqlite3.Connection, migration: Migration) -> None:
    _refuse_others(connection, migration)
    for statement in migration.statements:
        connection.execute(statement)
    connection.execute("UPDATE papyra_schema SET version = ?", (migration.version,))


def is_there(connection: sqlite3.Connection) -> bool:
    """Return whether a database has our tables."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'papyra_schema'")
    return found.fetchone() is not None


def other_tables(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the tables in a database that other programs have made, in order."""
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' "
        r"AND name NOT LIKE 'sqlite\_%' ESCAPE '\'"
    )
    return sorted({name.decode(errors="replace") for (name,) in rows} - NAMES)


def version_of(connection: sqlite3.Connection) -> object:
    """Return the version of the tables, 0 if there are none; whatever else stands there."""
    if not is_there(connection):
        return 0
    row = connection.execute("SELECT max(version) FROM papyra_schema").fetchone()
    return row[0]


def require_readable(connection: sqlite3.Connection) -> None:
    """Raise `StoreTooNew` or `StoreOutdated` for tables that a reader can't do with."""
    require_version(MIGRATIONS, version_of(connection), OLDEST_READABLE)


def has_outbox(connection: sqlite3.Connection) -> bool:
    """Return whether the tables are of a version that has an outbox."""
    return _is_since(OUTBOX_SINCE, connection)


def has_positions(connection: sqlite3.Connection) -> bool:
    """Return whether the tables are of a version that has positions."""
    return _is_since(POSITIONS_SINCE, connection)


def _is_since(version: int, connection: sqlite3.Connection) -> bool:
    found = version_of(connection)
    return isinstance(found, int) and found >= version


def _refuse_others(connection: sqlite3.Connection, migration: Migration) -> None:
    """Raise `StoreWrongType` for a database with tables of others that have our names."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    taken = migration.tables.intersection(name.decode() for (name,) in rows)
    if taken:
        raise StoreWrongType(
            f"another program has tables of these names here: {', '.join(sorted(taken))}"
        )
