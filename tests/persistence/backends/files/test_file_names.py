"""A store is the file that was opened, whatever it is called, and whatever becomes of its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from papyra import ActorSystem
from papyra.exceptions import BackendInUse, InvalidPath, StoreChanged, StoreError, StoreMoved
from papyra.persistence import Append, PersistenceActor, PersistenceRecoveryConfig, codec
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends.base import Batch
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event
from tests.conftest import event_loops, kind_for
from tests.extent import CI
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.conftest import FILES

anyio_backend = event_loops("asyncio")

KEEP_TWO = RetentionPolicy(max_records=2)


def open_store(kind: str, path: Any, **options: Any) -> FilePersistence:
    options = {"fsync": "no"} | options
    if kind == "json":
        return JsonFilePersistence(path, **options)
    return RotatingFilePersistence(path, max_segment_records=3, **options)


@pytest.fixture(params=FILES if CI else None)
def kind(request: pytest.FixtureRequest) -> str:
    return kind_for(request, FILES)


async def numbers(store: FilePersistence) -> list[int]:
    return [e.payload["order_id"] for e in await store.list_events()]


async def stored(kind: str, path: Any) -> list[int]:
    async with open_store(kind, path, read_only=True) as store:
        assert (await store.scan()).is_clean
        return await numbers(store)


@contextmanager
def working_in(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def mounted(source: Path, target: Path) -> Iterator[bool]:
    """Mount a file or a directory under a second name; say whether this process may do that."""
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    command = ["mount", "--bind", str(source), str(target)]
    may = bool(shutil.which("mount")) and not subprocess.run(command, check=False).returncode
    try:
        yield may
    finally:
        if may:
            subprocess.run(["umount", str(target)], check=True)


# Two names


async def refuse_a_second_writer(kind: str, name: Any) -> None:
    with pytest.raises(BackendInUse, match=rf"process {os.getpid()} on .* has .* open"):
        await open_store(kind, name).append(event(9))


@pytest.mark.parametrize("how", ["link", "chain", "folder", "relative", "dots"])
async def test_a_file_store_has_one_writer_by_whatever_name_it_is_opened(
    tmp_path: Path, kind: str, how: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    path = place / "store"
    names: dict[str, Any] = {
        "link": tmp_path / "link",
        "chain": tmp_path / "chain",
        "folder": tmp_path / "folder" / "store",
        "relative": "place/../place/store",
        "dots": tmp_path / "folder" / ".." / "place" / "store",
    }
    (tmp_path / "link").symlink_to(Path("place", "store"))
    (tmp_path / "chain").symlink_to("link")
    (tmp_path / "folder").symlink_to(place)
    with working_in(tmp_path):
        for first, second in ((path, names[how]), (names[how], path)):
            async with open_store(kind, first) as store:
                await store.append(event(1))
                await refuse_a_second_writer(kind, second)
                await store.compact(KEEP_TWO)
                await store.append(*map(event, range(5)))
                await store.compact(KEEP_TWO)
                await refuse_a_second_writer(kind, second)
        async with open_store(kind, names[how]) as store:
            assert (await numbers(store))[-2:] == [3, 4]


async def test_a_hard_link_is_no_second_store(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    async with open_store("json", path) as store:
        await store.append(*map(event, range(5)))
        other.hardlink_to(path)
        await refuse_a_second_writer("json", other)
        # Written anew, it would be two stores, of which one goes on with old positions.
        with pytest.raises(StoreError, match=r"a has 2 names \(hard links\)"):
            await store.compact(KEEP_TWO)
        await store.append(event(5))
        assert await stored("json", other) == [0, 1, 2, 3, 4, 5]
        other.unlink()
        await store.compact(KEEP_TWO)
        assert await numbers(store) == [4, 5]


async def test_hard_linked_segments_of_a_rotating_store_allow_compaction_but_no_second_writer(
    tmp_path: Path,
) -> None:
    """So they are no reason not to compact, but nobody writes to the one that is written to."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    async with open_store("rotating", path) as store:
        await store.append(*map(event, range(8)))
        copy.mkdir()
        for segment in path.glob("*.ndjson"):
            (copy / segment.name).hardlink_to(segment)
        with pytest.raises(BackendInUse, match=rf"process {os.getpid()} .*copy/0+7.ndjson open"):
            await open_store("rotating", copy).append(event(9))
        await store.compact(KEEP_TWO)
        await store.append(event(8))
    assert await stored("rotating", path) == [6, 7, 8]
    assert await stored("rotating", copy) == list(range(9)), "and what came into the last one"


