"""The schema: the tables of a store, and which version of them it has.

Tables are for people to read, as the guide to the backends describes them. ``blocks`` is an index:
the totals of the records in each run of 1024 positions, once all of these were given.
"""

from __future__ import annotations

from papyra.exceptions import StoreError, StoreMissing, StoreWrongType
from papyra.persistence.backends._postgres.connection import connect, transaction
from papyra.persistence.backends._postgres.settings import Settings
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._sql.tables import TABLES

__all__ = ("NAMES", "VERSION", "create", "forget_system", "require")

VERSION = 1

_RECORDS = """
CREATE TABLE {{schema}}.{name} (
    system_id text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    {own}
    timestamp double precision NOT NULL,
    bytes integer NOT NULL,
    crc bigint NOT NULL,
    batch text,
    record json NOT NULL,
    PRIMARY KEY (system_id, seq)
)
"""
_TEXT = 'text COLLATE "C" NOT NULL'
_OWN_COLUMNS = {
    "event": f"actor {_TEXT}, type {_TEXT}, revision bigint,",
    "audit": "",
    "dead_letter": f"target {_TEXT}, message_type {_TEXT},",
}
_STATEMENTS = (
    "CREATE TABLE {schema}.papyra_schema (version integer NOT NULL)",
    f"INSERT INTO {{schema}}.papyra_schema VALUES ({VERSION})",  # noqa: S608 - a constant
    """
CREATE TABLE {schema}.systems (
    system_id text COLLATE "C" PRIMARY KEY,
    store_id text NOT NULL,
    place text NOT NULL,
    epoch bigint NOT NULL,
    writer text NOT NULL,
    last_seq bigint NOT NULL,
    sealed bigint NOT NULL
)
""",
    *(_RECORDS.format(name=table.name, own=_OWN_COLUMNS[table.kind]) for table in TABLES.values()),
    "CREATE INDEX events_by_actor ON {schema}.events (system_id, actor, seq)",
    "CREATE INDEX histories ON {schema}.events (system_id, actor, revision, seq)"
    " WHERE revision IS NOT NULL",
    "CREATE INDEX dead_letters_by_target ON {schema}.dead_letters (system_id, target, seq)",
    """
CREATE TABLE {schema}.blocks (
    system_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    block bigint NOT NULL,
    records bigint NOT NULL,
    bytes bigint NOT NULL,
    oldest double precision NOT NULL,
    newest double precision NOT NULL,
    PRIMARY KEY (system_id, kind, block)
)
""",
    """
CREATE TABLE {schema}.snapshots (
    system_id text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (system_id, actor, revision)
)
""",
    """
CREATE TABLE {schema}.requests (
    system_id text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    state text NOT NULL,
    posted timestamptz NOT NULL DEFAULT now(),
    data bytea NOT NULL,
    PRIMARY KEY (system_id, id)
)
""",
    """
CREATE TABLE {schema}.quarantine (
    system_id text COLLATE "C" NOT NULL,
    moved timestamptz NOT NULL DEFAULT now(),
    origin text NOT NULL,
    data bytea NOT NULL
)
""",
)
#: The tables that are ours.
NAMES = frozenset(
    {
        *("papyra_schema", "systems", "blocks", "snapshots", "quarantine", "requests"),
        *(table.name for table in TABLES.values()),
    }
)
#: One at a time makes tables: a number for whoever looks at locks, "papyra" in ASCII.
_LOCK = 0x706170797261


def create(system: System) -> None:
    """Create the tables where there are none of ours, or refuse those of another version."""
    if _version(system) is not None:
        require(system)
        return
    with transaction(system.connection):
        system.rows("SELECT pg_advisory_xact_lock(%(lock)s)", lock=_LOCK)
        if _version(system) is not None:
            return
        if not _has_schema(system):
            # Only where there is none: IF NOT EXISTS asks for the right to make it all the same.
            system.run("CREATE SCHEMA {schema}")
        _refuse_others(system)
        for statement in _STATEMENTS:
            system.run(statement)


def forget_system(settings: Settings) -> None:
    """Remove all that there is of a system, over a connection of its own."""
    with connect(settings, "") as connection:
        system = System(connection, settings)
        for name in sorted(NAMES - {"papyra_schema"}):
            system.run(f"DELETE FROM {{schema}}.{name} WHERE system_id = %(system)s")  # noqa: S608


def require(system: System) -> None:
    """Raise `StoreMissing` where there are no tables of ours, `StoreError` for a newer version."""
    version = _version(system)
    if version == VERSION:
        return
    if version is None:
        raise StoreMissing(
            f"{system.settings.location}: there is no schema {system.settings.schema!r} with "
            "tables of Papyra's in this database, or this role may not use it"
        )
    raise StoreError(
        f"{system.settings.location}: the tables are of version {version}, and this Papyra knows "
        f"version {VERSION}: a newer Papyra has made them, and reads them"
    )


def _version(system: System) -> int | None:
    """Return the version of the tables, `None` if there are none."""
    (table,) = system.row(
        "SELECT c.oid FROM (SELECT 1) AS one LEFT JOIN (pg_class AS c JOIN pg_namespace AS n"
        " ON n.oid = c.relnamespace AND n.nspname = %(schema)s) ON c.relname = 'papyra_schema'",
        schema=system.settings.schema,
    )
    if table is None:
        return None
    (version,) = system.row("SELECT max(version) FROM {schema}.papyra_schema")
    return int(version or 0)


def _has_schema(system: System) -> bool:
    return bool(
        system.rows(
            "SELECT 1 FROM pg_namespace WHERE nspname = %(schema)s", schema=system.settings.schema
        )
    )


def _refuse_others(system: System) -> None:
    """Raise `StoreWrongType` for a schema with tables of others that have our names."""
    rows = system.rows(
        "SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %(schema)s",
        schema=system.settings.schema,
    )
    taken = NAMES.intersection(name for (name,) in rows)
    if taken:
        raise StoreWrongType(
            f"{system.settings.location}: another program has tables of these names here: "
            f"{', '.join(sorted(taken))}: choose another schema"
        )
