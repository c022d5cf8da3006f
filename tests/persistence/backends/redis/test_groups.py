"""Following a stream, and consumer groups: records reach other programs, each at least once."""

from __future__ import annotations

import logging
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any, TypeVar

import anyio
import msgspec
import pytest
import redis

from papyra.exceptions import BackendClosed, InvalidRequest, StoreError, StoreWrongType
from papyra.persistence.backends._redis.client import connection_name
from papyra.persistence.backends.redis import (
    Delivery,
    RedisStreamsConfig,
    RedisStreamsPersistence,
)
from papyra.testing.conformance._fixtures import a_record, an_event
from tests.persistence.backends.redis.conftest import MakeStore
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.redis_server import RedisServer

ItemT = TypeVar("ItemT")


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        yield client


async def take(items: AsyncIterator[ItemT], count: int) -> list[ItemT]:
    return [await anext(items) for _ in range(count)]


def seqs(items: list[Any]) -> list[int]:
    records: list[Any] = [item.record if isinstance(item, Delivery) else item for item in items]
    return [record.seq for record in records]


class TestFollowing:
    async def test_a_follower_gets_stored_and_new_records(self, make: MakeStore) -> None:
        async with make() as writer, make() as store:
            await writer.append(*map(an_event, range(250)))
            events = store.follow()
            assert seqs(await take(events, 250)) == list(range(1, 251))
            got: list[int] = []

            async def follow() -> None:
                got.extend(seqs(await take(events, 3)))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                for number in range(3):
                    await writer.append(an_event(number), a_record(1))
            assert got == [251, 253, 255]

    async def test_a_follower_resumes_after_a_position(self, make: MakeStore) -> None:
        async with make() as store:
            await store.append(*map(a_record, range(30)))
            every = seqs(await take(store.follow("audit"), 10))
            for after in range(30):
                wanted = [seq for seq in every if seq > after]
                found = await take(store.follow("audit", after=after), len(wanted))
                assert seqs(found) == wanted

    async def test_a_follower_after_none_begins_with_the_next_record(self, make: MakeStore) -> None:
        async with make() as store, make() as reader:
            await store.append(*map(an_event, range(5)))
            events = reader.follow(after=None)
            got: list[int] = []

            async def follow() -> None:
                got.extend(seqs(await take(events, 1)))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                # It has begun when it waits: then a client is blocked.
                while not got:
                    await store.append(an_event(6))
                    await anyio.lowlevel.checkpoint()
            assert got[0] > 5

    async def test_a_follower_after_none_gets_what_its_process_appends_before_it_is_asked(
        self, make: MakeStore
    ) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(5)))
            events = store.follow(after=None)
            await store.append(an_event(6))
            with anyio.fail_after(60):
                assert seqs(await take(events, 1)) == [6]

    async def test_no_append_that_meets_the_start_of_a_follower_is_lost_to_it(
        self, make: MakeStore
    ) -> None:
        """Followers begin at any step of appends, in the process that appends and in another."""
        random, total = Random(17), 60
        async with make() as writer, make() as reader:
            kept = [await writer.append(an_event(0))]
            found: list[tuple[int, list[int]]] = []

            async def follow(store: RedisStreamsPersistence) -> None:
                for _ in range(random.randint(0, 100)):
                    await anyio.lowlevel.checkpoint()
                after = kept[-1].last_seq
                if after >= total:
                    return
                events = store.follow(after=after)
                got: list[int] = []
                found.append((after, got))
                while not got or got[-1] < total:
                    got += seqs(await take(events, 1))

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    while kept[-1].last_seq < total:
                        tasks.start_soon(follow, random.choice([writer, reader]))
                        for _ in range(random.choice([0, 0, 3, 20])):
                            await anyio.lowlevel.checkpoint()
                        other = [a_record(1)] * random.choice([0, 0, 1])
                        kept.append(await writer.append(an_event(0), *other))
                    if kept[-1].last_seq == total:
                        await writer.append(an_event(0))
            stored = [event.seq for event in (await reader.read("event")).records]
            for after, got in found:
                assert got == [seq for seq in stored if after < (seq or 0) <= got[-1]]

    async def test_a_follower_at_the_end_waits_for_the_next_record(self, make: MakeStore) -> None:
        async with make() as store:
            await store.append(an_event(1), an_event(2))
            events = store.follow(after=2)
            with anyio.move_on_after(0.05) as scope:
                await anext(events)
            assert scope.cancelled_caught
            await store.append(an_event(3))
            assert seqs(await take(events, 1)) == [3]

    async def test_followers_in_one_process_need_no_more_connections_with_each_append(
        self, make: MakeStore, admin: redis.Redis
    ) -> None:
        async with make() as store:
            got = [0] * 4

            async def follow(number: int) -> None:
                async for event in store.follow():
                    got[number] = event.seq or 0

            async with anyio.create_task_group() as tasks:
                for number in range(len(got)):
                    tasks.start_soon(follow, number)
                for number in range(1, 31):
                    await store.append(an_event(number))
                    while min(got) < number:
                        await anyio.lowlevel.checkpoint()
                name = connection_name(store.store.client.name)
                own = [each for each in admin.client_list() if each["name"] == name]
                assert len(own) <= 2 * len(got) + 1
                tasks.cancel_scope.cancel()

    async def test_a_follower_survives_a_restart_of_the_redis_server(
        self, own_server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_server.kill()
        own_server.options = ("--appendonly", "yes", "--appendfsync", "always")
        own_server.start()
        config = RedisStreamsConfig(url=own_server.url, retry_for=60.0, max_backoff=0.05)
        got: list[int] = []

        async def follow(store: RedisStreamsPersistence) -> None:
            async for event in store.follow():
                got.append(event.seq or 0)
                if len(got) == 40:
                    return

        async with (
            RedisStreamsPersistence(config) as writer,
            RedisStreamsPersistence(config) as store,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(follow, store)
            for number in range(40):
                await writer.append(an_event(number))
                if number % 10 == 5:
                    while len(got) <= number:  # until it waits for more
                        await anyio.lowlevel.checkpoint()
                    own_server.kill()
                    own_server.start()
        assert got == list(range(1, 41))
        assert "waiting for the server" in caplog.text

    async def test_a_follower_skips_an_unreadable_entry_with_a_warning(
        self, make: MakeStore, admin: redis.Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with make() as store:
            await store.append(an_event(1))
            admin.xadd(store.config.keys.streams["event"], {"not": "ours"})
            await store.append(an_event(2))
            with caplog.at_level(logging.WARNING):
                assert seqs(await take(store.follow(), 2)) == [1, 2]
            assert "can't be read" in caplog.text

    async def test_closing_a_redis_store_ends_its_followers(self, make: MakeStore) -> None:
        store = make()
        await store.append(an_event(1))
        events = store.follow()
        await anext(events)
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                with pytest.raises(BackendClosed):
                    await anext(events)

            tasks.start_soon(follow)
            await anyio.lowlevel.checkpoint()
            await store.aclose()

    async def test_a_follower_raises_an_error_that_retrying_cannot_mend(
        self, make: MakeStore, admin: redis.Redis
    ) -> None:
        async with make() as store:
            admin.set(store.config.keys.streams["event"], "something else")
            with pytest.raises(StoreWrongType):
                await anext(store.follow())

    async def test_invalid_arguments_of_follow_consume_and_claim_are_refused(
        self, make: MakeStore
    ) -> None:
        store = make()
        wrong: list[Any] = [{"kind": "events"}, {"after": -1}, {"after": 1.5}]
        for arguments in wrong:
            with pytest.raises(InvalidRequest):
                store.follow(**arguments)
        with pytest.raises(InvalidRequest):
            store.consume("", "one")
        with pytest.raises(InvalidRequest):
            store.consume("group", "one", claim_after=-1)
        with pytest.raises(InvalidRequest):
            await store.claim("group", "one", min_idle=float("inf"))


class TestGroups:
    async def test_each_record_goes_to_one_consumer_of_a_group(self, make: MakeStore) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(300)))
            got: dict[str, list[int]] = {"one": [], "two": []}

            async def consume(name: str) -> None:
                async for delivery in store.consume("group", name):
                    got[name] += seqs([delivery])
                    await store.ack("group", delivery)
                    if len(got["one"]) + len(got["two"]) == 300:
                        tasks.cancel_scope.cancel()

            async with anyio.create_task_group() as tasks:
                for name in got:
                    tasks.start_soon(consume, name)
            assert sorted(got["one"] + got["two"]) == list(range(1, 301))
            assert await store.pending("group") == []

    async def test_every_consumer_group_gets_every_record(self, make: MakeStore) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(5)))
            for group in ("a", "b"):
                assert seqs(await take(store.consume(group, "one"), 5)) == [1, 2, 3, 4, 5]

    async def test_a_consumer_group_may_begin_after_a_position_or_at_the_end(
        self, make: MakeStore
    ) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(5)))
            assert seqs(await take(store.consume("a", "one", after=3), 2)) == [4, 5]
            ahead = store.consume("b", "one", after=None)
            with anyio.move_on_after(0.05):
                await anext(ahead)
            await store.append(an_event(6))
            assert seqs(await take(ahead, 1)) == [6]

    async def test_a_group_after_none_gets_what_its_process_appends_before_it_is_asked(
        self, make: MakeStore
    ) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(5)))
            deliveries = store.consume("group", "one", after=None)
            await store.append(an_event(6))
            with anyio.fail_after(60):
                assert seqs(await take(deliveries, 1)) == [6]

    async def test_a_delivery_that_was_not_acknowledged_comes_again(self, make: MakeStore) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(5)))
            first = await take(store.consume("group", "one"), 5)
            assert await store.ack("group", first[0], first[3]) == 2
            assert await store.ack("group", first[0]) == 0
            pending = await store.pending("group")
            assert [(p.seq, p.consumer, p.deliveries) for p in pending] == [
                (2, "one", 1),
                (3, "one", 1),
                (5, "one", 1),
            ]
            again = await take(store.consume("group", "one"), 3)
            assert seqs(again) == [2, 3, 5]
            assert [p.deliveries for p in await store.pending("group")] == [2, 2, 2]

    async def test_deliveries_that_a_consumer_left_are_claimed_by_others(
        self, make: MakeStore
    ) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(150)))
            left = await take(store.consume("group", "one"), 100)
            assert await store.claim("group", "two", min_idle=3600.0) == []
            claimed = await store.claim("group", "two", min_idle=0.0, count=30)
            assert seqs(claimed) == seqs(left[:30])
            got: set[int] = set()
            async for delivery in store.consume("group", "three", claim_after=0.001):
                got |= set(seqs([delivery]))
                await store.ack("group", delivery)
                if len(got) == 150:
                    break
            assert got == set(range(1, 151))
            assert await store.pending("group") == []

    async def test_a_deleted_entry_does_not_stay_pending_in_a_consumer_group(
        self, make: MakeStore, admin: redis.Redis
    ) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(5)))
            got = await take(store.consume("group", "one"), 5)
            admin.xdel(store.config.keys.streams["event"], got[1].id, got[2].id)
            assert seqs(await take(store.consume("group", "one"), 3)) == [1, 4, 5]
            assert [p.seq for p in await store.pending("group")] == [1, 4, 5]
            assert seqs(await store.claim("group", "two", min_idle=0.0)) == [1, 4, 5]

    async def test_a_consumer_acknowledges_an_unreadable_entry_with_a_warning(
        self, make: MakeStore, admin: redis.Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with make() as store:
            await store.append(an_event(1))
            admin.xadd(store.config.keys.streams["event"], {"not": "ours"})
            await store.append(an_event(2))
            assert seqs(await take(store.consume("group", "one"), 2)) == [1, 2]
            assert "can't be read" in caplog.text
            assert [p.seq for p in await store.pending("group")] == [1, 2]

    async def test_a_consumer_group_that_was_destroyed_begins_anew(
        self, make: MakeStore, admin: redis.Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with make() as store:
            await store.append(*map(an_event, range(3)))
            consumer = store.consume("group", "one")
            await take(consumer, 3)
            admin.xgroup_destroy(store.config.keys.streams["event"], "group")
            assert seqs(await take(consumer, 3)) == [1, 2, 3]
            assert "begins anew" in caplog.text

    async def test_pending_of_an_unknown_consumer_group_is_an_error(self, make: MakeStore) -> None:
        async with make() as store:
            await store.append(an_event(1))
            with pytest.raises(StoreError, match="NOGROUP"):
                await store.pending("nobody")

    @pytest.mark.parametrize("cut", [Cut("before"), Cut("after"), Cut("in reply", 30)], ids=str)
    async def test_a_delivery_whose_answer_is_lost_comes_again_to_the_consumer(
        self, server: RedisServer, config: RedisStreamsConfig, make: MakeStore, cut: Cut
    ) -> None:
        with Proxy(server.port) as proxy:
            proxy.marker = b"XREADGROUP"
            changed = msgspec.structs.replace(config, url=proxy.url, backoff=0.001)
            async with make() as writer, RedisStreamsPersistence(changed) as store:
                consumer = store.consume("group", "one", claim_after=None)
                await writer.append(*map(an_event, range(3)))
                assert seqs(await take(consumer, 3)) == [1, 2, 3]
                proxy.cuts.append(cut)
                await writer.append(*map(an_event, range(3)))
                assert seqs(await take(consumer, 3)) == [4, 5, 6]
                assert not proxy.cuts

    async def test_consumers_handle_every_record_of_two_systems_though_one_is_killed(
        self, server: RedisServer
    ) -> None:
        systems = [f"system-{uuid.uuid4().hex}" for _ in range(2)]
        configs = [RedisStreamsConfig(url=server.url, system_id=name) for name in systems]
        stores = [RedisStreamsPersistence(config) for config in configs]
        handled: Counter[tuple[str, int]] = Counter()
        victim = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.persistence.backends.redis.consumer",
                server.url,
                "victim",
                *systems,
            ],
            stdout=subprocess.PIPE,
        )
        try:
            for store in stores:
                await store.append(*map(an_event, range(50)))
            assert victim.stdout is not None
            got = [victim.stdout.readline().split() for _ in range(60)]
            assert {name.decode() for name, _ in got} == set(systems)
        finally:
            victim.kill()
            victim.communicate()
        for store in stores:
            await store.append(*map(an_event, range(50, 200)))

        async def consume(store: RedisStreamsPersistence, name: str) -> None:
            async for delivery in store.consume("group", name, claim_after=0.2):
                handled[store.config.system_id, delivery.record.seq or 0] += 1
                await store.ack("group", delivery)
                if len(handled) == 400:
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for store in stores:
                for name in ("one", "two"):
                    tasks.start_soon(consume, store, name)
        assert set(handled) == {(name, seq) for name in systems for seq in range(1, 201)}
        for store in stores:
            left = await store.pending("group")
            # The last to be acknowledged may be, when everything was seen.
            assert len(left) <= 1
            await store.aclose()
