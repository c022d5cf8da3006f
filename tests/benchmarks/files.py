"""The rows about files."""

from __future__ import annotations

import functools
import os
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import anyio
import msgspec
from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import SQLiteAggregateRecorder, SQLiteDatastore

from papyra import ActorSystem
from papyra.persistence import (
    Append,
    Flush,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    PersistenceActor,
)
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.benchmarks.table import Loop, Options, Result, Row, compare
from tests.benchmarks.workload import ask_from_tasks, build
from tests.persistence.backends.files.file_persistence import FilePersistence

__all__ = ("FILE_ROWS",)

#: Bytes that are copied at once.
CHUNK = 1024 * 1024


@functools.cache
def directory() -> tempfile.TemporaryDirectory[str]:
    # Kept until the interpreter ends, and removed then.
    return tempfile.TemporaryDirectory(prefix="papyra-benchmarks-")


def new_path() -> Path:
    return Path(directory().name) / uuid.uuid4().hex


Make = Callable[..., FilePersistence]
MAKERS: dict[str, Make] = {"json": JsonFilePersistence, "rotating": RotatingFilePersistence}


# Appending


def bare_batches(count: int) -> float:
    """Build records, encode a thousand at once, and write them."""
    encode_lines = msgspec.json.Encoder().encode_lines
    fd = os.open(new_path(), os.O_WRONLY | os.O_CREAT)
    started = time.perf_counter()
    for first in range(0, count, 1000):
        records = [build(number) for number in range(first, min(first + 1000, count))]
        os.write(fd, encode_lines(records))
    seconds = time.perf_counter() - started
    os.close(fd)
    return seconds


def bare_syncs(count: int) -> float:
    """Build a record, encode it, write it, and sync it, one after the other."""
    encode = msgspec.json.Encoder().encode
    fd = os.open(new_path(), os.O_WRONLY | os.O_CREAT)
    started = time.perf_counter()
    for number in range(count):
        os.write(fd, encode(build(number)) + b"\n")
        os.fdatasync(fd)
    seconds = time.perf_counter() - started
    os.close(fd)
    return seconds


def sqlite_inserts(count: int) -> float:
    """Insert events one by one with `eventsourcing`, into SQLite."""
    datastore = SQLiteDatastore(db_name=str(new_path()))
    recorder = SQLiteAggregateRecorder(datastore)
    recorder.create_table()
    originator, encode = uuid.uuid4(), msgspec.json.Encoder().encode
    started = time.perf_counter()
    for number in range(count):
        state = encode(build(number).payload)
        recorder.insert_events([StoredEvent(originator, number, "OrderPlaced", state)])
    seconds = time.perf_counter() - started
    datastore.close()
    return seconds


async def hosted(work: Callable[[Any], Awaitable[None]], kind: str, fsync: str) -> float:
    backend = MAKERS[kind](new_path(), fsync=fsync)
    async with ActorSystem(audit_interval=None) as system:
        ref = system.spawn(PersistenceActor, backend)
        await ref.ask(Flush())
        started = time.perf_counter()
        await work(ref)
        return time.perf_counter() - started


async def timed_tells(kind: str, count: int) -> float:
    async def work(ref: Any) -> None:
        for number in range(count):
            await ref.tell(Append(build(number)))
        await ref.ask(Append(build(count)))

    return await hosted(work, kind, "no")


async def timed_asks(kind: str, count: int, tasks: int) -> float:
    async def work(ref: Any) -> None:
        await ask_from_tasks(ref, count, tasks)

    return await hosted(work, kind, "always")


def tells(kind: str) -> Callable[[Loop, Options], Result]:
    def measure(loop: Loop, options: Options) -> Result:
        count = options.count(100_000)
        return compare(
            options, count, lambda: bare_batches(count), lambda: loop.run(timed_tells, kind, count)
        )

    return measure


def ask_one(kind: str) -> Callable[[Loop, Options], Result]:
    def measure(loop: Loop, options: Options) -> Result:
        count = options.count(1000)
        subject = functools.partial(loop.run, timed_asks, kind, count, 1)
        return compare(options, count, lambda: bare_syncs(count), subject)

    return measure


def ask_256(reference: Callable[[Loop, int], float]) -> Callable[[Loop, Options], Result]:
    def measure(loop: Loop, options: Options) -> Result:
        count = options.count(500)
        many = count * 64
        return compare(
            options,
            many,
            lambda: reference(loop, count) * many / count,
            lambda: loop.run(timed_asks, "json", many, 256),
        )

    return measure


