"""Damaged databases: bits that flip, pages that are gone, rows that others have changed."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from papyra.exceptions import PersistenceError, StoreDamaged
from papyra.persistence import (
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    Recover,
    Scan,
)
from papyra.persistence.backends._sql.blocks import BLOCK
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.actors import event
from tests.conftest import event_loops
from tests.extent import STEP, count

anyio_backend = event_loops("asyncio")

COUNT = 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite"


def open_store(path: Path, **options: Any) -> SQLitePersistence:
    return SQLitePersistence(path, **({"synchronous": "off"} | options))


async def fill(path: Path, count: int = COUNT) -> bytes:
    """Store events of some actors; return the bytes of the closed database."""
    async with open_store(path) as store:
        await store.append(
            *(
                msgspec.structs.replace(
                    event(n), actor_address=f"shop/{n % 3}", revision=(n - 1) // 3 + 1
                )
                for n in range(1, count + 1)
            )
        )
    return path.read_bytes()


def change(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


async def stored(store: SQLitePersistence) -> list[tuple[int | None, int]]:
    return [(each.seq, each.payload["order_id"]) async for each in store.stream("event")]


async def kinds(store: SQLitePersistence) -> list[str]:
    return [anomaly.kind for anomaly in (await scan(store)).anomalies]


async def scan(store: SQLitePersistence) -> PersistenceScanReport:
    """Return the scan of the records. With one of them lost, its history has a hole besides."""
    return await store.execute(Scan(records_only=True))


async def recover(
    store: SQLitePersistence, config: PersistenceRecoveryConfig | None = None
) -> PersistenceRecoveryReport:
    return await store.execute(Recover(config, records_only=True))


# Rows that others have changed


@pytest.mark.parametrize(
    ("statement", "kind", "lost"),
    [
        ("UPDATE events SET record = '{' WHERE seq = 7", "corrupt", True),
        ("UPDATE events SET record = x'ff00' WHERE seq = 7", "corrupt", True),
        ("UPDATE events SET record = 5 WHERE seq = 7", "corrupt", True),
        ("UPDATE events SET record = replace(record, '7', '8') WHERE seq = 7", "checksum", True),
        ("UPDATE events SET crc = 'none' WHERE seq = 7", "checksum", True),
        ("UPDATE events SET actor = 'shop/x' WHERE seq = 7", "wrong_fields", False),
        ("UPDATE events SET revision = NULL WHERE seq = 7", "wrong_fields", False),
        ("UPDATE events SET timestamp = 'now' WHERE seq = 7", "wrong_fields", False),
    ],
)
async def test_a_row_that_was_changed_is_found_passed_over_and_mended(
    path: Path, statement: str, kind: str, lost: bool
) -> None:
    await fill(path, 20)
    change(path, statement)
    expected = [(seq, seq) for seq in range(1, 21) if not lost or seq != 7]
    async with open_store(path) as store:
        for _ in range(2):
            report = await scan(store)
            assert [(each.kind, each.seq) for each in report.anomalies] == [(kind, 7)]
        assert store.is_damaged
        if lost:
            assert await stored(store) == expected
        recovered = await recover(store)
        assert recovered.scan.is_clean
        assert (recovered.records_kept, recovered.records_removed) == (20 - lost, int(lost))
        assert await stored(store) == expected
        history = await store.read_history("shop/1")
        assert len(history.events) == 7 - lost
        assert (await store.append(event(21))).first_seq == 21


async def test_rows_that_are_gone_are_missed(path: Path) -> None:
    await fill(path, 2 * BLOCK)
    change(path, "DELETE FROM events WHERE seq = 7")
    async with open_store(path) as store:
        (anomaly,) = (await scan(store)).anomalies
        assert anomaly.kind == "gap"
        assert f"positions 0 to {BLOCK - 1} hold {BLOCK - 2} records of kind event" in (
            anomaly.detail
        )
        assert (await recover(store)).scan.is_clean
        assert (await store.summarize()).records["event"] == 2 * BLOCK - 1


async def test_a_quarantine_is_the_database_as_it_was(path: Path, tmp_path: Path) -> None:
    await fill(path, 20)
    change(path, "UPDATE events SET record = '{' WHERE seq = 7")
    path.chmod(0o600)
    async with open_store(path) as store:
        aside = tmp_path / "aside"
        config = PersistenceRecoveryConfig("quarantine", str(aside))
        (place,) = (await recover(store, config)).quarantined
        assert (await recover(store, config)).quarantined == ()
    assert place == str(aside / "shop.sqlite.damaged-1")
    assert [each.name for each in aside.iterdir()] == ["shop.sqlite.damaged-1"]
    assert Path(place).stat().st_mode & 0o777 == 0o600
    async with open_store(Path(place), read_only=True) as damaged:
        assert await kinds(damaged) == ["corrupt"]
    async with open_store(path) as store:
        assert await kinds(store) == []


# Pages that can't be read


def pages_of(path: Path, name: str) -> list[int]:
    """Return the numbers of the pages of a table or an index; from 1, the root first."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            rows = database.execute(
                "SELECT pageno FROM dbstat WHERE name = ? ORDER BY path", (name,)
            ).fetchall()
        except sqlite3.OperationalError:  # without this virtual table, the root at least
            rows = database.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)
            ).fetchall()
    return [page for (page,) in rows]


