"""Positions in a hash: set once wherever the connection is cut, and by the writer alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from papyra.exceptions import StoreFenced, StoreUnreachable, StoreWrongType
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends.redis import RedisStreamsConfig
from tests.conftest import event_loops
from tests.extent import some
from tests.persistence.backends.redis import test_cuts
from tests.persistence.backends.redis.conftest import MakeStore
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.persistence.backends.redis.test_cuts import CUTS, through
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")

proxy = test_cuts.proxy

#: Cuts that may be behind the end of so short a request, or reply, and cut nothing off then.
TOO_LATE = (Cut("in request", 400), Cut("in reply", 12))


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        yield client


async def test_positions_are_fields_of_a_hash(make: MakeStore, admin: redis.Redis) -> None:
    async with make() as store:
        key = store.config.keys.positions
        assert await store.load_position("balances") is None
        assert not admin.exists(key)
        await store.save_position("balances", b'{"seq":7}', None)
        await store.save_position("é\0", b"\xff", None)
        fields = admin.hgetall(key)
        assert fields.pop(b"") == b"1:2"
        assert fields == {b"balances": b'{"seq":7}', "é\0".encode(): b"\xff"}
        assert key in store.config.keys.everything
        await store.remove_position("balances", b'{"seq":7}')
        assert admin.hgetall(key) == {b"": b"1:3", "é\0".encode(): b"\xff"}
        assert await store.list_positions() == ["é\0"]


async def test_what_others_put_in_place_of_the_hash_is_named(
    make: MakeStore, admin: redis.Redis
) -> None:
    async with make() as store:
        await store.append()
        admin.set(store.config.keys.positions, "mine")
        with pytest.raises(StoreWrongType):
            await store.load_position("a")
        with pytest.raises(StoreWrongType):
            await store.save_position("a", b"1", None)
        with pytest.raises(StoreWrongType):
            await store.list_positions()
        assert admin.get(store.config.keys.positions) == b"mine"


async def test_a_paused_redis_writer_sets_no_position_though_its_successor_has_set_none(
    make: MakeStore,
) -> None:
    async with make() as first, make() as second:
        assert await first.save_position("a", b"1", None)
        assert await second.save_position("b", b"1", None)
        with pytest.raises(StoreFenced):
            await first.save_position("a", b"2", b"1")
        with pytest.raises(StoreFenced):
            await first.remove_position("a", b"1")
        assert await second.load_position("a") == b"1"


@pytest.mark.parametrize("cut", some(CUTS, every=2), ids=str)
@pytest.mark.parametrize("removes", [False, True], ids=["save", "remove"])
async def test_a_position_is_set_once_wherever_the_connection_is_cut(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore, cut: Cut, removes: bool
) -> None:
    proxy.marker = scripts.POSITION.sha.encode()
    async with through(proxy, config) as store:
        assert await store.save_position("a", b"1", None)
        proxy.cuts.append(cut)
        # Whether it was done by a try that nobody was told about, or by a later one.
        if removes:
            assert await store.remove_position("a", b"1")
            assert await store.save_position("a", b"1", None)
        else:
            assert await store.save_position("a", b"2", b"1")
            assert await store.save_position("a", b"1", b"2")
        assert not proxy.cuts
        if cut.place == "late":
            # It is as that one expects it, and comes too late all the same.
            assert b"differs" in proxy.release()
        assert await store.load_position("a") == b"1"
        assert not await store.save_position("a", b"1", b"2")
    async with make() as store:
        assert await store.load_position("a") == b"1"


@pytest.mark.parametrize(
    "cut", some([cut for cut in CUTS if cut not in TOO_LATE], every=2), ids=str
)
async def test_what_is_loaded_after_a_redis_change_that_raised_is_what_stays(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore, cut: Cut
) -> None:
    proxy.marker = scripts.POSITION.sha.encode()
    async with through(proxy, config, retry_for=0) as store:
        assert await store.save_position("a", b"1", None)
        proxy.cuts.append(cut)
        with pytest.raises(StoreUnreachable):
            await store.save_position("a", b"2", b"1")
        found = await store.load_position("a")
        assert found in (b"1", b"2")
        if cut.place == "late":
            assert b"fenced" in proxy.release()
        assert await store.load_position("a") == found
        assert await store.save_position("a", b"3", found)
    async with make() as store:
        assert await store.load_position("a") == b"3"
