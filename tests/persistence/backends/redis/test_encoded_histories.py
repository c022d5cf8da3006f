"""Histories that are given out as they are stored: the same as those that are decoded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec
import pytest
import redis

from papyra import ActorSystem
from papyra.exceptions import StoreUnreachable
from papyra.persistence import codec
from papyra.persistence.backends._redis import histories, scripts
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.messages import EncodedHistory, HistoryPage, ReadEncodedHistory, ReadHistory
from papyra.testing.conformance._fixtures import an_event
from papyra.testing.conformance._histories import a_step, events_of, history
from tests.conftest import event_loops
from tests.eventsourcing.accounts import Look
from tests.persistence.backends.redis import older_program
from tests.persistence.backends.redis.conftest import MakeStore
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.persistence.backends.trimmed_accounts import (
    ACCOUNTS,
    TRIM,
    Saved,
    fill,
    looked,
    replayed,
)
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

Client: TypeAlias = Any


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "FIRST_RUN", 3)
    monkeypatch.setattr(histories, "LONGEST_RUNS", 7)
    monkeypatch.setattr(histories, "MAX_RUN_RECORDS", 2)


async def encoded(
    store: RedisStreamsPersistence, actor: str, after: int = 0, limit: int | None = None
) -> EncodedHistory | HistoryPage:
    request: Any = ReadEncodedHistory(f"s/{actor}", after, limit)
    found = await store.execute(request)
    assert isinstance(found, EncodedHistory | HistoryPage)
    return found


def revisions_in(page: EncodedHistory | HistoryPage) -> list[int | None]:
    assert isinstance(page, EncodedHistory)
    records = [line for run in page.runs for line in run.data.split(b"\n")]
    assert len(records) == sum(run.count for run in page.runs)
    return [codec.concerned(record)[1] for record in records]


async def test_a_history_is_given_out_as_it_is_stored_whoever_is_in_between(
    make: MakeStore,
) -> None:
    chance = random.Random(1)
    last = dict.fromkeys("abc", 0)
    async with make() as store:
        for _ in range(60):
            actor = chance.choice("aaaaaaabc")
            added = range(last[actor] + 1, last[actor] + chance.choice([1, 1, 2, 30]))
            await store.append(an_event(0), *(a_step(actor, revision) for revision in added))
            last[actor] = max([last[actor], *added])
        for actor, end in last.items():
            for after in {0, 1, end // 2, end - 1, end, end + 1}:
                for limit in (None, 1, 2, 5):
                    page = await encoded(store, actor, after, limit)
                    wanted = await store.execute(ReadHistory(f"s/{actor}", after, limit))
                    assert revisions_in(page) == [event.revision for event in wanted.events]
                    assert page.more or not wanted.more
                    if wanted.events:
                        assert isinstance(page, EncodedHistory)
                        assert page.last_seq == wanted.events[-1].seq
            assert await history(store, actor) == list(range(1, end + 1))


async def test_what_is_damaged_in_a_history_is_looked_at_one_by_one(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    key = config.keys.streams["event"]
    async with make() as store:
        await store.append(*(a_step("a", revision) for revision in range(1, 10)))
        entries = client.xrange(key)
        for changes in (
            {b"record": entries[4][1][b"record"].replace(b'"n":', b'"m":')},
            {b"crc": b"00000000"},
            {b"other": b"field"},
        ):
            client.delete(key)
            for identifier, fields in entries:
                is_it = identifier == entries[4][0]
                client.xadd(key, fields | changes if is_it else fields, identifier)
            page = await encoded(store, "a")
            assert isinstance(page, HistoryPage), changes
            assert [event.revision for event in page.events] == [1, 2, 3, 4, 6, 7, 8, 9]
        client.xdel(key, entries[4][0])
        assert isinstance(await encoded(store, "a"), HistoryPage)
        await store.recover()
        assert revisions_in(await encoded(store, "a")) == [1, 2, 3, 4, 6, 7, 8, 9]


async def test_what_is_in_doubt_is_not_given_out(
    config: RedisStreamsConfig, server: RedisServer
) -> None:
    with Proxy(server.port) as proxy:
        mine = msgspec.structs.replace(config, url=proxy.url, retry_for=0)
        async with RedisStreamsPersistence(mine) as store:
            await store.append(a_step("a", 1), a_step("a", 2))
            proxy.marker = scripts.APPEND.sha.encode()
            proxy.cuts.append(Cut("after"))
            with pytest.raises(StoreUnreachable):
                await store.append(a_step("a", 3))
            page = await encoded(store, "a")
            assert isinstance(page, HistoryPage)
            assert [event.revision for event in page.events] == [1, 2]


async def test_an_index_that_is_behind_is_brought_up_to_date_first(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    async with make() as store:
        await store.append(a_step("a", 1), a_step("a", 2))
        older_program.append(client, config, [a_step("a", 3)])
    async with make() as store:
        first = await encoded(store, "a")
        assert isinstance(first, HistoryPage)
        assert len(first.events) == 3
        assert revisions_in(await encoded(store, "a")) == [1, 2, 3]


async def test_strange_members_of_the_index_mislead_nobody(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    async with make() as store:
        await store.append(a_step("a", 1), a_step("b", 1), a_step("a", 2))
        [_, a2, b1] = client.zrange(config.keys.index, 0, -1)
        for stranger in (b"s/a hx", b"s/a h" + b"9" * 40, b1.replace(b"s/b", b"s/a")):
            client.zrem(config.keys.index, a2)
            client.zadd(config.keys.index, {stranger: 0})
            page = await encoded(store, "a")
            if isinstance(page, EncodedHistory):
                assert not page.is_own, "whoever decodes it looks whose it is"
            client.zrem(config.keys.index, stranger)
            client.zadd(config.keys.index, {a2: 0})
        assert [event.revision for event in await events_of(store, "a")] == [1, 2]


async def test_accounts_come_back_from_trimmed_and_whole_histories(make: MakeStore) -> None:
    await fill(make())
    assert await replayed(make()) == await looked(make()) == ACCOUNTS
    async with make() as store:
        await store.compact(TRIM)
        page: Any = ReadEncodedHistory("bank/ann", 0, None)
        assert isinstance(await store.execute(page), HistoryPage), "its base is something special"
        rest: Any = ReadEncodedHistory("bank/ann", 6, None)
        assert isinstance(await store.execute(rest), EncodedHistory)
    assert await replayed(make()) == await looked(make()) == ACCOUNTS


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_long_history_is_replayed(make: MakeStore) -> None:
    store = make()
    async with ActorSystem("bank", persistence=store) as system:
        for start in range(1, 3_000, 600):
            steps = (
                an_event(
                    0,
                    actor_address="bank/ann",
                    event_type="Deposited",
                    payload={"amount": 1},
                    revision=revision,
                )
                for revision in range(start, start + 600)
            )
            await store.append(*steps)
        assert await system.spawn(Saved, name="ann").ask(Look()) == (3_000, 3_000)
