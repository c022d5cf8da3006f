"""What a server says no with has a name, and writing goes on when the server does."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import redis

from papyra import ActorSystem
from papyra.exceptions import (
    StoreAccessDenied,
    StoreError,
    StoreFull,
    StoreNotReady,
    StoreNotWritable,
    StoreUnavailable,
    StoreUnreachable,
    StoreWrongType,
)
from papyra.persistence import Append, CircuitBreakerPolicy, PersistenceActor
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing.conformance._fixtures import a_record, an_event, everything
from tests.persistence.backends.redis.conftest import impatient, until
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.redis_server import RedisServer

SECRET = "s3cret-pa55word"


@pytest.fixture
def admin(own_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=own_server.port) as client:
        yield client


def store_on(server: RedisServer, **changes: Any) -> RedisStreamsPersistence:
    options: dict[str, Any] = {
        "url": server.url,
        "system_id": "s",
        "retry_for": 0,
        "timeout": 10.0,
        **changes,
    }
    return RedisStreamsPersistence(RedisStreamsConfig(**options))


async def seqs(store: RedisStreamsPersistence) -> list[int]:
    return [record.seq or 0 for record in await everything(store)]


async def refuse(store: RedisStreamsPersistence, expected: type[StoreError], match: str) -> None:
    """Try to append one record, and many of all kinds."""
    for count in (1, 7):
        with pytest.raises(expected, match=match) as caught:
            await store.append(*map(a_record, range(count)))
        assert type(caught.value) is expected
        assert isinstance(caught.value.__cause__, redis.RedisError)


async def test_an_append_to_a_redis_out_of_memory_raises_store_full(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with store_on(own_server) as store:
        await store.append(*map(a_record, range(3)))
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] // 2)
        await refuse(store, StoreFull, "OOM")
        assert await seqs(store) == [1, 2, 3]  # it can be read all the same
        assert (await store.scan()).is_clean
        admin.config_set("maxmemory", 0)
        assert (await store.append(a_record(4))).first_seq == 4
        assert await seqs(store) == [1, 2, 3, 4]


async def test_a_redis_store_keeps_every_acknowledged_record_as_memory_fills_up(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with store_on(own_server) as store:
        await store.append(an_event(0))
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 2_000_000)
        number = 0
        with pytest.raises(StoreFull):
            for number in range(1, 1000):
                await store.append(an_event(number, payload={"n": number, "x": "x" * 20_000}))
        assert 10 < number < 200
        stored = [event.payload["n"] for event in await store.list_events()]
        assert stored == list(range(number))
        admin.config_set("maxmemory", 0)
        assert (await store.append(an_event(number))).first_seq == number + 1
        assert (await store.scan()).is_clean


async def test_an_append_to_a_redis_replica_raises_store_not_writable(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with store_on(own_server) as store:
        await store.append(*map(a_record, range(3)))
        admin.replicaof("127.0.0.1", 1)
        await refuse(store, StoreNotWritable, "READONLY")
        assert await seqs(store) == [1, 2, 3]
        admin.replicaof("no", "one")
        assert (await store.append(a_record(4))).first_seq == 4


async def test_an_append_to_a_redis_with_too_few_replicas_raises_store_not_writable(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with store_on(own_server) as store:
        await store.append(a_record(1))
        admin.config_set("min-replicas-to-write", 1)
        if admin.info()["redis_version"] < "7":
            # Before 7.0 servers check this for plain commands alone, and let scripts write.
            assert (await store.append(a_record(2))).first_seq == 2
            return
        await refuse(store, StoreNotWritable, "NOREPLICAS")
        admin.config_set("min-replicas-to-write", 0)
        assert (await store.append(a_record(2))).first_seq == 2


async def test_an_append_to_a_redis_that_cannot_save_raises_store_not_writable(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with store_on(own_server) as store:
        await store.append(a_record(1))
        admin.config_set("save", "3600 1")
        # A file can't take the place of a directory with something in it.
        in_its_way = own_server.directory / "dump.rdb" / "something"
        in_its_way.mkdir(parents=True)
        await until(lambda: _save(admin) == "err")
        await refuse(store, StoreNotWritable, "MISCONF")
        shutil.rmtree(in_its_way.parent)
        await until(lambda: _save(admin) == "ok")
        assert (await store.append(a_record(2))).first_seq == 2


def _save(admin: redis.Redis) -> str:
    info = admin.info("persistence")
    if not info["rdb_bgsave_in_progress"]:
        admin.bgsave()
    return str(info["rdb_last_bgsave_status"])


async def test_a_missing_or_wrong_redis_password_raises_store_access_denied(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with store_on(own_server) as store:
        await store.append(a_record(1))
    admin.config_set("requirepass", SECRET)
    where = f"127.0.0.1:{own_server.port}/0"
    for url, match in (
        (f"redis://{where}", "(?i)auth"),
        (f"redis://:wrong-{SECRET}@{where}", "(?i)password"),
        (f"redis://somebody:{SECRET}@{where}", "(?i)password"),
        (f"redis://{where}?password=wrong-{SECRET}", "(?i)password"),
    ):
        other = store_on(own_server, url=url)
        with pytest.raises(StoreAccessDenied, match=match) as caught:
            await other.append(a_record(1))
        assert SECRET not in f"{caught.value} {other!r} {other.config!r} {caught.value.__cause__}"
        await other.aclose()
    async with store_on(own_server, url=f"redis://:{SECRET}@{where}") as store:
        assert SECRET not in repr(store)
        assert (await store.append(a_record(2))).first_seq == 2
    admin.config_set("requirepass", "")


async def test_a_redis_user_without_write_access_may_read_and_not_append(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with store_on(own_server) as store:
        await store.append(a_record(1))
    admin.acl_setuser(
        "app", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], commands=["+@all", "-xadd"]
    )
    url = f"redis://app:{SECRET}@127.0.0.1:{own_server.port}/0"
    async with store_on(own_server, url=url) as store:
        with pytest.raises(StoreAccessDenied, match=r"permission|can't run"):
            await store.append(a_record(2), a_record(3))
        assert await seqs(store) == [1]
        admin.acl_setuser("app", enabled=True, commands=["+xadd"])
        assert (await store.append(a_record(2))).first_seq == 2
        assert (await store.scan()).is_clean
    # Not even INFO is needed, nor what only some stores are asked.
    admin.acl_setuser("app", enabled=True, commands=["-info", "-xinfo", "-pttl", "-exists"])
    async with store_on(own_server, url=url) as store:
        assert await seqs(store) == [1, 2]
        events = store.follow("audit", after=2)
        with anyio.move_on_after(0.01):
            await anext(events)


#: What a script may be denied, whatever it has done before.
COMMANDS = ["hset", "hmget", "hget", "xadd", "xdel", "xinfo", "exists", "xrange", "xrevrange"]


@pytest.fixture
def app(own_server: RedisServer, admin: redis.Redis) -> Callable[..., None]:
    """Return what says which commands the user of that name may not use."""

    def deny(*commands: str) -> None:
        rights = ["+@all", *(f"-{command}" for command in commands)]
        admin.acl_setuser("app", enabled=True, nopass=True, keys=["*"], commands=rights)

    deny()
    return deny


async def test_a_redis_user_who_loses_a_right_leaves_no_batch_half_written(
    own_server: RedisServer, admin: redis.Redis, app: Callable[..., None]
) -> None:
    """Wherever in a script the first command is that is denied, nothing was written before it."""
    url = f"redis://app:any@127.0.0.1:{own_server.port}/0"
    batches: list[list[Any]] = [[an_event(1)], [*map(a_record, range(6))], [an_event(2)] * 3]
    for command in COMMANDS:
        async with store_on(own_server, url=url, system_id=command) as store:
            await store.append(a_record(0))
            given = 1
            for batch in batches:
                before = _snapshot(admin, store)
                app(command)
                try:
                    await store.append(*batch)
                except StoreAccessDenied:
                    assert _snapshot(admin, store) == before
                    app()
                    await store.append(*batch)
                given += len(batch)
            app()
            assert await seqs(store) == [*range(1, given + 1)]
            assert (await store.scan()).is_clean


@pytest.mark.parametrize("place", ["before", "after"])
async def test_a_redis_user_who_loses_a_right_leaves_no_in_doubt_batch_half_removed(
    own_server: RedisServer, admin: redis.Redis, app: Callable[..., None], place: Any
) -> None:
    with Proxy(own_server.port) as proxy:
        proxy.marker = scripts.APPEND.sha.encode()
        url = f"redis://app:any@127.0.0.1:{proxy.port}/0"
        for command in COMMANDS:
            async with store_on(own_server, url=url, system_id=command) as store:
                await store.append(*map(a_record, range(3)))
                proxy.cuts.append(Cut(place))
                with pytest.raises(StoreUnreachable):
                    await store.append(*map(a_record, range(100, 106)))
                before = _snapshot(admin, store)
                app(command)
                try:
                    await store.append(a_record(3))
                except StoreAccessDenied:
                    after = _snapshot(admin, store)
                    # Taken back as a whole, or not begun with; then the append is denied.
                    assert after == before or sum(map(len, after[1:])) == 3
                    app()
                    await store.append(a_record(3))
                app()
                assert [record.payload["n"] for record in await everything(store)] == [0, 1, 2, 3]
                assert await seqs(store) == [1, 2, 3, 10]
                assert (await store.scan()).is_clean


def _snapshot(admin: redis.Redis, store: RedisStreamsPersistence) -> list[Any]:
    keys = store.config.keys
    return [admin.hgetall(keys.meta), *map(admin.xrange, keys.streams.values())]


@pytest.mark.parametrize("kind", ["event", "audit", "dead_letter"])
async def test_an_append_to_a_redis_key_of_another_type_stores_nothing(
    own_server: RedisServer, admin: redis.Redis, kind: Any
) -> None:
    async with store_on(own_server) as store:
        await store.append(an_event(1))
        key = store.config.keys.streams[kind]
        if kind == "event":
            admin.rename(key, "away")
        admin.set(key, "something else")
        batch = [a_record(number) for number in range(3)]
        with pytest.raises(StoreWrongType, match="WRONGTYPE"):
            await store.append(*batch)
        admin.delete(key)
        if kind == "event":
            admin.rename("away", key)
        assert await seqs(store) == [1]  # nothing of the batch
        assert (await store.append(*batch)).first_seq == 2
        assert (await store.scan()).is_clean


async def test_an_append_to_a_redis_that_loads_its_data_waits_or_raises_store_not_ready(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with store_on(own_server) as store:
        await store.append(*map(a_record, range(3)))
    # While it loads, it answers every two megabytes.
    admin.config_set("rdbcompression", "no")
    admin.eval("for i = 1, 20 do redis.call('SET', 'k' .. i, string.rep('x', 1024^2)) end", 0)
    admin.save()
    own_server.kill()
    own_server.options = ("--key-load-delay", "50000")
    own_server.start(wait=False)
    await until(lambda: _says(own_server, b"-LOADING"))
    hasty = store_on(own_server)
    with pytest.raises(StoreNotReady, match="LOADING"):
        await hasty.append(a_record(3))
    await hasty.aclose()
    async with store_on(own_server, retry_for=60.0) as patient:
        assert (await patient.append(a_record(3))).first_seq == 4
        assert await seqs(patient) == [1, 2, 3, 4]


def _says(server: RedisServer, beginning: bytes) -> bool:
    try:
        return server.ask("PING").startswith(beginning)
    except OSError:
        return False


async def test_an_append_to_an_absent_redis_server_raises_store_unreachable(
    own_server: RedisServer,
) -> None:
    own_server.kill()
    store = store_on(own_server)
    with pytest.raises(StoreUnreachable, match=f"127.0.0.1:{own_server.port}"):
        await store.append(a_record(0))
    own_server.start()
    assert (await store.append(a_record(0))).first_seq == 1
    await store.aclose()


async def test_an_append_waits_for_a_redis_server_that_comes_back(own_server: RedisServer) -> None:
    own_server.kill()
    own_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.start()
    async with store_on(own_server, retry_for=30.0, max_backoff=0.05) as store:
        await store.append(a_record(0))
        own_server.kill()
        async with anyio.create_task_group() as tasks:

            async def append() -> None:
                assert (await store.append(a_record(1))).first_seq == 2

            tasks.start_soon(append)
            await anyio.lowlevel.checkpoint()
            own_server.start()
        assert await seqs(store) == [1, 2]


async def test_an_append_to_a_redis_that_stands_still_raises_and_is_not_stored(
    own_server: RedisServer,
) -> None:
    async with store_on(own_server) as store:
        await store.append(a_record(0))
        own_server.pause()
        try:
            with (
                impatient(store, 0.1),
                pytest.raises(StoreUnreachable, match=r"no answer in 0\.1 seconds"),
            ):
                await store.append(a_record(100))
        finally:
            own_server.go_on()
        # What was sent is carried out now, or not: it is not there, whichever it was.
        await until(lambda: _says(own_server, b"+PONG"))
        await store.append(a_record(1))
        assert [r.payload["n"] for r in await everything(store)] == [0, 1]
        assert (await store.scan()).is_clean


async def test_a_redis_store_that_lost_every_record_gives_no_position_twice(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does that keeps nothing, when it is restarted. No number is given twice, even so."""
    async with store_on(own_server, retry_for=30.0) as store:
        await store.append(*map(a_record, range(7)))
        own_server.kill()
        own_server.start()
        with caplog.at_level(logging.ERROR):
            assert (await store.append(a_record(7), a_record(8))).first_seq == 8
        assert "has lost what it had acknowledged" in caplog.text
        assert await seqs(store) == [8, 9]
        missing = [anomaly.kind for anomaly in (await store.scan()).anomalies]
        assert missing == ["gap"] * 3  # of each kind
        report = await store.recover()
        assert report.scan.is_clean
        assert (report.records_kept, report.records_removed) == (2, 0)
        assert (await store.append(a_record(9))).first_seq == 10


