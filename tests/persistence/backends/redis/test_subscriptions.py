"""A subscription outlives its Redis server, and says so if the server has lost what was read."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreError, StoreReplaced
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.subscription import Subscription
from papyra.testing.conformance._fixtures import an_event
from tests.conftest import event_loops
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")


async def numbers(items: Subscription, count: int) -> list[int]:
    """Return the numbers of the next so many events."""
    found: list[int] = []
    with anyio.fail_after(60):
        async for item in items:
            if isinstance(item, PersistedEvent):
                found.append(item.payload["n"])
            if len(found) == count:
                break
    return found


async def append(store: RedisStreamsPersistence, event: PersistedEvent) -> None:
    """Append, though the server has just come back: a connection of before may be in use."""
    with anyio.fail_after(60):
        while True:
            try:
                await store.append(event)
            except StoreError:
                await anyio.lowlevel.checkpoint()
            else:
                return


def config_of(server: RedisServer, **options: Any) -> RedisStreamsConfig:
    return RedisStreamsConfig(url=server.url, retry_for=60.0, max_backoff=0.05, **options)


async def test_subscriptions_go_on_when_the_redis_server_was_restarted(
    own_server: RedisServer,
) -> None:
    own_server.kill()
    own_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.start()
    writer = RedisStreamsPersistence(config_of(own_server))
    reader = RedisStreamsPersistence(config_of(own_server)).reader()
    async with (
        ActorSystem("s", persistence=writer, audit_interval=None),
        reader,
        writer.subscribe(types=["A", "B", "C"]) as here,
        reader.subscribe(types=["A", "B", "C"]) as elsewhere,
    ):
        for number in range(4):
            await append(writer, an_event(number))
            assert await numbers(here, 1) == await numbers(elsewhere, 1) == [number]
            own_server.kill()
            own_server.start()


async def test_a_subscription_to_a_redis_server_that_has_lost_everything_says_so(
    own_server: RedisServer,
) -> None:
    writer = RedisStreamsPersistence(config_of(own_server))
    reader = RedisStreamsPersistence(config_of(own_server)).reader()
    async with writer, reader, reader.subscribe() as items:
        for number in range(3):
            await writer.append(an_event(number))
        assert await numbers(items, 3) == [0, 1, 2]
        own_server.kill()
        own_server.start()
        with anyio.fail_after(60), pytest.raises(StoreReplaced):
            await numbers(items, 1)
