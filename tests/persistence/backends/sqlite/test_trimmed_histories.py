"""Histories that are trimmed in a database: whatever interrupts it, they add up to the same."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import resource
import signal
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra import ActorSystem
from papyra.exceptions import RecoveryFailed, StoreDamaged, StoreError
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.testing import check_history
from papyra.testing.conformance._fixtures import an_event
from papyra.testing.conformance._histories import a_step
from papyra.testing.conformance._histories import history as history_of
from papyra.testing.conformance._snapshots import save
from tests.conftest import event_loops
from tests.eventsourcing.accounts import Account, Look
from tests.extent import STEP, count
from tests.persistence.backends.trimmed_accounts import (
    ACCOUNTS,
    TRIM,
    Saved,
    fill,
    history,
    looked,
    replayed,
)

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")

#: Bytes of a page, and of one in the log.
PAGE, LOGGED = 4096, 4096 + 24


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.sqlite"


def open_store(path: Path, **options: Any) -> SQLitePersistence:
    return SQLitePersistence(path, **({"synchronous": "off"} | options))


def ask(path: Path, statement: str) -> list[Any]:
    """Return what a program that knows nothing of Papyra is told."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        return database.execute(statement).fetchall()


async def test_accounts_are_the_same_before_and_after_their_histories_are_trimmed(
    path: Path,
) -> None:
    await fill(open_store(path))
    async with open_store(path, read_only=True) as reader:
        told = await reader.compact(TRIM, dry_run=True)
    async with open_store(path) as store:
        assert await store.compact(TRIM, dry_run=True) == told
        assert (await store.scan()).records_scanned == told.records_before
        report = await store.compact(TRIM)
        assert report == told
        assert report.histories is not None
        assert (report.histories.trimmed, report.histories.without_snapshots) == (2, 1)
        assert report.histories.events_removed == 5 + 8
        assert (await store.scan()).is_clean
    # As anybody may see.
    assert ask(path, "SELECT actor, min(revision), count(revision) FROM events GROUP BY actor") == [
        *(("bank/ann", 6, 6), ("bank/ben", 9, 6), ("bank/cat", 1, 2))
    ]
    ((seq, revision, kind, crc, record, state),) = ask(
        path,
        "SELECT seq, revision, type, crc, record, json_extract(record, '$.payload.state.amount') "
        "FROM events WHERE type LIKE 'papyra.%' AND actor = 'bank/ann'",
    )
    assert (revision, kind, state) == (6, "papyra.base", 21)
    assert crc == zlib.crc32(record.encode(), seq)
    assert ask(
        path, "SELECT count(*) FROM snapshots WHERE revision < 6 AND actor <> 'bank/cat'"
    ) == [(0,)]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert await looked(open_store(path)) == ACCOUNTS
    assert await replayed(open_store(path)) == ACCOUNTS
    checked = await check_history(path, Saved, actors="bank/[abc]*")
    assert checked.actors == 3


