"""What Redis keeps beside the streams: the id of the store, and snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import msgspec
import pytest
import redis

from papyra.exceptions import (
    StoreAccessDenied,
    StoreFenced,
    StoreFull,
    StoreNotAcknowledged,
    StoreReadOnly,
    StoreUnreachable,
    StoreWrongType,
)
from papyra.persistence import PersistedEvent, PersistenceRecoveryConfig, SaveSnapshot, Scan
from papyra.persistence.backends._redis.snapshots import owner_of
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.snapshots import all_snapshots, snapshots_of
from papyra.persistence.backends.store import StoredSnapshot
from tests.conftest import event_loops
from tests.persistence.backends.redis.conftest import MakeStore
from tests.persistence.backends.redis.test_replicas import is_in_step, replica
from tests.redis_server import RedisServer

__all__ = ("replica",)

anyio_backend = event_loops("asyncio")

A = "s/a"
KEPT = b"kept"


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        yield client


def store_on(server: RedisServer, **changes: Any) -> RedisStreamsPersistence:
    options: dict[str, Any] = {"url": server.url, "retry_for": 0, "timeout": 10.0, **changes}
    return RedisStreamsPersistence(RedisStreamsConfig(**options))


async def fill(store: PersistenceBackend, *revisions: int, actor: str = A) -> None:
    """Store a history of nine events, and snapshots after some of them."""
    for revision in range(1, 10):
        event = PersistedEvent("s", actor, "Stepped", revision, 1.0, revision=revision)
        appended = await store.append(event)
        if revision in revisions:
            await store.execute(request(revision, appended.first_seq, actor=actor))


def request(revision: int, seq: int, **changes: Any) -> SaveSnapshot:
    fields: dict[str, Any] = {"actor": A, "state": msgspec.Raw(b"%d" % revision), "keep": 9}
    return SaveSnapshot(revision=revision, seq=seq, timestamp=1.0, **(fields | changes))


async def newest(store: PersistenceBackend, actor: str = A) -> tuple[int, int]:
    """Return the revision of the snapshot that is given out, or 0, and how many are not."""
    found = await store.load_snapshot(actor)
    return found.snapshot.revision if found.snapshot else 0, len(found.passed_over)


async def listed(store: PersistenceBackend) -> list[StoredSnapshot]:
    return [each async for each in all_snapshots(snapshots_of(store.store))]


# The id


async def test_a_redis_store_gets_its_id_from_the_first_that_asks_and_writes(
    make: MakeStore, admin: redis.Redis
) -> None:
    async with make() as store, store.reader() as reader:
        await store.append(PersistedEvent("s", A, "Stepped", 1, 1.0))
        assert (await store.load_snapshot(A)).snapshot is None
        assert await reader.store_id() is None
        assert not admin.hexists(store.config.keys.meta, "id")
        made = await store.store_id()
        assert made == await reader.store_id()
    async with make() as store:
        assert await store.store_id() == made


@pytest.mark.parametrize("put", [None, b"", b"what?", b"0" * 31, b"0" * 33])
async def test_a_redis_store_whose_id_is_lost_or_damaged_gets_another_and_no_snapshot_is_believed(
    make: MakeStore, admin: redis.Redis, put: bytes | None
) -> None:
    async with make() as store:
        await fill(store, 5, 9)
        before = await store.store_id()
        if put is None:
            admin.hdel(store.config.keys.meta, "id")
        else:
            admin.hset(store.config.keys.meta, "id", put)
        async with store.reader() as reader:
            assert await reader.store_id() is None
            assert await newest(reader) == (0, 2)
        assert await newest(store) == (0, 2)
        assert await store.store_id() not in (None, before)
        await store.recover()
        assert len(await store.list_events()) == 9


async def test_a_redis_store_that_others_emptied_has_another_id(
    make: MakeStore, admin: redis.Redis
) -> None:
    async with make() as store:
        await fill(store, 9)
        before = await store.store_id()
        admin.delete(*store.config.keys.all)
    async with make() as store:
        await fill(store)
        assert await store.store_id() != before
        assert await newest(store) == (0, 1)


async def test_no_other_store_gets_its_id_in_an_ambiguous_name(
    config: RedisStreamsConfig, admin: redis.Redis
) -> None:
    pair = [
        msgspec.structs.replace(config, prefix=f"test:{config.system_id}", system_id="b"),
        msgspec.structs.replace(config, prefix="test", system_id=f"{config.system_id}:b"),
    ]
    stores = [RedisStreamsPersistence(each) for each in pair]
    try:
        async with stores[0], stores[1]:
            ids = [await store.store_id() for store in stores]
            for store in stores:
                await fill(store, 5)
                assert await newest(store) == (5, 0)
        async with stores[1], stores[0]:
            assert ids == [await store.store_id() for store in stores]
        assert len({*ids}) == 2
    finally:
        for store in stores:
            admin.delete(*store.config.keys.everything)


# Snapshots


async def test_a_writer_that_was_fenced_off_saves_and_removes_no_snapshot(make: MakeStore) -> None:
    async with make() as first:
        await fill(first, 5)
        seq = first.last_seq
        async with make() as second:
            await second.append(PersistedEvent("s", A, "Stepped", 10, 1.0, revision=10))
            before = await listed(second)
            with pytest.raises(StoreFenced, match="has taken over"):
                await first.execute(request(9, seq))
            kept = snapshots_of(first.store)
            for attempt in (
                kept.save_snapshot(A, 5, b"stale"),
                kept.remove_snapshot(A, 5),
                kept.remove_listed(before[0]),
            ):
                with pytest.raises(StoreFenced):
                    await attempt
            assert await listed(second) == before
            assert await newest(second) == (5, 0)
            assert await newest(first) == (5, 0)  # it may look
            assert first.metrics.snapshot_errors == 1


async def test_whoever_saves_a_snapshot_is_the_writer(make: MakeStore) -> None:
    async with make() as first:
        await fill(first)
        seq = first.last_seq
        async with make() as second:
            await second.execute(request(9, seq))
            with pytest.raises(StoreFenced):
                await first.append(PersistedEvent("s", A, "Stepped", 10, 1.0, revision=10))
            await second.append(PersistedEvent("s", A, "Stepped", 10, 1.0, revision=10))
            assert await newest(second) == (9, 0)


async def test_a_reader_of_a_redis_store_sees_snapshots_and_changes_none(make: MakeStore) -> None:
    async with make() as store, store.reader() as reader:
        await fill(store, 5, 9)
        kept = snapshots_of(reader.store)
        assert await newest(reader) == (9, 0)
        found = await listed(reader)
        for attempt in (
            kept.save_snapshot(A, 5, b"x"),
            kept.remove_snapshot(A, 5),
            kept.remove_listed(found[0]),
        ):
            with pytest.raises(StoreReadOnly):
                await attempt
        assert await listed(reader) == await listed(store) == found


async def test_what_is_large_has_more_time_on_its_way_to_redis_and_back(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    async def exchange(client: Any, *commands: Any) -> list[Any]:
        given.append(anyio.current_effective_deadline() - anyio.current_time())
        return await store.store.client.__class__.exchange(store.store.client, client, *commands)

    large = "x" * (3 * 1024 * 1024)
    async with make() as store:
        await fill(store)
        kept = snapshots_of(store.store)
        monkeypatch.setattr(store.store.client, "exchange", exchange)
        await kept.save_snapshot(A, 9, large.encode())
        assert await kept.load_snapshot(A, 9) == large.encode()
        [stored] = await listed(store)
        assert await kept.load_listed(stored) == large.encode()
        await store.append(PersistedEvent("s", A, "Stepped", large, 1.0, revision=10))
        timeout = store.config.timeout
    assert sum(each > timeout + 2.9 for each in given) == 4
    assert min(given) <= timeout


async def test_a_snapshot_of_64_mib_comes_back_from_redis(make: MakeStore) -> None:
    async with make() as store:
        await fill(store)
        kept = snapshots_of(store.store)
        large = bytes(range(256)) * (64 * 1024 * 4)
        await kept.save_snapshot(A, 9, large)
        assert await kept.load_snapshot(A, 9) == large
        assert [each.size for each in await listed(store)] == [64 * 1024 * 1024]


async def test_a_snapshot_is_saved_as_durably_as_a_record(
    own_server: RedisServer, replica: RedisServer
) -> None:
    await is_in_step(replica, own_server)
    options = {"acknowledge": "replicas:1", "acknowledge_timeout": 0.1}
    async with store_on(own_server, acknowledge="replicas:1") as store:
        await fill(store, 5)
        made, seq = await store.store_id(), store.last_seq
    async with store_on(own_server, **options) as store:
        await store.flush()
        replica.pause()
        with pytest.raises(StoreNotAcknowledged, match="0 of 1 replicas"):
            await store.execute(request(9, seq))
        replica.go_on()
    await is_in_step(replica, own_server)
    own_server.kill()
    with redis.Redis(port=replica.port) as promoted:
        promoted.replicaof("no", "one")
    async with store_on(replica) as store:
        assert await store.store_id() == made
        assert (await newest(store))[0] >= 5
        assert (await newest(store))[1] == 0


async def test_what_a_server_refuses_of_a_snapshot_has_a_name_and_leaves_the_old_one(
    own_server: RedisServer,
) -> None:
    with redis.Redis(port=own_server.port) as admin:
        async with store_on(own_server) as store:
            await fill(store, 5)
            kept, before = snapshots_of(store.store), await listed(store)
            admin.config_set("maxmemory", admin.info("memory")["used_memory"] // 2)
            for revision in (5, 6):
                with pytest.raises(StoreFull):
                    await kept.save_snapshot(A, revision, b"x")
            admin.config_set("maxmemory", 0)
            assert await listed(store) == before
        admin.acl_setuser("app", enabled=True, nopass=True, keys=["*"], commands=["+@all"])
        url = own_server.url.replace("redis://", "redis://app:x@")
        async with store_on(own_server, url=url) as store:
            await store.append(PersistedEvent("s", A, "Stepped", 10, 1.0, revision=10))
            kept = snapshots_of(store.store)
            for command in ("hset", "zadd"):
                admin.acl_setuser("app", enabled=True, commands=[f"-{command}"])
                for revision in (5, 6):
                    with pytest.raises(StoreAccessDenied):
                        await kept.save_snapshot(A, revision, b"x")
                admin.acl_setuser("app", enabled=True, commands=["+@all"])
                assert await listed(store) == before
            assert await newest(store) == (5, 0)


@pytest.mark.parametrize("which", ["snapshots", "snapshot_names"])
async def test_a_key_of_another_type_in_the_place_of_snapshots_has_a_name(
    make: MakeStore, admin: redis.Redis, which: str
) -> None:
    async with make() as store:
        await fill(store, 5)
        key = getattr(store.config.keys, which)
        admin.rename(key, f"{key}:away")
        admin.set(key, "something else")
        kept = snapshots_of(store.store)
        for attempt in (
            kept.save_snapshot(A, 6, b"x"),
            kept.remove_snapshot(A, 5),
            kept.list_snapshots(None, 9),
            store.load_snapshot(A),
        ):
            with pytest.raises(StoreWrongType, match="WRONGTYPE"):
                await attempt
        await store.append(PersistedEvent("s", A, "Stepped", 10, 1.0, revision=10))
        admin.rename(f"{key}:away", key)
        assert await newest(store) == (5, 0)
        assert len(await listed(store)) == 1


async def test_what_others_put_among_snapshots_is_not_listed_or_loaded(
    make: MakeStore, admin: redis.Redis
) -> None:
    async with make() as store:
        await fill(store, 5, 9)
        before, owner, keys = await listed(store), owner_of(A), store.config.keys
        odd = ["", "x", f"{owner}:5", f"{owner}:{0:014}", f"{owner};"]
        admin.zadd(keys.snapshot_names, dict.fromkeys(odd, 0))
        for name in (*odd[:-1], "unlisted"):
            admin.hset(keys.snapshots, name, "x")
        assert await listed(store) == before
        kept = snapshots_of(store.store)
        assert sorted(await kept.snapshot_revisions(A)) == [5, 9]
        assert [await kept.list_snapshots(None, 1)] == [before[:1]]
        assert await kept.list_snapshots(before[0], 1) == before[1:]
        assert await newest(store) == (9, 0)
        await kept.remove_listed(before[1])
        assert await newest(store) == (5, 0)


async def test_many_snapshots_are_listed_whatever_the_page(make: MakeStore) -> None:
    async with make() as store:
        await fill(store)
        kept = snapshots_of(store.store)
        for number in range(2_345):
            await kept.save_snapshot(f"s/{number}", 1, b"x" * (number % 7))
        found = await listed(store)
        assert len(found) == 2_345
        assert sum(each.size for each in found) == sum(number % 7 for number in range(2_345))
        assert found == sorted(found, key=lambda each: (each.owner, each.revision))
        assert list(await kept.list_snapshots(found[99], 2_000)) == found[100:2_100]


# Scans and recoveries


async def test_a_key_of_another_type_in_the_place_of_snapshots_is_an_anomaly_and_stays(
    make: MakeStore, admin: redis.Redis
) -> None:
    async with make() as store:
        await fill(store, 5)
        for key in (store.config.keys.snapshots, store.config.keys.snapshot_names):
            admin.rename(key, f"{key}:away")
            admin.set(key, "somebody else's")
            for report in (await store.scan(), (await store.recover()).scan, await store.scan()):
                assert [anomaly.kind for anomaly in report.anomalies] == ["snapshot"]
                assert "WRONGTYPE" in report.anomalies[0].detail
            assert admin.get(key) == b"somebody else's"
            admin.rename(f"{key}:away", key)
        assert (await store.scan()).is_clean
        assert await newest(store) == (5, 0)


@pytest.mark.parametrize("half", ["name", "data"])
async def test_a_snapshot_of_which_half_is_gone_is_reported_and_removed_or_quarantined(
    make: MakeStore, admin: redis.Redis, half: str
) -> None:
    for mode in ("repair", "quarantine"):
        async with make() as store:
            await fill(store, 3, 5, 7, actor=f"s/{mode}")
            keys, name = store.config.keys, f"{owner_of(f's/{mode}')}:{5:014}"
            data = admin.hget(keys.snapshots, name)
            if half == "name":
                admin.zrem(keys.snapshot_names, name)
            else:
                admin.hdel(keys.snapshots, name)
            before = await listed(store)
            assert len(before) == len(set(before))
            assert [each.revision for each in before if name.startswith(each.owner)].count(5) == 1
            # Whatever the page.
            kept, after, found = snapshots_of(store.store), None, list[StoredSnapshot]()
            while page := await kept.list_snapshots(after, 1):
                found += page
                after = page[-1]
            assert found == before
            [anomaly] = (await store.scan()).anomalies
            assert anomaly.kind == "snapshot"
            assert f"snapshot 5: its {half} is gone" in anomaly.detail
            assert (await store.execute(Scan(records_only=True))).is_clean
            report = await store.recover(PersistenceRecoveryConfig(mode=mode))
            assert report.scan.is_clean
            assert (await store.scan()).is_clean
            assert not admin.hexists(keys.snapshots, name)
            assert admin.zscore(keys.snapshot_names, name) is None
            is_kept = mode == "quarantine" and half == "name"
            quarantined = admin.hget(keys.snapshot_quarantine, name)
            assert quarantined == (data if is_kept else None)
            assert await newest(store, f"s/{mode}") == (7, 0)


async def test_a_bad_snapshot_in_redis_goes_to_a_quarantine(
    make: MakeStore, admin: redis.Redis
) -> None:
    async with make() as store:
        await fill(store, 5, 9)
        keys, name = store.config.keys, f"{owner_of(A)}:{9:014}"
        admin.hset(keys.snapshots, name, b"rubbish")
        async with store.reader() as reader:
            assert [each.kind for each in (await reader.scan()).anomalies] == ["snapshot"]
        report = await store.recover(PersistenceRecoveryConfig("quarantine"))
        assert report.quarantined == (keys.snapshot_quarantine,)
        assert report.scan.is_clean
        assert admin.hgetall(keys.snapshot_quarantine) == {name.encode(): b"rubbish"}
        assert await newest(store) == (5, 0)


async def test_a_scan_without_a_server_does_not_blame_the_snapshots(
    own_server: RedisServer,
) -> None:
    async with store_on(own_server) as store:
        await fill(store, 5)
        read = store.store.load_listed

        async def kill_and_read(stored: StoredSnapshot) -> bytes | None:
            own_server.kill()
            return await read(stored)

        store.store.load_listed = kill_and_read  # type: ignore[method-assign]
        with pytest.raises(StoreUnreachable):
            await store.scan()
        own_server.start()
