"""A standby takes the place of its primary while this is written.

What was acknowledged on both is there, and what has raised is not. ``PAPYRA_FAILOVERS=20`` makes it
a long run.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreError, StoreFenced, StoreNotWritable
from papyra.persistence import Append, CircuitBreakerPolicy, PersistenceActor
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing.conformance._fixtures import a_record, an_event, everything
from tests.extent import count
from tests.postgres_server import PostgresServer

FAILOVERS = count("PAPYRA_FAILOVERS", 1, 2)
WRITERS = 4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def primary(installation: Path) -> Iterator[PostgresServer]:
    with PostgresServer(installation) as server:
        yield server


@contextlib.contextmanager
def synchronous_standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """Run a standby, without which the primary confirms no commit any more."""
    with primary.new_standby() as standby:
        primary.query("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.query("SELECT pg_reload_conf()")
        while primary.query("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            pass
        yield standby


def either(*servers: PostgresServer) -> str:
    """Return the URL of those of some servers that take writes."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://postgres:{servers[0].password}@{hosts}/postgres"


@pytest.mark.timeout(300 + 60 * FAILOVERS)
@pytest.mark.parametrize("retry_for", [60.0, 0.01], ids=["patient", "hasty"])
async def test_a_promoted_postgres_standby_has_what_was_acknowledged_and_nothing_that_raised(
    installation: Path, retry_for: float
) -> None:
    chance = random.Random(FAILOVERS)
    for _ in range(FAILOVERS):
        acknowledged: list[tuple[int, int]] = []
        raised = 0
        is_over = False
        with PostgresServer(installation) as primary, synchronous_standby(primary) as standby:
            url = either(primary, standby)
            async with ActorSystem(audit_interval=None) as system:
                store = PostgresPersistence(url, retry_for=retry_for)
                policy = CircuitBreakerPolicy(max_failures=None)
                ref = system.spawn(PersistenceActor, store, policy)

                async def write(writer: int) -> None:
                    nonlocal raised
                    number = 0
                    while not is_over:  # noqa: B023
                        number += 1
                        try:
                            await ref.ask(  # noqa: B023
                                Append(an_event(number, actor_address=f"s/{writer}"))
                            )
                        except StoreError:
                            raised += 1
                        else:
                            acknowledged.append((writer, number))  # noqa: B023

                async def wait_for_more() -> None:
                    known = len(acknowledged)  # noqa: B023
                    while len(acknowledged) < known + 5 * WRITERS:  # noqa: B023
                        await anyio.lowlevel.checkpoint()

                def fail_over(
                    primary: PostgresServer = primary, standby: PostgresServer = standby
                ) -> None:
                    primary.kill()
                    standby.promote()

                async with anyio.create_task_group() as tasks:
                    for writer in range(WRITERS):
                        tasks.start_soon(write, writer)
                    await wait_for_more()
                    for _ in range(chance.randrange(400)):
                        await anyio.lowlevel.checkpoint()
                    await anyio.to_thread.run_sync(fail_over)
                    await wait_for_more()
                    is_over = True

            async with PostgresPersistence(standby.url) as store:
                events = await store.list_events()
                stored = [(int(event.actor_address[2:]), event.payload["n"]) for event in events]
                assert sorted(stored) == sorted(acknowledged)
                assert (await store.scan()).is_clean
        if retry_for > 1:
            assert raised == 0


async def test_a_postgres_standby_is_read_and_not_written(primary: PostgresServer) -> None:
    async with PostgresPersistence(primary.url) as store:
        await store.append(*map(a_record, range(5)))
        with synchronous_standby(primary) as standby:
            async with PostgresPersistence(standby.url, read_only=True) as reader:
                assert len(await everything(reader)) == 5
                await store.append(a_record(5))
                while len(await everything(reader)) < 6:
                    await anyio.lowlevel.checkpoint()
                assert (await reader.scan()).is_clean
            with pytest.raises(StoreNotWritable, match="standby"):
                async with PostgresPersistence(standby.url, retry_for=0.1):
                    pass


async def test_a_commit_that_only_a_lost_postgres_primary_had_is_no_successors(
    primary: PostgresServer,
) -> None:
    """Of two writers that a failover has left with one epoch, the former is fenced all the same."""
    async with PostgresPersistence(primary.url) as store:
        await store.append(a_record(0))
    with primary.new_standby() as standby:  # which hears of nothing, as it is on its own at once
        standby.promote()
        former = PostgresPersistence(either(primary, standby), retry_for=10)
        async with former:
            # An epoch that the other one knows nothing of, and gives again.
            await former.append(a_record(1))
            async with PostgresPersistence(standby.url) as successor:
                await successor.append(a_record(2))
                primary.kill()
                with pytest.raises(StoreFenced):
                    await former.append(a_record(3))
                    await former.append(a_record(4))
                await successor.append(a_record(5))
                found = [record.payload["n"] for record in await everything(successor)]
                assert found == [0, 2, 5]
                assert (await successor.scan()).is_clean
