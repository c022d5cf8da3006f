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
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresDatastore

from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing._postgres_server import URL_VARIABLE, PostgresServer, any_installation
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


def telling(loop: Loop, options: Options) -> Result:
    count = options.count(100_000)
    return compare(
        options,
        count,
        lambda: bare_batches(count),
        lambda: loop.run(timed_tells, new_store(), count),
    )


def asking(loop: Loop, options: Options) -> Result:
    count = options.count(1000)
    return compare(
        options,
        count,
        lambda: bare_commits(count),
        lambda: loop.run(timed_asks, new_store(), count, 1),
    )


def asking_from_many(loop: Loop, options: Options) -> Result:
    count = options.count(500)
    many = count * 64
    return compare(
        options,
        many,
        lambda: loop.run(timed_asks, new_store(), count, 1) * many / count,
        lambda: loop.run(timed_asks, new_store(), many, 256),
    )


def against_eventsourcing(loop: Loop, options: Options) -> Result:
    count = options.count(500)
    many = count * 64
    return compare(
        options,
        many,
        lambda: saves_of_eventsourcing(count) * many / count,
        lambda: loop.run(timed_asks, new_store(), many, 256),
    )


# Reading


@functools.cache
def filled(count: int) -> str:
    system_id = f"orders-{count}"
    anyio.run(fill_orders, new_store(system_id), count)
    return system_id


def reading(loop: Loop, options: Options) -> Result:
    size, count = options.count(1_000_000), options.count(500)

    def newest_of(size: int) -> float:
        return loop.run(newest_ten, new_store(filled(size)), count)

    # How many times as long: what took longer is the reference.
    return compare(options, count, lambda: newest_of(size), lambda: newest_of(1000))


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


def select_replay(events: int) -> float:
    with bare_table() as connection:
        values = tuple(map(list, zip(*deposits(events), strict=True)))
        connection.execute(
            "INSERT INTO bare SELECT * FROM unnest(%b::bigint[], %b::text[])", values
        )
        select = "SELECT record FROM bare ORDER BY seq"
        return bare_replay(lambda: connection.execute(select, binary=True), events)


def replaying(loop: Loop, options: Options) -> Result:
    events = options.count(100_000)
    return compare(
        options,
        events,
        lambda: select_replay(events),
        lambda: loop.run(replay, new_store(), events),
    )


POSTGRES_ROWS = [
    Row("PostgreSQL, tell", "unnest of 500 prepared rows", 0.4, False, telling),
    Row("PostgreSQL, ask, one task", "insert and commit", 0.5, False, asking),
    Row("PostgreSQL, ask, 256 tasks", "ask, one task", 10, False, asking_from_many),
    Row("the same", "eventsourcing, PostgreSQL", 10, False, against_eventsourcing),
    Row("PostgreSQL, newest 10 of 1,000,000", "the same at 1,000", 1.5, True, reading),
    Row("wake one actor at 1,000,000, PostgreSQL", "at 10,000", 2, True, waking),
    Row("replay 100,000 events, PostgreSQL", "select, decode, apply", 0.3, False, replaying),
]
