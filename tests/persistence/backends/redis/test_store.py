"""What is in the streams, who may write them, and what reading, trimming and cancelling does."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import uuid
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import anyio
import msgspec
import pytest
import redis

from papyra import ActorSystem
from papyra.exceptions import StoreError, StoreFenced
from papyra.persistence import (
    Append,
    PersistedEvent,
    PersistenceActor,
    PersistenceStartupConfig,
    Read,
)
from papyra.persistence.backends import paging
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.testing._list_model import ListModel, read_to_the_end
from papyra.testing.conformance._fixtures import T0, a_record, an_event, everything
from tests.persistence.backends.redis.conftest import MakeStore
from tests.redis_server import RedisServer


def pairs(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


class TestFormat:
    async def test_entries_of_a_redis_store_can_be_read_by_any_client(
        self, server: RedisServer, config: RedisStreamsConfig, make: MakeStore
    ) -> None:
        async with make() as store:
            await store.append(a_record(1), an_event(2), an_event(3, payload={"ä": "尺"}))
        raw = server.cli("XRANGE", config.keys.streams["event"], "-", "+").splitlines()
        total = 0
        for number in range(2):
            identifier, *words = raw[9 * number : 9 * number + 9]
            fields = pairs(words)
            seq = number + 2
            total += len(fields["record"].encode())
            assert identifier == f"17000000{seq:02}000-{seq}"
            assert json.loads(fields["record"])["timestamp"] == T0 + seq
            assert (fields["n"], fields["total"]) == (str(number + 1), str(total))
            assert fields["crc"] == f"{crc32(fields['record'].encode(), seq):08x}"
        kept = server.cli("HGETALL", config.keys.meta).splitlines()
        meta = pairs(kept)
        assert (meta["last"], meta["event:n"], meta["audit:n"]) == ("3", "2", "1")
        assert meta["event:total"] == str(total)

    async def test_entry_ids_of_a_redis_store_never_go_back(
        self, server: RedisServer, config: RedisStreamsConfig, make: MakeStore
    ) -> None:
        async with make() as store:
            for time in (5.0, 3.0, -7.0, 5.0009, 1e300, 4.0, 1e300):
                await store.append(an_event(1, timestamp=time))
        said = server.cli("XRANGE", config.keys.streams["event"], "-", "+").splitlines()[::9]
        latest = 99_999_999_999_999
        assert said == [
            *("5000-1", "5000-2", "5000-3", "5000-4"),
            *(f"{latest}-5", f"{latest}-6", f"{latest}-7"),
        ]

    async def test_a_redis_store_of_a_newer_format_is_left_alone(
        self, server: RedisServer, config: RedisStreamsConfig, make: MakeStore
    ) -> None:
        async with make() as store:
            await store.append(an_event(1))
            server.cli("HSET", config.keys.meta, "format", "4")
            with pytest.raises(StoreError, match="newer version"):
                await make().append(an_event(2))
        with pytest.raises(StoreError, match="newer version"):
            await make().list_events()

    async def test_systems_on_one_redis_server_do_not_see_each_others_records(
        self, server: RedisServer
    ) -> None:
        names = [uuid.uuid4().hex for _ in range(2)]
        for prefix, system_id in itertools.product(names, names):
            config = RedisStreamsConfig(url=server.url, prefix=prefix, system_id=system_id)
            async with RedisStreamsPersistence(config) as store:
                assert (await store.append(an_event(1))).first_seq == 1
                assert len(await store.list_events()) == 1


class TestWriters:
    async def test_a_redis_writer_is_fenced_once_another_has_written(self, make: MakeStore) -> None:
        async with make() as first, make() as second:
            await first.append(an_event(1))
            assert (await second.append(an_event(2))).first_seq == 2
            for _ in range(2):
                with pytest.raises(StoreFenced, match="has taken over"):
                    await first.append(an_event(3))
            assert [e.seq for e in await first.list_events()] == [1, 2]  # it may read
            assert (await second.append(an_event(3))).first_seq == 3
            await first.aclose()
            # Whoever is opened anew may take over in turn.
            async with first:
                assert (await first.append(an_event(4))).first_seq == 4
            with pytest.raises(StoreFenced):
                await second.append(an_event(5))

    async def test_reading_scanning_and_compacting_fence_no_redis_writer(
        self, make: MakeStore
    ) -> None:
        async with make() as writer:
            await writer.append(*map(a_record, range(6)))
            async with make(retention_policy=RetentionPolicy(max_records=1)) as other:
                await other.list_events()
                assert (await other.scan()).is_clean
                assert (await other.flush()).last_seq == 6
                assert (await other.recover()).records_removed == 0
                assert (await other.compact()).records_after == 3
                await anext(other.follow())
                assert (await other.append()).last_seq == 6
            assert (await writer.append(an_event(7))).first_seq == 7

    async def test_each_of_two_systems_on_one_redis_store_is_fenced_in_turn(
        self, make: MakeStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with (
            ActorSystem("a", audit_interval=None) as a,
            ActorSystem("b", audit_interval=None) as b,
        ):
            one, two = a.spawn(PersistenceActor, make()), b.spawn(PersistenceActor, make())
            told = 0
            for number in range(6):
                for ref in (one, two):
                    try:
                        await ref.ask(Append(an_event(number)))
                    except StoreFenced:
                        told += 1
            assert told == 5  # each time, once the other has written
        assert "has taken over" in caplog.text
        async with make() as store:
            assert [e.seq for e in await store.list_events()] == list(range(1, 8))

    async def test_redis_writers_that_begin_at_once_give_no_position_twice(
        self, make: MakeStore
    ) -> None:
        stores = [make() for _ in range(5)]
        outcomes: list[object] = []

        async def begin(store: RedisStreamsPersistence) -> None:
            try:
                outcomes.append(await store.append(an_event(1)))
            except StoreFenced as error:
                outcomes.append(error)

        async with anyio.create_task_group() as tasks:
            for store in stores:
                tasks.start_soon(begin, store)
        async with make() as store:
            written = [event.seq for event in await store.list_events()]
            assert written == list(range(1, len(written) + 1))
        assert len(written) == sum(not isinstance(o, StoreFenced) for o in outcomes)
        for store in stores:
            await store.aclose()


class TestReading:
    async def test_reads_of_a_redis_store_are_right_when_times_are_out_of_order(
        self, make: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chance = random.Random(7)
        model = ListModel()
        async with make() as store:
            for _ in range(20):
                batch = [
                    an_event(n, timestamp=T0 + chance.choice([0, 1, 50, 0.5, 0.0004]) + n)
                    for n in range(chance.randint(1, 20))
                ]
                model.append(*batch)
                await store.append(*batch)
            monkeypatch.setattr(paging, "MAX_PAGE_RECORDS", 7)
            for since, until, newest in itertools.product(
                [None, T0 + 3, T0 + 51.0002], [None, T0 + 10, T0 + 52, 0.0], [False, True]
            ):
                request = Read("event", since=since, until=until, newest=newest)
                found = await read_to_the_end(store, request)
                assert found == model.read(request, T0), request

    async def test_a_redis_read_until_a_time_finds_an_old_record_among_new_ones(
        self, make: MakeStore
    ) -> None:
        """What comes long after it was recorded makes `until` slow, but not wrong."""
        async with make() as store:
            await store.append(*(an_event(n, timestamp=T0 + n) for n in range(100)))
            await store.append(an_event(0, timestamp=T0 - 1000))
            await store.append(*(an_event(n, timestamp=T0 + n) for n in range(100, 200)))
            found = await read_to_the_end(store, Read("event", until=T0 + 2))
            assert [event.seq for event in found] == [1, 2, 3, 101]

    async def test_large_records_make_short_pages_of_a_redis_store(
        self, make: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with make() as store:
            for number in range(30):
                await store.append(an_event(number, payload={"n": number, "x": "x" * 500_000}))
            first = await store.read("event")
            assert 10 < len(first.records) < 25
            assert first.more
            assert len(await store.list_events()) == 30
            newest = await store.read("event", newest=True)
            assert [r.seq for r in newest.records][-1] == 30
            assert (await store.scan()).is_clean


class TestCompaction:
    async def test_compaction_of_a_redis_store_trims_exactly_or_approximately(
        self, config: RedisStreamsConfig
    ) -> None:
        policy = RetentionPolicy(max_records=120)
        kept = {}
        for trim in ("approximate", "exact"):
            changed = msgspec.structs.replace(
                config, trim=trim, system_id=f"{config.system_id}-{trim}"
            )
            async with RedisStreamsPersistence(changed, retention_policy=policy) as store:
                await store.append(*map(an_event, range(1000)))
                report = await store.compact()
                scan = await store.scan()
                assert scan.is_clean
                # Told as it is, whatever it is.
                assert (report.records_before, report.records_after) == (1000, scan.records_scanned)
                assert report.bytes_after == scan.bytes_scanned
                assert len(await store.list_events()) == 120
                kept[trim] = report.records_after
        assert kept["exact"] == 120
        assert 120 <= kept["approximate"] < 1000

    async def test_compaction_of_a_redis_store_removes_records_by_age(
        self, make: MakeStore
    ) -> None:
        now = T0 + 100
        policy = RetentionPolicy(max_age_seconds=30)
        async with make(retention_policy=policy, clock=lambda: now) as store:
            await store.append(*map(a_record, range(100)))
            report = await store.compact()
            assert report.records_after == 30
            assert {record.timestamp for record in await everything(store)} == {
                T0 + n for n in range(70, 100)
            }

    async def test_compaction_of_a_redis_store_without_a_policy_removes_nothing(
        self, make: MakeStore
    ) -> None:
        async with make() as store:
            await store.append(*map(a_record, range(30)))
            report = await store.compact()
            assert (report.records_before, report.records_after) == (30, 30)

    async def test_compaction_of_a_redis_store_may_remove_every_record(
        self, make: MakeStore
    ) -> None:
        async with make(retention_policy=RetentionPolicy(max_total_bytes=10)) as store:
            await store.append(*map(a_record, range(9)))
            report = await store.compact()
            assert (report.records_after, report.bytes_after) == (0, 0)
            assert (await store.append(a_record(9))).first_seq == 10
            assert (await store.scan()).is_clean


class TestCancelling:
    async def test_an_append_to_redis_that_asyncio_cancels_is_not_stored(
        self, make: MakeStore, anyio_backend: tuple[str, dict[str, Any]]
    ) -> None:
        """Which knows no shields: what is cut off is taken back, or stored."""
        if anyio_backend[0] != "asyncio":
            return  # trio has one way to cancel, and the conformance suite uses it
        async with make() as store:
            await store.append(an_event(0))
            number = 0
            done = 0
            while done < 5:
                number += 1
                task = asyncio.ensure_future(store.append(an_event(number)))
                for _ in range(number % 12):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    stored = [event.payload["n"] for event in await store.list_events()]
                    assert number not in stored
                else:
                    stored = [event.payload["n"] for event in await store.list_events()]
                    assert stored[-1] == number
                    done += 1
                if number > 200:
                    break
            appended = await store.append(an_event(1000))
            events = await store.list_events()
            assert events[-1].seq == appended.last_seq
            assert (await store.scan()).is_clean

    async def test_an_append_cancelled_while_the_redis_server_is_away_is_not_stored(
        self, own_server: RedisServer
    ) -> None:
        config = RedisStreamsConfig(url=own_server.url, retry_for=3600.0)
        async with RedisStreamsPersistence(config) as store:
            await store.append(an_event(0))
            own_server.kill()
            with anyio.move_on_after(0.1) as scope:
                await store.append(an_event(1))
            assert scope.cancelled_caught
            own_server.start()
            assert (await store.append(an_event(2))).first_seq == 2


async def test_a_system_runs_on_a_redis_store(
    make: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = make()
    with caplog.at_level(logging.WARNING):
        async with ActorSystem(
            "bank", persistence=store, startup=PersistenceStartupConfig("fail_on_anomaly")
        ) as system:
            await system.persistence.ask(
                Append(PersistedEvent("bank", "bank/a", "Opened", {"n": 1}, T0))
            )
    assert caplog.text == ""
    async with make() as reader:
        assert [event.event_type for event in await reader.list_events()] == ["Opened"]
        assert len(await reader.list_audits()) == 1  # the one at the end


class TestNames:
    """``a:b`` and ``c`` is another store than ``a`` and ``b:c``; what is there stays readable."""

    @pytest.fixture
    def pair(self, config: RedisStreamsConfig) -> Iterator[list[RedisStreamsConfig]]:
        base = config.system_id
        names = [(f"{base}:b", "c"), (base, "b:c")]
        pair = [
            RedisStreamsConfig(url=config.url, prefix=prefix, system_id=system_id)
            for prefix, system_id in names
        ]
        yield pair
        with redis.Redis.from_url(config.url) as client:
            for key in client.scan_iter(f"{{{base}*"):
                client.delete(key)

    @pytest.mark.parametrize("first", [0, 1])
    async def test_prefix_and_system_id_with_colons_name_distinct_redis_stores(
        self, pair: list[RedisStreamsConfig], first: int
    ) -> None:
        for number in (first, 1 - first):
            async with RedisStreamsPersistence(pair[number]) as store:
                assert await store.list_events() == []
                await store.append(an_event(number))
        for number in (0, 1):
            async with RedisStreamsPersistence(pair[number]) as store:
                assert [event.payload["n"] for event in await store.list_events()] == [number]
                assert (await anext(store.follow())).payload["n"] == number
                assert (await anext(store.consume("group", "one"))).record.payload["n"] == number
                assert (await store.scan()).is_clean
        names = [set(config.keys.all) for config in pair]
        assert not names[0] & names[1]

    @pytest.mark.parametrize("whose", [0, 1])
    @pytest.mark.parametrize("verb", ["list_events", "follow"])
    async def test_a_redis_store_of_an_older_version_belongs_to_the_name_that_writes_first(
        self, pair: list[RedisStreamsConfig], whose: int, verb: str
    ) -> None:
        async with RedisStreamsPersistence(pair[1]) as store:
            await store.append(an_event(7))
        with redis.Redis.from_url(pair[0].url) as client:
            client.hdel(pair[1].keys.meta, "prefix")  # which they did not write
        mine, other = pair[whose], pair[1 - whose]
        async with RedisStreamsPersistence(mine) as store:
            if verb == "follow":
                assert (await anext(store.follow())).payload["n"] == 7
            assert [event.payload["n"] for event in await store.list_events()] == [7]
            assert (await store.append(an_event(8))).first_seq == 2
        async with RedisStreamsPersistence(other) as store:
            assert await store.list_events() == []
            assert (await store.append(an_event(9))).first_seq == 1
        async with RedisStreamsPersistence(mine) as store:
            assert [event.payload["n"] for event in await store.list_events()] == [7, 8]

    async def test_a_redis_store_whose_older_key_was_taken_by_another_name_must_reopen(
        self, pair: list[RedisStreamsConfig]
    ) -> None:
        async with RedisStreamsPersistence(pair[1]) as store:
            await store.append(an_event(7))
        with redis.Redis.from_url(pair[0].url) as client:
            client.hdel(pair[1].keys.meta, "prefix")
        async with RedisStreamsPersistence(pair[0]) as one, RedisStreamsPersistence(pair[1]) as two:
            await one.append(an_event(8))
            with pytest.raises(StoreError, match="open it again"):
                await two.append(an_event(9))
            assert len(await one.list_events()) == 2
