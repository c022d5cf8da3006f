"""Tables of an older version: refused, looked at, and brought to the version of today."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from papyra.exceptions import (
    BackendInUse,
    StoreOutdated,
    StoreReadOnly,
    StoreTooNew,
    StoreWrongType,
)
from papyra.persistence import MigrationReport
from papyra.persistence.backends._sqlite.migrations import MIGRATIONS, VERSION
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.system import ActorSystem
from tests.actors import event
from tests.conftest import event_loops
from tests.extent import STEP, some
from tests.persistence.backends.sqlite.older_versions import make_version, schema_of

anyio_backend = event_loops("asyncio", "uvloop", "trio")

ROOT = Path(__file__).parents[4]
#: What version 1 holds of the system ``papyra``.
POSITIONS = [1, 2, 3, 4, 5, 6]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.sqlite"


@pytest.fixture
def old(path: Path) -> Path:
    make_version(1, path)
    return path


def open_store(path: Path, **options: Any) -> SQLitePersistence:
    return SQLitePersistence(path, **({"synchronous": "off"} | options))


async def contents(store: PersistenceBackend) -> list[Any]:
    """Return everything that a store of version 1 can hold."""
    records = [
        record for kind in ("event", "audit", "dead_letter") async for record in store.stream(kind)
    ]
    history = await store.read_history("bank/ann")
    snapshot = await store.load_snapshot("bank/ann")
    return [records, history, snapshot, await store.store_id(), store.last_seq]


STEPS = (
    "make the tables of records, snapshots and systems",
    "add the tables of the outbox, which are empty",
    "add the table of positions, which is empty",
)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_store_of_an_older_version_is_migrated_and_keeps_everything(
    path: Path, version: int
) -> None:
    make_version(version, path)
    async with open_store(path, read_only=True) as store:
        before = await contents(store)
    assert before[2].snapshot.revision == 3
    report = await open_store(path).migrate()
    assert report == MigrationReport("sqlite", True, version, 3, STEPS[version:])
    async with open_store(path) as store, open_store(path, system_id="shop") as shop:
        assert await contents(store) == before
        assert await store.save_position("balances", b"7", None)
        assert [record.seq for record in before[0]] == POSITIONS
        assert (await store.scan()).is_clean
        assert (await store.append(event(1))).first_seq == 7
        assert await shop.list_positions() == []
        assert [each.payload for each in await shop.list_events()] == [[2**70]]


async def test_what_waits_in_an_outbox_outlives_a_migration(path: Path) -> None:
    make_version(2, path)
    await open_store(path).migrate()
    async with open_store(path) as store:
        assert (await store.summarize()).outbox_waiting == 1
        assert await store.take_outbox() == 1
        (*_, last) = await store.list_events()
        assert (last.actor_address, last.payload) == ("bank/zoe", {"amount": 5})


@pytest.mark.parametrize("version", [1, 2])
async def test_a_migrated_database_has_the_tables_of_a_new_one(
    tmp_path: Path, version: int
) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    make_version(version, old)
    async with open_store(new):
        pass
    assert schema_of(old) != schema_of(new)
    await open_store(old).migrate()
    assert schema_of(old) == schema_of(new)


async def test_a_writer_refuses_an_older_version_and_names_the_command(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(
        StoreOutdated, match=r"version 1, .*needs version 3: 'papyra migrate STORE'"
    ):
        await open_store(old).append(event(1))
    with pytest.raises(StoreOutdated, match="papyra migrate"):
        async with ActorSystem("bank", persistence=open_store(old)):
            raise AssertionError("it has started")
    assert old.read_bytes() == before
    # Nothing is left open, and nobody is kept out.
    assert (await open_store(old).migrate()).version_after == VERSION


async def test_a_reader_looks_at_an_older_version_as_its_records_are_where_they_are_today(
    old: Path,
) -> None:
    async with open_store(old).reader() as store:
        assert (await store.summarize()).total_records == len(POSITIONS)
        assert (await store.scan()).is_clean
        assert len(await store.list_events()) == 4
        assert await store.load_position("balances") is None
        assert await store.list_positions() == []


async def test_a_dry_run_says_what_is_to_do_and_does_nothing(old: Path) -> None:
    async with open_store(old, read_only=True):
        before = old.read_bytes()
        report = await open_store(old, read_only=True).migrate(dry_run=True)
        assert (report.version_before, report.version_after, len(report.steps)) == (1, VERSION, 2)
        assert old.read_bytes() == before
    with pytest.raises(StoreReadOnly):
        await open_store(old, read_only=True).migrate()
    with pytest.raises(StoreOutdated):
        await open_store(old).append(event(1))


async def test_a_store_of_today_has_nothing_to_migrate_hosted_or_not(path: Path) -> None:
    async with ActorSystem("bank", persistence=open_store(path)) as system:
        report = await system.backend.migrate()
        assert report == MigrationReport("sqlite", True, VERSION, VERSION)
    assert (await open_store(path).migrate()).steps == ()


async def test_a_store_without_tables_has_nothing_to_migrate() -> None:
    assert not (await InMemoryPersistence().migrate()).supported


async def test_a_migration_makes_tables_where_there_are_none_and_the_row_of_its_system(
    path: Path,
) -> None:
    assert (await open_store(path).migrate(dry_run=True)).version_before == 0
    assert not path.exists()
    report = await open_store(path, system_id="shop").migrate()
    assert (report.version_before, len(report.steps)) == (0, len(MIGRATIONS))
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT system_id, last_seq FROM systems").fetchall() == [
            ("shop", 0)
        ]


@pytest.mark.parametrize("verb", ["migrate", "append", "read"])
async def test_a_newer_version_is_refused(old: Path, verb: str) -> None:
    with contextlib.closing(sqlite3.connect(old)) as database, database:
        database.execute("UPDATE papyra_schema SET version = 9")
    with pytest.raises(StoreTooNew, match="of version 9, and this Papyra knows version 3"):
        if verb == "migrate":
            await open_store(old).migrate()
        elif verb == "append":
            await open_store(old).append(event(1))
        else:
            await open_store(old, read_only=True).list_events()


async def test_tables_of_others_with_the_names_of_the_next_version_are_left_alone(
    old: Path,
) -> None:
    with contextlib.closing(sqlite3.connect(old)) as database, database:
        database.execute("CREATE TABLE papyra_outbox (mine TEXT)")
    before = schema_of(old)
    with pytest.raises(StoreWrongType, match="papyra_outbox"):
        await open_store(old).migrate()
    assert schema_of(old) == before


#: Writes a system with the program of version 1, as far as its locks go, until it is told to end.
OLDER_WRITER = """
import pathlib, sys
from papyra.persistence.backends._sqlite.system_lock import system_lock

