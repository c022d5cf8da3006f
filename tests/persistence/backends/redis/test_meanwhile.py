"""Between a question and its answer, something happens: nothing is lost, and nothing is made up.

Everything that the one under test asks goes through a proxy, which holds each answer back until
another backend has done something.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import msgspec
import pytest
import redis
from anyio.from_thread import start_blocking_portal

from papyra.exceptions import StoreUnreachable
from papyra.persistence.backends._redis import scripts, stream_iterator, stream_scan
from papyra.persistence.backends.redis import (
    Delivery,
    RedisStreamsConfig,
    RedisStreamsPersistence,
)
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.testing.conformance._fixtures import an_event
from tests.conftest import event_loops
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

#: How many answers are held back.
TIMES = 5


class Rival:
    """Another backend on the store, in a thread of the proxy's: it acts while an answer is held."""

    def __init__(self, config: RedisStreamsConfig, proxy: Proxy) -> None:
        self.proxy = proxy
        self.store = RedisStreamsPersistence(config)
        self.left = TIMES
        self.last_seq = 0
        self.watched: tuple[bytes, ...] = ()

    def append_each_time(self, *commands: bytes) -> None:
        """Append an event before each answer, or before those to some commands alone."""
        self.watched = commands
        self.proxy.meanwhile = self._append

    def _append(self, request: bytes) -> None:
        if self.left and (not self.watched or any(word in request for word in self.watched)):
            self.left -= 1
            anyio.run(self.append, an_event(self.left))

    async def append(self, *records: Any) -> None:
        async with self.store:
            self.last_seq = (await self.store.append(*records)).last_seq


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def rival(config: RedisStreamsConfig, proxy: Proxy) -> Rival:
    return Rival(config, proxy)


@pytest.fixture
async def store(
    config: RedisStreamsConfig, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RedisStreamsPersistence]:
    monkeypatch.setattr(stream_iterator, "BLOCK", 0.05)
    changed = msgspec.structs.replace(config, url=proxy.url, timeout=20.0)
    async with RedisStreamsPersistence(changed) as store:
        yield store
        proxy.meanwhile = None


Begin = Callable[[RedisStreamsPersistence, int | None], AsyncIterator[Any]]

BEGINNINGS: dict[str, Begin] = {
    "follow": lambda store, after: store.follow(after=after),
    "consume": lambda store, after: store.consume("group", "one", after=after),
}


def seq_of(item: Any) -> int:
    record: Any = item.record if isinstance(item, Delivery) else item
    return int(record.seq)


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("there", [0, 3])
@pytest.mark.parametrize("after", ["none", "the first", "the last"])
async def test_a_beginning_follower_or_consumer_misses_no_record_written_meanwhile(
    store: RedisStreamsPersistence, rival: Rival, begin: Begin, there: int, after: str
) -> None:
    if there:
        await rival.append(*map(an_event, range(there)))
    position = {"none": None, "the first": min(1, there), "the last": there}[after]
    rival.append_each_time()
    got: list[int] = []
    async for item in begin(store, position):
        got.append(seq_of(item))
        if not rival.left and got[-1] == rival.last_seq:
            break
    # Whatever was there when it asked for the end is not what came after that.
    first = got[0] if position is None else position + 1
    assert first > (there if position is None else position)
    assert got == list(range(first, there + TIMES + 1))
    assert position is not None or first <= there + 3


@pytest.mark.parametrize("commands", [(), (b"XREAD",)], ids=["each", "when-all-was-read"])
async def test_a_follower_after_a_future_position_begins_behind_it(
    store: RedisStreamsPersistence, rival: Rival, commands: tuple[bytes, ...]
) -> None:
    rival.append_each_time(*commands)
    got = []
    async for event in store.follow(after=3):
        got.append(event.seq)
        if event.seq == TIMES:
            break
    assert got == list(range(4, TIMES + 1))


async def test_a_record_appended_while_a_redis_store_is_compacted_empty_is_kept(
    store: RedisStreamsPersistence, rival: Rival, server: RedisServer
) -> None:
    """Nothing was shown when it was looked for; what came since is."""
    await rival.append(an_event(0, payload={"x": "x" * 500}))
    with redis.Redis.from_url(server.url) as client:
        client.script_load(scripts.FIND.source)  # else the first answer is that it is not known
    rival.left = 1
    rival.append_each_time(scripts.FIND.sha.encode())
    await store.compact(RetentionPolicy(max_total_bytes=200))
    assert not rival.left
    assert [event.seq for event in await store.list_events()] == [2]
    assert (await store.scan()).is_clean


@pytest.mark.parametrize("verb", ["scan", "recover"])
async def test_an_in_doubt_batch_removed_during_a_redis_scan_is_no_damage(
    store: RedisStreamsPersistence,
    proxy: Proxy,
    server: RedisServer,
    config: RedisStreamsConfig,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    """And what a writer has put in its place is no copy of it."""
    monkeypatch.setattr(stream_scan, "PAGE_ENTRIES", 4)
    with Proxy(server.port) as line, start_blocking_portal() as portal:
        line.marker = scripts.APPEND.sha.encode()
        changed = msgspec.structs.replace(config, url=line.url, retry_for=0)
        writer = RedisStreamsPersistence(changed)
        portal.call(writer.append, an_event(0))
        line.cuts.append(Cut("after"))
        with pytest.raises(StoreUnreachable):
            portal.call(writer.append, *map(an_event, range(100, 103)))

        def meanwhile(request: bytes) -> None:
            # They were counted; before the answer is there, others take their place.
            if scripts.STATE.sha.encode() in request and not done:
                done.append(portal.call(writer.append, *map(an_event, range(1, 4))))

        done: list[object] = []
        proxy.meanwhile = meanwhile
        first = await getattr(store, verb)()
        assert done
        assert verb == "recover" or first.is_clean
        report = await store.scan()
        portal.call(writer.aclose)
    assert report.is_clean
    assert [event.payload["n"] for event in await store.list_events()] == [0, 1, 2, 3]