async def test_a_persistence_actors_breaker_opens_on_a_full_redis_and_closes_again(
    own_server: RedisServer, admin: redis.Redis
) -> None:
    async with ActorSystem(audit_interval=None) as system:
        breaker = CircuitBreakerPolicy(max_failures=3, reset_timeout=0.001)
        ref = system.spawn(PersistenceActor, store_on(own_server), breaker)
        await ref.ask(Append(a_record(0)))
        admin.config_set("maxmemory", 1)
        raised = []
        while StoreUnavailable not in raised:
            with pytest.raises(StoreError) as caught:
                await ref.ask(Append(a_record(1)))
            raised.append(type(caught.value))
        assert raised[:3] == [StoreFull] * 3
        admin.config_set("maxmemory", 0)
        last_seq = 0
        while not last_seq:
            try:
                last_seq = (await ref.ask(Append(a_record(1)))).last_seq
            except StoreUnavailable:
                await anyio.lowlevel.checkpoint()
        assert last_seq == 2


async def test_an_append_behind_an_entry_with_the_greatest_redis_id_is_refused(
    server: RedisServer, config: RedisStreamsConfig
) -> None:
    async with RedisStreamsPersistence(config) as store:
        await store.append(an_event(1))
        with redis.Redis.from_url(server.url) as client:
            client.xadd(config.keys.streams["event"], {"a": "b"}, f"{2**64 - 1}-7")
        for batch in ([an_event(2)], [an_event(2), a_record(1)]):
            with pytest.raises(StoreError, match=f"{2**64 - 1}-7"):
                await store.append(*batch)
        assert await seqs(store) == [1]


