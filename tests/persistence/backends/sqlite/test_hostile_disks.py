"""Databases that others hold, on disks that are full or only read, and logs in which bits flip."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from papyra.exceptions import (
    StoreAccessDenied,
    StoreError,
    StoreFull,
    StoreNotReady,
    StoreNotWritable,
)
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.actors import event
from tests.conftest import event_loops
from tests.extent import STEP
from tests.mounting import give_up_mounting
from tests.persistence.backends.trimmed_accounts import ACCOUNTS, TRIM, fill, history, replayed

anyio_backend = event_loops("asyncio")

COUNT = 500
#: Bytes of the head of a log, and of a page in it.
HEAD, LOGGED = 32, 4096 + 24


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite"


def open_store(path: Path, **options: Any) -> SQLitePersistence:
    return SQLitePersistence(path, **({"synchronous": "off"} | options))


async def numbers(store: SQLitePersistence) -> list[int]:
    return [each.payload["order_id"] async for each in store.stream("event")]


# Another program


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_database_that_another_program_has_for_itself_is_named_when_it_is_opened(
    path: Path, read_only: bool
) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreNotReady, match="another program has it locked"):
            async with open_store(path, busy_timeout=0.1, read_only=read_only):
                pass
    async with open_store(path, read_only=read_only) as store:
        assert await numbers(store) == [1]


async def test_a_program_that_reads_for_long_holds_no_append_up(path: Path) -> None:
    async with open_store(path, busy_timeout=0.1) as store:
        await store.append(event(1))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            assert other.execute("SELECT count(*) FROM events").fetchone() == (1,)
            await store.append(event(2))
            await store.flush()
            assert other.execute("SELECT count(*) FROM events").fetchone() == (1,)
        assert await numbers(store) == [1, 2]


# Disks


def is_mounted(path: Path, *options: str) -> bool:
    """Mount something there, and return True if this process may do that."""
    command = ["mount", *options, str(path)]
    return bool(shutil.which("mount")) and not subprocess.run(command, check=False).returncode


@contextlib.contextmanager
def a_disk(path: Path) -> Iterator[bool]:
    """Make a disk of 8 MB; or a folder where that may not be, and say so."""
    path.mkdir()
    mounted = is_mounted(path, "-t", "tmpfs", "-o", "size=8m", "tmpfs")
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=True)


@contextlib.contextmanager
def full(disk: Path, mounted: bool) -> Iterator[None]:
    """Leave room for 16 KB on a disk; without one, in each file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if mounted:
        about = os.statvfs(disk)
        (disk / "taken").write_bytes(bytes(about.f_bavail * about.f_frsize - 16_000))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        (disk / "taken").unlink(missing_ok=True)


def says_that_it_is_full(mounted: bool) -> pytest.RaisesExc[Exception]:
    return pytest.raises(StoreFull) if mounted else pytest.raises(StoreError, match="IOERR_WRITE")


async def test_a_trimming_that_does_not_fit_on_the_disk_changes_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with a_disk(disk) as mounted:
        path = disk / "bank.sqlite"
        await fill(open_store(path))
        async with open_store(path) as store:
            before = await history(store, "ben")
            with full(disk, mounted), says_that_it_is_full(mounted):
                await store.compact(TRIM)
            assert await history(store, "ben") == before
            report = await store.compact(TRIM)
            assert report.histories is not None
            assert report.histories.trimmed == 2
            assert (await store.scan()).is_clean
        assert await replayed(open_store(path)) == ACCOUNTS


async def test_a_recovery_that_does_not_fit_on_the_disk_changes_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with a_disk(disk) as mounted:
        path = disk / "shop.sqlite"
        async with open_store(path) as store:
            await store.append(*map(event, range(1, COUNT + 1)))
        data = bytearray(path.read_bytes())
        with contextlib.closing(sqlite3.connect(path)) as database:
            (page,) = database.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'histories'"
            ).fetchone()
        data[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
        path.write_bytes(data)
        async with open_store(path) as store:
            with full(disk, mounted), says_that_it_is_full(mounted):
                await store.recover()
            assert {each.name for each in disk.iterdir()} <= {
                f"{path.name}{suffix}" for suffix in ("", "-wal", "-shm", ".lock")
            }
            assert await numbers(store) == list(range(1, COUNT + 1))
            report = await store.recover()
            assert report.scan.is_clean
            assert (report.records_kept, report.records_removed) == (COUNT, 0)
            assert (await store.append(event(COUNT + 1))).first_seq == COUNT + 1


async def test_a_disk_that_is_only_read_is_named_by_a_writer_and_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with a_disk(disk) as mounted:
        path = disk / "shop.sqlite"
        async with open_store(path) as store:
            await store.append(event(1))
        before = path.read_bytes()
        if not mounted or not is_mounted(disk, "-o", "remount,ro"):
            give_up_mounting()
        with pytest.raises((StoreNotWritable, StoreAccessDenied), match=str(path)):
            await open_store(path).append(event(2))
        async with open_store(path, read_only=True) as reader:
            assert await numbers(reader) == [1]
            assert (await reader.scan()).is_clean
        assert path.read_bytes() == before


# The log


async def test_whatever_bit_flips_in_a_log_what_was_committed_before_is_kept(path: Path) -> None:
    async with open_store(path) as store:
        for number in range(1, 21):
            await store.append(event(number))
        database, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    chance = random.Random("flip")
    kept = []
    for start in range(HEAD, len(log) - LOGGED, LOGGED * min(STEP, 4)):
        flipped = bytearray(log)
        flipped[start + chance.randrange(LOGGED)] ^= 1 << chance.randrange(8)
        path.write_bytes(database)
        Path(f"{path}-wal").write_bytes(flipped)
        Path(f"{path}-shm").unlink(missing_ok=True)
        async with open_store(path) as store:
            assert (await store.scan()).is_clean, start
            found = await numbers(store)
            assert found == list(range(1, len(found) + 1)), start
            assert (await store.append(event(0))).first_seq == len(found) + 1
        kept.append(len(found))
    assert kept == sorted(kept)
    assert len(set(kept)) > 5
    assert max(kept) < 20
