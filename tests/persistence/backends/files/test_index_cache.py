"""What a reader keeps for the next one: used where it holds, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.records import PersistedEvent
from papyra.persistence.reports import ScanProgress
from tests.conftest import event_loops
from tests.persistence.backends.files.appender import STORES
from tests.persistence.backends.files.file_persistence import FilePersistence

anyio_backend = event_loops("asyncio")

MakeStore: TypeAlias = Callable[..., FilePersistence]

#: Enough for more than is worth keeping.
MANY = 2_000


class Counting(Disk):
    """Counts the bytes that are read."""

    count = 0

    def read(self, fd: int, length: int, offset: int) -> bytes:
        data = super().read(fd, length, offset)
        self.count += len(data)
        return data


def an_event(number: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Counted", {"n": number}, 1_000.0 + number)


@pytest.fixture(params=["json", "rotating"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    def make_store(**options: Any) -> FilePersistence:
        if request.param == "json":
            return JsonFilePersistence(tmp_path / "events.ndjson", **options)
        return RotatingFilePersistence(tmp_path / "journal", **options)

    return make_store


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


async def bytes_to_open(make: MakeStore, kept: Path) -> tuple[int, Any]:
    """Open a reader; return how much it had to read for that, and what it sees."""
    disk = Counting()
    async with make(read_only=True, index_directory=kept, _disk=disk) as reader:
        opened = disk.count
        summary = await reader.summarize()
        newest = await reader.read("event", newest=True, limit=3)
        assert reader.metrics.write_errors == 0
    return opened, (summary.records, summary.record_bytes, newest)


async def test_a_file_reader_with_a_saved_index_reads_only_what_is_new(
    make: MakeStore, kept: Path
) -> None:
    async with make(fsync="no") as store:
        await store.append(*map(an_event, range(MANY)))
        first, seen = await bytes_to_open(make, kept)
        size = (await store.summarize()).stored_bytes or 0
        assert first >= size
        again, seen_again = await bytes_to_open(make, kept)
        assert seen_again == seen
        assert again < size / 10
        await store.append(an_event(MANY))
        _, (records, _, newest) = await bytes_to_open(make, kept)
        assert records["event"] == MANY + 1
        assert [record.seq for record in newest.records] == [MANY - 1, MANY, MANY + 1]
    assert {path.suffix for path in kept.iterdir()} == {".recall"}


async def test_a_file_reader_saves_its_index_in_the_cache_and_not_beside_the_store(
    make: MakeStore, kept: Path
) -> None:
    async with make(fsync="no") as store:
        await store.append(*map(an_event, range(MANY)))
        before = sorted(kept.parent.rglob("*"))
        await bytes_to_open(make, kept)
    after = sorted(path for path in kept.parent.rglob("*") if kept not in (path, *path.parents))
    assert after == before


def spoil_by_replacing(store: Path, record: Path) -> None:
    copy = store.with_suffix(".copy")
    copy.write_bytes(store.read_bytes())
    copy.replace(store)


def spoil_by_cutting(store: Path, record: Path) -> None:
    data = store.read_bytes()
    store.write_bytes(data[: data.index(b"\n", len(data) // 2) + 1])


def spoil_the_end(store: Path, record: Path) -> None:
    data = store.read_bytes()
    store.write_bytes(data[:-30] + b"9" + data[-29:])


def spoil_what_is_kept(store: Path, record: Path) -> None:
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 1
    record.write_bytes(data)


def empty_what_is_kept(store: Path, record: Path) -> None:
    record.write_bytes(b"")


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_by_replacing,
        spoil_by_cutting,
        spoil_the_end,
        spoil_what_is_kept,
        empty_what_is_kept,
    ],
)
async def test_a_file_readers_saved_index_that_does_not_match_the_store_is_not_used(
    make: MakeStore, kept: Path, spoil: Callable[[Path, Path], None]
) -> None:
    async with make(fsync="no") as store:
        await store.append(*map(an_event, range(MANY)))
    await bytes_to_open(make, kept)
    (path,) = [*kept.parent.glob("*.ndjson"), *kept.parent.glob("journal/*.ndjson")]
    (record,) = kept.iterdir()
    spoil(path, record)
    async with make().reader(index_directory=kept) as reader:
        found = await reader.summarize()
        events = [event.payload["n"] for event in await reader.list_events()]
    async with make().reader() as reader:
        assert await reader.summarize() == found
        assert [event.payload["n"] for event in await reader.list_events()] == events


async def test_a_file_reader_works_without_a_writable_index_directory(
    make: MakeStore, kept: Path
) -> None:
    kept.write_text("this is no directory")
    async with make(fsync="no") as store:
        await store.append(*map(an_event, range(MANY)))
        for _ in range(2):
            _, (records, *_) = await bytes_to_open(make, kept)
            assert records["event"] == MANY


async def test_a_file_readers_index_that_was_not_written_for_a_month_is_removed(
    make: MakeStore, kept: Path
) -> None:
    kept.mkdir()
    days = {"old.recall": 31, "young.recall": 29, "old.of-somebody-else": 31}
    for name, age in days.items():
        (kept / name).write_bytes(b"")
        then = time.time() - age * 86400
        os.utime(kept / name, (then, then))
    async with make(fsync="no") as store:
        await store.append(*map(an_event, range(MANY)))
    await bytes_to_open(make, kept)
    (own,) = {path.name for path in kept.iterdir()} - days.keys()
    assert {path.name for path in kept.iterdir()} == {
        own,
        "young.recall",
        "old.of-somebody-else",
    }


async def test_damage_that_a_file_reader_has_seen_is_known_to_the_next_reader(
    make: MakeStore, kept: Path
) -> None:
    async with make(fsync="no") as store:
        await store.append(*map(an_event, range(MANY)))
    (path,) = [*kept.parent.glob("*.ndjson"), *kept.parent.glob("journal/*.ndjson")]
    path.write_bytes(path.read_bytes().replace(b'{"n":7}', b'{"n":8}', 1))
    for _ in range(2):
        async with make().reader(index_directory=kept) as reader:
            assert (await reader.summarize()).damaged
            assert not (await reader.scan()).is_clean


async def test_a_scan_reads_a_whole_file_in_spite_of_a_saved_index(
    make: MakeStore, kept: Path
) -> None:
    async with make(fsync="no") as store:
        await store.append(*map(an_event, range(MANY)))
    await bytes_to_open(make, kept)
    (path,) = [*kept.parent.glob("*.ndjson"), *kept.parent.glob("journal/*.ndjson")]
    data = path.read_bytes()
    stat = path.stat()
    with path.open("r+b") as file:  # in place, and with the same time
        file.write(data.replace(b'{"n":7}', b'{"n":8}', 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    async with make().reader(index_directory=kept) as reader:
        (anomaly,) = (await reader.scan()).anomalies
        assert (anomaly.kind, anomaly.seq) == ("checksum", 8)


async def test_a_file_reader_waits_for_the_rest_of_a_line_that_is_being_written(
    make: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that is not at its end is no torn line."""
    async with make(fsync="no") as store:
        await store.append(*map(an_event, range(3)))
    (path,) = [*tmp_path.glob("*.ndjson"), *tmp_path.glob("journal/*.ndjson")]
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    async with make().reader() as reader:
        assert [anomaly.kind for anomaly in (await reader.scan()).anomalies] == ["torn"]
    monkeypatch.setattr(
        "papyra.persistence.backends._files.line_reader.sleep",
        lambda seconds: path.write_bytes(data),
    )
    async with make().reader() as reader:
        assert (await reader.scan()).is_clean
        assert len(await reader.list_events()) == 3


