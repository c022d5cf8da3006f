"""What is in the database, as people see it who know nothing of Papyra, and who may do what."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from papyra.conf import backend_from_url
from papyra.exceptions import (
    InvalidPolicy,
    InvalidSetting,
    InvalidStoreURL,
    PersistenceError,
    StoreAccessDenied,
    StoreError,
    StoreFenced,
    StoreMissing,
    StoreNotAcknowledged,
    StoreNotReady,
    StoreNotWritable,
    StoreReadOnly,
    StoreUnreachable,
    StoreWrongType,
)
from papyra.persistence import Restore
from papyra.persistence.backends._postgres import connection
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.persistence.records import PersistedAudit, PersistedDeadLetter, PersistedEvent, Record
from tests.persistence.backends.postgres.small_blocks import small_blocks
from tests.postgres_server import PostgresServer

Make: TypeAlias = Callable[..., PostgresPersistence]
Query: TypeAlias = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def make(database: str, schema: str) -> Make:
    return functools.partial(PostgresPersistence, database, schema=schema, retry_for=2.0)


@pytest.fixture
def query(database: str, schema: str) -> Iterator[Query]:
    """Return what runs a statement, in whose tables ``@.`` stands for the schema."""
    with psycopg.connect(database, autocommit=True) as connection:

        def run(statement: str, *values: object) -> list[tuple[Any, ...]]:
            text = statement.replace("@", f'"{schema}"')
            cursor = connection.execute(text.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def role(query: Query, schema: str) -> Iterator[str]:
    """Return a role that may log in, and nothing else."""
    name = schema.replace("test", "role")
    query(f"CREATE ROLE {name} LOGIN PASSWORD 'geheim+secret'")
    yield name
    with suppress(psycopg.Error):
        query(f"DROP OWNED BY {name}")
    query(f"DROP ROLE {name}")


def as_role(database: str, role: str, password: str = "geheim+secret") -> str:
    return make_conninfo(database, user=role, password=password)


def event(actor: str = "shop/ann", payload: object = 1, **more: Any) -> PersistedEvent:
    return PersistedEvent("shop", actor, "opened", payload, 1.5, **more)


LETTER = PersistedDeadLetter("shop", "shop/bob", "Hello", {}, False, 2.0)

# Tables


async def test_people_can_query_what_is_stored_with_json_functions(
    make: Make, query: Query
) -> None:
    async with make() as store:
        await store.append(event(payload={"amount": 7, "tags": ["a", "b"]}, revision=1))
        await store.append(LETTER)
    assert query(
        "SELECT system_id, seq, actor, type, revision, timestamp,"
        " record->'payload'->>'amount', record->'payload'->'tags'->>1 FROM @.events"
    ) == [("papyra", 1, "shop/ann", "opened", 1, 1.5, "7", "b")]
    assert query("SELECT seq, target, message_type FROM @.dead_letters") == [
        (2, "shop/bob", "Hello")
    ]


async def test_a_record_is_in_the_tables_as_it_is_whether_it_was_written_alone_or_not(
    make: Make, query: Query
) -> None:
    records: list[Record] = [
        event(payload=10**40),
        event("shop/" + 2_000 * "x", {"text": "nul \0 \N{SNOWMAN}"}),
        event("shop/nul\0", 1.5),
        PersistedAudit("shop", 5, 1.0),
        LETTER,
    ]
    async with make() as store:
        for record in records:
            await store.append(record)
        await store.append(*records)
        await store.append(event(revision=1))
        await store.append(event(revision=2), event(revision=3))
    assert query("SELECT revision FROM @.events WHERE revision IS NOT NULL ORDER BY seq") == [
        (1,),
        (2,),
        (3,),
    ]
    for table, own in (
        ("events", "actor, type,"),
        ("audits", ""),
        ("dead_letters", "target, message_type,"),
    ):
        rows = query(
            f"SELECT {own} timestamp, bytes, record::text FROM @.{table}"
            f" WHERE seq <= {2 * len(records)} ORDER BY seq"
        )
        assert rows[: len(rows) // 2] == rows[len(rows) // 2 :] != []


async def test_a_record_holds_what_neither_jsonb_nor_text_could(make: Make, query: Query) -> None:
    payload = {"z": "nul \0 here", "a": 10**40, "snow": "\N{SNOWMAN}\N{PILE OF POO}", "b": -0.0}
    async with make() as store:
        await store.append(event(payload=payload))
        (found,) = (await store.read("event")).records
    assert isinstance(found, PersistedEvent)
    assert list(found.payload.items()) == list(payload.items())
    ((text,),) = query("SELECT record::text FROM @.events")
    assert '"z":"nul \\u0000 here","a":1' in text


@pytest.mark.parametrize(
    "addresses",
    [
        ["a\0b", "a\N{SYMBOL FOR NULL}0b", "a\N{SYMBOL FOR NULL}b", "ab"],
        ["x" * 10_000 + "1", "x" * 10_000 + "2", "x" * 10_000],
        ["\N{SNOWMAN}" * 5_000, "'; DROP TABLE events; --", "%(system)s", "a\\b", '"', "{schema}"],
    ],
)
async def test_any_string_is_an_address_of_its_own(make: Make, addresses: list[str]) -> None:
    async with make() as store:
        for address in addresses:
            await store.append(event(address, revision=1))
            await store.append(event(address, revision=2))
        for address in addresses:
            found = (await store.read_history(address)).events
            assert [(each.actor_address, each.revision) for each in found] == [
                (address, 1),
                (address, 2),
            ]
            assert len((await store.read("event", actor=address)).records) == 2
        assert (await store.scan()).is_clean
        assert await store.store.last_revisions([*addresses, "\ud800"]) == dict.fromkeys(
            addresses, 2
        )


async def test_one_schema_holds_systems_that_know_nothing_of_each_other(make: Make) -> None:
    async with make(system_id="one") as one, make(system_id="two") as two:
        await one.append(event("a", revision=1))
        await two.append(event("a", revision=1), event("a", revision=2))
        assert (await one.read_history("a")).events[-1].revision == 1
        assert (await two.summarize()).records["event"] == 2
        assert (await one.store.store_id()) != (await two.store.store_id())


@pytest.mark.parametrize(
    "name", ['"; DROP SCHEMA public; --', "100%", "Ünïcödé {schema} %s", "A.b"]
)
async def test_a_schema_may_have_any_name(database: str, name: str) -> None:
    try:
        async with PostgresPersistence(database, schema=name) as store:
            await store.append(event())
            assert len((await store.read("event")).records) == 1
    finally:
        with psycopg.connect(database, autocommit=True) as connection:
            drop = psycopg.sql.SQL("DROP SCHEMA {} CASCADE")
            connection.execute(drop.format(psycopg.sql.Identifier(name)))


async def test_tables_of_a_newer_version_are_refused(make: Make, query: Query) -> None:
    async with make() as store:
        await store.append(event())
    query("UPDATE @.papyra_schema SET version = 99")
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"are of version 99, .* a newer Papyra"):
            async with make(read_only=read_only):
                pass


async def test_tables_of_others_with_these_names_are_refused(make: Make, query: Query) -> None:
    query("CREATE SCHEMA @")
    query("CREATE TABLE @.events (id int)")
    with pytest.raises(StoreWrongType, match="tables of these names here: events"):
        async with make():
            pass
    assert query("SELECT * FROM @.events") == []


async def test_a_reader_makes_nothing(make: Make, query: Query, schema: str) -> None:
    with pytest.raises(StoreMissing, match="no schema"):
        async with make(read_only=True):
            pass
    assert query("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema) == []
    async with make() as store:
        await store.append(event())
    with pytest.raises(StoreError, match="no system 'other'; there is 'papyra'"):
        async with make(read_only=True, system_id="other"):
            pass
    async with make().reader() as reader:
        with pytest.raises(StoreReadOnly):
            await reader.append(event())


async def test_several_that_open_a_new_store_at_once_make_it_once(make: Make) -> None:
    stores = [make() for _ in range(5)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.flush)
    assert len({await store.store.store_id() for store in stores}) == 1
    for store in stores:
        await store.aclose()


async def test_a_copy_of_a_schema_is_another_store(make: Make, query: Query, schema: str) -> None:
    async with make() as store:
        await store.append(event())
        original = await store.store.store_id()
    query('ALTER SCHEMA @ RENAME TO "moved"')
    query("CREATE SCHEMA @")
    for (table,) in query("SELECT tablename FROM pg_tables WHERE schemaname = 'moved'"):
        query(f'CREATE TABLE @.{table} (LIKE "moved".{table} INCLUDING ALL)')
        query(f'INSERT INTO @.{table} SELECT * FROM "moved".{table}')
    query('DROP SCHEMA "moved" CASCADE')
    async with make().reader() as reader:
        assert await reader.store.store_id() == ""
    async with make() as copied:
        assert await copied.store.store_id() not in ("", original)


# Writers


async def test_a_writer_is_fenced_before_its_successor_has_written_anything(make: Make) -> None:
    async with make() as first, make() as second:
        await first.append(event())
        assert await second.store.claim() == 1
        with pytest.raises(StoreFenced, match="another one has taken over"):
            await first.append(event())
        with pytest.raises(StoreFenced):
            await first.append(event())
        assert (await second.append(event())).first_seq == 2
        assert len((await first.read("event")).records) == 2


async def test_a_fenced_writer_may_take_over_when_it_is_opened_again(make: Make) -> None:
    async with make() as first, make() as second:
        await first.append(event())
        await second.append(event())
        with pytest.raises(StoreFenced):
            await first.append(event())
        await first.aclose()
        async with first:
            assert (await first.append(event())).first_seq == 3
        with pytest.raises(StoreFenced):
            await second.append(event())


async def test_a_takeover_waits_for_the_append_that_is_under_way(
    make: Make, query: Query, database: str, schema: str
) -> None:
    async with make() as store:
        await store.append(event())
    with psycopg.connect(database) as writer:  # as an append does, which has not committed yet
        writer.execute(f'SELECT 1 FROM "{schema}".systems FOR SHARE'.encode())
        async with make() as second, anyio.create_task_group() as tasks:
            tasks.start_soon(second.append, event())
            while not query("SELECT 1 FROM pg_locks WHERE NOT granted"):
                await anyio.lowlevel.checkpoint()
            writer.execute(
                f'INSERT INTO "{schema}".events SELECT system_id, 2, actor, type, revision,'
                f' timestamp, bytes, crc, batch, record FROM "{schema}".events'.encode()
            )
            writer.commit()
        with_both = query("SELECT seq FROM @.events ORDER BY seq")
    assert with_both == [(1,), (2,), (3,)]


async def test_a_compaction_by_a_writer_that_was_fenced_is_refused(make: Make) -> None:
    async with make() as first, make() as second:
        await first.append(event())
        await second.append(event())
        with pytest.raises(StoreFenced):
            await first.compact()


async def test_positions_are_not_given_again_when_the_newest_records_are_gone(
    make: Make, query: Query
) -> None:
    async with make() as store:
        await store.append(
            event(), PersistedDeadLetter("shop", "shop/bob", "Hello", {}, False, 2.0)
        )
        query("UPDATE @.dead_letters SET record = '{}'")
        assert (await store.recover()).records_removed == 1
    async with make() as store:
        assert (await store.append(event())).first_seq == 3


# The totals of blocks


async def test_the_totals_of_blocks_are_those_of_the_records_whatever_gaps_there_are(
    make: Make, query: Query
) -> None:
    with small_blocks():
        async with make() as store:
            for seqs in ((1,), (2, 3, 4), (20, 21), (22,), (30,), (31, 32, 40, 41, 42, 43, 60)):
                await store.execute(Restore(tuple(event(seq=seq) for seq in seqs)))
                assert (await store.scan()).is_clean
            assert (await store.summarize()).records["event"] == 15
    blocks = query("SELECT block, records FROM @.blocks ORDER BY block")
    assert blocks == [(0, 2), (1, 2), (6, 1), (7, 2), (10, 3), (13, 2), (14, 2)]


# A commit that is on the server's own disk alone


async def test_a_commit_that_no_standby_has_confirmed_is_taken_back(
    own_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = PostgresPersistence(
        own_server.url, statement_timeout=1, retry_for=0.5, acknowledge="on"
    )
    async with store:
        await store.append(event("before"))
        own_server.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        own_server.query("SELECT pg_reload_conf()")
        while own_server.query("SHOW synchronous_standby_names") != [("nobody",)]:
            pass
        with pytest.raises(StoreNotAcknowledged):
            await store.append(event("unconfirmed"))
        own_server.query("ALTER SYSTEM RESET synchronous_standby_names")
        own_server.query("SELECT pg_reload_conf()")
        found = (await store.read("event")).records
        assert [each.actor_address for each in found if isinstance(each, PersistedEvent)] == [
            "before"
        ]
        assert (await store.append(event("after"))).first_seq == 3
    assert "taken back" in caplog.text


async def test_a_commit_that_is_confirmed_later_is_stored_once(own_server: PostgresServer) -> None:
    store = PostgresPersistence(own_server.url, statement_timeout=0.5, retry_for=60)
    async with store, anyio.create_task_group() as tasks:
        await store.append(event("before"))
        own_server.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        own_server.query("SELECT pg_reload_conf()")
        while own_server.query("SHOW synchronous_standby_names") != [("nobody",)]:
            pass
        tasks.start_soon(store.append, event("once"))
        log = own_server.directory / "log"
        while "canceling wait for synchronous replication" not in log.read_text():
            await anyio.lowlevel.checkpoint()
        own_server.query("ALTER SYSTEM RESET synchronous_standby_names")
        own_server.query("SELECT pg_reload_conf()")
    assert own_server.query("SELECT seq, actor FROM papyra.events ORDER BY seq") == [
        (1, "before"),
        (2, "once"),
    ]


async def test_remote_apply_without_a_standby_is_refused(make: Make) -> None:
    with pytest.raises(StoreNotAcknowledged, match="synchronous_standby_names"):
        async with make(acknowledge="remote_apply"):
            pass


@pytest.mark.parametrize("acknowledge", ["local", "on"])
async def test_acknowledge_is_the_servers_synchronous_commit(make: Make, acknowledge: str) -> None:
    async with make(acknowledge=acknowledge) as store:
        session = store.store.blocking._session
        assert session._connection is not None
        assert session._connection.row("SHOW synchronous_commit") == (acknowledge,)


# Connections that are lost


async def test_a_connection_that_was_ended_is_made_again(make: Make, query: Query) -> None:
    async with make() as store:
        for number in range(1, 5):
            assert (await store.append(event())).first_seq == number
            query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'papyra %%' AND datname = %s",
                query("SELECT current_database()")[0][0],
            )
            assert len((await store.read("event")).records) == number


async def test_a_server_that_is_started_anew_is_found_again(own_server: PostgresServer) -> None:
    async with PostgresPersistence(own_server.url, retry_for=20) as store:
        await store.append(event())
        own_server.stop()
        own_server.start(wait=False)
        assert (await store.append(event())).first_seq == 2
        assert [each.seq for each in (await store.read("event")).records] == [1, 2]


async def test_a_server_that_is_gone_is_named(own_server: PostgresServer) -> None:
    async with PostgresPersistence(own_server.url, retry_for=0.2) as store:
        await store.append(event())
        own_server.stop()
        for _ in range(2):
            with pytest.raises(StoreUnreachable):
                await store.append(event())
        own_server.start()
        assert (await store.append(event())).first_seq in (2, 3)
        assert len((await store.read("event")).records) == 2


async def test_an_answer_is_not_waited_for_without_end(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_GRACE", 0.2)
    store = PostgresPersistence(
        own_server.url, statement_timeout=2, connect_timeout=2, retry_for=0.2
    )
    async with store:
        await store.append(event())
        own_server.pause()
        try:
            with pytest.raises(StoreUnreachable):
                await store.append(event())
        finally:
            own_server.go_on()
        assert (await store.append(event("after"))).first_seq in (2, 3)
        found = (await store.read("event")).records
        assert [each.actor_address for each in found if isinstance(each, PersistedEvent)] == [
            "shop/ann",
            "after",
        ]


async def test_a_lock_of_another_program_has_a_name(make: Make, database: str, schema: str) -> None:
    async with make(lock_timeout=0.1, retry_for=0.1) as store:
        await store.append(event())
        with psycopg.connect(database) as other:
            other.execute(f'LOCK TABLE "{schema}".events'.encode())
            with pytest.raises(StoreNotReady, match="a lock was not to be had in time"):
                await store.append(event())
            other.rollback()
        assert (await store.append(event())).first_seq == 2


# Who may do what, and what is wrong with a name


async def raised(store: PostgresPersistence) -> PersistenceError:
    with pytest.raises(PersistenceError) as info:
        async with store:
            pass
    return info.value


async def test_what_is_wrong_with_a_database_or_a_role_has_a_name(
    database: str, role: str, query: Query
) -> None:
    quick = functools.partial(PostgresPersistence, retry_for=0)
    missing = await raised(quick(make_conninfo(database, dbname="not_there")))
    assert isinstance(missing, StoreMissing)
    nobody = await raised(quick(as_role(database, "nobody_at_all")))
    assert isinstance(nobody, StoreAccessDenied)
    with_wrong = await raised(quick(as_role(database, role, "wrong-password")))
    assert isinstance(with_wrong, StoreAccessDenied)
    not_allowed = await raised(quick(as_role(database, role), schema="papyra_not_made"))
    assert isinstance(not_allowed, StoreAccessDenied)
    query(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    too_many = await raised(quick(as_role(database, role)))
    assert isinstance(too_many, StoreNotReady)
    unreachable = await raised(quick("postgresql://127.0.0.1:1/papyra"))
    assert isinstance(unreachable, StoreUnreachable)


async def test_a_role_needs_few_rights(make: Make, query: Query, database: str, role: str) -> None:
    async with make() as store:
        await store.append(event())
    own = as_role(database, role)
    assert isinstance(await raised(make_of(make, own)), StoreAccessDenied | StoreMissing)
    query(f"GRANT USAGE ON SCHEMA @ TO {role}")
    query(f"GRANT SELECT ON ALL TABLES IN SCHEMA @ TO {role}")
    async with make_of(make, own, read_only=True) as reader:
        assert len((await reader.read("event")).records) == 1
        assert (await reader.scan()).is_clean
        await reader.summarize()
    query(f"GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA @ TO {role}")
    async with make_of(make, own, system_id="other") as writer:
        await writer.append(event(revision=1))
        await writer.compact()
        await writer.recover()


def make_of(make: Make, dsn: str, **options: Any) -> PostgresPersistence:
    assert isinstance(make, functools.partial)
    return PostgresPersistence(dsn, **{**make.keywords, "retry_for": 0.0, **options})


async def test_a_role_that_may_only_read_is_named(
    make: Make, query: Query, database: str, role: str
) -> None:
    async with make() as store:
        await store.append(event())
    query(f"GRANT USAGE ON SCHEMA @ TO {role}")
    query(f"GRANT ALL ON ALL TABLES IN SCHEMA @ TO {role}")
    query(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    async with make_of(make, as_role(database, role)) as store:
        with pytest.raises(StoreNotWritable):
            await store.append(event())


async def test_an_encoding_that_can_not_hold_everything_is_refused(
    own_server: PostgresServer,
) -> None:
    own_server.query("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    found = await raised(PostgresPersistence(own_server.url_of("latin")))
    assert isinstance(found, StoreWrongType)
    assert "LATIN1" in str(found)


async def test_no_secret_is_in_an_error_a_repr_or_a_log(
    database: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    secret = "very+geheim%sesame"
    store = PostgresPersistence(as_role(database, role, secret), retry_for=0)
    error = await raised(store)
    shown = [repr(store), store.location, repr(store.store.settings), caplog.text]
    shown += traceback.format_exception(error)
    causes: BaseException | None = error
    while causes is not None:
        shown += [repr(causes), repr(vars(causes))]
        causes = causes.__cause__ or causes.__context__
    assert not [text for text in shown if "geheim" in text]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:geheim@geheim@host/db",
        "postgresql://u:geheim/x@host/db",
        "postgresql://u:geheim?x@host/db",
        "postgresql://u:geheim#x@host/db",
        "postgresql://u:geheim@host:port/db",
        "postgresql://u:geheim@host/db?geheim=1",
        "postgresql://u:geheim@host/db?schema=a&schema=geheim",
        "postgresql://u:geheim@host/db?retry_for=geheim",
        "host=x password='geheim",
        "host=x password=geheim\0",
        "host=x password=geheim\ud800",
        "dbname=postgresql://u:geheim@host/db",
        "dbname='host=x password=geheim'",
    ],
)
def test_a_url_that_can_not_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(InvalidStoreURL) as info:
        if url.startswith("postgresql"):
            backend_from_url(url)
        else:
            PostgresPersistence(url)
    assert "geheim" not in "".join(traceback.format_exception(info.value)).replace(
        '"geheim"', ""
    ).replace(repr(url), "")


def test_a_url_says_which_system_is_where(database: str) -> None:
    url = f"{database}?system_id=orders&schema=shop&acknowledge=local&retry_for=3"
    store = backend_from_url(url, read_only=True)
    assert isinstance(store, PostgresPersistence)
    settings = store.store.settings
    assert (settings.system_id, settings.schema, settings.acknowledge) == (
        "orders",
        "shop",
        "local",
    )
    assert (settings.retry_for, settings.read_only) == (3.0, True)
    assert conninfo_to_dict(settings.dsn) == conninfo_to_dict(database)
    assert re.fullmatch(r"postgresql://[^@]+\?schema=shop&system_id=orders", store.location)


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (InvalidPolicy, {"acknowledge": "some"}),
        (InvalidPolicy, {"retry_for": -1}),
        (InvalidPolicy, {"statement_timeout": 0}),
        (InvalidSetting, {"system_id": ""}),
        (InvalidSetting, {"schema": "pg_mine"}),
        (InvalidSetting, {"schema": "x" * 64}),
        (InvalidSetting, {"schema": "\n"}),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    error: type[Exception], wrong: dict[str, Any]
) -> None:
    with pytest.raises(error, match=next(iter(wrong))):
        PostgresPersistence("dbname=x", **wrong)


def test_without_psycopg_an_error_names_the_extra_postgres() -> None:
    code = """
