"""The rows about subscriptions: to catch up, and to follow live."""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec

from papyra import ActorSystem
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.postgres import from_settings
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.messages import Read
from papyra.persistence.records import PersistedEvent
from papyra.persistence.subscription import POLL_INTERVAL, CaughtUp, Subscription
from papyra.testing import _postgres_server
from tests.benchmarks import redis
from tests.benchmarks.table import Loop, Options, Result, Row, compare, times_as_long

__all__ = ("SUBSCRIPTION_ROWS",)

#: Makes a backend on one store, again and again.
Reopen = Callable[[], PersistenceBackend]


def event(number: int) -> PersistedEvent:
    return PersistedEvent("shop", "shop/desk", "Sold", {"amount": number}, 1.7e9)


async def fill(store: PersistenceBackend, records: int) -> None:
    async with store:
        for start in range(0, records, 1_000):
            await store.append(*map(event, range(start, min(start + 1_000, records))))


async def read_pages(store: PersistenceBackend) -> float:
    async with store:
        started = time.perf_counter()
        request, more = Read("event"), True
        while more:
            page = await store.execute(request)
            request, more = msgspec.structs.replace(request, after=page.next_after), page.more
        return time.perf_counter() - started


async def catch_up(store: PersistenceBackend) -> float:
    async with store, store.subscribe() as items:
        started = time.perf_counter()
        async for item in items:
            if isinstance(item, CaughtUp):
                break
        return time.perf_counter() - started


def catching_up(reopen: Callable[[Path], Reopen]) -> Callable[[Loop, Options], Result]:
    """Follow a store to its end, against reading its pages."""

    def measure(loop: Loop, options: Options) -> Result:
        records = options.count(1_000_000)
        with tempfile.TemporaryDirectory() as directory:
            make = reopen(Path(directory))
            anyio.run(fill, make(), records)
            return compare(
                options,
                records,
                lambda: loop.run(read_pages, make()),
                lambda: loop.run(catch_up, make()),
            )

    return measure


def in_memory(_: Path) -> Reopen:
    store = InMemoryPersistence()
    return lambda: store


def in_json(path: Path) -> Reopen:
    return lambda: JsonFilePersistence(path / "store", fsync="no")


def in_sqlite(path: Path) -> Reopen:
    return lambda: SQLitePersistence(path / "store", synchronous="normal")


def in_redis(_: Path) -> Reopen:
    config: RedisStreamsConfig = redis.new_config()
    return functools.partial(RedisStreamsPersistence, config)


def in_postgres(path: Path) -> Reopen:
    store = _postgres_server.new_store(lambda: path, {}).store
    return functools.partial(from_settings, store.settings)  # type: ignore[attr-defined]


async def append_one_by_one(appends: int) -> float:
    async with ActorSystem(
        "shop", persistence=InMemoryPersistence(), audit_interval=None
    ) as system:
        started = time.perf_counter()
        for number in range(appends):
            await system.backend.append(event(number))
        return time.perf_counter() - started


async def receive_one_by_one(appends: int) -> float:
    """Append, and wait for the item."""
    async with (
        ActorSystem("shop", persistence=InMemoryPersistence(), audit_interval=None) as system,
        system.subscribe() as items,
    ):
        assert await anext(items) == CaughtUp(0)
        started = time.perf_counter()
        for number in range(appends):
            await system.backend.append(event(number))
            await anext(items)
        return time.perf_counter() - started


def receiving(loop: Loop, options: Options) -> Result:
    appends = options.count(20_000)
    return times_as_long(
        options,
        appends,
        lambda: loop.run(append_one_by_one, appends),
        lambda: loop.run(receive_one_by_one, appends),
    )


async def follow(items: Subscription, last: int) -> None:
    async with items:
        while items.position < last:
            await anext(items)


async def followed_by(readers: int, appends: int) -> float:
    """Return the CPU time of appends that so many follow at the end."""
    async with ActorSystem(
        "shop", persistence=InMemoryPersistence(), audit_interval=None
    ) as system:
        started = time.process_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(follow, system.subscribe(), appends)
            for number in range(appends):
                await system.backend.append(event(number))
        return time.process_time() - started


def following(loop: Loop, options: Options) -> Result:
    appends = options.count(2_000)
    return times_as_long(
        options,
        appends,
        lambda: loop.run(followed_by, 1, appends),
        lambda: loop.run(followed_by, 100, appends),
    )


#: Appends events to a JSON file, each with the time right before its append.
WRITER = """
import random, sys, time
import anyio
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.records import PersistedEvent

async def main(path, appends):
    async with JsonFilePersistence(path, fsync="no") as store:
        for number in range(appends):
            await anyio.sleep(random.uniform(0.001, 0.02))
            sent = {"number": number, "at": time.time()}
            await store.append(PersistedEvent("shop", "shop/desk", "Sold", sent, 1.7e9))

anyio.run(main, sys.argv[1], int(sys.argv[2]))
"""


async def follow_another_process(path: Path, appends: int) -> float:
    """Return the seconds from append to item that 99 of 100 items take at most."""
    await fill(in_json(path)(), 100)
    seconds: list[float] = []
    async with in_json(path)().reader() as reader, reader.subscribe(after=100) as items:
        assert await anext(items) == CaughtUp(100)
        command = [sys.executable, "-c", WRITER, str(path / "store"), str(appends)]
        async with await anyio.open_process(command, stdout=None, stderr=None):
            while len(seconds) < appends:
                item = await anext(items)
                if isinstance(item, PersistedEvent):
                    seconds.append(time.time() - item.payload["at"])
    return sorted(seconds)[len(seconds) * 99 // 100]


def following_another_process(loop: Loop, options: Options) -> Result:
    appends = options.count(1_000)

    def measure() -> float:
        with tempfile.TemporaryDirectory() as directory:
            return loop.run(follow_another_process, Path(directory), appends)

    return times_as_long(options, 1, lambda: POLL_INTERVAL, measure)


SUBSCRIPTION_ROWS = [
    Row("catch up 1,000,000, memory", "reading the pages", 0.5, False, catching_up(in_memory)),
    Row("catch up 1,000,000, JSON file", "reading the pages", 0.5, False, catching_up(in_json)),
    Row("catch up 1,000,000, SQLite", "reading the pages", 0.5, False, catching_up(in_sqlite)),
    Row("catch up 1,000,000, Redis", "reading the pages", 0.5, False, catching_up(in_redis)),
    Row(
        "catch up 1,000,000, PostgreSQL", "reading the pages", 0.5, False, catching_up(in_postgres)
    ),
    Row("append asked, item received, memory", "append asked", 2, True, receiving),
    Row("CPU of appends, 100 followers", "1 follower", 20, True, following),
    Row(
        "live, JSON file, another process, p99",
        "interval of looks",
        2,
        True,
        following_another_process,
    ),
]
