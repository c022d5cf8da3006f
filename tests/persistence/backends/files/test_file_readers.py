"""Those who only read a store of files, and what a scan says on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from papyra.exceptions import StoreError, StoreReadOnly
from papyra.persistence import ScanProgress
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.conftest import MakeStore


async def numbers(store: PersistenceBackend) -> list[int]:
    return [e.payload["order_id"] async for e in store.stream("event")]


def snapshot(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_a_reader_sees_what_a_writer_has_written(make: MakeStore, tmp_path: Path) -> None:
    async with make() as writer:
        await writer.append(*map(event, range(1, 4)))
        async with make(read_only=True) as reader:
            assert await numbers(reader) == [1, 2, 3]
            for first in range(4, 40, 5):
                await writer.append(*map(event, range(first, first + 5)))
                before = snapshot(tmp_path)
                assert await numbers(reader) == list(range(1, first + 5))
                assert (await reader.scan()).is_clean
                assert reader.last_seq == first + 4
                assert snapshot(tmp_path) == before
            newest = await reader.list_events(limit=3)
            assert [e.seq for e in newest] == [41, 42, 43]


async def test_a_reader_goes_on_while_a_writer_compacts(make: MakeStore) -> None:
    async with make(retention_policy=RetentionPolicy(max_records=5)) as writer:
        await writer.append(*map(event, range(1, 36)))
        async with make(read_only=True) as reader:
            assert await numbers(reader) == list(range(1, 36))
            await writer.compact()
            assert await numbers(reader) == list(range(31, 36))
            await writer.append(event(36))
            assert await numbers(reader) == list(range(31, 37))
            assert (await reader.scan()).is_clean


async def test_a_file_reader_goes_on_when_a_segment_is_removed_as_it_opens_it(
    tmp_path: Path,
) -> None:
    class Removing(Disk):
        """Has the writer compact just when a segment that is to be dropped is opened."""

        writer: FilePersistence

        def open(self, path: Path, flags: int) -> int:
            if path.name == f"{11:020}.ndjson" and self.writer.metrics.compactions == 0:
                self.writer.metrics.compactions = 1
                self.writer.store.blocking.drop_hidden(self.writer.retention, 0.0)
            return super().open(path, flags)

    disk = Removing()
    policy = RetentionPolicy(max_records=5)
    disk.writer = RotatingFilePersistence(
        tmp_path, max_segment_records=10, fsync="no", retention_policy=policy
    )
    reader = RotatingFilePersistence(tmp_path, read_only=True, _disk=disk)
    async with disk.writer as writer:
        await writer.append(*map(event, range(1, 36)))
        for path in tmp_path.glob("*.index"):
            path.unlink()
        async with reader:
            assert await numbers(reader) == list(range(31, 36))
        assert writer.metrics.compactions == 1


async def test_a_read_only_file_store_refuses_to_append_recover_and_compact(
    make: MakeStore, tmp_path: Path
) -> None:
    async with make() as writer:
        await writer.append(event(1))
    async with make(read_only=True) as reader:
        for verb in (lambda: reader.append(event(2)), reader.recover, reader.compact):
            with pytest.raises(StoreReadOnly, match="was opened to be read only"):
                await verb()
        await reader.flush()
        assert await numbers(reader) == [1]


async def test_a_read_only_file_store_does_not_create_a_missing_store(
    make: MakeStore, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        await make(read_only=True).list_events()
    assert list(tmp_path.iterdir()) == []


async def test_a_scan_of_a_file_store_reports_its_progress_in_bytes(make: MakeStore) -> None:
    async with make() as store:
        # More than is read at once.
        records = [event(n, payload={"order_id": n, "text": "x" * 9000}) for n in range(1, 101)]
        await store.append(*records)
        said: list[ScanProgress] = []
        report = await store.scan(said.append)
        assert report.is_clean
        done = [progress.done for progress in said]
        assert len(said) > 3
        assert done == sorted(done)
        assert {progress.total for progress in said} == {done[-1]}
        assert done[-1] == report.bytes_scanned


def test_a_file_store_may_go_from_one_event_loop_to_another(make: MakeStore) -> None:
    store = make()
    for number in (1, 2, 3):
        appended = anyio.run(store.append, event(number))
        assert appended.first_seq == number
    assert anyio.run(numbers, store, backend="trio") == [1, 2, 3]
    anyio.run(store.aclose)


def test_a_program_that_never_closes_its_file_store_can_end(tmp_path: Path) -> None:
    code = """
import anyio, sys
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.json import JsonFilePersistence

async def main():
    store = JsonFilePersistence(sys.argv[1], fsync="everysec")
    await store.append(PersistedEvent("s", "s/a", "A", {}, 1.0))

anyio.run(main)
"""
    path = tmp_path / "events.ndjson"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
    assert json.loads(path.read_text())["seq"] == 1