async def test_a_redis_store_counts_the_errors_of_each_verb_apart(own_server: RedisServer) -> None:
    store = store_on(own_server, system_id=uuid.uuid4().hex)
    await store.append(a_record(0))
    own_server.kill()
    for verb in (store.list_events, store.scan, store.recover, store.compact):
        with pytest.raises(StoreUnreachable):
            await verb()
    counted = store.metrics.snapshot()
    assert (counted.read_errors, counted.scan_errors) == (1, 1)
    assert (counted.recovery_errors, counted.compaction_errors) == (1, 1)
    await store.aclose()


@pytest.mark.parametrize("first", ["look", "write", "reopen"])
async def test_positions_known_to_a_backend_are_not_given_again_after_redis_lost_them(
    own_server: RedisServer, admin: redis.Redis, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it has looked at the store before it was lost, or written it, and was closed."""
    async with store_on(own_server) as other:
        await other.append(*map(a_record, range(7)))
    store = store_on(own_server)
    last = 7
    if first == "look":
        assert await seqs(store) == [*range(1, 8)]
    else:
        last = (await store.append(a_record(7))).last_seq
    if first == "reopen":
        await store.aclose()
    admin.flushall()
    async with store:
        assert "has lost what it had acknowledged" in caplog.text or first != "reopen"
        assert (await store.flush()).last_seq == last
        assert (await store.append(a_record(8))).first_seq == last + 1
        assert "has lost what it had acknowledged" in caplog.text
        assert not (await store.scan()).is_clean
        assert (await store.recover()).scan.is_clean
        assert (await store.append(a_record(9))).first_seq == last + 2


async def test_a_reader_logs_that_a_redis_store_lost_its_records(
    own_server: RedisServer, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with store_on(own_server) as writer, store_on(own_server, read_only=True) as reader:
        await writer.append(*map(a_record, range(7)))
        assert (await reader.flush()).last_seq == 7
        admin.flushall()
        assert (await reader.flush()).last_seq == 7
        assert "has lost what it had acknowledged" in caplog.text


async def test_a_follower_goes_on_after_the_redis_server_lost_its_records(
    own_server: RedisServer, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with store_on(own_server) as writer, store_on(own_server, timeout=2.0) as reader:
        await writer.append(*map(an_event, range(3)))
        events = reader.follow()
        got = [(await anext(events)).seq for _ in range(3)]
        admin.flushall()
        other = store_on(own_server)
        got_later: list[int | None] = []

        async def follow() -> None:
            got_later.append((await anext(events)).seq)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await until(lambda: "has lost what was followed" in caplog.text)
            # Who begins now, knows nothing of what was.
            await other.append(an_event(0, timestamp=1.0))
        assert (got, got_later) == ([1, 2, 3], [1])
        await other.aclose()


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl", "noeviction"])
async def test_a_redis_store_warns_at_opening_of_an_eviction_policy_that_may_remove_it(
    own_server: RedisServer, admin: redis.Redis, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    admin.config_set("maxmemory-policy", policy)
    async with store_on(own_server) as store:
        await store.append(a_record(0))
    assert "evict" not in caplog.text  # there is no limit
    admin.config_set("maxmemory", 10**9)
    async with store_on(own_server):
        pass
    assert (f"maxmemory-policy {policy}" in caplog.text) == policy.startswith("allkeys")
    admin.expire(store.config.keys.meta, 3600)
    async with store_on(own_server):
        pass
    assert "the meta key expires in" in caplog.text
    assert (f"maxmemory-policy {policy}" in caplog.text) == (policy != "noeviction")


@pytest.mark.parametrize("lost", ["meta", "event", "audit"])
async def test_a_redis_store_reports_an_evicted_key_at_opening(
    own_server: RedisServer, admin: redis.Redis, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with store_on(own_server) as store:
        await store.append(*map(a_record, range(6)))
    keys = store.config.keys
    admin.delete(dict(zip(("meta", "event", "audit"), keys.all, strict=False))[lost])
    async with store_on(own_server) as store:
        what = "about the streams is missing" if lost == "meta" else f"of the 2 {lost} records are"
        assert what in caplog.text
        if lost == "meta":
            with pytest.raises(StoreError, match="recover it"):
                await store.append(a_record(0))
        await store.recover()
        assert (await store.append(a_record(0))).first_seq == 7
