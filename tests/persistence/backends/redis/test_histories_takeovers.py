"""Histories that two writers go on with by turns, while connections are cut, and a server loses.

``PAPYRA_TAKEOVERS=300`` and ``PAPYRA_KILLS=100`` make it a long run.
"""

from __future__ import annotations

import random
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import msgspec
import pytest
import redis

from papyra import ActorSystem
from papyra.exceptions import RevisionConflict, StoreError, StoreUnreachable
from papyra.persistence import Append, CircuitBreakerPolicy, PersistenceActor
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.testing.conformance._fixtures import a_record
from papyra.testing.conformance._histories import a_step, events_of, history
from tests.conftest import event_loops
from tests.extent import count, some
from tests.persistence.backends.redis.conftest import MakeStore
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.persistence.backends.redis.test_takeovers import Writer, _settled
from tests.persistence.backends.redis.test_torn_log import tear
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

SEEDS = count("PAPYRA_TAKEOVERS", 2, 3)
KILLS = count("PAPYRA_KILLS", 2, 4)
STEPS = 40


class HistoryWriter(Writer):
    """A backend behind a proxy that cuts, which goes on with histories."""

    async def go_on(self, actor: str, numbers: list[int], stored: dict[str, list[int]]) -> None:
        """Append the next events of an actor, and note what was acknowledged."""
        try:
            if self.is_closed:
                await self.store.__aenter__()
                self.is_closed = False
            last = len(await history(self.store, actor))
            steps = [
                a_step(actor, last + 1 + place, payload=number)
                for place, number in enumerate(numbers)
            ]
            await self.store.append(*steps, a_record(numbers[0]))
        except (StoreError, RevisionConflict):
            return
        stored[actor] += numbers


