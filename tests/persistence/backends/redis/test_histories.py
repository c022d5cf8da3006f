"""The index by actor: where it is, what it may miss, and what is done about that.

``PAPYRA_INDEX=300`` makes it a long run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec
import pytest
import redis

from papyra.exceptions import RevisionConflict, StoreAccessDenied, StoreWrongType
from papyra.persistence import PersistedDeadLetter, PersistedEvent, Read
from papyra.persistence.backends._redis import actor_index, stream_scan
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.testing._list_model import read_to_the_end
from papyra.testing.conformance._fixtures import T0, a_record, an_event
from papyra.testing.conformance._histories import a_step, history, mixed
from tests.conftest import event_loops
from tests.extent import count
from tests.persistence.backends.redis import older_program
from tests.persistence.backends.redis.conftest import MakeStore
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

Client: TypeAlias = Any

SEEDS = count("PAPYRA_INDEX", 2, 4)


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    with redis.Redis.from_url(server.url) as client:
        yield client


def a_letter(number: int, target: str) -> PersistedDeadLetter:
    return PersistedDeadLetter("s", target, "Ping", {"n": number}, False, T0 + number)


def plain(actor: str, *numbers: int) -> list[PersistedEvent]:
    return [an_event(number, actor_address=f"s/{actor}") for number in numbers]


async def of_actor(store: RedisStreamsPersistence, actor: str, **query: Any) -> list[int | None]:
    """Return the seqs of what concerns an actor."""
    kind = query.pop("kind", "event")
    records = await read_to_the_end(store, Read(kind, actor=f"s/{actor}", **query))
    return [record.seq for record in records]


def members(client: Client, config: RedisStreamsConfig) -> list[str]:
    return [each.decode() for each in client.zrange(config.keys.index, 0, -1)]


class TestFormat:
    async def test_an_event_with_a_revision_is_in_the_index_when_it_is_stored(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(an_event(1), a_step("u", 1), a_step("u", 2))
        assert members(client, config) == [
            "s/u h0000000000000201700000001000" + "1",
            "s/u h0000000000000301700000002000" + "2",
        ]
        assert client.hget(config.keys.meta, "index:entries") == b"2"

    async def test_other_records_are_in_it_once_somebody_looks_for_them(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(*plain("u", 1, 2), *plain("v", 3), a_letter(4, "s/u"))
            assert members(client, config) == []
            assert await of_actor(store, "u") == [1, 2]
            assert [each.partition("0")[0] for each in members(client, config)] == [
                *("s/u e", "s/u e", "s/v e"),
            ]
            assert await of_actor(store, "u", kind="dead_letter") == [4]
            assert len(members(client, config)) == 4
            await store.append(*plain("u", 5))
            assert len(members(client, config)) == 4
            assert await of_actor(store, "u") == [1, 2, 5]
            assert (await store.scan()).is_clean

    async def test_any_address_can_be_found_and_none_makes_members_long(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        addresses = ["", " ", "a b", "a", "a h", "#", "#1", "\0", "\n", "é尺", "x" * 64, "x" * 5000]
        addresses += ["x" * 65, "\x7f", "a" * 63 + "尺" * 2, "\t", "a:b", "~", "h", "e", "d", "0"]
        async with make() as store:
            await store.append(*(a_step("", 1, actor_address=each) for each in addresses))
            await store.append(*(an_event(0, actor_address=each) for each in addresses))
            await store.append(*(a_letter(0, each) for each in addresses))
            for place, address in enumerate(addresses, start=1):
                page = await store.read_history(address)
                assert [event.seq for event in page.events] == [place]
                found = (await store.read("event", actor=address)).records
                assert [event.seq for event in found] == [place, place + len(addresses)]
                letters = (await store.read("dead_letter", actor=address)).records
                assert [letter.seq for letter in letters] == [place + 2 * len(addresses)]
            assert (await store.read_history("\ud800")).events == ()
            assert (await store.scan()).is_clean
        assert max(map(len, members(client, config))) < 3 * 64 + 50

    async def test_dropping_the_keys_drops_the_index(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uv", range(1, 4)))
        client.delete(*config.keys.all)
        assert client.keys(f"{config.keys.tag}*") == []


class TestFlat:
    """What it takes is counted in commands that the server executes, scripts included."""

    async def test_waking_one_actor_costs_the_same_in_a_large_store(
        self, own_server: RedisServer
    ) -> None:
        counts = []
        with redis.Redis.from_url(own_server.url) as client:
            for size in (10_000, 100_000):
                config = RedisStreamsConfig(url=own_server.url, system_id=str(size))
                async with RedisStreamsPersistence(config) as store:
                    await fill(store, size)
                counts.append(await self.wake(client, config, size))
        (few, few_bytes), (many, many_bytes) = counts
        assert many == few
        assert many_bytes < few_bytes * 1.1

    async def wake(
        self, client: Client, config: RedisStreamsConfig, size: int
    ) -> tuple[dict[str, int], int]:
        """Read the history of one of many actors, and go on with it."""
        actor = f"s/{size // 200}"
        async with RedisStreamsPersistence(config) as store:
            await store.read_history("s/nobody")  # it is connected now, and its scripts are known
            await store.append(an_event(0))
            await store.store.last_revisions(["s/nobody"])
            client.config_resetstat()
            page = await store.read_history(actor)
            assert [event.revision for event in page.events] == list(range(1, 21))
            assert await store.store.last_revisions([actor]) == {actor: 20}
            stats = client.info("commandstats")
            sent = client.info("stats")["total_net_output_bytes"]
        return {
            name: each["calls"]
            for name, each in stats.items()
            if name not in ("cmdstat_info", "cmdstat_config", "cmdstat_config|resetstat")
        }, sent

    async def test_reading_what_concerns_one_actor_costs_the_same_in_a_large_store(
        self, own_server: RedisServer
    ) -> None:
        fetched = []
        with redis.Redis.from_url(own_server.url) as client:
            for size in (2_000, 20_000):
                config = RedisStreamsConfig(url=own_server.url, system_id=str(size))
                async with RedisStreamsPersistence(config) as store:
                    await store.append(
                        *(a_letter(n, f"s/{min(n, 20)}") for n in range(size // 2)),
                        *(a_letter(n, "s/5") for n in range(20)),
                    )
                    await store.append(*plain("rare", 1), *map(an_event, range(size // 2)))
                    for kind in ("event", "dead_letter"):
                        await of_actor(store, "rare", kind=kind)
                    client.config_resetstat()
                    assert len(await of_actor(store, "rare")) == 1
                    assert len(await of_actor(store, "5", kind="dead_letter")) == 21
                    fetched.append(client.info("stats")["total_net_output_bytes"])
        assert fetched[1] < fetched[0] * 1.1


async def fill(store: RedisStreamsPersistence, size: int) -> None:
    """Append histories of twenty events, spread over the store, and as many other events."""
    actors = size // 40
    for revision in range(1, 21):
        steps = [
            record
            for number in range(actors)
            for record in (a_step(str(number), revision), an_event(number))
        ]
        for start in range(0, len(steps), 1000):
            await store.append(*steps[start : start + 1000])


class TestOlderPrograms:
    async def test_a_store_without_an_index_gets_one_when_it_is_needed(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uv", range(1, 9)), a_letter(1, "s/u"))
        older_program.make_old(client, config)
        async with make() as store:
            assert await history(store, "u") == list(range(1, 9))
            assert len(members(client, config)) == 16
            with pytest.raises(RevisionConflict):
                await store.append(a_step("v", 8))
            await store.append(a_step("v", 9))
            assert len(await of_actor(store, "u")) == 8
            assert len(await of_actor(store, "u", kind="dead_letter")) == 1
            assert (await store.scan()).is_clean

    async def test_a_writer_makes_it_before_it_goes_on_with_a_history(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uv", range(1, 9)))
        older_program.make_old(client, config)
        async with make() as store:
            with pytest.raises(RevisionConflict) as caught:
                await store.append(a_step("u", 1))
            assert caught.value.expected == 9
            await store.append(a_step("u", 9))
        async with make() as store:
            assert await history(store, "u") == list(range(1, 10))
            assert (await store.scan()).is_clean

    async def test_who_may_not_write_reads_without_it(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uv", range(1, 9)), a_letter(1, "s/u"))
        older_program.make_old(client, config)
        before = client.hgetall(config.keys.meta)
        reading = msgspec.structs.replace(config, read_only=True)
        async with RedisStreamsPersistence(reading) as store:
            for limit in (None, 3):
                assert await history(store, "u", limit=limit) == list(range(1, 9))
                assert await history(store, "u", after=5, limit=limit) == [6, 7, 8]
            assert await history(store, "nobody") == []
            assert len(await of_actor(store, "v")) == 8
            assert len(await of_actor(store, "u", kind="dead_letter")) == 1
            assert (await store.scan()).is_clean
        assert client.hgetall(config.keys.meta) == before
        assert not client.exists(config.keys.index)

    @pytest.mark.parametrize("read_only", [False, True])
    async def test_what_an_older_program_adds_is_noticed(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client, read_only: bool
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uv", range(1, 4)), *plain("u", 1))
            assert len(await of_actor(store, "u")) == 4
        older_program.append(client, config, [*plain("u", 2), a_step("v", 4), *plain("w", 1)])
        reading = msgspec.structs.replace(config, read_only=read_only)
        async with RedisStreamsPersistence(reading) as store:
            assert await history(store, "v") == [1, 2, 3, 4]
            assert await history(store, "v", after=3) == [4]
            for newest in (False, True):
                assert len(await of_actor(store, "u", newest=newest)) == 5
                assert len(await of_actor(store, "u", newest=newest, limit=2)) == 2
        async with make() as store:
            with pytest.raises(RevisionConflict):
                await store.append(a_step("v", 4))
            await store.append(a_step("v", 5), a_step("w", 1))
            assert await history(store, "v") == [1, 2, 3, 4, 5]
            assert await history(store, "w") == [1]
            assert (await store.scan()).is_clean

    async def test_what_an_older_program_takes_back_is_noticed(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(*plain("u", 1, 2))
        for others in (1, 2, 5):
            ids = older_program.append(client, config, plain("v", 1, 2))
            async with make() as store:
                assert len(await of_actor(store, "v")) == 2
            older_program.take_back(client, config, ids)
            ids = older_program.append(client, config, plain("w", *range(others)))
            async with make() as store:
                assert len(await of_actor(store, "w")) == others
                assert await of_actor(store, "v") == []
                assert await of_actor(store, "u") == [1, 2]
            older_program.take_back(client, config, ids)

    async def test_an_index_that_is_made_step_by_step_is_never_believed_too_early(
        self,
        make: MakeStore,
        config: RedisStreamsConfig,
        client: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(actor_index, "LISTED_AT_ONCE", 10)
        monkeypatch.setattr(actor_index, "PAGE_ENTRIES", 4)
        async with make() as store:
            for number in range(45):
                await store.append(*plain("uv"[number % 2], number))
        grown = []
        async with make() as store:
            for newest in (False, True, False, True, False, True):
                page = await store.read("event", actor="s/u", newest=newest)
                assert [event.payload["n"] for event in page.records] == list(range(0, 45, 2))
                grown.append(client.zcard(config.keys.index))
        assert grown == [12, 24, 36, 45, 45, 45]

    async def test_who_is_interrupted_while_making_it_does_not_begin_anew(
        self,
        make: MakeStore,
        config: RedisStreamsConfig,
        client: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(actor_index, "PAGE_ENTRIES", 4)
        async with make() as store:
            await store.append(*(a_step("u", revision) for revision in range(1, 31)))
        older_program.make_old(client, config)
        async with make() as store:
            await store.store.asyncio.run(store.store._index.catch_up, "event", "indexed", 13)
        assert client.zcard(config.keys.index) >= 13
        assert client.hget(config.keys.meta, "event:indexed") == b"16"
        client.config_resetstat()
        async with make() as store:
            assert await history(store, "u") == list(range(1, 31))
            assert client.info("commandstats")["cmdstat_zadd"]["calls"] == 4


Damage: TypeAlias = Callable[[Client, RedisStreamsConfig], object]

DAMAGES: dict[str, Damage] = {
    "gone": lambda client, config: client.delete(config.keys.index),
    "last removed": lambda client, config: client.zremrangebyrank(config.keys.index, -1, -1),
    "first removed": lambda client, config: client.zremrangebyrank(config.keys.index, 0, 0),
    "many removed": lambda client, config: client.zremrangebyrank(config.keys.index, 2, 9),
    "a stranger added": lambda client, config: client.zadd(config.keys.index, {"x": 0}),
    "one that leads nowhere": lambda client, config: client.zadd(
        config.keys.index, {f"s/u h{99:014}{1_700_000_099_000:014}77": 0}
    ),
    "one that leads to another's record": lambda client, config: client.zadd(
        config.keys.index, {f"s/z h{1:014}{1_700_000_001_000:014}5": 0}
    ),
    "another type": lambda client, config: (
        client.delete(config.keys.index),
        client.set(config.keys.index, "x"),
    ),
    "count gone": lambda client, config: client.hdel(config.keys.meta, "index:entries"),
    "count wrong": lambda client, config: client.hset(config.keys.meta, "index:entries", "7"),
    "count no number": lambda client, config: client.hset(config.keys.meta, "index:entries", "é"),
    "mark gone": lambda client, config: client.hdel(config.keys.meta, "event:indexed"),
    "mark no number": lambda client, config: client.hset(config.keys.meta, "event:indexed", "x"),
}
#: Which of them a scan has no reason to complain about: the index goes on from there.
HARMLESS = {"mark gone"}


class TestDamage:
    @pytest.mark.parametrize("name", list(DAMAGES))
    async def test_a_damaged_index_is_not_believed_and_is_mended(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client, name: str
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uvw", range(1, 6)))
            await of_actor(store, "u")
        DAMAGES[name](client, config)
        reading = msgspec.structs.replace(config, read_only=True)
        async with RedisStreamsPersistence(reading) as store:
            await self.check(store)
            report = await store.scan()
            assert report.is_clean == (name in HARMLESS), report
            assert {anomaly.kind for anomaly in report.anomalies} <= {"corrupt"}
            assert (await store.scan()).anomalies == report.anomalies
        async with make() as store:
            recovery = await store.recover()
            assert recovery.scan.is_clean
            assert (recovery.records_kept, recovery.records_removed) == (20, 0)
            await self.check(store)
            with pytest.raises(RevisionConflict):
                await store.append(a_step("u", 5))
            await store.append(a_step("u", 6))
            assert await history(store, "u", after=4) == [5, 6]
            assert (await store.scan()).is_clean

    @pytest.mark.parametrize("name", sorted(DAMAGES.keys() - {"another type"}))
    async def test_a_writer_makes_a_damaged_index_anew(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client, name: str
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uvw", range(1, 6)))
        DAMAGES[name](client, config)
        async with make() as store:
            with pytest.raises(RevisionConflict) as caught:
                await store.append(a_step("w", 5))
            assert caught.value.expected == 6
            await store.append(a_step("w", 6), a_step("x", 1))
            await self.check(store)
            assert await history(store, "w", after=4) == [5, 6]
            assert (await store.scan()).is_clean or name == "mark no number"

    async def check(self, store: RedisStreamsPersistence) -> None:
        for actor in "uv":
            assert await history(store, actor) == [1, 2, 3, 4, 5]
            assert await history(store, actor, after=3) == [4, 5]
            assert len(await of_actor(store, actor)) == 5
        assert await history(store, "z") == []

    async def test_a_key_of_another_type_stores_nothing_with_a_revision(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(a_step("u", 1))
            DAMAGES["another type"](client, config)
            for records in ([a_step("u", 2)], [a_record(1), a_step("v", 1)]):
                with pytest.raises(StoreWrongType):
                    await store.append(*records)
            await store.append(an_event(1))
            assert len(await store.list_events()) == 2
            client.delete(config.keys.index)
            await store.append(a_step("u", 2))
            assert await history(store, "u") == [1, 2]
            assert (await store.scan()).is_clean

    async def test_a_scan_names_what_is_missing_and_what_leads_nowhere(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uv", range(1, 4)))
            client.zrem(config.keys.index, members(client, config)[1])
            client.zadd(config.keys.index, {f"s/u h{99:014}{5:014}77": 0})
            details = [anomaly.detail for anomaly in (await store.scan()).anomalies]
            assert len(details) == 2  # there are as many as there should be
            assert "'s/u', revision 2 is not in it" in details[0]
            assert "'s/u', revision 77 leads to no record" in details[1]
            assert (await store.recover()).scan.is_clean
            assert await history(store, "u") == [1, 2, 3]

    async def test_an_event_that_is_gone_is_named_by_its_actor_and_revision(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            await store.append(*mixed("uv", range(1, 4)))
            client.xdel(config.keys.streams["event"], "1700000002000-4")
            details = [anomaly.detail for anomaly in (await store.scan()).anomalies]
            assert any("'s/u', revision 2 leads to no record" in detail for detail in details)
            (left,) = (await store.recover()).scan.anomalies
            assert (left.kind, left.detail) == ("history", "missing before revision 3 of 's/u': 2")
            assert await history(store, "u") == [1, 3]
            with pytest.raises(RevisionConflict):
                await store.append(a_step("u", 3))

    async def test_a_scan_reads_the_index_in_pages(
        self,
        make: MakeStore,
        config: RedisStreamsConfig,
        client: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(stream_scan, "PAGE_ENTRIES", 7)
        async with make() as store:
            await store.append(*(a_step("u", revision) for revision in range(1, 201)))
            client.zadd(config.keys.index, {"x": 0})
            client.config_resetstat()
            await store.scan()
            calls = {name: each["calls"] for name, each in client.info("commandstats").items()}
        assert calls["cmdstat_zscore"] <= 2 * 201 + 1


@pytest.fixture
def admin(own_server: RedisServer) -> Iterator[Client]:
    with redis.Redis(port=own_server.port) as admin:
        yield admin


class TestRights:
    def a_user(self, admin: Client, own_server: RedisServer, *rights: str) -> RedisStreamsConfig:
        admin.acl_setuser("app", enabled=True, nopass=True, keys=["*"], commands=["+@all", *rights])
        url = f"redis://app:any@127.0.0.1:{own_server.port}/0"
        return RedisStreamsConfig(url=url, system_id="s", retry_for=0)

    async def test_who_may_not_touch_the_index_stores_everything_else(
        self, own_server: RedisServer, admin: Client
    ) -> None:
        full = RedisStreamsConfig(url=own_server.url, system_id="s")
        async with RedisStreamsPersistence(full) as store:
            await store.append(a_step("u", 1), a_step("u", 2))
        config = self.a_user(admin, own_server, "-@sortedset")
        async with RedisStreamsPersistence(config) as store:
            await store.append(*map(a_record, range(6)))
            with pytest.raises(StoreAccessDenied):
                await store.append(a_step("u", 3))
            assert await history(store, "u") == [1, 2]
            assert await of_actor(store, "u") == [1, 2]
            assert (await store.scan()).is_clean
        async with RedisStreamsPersistence(full) as store:
            await store.append(a_step("u", 3))
            assert (await store.scan()).is_clean

    @pytest.mark.parametrize("command", ["zadd", "hset", "xadd", "hget", "zcard"])
    async def test_a_right_that_is_missing_leaves_nothing_half_done(
        self, own_server: RedisServer, admin: Client, command: str
    ) -> None:
        config = self.a_user(admin, own_server)
        async with RedisStreamsPersistence(config) as store:
            await store.append(a_step("u", 1), a_record(1))
            admin.acl_setuser("app", enabled=True, commands=[f"-{command}"])
            for _ in range(2):
                try:
                    await store.append(a_step("u", 2), a_record(1), a_step("v", 1))
                except StoreAccessDenied:
                    continue
                assert command in {"hget", "zcard"}
                break
            admin.acl_setuser("app", enabled=True, commands=["+@all"])
            assert (await store.scan()).is_clean
            last = (await store.store.last_revisions(["s/u"]))["s/u"]
            assert await history(store, "u") == list(range(1, last + 1))
            await store.append(a_step("u", last + 1))
            assert await history(store, "u") == list(range(1, last + 2))

    async def test_who_may_read_only_reads_histories(
        self, own_server: RedisServer, admin: Client
    ) -> None:
        full = RedisStreamsConfig(url=own_server.url, system_id="s")
        async with RedisStreamsPersistence(full) as store:
            await store.append(*mixed("uv", range(1, 4)))
        older_program.append(admin, full, [a_step("u", 4)])
        config = self.a_user(admin, own_server, "-hset", "-zadd", "-unlink")
        async with RedisStreamsPersistence(config) as store:
            assert await history(store, "u") == [1, 2, 3, 4]
            assert len(await of_actor(store, "u")) == 4


class TestMemory:
    async def test_the_index_takes_a_bounded_part_of_the_memory(
        self, make: MakeStore, config: RedisStreamsConfig, client: Client
    ) -> None:
        async with make() as store:
            for start in range(0, 5000, 500):
                await store.append(
                    *(a_step(f"account-{n % 100}", 1 + n // 100) for n in range(start, start + 500))
                )
            assert client.memory_usage(config.keys.index, samples=0) < 5000 * 200
            # What was never looked for takes nothing.
            before = client.memory_usage(config.keys.index, samples=0)
            await store.append(*map(an_event, range(1000)))
            assert client.memory_usage(config.keys.index, samples=0) == before


async def test_histories_outlive_any_order_of_what_may_happen(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    """Of random appends, takeovers, compactions, older programs and damaged indexes."""
    for seed in range(SEEDS):
        chance = random.Random(seed)
        mine = msgspec.structs.replace(config, system_id=f"{config.system_id}-{seed}")
        model: dict[str, list[int]] = {actor: [] for actor in "uvw"}
        store = RedisStreamsPersistence(mine)
        await store.append(an_event(0))
        for _ in range(40):
            match chance.randrange(9):
                case 0 | 1 | 2:
                    records: list[Any] = []
                    for _ in range(chance.randint(1, 6)):
                        actor = chance.choice("uvw")
                        if chance.random() < 0.5:
                            model[actor].append(len(model[actor]) + 1)
                            records.append(a_step(actor, model[actor][-1]))
                        else:
                            records.append(chance.choice([a_record, an_event])(chance.randrange(9)))
                    await store.append(*records)
                case 3:
                    await store.aclose()
                    store = RedisStreamsPersistence(mine)
                case 4:
                    policy = RetentionPolicy(
                        max_records=chance.choice([None, 1, 5]),
                        max_total_bytes=chance.choice([None, 100, 900]),
                    )
                    told = await store.compact(policy, dry_run=True)
                    report = await store.compact(policy)
                    assert (told.records_after, told.bytes_after) == (
                        report.records_after,
                        report.bytes_after,
                    ), seed
                case 5:
                    older_program.append(client, mine, plain("u", 1, 2))
                    await store.aclose()
                case 6:
                    chance.choice(list(DAMAGES.values()))(client, mine)
                    if chance.random() < 0.7:
                        assert (await store.recover()).scan.is_clean, seed
                case 7:
                    await of_actor(store, chance.choice("uvw"))
                case 8:
                    with pytest.raises(RevisionConflict):
                        actor = chance.choice("uvw")
                        if client.type(mine.keys.index) == b"string":
                            client.delete(mine.keys.index)
                        await store.append(a_step(actor, len(model[actor]) + 2))
            if client.type(mine.keys.index) == b"string":
                client.delete(mine.keys.index)
            if store.is_closed:
                store = RedisStreamsPersistence(mine)
            for actor, revisions in model.items():
                assert await history(store, actor) == revisions, seed
        assert (await store.recover()).scan.is_clean
        await store.aclose()
        client.delete(*mine.keys.all)