async def test_snapshots_before_a_base_go_in_the_transaction_that_stores_it(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(*(a_step("a", revision) for revision in range(1, 10)), an_event(1))
        for revision in (3, 5, 8):
            await save(store, revision, keep=9)
        statements: list[str] = []
        run, connection = store.store._thread.run, store.store.blocking._connection
        # Of an older version, which no recovery would use.
        await store.store.save_snapshot("s/a", 2, b"whatever")
        await run(connection.set_trace_callback, statements.append)
        await store.compact(TRIM)
        await run(connection.set_trace_callback, None)
        assert await store.store.snapshot_revisions("s/a") == [3, 5, 8]
    written = [each.split()[0] for each in statements if not each.startswith("SELECT")]
    first, last = written.index("UPDATE"), len(written) - 1 - written[::-1].index("DELETE")
    assert not {"BEGIN", "COMMIT", "ROLLBACK"} & set(written[first:last])


async def test_a_reader_sees_a_history_that_is_trimmed_beside_it(path: Path) -> None:
    await fill(open_store(path))
    async with open_store(path) as store, store.reader() as reader:
        assert len((await reader.read_history("bank/ben")).events) == 14
        await store.compact(TRIM)
        events = (await reader.read_history("bank/ben")).events
        assert [event.revision for event in events] == list(range(9, 15))
        assert events == (await store.read_history("bank/ben")).events


async def test_one_system_is_trimmed_and_not_its_neighbours(path: Path) -> None:
    await fill(open_store(path))
    await fill(open_store(path, system_id="other"))
    async with open_store(path) as store:
        await store.compact(TRIM)
    async with open_store(path, system_id="other") as store:
        assert len(await history(store, "ben")) == 14
        assert (await store.scan()).is_clean
    assert await looked(open_store(path, system_id="other")) == ACCOUNTS


async def test_a_trimmed_history_is_copied_to_a_file_and_back(path: Path, tmp_path: Path) -> None:
    await fill(open_store(path))
    async with open_store(path) as store:
        await store.compact(TRIM)
        records = [record async for record in store.stream("event")]
    copies = [JsonFilePersistence(tmp_path / "copy.ndjson"), open_store(tmp_path / "copy.sqlite")]
    for copy in copies:
        async with copy:
            await copy.restore(*records)
            assert [record async for record in copy.stream("event")] == records
            assert (await copy.scan()).is_clean
        assert await replayed(copy) == ACCOUNTS


# Damage


@pytest.mark.parametrize(
    "change",
    [
        "record = replace(record, '\"amount\":5', '\"amount\":6')",
        "record = '{'",
        "record = x'ff'",
        "crc = 'none'",
    ],
)
async def test_a_damaged_history_is_kept_whole(path: Path, change: str) -> None:
    await fill(open_store(path))
    ask(path, f"UPDATE events SET {change} WHERE actor = 'bank/ann' AND revision = 5")
    async with open_store(path) as store:
        before = ask(path, "SELECT * FROM events")
        for dry_run in (True, False):
            with pytest.raises(StoreDamaged, match="recover the store before trimming"):
                await store.compact(TRIM, dry_run=dry_run)
            assert ask(path, "SELECT * FROM events") == before


async def test_an_event_of_somebody_else_is_not_removed_for_what_its_columns_say(
    path: Path,
) -> None:
    await fill(open_store(path))
    # It is cat's, and has ann's name on it.
    ask(
        path,
        "UPDATE events SET actor = 'bank/ann', revision = 1 "
        "WHERE actor = 'bank/cat' AND revision = 1",
    )
    async with open_store(path) as store:
        for dry_run in (True, False):
            with pytest.raises(StoreDamaged, match="recover the store before trimming"):
                await store.compact(TRIM, dry_run=dry_run)
        assert (await store.recover()).scan.is_clean
        await store.compact(TRIM)
    assert await replayed(open_store(path)) == ACCOUNTS


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("record = replace(record, '21', '22')", "checksum"),
        ("record = '{'", "corrupt"),
        ("type = 'Deposited'", "wrong_fields"),
        ("revision = 7", "wrong_fields"),
    ],
)
async def test_a_damaged_base_is_found(path: Path, change: str, kind: str) -> None:
    await fill(open_store(path))
    async with open_store(path) as store:
        await store.compact(TRIM)
    ask(path, f"UPDATE events SET {change} WHERE type = 'papyra.base' AND actor = 'bank/ann'")
    async with open_store(path) as store:
        found = await store.scan()
        assert kind in [anomaly.kind for anomaly in found.anomalies]
        report = await store.recover()
        if kind == "wrong_fields":
            assert report.scan.is_clean
        else:
            # Nothing else knows what it was, and no snapshot may stand for it: that is said.
            assert {anomaly.kind for anomaly in report.scan.anomalies} == {"history"}
    if kind == "wrong_fields":
        assert await replayed(open_store(path)) == ACCOUNTS
    else:
        async with ActorSystem("bank", persistence=open_store(path)) as system:

            class Unsaved(Account):
                pass

            with pytest.raises(RecoveryFailed, match="revision 1 is missing"):
                await system.spawn(Unsaved, name="ann").ask(Look())


async def test_a_base_that_is_not_there_when_it_is_read_back_changes_nothing(path: Path) -> None:
    await fill(open_store(path))
    # A trigger of somebody else's may do so.
    ask(
        path,
        "CREATE TRIGGER spoil AFTER UPDATE OF record ON events BEGIN UPDATE events "
        "SET record = replace(record, 'base', 'bare') WHERE seq = new.seq AND "
        "record LIKE '%papyra.base%'; END",
    )
    before = ask(path, "SELECT * FROM events")
    async with open_store(path) as store:
        with pytest.raises(StoreError, match="is not there; nothing was changed"):
            await store.compact(TRIM)
        assert ask(path, "SELECT * FROM events") == before
        assert (await store.scan()).is_clean


# Interruptions


async def is_sound(path: Path) -> bool:
    """See that nothing is lost, and that it goes on from there; return whether it was trimmed."""
    assert await replayed(open_store(path)) == ACCOUNTS
    async with open_store(path) as store:
        assert (await store.scan()).is_clean
        kinds = [(await history(store, name))[0][1] == "papyra.base" for name in ("ann", "ben")]
        assert len(set(kinds)) == 1, "it is all or nothing"
        await store.compact(TRIM)
        assert (await history(store, "ann"))[0] == (6, "papyra.base")
        assert (await store.scan()).is_clean
    assert await replayed(open_store(path)) == ACCOUNTS
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    return kinds[0]


