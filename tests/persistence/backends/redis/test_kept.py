"""Compaction of a store with histories: what has a revision stays, whatever goes around it.

``PAPYRA_KEPT=300`` makes it a long run.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import msgspec
import pytest
import redis

from papyra.persistence import PersistenceScanReport, Read, Record
from papyra.persistence.backends._redis import kept, scripts, stream_scan, thinning
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import Limits, RetentionPolicy
from papyra.persistence.records import KINDS, kind_of
from papyra.testing._list_model import ListModel, read_to_the_end
from papyra.testing.conformance._fixtures import T0, a_record, an_event, everything
from papyra.testing.conformance._histories import a_step, history, mixed
from tests.conftest import event_loops
from tests.extent import count
from tests.persistence.backends.redis import older_program
from tests.persistence.backends.redis.conftest import MakeStore
from tests.persistence.backends.redis.proxy import Proxy
from tests.persistence.backends.redis.test_meanwhile import Rival
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

Client: TypeAlias = Any

SEEDS = count("PAPYRA_KEPT", 2, 4)


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kept, stream_scan, thinning):
        monkeypatch.setattr(module, "PAGE_ENTRIES", 7)


class ThinnedList(ListModel):
    """A list that is compacted as a store with histories is."""

    def __init__(self) -> None:
        super().__init__()
        self.last_seq = 0

    def append(self, *records: Record) -> None:
        """Store `records` at the next positions."""
        for record in records:
            self.last_seq += 1
            numbered = msgspec.structs.replace(record, seq=self.last_seq)
            self.stored.append((numbered, len(msgspec.json.encode(record))))

    def under(self, policy: RetentionPolicy) -> ListModel:
        """Return the same, under another policy."""
        model = ListModel(policy)
        model.stored = self.stored
        return model

    def hidden_steps(self, policy: RetentionPolicy, now: float) -> int:
        """Return how many records with a revision the policy hides."""
        steps = [record for record, _ in self.stored if record.revision is not None]
        visible = self.under(policy).visible("event", now)
        return len(steps) - sum(record.revision is not None for record in visible)

    def compact(self, policy: RetentionPolicy, now: float) -> None:
        """Remove what the policy hides and has no revision."""
        model = self.under(policy)
        visible = {record.seq for kind in KINDS for record in model.read(Read(kind), now)}
        self.stored = [
            (record, size)
            for record, size in self.stored
            if record.seq in visible or record.revision is not None
        ]


def policies(chance: random.Random) -> RetentionPolicy:
    return RetentionPolicy(
        max_records=chance.choice([None, 1, 3, 10, 30]),
        max_total_bytes=chance.choice([None, None, 50, 900, 4000]),
        max_age_seconds=chance.choice([None, None, None, 10.0, 40.0]),
        events=chance.choice([None, None, Limits(), Limits(max_records=5)]),
        dead_letters=chance.choice([None, None, None, Limits(max_records=2)]),
    )


async def shown(store: RedisStreamsPersistence, kind: Any = "event") -> list[int]:
    return [record.seq or 0 for record in await read_to_the_end(store, Read(kind))]


async def test_any_policy_shows_what_it_would_show_of_a_list(
    config: RedisStreamsConfig, client: Client
) -> None:
    """After compactions by others, which have left holes, as dry runs have told."""
    for seed in range(SEEDS):
        chance = random.Random(seed)
        mine = msgspec.structs.replace(config, system_id=f"{config.system_id}-{seed}")
        model, revisions, time = ThinnedList(), dict.fromkeys("uvw", 0), 0
        for _ in range(6):
            now = T0 + time
            async with RedisStreamsPersistence(mine, clock=partial(float, now)) as store:
                records: list[Record] = []
                for _ in range(chance.randint(1, 25)):
                    time += chance.choice([0, 1])
                    actor = chance.choice("uvw")
                    if chance.random() < 0.5:
                        revisions[actor] += 1
                        records.append(a_step(actor, revisions[actor], timestamp=T0 + time))
                    else:
                        made = chance.choice([a_record, an_event])(chance.randrange(9))
                        records.append(msgspec.structs.replace(made, timestamp=T0 + time))
                await store.append(*records)
                model.append(*records)
                if chance.random() < 0.5:
                    await read_to_the_end(store, Read("event", actor="s/a"))
                policy = policies(chance)
                told = await store.compact(policy, dry_run=True)
                assert told.records_before == len(model.stored), seed
                report = await store.compact(policy)
                assert told == report, seed
                assert report.kept_for_histories == model.hidden_steps(policy, now), seed
                if policy != RetentionPolicy():
                    model.compact(policy, now)
                assert report.records_after == len(model.stored), (seed, policy)
                assert report.bytes_after == sum(size for _, size in model.stored)
                scan = await store.scan()
                assert scan.is_clean, (seed, scan)
                assert scan.records_scanned == len(model.stored)
                for actor, last in revisions.items():
                    assert await history(store, actor) == list(range(1, last + 1))
                    after = chance.randint(0, last)
                    assert await history(store, actor, after=after) == list(
                        range(after + 1, last + 1)
                    )
            for _ in range(4):
                policy = policies(chance)
                looking = model.under(policy)
                async with RedisStreamsPersistence(
                    mine, retention_policy=policy, clock=partial(float, now)
                ) as store:
                    for kind, whose in itertools.product(KINDS, (None, "s/u", "s/a")):
                        if kind == "audit" and whose:
                            continue
                        query: dict[str, Any] = {
                            "newest": chance.random() < 0.5,
                            "after": chance.choice([0, 0, 5, 20]),
                            "before": chance.choice([None, None, 40]),
                            "since": chance.choice([None, None, T0 + 20]),
                            "until": chance.choice([None, None, T0 + 30]),
                            "actor": whose,
                        }
                        request = Read(kind, **query)
                        found = await read_to_the_end(store, request)
                        assert found == looking.read(request, now), (seed, policy, request)
        client.delete(*mine.keys.all)


async def test_what_is_noted_does_not_grow_with_the_number_of_holes(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    async with make() as store:
        sizes = []
        for begin in (1, 11, 211):
            await store.append(*mixed("uv", range(begin, begin + (10 if begin < 200 else 200))))
            if begin == 11:
                await store.append(*mixed("uv", range(21, 211)))
            await store.compact(RetentionPolicy(max_records=1))
            sizes.append(client.memory_usage(config.keys.meta, samples=0))
        assert max(sizes) < min(sizes) + 64
        # Which older programs do not know.
        assert client.hget(config.keys.meta, "format") == b"2"
        assert await history(store, "u") == list(range(1, 411))
    async with make() as store:
        await store.append(a_step("u", 411))
        assert client.hget(config.keys.meta, "format") == b"2"


async def test_a_compaction_reads_what_it_has_kept_no_second_time(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    async with make() as store:
        for size in (300, 30):
            last = await store.store.last_revisions(["s/u"])
            await store.append(*mixed("u", range(last["s/u"] + 1, last["s/u"] + 1 + size)))
            client.config_resetstat()
            await store.compact(RetentionPolicy(max_records=1))
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert calls < 40


async def test_a_limit_in_bytes_may_end_between_what_is_kept_and_what_follows(
    make: MakeStore,
) -> None:
    async with make() as store:
        await store.append(*(a_step("u", r, payload="x" * 200) for r in range(1, 11)))
        await store.append(*map(an_event, range(5)))
        await store.compact(RetentionPolicy(max_records=3))
        left = (await store.summarize()).record_bytes["event"]
        last = [len(msgspec.json.encode(an_event(number))) for number in range(2, 5)]
        for size in (sum(last), sum(last) + 100):
            policy = RetentionPolicy(max_total_bytes=size)
            told = await store.compact(policy, dry_run=True)
            assert await store.compact(policy) == told
            assert (told.records_after, told.bytes_after) == (13, left)
            assert told.kept_for_histories == 10


async def test_followers_and_groups_see_what_is_kept(make: MakeStore) -> None:
    async with make() as store:
        await store.append(*mixed("uv", range(1, 20)))
        await store.compact(RetentionPolicy(max_records=2))
        expected = await shown(store)
        assert len(expected) > 30
        follower = store.follow()
        assert [(await anext(follower)).seq for _ in expected] == expected
        consumer = store.consume("group", "one")
        assert [(await anext(consumer)).record.seq for _ in expected] == expected
        follower = store.follow(after=5)
        assert (await anext(follower)).seq == min(seq for seq in expected if seq > 5)


async def test_a_summary_counts_what_is_kept(make: MakeStore) -> None:
    async with make() as store:
        await store.append(*mixed("uv", range(1, 20)))
        report = await store.compact(RetentionPolicy(max_records=2))
        summary = await store.summarize()
        stored = await everything(store)
        for kind in KINDS:
            assert summary.records[kind] == sum(kind_of(record) == kind for record in stored)
        assert sum(summary.record_bytes.values()) == report.bytes_after


DAMAGES: dict[str, Callable[[Client, RedisStreamsConfig], object]] = {
    "a kept one is gone": lambda client, config: client.xdel(
        config.keys.streams["event"], "1700000002000-4"
    ),
    "the first is gone": lambda client, config: client.xdel(
        config.keys.streams["event"], "1700000001000-1"
    ),
    "the note is gone": lambda client, config: client.hdel(config.keys.meta, "event:kept"),
    "the note is none": lambda client, config: client.hset(config.keys.meta, "event:kept", "x"),
    "the note is another": lambda client, config: client.hset(
        config.keys.meta, "event:kept", "3 9 1700000002000-4"
    ),
    "what is known is gone": lambda client, config: client.delete(config.keys.meta),
    "trimmed_n is gone": lambda client, config: client.hdel(config.keys.meta, "event:trimmed_n"),
    "trimmed_n is none": lambda client, config: client.hset(
        config.keys.meta, "event:trimmed_n", "x"
    ),
    "trimmed_n is less": lambda client, config: client.hset(
        config.keys.meta, "event:trimmed_n", "5"
    ),
    "a checksum is another": lambda client, config: rewrite(client, config, 4, crc=b"00000000"),
    "n of a kept one is another": lambda client, config: rewrite(client, config, 4, n=b"1"),
    "total of a kept one is none": lambda client, config: rewrite(client, config, 4, total=b"x"),
    "the index is gone": lambda client, config: client.delete(config.keys.index),
}


def but_for_holes(report: PersistenceScanReport) -> int:
    """Return in how many places events are missing from histories, where nothing else is wrong."""
    assert {anomaly.kind for anomaly in report.anomalies} <= {"history"}
    return len(report.anomalies)


def rewrite(client: Client, config: RedisStreamsConfig, seq: int, **changes: bytes) -> None:
    """Write the stream of events anew, with other fields in one of the entries."""
    key = config.keys.streams["event"]
    entries = client.xrange(key)
    client.delete(key)
    for identifier, fields in entries:
        if identifier.endswith(b"-%d" % seq):
            fields |= {name.encode(): value for name, value in changes.items()}
        client.xadd(key, fields, identifier)


@pytest.mark.parametrize("name", list(DAMAGES))
async def test_damage_to_what_is_kept_is_found_and_mended(
    make: MakeStore, config: RedisStreamsConfig, client: Client, name: str
) -> None:
    async with make() as store:
        await store.append(*mixed("uv", range(1, 20)), an_event(20))
        await store.compact(RetentionPolicy(max_records=3))
        before = await shown(store)
    DAMAGES[name](client, config)
    async with make() as store:
        report = await store.scan()
        assert not report.is_clean
        but_for_holes((await store.recover()).scan)
        after = await shown(store)
        lost = set(before) - set(after)
        assert set(after) <= set(before)
        assert lost <= {1, 4}, lost
        for actor in "uv":
            revisions = await history(store, actor)
            assert len(revisions) >= 18
            last = (await store.store.last_revisions([f"s/{actor}"]))[f"s/{actor}"]
            assert last == 19
            await store.append(a_step(actor, 20), an_event(1))
        await store.compact(RetentionPolicy(max_records=1))
        assert but_for_holes(await store.scan()) == len(lost)
        assert (await history(store, "u"))[-2:] == [19, 20]


async def test_events_that_come_while_everything_is_compacted_are_kept(
    config: RedisStreamsConfig, server: RedisServer
) -> None:
    with Proxy(server.port) as proxy:
        rival = Rival(config, proxy)
        await rival.append(*mixed("uv", range(1, 30)))
        changed = msgspec.structs.replace(config, url=proxy.url, timeout=20.0)
        async with RedisStreamsPersistence(changed) as store:
            await store.scan()
            rival.append_each_time(scripts.THIN.sha.encode())
            report = await store.compact(RetentionPolicy(max_total_bytes=10))
            proxy.meanwhile = None
            assert rival.left < 5
            assert report.records_after >= 58
            assert await history(store, "u") == list(range(1, 30))
            assert await history(store, "v") == list(range(1, 30))
            assert (await store.scan()).is_clean


async def test_what_was_taken_back_meanwhile_is_looked_for_once_more(
    make: MakeStore, config: RedisStreamsConfig, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make() as store:
        await store.append(*mixed("uv", range(1, 5)))
        ids = older_program.append(client, config, [an_event(1), an_event(2)])
        page: Any = thinning.Thinning._page
        done: list[bool] = []

        async def page_and_then(self: Any, *args: Any, **options: Any) -> Any:
            found = await page(self, *args, **options)
            if found and not done and found.last.id.decode() == ids[-1]:
                done.append(True)
                older_program.take_back(client, config, ids)
            return found

        monkeypatch.setattr(thinning.Thinning, "_page", page_and_then)
        async with make() as other:
            await other.compact(RetentionPolicy(max_total_bytes=1))
            assert done
            assert (await other.scan()).is_clean
            assert await history(other, "u") == [1, 2, 3, 4]
