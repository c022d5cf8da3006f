"""The versions of the tables in an SQLite database, and the statements that make each of them.

A new database is made by all of these steps, so that it is the same as one that went through them.
"""

from __future__ import annotations

from papyra.persistence.backends._sql.migrations import Migration, newest
from papyra.persistence.backends._sql.tables import TABLES

__all__ = ("MIGRATIONS", "OLDEST_READABLE", "OUTBOX_SINCE", "POSITIONS_SINCE", "VERSION")

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
_FIRST = (
    "CREATE TABLE papyra_schema (version INTEGER NOT NULL)",
    "INSERT INTO papyra_schema VALUES (0)",
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
_OUTBOX = (
    """
CREATE TABLE papyra_outbox (
    id INTEGER PRIMARY KEY,
    system_id TEXT NOT NULL,
    record TEXT NOT NULL
)
""",
    "CREATE INDEX papyra_outbox_by_system ON papyra_outbox (system_id, id)",
    """
CREATE TABLE papyra_outbox_refused (
    id INTEGER PRIMARY KEY,
    system_id TEXT NOT NULL,
    record TEXT NOT NULL,
    reason TEXT NOT NULL,
    refused_at REAL NOT NULL
)
""",
)
_POSITIONS = (
    """
CREATE TABLE papyra_positions (
    system_id TEXT NOT NULL,
    name TEXT NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (system_id, name)
)
""",
)

#: Every version that there was, in order.
MIGRATIONS = (
    Migration(
        1,
        "make the tables of records, snapshots and systems",
        frozenset({"papyra_schema", "systems", "blocks", "snapshots"})
        | {table.name for table in TABLES.values()},
        _FIRST,
    ),
    Migration(
        2,
        "add the tables of the outbox, which are empty",
        frozenset({"papyra_outbox", "papyra_outbox_refused"}),
        _OUTBOX,
    ),
    Migration(
        3,
        "add the table of positions, which is empty",
        frozenset({"papyra_positions"}),
        _POSITIONS,
    ),
)
#: The first version with an outbox.
OUTBOX_SINCE = 2
#: And the first with positions.
POSITIONS_SINCE = 3
#: The version that this program writes.
VERSION = newest(MIGRATIONS)
#: The oldest version that readers can do with: a store that nobody has migrated yet can be looked
#: at and copied. A step that changes what they select has to raise it.
OLDEST_READABLE = 1
