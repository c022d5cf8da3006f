"""Two writers take over from each other, while connections are cut wherever it hurts.

What was acknowledged is stored, what raised is not, and no position is given twice. Which cut comes
when follows from a number. ``PAPYRA_TAKEOVERS=300`` makes it a long run.
"""

from __future__ import annotations

import random
from contextlib import ExitStack, suppress
from typing import Any

import msgspec
import pytest
import redis

from papyra.exceptions import StoreError, StoreFenced
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing.conformance._fixtures import a_record, an_event, everything
from tests.conftest import event_loops
from tests.extent import count
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

SEEDS = count("PAPYRA_TAKEOVERS", 2, 3)
STEPS = 40

PLACES: list[Cut] = [
    *(Cut("before"), Cut("after"), Cut("late")),
    *(Cut("in request", at) for at in (1, 90, 400)),
    *(Cut("in reply", at) for at in (1, 5)),
]


class Writer:
    """A backend behind a proxy that cuts."""

    def __init__(self, config: RedisStreamsConfig, proxy: Proxy, chance: random.Random) -> None:
        retry_for = chance.choice([0.0, 0.0, 1.0])
        changed = msgspec.structs.replace(
            config, url=proxy.url, retry_for=retry_for, backoff=0.001, max_backoff=0.01
        )
        self.proxy = proxy
        self.store = RedisStreamsPersistence(changed)
        self.chance = chance
        self.is_closed = False

    async def append(self, numbers: list[int], acknowledged: dict[int, int]) -> None:
        make = self.chance.choice([a_record, an_event])
        try:
            if self.is_closed:
                await self.store.__aenter__()
                self.is_closed = False
            appended = await self.store.append(*map(make, numbers))
        except StoreError:
            return
        positions = range(appended.first_seq, appended.last_seq + 1)
        acknowledged.update(zip(numbers, positions, strict=True))

    def cut(self) -> None:
        # Anywhere: what is asked first, what is written, what is taken back. (Not CLIENT SETINFO,
        # of which a client sends two at once: the proxy can't cut between them.)
        self.proxy.marker = self.chance.choice([b"EVALSHA", b"EVALSHA", b"\nINFO"])
        self.proxy.cuts += self.chance.choices(PLACES, k=self.chance.choice([1, 1, 2, 5]))


@pytest.mark.timeout(300 + 5 * SEEDS)
async def test_redis_writers_taking_over_keep_acknowledged_records_and_none_that_raised(
    server: RedisServer, config: RedisStreamsConfig
) -> None:
    for seed in range(SEEDS):
        mine = msgspec.structs.replace(config, system_id=f"{config.system_id}-{seed}")
        await run(server, mine, random.Random(seed), seed)
        with redis.Redis.from_url(server.url) as client:
            client.delete(*mine.keys.all)


async def run(
    server: RedisServer, config: RedisStreamsConfig, chance: random.Random, seed: int
) -> None:
    acknowledged: dict[int, int] = {}
    number = 0
    with ExitStack() as stack:
        writers = [
            Writer(config, stack.enter_context(Proxy(server.port)), chance) for _ in range(2)
        ]
        for _ in range(STEPS):
            writer = chance.choice(writers)
            if chance.random() < 0.5:
                writer.cut()
            numbers = [number + i for i in range(chance.choice([1, 1, 4]))]
            number += len(numbers)
            await writer.append(numbers, acknowledged)
            if chance.random() < 0.2:
                writer.is_closed = True
                with suppress(StoreError):
                    await writer.store.aclose()
            if chance.random() < 0.2:
                writer.proxy.cuts.clear()
                writer.proxy.release()
        for writer in writers:
            writer.proxy.cuts.clear()
            writer.proxy.release()
        for writer in writers:
            await _settled(writer)
    async with RedisStreamsPersistence(config) as store:
        found: dict[Any, Any] = {
            record.payload["n"]: record.seq for record in await everything(store)
        }
        assert found == acknowledged, seed
        report = await store.scan()
        assert report.is_clean, (seed, report)
        assert report.records_scanned == len(set(acknowledged.values()))


async def _settled(writer: Writer) -> None:
    """Close a store whose connection is whole again; what is in doubt is settled at last."""
    if writer.store.store.writer.in_doubt is not None:
        with suppress(StoreFenced):
            async with writer.store:
                await writer.store.store.asyncio.run(writer.store.store.writer.claim)
    await writer.store.aclose()
    assert writer.store.store.writer.in_doubt is None
