"""A server that syncs always is killed while it is written, again and again.

``PAPYRA_KILLS=100`` makes it a long run.
"""

from __future__ import annotations

import random

import anyio
import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreError
from papyra.persistence import Append, CircuitBreakerPolicy, PersistenceActor
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing.conformance._fixtures import an_event
from tests.conftest import event_loops
from tests.extent import count
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

KILLS = count("PAPYRA_KILLS", 5, 10)
WRITERS = 4


@pytest.mark.timeout(300 + 5 * KILLS)
@pytest.mark.parametrize("retry_for", [60.0, 0.01], ids=["patient", "hasty"])
async def test_a_killed_redis_server_keeps_acknowledged_records_and_none_that_raised(
    own_server: RedisServer, retry_for: float
) -> None:
    own_server.kill()
    own_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.start()
    config = RedisStreamsConfig(
        url=own_server.url, retry_for=retry_for, backoff=0.001, max_backoff=0.02
    )
    chance = random.Random(KILLS)
    acknowledged: list[tuple[int, int]] = []
    raised = 0
    is_over = False

    async with ActorSystem(audit_interval=None) as system:
        store = RedisStreamsPersistence(config)
        ref = system.spawn(PersistenceActor, store, CircuitBreakerPolicy(max_failures=None))

        async def write(writer: int) -> None:
            nonlocal raised
            number = 0
            while not is_over:
                number += 1
                record = an_event(number, actor_address=f"s/{writer}")
                try:
                    await ref.ask(Append(record))
                except StoreError:
                    raised += 1
                else:
                    acknowledged.append((writer, number))

        async with anyio.create_task_group() as tasks:
            for writer in range(WRITERS):
                tasks.start_soon(write, writer)
            for _ in range(KILLS):
                known = len(acknowledged)
                while len(acknowledged) < known + 2 * WRITERS:
                    await anyio.lowlevel.checkpoint()
                for _ in range(chance.randrange(40)):
                    await anyio.lowlevel.checkpoint()
                own_server.kill()
                own_server.start()
            is_over = True

    async with RedisStreamsPersistence(config) as store:
        events = await store.list_events()
        stored = [(int(event.actor_address[2:]), event.payload["n"]) for event in events]
        assert sorted(stored) == sorted(acknowledged)
        for writer in range(WRITERS):
            mine = [number for who, number in stored if who == writer]
            assert mine == sorted(mine)
        assert (await store.scan()).is_clean
    assert len(acknowledged) >= 2 * WRITERS * KILLS
    if retry_for > 1:
        assert raised == 0
