"""The rows about PostgreSQL. They start a server of their own, or take the one at POSTGRES_URL.

The reference is psycopg itself, with a table without an index but that of its positions.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresDatastore

from papyra import ActorSystem
from papyra.persistence import Append, PersistenceActor
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing._postgres_server import URL_VARIABLE, PostgresServer, any_installation
from tests.benchmarks.histories import Account, Balance, Deposited, fill, wake
from tests.benchmarks.table import Loop, Options, Result, Row, compare, times_as_long
from tests.benchmarks.workload import ask_from_tasks, build

__all__ = ("POSTGRES_ROWS",)

PREPARED = 500
#: Where our tables are; those of the references are temporary, or in `public`.
SCHEMA = "papyra_benchmark"


@functools.cache
def url() -> str:
    """Return the URL of a server that syncs what it acknowledges."""
    named = os.environ.get(URL_VARIABLE)
    if named:
        return named
    server = PostgresServer(any_installation(), "shared_buffers=128MB", "max_wal_size=4GB")
    server.start()
    atexit.register(server.close)
    return server.url


def new_store(system_id: str | None = None) -> PostgresPersistence:
    return PostgresPersistence(url(), schema=SCHEMA, system_id=system_id or uuid.uuid4().hex)


@contextlib.contextmanager
def bare_table() -> Iterator[psycopg.Connection[Any]]:
    """Give a connection to a database with a new table ``bare`` of positions and records."""
    with psycopg.connect(url(), autocommit=True, prepare_threshold=1) as connection:
        connection.execute("DROP TABLE IF EXISTS bare")
        connection.execute("CREATE TABLE bare (seq bigint PRIMARY KEY, record text NOT NULL)")
        yield connection
        connection.execute("DROP TABLE bare")


# Appending


def bare_batches(count: int) -> float:
    """Insert prepared rows, five hundred a statement and transaction."""
    encode = msgspec.json.Encoder().encode
    rows = [(number, encode(build(number)).decode()) for number in range(count)]
    batches = [
        tuple(map(list, zip(*rows[first : first + PREPARED], strict=True)))
        for first in range(0, count, PREPARED)
    ]
    with bare_table() as connection:
        started = time.perf_counter()
        for batch in batches:
            connection.execute(
                "INSERT INTO bare SELECT * FROM unnest(%b::bigint[], %b::text[])", batch
            )
        return time.perf_counter() - started


def bare_commits(count: int) -> float:
    """Insert a row and commit, one after the other."""
    encode = msgspec.json.Encoder().encode
    with bare_table() as connection:
        started = time.perf_counter()
        for number in range(count):
            row = (number, encode(build(number)).decode())
            connection.execute("INSERT INTO bare VALUES (%s, %s)", row)
        return time.perf_counter() - started


def saves_of_eventsourcing(count: int) -> float:
    """Insert events one by one with `eventsourcing`."""
    at = urlsplit(url())
    database = at.path.strip("/")
    datastore = PostgresDatastore(
        database, at.hostname or "", at.port or 5432, at.username or "", at.password or ""
    )
    recorder = PostgresAggregateRecorder(datastore, events_table_name="saved")
    recorder.create_table()
    originator, encode = uuid.uuid4(), msgspec.json.Encoder().encode
    started = time.perf_counter()
    for number in range(count):
        state = encode(build(number).payload)
        recorder.insert_events([StoredEvent(originator, number, "OrderPlaced", state)])
    seconds = time.perf_counter() - started
    datastore.close()
    return seconds


async def hosted(work: Callable[[Any], Awaitable[None]]) -> float:
    async with ActorSystem(audit_interval=None) as system:
        ref = system.spawn(PersistenceActor, new_store())
        await ref.ask(Append(build(0)))
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


def against_eventsourcing(loop: Loop, options: Options) -> Result:
    count = options.count(500)
    many = count * 64
    return compare(
        options,
        many,
        lambda: saves_of_eventsourcing(count) * many / count,
        lambda: loop.run(timed_asks, many, 256),
    )


# Reading


async def fill_orders(system_id: str, count: int) -> None:
    async with new_store(system_id) as store:
        for first in range(0, count, 5000):
            await store.append(*map(build, range(first, min(first + 5000, count))))


@functools.cache
def filled(count: int) -> str:
    system_id = f"orders-{count}"
    anyio.run(fill_orders, system_id, count)
    return system_id


async def newest_ten(system_id: str, count: int) -> float:
    async with new_store(system_id) as store:
        await store.list_events(limit=10)
        started = time.perf_counter()
        for _ in range(count):
            await store.list_events(limit=10)
        return time.perf_counter() - started


def reading(loop: Loop, options: Options) -> Result:
    size, count = options.count(1_000_000), options.count(500)
    small = functools.partial(loop.run, newest_ten, filled(1000), count)
    large = functools.partial(loop.run, newest_ten, filled(size), count)
    # How many times as long: what took longer is the reference.
    return compare(options, count, large, small)


@functools.cache
def filled_bank(records: int) -> str:
    system_id = f"bank-{records}"
    anyio.run(fill, new_store(system_id), records, max(1, records // 20), 20)
    return system_id


def waking(loop: Loop, options: Options) -> Result:
    """Wake one actor of 20 events, in a large store and in a small one."""

    async def wake_among_others(system_id: str) -> float:
        return await wake(new_store(system_id), 50)

    large, small = (filled_bank(options.count(count)) for count in (1_000_000, 10_000))
    return times_as_long(
        options,
        50,
        lambda: loop.run(wake_among_others, small),
        lambda: loop.run(wake_among_others, large),
    )


def bare_replay(events: int) -> float:
    """Select the events of an actor, decode and apply them."""
    encode = msgspec.json.Encoder().encode
    rows = [(number, encode(Deposited(1)).decode()) for number in range(events)]
    decode, apply = msgspec.json.Decoder(Deposited).decode, Account.apply
    actor, state = object.__new__(Account), Balance()
    with bare_table() as connection:
        values = tuple(map(list, zip(*rows, strict=True)))
        connection.execute(
            "INSERT INTO bare SELECT * FROM unnest(%b::bigint[], %b::text[])", values
        )
        started = time.perf_counter()
        for (record,) in connection.execute("SELECT record FROM bare ORDER BY seq", binary=True):
            state = apply(actor, state, decode(record))
        seconds = time.perf_counter() - started
    assert state.amount == events
    return seconds


async def replay(events: int) -> float:
    store = new_store()
    await fill(store, events, 1)
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        await store.read_history("bank/a0", limit=1)
        started = time.perf_counter()
        assert await system.spawn(Account, name="a0").ask("look") == events
        return time.perf_counter() - started


def replaying(loop: Loop, options: Options) -> Result:
    events = options.count(100_000)
    return compare(options, events, lambda: bare_replay(events), lambda: loop.run(replay, events))


POSTGRES_ROWS = [
    Row("PostgreSQL, tell", "unnest of 500 prepared rows", 0.4, False, telling),
    Row("PostgreSQL, ask, one task", "insert and commit", 0.5, False, asking),
    Row("PostgreSQL, ask, 256 tasks", "ask, one task", 10, False, asking_from_many),
    Row("the same", "eventsourcing, PostgreSQL", 10, False, against_eventsourcing),
    Row("PostgreSQL, newest 10 of 1,000,000", "the same at 1,000", 1.5, True, reading),
    Row("wake one actor at 1,000,000, PostgreSQL", "at 10,000", 2, True, waking),
    Row("replay 100,000 events, PostgreSQL", "select, decode, apply", 0.3, False, replaying),
]
