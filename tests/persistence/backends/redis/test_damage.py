"""Entries that somebody has put in, or taken out, by hand: with ``redis-cli``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias
from zlib import crc32

import msgspec
import pytest

from papyra.persistence import PersistenceRecoveryConfig, PersistenceStartupConfig
from papyra.persistence.backends.redis import RedisStreamsConfig
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.startup import check_store
from papyra.testing.conformance._fixtures import T0, a_record, an_event, everything
from tests.conftest import event_loops
from tests.persistence.backends.redis.conftest import MakeStore
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

#: Takes ``redis-cli``, the key of the events and the key of what is known; returns nothing.
Damage: TypeAlias = Callable[[Callable[..., str], str, str], object]


def crc(record: str, seq: int) -> str:
    return f"{crc32(record.encode(), seq):08x}"


def add(cli: Callable[..., str], key: str, seq: int, record: str, **changes: str) -> None:
    """Add what could be an entry of Papyra's behind the last one."""
    fields = {"record": record, "n": "11", "total": "99999", "crc": crc(record, seq)} | changes
    words = [word for pair in fields.items() for word in pair]
    cli("XADD", key, f"{int(T0) * 1000 + 90_000}-{seq}", *words)


def remove(*positions: int) -> Damage:
    def damage(cli: Callable[..., str], key: str, meta: str) -> None:
        ids = [line for line in cli("XRANGE", key, "-", "+").splitlines() if _is_id(line)]
        cli("XDEL", key, *(ids[position] for position in positions))

    return damage


def _is_id(line: str) -> bool:
    ms, _, seq = line.partition("-")
    return ms.isdigit() and seq.isdigit()


def a_copy_of_the_last(cli: Callable[..., str], key: str, meta: str) -> None:
    lines = cli("XREVRANGE", key, "+", "-", "COUNT", "1").splitlines()
    ms, _, seq = lines[0].partition("-")
    cli("XADD", key, f"{int(ms) + 1}-{seq}", *lines[1:])


def an_event_of_a_newer_kind(cli: Callable[..., str], key: str, meta: str) -> None:
    record = '{"kind":"snapshot","state":{}}'
    total = int(cli("HGET", meta, "event:total")) + len(record)
    add(cli, key, 11, record, total=str(total))
    cli("HSET", meta, "last", "11", "event:n", "11", "event:total", str(total))


AUDIT = '{"kind":"audit","system_id":"s","payload":{},"timestamp":1.0}'

#: What is done, what a scan calls it, and which of the ten records can be read still.
DAMAGES: dict[str, tuple[Damage, list[str], list[int]]] = {
    "foreign": (
        lambda cli, key, meta: cli("XADD", key, "*", "temperature", "21"),
        ["wrong_fields"],
        [*range(1, 11)],
    ),
    "more fields": (
        lambda cli, key, meta: add(cli, key, 11, "{}", more="fields"),
        ["wrong_fields"],
        [*range(1, 11)],
    ),
    "no number": (
        lambda cli, key, meta: add(cli, key, 11, "{}", n="eleven"),
        ["wrong_fields"],
        [*range(1, 11)],
    ),
    "checksum": (
        lambda cli, key, meta: add(cli, key, 11, "{}", crc="00000000"),
        ["checksum"],
        [*range(1, 11)],
    ),
    "not JSON": (
        lambda cli, key, meta: add(cli, key, 11, "so what"),
        ["corrupt"],
        [*range(1, 11)],
    ),
    "another kind": (
        lambda cli, key, meta: add(cli, key, 11, AUDIT),
        ["corrupt"],
        [*range(1, 11)],
    ),
    "twice": (a_copy_of_the_last, ["duplicate"], [*range(1, 11)]),
    "first": (remove(0), ["gap"], [*range(2, 11)]),
    "middle": (remove(3, 4), ["gap"], [1, 2, 3, *range(6, 11)]),
    "two places": (remove(3, 6), ["gap", "gap"], [1, 2, 3, 5, 6, 8, 9, 10]),
    "last": (remove(-1), ["gap"], [*range(1, 10)]),
    "all": (remove(*range(10)), ["gap"], []),
    "stream": (lambda cli, key, meta: cli("DEL", key), ["gap"], []),
    "meta": (lambda cli, key, meta: cli("DEL", meta), ["corrupt"], [*range(1, 11)]),
    "count": (
        lambda cli, key, meta: cli("HSET", meta, "event:n", "3"),
        ["corrupt"],
        [*range(1, 11)],
    ),
}


