"""The schema: the tables of a database, and which version of them it has.

Tables are for people to read, as the guide to the backends describes them. ``blocks`` is an index:
the totals of the records in each run of 1024 positions, once all of these were given.
"""

from __future__ import annotations

import sqlite3

from papyra.exceptions import StoreError, StoreWrongType, UnsupportedPlatform
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends._sqlite.connection import transaction

__all__ = ("NAMES", "VERSION", "create", "is_there", "require_sqlite", "require_version")

VERSION = 1
#: The first that compares several values at once.
_OLDEST_SQLITE = (3, 15)

_RECORDS = """
CREATE TABLE {name} (
    system_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    {own}
    timestamp REAL NOT NULL,
    crc INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (system_id, seq)
) WITHOUT ROWID
"""
_OWN_COLUMNS = {
    "event": "actor TEXT NOT NULL, type TEXT NOT NULL, revision INTEGER,",
    "audit": "",
    "dead_letter": "target TEXT NOT NULL, message_type TEXT NOT NULL,",
}
_STATEMENTS = (
    "CREATE TABLE papyra_schema (version INTEGER NOT NULL)",
    f"INSERT INTO papyra_schema VALUES ({VERSION})",  # noqa: S608 - a constant
    """
CREATE TABLE systems (
    system_id TEXT PRIMARY KEY NOT NULL,
    store_id TEXT NOT NULL,
    inode INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    last_seq INTEGER NOT NULL
) WITHOUT ROWID
""",
    *(_RECORDS.format(name=table.name, own=_OWN_COLUMNS[table.kind]) for table in TABLES.values()),
    "CREATE INDEX events_by_actor ON events (system_id, actor, seq)",
    "CREATE INDEX histories ON events (system_id, actor, revision) WHERE revision IS NOT NULL",
    "CREATE INDEX dead_letters_by_target ON dead_letters (system_id, target, seq)",
    """
CREATE TABLE blocks (
    system_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    block INTEGER NOT NULL,
    records INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    oldest REAL NOT NULL,
    newest REAL NOT NULL,
    PRIMARY KEY (system_id, kind, block)
) WITHOUT ROWID
""",
    """
CREATE TABLE snapshots (
    system_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    revision INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (system_id, actor, revision)
)
""",
)
#: The tables that are ours.
NAMES = frozenset(
    {"papyra_schema", "systems", "blocks", "snapshots", *(t.name for t in TABLES.values())}
)


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
            require_version(connection)
            return
        _refuse_others(connection)
        for statement in _STATEMENTS:
            connection.execute(statement)


def is_there(connection: sqlite3.Connection) -> bool:
    """Return whether a database has our tables."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'papyra_schema'")
    return found.fetchone() is not None


def require_version(connection: sqlite3.Connection) -> None:
    """Raise `StoreError` for a schema that this program does not know."""
    row = connection.execute("SELECT max(version) FROM papyra_schema").fetchone()
    if row == (VERSION,):
        return
    raise StoreError(
        f"the tables are of version {row[0]!r}, and this Papyra knows version {VERSION}: "
        "a newer Papyra has made them, and reads them"
    )


def _refuse_others(connection: sqlite3.Connection) -> None:
    """Raise `StoreWrongType` for a database with tables of others that have our names."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    taken = NAMES.intersection(name.decode() for (name,) in rows)
    if taken:
        raise StoreWrongType(
            f"another program has tables of these names here: {', '.join(sorted(taken))}"
        )
