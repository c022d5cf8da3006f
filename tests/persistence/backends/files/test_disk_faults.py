"""Every call that a store makes to the system fails in turn.

In CI, that is: elsewhere one in `STEP`. ``PAPYRA_FAULTS=1000`` has more pairs fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra.exceptions import BackendInUse, StoreError
from papyra.persistence import PersistenceRecoveryConfig
from papyra.persistence.backends._files import fsync_policy
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event
from tests.conftest import event_loops
from tests.extent import STEP, some
from tests.persistence.backends.files.file_persistence import FilePersistence

anyio_backend = event_loops("asyncio")

CALLS = (
    "open",
    "create",
    "close",
    "lock",
    "unlock",
    "stat",
    "read",
    "write",
    "truncate",
    "sync",
    "replace",
    "remove",
    "make_directory",
    "list",
)


class FailingDisk(Disk):
    """Fails one call, the `number`-th from when it is armed."""

    def __init__(self, number: int, code: int, *, short: bool = False) -> None:
        self.left = number
        self.code = code
        self.short = short
        self.armed = False
        self.failed: str | None = None

    def __getattribute__(self, name: str) -> Any:
        real = super().__getattribute__(name)
        if name not in (*CALLS, "sync_directory") or not super().__getattribute__("armed"):
            return real
        self.left -= 1
        if self.left:
            return real
        self.failed = name
        return self.write_half if name == "write" and self.short else self.fail

    def fail(self, *arguments: Any, **options: Any) -> Any:
        raise OSError(self.code, os.strerror(self.code))

    def write_half(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write some of it; the system says so, and that is no error."""
        return os.pwrite(fd, data[: len(data) // 2], offset)


class Scenario:
    """What a store is put through, and what was acknowledged on the way."""

    def __init__(self, name: str, path: Path, disk: FailingDisk) -> None:
        self.name = name
        self.path = path
        self.disk = disk
        self.acknowledged: list[int] = []
        self.errors: list[Exception] = []
        self.number = 0

    def store(self, disk: Disk | None = None) -> FilePersistence:
        store: FilePersistence
        policy = RetentionPolicy(max_records=5) if disk is None else None
        if self.name == "json":
            store = JsonFilePersistence(self.path, retention_policy=policy, _disk=disk or self.disk)
        else:
            # Each append begins a new segment or two.
            store = RotatingFilePersistence(
                self.path,
                max_segment_records=2,
                retention_policy=policy,
                _disk=disk or self.disk,
            )
        return store

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            self.errors.append(error)

    async def append(self, store: FilePersistence) -> None:
        self.number += 1
        numbers = [self.number * 10 + i for i in range(3)]
        with self.expected():
            await store.append(*map(event, numbers))
            self.acknowledged += numbers

    async def run(self) -> None:
        """Open, append, compact, append, and close, with one call failing somewhere."""
        store = self.store()
        self.disk.armed = True
        await self.append(store)
        await self.append(store)
        with self.expected():
            await store.compact()
        await self.append(store)
        with self.expected():
            await store.recover()
        with self.expected():
            await store.flush()
        await self.append(store)
        with self.expected():
            await store.aclose()
        self.disk.armed = False


@pytest.mark.parametrize(
    ("code", "short"),
    some([(errno.EIO, False), (errno.ENOSPC, False), (errno.EIO, True)], every=2),
)
@pytest.mark.parametrize("name", ["json", "rotating"])
async def test_a_file_store_loses_no_acknowledged_record_whichever_system_call_fails(
    tmp_path: Path, name: str, code: int, short: bool
) -> None:
    for number in range(1, 1000, STEP):
        disk = FailingDisk(number, code, short=short)
        scenario = Scenario(name, tmp_path / f"{number}", disk)
        await scenario.run()
        if disk.failed is None:
            break
        assert len(scenario.errors) <= 1, disk.failed
        async with scenario.store(Disk()) as store:
            stored = [e.payload["order_id"] for e in await store.list_events()]
            # All of it; or, once it was compacted, what was visible then, and what followed.
            assert stored == scenario.acknowledged[-len(stored) :], (number, disk.failed)
            assert len(stored) >= 5 + 3, "later writes work"
            assert (await store.scan()).is_clean
            seqs = [e.seq for e in await store.list_events()]
            assert len(set(seqs)) == len(seqs)
    else:
        pytest.fail("it never got through")
    assert number > 25
    assert not scenario.errors


@pytest.mark.parametrize("code", some([errno.EIO, errno.ENOSPC], every=2))
@pytest.mark.parametrize("name", ["json", "rotating"])
async def test_a_file_store_recovery_that_fails_can_be_repeated(
    tmp_path: Path, name: str, code: int
) -> None:
    for number in range(1, 1000, STEP):
        disk = FailingDisk(number, code)
        scenario = Scenario(name, tmp_path / f"{number}", disk)
        async with scenario.store(Disk()) as store:
            await store.append(*map(event, range(1, 8)))
        paths = [scenario.path, *scenario.path.glob("*.ndjson")]
        path = next(p for p in paths if p.is_file() and b'"order_id":3' in p.read_bytes())
        path.write_bytes(path.read_bytes().replace(b'"order_id":3', b'"order_id":8'))
        store = scenario.store()
        disk.armed = True
        with scenario.expected():
            await store.recover(PersistenceRecoveryConfig("quarantine", str(tmp_path / "aside")))
        with scenario.expected():
            await store.aclose()
        disk.armed = False
        if disk.failed is None:
            break
        assert len(scenario.errors) <= 1, disk.failed
        async with scenario.store(Disk()) as store:
            await store.recover()
            assert (await store.scan()).is_clean
            stored = [e.payload["order_id"] for e in await store.list_events()]
            assert stored == [1, 2, 4, 5, 6, 7], (number, disk.failed)
    else:
        pytest.fail("it never got through")
    assert number > 10
    assert not scenario.errors


def test_the_disk_fault_tests_cover_every_call_of_disk() -> None:
    calls = {name for name in vars(Disk) if not name.startswith("_")}
    beside = {"make_directory_like"}  # which `test_file_snapshots` makes fail
    assert calls == {*CALLS, "sync_directory", *beside}


async def test_a_second_file_writer_is_told_which_process_has_the_store(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    async with JsonFilePersistence(path, fsync="no"):
        with pytest.raises(BackendInUse, match=rf"process {os.getpid()} on .* has .*events.ndjson"):
            await JsonFilePersistence(path).append(event(1))
    await JsonFilePersistence(path, fsync="no").append(event(1))


def test_a_file_lock_without_a_note_is_reported_as_held_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    first, second = FileLock(path, tmp_path), FileLock(path, tmp_path)
    first.acquire()
    path.write_text("")
    with pytest.raises(BackendInUse, match="another process has"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


class SyncsFail(Disk):
    """Counts what is written and synced, and fails as many syncs as it is told."""

    def __init__(self) -> None:
        self.failures = 0
        self.synced = threading.Semaphore(0)
        self.written: list[tuple[int, int]] = []

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.written.append((offset, len(data)))
        return super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        try:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EIO, "the device is gone")
            super().sync(fd)
        finally:
            self.synced.release()


async def wait_for_a_sync(disk: SyncsFail) -> None:
    assert await anyio.to_thread.run_sync(disk.synced.acquire, True, 20)


async def test_a_file_store_with_fsync_everysec_syncs_every_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fsync_policy, "SYNC_INTERVAL", 0.01)
    disk = SyncsFail()
    store = JsonFilePersistence(tmp_path / "events.ndjson", fsync="everysec", _disk=disk)
    async with store:
        await wait_for_a_sync(disk)  # the flush that opened it
        await store.append(event(1))
        await wait_for_a_sync(disk)
        # A sync that fails is not repeated on the same pages: what it was for is written again.
        disk.failures = 1
        await store.append(event(2))
        await wait_for_a_sync(disk)
        before = len(disk.written)
        size = store.path.stat().st_size
        (file,) = store.store.journal.files(newest=True)
        while not file.appender.durability.sync_failed:  # set by the other thread, just after
            await anyio.lowlevel.checkpoint()
        await store.append(event(3))
        again, new = disk.written[before:]
        assert again[0] + again[1] == new[0] == size
        assert again[0] > 0, "but not what was on the device already"
    assert "may not be: [Errno 5] the device is gone" in caplog.text
    async with JsonFilePersistence(store.path) as store:
        assert (await store.scan()).is_clean
        assert [e.payload["order_id"] for e in await store.list_events()] == [1, 2, 3]


async def test_a_flush_after_a_failed_one_writes_and_syncs_a_file_store_again(
    tmp_path: Path,
) -> None:
    disk = SyncsFail()
    store = JsonFilePersistence(tmp_path / "events.ndjson", fsync="no", _disk=disk)
    async with store:
        await store.append(event(1))
        disk.failures = 1
        with pytest.raises(StoreError, match="the device is gone"):
            await store.flush()
        written = len(disk.written)
        await store.flush()
        assert len(disk.written) == written + 1
        assert (await store.append(event(2))).first_seq == 2


class Recording(Disk):
    """Notes which calls were made, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in {"write", "sync", "replace", "sync_directory", "truncate"}:
            self.calls.append(name)
        return super().__getattribute__(name)


async def test_a_file_store_syncs_before_it_acknowledges_and_before_it_renames(
    tmp_path: Path,
) -> None:
    disk = Recording()
    store = JsonFilePersistence(
        tmp_path / "events.ndjson", retention_policy=RetentionPolicy(max_records=1), _disk=disk
    )
    async with store:
        assert "sync_directory" in disk.calls, "the new file's name"
        disk.calls.clear()
        await store.append(event(1), event(2))
        assert disk.calls == ["write", "sync"]
        disk.calls.clear()
        await store.compact()
        assert disk.calls == ["write", "sync", "replace", "sync_directory"]


class NoNames(Recording):
    """Can't sync directories while it is told so."""

    fails = False

    def sync_directory(self, path: Path) -> None:
        if self.fails:
            raise OSError(errno.EIO, "the device is gone")
        super().sync_directory(path)


async def test_a_file_store_syncs_the_new_name_of_a_compacted_file_before_it_writes_on(
    tmp_path: Path,
) -> None:
    disk = NoNames()
    store = JsonFilePersistence(
        tmp_path / "events.ndjson", retention_policy=RetentionPolicy(max_records=2), _disk=disk
    )
    async with store:
        await store.append(*map(event, range(1, 6)))
        disk.fails = True
        with pytest.raises(StoreError, match=r"compaction failed: .*the device is gone"):
            await store.compact()
        with pytest.raises(StoreError, match=r"write failed: .*the device is gone"):
            await store.append(event(6))
        disk.fails = False
        disk.calls.clear()
        assert (await store.append(event(6))).first_seq == 6
        assert disk.calls.index("sync_directory") < disk.calls.index("write")
        assert [e.seq for e in await store.list_events()] == [5, 6]


async def test_a_rotating_store_syncs_a_segment_before_it_begins_the_next(tmp_path: Path) -> None:
    disk = Recording()

    def open_store() -> RotatingFilePersistence:
        return RotatingFilePersistence(tmp_path, max_segment_records=3, fsync="no", _disk=disk)

    async with open_store() as store:
        await store.append(event(1))
        disk.calls.clear()
        # Two of them into the first segment, and the third into one that is new.
        await store.append(event(2), event(3), event(4))
        assert disk.calls[:4] == ["write", "sync", "sync_directory", "write"]
        await store.append(event(5), event(6))
    store = open_store()
    assert len(await store.list_events()) == 6
    # Whether what another process has written is on the device, this one can't know.
    disk.calls.clear()
    await store.append(event(7))
    assert disk.calls[:3] == ["sync", "sync_directory", "write"]
    await store.aclose()


class FailingTwice(FailingDisk):
    """Fails two calls: the `number`-th, and the one that is `later` calls after that."""

    def __init__(self, number: int, later: int) -> None:
        super().__init__(number, errno.EIO)
        self.later = later
        self.failures: list[str] = []

    def fail(self, *arguments: Any, **options: Any) -> Any:
        assert self.failed is not None
        self.failures.append(self.failed)
        if len(self.failures) == 1:
            self.left = self.later
        return super().fail(*arguments)


#: How many of the first failures are tried, of each number of calls to the second.
PAIRS = int(os.environ.get("PAPYRA_FAULTS", "6"))


@pytest.mark.parametrize("later", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["json", "rotating"])
async def test_two_failed_calls_and_a_killed_process_lose_no_acknowledged_record_in_files(
    tmp_path: Path, name: str, later: int
) -> None:
    """It ends without closing anything; what was refused is not there, and nothing is missing."""
    total = 1000 if PAIRS > 100 else 90
    for number in range(1, total, max(1, total // PAIRS)):
        disk = FailingTwice(number, later)
        scenario = Scenario(name, tmp_path / f"{number}", disk)
        store = scenario.store()
        disk.armed = True
        for _ in range(4):
            await scenario.append(store)
        disk.armed = False
        copy = tmp_path / f"{number}-copy"
        if scenario.path.is_dir():
            shutil.copytree(scenario.path, copy, ignore=shutil.ignore_patterns(".lock"))
        elif scenario.path.exists():
            shutil.copy(scenario.path, copy)
        scenario.path = copy
        await store.aclose()
        async with scenario.store(Disk()) as store:
            where = (number, disk.failures)
            report = await store.scan()
            assert {anomaly.kind for anomaly in report.anomalies} <= {"torn"}, where
            assert [e.payload["order_id"] for e in await store.list_events()] == (
                scenario.acknowledged
            ), where
            await store.append(event(1))
            assert (await store.scan()).is_clean, where
        if disk.failed is None:
            break


@pytest.mark.parametrize("later", [1, 2])
@pytest.mark.parametrize("name", ["json", "rotating"])
async def test_a_file_store_whose_opening_and_closing_fail_leaves_no_lock(
    tmp_path: Path, name: str, later: int
) -> None:
    for number in range(1, 16):
        disk = FailingTwice(number, later)
        scenario = Scenario(name, tmp_path / f"{number}", disk)
        store = scenario.store()
        disk.armed = True
        await scenario.append(store)
        disk.armed = False
        await scenario.append(store)
        assert scenario.acknowledged[-3:] == [20, 21, 22], (number, disk.failures)
        await store.aclose()