async def test_a_mount_is_no_second_store(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "store", tmp_path / "mounted"
    async with open_store(kind, path) as store:
        await store.append(event(1))
        with mounted(path, other) as is_mounted:
            if is_mounted:
                await refuse_a_second_writer(kind, other)
            await store.append(event(2))
    assert await stored(kind, path) == [1, 2]


async def test_removing_the_lock_file_lets_no_second_writer_into_a_file_store(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    lock = tmp_path / "store.lock" if kind == "json" else path / ".lock"
    async with open_store(kind, path) as store:
        await store.append(event(1))
        for _ in range(2):
            lock.unlink()
            await refuse_a_second_writer(kind, path)
        await store.append(*map(event, range(2, 8)))
        await store.compact(KEEP_TWO)
        lock.unlink()
        await refuse_a_second_writer(kind, path)
    async with open_store(kind, path) as store:
        assert await numbers(store) == [6, 7]


async def test_a_file_store_that_was_in_use_can_be_opened_once_it_is_free(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    (tmp_path / "link").symlink_to(path)
    second = open_store(kind, tmp_path / "link")
    async with open_store(kind, path) as first:
        await first.append(event(1))
        for _ in range(3):
            with pytest.raises(BackendInUse):
                await second.append(event(2))
    assert (await second.append(event(2))).first_seq == 2
    await second.aclose()


def test_only_one_of_many_concurrent_writers_opens_a_file_store(tmp_path: Path, kind: str) -> None:
    """Be the lock file removed between any two steps of theirs."""
    path = tmp_path / "store"
    lock = tmp_path / "store.lock" if kind == "json" else path / ".lock"
    holders: list[int] = []
    most: list[int] = []
    done = threading.Event()

    def remove_locks() -> None:
        while not done.is_set():
            lock.unlink(missing_ok=True)

    def write() -> None:
        for _ in range(60):
            store = open_store(kind, path)
            try:
                store.store.blocking.open()
            except BackendInUse:
                continue
            holders.append(1)
            most.append(len(holders))
            holders.pop()
            store.store.blocking.close()

    remover = threading.Thread(target=remove_locks)
    writers = [threading.Thread(target=write) for _ in range(4)]
    remover.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    remover.join()
    assert set(most) == {1}


async def test_no_second_writer_opens_a_rotating_store_while_a_segment_is_begun(
    tmp_path: Path,
) -> None:
    """Not even without a lock file: what was the last segment is not locked any more."""
    path = tmp_path / "store"
    first = open_store("rotating", path)
    await first.append(*map(event, range(3)))
    (path / ".lock").unlink()

    class Late(Disk):
        """Opens the last segment when another one follows it already."""

        def open(self, path: Path, flags: int) -> int:
            if path.suffix == ".ndjson" and first.last_seq == 3:
                records = [event(3)]
                batch = Batch(4, records, codec.encode(records))
                first.store.journal.append(batch, lambda: None, sync=False)
            return super().open(path, flags)

    second = open_store("rotating", path, _disk=Late())
    with pytest.raises(BackendInUse, match=rf"process {os.getpid()} on"):
        await second.append(event(9))
    await first.aclose()


def test_a_file_lock_is_taken_on_the_lock_file_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"

    class Removed(Disk):
        """Finds the lock file removed just before it is locked, as often as it is told."""

        left = 2

        def lock(self, fd: int) -> None:
            if self.left:
                self.left -= 1
                path.unlink()
            super().lock(fd)

    first, second = FileLock(path, tmp_path, disk=Removed()), FileLock(path, tmp_path)
    first.acquire()
    with pytest.raises(BackendInUse):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


async def test_a_duplicated_descriptor_does_not_keep_a_closed_file_store_locked(
    tmp_path: Path, kind: str
) -> None:
    """Such as a sync has that goes on in another thread."""
    path = tmp_path / "store"
    store = open_store(kind, path)
    await store.append(event(1))
    (file,) = store.store.journal.files(newest=True)
    copy = os.dup(file.handle.fd)
    await store.aclose()
    async with open_store(kind, path) as store:
        await store.append(event(2))
    os.close(copy)


# Links


async def test_a_symbolic_link_to_a_file_store_stays_one_after_compaction_and_recovery(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "place").mkdir()
    path, link = tmp_path / "place" / "store", tmp_path / "link"
    link.symlink_to(path)  # which is not there yet
    async with open_store(kind, link) as store:
        await store.append(*map(event, range(1, 9)))
        await store.compact(KEEP_TWO)
        await store.append(event(9))
    files = [path] if kind == "json" else sorted(path.glob("*.ndjson"))
    files[-1].write_bytes(b"xx\n" + files[-1].read_bytes())
    async with open_store(kind, link) as store:
        report = await store.recover(PersistenceRecoveryConfig("quarantine"))
        assert report.scan.is_clean
        (aside,) = report.quarantined
        assert Path(aside).is_relative_to(tmp_path / "place")
    assert link.is_symlink()
    assert await stored(kind, path) == [7, 8, 9]
    assert sorted(tmp_path.iterdir()) == [link, tmp_path / "place"]


async def test_a_file_store_notices_that_its_symbolic_link_leads_elsewhere(
    tmp_path: Path, kind: str
) -> None:
    link = tmp_path / "link"
    for name in ("one", "two"):
        async with open_store(kind, tmp_path / name) as store:
            await store.append(event(1))
    link.symlink_to("one")
    store = open_store(kind, link)
    await store.list_events()
    link.unlink()
    link.symlink_to("two")
    verbs: list[Callable[[], Any]] = [lambda: store.append(event(2)), store.aclose]
    for verb in verbs:
        with pytest.raises(StoreMoved, match=r"link\S* was replaced"):
            await verb()
    assert await stored(kind, tmp_path / "one") == await stored(kind, tmp_path / "two") == [1]


# The working directory


async def test_a_relative_path_of_a_file_store_survives_a_change_of_directory(
    tmp_path: Path, kind: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with working_in(tmp_path):
        store = open_store(kind, "store")
        unopened = open_store(kind, "other")
        assert store.location == "store"
        await store.append(event(1))
        os.chdir(elsewhere)
        await store.append(*map(event, range(2, 9)))
        await store.compact(KEEP_TWO)
        await store.append(event(9))
        reader = store.reader()
        assert isinstance(reader, FilePersistence)
        assert await numbers(reader) == [7, 8, 9]
        await reader.aclose()
        await store.recover(PersistenceRecoveryConfig("quarantine"))
        await store.aclose()
        await unopened.append(event(1))
        await unopened.aclose()
        assert list(elsewhere.iterdir()) == []
    assert await stored(kind, tmp_path / "store") == [7, 8, 9]
    assert await stored(kind, tmp_path / "other") == [1]


# What others do to it


def files_of(kind: str, path: Path) -> list[Path]:
    return [path] if kind == "json" else sorted(path.glob("*.ndjson"))


def rename(kind: str, path: Path) -> None:
    path.rename(path.with_name("away"))


def rename_file(kind: str, path: Path) -> None:
    last = files_of(kind, path)[-1]
    last.rename(path.with_name("away"))


def remove(kind: str, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def replace(kind: str, path: Path) -> None:
    """Do what an editor does, or a restore: the same bytes, in another file."""
    copy = path.with_name("copy")
    if path.is_dir():
        shutil.copytree(path, copy)
        path.rename(path.with_name("away"))
    else:
        shutil.copy2(path, copy)
    copy.replace(path)


def rotate_log(kind: str, path: Path) -> None:
    last = files_of(kind, path)[-1]
    last.rename(last.with_name(f".{last.name}.1"))
    last.touch()


def replace_by_file(kind: str, path: Path) -> None:
    remove(kind, path)
    path.write_bytes(b"") if kind == "rotating" else path.mkdir()


def contents(path: Path) -> dict[Path, bytes]:
    files = (p for p in path.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    return {file: file.read_bytes() for file in files}


MOVES: list[Callable[[str, Path], None]] = [
    rename,
    rename_file,
    remove,
    replace,
    rotate_log,
    replace_by_file,
]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
@pytest.mark.parametrize("fsync", ["always", "no"])
async def test_a_file_store_that_was_moved_or_replaced_acknowledges_nothing(
    tmp_path: Path, kind: str, move: Callable[[str, Path], None], fsync: str
) -> None:
    path = tmp_path / "store"
    store = open_store(kind, path, fsync=fsync)
    await store.append(*map(event, range(1, 6)))
    move(kind, path)
    before = contents(tmp_path)
    verbs: list[Callable[[], Any]] = [
        lambda: store.append(event(6)),
        lambda: store.append(*map(event, range(6, 20))),
        store.scan,
        store.recover,
        lambda: store.compact(KEEP_TWO),
        store.flush,
        lambda: store.append(event(6)),
    ]
    for verb in verbs:
        with pytest.raises(StoreMoved, match=r"store\S* was (renamed|replaced)"):
            await verb()
    with pytest.raises(StoreMoved):
        await store.aclose()
    assert contents(tmp_path) == before, "nothing was written anywhere"


async def test_a_file_store_that_was_moved_goes_on_once_it_is_put_back(
    tmp_path: Path, kind: str
) -> None:
    path, away = tmp_path / "store", tmp_path / "away"
    async with open_store(kind, path) as store:
        await store.append(event(1))
        path.rename(away)
        for _ in range(2):
            with pytest.raises(StoreMoved):
                await store.append(event(2))
        away.rename(path)
        assert (await store.append(event(3))).first_seq == 2
        assert (await store.scan()).is_clean
    assert await stored(kind, path) == [1, 3]


class MovedInBetween(Disk):
    """Does something to a store when its bytes are written, before that is acknowledged."""

    def __init__(self) -> None:
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.before()
        written = super().write(fd, data, offset)
        self.after()
        return written


async def test_a_record_written_while_its_file_store_is_moved_is_removed_again(
    tmp_path: Path, kind: str
) -> None:
    path, away = tmp_path / "store", tmp_path / "away"
    disk = MovedInBetween()
    store = open_store(kind, path, _disk=disk)
    await store.append(event(1))
    disk.after = lambda: path.exists() and path.rename(away)
    with pytest.raises(StoreMoved):
        await store.append(event(2))
    with pytest.raises(StoreMoved):
        await store.aclose()
    assert await stored(kind, away) == [1]


async def test_a_file_cut_off_during_an_append_gets_no_hole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    disk = MovedInBetween()
    store = open_store(kind, path, _disk=disk)
    await store.append(*map(event, range(2)))
    (file,) = files_of(kind, path)
    disk.after = lambda: os.truncate(file, 10)
    for _ in range(2):
        with pytest.raises(StoreChanged):
            await store.append(event(2))
        assert file.stat().st_size == 10
    await store.aclose()


async def test_a_file_cut_off_just_before_an_append_is_noticed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    disk = MovedInBetween()
    store = open_store(kind, path, _disk=disk)
    await store.append(*map(event, range(2)))
    (file,) = files_of(kind, path)
    once = iter([0])

    def cut_off() -> None:
        for length in once:
            os.truncate(file, length)

    disk.before = cut_off
    for _ in range(2):
        with pytest.raises(StoreChanged):
            await store.append(event(2))
    assert not (await store.scan()).is_clean
    disk.before = lambda: None
    assert (await store.recover()).scan.is_clean
    assert (await store.append(event(2))).first_seq == 3
    await store.aclose()
    assert await stored(kind, path) == [2]


async def test_a_file_store_named_in_proc_is_the_file_that_the_descriptor_has_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    with path.open("ab") as file:
        name = f"/proc/self/fd/{file.fileno()}"
        if not Path(name).exists():
            name = str(path)  # on a system that has no such names
        async with open_store("json", name) as store:
            await store.append(event(1))
            await refuse_a_second_writer("json", path)
        path.unlink()
        with pytest.raises(StoreError):
            await open_store("json", name, read_only=True).list_events()
        if name != str(path):
            with pytest.raises(StoreMoved):
                await open_store("json", name).append(event(2))
            assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


async def test_unsynced_records_are_not_written_again_into_a_replaced_file(
    tmp_path: Path, kind: str
) -> None:
    class NotSynced(Disk):
        fails = True

        def sync(self, fd: int) -> None:
            if self.fails:
                raise OSError(5, "the device is gone")
            super().sync(fd)

    path = tmp_path / "store"
    disk = NotSynced()
    store = open_store(kind, path, _disk=disk)
    await store.append(event(1))
    with pytest.raises(StoreError, match="the device is gone"):
        await store.flush()
    disk.fails = False
    rotate_log(kind, path)
    for verb in (store.flush, lambda: store.append(event(2)), store.aclose):
        with pytest.raises(StoreMoved):
            await verb()
    assert files_of(kind, path)[0].read_bytes() == b""


@pytest.mark.parametrize("left", [0, 100, -1])
async def test_a_file_store_that_another_program_cut_off_acknowledges_nothing(
    tmp_path: Path, kind: str, left: int
) -> None:
    """As ``logrotate`` does it with ``copytruncate``."""
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.append(event(1), event(2))
        (file,) = files_of(kind, path)
        data = file.read_bytes()[:left]
        os.truncate(file, len(data))
        for _ in range(2):
            with pytest.raises(StoreChanged, match=r"was cut off or written to by another program"):
                await store.append(event(3))
            assert file.read_bytes() == data, "not a hole, not a byte"
        assert not (await store.scan()).is_clean
        report = await store.recover()
        assert report.scan.is_clean
        # No position is given twice.
        assert (await store.append(event(3))).first_seq == 3
    expected = [3] if left != -1 else [1, 3]
    assert await stored(kind, path) == expected


async def test_a_file_store_does_not_write_over_what_another_program_appended(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.append(event(1))
        (file,) = files_of(kind, path)
        with file.open("ab") as other:
            other.write(b"mine\n")
        for _ in range(2):
            with pytest.raises(StoreChanged):
                await store.append(event(2))
        assert file.read_bytes().endswith(b"mine\n")
        report = await store.recover(PersistenceRecoveryConfig("quarantine"))
        assert report.scan.is_clean
        assert b"mine\n" in b"".join(
            p.read_bytes() for p in tmp_path.rglob("*") if "damaged" in str(p) and p.is_file()
        )
        await store.append(event(2))
    async with open_store(kind, path) as store:
        assert await numbers(store) == [1, 2]


async def test_a_rotating_store_reports_a_removed_segment_and_does_not_create_it_anew(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    async with open_store("rotating", path) as store:
        await store.append(*map(event, range(1, 9)))
        removed = path / f"{4:020}.ndjson"
        removed.unlink()
        with pytest.raises(StoreError, match="No such file"):
            await store.list_events()
        report = await store.scan()
        assert [a.kind for a in report.anomalies] == ["missing_segment"]
        assert not removed.exists()
        assert (await store.recover()).scan.is_clean
        await store.append(event(9))
    async with open_store("rotating", path) as store:
        assert await numbers(store) == [1, 2, 3, 7, 8, 9]


async def test_a_system_goes_on_while_its_file_store_is_moved_away(
    tmp_path: Path, kind: str
) -> None:
    path, away = tmp_path / "store", tmp_path / "away"
    async with ActorSystem("s", persistence=open_store(kind, path), breaker=None) as system:
        await system.persistence.ask(Append(event(1)))
        path.rename(away)
        with pytest.raises(StoreMoved):
            await system.persistence.ask(Append(event(2)))
        away.rename(path)
        await system.persistence.ask(Append(event(3)))
    assert [n for n in await stored_orders(kind, path) if n] == [1, 3]


async def stored_orders(kind: str, path: Path) -> list[int | None]:
    async with open_store(kind, path, read_only=True) as store:
        return [e.payload.get("order_id") for e in await store.list_events()]


# Paths


@pytest.mark.parametrize("path", ["", b"", "a\0b", None, 7, "~nobody-of-that-name/x"])
def test_an_invalid_path_of_a_file_store_is_an_error(kind: str, path: Any) -> None:
    with pytest.raises(InvalidPath):
        open_store(kind, path)


async def test_a_file_store_takes_its_path_as_text_as_bytes_or_as_a_path_object(
    tmp_path: Path, kind: str
) -> None:
    class Named:
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "store")

    for number, path in enumerate((str(tmp_path / "store"), Named(), bytes(tmp_path / "store"))):
        async with open_store(kind, path) as store:
            assert (await store.append(event(number))).first_seq == number + 1
            assert store.location == str(tmp_path / "store")


async def test_reports_of_a_file_store_whose_path_is_not_unicode_can_be_encoded(
    tmp_path: Path, kind: str
) -> None:
    path = bytes(tmp_path / "st") + b"\xffore"
    async with open_store(kind, path) as store:
        await store.append(event(1))
        (file,) = files_of(kind, Path(os.fsdecode(path)))
        file.write_bytes(b"xx\n" + file.read_bytes())
        report, summary = await store.scan(), await store.summarize()
        assert b"xffore" in msgspec.json.encode(report)
        assert b"xffore" in msgspec.json.encode(summary)
        assert (await store.recover()).scan.is_clean


async def test_a_tilde_in_the_path_of_a_file_store_is_the_home_directory(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with open_store(kind, "~/store") as store:
        await store.append(event(1))
    assert await stored(kind, tmp_path / "store") == [1]


def unopenable(tmp_path: Path, kind: str) -> Iterator[Path]:
    file, pipe, folder = tmp_path / "file", tmp_path / "pipe", tmp_path / "folder"
    file.write_bytes(b"")
    os.mkfifo(pipe)
    folder.mkdir()
    (tmp_path / "loop").symlink_to("loop")
    yield file / "below"
    yield tmp_path / "loop"
    yield pipe
    yield tmp_path / ("n" * 300)
    if kind == "json":
        yield tmp_path / "missing" / "store"
        yield folder
        yield tmp_path / ("n" * 252)  # so that its lock file is too long
    else:
        yield file


@pytest.mark.parametrize("read_only", [False, True])
async def test_an_error_on_opening_a_file_store_names_the_path(
    tmp_path: Path, kind: str, read_only: bool
) -> None:
    for path in unopenable(tmp_path, kind):
        if read_only and path.name == "n" * 252:
            continue
        store = open_store(kind, path, read_only=read_only)
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                await store.list_events()
            assert str(path) in str(caught.value)
            assert "open failed" in str(caught.value)


async def test_a_new_persistence_actor_can_open_the_path_of_a_moved_file_store(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    store = open_store(kind, path)
    async with ActorSystem("s") as system:
        ref = system.spawn(PersistenceActor, store)
        await ref.ask(Append(event(1)))
        path.rename(tmp_path / "away")
        with pytest.raises(StoreMoved):
            await ref.ask(Append(event(2)))
        await ref.stop()
        await system.spawn(PersistenceActor, store).ask(Append(event(3)))
    assert await stored(kind, path) == [3]
