"""The rows about SQLite: the reference is the same module of Python, without an index."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import anyio
import msgspec

from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.benchmarks.databases import (
    bare_replay,
    deposits,
    fill_orders,
    newest_ten,
    replay,
    timed_asks,
    timed_tells,
)
from tests.benchmarks.histories import fill, wake
from tests.benchmarks.table import Loop, Options, Result, Row, compare, times_as_long
from tests.benchmarks.workload import build

__all__ = ("SQLITE_ROWS",)


@functools.cache
def directory() -> tempfile.TemporaryDirectory[str]:
    # Kept until the interpreter ends, and removed then.
    return tempfile.TemporaryDirectory(prefix="papyra-benchmarks-")


def new_path() -> Path:
    return Path(directory().name) / f"{uuid.uuid4().hex}.sqlite"


@contextlib.contextmanager
def bare_database() -> Any:
    """Give a connection to a new database with a table of positions and records."""
    with contextlib.closing(sqlite3.connect(new_path(), isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, record TEXT NOT NULL)")
        yield database


# Appending


def bare_batches(count: int) -> float:
    """Insert prepared rows, a thousand a transaction."""
    encode = msgspec.json.Encoder().encode
    rows = [(number, encode(build(number)).decode()) for number in range(count)]
    with bare_database() as database:
        started = time.perf_counter()
        for first in range(0, count, 1000):
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT INTO events VALUES (?, ?)", rows[first : first + 1000])
            database.execute("COMMIT")
        return time.perf_counter() - started


def bare_commits(count: int) -> float:
    """Insert a row and commit, one after the other."""
    encode = msgspec.json.Encoder().encode
    with bare_database() as database:
        started = time.perf_counter()
        for number in range(count):
            row = (number, encode(build(number)).decode())
            database.execute("INSERT INTO events VALUES (?, ?)", row)
        return time.perf_counter() - started


def telling(loop: Loop, options: Options) -> Result:
    count = options.count(100_000)
    return compare(
        options,
        count,
        lambda: bare_batches(count),
        lambda: loop.run(timed_tells, SQLitePersistence(new_path()), count),
    )


def asking(loop: Loop, options: Options) -> Result:
    count = options.count(1000)
    return compare(
        options,
        count,
        lambda: bare_commits(count),
        lambda: loop.run(timed_asks, SQLitePersistence(new_path()), count, 1),
    )


def asking_from_many(loop: Loop, options: Options) -> Result:
    count = options.count(500)
    many = count * 64
    return compare(
        options,
        many,
        lambda: loop.run(timed_asks, SQLitePersistence(new_path()), count, 1) * many / count,
        lambda: loop.run(timed_asks, SQLitePersistence(new_path()), many, 256),
    )


# Reading


@functools.cache
def filled(count: int) -> Path:
    path = new_path()
    anyio.run(fill_orders, SQLitePersistence(path, synchronous="off"), count)
    return path


def reading(loop: Loop, options: Options) -> Result:
    size, count = options.count(1_000_000), options.count(500)

    def newest_of(size: int) -> float:
        store = SQLitePersistence(filled(size), synchronous="off")
        return loop.run(newest_ten, store, count)

    # How many times as long: what took longer is the reference.
    return compare(options, count, lambda: newest_of(size), lambda: newest_of(1000))


def select_replay(events: int) -> float:
    with bare_database() as database:
        database.execute("BEGIN")
        database.executemany("INSERT INTO events VALUES (?, ?)", deposits(events))
        database.execute("COMMIT")
        select = "SELECT record FROM events ORDER BY seq"
        return bare_replay(lambda: database.execute(select), events)


def replaying(loop: Loop, options: Options) -> Result:
    events = options.count(100_000)
    return compare(
        options,
        events,
        lambda: select_replay(events),
        lambda: loop.run(replay, SQLitePersistence(new_path(), synchronous="off"), events),
    )


@functools.cache
def filled_bank(records: int) -> Path:
    path = new_path()
    anyio.run(fill, SQLitePersistence(path, synchronous="off"), records, max(1, records // 20), 20)
    return path


def waking(loop: Loop, options: Options) -> Result:
    """Wake one actor of 20 events, in a large database and in a small one, both long written."""

    async def wake_among(path: Path) -> float:
        return await wake(SQLitePersistence(path, synchronous="off"), 50)

    small, large = map(filled_bank, (options.count(10_000), options.count(1_000_000)))
    return times_as_long(
        options, 50, lambda: loop.run(wake_among, small), lambda: loop.run(wake_among, large)
    )


SQLITE_ROWS = [
    Row("SQLite, tell, synchronous=full", "executemany of 1,000", 0.4, False, telling),
    Row("SQLite, ask, one task, full", "insert and commit", 0.4, False, asking),
    Row("SQLite, ask, 256 tasks, full", "ask, one task", 15, False, asking_from_many),
    Row("SQLite, newest 10 of 1,000,000", "the same at 1,000", 1.5, True, reading),
    Row("wake one actor at 1,000,000, SQLite", "at 10,000", 2, True, waking),
    Row("replay 100,000 events, SQLite", "select, decode, apply", 0.3, False, replaying),
]
