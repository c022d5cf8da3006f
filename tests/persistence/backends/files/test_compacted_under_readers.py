"""A compaction at any moment of a reading, and a reading at any moment of a compaction."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra.persistence import codec
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends.base import Batch
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event
from tests.extent import CI, STEP, some
from tests.persistence.backends.files.file_persistence import FilePersistence

#: What a disk is asked for while it is read, and while it is written.
READS = ("open", "close", "list", "stat", "read")
WRITES = ("create", "write", "truncate", "sync", "replace", "remove", "sync_directory")
CALLS = frozenset(READS + WRITES)
COUNT, KEPT = 23, 7
#: Whether all of the calls are interrupted, and not only some of the later ones.
EVERY_CALL = "PAPYRA_INTERLEAVINGS" in os.environ
#: How many are interrupted one by one, and every how many-th of the later ones: more in CI.
FIRST, LATER = (25, 3) if CI else (6, STEP)


@pytest.fixture
def anyio_backend() -> str:
    """It is the threads of the stores that meet."""
    return "asyncio"


class Interrupted(Disk):
    """Has something else happen before or after one of its calls."""

    def __init__(self) -> None:
        self.number = 0
        self.calls = 0
        self.interrupt: Callable[[], object] = lambda: None

    def __getattribute__(self, name: str) -> Any:
        real = super().__getattribute__(name)
        return functools.partial(self.call, real) if name in CALLS else real

    def call(self, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a call; what others do comes before or after it."""
        self.calls += 1
        if self.calls == self.number:
            self.interrupt()
        result = real(*arguments, **options)
        self.calls += 1
        if self.calls == self.number:
            self.interrupt()
        return result


def make(kind: str, path: Path, disk: Disk, *, read_only: bool = False) -> FilePersistence:
    policy = None if read_only else RetentionPolicy(max_records=KEPT)
    store: FilePersistence
    if kind == "json":
        store = JsonFilePersistence(
            path, retention_policy=policy, read_only=read_only, fsync="no", _disk=disk
        )
    else:
        store = RotatingFilePersistence(
            path,
            max_segment_records=5,
            retention_policy=policy,
            read_only=read_only,
            fsync="no",
            _disk=disk,
        )
    return store


def compact(store: FilePersistence) -> None:
    """Compact, in whichever thread this is."""
    store.store.blocking.drop_hidden(store.retention, 0.0)


def append(store: FilePersistence) -> None:
    """Begin a new segment or two, as another process does meanwhile."""
    journal: Journal = store.store.journal
    records = [event(n) for n in range(journal.last_seq + 1, journal.last_seq + 8)]
    batch = Batch(journal.last_seq + 1, records, codec.encode(records))
    journal.append(batch, lambda: None, sync=False)


async def look(reader: FilePersistence, count: int = COUNT) -> None:
    page = await reader.read("event", limit=1000)
    seqs = [record.seq or 0 for record in page.records]
    newest = max(seqs)
    assert COUNT <= newest <= COUNT + 7
    assert seqs[-KEPT:] == list(range(newest - KEPT + 1, newest + 1))
    assert seqs == sorted(set(seqs))
    report = await reader.scan()
    assert report.is_clean, report
    assert KEPT <= report.records_scanned <= COUNT + 7
    assert not (await reader.summarize()).damaged


async def fill(writer: FilePersistence) -> None:
    for number in range(1, COUNT + 1):
        await writer.append(event(number))


@pytest.mark.parametrize(
    ("kind", "is_open", "happens"),
    some(itertools.product(["json", "rotating"], [False, True], [compact, append]), every=3),
)
async def test_a_file_reader_sees_the_store_before_or_after_a_change_made_while_it_reads(
    tmp_path: Path, kind: str, is_open: bool, happens: Callable[[FilePersistence], None]
) -> None:
    number, step = 1, 1
    while True:
        path, disk = tmp_path / str(number), Interrupted()
        writer = make(kind, path, Disk())
        async with writer:
            await fill(writer)
            reader = make(kind, path, disk, read_only=True)
            if is_open:
                await look(reader)
                # With what the reader has open and in mind already.
                disk.calls = 0
            disk.number, disk.interrupt = number, lambda: happens(writer)  # noqa: B023
            await look(reader)
            await look(reader)
            await reader.aclose()
        if disk.calls < number:
            break
        number += step
        if number > FIRST and not EVERY_CALL:
            step = LATER
    assert number > 5


@pytest.mark.parametrize("kind", ["json", "rotating"])
async def test_a_file_reader_that_opens_amid_a_compaction_sees_no_record_twice(
    tmp_path: Path, kind: str
) -> None:
    number = 1
    while True:
        path, disk = tmp_path / str(number), Interrupted()
        writer = make(kind, path, disk)
        async with writer:
            await fill(writer)
            old = make(kind, path, Disk(), read_only=True)
            await look(old)

            def read(path: Path = path) -> None:
                async def with_a_new_one() -> None:
                    async with make(kind, path, Disk(), read_only=True) as reader:
                        await look(reader)

                anyio.run(with_a_new_one)

            disk.calls, disk.number, disk.interrupt = 0, number, read
            await writer.compact()
            calls = disk.calls
            await look(old)
            await old.aclose()
        if calls < number:
            break
        number += 1 if number < FIRST or EVERY_CALL else LATER
    assert number > 5