@pytest.mark.parametrize("mode", ["repair", "quarantine"])
@pytest.mark.parametrize("name", list(DAMAGES))
async def test_a_scan_finds_damaged_redis_entries_and_a_recovery_repairs_them(
    server: RedisServer, config: RedisStreamsConfig, make: MakeStore, name: str, mode: Any
) -> None:
    damage, kinds, readable = DAMAGES[name]
    keys = config.keys
    async with make() as store:
        await store.append(*map(an_event, range(10)))
    before = server.cli("XRANGE", keys.streams["event"], "-", "+")
    damage(server.cli, keys.streams["event"], keys.meta)
    after = server.cli("XRANGE", keys.streams["event"], "-", "+")

    async with make() as store:
        for _ in range(2):  # changes nothing
            report = await store.scan()
            assert [anomaly.kind for anomaly in report.anomalies] == kinds
            assert report.records_scanned == len(readable)
        assert server.cli("XRANGE", keys.streams["event"], "-", "+") == after
        assert [event.seq for event in await store.list_events()] == readable

        recovery = await store.recover(PersistenceRecoveryConfig(mode))
        assert recovery.scan.is_clean
        assert recovery.records_kept == len(readable)
        added = len(after.splitlines()) > len(before.splitlines())
        assert recovery.records_removed == added
        quarantine = keys.quarantine("event")
        if added and mode == "quarantine":
            assert recovery.quarantined == (quarantine,)
            identifier, name, of, *fields = server.cli("XRANGE", quarantine, "-", "+").splitlines()
            assert _is_id(identifier)
            assert name == "id"
            # Word for word what was there too much.
            assert after == "\n".join([before, of, *fields])
        else:
            assert recovery.quarantined == ()
            assert server.cli("EXISTS", quarantine) == "0"

        assert [event.seq for event in await store.list_events()] == readable
        assert (await store.append(an_event(11))).first_seq == 11
        assert (await store.scan()).is_clean
        assert [event.seq for event in await store.list_events()] == [*readable, 11]
    # What is no more does not count.
    for limit in (1, 2, 5, 8, 20):
        async with make(retention_policy=RetentionPolicy(max_records=limit)) as store:
            assert [event.seq for event in await store.list_events()] == [*readable, 11][-limit:]
    sizes = [len(msgspec.json.encode(an_event(n - 1))) for n in [*readable, 12]]
    for limit in (1, 150, 400, 900, 2000):
        count = max(n for n in range(len(sizes) + 1) if sum(sizes[len(sizes) - n :]) <= limit)
        async with make(retention_policy=RetentionPolicy(max_total_bytes=limit)) as store:
            shown = [event.seq for event in await store.list_events()]
            assert shown == [*readable, 11][len(sizes) - count :]
    async with make(retention_policy=RetentionPolicy(max_records=3)) as store:
        compaction = await store.compact()
        assert compaction.records_before == len(readable) + 1
        assert compaction.bytes_before == sum(sizes)
        assert compaction.bytes_after == sum(sizes[-3:])
        assert (await store.scan()).is_clean


async def test_a_recovery_of_a_redis_store_keeps_entries_of_a_newer_version(
    server: RedisServer, config: RedisStreamsConfig, make: MakeStore
) -> None:
    keys = config.keys
    async with make() as store:
        await store.append(*map(an_event, range(10)))
    an_event_of_a_newer_kind(server.cli, keys.streams["event"], keys.meta)
    async with make() as store:
        for _ in range(2):
            report = await store.scan()
            assert [(a.kind, a.seq) for a in report.anomalies] == [("unknown_kind", 11)]
            recovery = await store.recover()
            assert (recovery.records_kept, recovery.records_removed) == (11, 0)
        assert len(await store.list_events()) == 10
        assert (await store.append(an_event(12))).first_seq == 12
        # It keeps no system from starting, once a recovery has left it.
        assert await check_store(store, PersistenceStartupConfig("recover")) is not None


