"""What a clean close vouches for: no record of it is cut off, whatever it looks like later."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreDamaged
from papyra.persistence import codec
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.line_format import make_lines
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event
from tests.persistence.backends.files.file_persistence import FilePersistence

COUNT = 30

pytestmark = pytest.mark.parametrize("kind", ["json", "rotating"])


@pytest.fixture
def anyio_backend() -> str:
    """What is in a file does not depend on who reads it."""
    return "asyncio"


def make(
    path: Path, kind: str, *, read_only: bool = False, disk: Disk | None = None
) -> FilePersistence:
    policy = RetentionPolicy(max_records=10)
    if kind == "json":
        return JsonFilePersistence(path, retention_policy=policy, read_only=read_only, _disk=disk)
    return RotatingFilePersistence(
        path,
        max_segment_bytes=6000,
        retention_policy=policy,
        read_only=read_only,
        _disk=disk,
    )


def last_file(path: Path) -> Path:
    return max(path.glob("*.ndjson")) if path.is_dir() else path


def lock_of(path: Path) -> Path:
    return path / ".lock" if path.is_dir() else path.with_name(f"{path.name}.lock")


async def closed_cleanly(path: Path, kind: str) -> Path:
    """Store records, the last of them with one append, and return the file that has these."""
    records = [event(n, payload={"n": n, "x": "x" * 99}) for n in range(COUNT)]
    async with make(path, kind) as store:
        await store.append(*records[:5])
        await store.append(*records[5:])
    return last_file(path)


async def anomalies(path: Path, kind: str) -> list[str]:
    async with make(path, kind, read_only=True) as store:
        return [anomaly.kind for anomaly in (await store.scan()).anomalies]


async def is_refused(path: Path, kind: str) -> bool:
    """Return whether a system says that the store is damaged; if not, it starts."""
    try:
        async with ActorSystem("shop", persistence=make(path, kind)):
            return False
    except StoreDamaged:
        return True


def zero_last_sectors(data: bytes) -> bytes:
    start = (len(data) - 700) // 512 * 512
    return data[:start] + bytes(len(data) - start)


def zero_a_sector(data: bytes) -> bytes:
    start = (len(data) - 1200) // 512 * 512
    return data[:start] + bytes(512) + data[start + 512 :]


#: What looks like the remains of the last append, and is what became of it later.
LIKE_REMAINS: dict[str, Callable[[bytes], bytes]] = {
    "a sector of zeros": zero_a_sector,
    "zeros at the end": zero_last_sectors,
    "zeros behind half a line": lambda data: data[:-40] + bytes(40),
    "zeros and a longer file": lambda data: data[:-40] + bytes(4000),
}


@pytest.mark.parametrize("name", LIKE_REMAINS)
async def test_damage_like_a_torn_write_in_a_cleanly_closed_file_store_is_not_cut_off(
    tmp_path: Path, kind: str, name: str
) -> None:
    path = tmp_path / "store"
    file = await closed_cleanly(path, kind)
    edited = LIKE_REMAINS[name](file.read_bytes())
    file.write_bytes(edited)
    assert "torn" not in await anomalies(path, kind)
    for _ in range(3):
        assert await is_refused(path, kind)
        assert file.read_bytes() == edited


async def test_a_file_store_cut_off_since_its_clean_close_logs_both_sizes(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store"
    file = await closed_cleanly(path, kind)
    size = file.stat().st_size
    os.truncate(file, size - 40)
    assert await anomalies(path, kind) == ["torn"]
    caplog.set_level("INFO", "papyra")
    async with make(path, kind) as store:
        assert b"closed" not in lock_of(path).read_bytes()
        assert (await store.append(event(99))).first_seq == COUNT
        assert (await store.scan()).is_clean
    assert f"had {size} bytes when it was closed, and has {size - 40}:" in caplog.text
    caplog.clear()
    async with make(path, kind) as store:
        assert (await store.scan()).is_clean
    assert not caplog.text


async def test_a_kill_after_reopening_leaves_damage_of_a_cleanly_closed_file_store_uncut(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    file = await closed_cleanly(path, kind)
    store = make(path, kind)
    async with store:
        note = lock_of(path).read_bytes()
    edited = zero_a_sector(file.read_bytes())
    file.write_bytes(edited)
    lock_of(path).write_bytes(note)  # as it was while the store was open
    assert await is_refused(path, kind)
    assert file.read_bytes() == edited


async def test_a_recovery_of_a_damaged_cleanly_closed_file_store_keeps_readable_records(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    file = await closed_cleanly(path, kind)
    file.write_bytes(zero_a_sector(file.read_bytes()))
    async with make(path, kind) as store:
        kept = [e.seq async for e in store.stream("event")]
        assert (await store.recover()).scan.is_clean
        assert [e.seq async for e in store.stream("event")] == kept
        assert (await store.append(event(99))).first_seq == COUNT + 1
    assert await anomalies(path, kind) == []


async def test_a_file_writer_never_takes_damaged_acknowledged_records_for_a_torn_tail(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with make(path, kind) as store:
        await store.append(*(event(n, payload={"x": "x" * 99}) for n in range(20)))
        file = last_file(path)
        edited = zero_a_sector(file.read_bytes())
        file.write_bytes(edited)
        found = {anomaly.kind for anomaly in (await store.scan()).anomalies}
        assert found
        assert "torn" not in found
        assert (await store.append(event(99))).first_seq == 21
        assert file.read_bytes().startswith(edited)


async def test_a_torn_tail_behind_a_cleanly_closed_file_store_is_cut_off(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    file = await closed_cleanly(path, kind)
    data = file.read_bytes()
    lines = make_lines(COUNT + 1, COUNT, codec.encode([event(99)]))
    file.write_bytes(data + lines[0][:70])
    assert await anomalies(path, kind) == ["torn"]
    assert not await is_refused(path, kind)
    assert file.read_bytes().startswith(data)
    assert await anomalies(path, kind) == []


async def test_a_clean_close_after_a_compaction_vouches_for_the_compacted_file(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    await closed_cleanly(path, kind)
    async with make(path, kind) as store:
        await store.compact()
    file = last_file(path)
    edited = zero_a_sector(file.read_bytes())
    file.write_bytes(edited)
    assert await is_refused(path, kind)
    assert file.read_bytes() == edited


async def test_a_compaction_removes_the_clean_close_mark_before_it_writes_a_file(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    await closed_cleanly(path, kind)
    seen: list[bytes] = []

    class Looking(Disk):
        def create(self, *args: Any, **options: Any) -> int:
            seen.append(lock_of(path).read_bytes())
            return super().create(*args, **options)

    async with make(path, kind, disk=Looking()) as store:
        seen.clear()
        await store.compact()
    assert seen
    assert all(b"closed" not in note for note in seen)


async def test_a_copied_file_store_does_not_inherit_the_clean_close_mark(
    tmp_path: Path, kind: str
) -> None:
    path, copy = tmp_path / "store", tmp_path / "copy"
    file = await closed_cleanly(path, kind)
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copy(path, copy)
        shutil.copy(lock_of(path), lock_of(copy))
    last_file(copy).write_bytes(zero_last_sectors(file.read_bytes()))
    assert not await is_refused(copy, kind)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: b"",
        lambda note: bytes(len(note)),
        lambda note: note[:-10],
        lambda note: note.replace(b"closed", b"opened"),
        lambda note: note.replace(b"[", b"[1"),
        lambda note: b'{"pid":0,"closed":[1e999,-1,[]]}',
        lambda note: b'{"pid":0,"closed":' + b"[" * 900,
        lambda note: b'{"pid":0,"closed":' + b"9" * 900,
    ],
    ids=["empty", "zeros", "torn", "another", "changed", "hostile", "deep", "huge"],
)
async def test_a_spoilt_clean_close_mark_keeps_no_file_store_from_opening(
    tmp_path: Path, kind: str, spoil: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "store"
    file = await closed_cleanly(path, kind)
    data = file.read_bytes()
    note = lock_of(path).read_bytes()
    assert b"closed" in note
    lock_of(path).write_bytes(spoil(note))
    file.write_bytes(zero_last_sectors(data))
    assert not await is_refused(path, kind)
    assert await anomalies(path, kind) == []


async def test_a_file_store_without_its_lock_file_opens_as_if_it_had_not_been_closed_cleanly(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    file = await closed_cleanly(path, kind)
    lock_of(path).unlink()
    file.write_bytes(zero_last_sectors(file.read_bytes()))
    assert await anomalies(path, kind) == ["torn"]
    assert not await is_refused(path, kind)


async def test_a_file_store_that_could_not_be_synced_gets_no_clean_close_mark(
    tmp_path: Path, kind: str
) -> None:
    class SyncsFail(Disk):
        fails = False

        def sync(self, fd: int) -> None:
            if self.fails:
                raise OSError(5, os.strerror(5))
            super().sync(fd)

    path, disk = tmp_path / "store", SyncsFail()
    store = make(path, kind, disk=disk)
    await store.__aenter__()
    await store.append(event(1))
    disk.fails = True
    with pytest.raises(Exception, match="flush"):
        await store.aclose()
    assert b"closed" not in lock_of(path).read_bytes()


async def test_a_summary_names_the_writer_of_an_open_file_store_and_none_of_a_closed_one(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    await closed_cleanly(path, kind)
    async with make(path, kind, read_only=True) as reader:
        assert (await reader.summarize()).writer is None
        async with make(path, kind):
            assert str(os.getpid()) in ((await reader.summarize()).writer or "")
        assert (await reader.summarize()).writer is None


@pytest.mark.parametrize("call", ["ftruncate", "pwrite", "pread"])
async def test_an_unwritable_lock_file_keeps_no_file_store_from_compacting_and_closing(
    tmp_path: Path, kind: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    await closed_cleanly(path, kind)
    work = getattr(os, call)
    lock = lock_of(path).stat()

    def fail_for_the_lock(fd: int, *arguments: object) -> object:
        if os.path.samestat(os.fstat(fd), lock):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return work(fd, *arguments)

    async with make(path, kind) as store:
        monkeypatch.setattr(os, call, fail_for_the_lock)
        await store.compact()
        await store.append(event(99))
    monkeypatch.undo()
    async with make(path, kind) as store:
        assert (await store.scan()).is_clean
        assert (await store.append(event(99))).first_seq == COUNT + 2