async def test_a_file_readers_summary_names_the_process_that_writes(make: MakeStore) -> None:
    reader = make().reader()
    async with make() as store:
        await store.append(an_event(1))
        async with reader:
            assert f"process {os.getpid()} on" in str((await reader.summarize()).writer)
            await store.aclose()
            assert (await reader.summarize()).writer is None


@pytest.mark.parametrize("name", ["json", "rotating"])
async def test_a_file_readers_summary_names_no_writer_once_the_process_was_killed(
    tmp_path: Path, name: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.persistence.backends.files.appender",
        name,
        str(tmp_path / "s"),
        "no",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        async with STORES[name](tmp_path / "s").reader() as reader:
            assert f"process {process.pid} on" in str((await reader.summarize()).writer)
            process.kill()
            process.wait()
            assert (await reader.summarize()).writer is None


async def test_opening_a_file_store_reports_its_progress(tmp_path: Path) -> None:
    store = JsonFilePersistence(tmp_path / "events.ndjson", fsync="no")
    async with store:
        await store.append(*map(an_event, range(5 * MANY)))
    told: list[ScanProgress] = []
    kept = tmp_path / "kept"
    for _ in range(2):
        async with store.reader(index_directory=kept, opening=told.append) as reader:
            assert reader.last_seq == 5 * MANY
    size = store.path.stat().st_size
    assert told[-1] == ScanProgress(size, size)
    assert told[0].done < size
    assert [progress.done for progress in told].count(size) >= 2