async def test_an_anomaly_of_a_redis_store_says_its_key_and_entry(
    server: RedisServer, config: RedisStreamsConfig, make: MakeStore
) -> None:
    key = config.keys.streams["event"]
    async with make() as store:
        await store.append(*map(an_event, range(3)))
        identifier = server.cli("XADD", key, "*", "temperature", "21")
        (anomaly,) = (await store.scan()).anomalies
        assert (anomaly.location, anomaly.entry, anomaly.seq) == (key, identifier, None)
        assert "temperature" in anomaly.detail


async def test_a_recovery_repairs_damage_in_every_redis_stream_at_once(
    server: RedisServer, config: RedisStreamsConfig, make: MakeStore
) -> None:
    async with make() as store:
        await store.append(*map(a_record, range(30)))
        for number, key in enumerate(config.keys.streams.values()):
            remove(number)(server.cli, key, "")
            server.cli("XADD", key, "*", "a", "b")
        report = await store.scan()
        assert sorted(a.kind for a in report.anomalies) == ["gap"] * 3 + ["wrong_fields"] * 3
        assert (await store.recover()).scan.is_clean
        assert len(await everything(store)) == 27
        await store.append(*map(a_record, range(30, 33)))
        assert (await store.scan()).is_clean


async def test_a_redis_writer_goes_on_behind_a_foreign_entry_added_meanwhile(
    server: RedisServer, config: RedisStreamsConfig, make: MakeStore
) -> None:
    key = config.keys.streams["event"]
    async with make() as store:
        await store.append(an_event(1))
        server.cli("XADD", key, "*", "a", "b")  # today, and so later than T0
        for count in (1, 3):
            await store.append(*map(an_event, range(count)))
            await store.append(*map(a_record, range(count)))
        stored = await everything(store)
        assert [record.seq for record in stored] == list(range(1, 10))
        late = [event.seq for event in (await store.read("event", until=T0 + 0.5)).records]
        assert late == [e.seq for e in await store.list_events() if e.timestamp <= T0 + 0.5]
        assert [a.kind for a in (await store.scan()).anomalies] == ["wrong_fields"]


async def test_a_scan_of_a_redis_store_reports_its_progress_in_records(make: MakeStore) -> None:
    told: list[tuple[int, int]] = []
    async with make() as store:
        await store.append(*map(a_record, range(3000)))
        await store.scan(lambda progress: told.append((progress.done, progress.total)))
    assert told[-1] == (3000, 3000)
    assert len(told) > 3
    assert told == sorted(told)


async def test_a_scan_of_a_redis_store_finds_every_duplicated_entry(
    server: RedisServer, config: RedisStreamsConfig, make: MakeStore
) -> None:
    """However far back what they are copies of is, and also of copies."""
    key = config.keys.streams["event"]
    async with make() as store:
        await store.append(*map(an_event, range(300)))
    entries = chunked(server.cli("XRANGE", key, "-", "+").splitlines(), 9)
    ms = int(entries[-1][0].partition("-")[0])
    originals = [entries[at] for at in (299, 298, *range(290, 300), 5, *range(100, 110), 299, 299)]
    for number, (identifier, *fields) in enumerate(originals, start=1):
        server.cli("XADD", key, f"{ms + number}-{identifier.partition('-')[2]}", *fields)
    async with make() as store:
        report = await store.scan()
        assert report.records_scanned == 300
        seqs = [int(entry[0].partition("-")[2]) for entry in originals]
        assert [anomaly.seq for anomaly in report.anomalies] == seqs
        assert {anomaly.kind for anomaly in report.anomalies} == {"duplicate"}
        recovery = await store.recover()
        assert (recovery.records_kept, recovery.records_removed) == (300, len(originals))
        assert recovery.scan.is_clean
    assert chunked(server.cli("XRANGE", key, "-", "+").splitlines(), 9) == entries


def chunked(lines: list[str], size: int) -> list[list[str]]:
    return [lines[start : start + size] for start in range(0, len(lines), size)]
