"""The outbox: events that applications hand over in transactions of their own."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from papyra.exceptions import (
    InvalidRecord,
    InvalidRequest,
    RecordTooLarge,
    StoreError,
    StoreNotReady,
    StoreOutdated,
    StoreReadOnly,
    UnencodablePayload,
    UnsupportedPlatform,
)
from papyra.persistence import PersistedAudit, PersistedEvent, TakeOutbox, outbox
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.backends.store import Batch, Outbox
from papyra.system import ActorSystem
from tests.actors import event
from tests.conftest import event_loops
from tests.guides import BLOCKS
from tests.persistence.backends.sqlite.older_versions import make_version

anyio_backend = event_loops("asyncio", "uvloop", "trio")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite"


def open_store(path: Path, **options: Any) -> SQLitePersistence:
    # No test here pulls the plug.
    return SQLitePersistence(path, **({"synchronous": "off"} | options))


@contextlib.contextmanager
def application(path: Path, **options: Any) -> Iterator[sqlite3.Connection]:
    """Give the connection of an application that keeps its orders in the same database."""
    with contextlib.closing(sqlite3.connect(path, **options)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY)")
        connection.commit()
        yield connection


def order(connection: sqlite3.Connection, *numbers: int) -> None:
    """Note orders, and hand over an event of each, in the transaction that there is."""
    for number in numbers:
        connection.execute("INSERT INTO orders VALUES (?)", (number,))
        outbox.add(connection, event(number))


def put(connection: sqlite3.Connection, record: object, system_id: str = "papyra") -> None:
    """Put anything into the outbox, as another program does."""
    values = (system_id, record)
    connection.execute("INSERT INTO papyra_outbox (system_id, record) VALUES (?, ?)", values)
    connection.commit()


async def numbers(store: Any) -> list[int]:
    return [each.payload["order_id"] async for each in store.stream("event") if is_order(each)]


def is_order(each: PersistedEvent) -> bool:
    return each.event_type == "OrderPlaced"


# What is handed over


async def test_what_an_application_commits_is_appended_once_and_in_its_order(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        with application(path) as connection:
            with connection:
                order(connection, 2, 3)
            with connection:
                outbox.add(connection, event(4), event(5))
            assert connection.execute("SELECT count(*) FROM papyra_outbox").fetchone() == (4,)
            assert await store.take_outbox() == 4
            assert connection.execute("SELECT count(*) FROM papyra_outbox").fetchone() == (0,)
        await store.append(event(6))
        assert await store.take_outbox() == 0
        found = await store.list_events()
        assert [each.payload["order_id"] for each in found] == [1, 2, 3, 4, 5, 6]
        assert [each.seq for each in found] == [1, 2, 3, 4, 5, 6]
        assert msgspec.structs.replace(found[2], seq=None) == event(3)
        assert (await store.scan()).is_clean
        assert (store.metrics.outbox_taken, store.metrics.outbox_refused) == (4, 0)
        assert (store.metrics.records_written, store.metrics.commits) == (6, 3)


async def test_what_is_rolled_back_or_not_committed_yet_is_not_seen(path: Path) -> None:
    async with open_store(path) as store:
        with application(path) as connection:
            order(connection, 1)
            assert await store.take_outbox() == 0
            connection.rollback()
            assert await store.take_outbox() == 0
            order(connection, 2)
            connection.commit()
            assert await store.take_outbox() == 1
        assert await numbers(store) == [2]


async def test_a_system_takes_events_over_by_itself(path: Path) -> None:
    arrived = anyio.Event()

    def look(batch: Batch) -> None:
        if any(each == event(9) for each in batch.records):
            arrived.set()

    async with ActorSystem("shop", persistence=open_store(path)) as system:
        system.backend.watch_commits(look)
        with application(path) as connection, connection:
            order(connection, 9)
        with anyio.fail_after(60):
            await arrived.wait()
        assert await numbers(system.backend) == [9]
        assert system.audit().persistence.outbox_taken == 1


async def test_a_system_takes_over_at_once_what_it_is_asked_for(path: Path) -> None:
    async with ActorSystem("shop", persistence=open_store(path)) as system:
        with application(path) as connection, connection:
            order(connection, *range(2_500))
        await system.backend.take_outbox()
        assert await numbers(system.backend) == list(range(2_500))


async def test_what_waited_while_no_system_ran_is_taken_over_when_one_starts(path: Path) -> None:
    async with open_store(path):
        pass
    with application(path) as connection, connection:
        order(connection, 1, 2)
    async with open_store(path).reader() as reader:
        summary = await reader.summarize()
        assert (summary.outbox_waiting, summary.outbox_refused) == (2, 0)
    async with open_store(path) as store:
        await store.take_outbox()
        assert await numbers(store) == [1, 2]


async def test_each_system_of_a_database_gets_its_own(path: Path) -> None:
    async with open_store(path) as one, open_store(path, system_id="other") as other:
        with application(path) as connection, connection:
            outbox.add(connection, event(1), system_id="other")
            outbox.add(connection, event(2))
            outbox.add(connection, event(3), system_id="other")
        assert [await one.take_outbox(), await other.take_outbox()] == [1, 2]
        assert [await numbers(one), await numbers(other)] == [[2], [1, 3]]


async def test_a_large_outbox_is_taken_over_in_commits_of_a_bounded_size(path: Path) -> None:
    payload = "x" * 1_000_000
    async with open_store(path) as store:
        with application(path) as connection, connection:
            for number in range(20):
                changed = msgspec.structs.replace(event(number), payload=[number, payload])
                outbox.add(connection, changed)
        reply = await store.execute(TakeOutbox())
        assert 0 < reply.count < 20
        assert reply.more
        await store.take_outbox()
        assert [each.payload[0] for each in await store.list_events()] == list(range(20))


async def test_an_event_keeps_every_value_and_its_metadata(path: Path) -> None:
    given = msgspec.structs.replace(
        event(1),
        payload={"z": 2**80, "a": "nul \0, \U0001f600", "m": [1e300, None, -(10**400)]},
        metadata={"by": "zoë"},
        event_version=3,
        seq=77,
    )
    async with open_store(path) as store:
        with application(path) as connection, connection:
            outbox.add(connection, given)
        await store.take_outbox()
        assert await store.list_events() == [msgspec.structs.replace(given, seq=1)]


async def test_a_store_without_an_outbox_has_nothing_to_take_over() -> None:
    assert await InMemoryPersistence().take_outbox() == 0


async def test_a_reader_takes_nothing_over(path: Path) -> None:
    async with open_store(path) as store:
        with application(path) as connection, connection:
            order(connection, 1)
        async with store.reader() as reader:
            with pytest.raises(StoreReadOnly):
                await reader.take_outbox()
        assert await store.take_outbox() == 1


async def test_what_an_application_takes_back_meanwhile_is_not_appended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(path) as store:
        assert isinstance(store.store, Outbox)
        take_over = store.store.take_over
        with application(path) as connection:
            with connection:
                order(connection, 1, 2)

            async def take_back_first(*args: Any) -> None:
                with connection:
                    connection.execute("DELETE FROM papyra_outbox WHERE id = 2")
                    put(connection, json.dumps(msgspec.to_builtins(event(3))))
                await take_over(*args)

            monkeypatch.setattr(store.store, "take_over", take_back_first)
            with pytest.raises(StoreError, match="changed while it was read"):
                await store.take_outbox()
            monkeypatch.undo()
            assert await numbers(store) == []
            assert await store.take_outbox() == 2
        assert await numbers(store) == [1, 3]


async def test_an_application_that_keeps_the_database_locked_holds_things_up_and_loses_nothing(
    path: Path,
) -> None:
    async with open_store(path, busy_timeout=0.05) as store:
        with application(path, isolation_level=None) as connection:
            connection.execute("BEGIN IMMEDIATE")
            order(connection, 1)
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            order(connection, 2)
            with pytest.raises(StoreNotReady, match="locked"):
                await store.take_outbox()
            connection.execute("COMMIT")
            assert await store.take_outbox() == 2
        assert await numbers(store) == [1, 2]


# What is no event


def encoded(**changes: Any) -> str:
    return json.dumps(msgspec.to_builtins(event(0)) | changes)


BAD = [
    "",
    "{",
    "dear nobody",
    b"\xff\xfe",
    b"",
    17,
    "[]",
    "[" * 10_000,
    encoded(event_type="papyra.base"),
    encoded(event_type="papyra.event_skipped", revision=1),
    encoded(revision=1),
    encoded(timestamp="noon"),
    encoded(payload=0).replace('"payload": 0', '"payload": 1e999'),
    encoded(payload=0).replace('"payload": 0', '"payload": ' + "[" * 200 + "]" * 200),
    encoded(kind="audit"),
    json.dumps(msgspec.to_builtins(PersistedAudit("shop", {}, 1.0))),
    encoded(metadata={"a": "x" * 20_000}),
    encoded(event_type="papyra.\ud800"),
]


async def test_what_is_no_event_is_set_aside_and_named_and_blocks_nobody(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store(path) as store:
        with application(path) as connection:
            for number, bad in enumerate(BAD):
                with connection:
                    order(connection, number)
                put(connection, bad)
            report = await store.scan()
            waiting = [each.location for each in report.anomalies if each.kind == "outbox"]
            assert waiting == ["papyra_outbox"] * len(BAD)
            with caplog.at_level(logging.ERROR, "papyra"):
                assert await store.take_outbox() == len(BAD)
            assert await numbers(store) == list(range(len(BAD)))
            query = "SELECT CAST(record AS BLOB), reason, refused_at FROM papyra_outbox_refused"
            refused = connection.execute(f"{query} ORDER BY id").fetchall()
        kept = [each if isinstance(each, bytes) else str(each).encode() for each in BAD]
        assert [record for record, _, _ in refused] == kept
        assert all(reason and when > 0 for _, reason, when in refused)
        assert "set aside" in caplog.text
        assert (store.metrics.outbox_taken, store.metrics.outbox_refused) == (len(BAD), len(BAD))
        report = await store.scan()
        assert {each.kind for each in report.anomalies} == {"outbox"}
        assert [each.location for each in report.anomalies] == ["papyra_outbox_refused"] * len(BAD)
        summary = await store.summarize()
        assert (summary.outbox_waiting, summary.outbox_refused) == (0, len(BAD))
    # It is no reason not to start.
    async with ActorSystem("shop", persistence=open_store(path)):
        pass


async def test_what_was_set_aside_can_be_put_right_and_handed_over_again(path: Path) -> None:
    async with open_store(path) as store:
        with application(path) as connection:
            put(connection, encoded(event_type="papyra.order"))
            await store.take_outbox()
            with connection:
                connection.execute(
                    "INSERT INTO papyra_outbox (system_id, record) "
                    "SELECT system_id, json_set(record, '$.event_type', 'Ordered') "
                    "FROM papyra_outbox_refused"
                )
                connection.execute("DELETE FROM papyra_outbox_refused")
            assert await store.take_outbox() == 1
        assert [each.event_type for each in await store.list_events()] == ["Ordered"]
        assert (await store.scan()).is_clean


async def test_the_sql_of_the_guide_hands_an_event_over(path: Path) -> None:
    statements = [block.code for block in BLOCKS if block.language == "sql"]
    async with open_store(path) as store:
        with application(path) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        assert await store.take_outbox() == len(statements) == 1
        (found,) = await store.list_events()
        assert (found.event_type, found.payload) == ("Ordered", {"number": 7})


async def test_a_trigger_hands_an_event_over(path: Path) -> None:
    async with open_store(path) as store:
        with application(path) as connection, connection:
            connection.execute("""
                CREATE TRIGGER ordered AFTER INSERT ON orders BEGIN
                    INSERT INTO papyra_outbox (system_id, record) VALUES ('papyra', json_object(
                        'kind', 'event', 'system_id', 'shop', 'actor_address', 'shop/orders',
                        'event_type', 'Ordered', 'payload', json_object('id', NEW.id),
                        'timestamp', 1.5));
                END
            """)
            connection.execute("INSERT INTO orders VALUES (5)")
        await store.take_outbox()
        assert await store.list_events() == [
            PersistedEvent("shop", "shop/orders", "Ordered", {"id": 5}, 1.5, seq=1)
        ]


# What is refused where it is handed over


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    anyio.run(open_store(path).migrate)
    with application(path) as connection:
        yield connection


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("OrderPlaced", InvalidRecord),
        (PersistedAudit("shop", {}, 1.0), InvalidRecord),
        (msgspec.structs.replace(event(1), revision=1), InvalidRecord),
        (msgspec.structs.replace(event(1), event_type="papyra.base"), InvalidRecord),
        (msgspec.structs.replace(event(1), event_type=7), InvalidRecord),
        (msgspec.structs.replace(event(1), payload=float("nan")), UnencodablePayload),
        (msgspec.structs.replace(event(1), payload=["x" * 1024**2] * 65), RecordTooLarge),
    ],
    ids=["text", "audit", "revision", "reserved", "type", "nan", "large"],
)
def test_an_event_that_could_not_be_appended_is_refused(
    connection: sqlite3.Connection, given: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        outbox.add(connection, event(1), given)
    connection.commit()
    assert connection.execute("SELECT count(*) FROM papyra_outbox").fetchone() == (0,)


def test_a_connection_that_commits_each_statement_by_itself_is_refused(
    connection: sqlite3.Connection,
) -> None:
    connection.isolation_level = None
    with pytest.raises(InvalidRequest, match="begin one"):
        outbox.add(connection, event(1))
    connection.execute("BEGIN")
    outbox.add(connection, event(1))
    connection.execute("ROLLBACK")
    assert connection.execute("SELECT count(*) FROM papyra_outbox").fetchone() == (0,)


def test_what_is_no_connection_of_sqlite3_is_refused(connection: sqlite3.Connection) -> None:
    for wrong in (None, "shop.sqlite", connection.cursor()):
        with pytest.raises(InvalidRequest, match="connection of sqlite3 or psycopg"):
            outbox.add(wrong, event(1))


def test_rows_and_text_may_be_whatever_the_application_has_them_be(
    connection: sqlite3.Connection,
) -> None:
    connection.text_factory = bytes
    connection.row_factory = lambda cursor, row: {"row": row}
    with connection:
        outbox.add(connection, event(1))
    assert connection.execute("SELECT count(*) FROM papyra_outbox").fetchone() == {"row": (1,)}


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [
        *(("3.40.1", True), ("3.44.5", True), ("3.44.6", False), ("3.45.0", True)),
        *(("3.50.6", True), ("3.50.7", False), ("3.51.2", True), ("3.51.3", False)),
        *(("3.52.0", False), ("4.0.0", False)),
    ],
)
def test_an_sqlite_that_may_damage_the_log_is_refused_unless_the_connection_never_checkpoints(
    connection: sqlite3.Connection, version: str, is_refused: bool
) -> None:
    connection.create_function("sqlite_version", 0, lambda: version)
    connection.execute("PRAGMA wal_autocheckpoint = 1000")
    if is_refused:
        with pytest.raises(UnsupportedPlatform, match=f"SQLite {version} .*wal_autocheckpoint"):
            outbox.add(connection, event(1))
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    outbox.add(connection, event(1))
    connection.commit()
    assert connection.execute("SELECT count(*) FROM papyra_outbox").fetchone() == (1,)


def test_a_system_that_is_not_there_is_named(connection: sqlite3.Connection) -> None:
    with pytest.raises(StoreError, match="no system 'shpo'"):
        outbox.add(connection, event(1), system_id="shpo")


def test_a_database_without_an_outbox_is_named(tmp_path: Path) -> None:
    make_version(1, tmp_path / "old.sqlite")
    for name, error in (("old.sqlite", StoreOutdated), ("none.sqlite", StoreError)):
        with application(tmp_path / name) as connection:
            with pytest.raises(error, match="papyra migrate"):
                outbox.add(connection, event(1))
            # Its transaction goes on.
            connection.execute("INSERT INTO orders VALUES (1)")
            connection.commit()


async def test_a_database_that_is_attached_to_another_is_not_the_applications_own(
    path: Path, tmp_path: Path
) -> None:
    """A commit to two files with write-ahead logs is not one commit."""
    async with open_store(path):
        pass
    with application(tmp_path / "app.sqlite") as connection:
        connection.execute("ATTACH ? AS papyra", (str(path),))
        with pytest.raises(StoreError, match="no tables"):
            outbox.add(connection, event(1))


async def test_tables_made_by_a_migration_take_events_before_any_system_has_run(
    path: Path,
) -> None:
    await open_store(path).migrate()
    with application(path) as connection, connection:
        order(connection, 1)
    async with open_store(path) as store:
        assert await store.take_outbox() == 1


# What a recovery does about it


async def test_a_recovery_that_writes_everything_anew_keeps_what_waits(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(*map(event, range(2_000)))
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            outbox.add(connection, event(2_000))
            put(connection, "{")
        await store.take_outbox()
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            outbox.add(connection, event(2_001))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'events_by_actor'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xa5" * size)
    async with open_store(path) as store:
        report = await store.recover()
        assert [each.kind for each in report.scan.anomalies] == ["outbox"]
        assert await store.take_outbox() == 1
        assert await numbers(store) == list(range(2_002))
        assert (await store.summarize()).outbox_refused == 1