import os, sys
import papyra.persistence
assert "psycopg" not in sys.modules
sys.modules["psycopg"] = None
try:
    import papyra.persistence.backends.postgres
except ImportError as error:
    print(type(error).__name__, error)
from papyra.conf import settings
os.environ["PAPYRA_PERSISTENCE"] = "postgresql://h/d"
try:
    settings.resolve_persistence()
except Exception as error:
    print(type(error).__name__, error)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert [line.split()[0] for line in said] == ["MissingExtra", "InvalidEnvironment"]
    assert all("extra 'postgres'" in line and "pip install '.[postgres]'" in line for line in said)


# Reading costs what is read


async def test_no_statement_that_reads_a_page_looks_at_all_rows_or_sorts_them(
    make: Make, schema: str
) -> None:
    async with make() as store:
        await store.append(*(event(f"shop/{n}", revision=1) for n in range(50)), LETTER)
        for _ in range(3):  # from then on, each is prepared
            for newest in (False, True):
                await store.read("event", newest=newest, limit=1)
                await store.read("event", newest=newest, since=1.0, until=2.0)
                await store.read("event", actor="shop/7", newest=newest)
                await store.read("dead_letter", actor="shop/bob", newest=newest)
            await store.read_history("shop/7")
            await store.read_history("shop/7", limit=5)
            await store.store.last_revisions(["shop/7"])
            await store.store.last_seq()
        session = store.store.blocking._session._connection
        assert session is not None
        prepared = session.rows(
            "SELECT name, statement, cardinality(parameter_types) FROM pg_prepared_statements"
        )
        plans = {}
        for name, statement, count in prepared:
            if ".events" in statement or ".dead_letters" in statement:
                if statement.startswith("WITH") or "count(*)" in statement:
                    continue  # an insertion, and what counts the last block
                values = f"({', '.join(['NULL'] * count)})"
                explained = session.rows(f'EXPLAIN EXECUTE "{name}"{values}'.encode())
                plans[statement] = "\n".join(line for (line,) in explained)
    assert len(plans) >= 9
    for statement, plan in plans.items():
        assert "Index" in plan, statement
        assert not re.search("Sort|Seq Scan on (events|dead_letters|audits)|Bitmap", plan), plan
