"""The tables of an SQLite store, as people read them, and what they are protected from."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from papyra.conf import backend_from_url
from papyra.exceptions import (
    BackendInUse,
    InvalidPolicy,
    InvalidSetting,
    InvalidStoreURL,
    StoreError,
    StoreFenced,
    StoreFull,
    StoreMoved,
    StoreNotReady,
    StoreNotWritable,
    StoreReadOnly,
    StoreWrongType,
    UnsupportedPlatform,
)
from papyra.persistence import PersistedAudit, PersistedDeadLetter, codec
from papyra.persistence.backends import registry
from papyra.persistence.backends._sql.blocks import BLOCK
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.actors import event
from tests.conftest import event_loops
from tests.persistence.backends.files.test_full_disk import a_small_disk

anyio_backend = event_loops("asyncio")

AUDIT = PersistedAudit("shop", {"actors": 1}, 5.0)
LETTER = PersistedDeadLetter("shop", "shop/a", "str", "hello", False, 6.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite"


def open_store(path: Path, **options: Any) -> SQLitePersistence:
    # No test here pulls the plug.
    return SQLitePersistence(path, **({"synchronous": "off"} | options))


@contextlib.contextmanager
def a_stranger(path: Path) -> Iterator[sqlite3.Connection]:
    """Give the connection of a program that knows nothing of Papyra."""
    with contextlib.closing(sqlite3.connect(path, timeout=0.1)) as connection, connection:
        yield connection


async def numbers(store: SQLitePersistence) -> list[int]:
    return [each.payload["order_id"] async for each in store.stream("event")]


# What people read


async def test_a_stranger_reads_records_as_rows(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(msgspec.structs.replace(event(1), revision=1), AUDIT, LETTER)
    with a_stranger(path) as database:
        rows = database.execute("SELECT * FROM events").fetchall()
        columns = database.execute("SELECT * FROM events").description
        names = "system_id seq actor type revision timestamp crc record"
        assert [name for name, *_ in columns] == names.split()
        record = rows[0][-1]
        crc = zlib.crc32(record.encode(), 1)
        row = ("papyra", 1, "shop/order-1", "OrderPlaced", 1, 1700000001.0, crc, record)
        assert rows == [row]
        assert json.loads(record)["payload"] == {"order_id": 1}
        query = "SELECT json_extract(record, '$.payload.actors') FROM audits WHERE seq = 2"
        assert database.execute(query).fetchall() == [(1,)]
        query = "SELECT target, message_type, timestamp FROM dead_letters"
        assert database.execute(query).fetchall() == [("shop/a", "str", 6.0)]


async def test_a_database_holds_every_value_that_json_has(path: Path) -> None:
    payload = {"z": 2**80, "a": "nul \0, newline \n, \U0001f600", "m": [1e300, None, -(10**400)]}
    async with open_store(path) as store:
        await store.append(msgspec.structs.replace(event(1), payload=payload))
        found = await store.read("event")
        assert found.records[0].payload == payload
        assert list(found.records[0].payload) == ["z", "a", "m"]
    with a_stranger(path) as database:
        query = "SELECT json_extract(record, '$.payload') FROM events"
        (text,) = database.execute(query).fetchone()
        assert json.loads(text) == payload
        query = "SELECT typeof(record), json_extract(record, '$.payload.m[0]') FROM events"
        assert database.execute(query).fetchone() == ("text", 1e300)


async def test_a_record_is_kept_byte_for_byte(path: Path) -> None:
    records = [event(number) for number in range(1, 4)]
    async with open_store(path) as store:
        await store.append(*records)
    with a_stranger(path) as database:
        rows = database.execute("SELECT CAST(record AS BLOB) FROM events ORDER BY seq").fetchall()
    assert [encoded for (encoded,) in rows] == codec.encode(records)


async def test_one_database_holds_any_number_of_systems(path: Path) -> None:
    names = ("papyra", "shop", "bänk/1 %")
    async with contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(open_store(path, system_id=name)) for name in names
        ]
        for number, store in enumerate(stores, 1):
            await store.append(*map(event, range(number)))
        for number, store in enumerate(stores, 1):
            assert await numbers(store) == list(range(number))
            assert store.last_seq == number
            assert (await store.summarize()).total_records == number
        assert len({await store.store_id() for store in stores}) == 3
        await stores[2].compact(RetentionPolicy(max_records=1))
        assert [len(await numbers(store)) for store in stores] == [1, 2, 1]
    with a_stranger(path) as database:
        rows = database.execute("SELECT system_id, last_seq FROM systems ORDER BY last_seq")
        assert rows.fetchall() == [("papyra", 1), ("shop", 2), ("bänk/1 %", 3)]


async def test_a_second_system_is_warned_of_where_sqlite_may_damage_the_log(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, warnings in (((3, 51, 2), 1), ((3, 51, 3), 0)):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        caplog.clear()
        async with open_store(path), open_store(path, system_id="shop"):
            said = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert len([each for each in said if "at once" in each.getMessage()]) >= warnings
        assert bool(said) == bool(warnings)


# Reading costs what is read


@pytest.mark.parametrize("newest", [False, True])
async def test_reads_by_time_and_limits_agree_across_many_blocks(path: Path, newest: bool) -> None:
    count = 3 * BLOCK + 100
    records = [
        msgspec.structs.replace(event(number), timestamp=float(number // 7 * 7 - number % 7))
        for number in range(1, count + 1)
    ]
    sizes = list(map(len, codec.encode(records)))
    cases: list[dict[str, Any]] = [
        {"max_records": BLOCK + 5},
        {"max_total_bytes": sum(sizes[-2 * BLOCK - 3 :])},
        {"max_age_seconds": float(BLOCK)},
        {},
    ]
    since, until = 2.0 * BLOCK, 2.5 * BLOCK
    requests: list[dict[str, Any]] = [{}, {"since": since, "until": until}]
    for limits in cases:
        async with open_store(
            path, retention_policy=RetentionPolicy(**limits), clock=lambda: float(count)
        ) as store:
            if not store.last_seq:
                await store.append(*records)
            expected = records[-(limits.get("max_records", count)) :]
            if "max_total_bytes" in limits:
                expected = records[-2 * BLOCK - 3 :]
            oldest = count - limits.get("max_age_seconds", 10 * count)
            expected = [each for each in expected if each.timestamp >= oldest]
            for request in requests:
                page = await store.read("event", newest=newest, **request)
                shown = [
                    each.payload["order_id"]
                    for each in expected
                    if not request or since <= each.timestamp <= until
                ]
                assert [each.payload["order_id"] for each in page.records] == shown
            summary = await store.summarize()
            assert summary.records["event"] == count
            assert summary.record_bytes["event"] == sum(sizes)
            assert summary.newest == max(each.timestamp for each in records)


async def test_no_read_of_a_page_looks_at_all_rows(path: Path) -> None:
    """The plan of each query begins at an index, and sorts nothing."""
    plans: list[str] = []
    async with open_store(path) as store:
        await store.append(*map(event, range(1, 50)))
        await store.append(LETTER)
        connection = store.store.blocking._connection
        statements: list[str] = []
        thread = store.store._thread
        await thread.run(connection.set_trace_callback, statements.append)
        await store.read("event", newest=True, limit=1)
        await store.read("event", actor="shop/order-7", since=1.0, newest=True)
        await store.read("dead_letter", actor="shop/a", after=3)
        await store.read_history("shop/order-7", after_revision=3)
        await store.store.last_revisions(["shop/order-7"])
        await store.read("event", since=1.0, until=2.0)
        await thread.run(connection.set_trace_callback, None)
    with a_stranger(path) as database:
        for statement in statements:
            if statement.startswith("SELECT") and "GROUP BY" not in statement:
                plan = database.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                plans += [str(step[3]) for step in plan]
    assert len(plans) >= 7
    # What a subquery finds is not looked for again.
    steps = [plan for plan in plans if "SUBQUERY" not in plan.upper()]
    assert [step for step in steps if not step.startswith("SEARCH")] == []


# Writers and readers


async def test_a_second_writer_is_kept_out_by_whatever_name(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    async with open_store(path) as store:
        await store.append(event(1))
        for name in (path, link):
            with pytest.raises(BackendInUse, match=f"process {os.getpid()}"):
                await open_store(name).append(event(2))
        assert (await store.summarize()).writer == f"process {os.getpid()} on {os.uname().nodename}"
    async with open_store(link) as store:
        assert (await store.append(event(2))).first_seq == 2


async def test_a_writer_that_got_past_the_lock_fences_the_one_before(path: Path) -> None:
    async with open_store(path) as first:
        await first.append(event(1))
        path.with_name("shop.sqlite.lock").unlink()
        async with open_store(path) as second:
            # Before the second has written, nothing is taken over.
            await first.append(event(2))
            await second.append(event(3))
            for _ in range(2):
                with pytest.raises(StoreFenced):
                    await first.append(event(0))
            await second.append(event(4))
            assert await numbers(first) == await numbers(second) == [1, 2, 3, 4]


async def test_a_paused_writer_is_fenced_before_its_successor_has_written(path: Path) -> None:
    async with open_store(path) as first:
        await first.append(event(1))
        path.with_name("shop.sqlite.lock").unlink()
        async with open_store(path) as second:
            assert await second.store.claim() == 1
            with pytest.raises(StoreFenced):
                await first.append(event(0))
            assert (await second.append(event(2))).first_seq == 2


async def test_a_reader_sees_what_is_committed_and_may_not_write(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        async with store.reader() as reader:
            assert await numbers(reader) == [1]
            await store.append(event(2))
            assert await numbers(reader) == [1, 2]
            assert await reader.store_id() == await store.store_id()
            with pytest.raises(StoreReadOnly):
                await reader.append(event(3))
            for verb in (reader.recover, reader.compact):
                with pytest.raises(StoreReadOnly):
                    await verb()
            assert (await reader.scan()).is_clean
        await store.append(event(3))


async def test_a_reader_does_not_hold_a_checkpoint_back(path: Path) -> None:
    async with open_store(path) as store, store.reader() as reader:
        await store.append(*map(event, range(1, 30)))
        await reader.read("event", limit=1)
        await reader.read_history("shop/order-1", limit=1)
        with a_stranger(path) as database:
            busy, _, _ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy


async def test_a_reader_says_that_there_is_nothing(path: Path) -> None:
    with pytest.raises(StoreError, match="FileNotFoundError"):
        await open_store(path, read_only=True).read("event")
    assert not path.exists()
    async with open_store(path):
        pass
    with pytest.raises(StoreError, match="no system 'other'; it holds 'papyra'"):
        await open_store(path, read_only=True, system_id="other").read("event")


async def test_a_copy_of_a_database_is_another_store(path: Path, tmp_path: Path) -> None:
    async with open_store(path) as store:
        first = await store.store_id()
    async with open_store(path) as store:
        assert await store.store_id() == first
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    async with open_store(copy, read_only=True) as reader:
        assert await reader.store_id() is None
    async with open_store(copy) as store:
        second = await store.store_id()
        assert second not in {None, first}
    async with open_store(copy) as store:
        assert await store.store_id() == second


# What a database, and its file, may be


async def test_another_program_that_locks_the_database_is_waited_for_and_named(path: Path) -> None:
    async with open_store(path, busy_timeout=0.2) as store:
        await store.append(event(1))
        with a_stranger(path) as database:
            database.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreNotReady, match="another program has it locked"):
                await store.append(event(2))
            assert await numbers(store) == [1]
            database.rollback()
        assert (await store.append(event(2))).first_seq == 2
        assert await numbers(store) == [1, 2]


async def test_a_full_database_takes_nothing_and_goes_on_once_there_is_room(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        run, connection = store.store._thread.run, store.store.blocking._connection
        (pages,) = await run(lambda: connection.execute("PRAGMA page_count").fetchone())
        await run(lambda: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        for _ in range(2):
            with pytest.raises(StoreFull, match="full"):
                await store.append(*map(event, range(500)))
            assert await numbers(store) == [1]
        await run(lambda: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
        assert (await store.append(event(2))).first_seq == 2
        assert (await store.scan()).is_clean


async def test_a_full_disk_takes_nothing_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "disk") as free:
        path = tmp_path / "disk" / "shop.sqlite"
        store = open_store(path, synchronous="full")
        await store.append(event(1))
        stored = 1
        refused = 0
        while refused < 3:
            try:
                await store.append(*(event(stored + 1 + each) for each in range(50)))
                stored += 50
            except StoreFull:
                refused += 1
        assert await numbers(store) == list(range(1, stored + 1))
        free()
        assert (await store.append(event(stored + 1))).first_seq == stored + 1
        assert await numbers(store) == list(range(1, stored + 2))
        await store.aclose()


@pytest.mark.parametrize("make", ["text", "directory", "hard link", "tables of others"])
async def test_what_is_no_database_of_ours_is_refused_and_left_alone(path: Path, make: str) -> None:
    errors = {
        "text": (StoreWrongType, "no SQLite database"),
        "directory": (StoreWrongType, "is a directory"),
        "hard link": (StoreError, "2 hard links"),
        "tables of others": (StoreWrongType, "events"),
    }
    if make == "text":
        path.write_text("this is a letter, and a long one, to nobody in particular\n" * 20)
    elif make == "directory":
        path.mkdir()
    elif make == "hard link":
        async with open_store(path):
            pass
        path.with_name("other.sqlite").hardlink_to(path)
    else:
        with a_stranger(path) as database:
            database.execute("CREATE TABLE events (what TEXT)")
    before = path.read_bytes() if path.is_file() else b""
    raised, match = errors[make]
    with pytest.raises(raised, match=match):
        await open_store(path).append(event(1))
    if make == "tables of others":
        with a_stranger(path) as database:
            names = database.execute("SELECT name FROM sqlite_master").fetchall()
        assert names == [("events",)]
    elif path.is_file():
        assert path.read_bytes() == before


async def test_a_database_may_hold_tables_of_others_beside_ours(path: Path) -> None:
    with a_stranger(path) as database:
        database.execute("CREATE TABLE customers (name TEXT)")
        database.execute("INSERT INTO customers VALUES ('ann')")
    async with open_store(path) as store:
        await store.append(event(1))
        assert (await store.scan()).is_clean
    with a_stranger(path) as database:
        assert database.execute("SELECT name FROM customers").fetchall() == [("ann",)]


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_newer_schema_is_refused_by_its_version(path: Path, read_only: bool) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
    with a_stranger(path) as database:
        database.execute("UPDATE papyra_schema SET version = 7")
    with pytest.raises(StoreError, match="of version 7, and this Papyra knows version 3"):
        await open_store(path, read_only=read_only).read("event")


async def test_a_database_that_says_it_is_read_only_is_named(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        run, connection = store.store._thread.run, store.store.blocking._connection
        await run(lambda: connection.execute("PRAGMA query_only = ON"))
        with pytest.raises(StoreNotWritable, match="may not write"):
            await store.append(event(2))
        await run(lambda: connection.execute("PRAGMA query_only = OFF"))
        assert (await store.append(event(2))).first_seq == 2


async def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        await open_store(tmp_path / "nowhere" / "shop.sqlite").append(event(1))


async def test_nothing_is_stored_once_the_file_has_another_name(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        moved = path.with_name("moved.sqlite")
        path.rename(moved)
        for _ in range(2):
            with pytest.raises(StoreMoved, match="renamed, removed or replaced"):
                await store.append(event(2))
        moved.rename(path)
        assert (await store.append(event(2))).first_seq == 2
    async with open_store(path) as store:
        assert await numbers(store) == [1, 2]


async def test_nothing_is_stored_once_the_log_is_gone_and_nothing_was_lost(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        path.with_name("shop.sqlite-wal").unlink()
        with pytest.raises(StoreMoved, match="and its log"):
            await store.append(event(2))
    async with open_store(path) as store:
        assert (await store.append(event(2))).first_seq == 2
        assert await numbers(store) == [1, 2]


async def test_a_relative_path_does_not_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = open_store(Path("shop.sqlite"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with store:
        await store.append(event(1))
    assert (tmp_path / "shop.sqlite").exists()


async def test_a_name_with_marks_of_a_url_is_a_name(tmp_path: Path) -> None:
    for name in ("a?mode=memory", "b#c", "%2e", "ünd"):
        async with open_store(tmp_path / name) as store:
            await store.append(event(1))
        assert (tmp_path / name).is_file()
    assert len(list(tmp_path.glob("*.lock"))) == 4


@pytest.mark.parametrize("synchronous", ["off", "normal", "full", "extra"])
async def test_every_setting_of_synchronous_is_the_databases_own(
    path: Path, synchronous: Any
) -> None:
    async with SQLitePersistence(path, synchronous=synchronous) as store:
        await store.append(event(1))
        await store.flush()
        run, connection = store.store._thread.run, store.store.blocking._connection
        (set_to,) = await run(lambda: connection.execute("PRAGMA synchronous").fetchone())
    assert set_to == ["off", "normal", "full", "extra"].index(synchronous)


def test_the_default_syncs_each_commit(path: Path) -> None:
    assert SQLitePersistence(path).store.synchronous == "full"


def test_settings_that_make_no_sense_are_refused(path: Path) -> None:
    wrong: dict[str, Any]
    for wrong in ({"synchronous": "some"}, {"busy_timeout": 0}, {"call_timeout": -1.0}):
        with pytest.raises(InvalidPolicy, match=next(iter(wrong))):
            SQLitePersistence(path, **wrong)
    for system_id in ("", "x" * 51, "a\nb", 5):
        with pytest.raises(InvalidSetting, match="system_id"):
            SQLitePersistence(path, system_id=system_id)  # type: ignore[arg-type]


def test_an_sqlite_that_is_too_old_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 14, 2))
    with pytest.raises(UnsupportedPlatform, match=r"needs 3\.15"):
        SQLitePersistence(path)


async def test_a_url_names_a_database_and_a_system(path: Path) -> None:
    backend = backend_from_url(f"sqlite://{path}?system_id=shop&synchronous=off&busy_timeout=2")
    assert isinstance(backend, SQLitePersistence)
    assert (backend.store.system_id, backend.store.busy_timeout) == ("shop", 2.0)
    for wrong in ("sqlite:", "sqlite:a?speed=2", "sqlite:a?synchronous=some", "sqlite://host/a"):
        with pytest.raises(InvalidStoreURL):
            backend_from_url(wrong)


async def test_a_path_is_a_database_by_its_head_or_by_its_name(tmp_path: Path) -> None:
    named, unnamed, lines = tmp_path / "a.sqlite", tmp_path / "b", tmp_path / "c.db"
    assert isinstance(registry.backend_at(str(named)), SQLitePersistence)
    async with open_store(unnamed) as store:
        # Looking at a file that is open would give up the locks that SQLite has on it.
        assert isinstance(registry.backend_at(str(unnamed)), SQLitePersistence)
        await store.append(event(1))
    assert isinstance(registry.backend_at(str(unnamed)), SQLitePersistence)
    async with JsonFilePersistence(lines) as lines_store:
        await lines_store.append(event(1))
    assert isinstance(registry.backend_at(str(lines)), JsonFilePersistence)
    (tmp_path / "d.sqlite").mkdir()
    assert not isinstance(registry.backend_at(str(tmp_path / "d.sqlite")), SQLitePersistence)


async def test_restored_records_with_gaps_stay_where_they_were(path: Path) -> None:
    seqs = [1, 2, 5, 1023, 1024, 1025, 5000, 10**14 - 9]
    records = [msgspec.structs.replace(event(seq), seq=seq) for seq in seqs]
    async with open_store(path, synchronous="full") as store:
        await store.restore(*records)
        assert await numbers(store) == seqs
        assert (await store.read("event", since=0.0)).records == tuple(records)
        summary = await store.summarize()
        assert (summary.total_records, summary.last_seq) == (8, 10**14 - 9)
        assert (await store.scan()).is_clean


async def test_a_position_that_was_lost_to_damage_is_not_given_again(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(*map(event, range(1, 6)))
    with a_stranger(path) as database:
        database.execute("UPDATE systems SET last_seq = 2")
    async with open_store(path) as store:
        assert (await store.append(event(6))).first_seq == 6
        assert await numbers(store) == [1, 2, 3, 4, 5, 6]


async def test_an_address_that_no_text_can_be_is_that_of_nobody(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        assert (await store.read("event", actor="\ud800")).records == ()
        assert (await store.read_history("\ud800")).events == ()


async def test_a_claim_that_could_not_be_committed_is_made_again(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        run, connection = store.store._thread.run, store.store.blocking._connection

        def deny(action: int, what: str | None, *_: object) -> int:
            is_commit = action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT"
            return sqlite3.SQLITE_DENY if is_commit else sqlite3.SQLITE_OK

        await run(connection.set_authorizer, deny)
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.append(event(2))
        await run(connection.set_authorizer, None)
        assert (await store.append(event(2))).first_seq == 2


async def test_a_flush_writes_to_the_log_what_a_reader_keeps_out_of_the_database(
    path: Path,
) -> None:
    """A sync of the log comes with a write to it, and a checkpoint does nothing beside a reader."""
    async with open_store(path, synchronous="normal") as store:
        await store.append(event(1))
        log = path.with_name("shop.sqlite-wal")
        before = log.read_bytes()
        await store.flush()
        assert log.read_bytes() != before
