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

from papyra.persistence.backends.redis import (
    Delivery,
    RedisStreamsConfig,
    RedisStreamsPersistence,
)
from papyra.testing._redis_server import RedisServer
from papyra.testing.conformance._parts import an_event
from tests.redis.proxy import Proxy

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
async def store(config: RedisStreamsConfig, proxy: Proxy) -> AsyncIterator[RedisStreamsPersistence]:
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
async def test_whoever_begins_misses_nothing_that_comes_meanwhile(
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


async def test_a_position_after_the_end_is_waited_for(
    store: RedisStreamsPersistence, rival: Rival
) -> None:
    rival.append_each_time()
    got = []
    async for event in store.follow(after=3):
        got.append(event.seq)
        if event.seq == TIMES:
            break
    assert got == list(range(4, TIMES + 1))
