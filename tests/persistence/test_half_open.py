"""Who follows over a connection that is half open notices it, and goes on over another one.

Nothing says that such a connection is over: no FIN comes, and no RST. What is asked gets no answer,
so what bounds the wait for an answer bounds this: `timeout` of a Redis store, and
`statement_timeout` of a PostgreSQL store, with four seconds more: of grace, and to say goodbye.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from papyra.persistence import PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.postgres import from_settings
from papyra.persistence.backends.redis import RedisStreamsPersistence
from papyra.testing import _postgres_server
from papyra.testing._redis_server import new_store
from tests.conftest import event_loops
from tests.extent import CI
from tests.proxy import TcpProxy, hang_up

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")

#: Seconds for which the stores of this file wait for an answer, and for a busy machine.
ANSWER, SLACK = 0.5, 60.0


class FreezingProxy(TcpProxy):
    """Passes everything on; of connections that it freezes, nothing more, and never an end."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        #: so many of the first connections are frozen
        self.frozen = 0

    def freeze_all(self) -> None:
        self.frozen = self.connections

    def connect(self, client: socket.socket, server: socket.socket) -> _Connection:
        return _Connection(self, self.connections, client, server)


class _Connection:
    def __init__(
        self, proxy: FreezingProxy, number: int, client: socket.socket, server: socket.socket
    ) -> None:
        self.proxy = proxy
        self.number = number
        self.client = client
        self.server = server

    def pass_requests(self) -> None:
        self._pass(self.client, self.server)

    def pass_replies(self) -> None:
        self._pass(self.server, self.client)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if self.number > self.proxy.frozen:
                    target.sendall(data)
        if self.number > self.proxy.frozen:
            hang_up(target)


def event(number: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Added", {"number": number}, float(number))


class Stores(msgspec.Struct):
    """A writer, readers of the same store through a proxy, and when these have to notice."""

    writer: PersistenceBackend
    new_reader: Callable[[int], PersistenceBackend]
    port: int
    bound: float


def redis_stores(path: Path) -> Stores:
    config = new_store(lambda: path, {}).config  # type: ignore[attr-defined]
    host, port = config.url.split("//")[1].split("/")[0].rsplit(":", 1)

    def new_reader(proxy_port: int) -> PersistenceBackend:
        url = config.url.replace(f"{host}:{port}", f"127.0.0.1:{proxy_port}")
        changed = msgspec.structs.replace(config, url=url, timeout=ANSWER)
        return RedisStreamsPersistence(changed).reader()

    return Stores(RedisStreamsPersistence(config), new_reader, int(port), ANSWER)


def postgres_stores(path: Path) -> Stores:
    settings = _postgres_server.new_store(lambda: path, {}).store.settings  # type: ignore[attr-defined]
    given = {name: value for name, value in conninfo_to_dict(settings.dsn).items() if value}

    def new_reader(proxy_port: int) -> PersistenceBackend:
        dsn = make_conninfo("", **{**given, "host": "127.0.0.1", "port": proxy_port})
        changed = {"dsn": dsn, "statement_timeout": ANSWER}
        return from_settings(msgspec.structs.replace(settings, **changed)).reader()

    port = int(given.get("port") or 5432)
    return Stores(from_settings(settings), new_reader, port, ANSWER + 4.0)


@pytest.fixture(params=[redis_stores, postgres_stores])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    made: Stores = request.param(tmp_path)
    return made


async def test_a_subscription_goes_on_after_its_connection_has_gone_silent(stores: Stores) -> None:
    with FreezingProxy(stores.port) as proxy:
        async with (
            stores.writer,
            stores.new_reader(proxy.port) as reader,
            reader.subscribe() as items,
        ):
            await stores.writer.append(event(1))
            await goes_on(items, proxy, stores)


async def test_a_follower_of_redis_goes_on_after_its_connection_has_gone_silent(
    tmp_path: Path,
) -> None:
    stores = redis_stores(tmp_path)
    with FreezingProxy(stores.port) as proxy:
        async with stores.writer, stores.new_reader(proxy.port) as reader:
            assert isinstance(reader, RedisStreamsPersistence)
            await stores.writer.append(event(1))
            await goes_on(reader.follow(), proxy, stores)


async def goes_on(items: AsyncIterator[Any], proxy: FreezingProxy, stores: Stores) -> None:
    with anyio.fail_after(60):
        await number(items, 1)
    for expected in (2, 3) if CI else (2,):
        before = proxy.connections
        proxy.freeze_all()
        await stores.writer.append(event(expected))
        with anyio.fail_after(stores.bound + SLACK):
            await number(items, expected)
        assert proxy.connections > before


async def number(items: AsyncIterator[Any], expected: int) -> None:
    """Wait for the next event, which has this number."""
    async for item in items:
        if isinstance(item, PersistedEvent):
            assert item.payload["number"] == expected
            return