def kill_while_it_trims(path: Path, at: int, *, in_a_write: bool) -> int:
    """Trim in a process that is killed at a step; return what it ended with.

    A step is some instructions of SQLite's machine; or a page that goes into the log.
    """
    child = os.fork()
    if not child:
        try:
            anyio.run(_trim_and_die, path, at, in_a_write)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def _trim_and_die(path: Path, at: int, in_a_write: bool) -> None:
    left = at

    def step() -> int:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    async with open_store(path) as store:
        await store.store.claim()
        run, connection = store.store._thread.run, store.store.blocking._connection
        if in_a_write:
            # The kernel ends who writes more than it may, in the middle of what is written.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            end = Path(f"{path}-wal").stat().st_size + at * LOGGED - LOGGED // 2
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (end, end))
        else:
            await run(connection.set_progress_handler, step, 200)
        await store.compact(TRIM)
        os._exit(0)


def lay_out(path: Path, database: bytes, log: bytes = b"") -> None:
    """Write a database and its log into the same files again: a copy would be another store."""
    path.write_bytes(database)
    Path(f"{path}-wal").write_bytes(log)
    Path(f"{path}-shm").unlink(missing_ok=True)


@pytest.mark.parametrize("in_a_write", [False, True])
async def test_a_trimming_that_is_killed_at_any_step_leaves_every_account_as_it_was(
    path: Path, in_a_write: bool
) -> None:
    await fill(open_store(path))
    database = path.read_bytes()
    ended, trimmed = set(), []
    for number in range(1, 2000, 1 if in_a_write else STEP):
        lay_out(path, database)
        kill = functools.partial(kill_while_it_trims, path, number, in_a_write=in_a_write)
        ended.add(code := await anyio.to_thread.run_sync(kill))
        trimmed.append(await is_sound(path))
        if not code:
            break
    assert (trimmed[0], trimmed[-1]) == (False, True)
    assert trimmed == sorted(trimmed)
    assert ended == {0, -signal.SIGXFSZ if in_a_write else -signal.SIGKILL}


async def test_whatever_a_power_cut_leaves_of_the_log_every_account_is_as_it_was(
    path: Path,
) -> None:
    await fill(open_store(path))
    async with open_store(path) as store:
        await store.store.claim()
        await store.compact(TRIM)
        database, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    chance, trimmed = random.Random(5), []
    for number, end in enumerate(range(len(log), 0, -LOGGED // 2)):
        torn = bytearray(log[:end])
        if number % 2 and end > 200:
            torn[chance.randrange(end - 100, end)] ^= 1 << chance.randrange(8)
        lay_out(path, database, bytes(torn))
        trimmed.append(await is_sound(path))
    assert (trimmed[0], trimmed[-1]) == (True, False)
    assert trimmed == sorted(trimmed, reverse=True)


async def test_histories_are_those_of_a_list_whatever_is_trimmed_when(tmp_path: Path) -> None:
    for seed in range(count("PAPYRA_TRIMMINGS", 1, 10)):
        chance, path = random.Random(seed), tmp_path / f"{seed}.sqlite"
        last = dict.fromkeys("abc", 0)
        saved: dict[str, list[int]] = {actor: [] for actor in last}
        first = dict.fromkeys(last, 1)
        store = open_store(path)
        for _ in range(60):
            actor = chance.choice(list(last))
            match chance.randrange(6):
                case 0 | 1 | 2:
                    added = range(last[actor] + 1, last[actor] + chance.randint(2, 120))
                    await store.append(*(a_step(actor, revision) for revision in added))
                    last[actor] = added[-1]
                case 3 if last[actor]:
                    await save(store, last[actor], f"s/{actor}")
                    saved[actor] = sorted({*saved[actor], last[actor]})[-2:]
                case 4:
                    await store.append(an_event(1), an_event(2))  # nothing of a history is shown
                    policy = RetentionPolicy(max_records=1, trim_histories=chance.random() < 0.7)
                    told = await store.compact(policy, dry_run=True)
                    assert await store.compact(policy) == told, seed
                    for each, revisions in saved.items():
                        if policy.trim_histories and len(revisions) == 2:
                            first[each] = revisions[0]
                case 5:
                    await store.aclose()
                    store = open_store(path)
            for each, revision in last.items():
                expected = list(range(first[each], revision + 1))
                assert await history_of(store, each) == expected, seed
            assert (await store.scan()).is_clean, seed
        await store.aclose()