def wipe(path: Path, data: bytes, page: int) -> None:
    """Write a database whose page can't be read any more."""
    size = int.from_bytes(data[16:18], "big")
    path.write_bytes(data[: (page - 1) * size] + b"\xa5" * size + data[page * size :])


@pytest.mark.parametrize("name", ["events", "events_by_actor", "histories", "blocks"])
async def test_what_can_be_read_beside_a_damaged_page_is_kept(path: Path, name: str) -> None:
    data = await fill(path)
    for page in pages_of(path, name)[-3:]:
        wipe(path, data, page)
        async with open_store(path) as store:
            found = await scan(store)
            assert "corrupt" in {each.kind for each in found.anomalies}
            readable = found.records_scanned
            report = await recover(store, PersistenceRecoveryConfig("quarantine"))
            assert report.scan.is_clean
            assert report.records_kept == readable
            assert await kinds(store) == []
            left = await stored(store)
            assert len(left) == readable
            assert left == [(seq, seq) for seq, _ in left]
            assert (await store.append(event(COUNT + 1))).first_seq == COUNT + 1
        if name != "events":
            assert readable == COUNT
        elif len(pages_of(path, name)) > 1:
            assert 0 < readable < COUNT
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


async def test_a_read_that_comes_to_a_damaged_page_says_so(path: Path) -> None:
    data = await fill(path)
    wipe(path, data, pages_of(path, "events")[-1])
    async with open_store(path) as store:
        with pytest.raises(StoreDamaged, match="a recovery keeps what can be read"):
            await stored(store)


async def test_recovery_keeps_other_systems_snapshots_and_positions(path: Path) -> None:
    async with open_store(path, system_id="other") as other:
        await other.append(*map(event, range(1, 2 * BLOCK)))
        await other.store.save_snapshot("shop/a", 3, b"whatever \xff")
        identity = await other.store_id()
        assert await other.save_position("balances", b"7 \xff", None)
    data = await fill(path)
    wipe(path, data, pages_of(path, "histories")[-1])
    async with open_store(path) as store:
        report = await recover(store)
        assert report.scan.is_clean
        assert (report.records_kept, report.records_removed) == (COUNT, 0)
    async with open_store(path, system_id="other") as other:
        assert await kinds(other) == []
        assert await other.store_id() == identity
        assert await other.store.load_snapshot("shop/a", 3) == b"whatever \xff"
        assert await other.load_position("balances") == b"7 \xff"
        assert (await other.summarize()).records["event"] == 2 * BLOCK - 1
        assert await stored(other) == [(seq, seq) for seq in range(1, 2 * BLOCK)]


async def test_a_snapshot_that_is_put_aside_is_a_file(path: Path, tmp_path: Path) -> None:
    async with open_store(path) as backend:
        store = backend.store
        for actor in ("shop/a", "../\n", "x" * 5000):
            await store.save_snapshot(actor, 3, b"whatever")
            (listed,) = await store.list_snapshots(None, 10)
            place = await store.quarantine_listed(listed, str(tmp_path / "aside"))
            assert place is not None
            assert Path(place).parent == tmp_path / "aside"
            assert Path(place).read_bytes() == b"whatever"
            assert await store.list_snapshots(None, 10) == []


async def test_recovery_does_not_lose_tables_of_others(path: Path) -> None:
    change(path, "CREATE TABLE customers (name TEXT)")
    data = await fill(path)
    wipe(path, data, pages_of(path, "events")[-1])
    async with open_store(path) as store:
        with pytest.raises(StoreDamaged, match="customers"):
            await recover(store)
    change(path, "SELECT * FROM customers")


@pytest.mark.timeout(3600)
async def test_whatever_bits_flip_nothing_wrong_is_shown_and_what_can_be_is_kept(
    path: Path,
) -> None:
    data = await fill(path, 60)
    chance = random.Random(7)
    refused: list[type[Exception]] = []
    recovered = 0
    for _ in range(count("PAPYRA_FLIPS", 40, 1500)):
        place = chance.randrange(100, len(data))
        flipped = bytes([data[place] ^ 1 << chance.randrange(8)])
        path.write_bytes(data[:place] + flipped + data[place + 1 :])
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        try:
            async with open_store(path) as store:
                report = await recover(store)
                assert report.scan.is_clean, place
                left = await stored(store)
                assert set(left) <= {(seq, seq) for seq in range(1, 61)}, place
                assert report.records_kept == len(left)
                assert (await store.append(event(1))).first_seq > max(number for _, number in left)
                recovered += 1
        except PersistenceError as error:
            # The page is gone without which nothing can be opened: it has a name.
            refused.append(type(error))
    assert recovered > len(refused)
    assert PersistenceError not in refused


@pytest.mark.timeout(3600)
async def test_wherever_a_database_is_cut_off_what_is_left_is_kept(path: Path) -> None:
    data = await fill(path)
    size = int.from_bytes(data[16:18], "big")
    kept = []
    for length in range(len(data) - size, 2 * size, -size * STEP):
        path.write_bytes(data[:length])
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        try:
            async with open_store(path) as store:
                assert not (await scan(store)).is_clean
                report = await recover(store)
                assert report.scan.is_clean
                left = await stored(store)
                assert set(left) <= {(seq, seq) for seq in range(1, COUNT + 1)}
                assert report.records_removed == COUNT - len(left)
                kept.append(len(left))
        except StoreDamaged:
            kept.append(0)
    assert kept
    assert kept[0] > 0