def one_task(loop: Loop, count: int) -> float:
    return loop.run(timed_asks, "json", count, 1)


# Reading


async def fill(path: Path, count: int, kind: str) -> None:
    async with MAKERS[kind](path, fsync="no") as backend:
        for first in range(0, count, 5000):
            await backend.append(*map(build, range(first, min(first + 5000, count))))


@functools.cache
def filled(count: int, kind: str = "json") -> Path:
    path = new_path()
    anyio.run(fill, path, count, kind)
    return path


def bare_scan(path: Path) -> float:
    """Split the bytes into lines, look at each checksum, and decode each record."""
    decode = msgspec.json.Decoder(PersistedEvent | PersistedAudit | PersistedDeadLetter).decode
    wrong = 0
    started = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            wrong += crc32(line[18:-1]) != int(line[8:16], 16)
            decode(line)
    seconds = time.perf_counter() - started
    assert not wrong
    return seconds


async def open_and_scan(path: Path) -> float:
    started = time.perf_counter()
    async with JsonFilePersistence(path) as backend:
        assert (await backend.scan()).is_clean
        return time.perf_counter() - started


def scanning(loop: Loop, options: Options) -> Result:
    count = options.count(1_000_000)
    path = filled(count)
    return compare(options, count, lambda: bare_scan(path), lambda: loop.run(open_and_scan, path))


async def newest_ten(path: Path, kind: str, count: int) -> float:
    async with MAKERS[kind](path, fsync="no") as backend:
        await backend.list_events(limit=10)
        started = time.perf_counter()
        for _ in range(count):
            await backend.list_events(limit=10)
        return time.perf_counter() - started


def reading(kind: str) -> Callable[[Loop, Options], Result]:
    def measure(loop: Loop, options: Options) -> Result:
        size, count = options.count(1_000_000), options.count(500)
        small = functools.partial(loop.run, newest_ten, filled(1000, kind), kind, count)
        large = functools.partial(loop.run, newest_ten, filled(size, kind), kind, count)
        # How many times as long: what took longer is the reference.
        return compare(options, count, large, small)

    return measure


# Compacting


def copy_half(path: Path) -> float:
    """Copy the last half of a file, and sync it."""
    data = path.stat().st_size
    started = time.perf_counter()
    with path.open("rb") as source, new_path().open("wb") as target:
        source.seek(data // 2)
        while chunk := source.read(CHUNK):
            target.write(chunk)
        target.flush()
        os.fdatasync(target.fileno())
    return time.perf_counter() - started


async def compact_half(path: Path, count: int) -> float:
    policy = RetentionPolicy(max_records=count // 2)
    async with JsonFilePersistence(path, fsync="no", retention_policy=policy) as backend:
        started = time.perf_counter()
        report = await backend.compact()
        seconds = time.perf_counter() - started
        assert report.records_after == count // 2
    return seconds


def compacting(loop: Loop, options: Options) -> Result:
    count = options.count(1_000_000)
    path = filled(count)

    def compact() -> float:
        copy = new_path()
        copy.write_bytes(path.read_bytes())
        seconds = loop.run(compact_half, copy, count)
        copy.unlink()
        return seconds

    return compare(options, count, compact, lambda: copy_half(path))


FILE_ROWS = [
    Row("JSON file, tell, fsync=no", "encode_lines, os.write", 0.2, False, tells("json")),
    Row("rotating files, tell, fsync=no", "encode_lines, os.write", 0.2, False, tells("rotating")),
    Row("JSON file, ask, one task, synced", "os.write, os.fdatasync", 0.5, False, ask_one("json")),
    Row("rotating, ask, one task, synced", "the same", 0.5, False, ask_one("rotating")),
    Row("JSON file, ask, 256 tasks, synced", "ask, one task", 20, False, ask_256(one_task)),
    Row("the same", "eventsourcing, SQLite", 20, False, ask_256(lambda _, n: sqlite_inserts(n))),
    Row("JSON file, open and scan 1,000,000", "split, check, decode", 0.6, False, scanning),
    Row("JSON file, newest 10 of 1,000,000", "the same at 1,000", 1.5, True, reading("json")),
    Row("rotating, newest 10 of 1,000,000", "the same at 1,000", 1.5, True, reading("rotating")),
    Row("JSON file, compact half of 1,000,000", "copying the kept bytes", 10, True, compacting),
]
