"""Closing lets go of every connection, in bounded time, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import anyio
import pytest
import redis

from papyra.exceptions import BackendClosed, StoreUnreachable
from papyra.persistence.backends._redis import client as client_module
from papyra.persistence.backends._redis.client import connection_name
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing.conformance._fixtures import an_event
from tests.conftest import LOOPS
from tests.extent import STEP
from tests.persistence.backends.redis.conftest import MakeStore, impatient, until
from tests.redis_server import RedisServer

Client: TypeAlias = Any

#: Tasks that read beside each other, so that there are several connections.
READERS = 4


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    with redis.Redis.from_url(server.url) as client:
        yield client


async def with_connections(make: MakeStore) -> RedisStreamsPersistence:
    """Return an open store with connections that were used, and some that wait for events."""
    store = make()
    await store.append(an_event(1))
    for _ in range(READERS):
        iterator = store.follow()
        await anext(iterator)
    return store


def connections_of(client: Client, store: RedisStreamsPersistence) -> int:
    name = connection_name(store.store.client.name)
    return sum(each["name"] == name for each in client.client_list())


@pytest.mark.parametrize(
    "anyio_backend", [LOOPS["asyncio"], LOOPS["uvloop"]], ids=["asyncio", "uvloop"]
)
@pytest.mark.parametrize("cancels", [1, 2, 9])
async def test_a_close_that_is_cancelled_anywhere_leaves_no_connection(
    make: MakeStore, client: Client, cancels: int
) -> None:
    for steps in range(0, 40, min(STEP, 5)):
        store = await with_connections(make)
        reading = [asyncio.create_task(store.store.client.info()) for _ in range(READERS)]
        followers = [asyncio.create_task(_follow(store)) for _ in range(READERS)]
        await until(lambda: connections_of(client, store) > READERS)  # noqa: B023
        closing = asyncio.create_task(store.aclose())
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(cancels):
            closing.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        if not store.is_closed:
            await store.aclose()  # it had not begun
        for task in (*reading, *followers):
            task.cancel()
        await asyncio.gather(*reading, *followers, return_exceptions=True)
        await until(lambda: not connections_of(client, store))  # noqa: B023


@pytest.mark.parametrize("anyio_backend", list(LOOPS.values()), ids=list(LOOPS))
async def test_a_server_that_stands_still_keeps_nobody_from_closing(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SLOWEST", 2**30)  # else as much has half a minute
    store = RedisStreamsPersistence(RedisStreamsConfig(url=own_server.url, retry_for=0))
    await store.append(an_event(1))
    own_server.pause()
    try:
        # More than a socket takes: what is written last waits for it.
        with impatient(store, 0.2):
            with pytest.raises(StoreUnreachable):
                await store.append(an_event(2, payload={"text": "x" * 30_000_000}))
            with anyio.fail_after(60):
                await store.aclose()
    finally:
        own_server.go_on()
    with redis.Redis.from_url(own_server.url) as client:
        await until(lambda: not connections_of(client, store))


async def test_who_is_late_connects_no_closed_store_again(make: MakeStore, client: Client) -> None:
    store = make()
    await store.append(an_event(1))
    await store.aclose()
    with pytest.raises(BackendClosed):
        await store.pending("group")
    assert not connections_of(client, store)
    async with store:
        assert len(await store.list_events()) == 1


async def _follow(store: RedisStreamsPersistence) -> None:
    async for _ in store.follow():
        pass