@pytest.mark.timeout(300 + 5 * SEEDS)
async def test_no_revision_is_there_twice_and_none_is_missing(
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
    stored: dict[str, list[int]] = {actor: [] for actor in "uv"}
    number = 0
    with ExitStack() as stack:
        writers = [
            HistoryWriter(config, stack.enter_context(Proxy(server.port)), chance) for _ in range(2)
        ]
        for _ in range(STEPS):
            writer = chance.choice(writers)
            if chance.random() < 0.5:
                writer.cut()
            numbers = [number + i for i in range(chance.choice([1, 1, 4]))]
            number += len(numbers)
            await writer.go_on(chance.choice("uv"), numbers, stored)
            if chance.random() < 0.2:
                writer.is_closed = True
                with suppress(StoreError):
                    await writer.store.aclose()
            if chance.random() < 0.1:
                async with RedisStreamsPersistence(config) as other:
                    await other.read("event", actor="s/u")
                    await other.compact(RetentionPolicy(max_records=2))
            if chance.random() < 0.2:
                writer.proxy.cuts.clear()
                writer.proxy.release()
        for writer in writers:
            writer.proxy.cuts.clear()
            writer.proxy.release()
        for writer in writers:
            await _settled(writer)
    async with RedisStreamsPersistence(config) as store:
        for actor, numbers in stored.items():
            events = await events_of(store, actor)
            assert [event.payload for event in events] == numbers, seed
            assert [event.revision for event in events] == list(range(1, len(numbers) + 1)), seed
        report = await store.scan()
        assert report.is_clean, (seed, report)


@pytest.mark.parametrize("restored", [False, True])
async def test_what_was_taken_back_is_in_no_history(
    server: RedisServer, config: RedisStreamsConfig, restored: bool
) -> None:
    """Its revision is given again, and it is not in the index either."""
    with Proxy(server.port) as proxy, redis.Redis.from_url(server.url) as client:
        proxy.marker = scripts.APPEND.sha.encode()
        changed = msgspec.structs.replace(config, url=proxy.url, retry_for=0)
        async with RedisStreamsPersistence(changed) as store:
            await store.append(a_step("u", 1), a_record(1))
            proxy.cuts.append(Cut("after"))
            steps: list[Any] = [a_step("u", 2), a_step("v", 1), a_record(3), a_step("u", 3)]
            with pytest.raises(StoreUnreachable):
                if restored:
                    placed = [
                        msgspec.structs.replace(step, seq=seq) for seq, step in enumerate(steps, 3)
                    ]
                    await store.restore(*placed)
                else:
                    await store.append(*steps)
            assert client.zcard(config.keys.index) == 4
            assert await history(store, "u") == [1]  # it may be there, but is not shown
            assert await history(store, "v") == []
            await store.read("event", actor="s/u")
            await store.append(a_step("u", 2, payload="other"))
            assert [event.payload for event in await events_of(store, "u")][1:] == ["other"]
            assert (await store.scan()).is_clean
            assert await history(store, "v") == []
            await store.append(a_step("v", 1))


async def test_a_history_does_not_go_on_behind_what_the_server_has_lost(
    make: MakeStore, config: RedisStreamsConfig, server: RedisServer
) -> None:
    """A replica was promoted that had not got the last events: others would make a hole."""
    with redis.Redis.from_url(server.url) as client:
        async with make() as store:
            await store.append(a_step("u", 1), a_record(1), a_record(2))
            copies: list[Any] = [
                (key, copy) for key in config.keys.all if (copy := client.dump(key))
            ]
            await store.append(a_step("u", 2))
            for key, copy in copies:
                client.restore(key, 0, copy, replace=True)
            with pytest.raises(StoreError, match="lost"):
                await store.append(a_step("u", 3))
            with pytest.raises(RevisionConflict):
                await store.append(a_step("u", 3))
            await store.append(a_step("u", 2, payload="other"))
            assert [event.payload for event in await events_of(store, "u")][1:] == ["other"]


@pytest.mark.timeout(300 + 5 * KILLS)
@pytest.mark.parametrize("retry_for", [60.0, 0.01], ids=["patient", "hasty"])
async def test_a_server_that_is_killed_again_and_again_keeps_histories_whole(
    own_server: RedisServer, retry_for: float
) -> None:
    own_server.kill()
    own_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.start()
    config = RedisStreamsConfig(
        url=own_server.url, retry_for=retry_for, backoff=0.001, max_backoff=0.02
    )
    chance, stored = random.Random(KILLS), dict.fromkeys("uvw", 0)
    is_over = False
    async with ActorSystem(audit_interval=None) as system:
        store = RedisStreamsPersistence(config)
        ref = system.spawn(PersistenceActor, store, CircuitBreakerPolicy(max_failures=None))

        async def write(actor: str) -> None:
            while not is_over:
                # What has raised is not stored, so its revision is the next one still.
                with suppress(StoreError):
                    await ref.ask(Append(a_step(actor, stored[actor] + 1)))
                    stored[actor] += 1

        async with anyio.create_task_group() as tasks:
            for actor in stored:
                tasks.start_soon(write, actor)
            for _ in range(KILLS):
                known = sum(stored.values())
                while sum(stored.values()) < known + 6:
                    await anyio.lowlevel.checkpoint()
                for _ in range(chance.randrange(40)):
                    await anyio.lowlevel.checkpoint()
                own_server.kill()
                own_server.start()
            is_over = True
    async with RedisStreamsPersistence(config) as store:
        for actor, last in stored.items():
            assert await history(store, actor) == list(range(1, last + 1))
        assert (await store.scan()).is_clean


#: What an append of two events with a revision writes: MULTI, two XADD, ZADD, two HSET, EXEC.
COMMANDS = 7


@pytest.mark.parametrize("command", some(range(1, COMMANDS), every=2))
@pytest.mark.parametrize("is_killed", [False, True], ids=["told", "killed as well"])
async def test_an_append_that_was_torn_is_in_no_history(
    own_server: RedisServer, command: int, is_killed: bool
) -> None:
    """A part of it may come back when the server starts for the second time."""
    own_server.kill()
    own_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.start()
    with Proxy(own_server.port) as proxy:
        proxy.marker = scripts.APPEND.sha.encode()
        config = RedisStreamsConfig(url=proxy.url, retry_for=0)
        async with RedisStreamsPersistence(config) as store:
            await store.append(a_step("u", 1), a_record(1))
            proxy.cuts.append(Cut("after"))
            with pytest.raises(StoreUnreachable):
                await store.append(a_step("u", 2, payload="torn"), a_step("v", 1, payload="torn"))
            own_server.kill()
            tear(own_server, command, COMMANDS)
            own_server.start()
            if is_killed:
                # Another process, which knows nothing of it.
                store.store.writer.in_doubt = None
                async with RedisStreamsPersistence(config) as other:
                    await other.append(a_record(1), a_record(2))
            else:
                await store.append(a_record(2))
        own_server.kill()
        own_server.start()
    async with RedisStreamsPersistence(RedisStreamsConfig(url=own_server.url)) as store:
        if is_killed:
            await store.recover()
        assert (await store.scan()).is_clean
        assert await history(store, "u") == [1]
        assert await history(store, "v") == []
        await store.append(a_step("u", 2), a_step("v", 1))
        assert [event.payload for event in await events_of(store, "u")][1] != "torn"