lock = system_lock(pathlib.Path(sys.argv[1]), sys.argv[2])
lock.acquire()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("system_id", ["papyra", "shop"])
async def test_no_system_of_the_database_may_be_written_meanwhile(
    old: Path, system_id: str
) -> None:
    command = [sys.executable, "-c", OLDER_WRITER, str(old), system_id]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(BackendInUse, match=f"process {writer.pid}"):
            await open_store(old).migrate()
        assert (await open_store(old).migrate(dry_run=True)).version_before == 1
        writer.communicate()
    assert (await open_store(old).migrate()).version_before == 1


#: Migrates, and is killed in front of one of its statements.
KILLED = """
import anyio, os, signal, sqlite3, sys
from papyra.persistence.backends._sqlite import connection
from papyra.persistence.backends.sqlite import SQLitePersistence

path, killed_at = sys.argv[1], int(sys.argv[2])
statements = 0

class Connection(sqlite3.Connection):
    def execute(self, *args):
        global statements
        statements += 1
        if statements == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*args)

connect = sqlite3.connect
sqlite3.connect = lambda *args, **options: connect(*args, factory=Connection, **options)
anyio.run(SQLitePersistence(path).migrate)
"""


@pytest.mark.parametrize("from_version", some([0, 1, 2], every=2))
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_migration_that_is_killed_leaves_the_old_version_or_the_new(
    tmp_path: Path, from_version: int
) -> None:
    new = tmp_path / "new.sqlite"
    async with open_store(new):
        pass
    left = []
    for killed_at in itertools.count(1, STEP):
        path = tmp_path / f"{killed_at}.sqlite"
        if from_version:
            make_version(from_version, path)
        else:
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA journal_mode = WAL")
        command = [sys.executable, "-c", KILLED, str(path), str(killed_at)]
        done = subprocess.run(command, cwd=ROOT, check=False)
        version = (await open_store(path).migrate(dry_run=True)).version_before
        left.append(version)
        if done.returncode == 0:
            break
        assert done.returncode == -9
        assert (await open_store(path).migrate()).version_after == VERSION
        assert schema_of(path) == schema_of(new)
        async with open_store(path) as store:
            assert (await store.summarize()).total_records == (6 if from_version else 0)
    assert left == sorted(left)
    assert (left[0], left[-1]) == (from_version, VERSION)
    assert STEP > 1 or set(left) == set(range(from_version, VERSION + 1))
