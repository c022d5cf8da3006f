"""Servers that are lost, replaced or shared under projections and subscriptions. In CI alone."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreError
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.projections import PostgresView, SQLiteView
from papyra.testing import ProjectionCrashRun, crash_projection_everywhere
from papyra.testing.conformance._fixtures import an_event
from tests.extent import CI, count
from tests.persistence.backends.postgres.test_failover import either, synchronous_standby
from tests.persistence.backends.postgres.test_pgbouncer import PGBOUNCER, pool
from tests.postgres_server import PostgresServer, any_installation, query
from tests.projections import balances as sqlite_balances
from tests.projections.balances import Deposits, in_state, types_of
from tests.projections.conftest import NewSystem
from tests.projections.postgres.conftest import in_schema
from tests.projections.postgres.test_postgres_view import Balances, balances_in
from tests.redis_server import RedisServer, any_binary

__all__ = ("pool",)

#: Every how many-th point of a projection into PostgreSQL is tried.
EVERY = count("PAPYRA_PROJECTION_POINTS", 16, 16)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer(any_installation()) as server:
        yield server


async def add(deposits: Deposits, *amounts: int) -> int:
    """Store deposits, though the server has just come back; return the last position."""
    with anyio.fail_after(60):
        while True:
            try:
                return await deposits.add(*amounts)
            except StoreError:
                await anyio.sleep(0.01)


async def test_each_event_counts_once_when_the_server_of_a_view_fails_over(
    new_system: NewSystem, own_server: PostgresServer
) -> None:
    with synchronous_standby(own_server) as standby:
        url = either(own_server, standby)
        async with new_system() as system:
            deposits = Deposits(system)
            runner = system.project(Balances(PostgresView(url, lease=1.0)))
            await runner.wait_for(await deposits.add(1, 2), timeout=60)
            for amount in range(20):
                await deposits.add(amount)
            await anyio.to_thread.run_sync(own_server.kill)
            last = await deposits.add(100)
            await in_state(runner, "waiting")
            await anyio.to_thread.run_sync(standby.promote)
            await runner.wait_for(last, timeout=60)
            assert balances_in(standby.url) == {"ann": 3 + sum(range(20)) + 100}
            assert runner.status.pauses == 0


@pytest.mark.skipif(not PGBOUNCER and not CI, reason="there is no pgbouncer here")
async def test_a_view_works_through_a_pool_that_gives_out_transactions(
    new_system: NewSystem, pool: str, own_server: PostgresServer
) -> None:
    view = PostgresView(pool, lease=1.0)
    async with new_system() as system:
        deposits = Deposits(system)
        runner = system.project(Balances(view))
        for number in range(20):
            # Others use the connections of the pool, and leave something there.
            with psycopg.connect(pool, autocommit=True, prepare_threshold=None) as other:
                other.execute("RESET ALL")
                other.execute("DEALLOCATE ALL")
            last = await deposits.add(1)
            await runner.wait_for(last, timeout=60)
            (build,) = await anyio.to_thread.run_sync(view.read_status)
            assert build.position == last
            assert balances_in(own_server.url) == {"ann": number + 1}
        assert await anyio.to_thread.run_sync(view.post, "balances", "pause: enough")
        await in_state(runner, "paused")
    with psycopg.connect(pool, autocommit=True, prepare_threshold=None) as other:
        # Nothing of the view is left for those who get its connections next.
        for setting, value in {"default_transaction_read_only": "off", "lock_timeout": "0"}.items():
            for _ in range(4):
                assert other.execute(f"SHOW {setting}".encode()).fetchone() == (value,)


async def test_each_event_counts_once_in_a_postgres_view_wherever_it_crashes(database: str) -> None:
    numbers = itertools.count()

    def new_view() -> PostgresView:
        schema = f"crashed_{uuid.uuid4().hex}_{next(numbers)}"
        query(database, f"CREATE SCHEMA {schema}")
        return PostgresView(in_schema(database, schema))

    async def fill(system: ActorSystem) -> None:
        await Deposits(system).add(1, 2, 4)

    def check(run: ProjectionCrashRun) -> None:
        view = run.view.database()
        view.open(to_read=True)
        try:
            assert view.rows("SELECT amount FROM balances") == [(7,)]
            assert view.rows("SELECT count(*) FROM seen") == [(3,)]
        finally:
            view.close()

    points = range(4, 60, EVERY) if EVERY > 1 else None
    await crash_projection_everywhere(
        InTwoBatches, new_view, fill, check, points=points, system_id="bank"
    )


class InTwoBatches(Balances):
    name = "balances"
    batch_size = 2


async def test_a_projection_pauses_when_redis_has_lost_its_last_second_and_gives_it_to_others(
    tmp_path: Path,
) -> None:
    path = tmp_path / "views.db"
    with RedisServer(any_binary()) as server:
        config = RedisStreamsConfig(url=server.url, retry_for=60.0, max_backoff=0.05)
        async with ActorSystem(
            "bank", persistence=RedisStreamsPersistence(config), audit_interval=None
        ) as system:
            deposits = Deposits(system)
            runner = system.project(sqlite_balances.Balances(SQLiteView(path)))
            await runner.wait_for(await deposits.add(1, 2), timeout=60)
            await anyio.to_thread.run_sync(saved, server)
            await runner.wait_for(await deposits.add(4, 8), timeout=60)  # which are lost
        server.kill()
        server.start()
        async with ActorSystem(
            "bank", persistence=RedisStreamsPersistence(config), audit_interval=None
        ) as system:
            await Deposits(system).add(16, 32, 64, 128)
            runner = system.project(sqlite_balances.Balances(SQLiteView(path)))
            await in_state(runner, "paused")
            assert "StoreReplaced" in runner.status.error
            assert sqlite_balances.balances_in(path) == {"ann": 15}
            facts = await system.backend.list_events()
            assert types_of(facts) == ["ProjectionPaused"]


def saved(server: RedisServer) -> None:
    """Have a server keep what there is now, and nothing of what comes."""
    import redis  # noqa: PLC0415

    with redis.Redis(port=server.port) as client:
        client.config_set("save", "")
        client.save()


async def test_subscriptions_go_on_when_the_postgres_server_was_restarted(
    own_server: PostgresServer,
) -> None:
    writer = PostgresPersistence(own_server.url, retry_for=60.0)
    reader = PostgresPersistence(own_server.url, retry_for=60.0).reader()
    async with (
        ActorSystem("papyra", persistence=writer, audit_interval=None),
        reader,
        writer.subscribe(types=["A", "B", "C"]) as here,
        reader.subscribe(types=["A", "B", "C"]) as elsewhere,
    ):
        for number in range(3):
            with anyio.fail_after(60):
                while True:
                    with contextlib.suppress(StoreError):
                        await writer.append(an_event(number))
                        break
                    await anyio.sleep(0.01)
            assert await next_number(here) == await next_number(elsewhere) == number
            await anyio.to_thread.run_sync(restart, own_server)


def restart(server: PostgresServer) -> None:
    server.kill()
    server.start()


async def next_number(items: Any) -> int:
    """Return the number of the next event."""
    with anyio.fail_after(60):
        async for item in items:
            if isinstance(item, PersistedEvent):
                return int(item.payload["n"])
    raise AssertionError("it has ended")
