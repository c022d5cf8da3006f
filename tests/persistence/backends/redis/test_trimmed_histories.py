"""Histories that are trimmed in Redis: whatever interrupts it, they add up to the same.

``PAPYRA_TRIMMINGS=50`` makes it a long run.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
import redis

from papyra import ActorSystem
from papyra.exceptions import StoreError, StoreFenced, StoreNotAcknowledged, StoreUnreachable
from papyra.persistence import PersistenceScanReport, Read, Scan
from papyra.persistence.backends._redis import scripts, stream_scan, thinning, trimming
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.reports import HistoriesReport, PersistenceRecoveryConfig
from papyra.testing import check_history
from papyra.testing.conformance._fixtures import T0, an_event, everything
from papyra.testing.conformance._histories import a_step, events_of
from papyra.testing.conformance._histories import history as history_of
from papyra.testing.conformance._snapshots import a_history, save
from papyra.testing.conformance._trimming import check_counts, trim
from tests.conftest import event_loops
from tests.eventsourcing.accounts import Deposit
from tests.extent import count, some
from tests.persistence.backends.redis.conftest import MakeStore, until
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.persistence.backends.trimmed_accounts import (
    ACCOUNTS,
    TRIM,
    Saved,
    fill,
    history,
    replayed,
)
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

Client: TypeAlias = Any

#: Of the steps of a trimming.
SCRIPTS = {"thin": scripts.THIN, "write": scripts.REBASE, "remove": scripts.SHORTEN}


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "BASES_AT_ONCE", 2)
    monkeypatch.setattr(trimming, "EVENTS_AT_ONCE", 3)
    for module in (stream_scan, thinning):
        monkeypatch.setattr(module, "PAGE_ENTRIES", 7)


async def is_sound(make: MakeStore) -> None:
    """See that nothing is lost, and that the next compaction comes to the end."""
    assert await replayed(make()) == ACCOUNTS
    async with make() as store:
        assert (await store.scan()).is_clean
        await store.compact(TRIM)
        assert (await history(store, "ann"))[0] == (6, "papyra.base")
        assert (await history(store, "ben"))[0] == (9, "papyra.base")
        assert (await store.scan()).is_clean
        assert (await store.compact(TRIM, dry_run=True)).histories == HistoriesReport(
            True, without_snapshots=1
        )
        await check_history(store, Saved)
    assert await replayed(make()) == ACCOUNTS


def kinds_of(report: PersistenceScanReport) -> list[str]:
    return [anomaly.kind for anomaly in report.anomalies]


async def test_accounts_are_the_same_before_and_after_their_histories_are_trimmed_in_redis(
    make: MakeStore, config: RedisStreamsConfig, server: RedisServer
) -> None:
    await fill(make())
    assert await replayed(make()) == ACCOUNTS
    async with make() as store:
        report = await trim(store, TRIM)
        assert (report.trimmed, report.without_snapshots) == (2, 1)
        assert report.events_removed == 5 + 8
        assert (await history(store, "ann"))[:2] == [(6, "papyra.base"), (7, "Deposited")]
        assert (await history(store, "cat"))[0] == (1, "Deposited")
    await is_sound(make)
    # As others see it.
    keys = config.keys
    ids = server.cli("HKEYS", keys.bases).split("\n")
    assert len(ids) == 2
    for identifier in ids:
        assert '"type":"papyra.base"' in server.cli("HGET", keys.bases, identifier).replace(
            "event_type", "type"
        )
        assert "Deposited" in server.cli("XRANGE", keys.streams["event"], identifier, identifier)
    assert server.cli("HGET", keys.meta, "format") == "3", "older programs keep away"


async def test_what_is_read_of_a_trimmed_history_is_the_same_in_every_way(
    make: MakeStore, config: RedisStreamsConfig
) -> None:
    async with make() as store:
        await a_history(store)
        await store.append(*map(an_event, range(20)))
        await save(store, 5)
        await save(store, 8)
        await trim(store)
        [base, *rest] = await events_of(store, "a")
        assert base.event_type == "papyra.base"
        events = (await store.read("event")).records
        wanted = {event.seq: event for event in events}
        assert wanted[base.seq] == base
        page = await store.read("event", actor="s/a", newest=True)
        assert list(page.records) == [base, *rest]
        seen: dict[int | None, Any] = {}
        async for event in store.follow():
            seen[event.seq] = event
            if len(seen) == len(wanted):
                break
        assert seen == wanted
        seen.clear()
        async for delivery in store.consume("group", "one"):
            seen[delivery.record.seq] = delivery.record
            if len(seen) == len(wanted):
                break
        assert seen == wanted
        claimed = await store.claim("group", "two", min_idle=0)
        assert {each.record.seq: each.record for each in claimed} == wanted
        async with store.reader() as reader:
            assert await events_of(reader, "a") == [base, *rest]
            assert (await reader.read("event")).records == events
        async for delivery in store.consume("group", "two", claim_after=None):
            assert delivery.record == wanted[delivery.record.seq]
            await store.ack("group", delivery)
            if delivery.record.seq == max(seq or 0 for seq in wanted):
                break


async def test_a_reader_without_the_index_counts_what_a_trimming_would_remove(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    async with make() as store:
        await a_history(store)
        for revision in (5, 8):
            await save(store, revision)
        told = await store.compact(TRIM, dry_run=True)
    client.hdel(config.keys.meta, "event:indexed")
    async with make() as store, store.reader() as reader:
        assert await reader.compact(TRIM, dry_run=True) == told
        assert await store.compact(TRIM) == told


async def test_events_that_came_later_than_their_time_are_trimmed_in_redis(
    make: MakeStore,
) -> None:
    """Their ids have the time of those before them, up to which no compaction has looked."""
    async with make(clock=lambda: T0 + 100) as store:
        await store.append(an_event(0, timestamp=T0 + 90))
        await store.append(*(a_step("a", n, timestamp=T0 + n) for n in range(1, 10)))
        await store.append(an_event(1, timestamp=T0 + 90))
        for revision in (5, 8):
            await save(store, revision)
        policy = RetentionPolicy(max_age_seconds=50, trim_histories=True)
        assert (await trim(store, policy)).events_removed == 4
        assert await history_of(store, "a") == [5, 6, 7, 8, 9]
        for limit in range(1, 9):
            # What is counted from the newest on goes by what is stored.
            async with make(retention_policy=RetentionPolicy(max_records=limit)) as limited:
                assert len(await limited.list_events()) <= limit
        await save(store, 9)
        assert (await trim(store, policy)).events_removed == 3
        assert await history_of(store, "a") == [8, 9]


async def test_a_system_goes_on_while_its_histories_are_trimmed_by_others(make: MakeStore) -> None:
    store = make()
    async with ActorSystem("bank", persistence=store) as system:
        ann = system.spawn(Saved, name="ann")
        for _ in range(10):
            await ann.ask(Deposit(1))
        async with make() as beside:
            report = await beside.compact(TRIM)
        assert report.histories is not None
        assert report.histories.trimmed == 1
        assert await ann.ask(Deposit(1)) == 11, "it is the writer still"
        assert (await history(store, "ann"))[0] == (6, "papyra.base")
    assert (await replayed(make()))["ann"] == (11, 11)


async def test_who_trims_beside_a_writer_removes_outdated_snapshots_and_takes_nothing_over(
    make: MakeStore,
) -> None:
    async with make() as store:
        await a_history(store)
        for revision, version in ((2, 1), (6, 2), (8, 2)):
            await save(store, revision, version=version, keep=9)
        async with make() as beside:
            await beside.compact(TRIM)
        kept = await store.store.snapshot_revisions("s/a")
        assert sorted(kept) == [6, 8]
        await store.append(a_step("a", 10))
        assert await history_of(store, "a") == [6, 7, 8, 9, 10]


# Who may not


async def test_a_fenced_writer_trims_no_history(make: MakeStore, client: Client) -> None:
    async with make() as store:
        await a_history(store)
        for revision in (5, 8):
            await save(store, revision)
        async with make() as rival:
            await rival.append(an_event(1))
            with pytest.raises(StoreFenced):
                await store.compact(TRIM)
            assert await history_of(rival, "a") == list(range(1, 10))
            assert client.hlen(store.config.keys.bases) == 0
            assert (await rival.scan()).is_clean


@pytest.mark.parametrize("script", [scripts.REBASE, scripts.SHORTEN], ids=["write", "remove"])
async def test_a_writer_that_is_fenced_amid_a_trimming_goes_no_further(
    make: MakeStore, config: RedisStreamsConfig, server: RedisServer, script: scripts.Script
) -> None:
    await fill(make())
    with Proxy(server.port) as proxy:
        mine = msgspec.structs.replace(config, url=proxy.url)
        async with RedisStreamsPersistence(mine) as store, make() as rival:
            await store.append(an_event(1))
            proxy.marker = script.sha.encode()
            proxy.cuts.append(Cut("late"))
            taken = anyio.Event()

            async def take_over() -> None:
                await until(lambda: proxy.cuts_made)
                await rival.append(an_event(2))
                taken.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take_over)
                with contextlib.suppress(StoreFenced):
                    await store.compact(TRIM)
                await taken.wait()
            assert b"fenced" in proxy.release(), "what was late changes nothing"
            assert (await rival.scan()).is_clean
    await is_sound(make)


async def test_no_event_is_removed_before_replicas_have_its_base(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    await fill(make())
    async with make() as store:
        await store.compact(RetentionPolicy(max_records=1))
    length = client.xlen(config.keys.streams["event"])
    lonely = msgspec.structs.replace(config, acknowledge="replicas:1", acknowledge_timeout=0.01)
    async with RedisStreamsPersistence(lonely) as store:
        with pytest.raises(StoreNotAcknowledged):
            await store.compact(TRIM)
    assert client.xlen(config.keys.streams["event"]) == length
    await is_sound(make)


async def test_no_event_is_removed_if_a_base_is_not_there_when_it_is_read_back(
    make: MakeStore, config: RedisStreamsConfig, client: Client, server: RedisServer
) -> None:
    await fill(make())
    async with make() as store:
        await store.compact(RetentionPolicy(max_records=1))
    length = client.xlen(config.keys.streams["event"])
    with Proxy(server.port) as proxy:
        mine = msgspec.structs.replace(config, url=proxy.url)
        proxy.marker = scripts.REBASE.sha.encode()

        def damage(request: bytes) -> None:
            for identifier in client.hkeys(config.keys.bases) if proxy.marker in request else ():
                client.hset(config.keys.bases, identifier, b"other")

        proxy.meanwhile = damage
        async with RedisStreamsPersistence(mine) as store:
            with pytest.raises(StoreError, match="is not there; no event was removed"):
                await store.compact(TRIM)
    assert client.xlen(config.keys.streams["event"]) == length
    async with make() as store:
        await store.recover()
    await is_sound(make)


# Interruptions


@pytest.mark.parametrize(
    ("place", "step"), some(itertools.product(["before", "after"], SCRIPTS), every=2)
)
async def test_a_trimming_that_fails_at_any_call_leaves_every_account_in_redis_as_it_was(
    config: RedisStreamsConfig, server: RedisServer, step: str, place: Any
) -> None:
    passed, failed = 0, True
    while failed:
        mine = msgspec.structs.replace(config, system_id=f"{config.system_id}-{passed}")

        def make(**options: Any) -> RedisStreamsPersistence:
            return RedisStreamsPersistence(mine, **options)  # noqa: B023

        await fill(make())
        with Proxy(server.port) as proxy:
            hasty = msgspec.structs.replace(mine, url=proxy.url, retry_for=0)
            left = passed

            def once_enough(request: bytes) -> None:
                nonlocal left
                if proxy.marker in request and left:
                    left -= 1
                    if not left:
                        proxy.cuts.append(Cut(place))

            proxy.marker = SCRIPTS[step].sha.encode()
            proxy.meanwhile = once_enough
            if not passed:
                proxy.cuts.append(Cut(place))
            async with RedisStreamsPersistence(hasty) as store:
                try:
                    await store.compact(TRIM)
                except StoreUnreachable:
                    failed = True
                else:
                    failed = False
        await is_sound(make)
        passed += 1
    assert passed > 1


@pytest.mark.timeout(300)
async def test_a_server_that_is_killed_amid_a_trimming_keeps_every_account(
    own_server: RedisServer,
) -> None:
    own_server.kill()
    own_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.start()
    chance, trimmed = random.Random(1), 0
    for number in range(count("PAPYRA_TRIMMINGS", 3, 10)):
        config = RedisStreamsConfig(
            url=own_server.url, system_id=f"{number}", retry_for=0, acknowledge="aof"
        )

        def make(**options: Any) -> RedisStreamsPersistence:
            return RedisStreamsPersistence(config, **options)  # noqa: B023

        await fill(make())
        async with make() as store:
            calls = chance.randrange(12)
            original = store.store.client.run

            async def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls -= 1
                if not calls:
                    own_server.kill()
                    own_server.start()
                return await original(*args, **kwargs)  # noqa: B023

            store.store.client.run = run  # type: ignore[method-assign]
            try:
                await store.compact(TRIM)
                trimmed += 1
            except StoreError:
                own_server.kill()
                own_server.start()
        await is_sound(make)
    assert trimmed < 10


# Damage


async def trimmed(make: MakeStore) -> None:
    await fill(make())
    async with make() as store:
        await trim(store, TRIM)


@pytest.mark.parametrize("mode", ["repair", "quarantine"])
async def test_a_damaged_base_is_found_and_made_anew_by_the_next_compaction(
    make: MakeStore, config: RedisStreamsConfig, client: Client, mode: Any
) -> None:
    await trimmed(make)
    [ann, ben] = sorted(client.hgetall(config.keys.bases).items())
    flipped = ann[1].replace(b'"papyra.base"', b'"papyra.bane"')
    for damage in (b"", b"?", ann[1][:-1], flipped, ben[1], b"0" * 8 + ann[1][8:]):
        client.hset(config.keys.bases, ann[0], damage)
        async with make() as store:
            found = await store.scan()
            assert {"history"} < set(kinds_of(found)), damage
            damaged = found.anomalies[0]
            assert (damaged.location, damaged.entry) == (config.keys.bases, ann[0].decode())
            report = await store.recover(PersistenceRecoveryConfig(mode=mode))
            assert report.records_removed == 1
            assert (config.keys.quarantine("event") in report.quarantined) == (mode != "repair")
            # The event is shown again, and what was before it is missing.
            assert kinds_of(report.scan) == ["history"]
            assert (await history(store, "ann"))[0] == (6, "Deposited")
            await store.append(an_event(3))
            report_of_next = await store.compact(TRIM)
            assert report_of_next.histories == HistoriesReport(True, 1, 0, without_snapshots=1)
            assert (await store.scan()).is_clean
        assert await replayed(make()) == ACCOUNTS
        assert client.hget(config.keys.bases, ann[0]) == ann[1]
    if mode == "quarantine":
        kept = client.xrange(config.keys.quarantine("event"))
        assert flipped in [fields[b"base"] for _, fields in kept]


async def test_a_damaged_base_before_which_all_is_still_there_costs_nothing(
    make: MakeStore, config: RedisStreamsConfig, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(make())

    async def interrupted(*_: object) -> None:
        raise StoreError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(trimming.Trimming, "_shorten", interrupted)
        async with make() as store:
            with pytest.raises(StoreError, match="interrupted"):
                await store.compact(TRIM)
            assert (await history(store, "ann"))[5:7] == [(6, "papyra.base"), (7, "Deposited")]
            assert (await store.scan()).is_clean
    for identifier in client.hkeys(config.keys.bases):
        client.hset(config.keys.bases, identifier, b"12345678 {}")
    async with make() as store:
        found = await store.execute(Scan(records_only=True))
        assert kinds_of(found) == ["checksum", "checksum"]
        assert (await store.recover()).scan.is_clean
        assert [revision for revision, _ in await history(store, "ann")] == list(range(1, 12))
    await is_sound(make)


async def test_a_base_whose_event_somebody_has_removed_is_reported_and_removed(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    await trimmed(make)
    [identifier, _] = sorted(client.hkeys(config.keys.bases))
    client.xdel(config.keys.streams["event"], identifier)
    client.hset(config.keys.bases, b"rubbish", b"rubbish")
    async with make() as store:
        found = await store.scan()
        assert kinds_of(found).count("corrupt") >= 2
        assert "gap" in kinds_of(found)
        report = await store.recover()
        assert kinds_of(report.scan) == ["history"], "what is gone is gone"
        assert identifier not in client.hkeys(config.keys.bases)
        await check_counts_of(store)


async def check_counts_of(store: RedisStreamsPersistence) -> None:
    summary = await store.summarize()
    found = await store.scan()
    assert (found.records_scanned, found.bytes_scanned) == (
        summary.total_records,
        summary.total_bytes,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event:kept", None),
        ("event:kept", b"3 100 1-1"),
        ("event:kept", b"x"),
        ("event:trimmed_n", b"0"),
        ("event:n", b"7"),
        ("format", None),
        ("index:entries", b"1"),
    ],
)
async def test_bases_survive_what_others_do_to_the_numbers_of_the_store(
    make: MakeStore,
    config: RedisStreamsConfig,
    client: Client,
    field: str,
    value: bytes | None,
) -> None:
    await trimmed(make)
    if value is None:
        client.hdel(config.keys.meta, field)
    else:
        client.hset(config.keys.meta, field, value)
    async with make() as store:
        assert not (await store.scan()).is_clean
        report = await store.recover()
        assert report.scan.is_clean, report.scan.anomalies
        await check_counts_of(store)
        assert (await history(store, "ann"))[0] == (6, "papyra.base")
    await is_sound(make)


async def test_bases_are_part_of_a_stream_whose_entries_are_counted_anew(
    make: MakeStore, config: RedisStreamsConfig, client: Client
) -> None:
    await trimmed(make)
    key = config.keys.streams["event"]
    entries = client.xrange(key)
    client.delete(key)
    ids = client.hkeys(config.keys.bases)
    for identifier, fields in entries:
        # Nobody needs what a base is read in place of.
        changed = {b"what": b"ever"} if identifier == ids[0] else fields | {b"n": b"99"}
        client.xadd(key, changed, identifier)
    async with make() as store:
        before = await everything(store)
        report = await store.recover()
        assert report.scan.is_clean, report.scan.anomalies
        assert report.records_removed == 0
        assert await everything(store) == before
        assert client.hlen(config.keys.bases) == 0, "they were written into the stream"
        await check_counts_of(store)
    assert await replayed(make()) == ACCOUNTS


# At random


async def test_redis_histories_are_those_of_a_list_whatever_is_trimmed_when(
    config: RedisStreamsConfig,
) -> None:
    for seed in range(count("PAPYRA_TRIMMINGS", 1, 10)):
        chance = random.Random(seed)
        mine = msgspec.structs.replace(config, system_id=f"{config.system_id}-{seed}")
        last = dict.fromkeys("abc", 0)
        saved: dict[str, list[int]] = {actor: [] for actor in last}
        first = dict.fromkeys(last, 1)
        store, beside = RedisStreamsPersistence(mine), RedisStreamsPersistence(mine).reader()
        for _ in range(60):
            actor = chance.choice(list(last))
            match chance.randrange(6):
                case 0 | 1 | 2:
                    added = range(last[actor] + 1, last[actor] + chance.randint(2, 6))
                    await store.append(*(a_step(actor, revision) for revision in added))
                    last[actor] = added[-1]
                case 3 if last[actor]:
                    await save(store, last[actor], f"s/{actor}")
                    saved[actor] = sorted({*saved[actor], last[actor]})[-2:]
                case 4:
                    trims = chance.random() < 0.7
                    policy = RetentionPolicy(max_records=1, trim_histories=trims)
                    await store.append(an_event(1), an_event(2))  # nothing of a history is shown
                    told = await beside.compact(policy, dry_run=True)
                    report = await store.compact(policy)
                    assert report == told, seed
                    await check_counts(store, report)
                    for each, revisions in saved.items():
                        if trims and len(revisions) == 2:
                            first[each] = revisions[0]
                case 5:
                    await store.aclose()
                    store = RedisStreamsPersistence(mine)
            for each, revision in last.items():
                expected = list(range(first[each], revision + 1))
                assert await history_of(store, each) == expected, seed
                assert await history_of(beside, each) == expected, seed
            assert (await store.scan()).is_clean, seed
        await beside.aclose()
        await store.aclose()


async def test_a_history_that_is_trimmed_while_it_is_read_has_no_hole(
    make: MakeStore, config: RedisStreamsConfig, server: RedisServer
) -> None:
    """Between any two answers to who reads, others trim it."""
    with Proxy(server.port) as proxy:
        mine = msgspec.structs.replace(config, url=proxy.url, read_only=True)
        async with make() as store, RedisStreamsPersistence(mine) as reader:
            revisions = iter(range(1, 200))
            await store.append(*(a_step("a", next(revisions)) for _ in range(9)), an_event(1))
            for revision in (2, 4):
                await save(store, revision)

            async def step() -> None:
                newest = [next(revisions) for _ in range(2)]
                await store.append(*(a_step("a", revision) for revision in newest), an_event(1))
                await save(store, newest[-1])
                await store.compact(TRIM)

            for kind in ("history", "events", "scan"):
                for _ in range(4):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(step)
                        if kind == "history":
                            found = list((await reader.read_history("s/a")).events)
                        elif kind == "events":
                            page = await reader.execute(Read("event"))
                            found = [each for each in page.records if each.revision]
                        else:
                            assert (await reader.scan()).is_clean
                            continue
                    bases = [each for each in found if each.event_type == "papyra.base"]
                    shown = [each.revision for each in found]
                    after = bases[-1].revision if bases else 1
                    rest = [revision for revision in shown if (revision or 0) >= (after or 0)]
                    assert rest == list(range(after or 0, (shown[-1] or 0) + 1)), shown
