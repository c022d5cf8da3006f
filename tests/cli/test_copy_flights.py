"""``papyra copy`` from each kind of store to the next, and back: byte for byte the same records.

``PAPYRA_FLIGHTS=path`` copies a whole year of flights instead of a day.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg import sql

from examples.flights import FIRST_DAY, Progress, fly, read_flights
from papyra import ActorSystem
from papyra.persistence.backends.json import JsonFilePersistence
from tests.cli.conftest import Command, Store, new_store
from tests.cli.test_checking import cli, jq
from tests.cli.test_copy import FLIGHTS, written
from tests.persistence.backends.postgres.conftest import URL
from tests.postgres_server import any_installation, own_database, query, shared_server
from tests.redis_server import RedisServer

SCHEMA = "papyra_flights"
TABLES = ("events", "audits", "dead_letters")


@pytest.fixture
def database() -> Iterator[str]:
    database = URL or own_database(shared_server(any_installation()))
    yield database
    query(database, "DROP SCHEMA IF EXISTS papyra_flights CASCADE")


def rows_of_sqlite(path: Path) -> dict[int, bytes]:
    """Return what SQLite has at each position."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        return {
            seq: bytes(record)
            for table in TABLES
            for seq, record in database.execute(f"SELECT seq, CAST(record AS BLOB) FROM {table}")
        }


def rows_of_postgres(database: str) -> dict[int, bytes]:
    """Return what PostgreSQL has at each position."""
    with psycopg.connect(database) as connection:
        return {
            seq: record.encode()
            for table in TABLES
            for seq, record in connection.execute(
                sql.SQL("SELECT seq, record::text FROM {}").format(sql.Identifier(SCHEMA, table))
            )
        }


@pytest.mark.timeout(300 if FLIGHTS == FIRST_DAY else 3600)
def test_papyra_copy_of_flights_through_every_database_and_back_is_the_same_byte_for_byte(
    papyra: Command,
    tmp_path: Path,
    redis_server: RedisServer,
    database: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, last = (new_store("json", tmp_path, redis_server) for _ in range(2))
    redis = new_store("redis", tmp_path, redis_server)
    sqlite_path = tmp_path / "flights.sqlite"
    sqlite = Store("sqlite", str(sqlite_path))
    postgres = Store("postgres", f"{database}?schema={SCHEMA}")
    assert first.path is not None
    backend = JsonFilePersistence(first.path, fsync="no")

    async def work() -> None:
        async with ActorSystem("flights", persistence=backend) as system:
            await fly(system, read_flights(FLIGHTS), Progress())

    anyio.run(work)
    lines = first.path.read_bytes().count(b"\n")
    chain = [first, sqlite, postgres, redis, last]
    rates = []
    for origin, destination in itertools.pairwise(chain):
        with papyra.start("copy", origin.name, destination.name, "--json") as process:
            out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert jq(".verified", out) == lines
        rates.append(f"to {destination.kind} {jq('.seconds', out):.1f} s")
    assert written(first) == written(last)
    in_sqlite, in_postgres = rows_of_sqlite(sqlite_path), rows_of_postgres(database)
    assert sorted(in_postgres) == list(range(1, lines + 1))
    assert in_postgres == in_sqlite
    assert int(cli(redis, "XLEN", f"{redis.tag}:events")) <= lines
    with capsys.disabled():
        if FLIGHTS != FIRST_DAY:
            print(f"\n{lines:,} records, the same; {'; '.join(rates)}")
