"""The rows about SQLite: the reference is the same module of Python, without an index."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec

from papyra import ActorSystem
from papyra.persistence import Append, Flush, PersistenceActor
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.benchmarks.histories import Account, Balance, Deposited, fill, wake
from tests.benchmarks.table import Loop, Options, Result, Row, compare, times_as_long
from tests.benchmarks.workload import ask_from_tasks, build

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


async def hosted(work: Callable[[Any], Awaitable[None]]) -> float:
    backend = SQLitePersistence(new_path())
    async with ActorSystem(audit_interval=None) as system:
        ref = system.spawn(PersistenceActor, backend)
        await ref.ask(Flush())
        started = time.perf_counter()
        await work(ref)
        return time.perf_counter() - started


async def timed_tells(count: int) -> float:
    async def work(ref: Any) -> None:
        for number in range(count):
            await ref.tell(Append(build(number)))
        await ref.ask(Append(build(count)))

    return await hosted(work)


async def timed_asks(count: int, tasks: int) -> float:
    async def work(ref: Any) -> None:
        await ask_from_tasks(ref, count, tasks)

    return await hosted(work)


def telling(loop: Loop, options: Options) -> Result:
    count = options.count(100_000)
    return compare(
        options, count, lambda: bare_batches(count), lambda: loop.run(timed_tells, count)
    )


def asking(loop: Loop, options: Options) -> Result:
    count = options.count(1000)
    subject = functools.partial(loop.run, timed_asks, count, 1)
    return compare(options, count, lambda: bare_commits(count), subject)


def asking_from_many(loop: Loop, options: Options) -> Result:
    count = options.count(500)
    many = count * 64
    return compare(
        options,
        many,
        lambda: loop.run(timed_asks, count, 1) * many / count,
        lambda: loop.run(timed_asks, many, 256),
    )


# Reading


async def fill_orders(path: Path, count: int) -> None:
    async with SQLitePersistence(path, synchronous="off") as backend:
        for first in range(0, count, 5000):
            await backend.append(*map(build, range(first, min(first + 5000, count))))


@functools.cache
def filled(count: int) -> Path:
    path = new_path()
    anyio.run(fill_orders, path, count)
    return path


async def newest_ten(path: Path, count: int) -> float:
    async with SQLitePersistence(path, synchronous="off") as backend:
        await backend.list_events(limit=10)
        started = time.perf_counter()
        for _ in range(count):
            await backend.list_events(limit=10)
        return time.perf_counter() - started


def reading(loop: Loop, options: Options) -> Result:
    size, count = options.count(1_000_000), options.count(500)
    small = functools.partial(loop.run, newest_ten, filled(1000), count)
    large = functools.partial(loop.run, newest_ten, filled(size), count)
    # How many times as long: what took longer is the reference.
    return compare(options, count, large, small)


def bare_replay(events: int) -> float:
    """Select the events of an actor, decode and apply them."""
    encode = msgspec.json.Encoder().encode
    rows = [(number, encode(Deposited(1)).decode()) for number in range(events)]
    decode, apply = msgspec.json.Decoder(Deposited).decode, Account.apply
    actor, state = object.__new__(Account), Balance()
    with bare_database() as database:
        database.execute("BEGIN")
        database.executemany("INSERT INTO events VALUES (?, ?)", rows)
        database.execute("COMMIT")
        started = time.perf_counter()
        for (record,) in database.execute("SELECT record FROM events ORDER BY seq"):
            state = apply(actor, state, decode(record))
        seconds = time.perf_counter() - started
    assert state.amount == events
    return seconds


async def replay(events: int) -> float:
    store = SQLitePersistence(new_path(), synchronous="off")
    await fill(store, events, 1)
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        await store.read_history("bank/a0", limit=1)
        started = time.perf_counter()
        assert await system.spawn(Account, name="a0").ask("look") == events
        return time.perf_counter() - started


def replaying(loop: Loop, options: Options) -> Result:
    events = options.count(100_000)
    return compare(options, events, lambda: bare_replay(events), lambda: loop.run(replay, events))


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
