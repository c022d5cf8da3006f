"""Acknowledgements that mean more than the server's memory: the disk, and replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from papyra.exceptions import StoreError, StoreNotAcknowledged
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing.conformance._fixtures import a_record, an_event, everything
from tests.conftest import event_loops
from tests.persistence.backends.redis.conftest import until
from tests.redis_server import RedisServer, free_port

anyio_backend = event_loops("asyncio")

SERVICE = "orders"


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis(port=server.port)


def store_on(url: str, **changes: Any) -> RedisStreamsPersistence:
    options: dict[str, Any] = {"url": url, "retry_for": 0, "timeout": 10.0, **changes}
    return RedisStreamsPersistence(RedisStreamsConfig(**options))


@pytest.fixture
def replica(binary: Path, own_server: RedisServer) -> Iterator[RedisServer]:
    with RedisServer(binary, "--replicaof", "127.0.0.1", str(own_server.port)) as server:
        yield server


async def is_in_step(replica: RedisServer, master: RedisServer) -> None:
    """Wait until the replica has what the master has, and the master knows it."""
    with client(replica) as admin:
        await until(lambda: admin.info("replication")["master_link_status"] == "up")
    with client(master) as admin:
        await until(lambda: admin.set("probe", 1) and admin.wait(1, 1000))
        admin.delete("probe")


async def test_a_replica_has_every_record_acknowledged_with_replicas_1(
    own_server: RedisServer, replica: RedisServer
) -> None:
    await is_in_step(replica, own_server)
    async with store_on(own_server.url, acknowledge="replicas:1") as store:
        for number in range(20):
            await store.append(an_event(number))
        own_server.kill()
    with client(replica) as admin:
        admin.replicaof("no", "one")
    async with store_on(replica.url) as store:
        assert [event.payload["n"] for event in await store.list_events()] == list(range(20))
        assert (await store.scan()).is_clean
        assert (await store.append(an_event(20))).first_seq == 21


async def test_an_append_that_no_replica_confirms_raises_and_is_removed(
    own_server: RedisServer, replica: RedisServer
) -> None:
    await is_in_step(replica, own_server)
    async with store_on(own_server.url, acknowledge="replicas:1") as store:
        await store.append(a_record(0))
    options = {"acknowledge": "replicas:1", "acknowledge_timeout": 0.1}
    async with store_on(own_server.url, **options) as store:
        replica.pause()
        with pytest.raises(StoreNotAcknowledged, match="0 of 1 replicas"):
            await store.append(a_record(100))
        replica.go_on()
        assert [r.payload["n"] for r in await everything(store)] == [0]
        # As long as it takes the replica to catch up.
        appended = None
        while appended is None:
            try:
                appended = await store.append(a_record(1))
            except StoreNotAcknowledged:
                await anyio.lowlevel.checkpoint()
        assert [r.payload["n"] for r in await everything(store)] == [0, 1]
        assert (await store.scan()).is_clean
    async with store_on(own_server.url) as store:
        assert [r.payload["n"] for r in await everything(store)] == [0, 1]


async def test_an_append_that_one_of_two_replicas_confirms_raises_and_is_removed(
    own_server: RedisServer, replica: RedisServer
) -> None:
    await is_in_step(replica, own_server)
    options = {"acknowledge": "replicas:2", "acknowledge_timeout": 0.5}
    async with store_on(own_server.url, **options) as store:
        with pytest.raises(StoreNotAcknowledged, match="1 of 2 replicas"):
            await store.append(a_record(0))
        assert await everything(store) == []


async def test_an_append_acknowledged_with_aof_survives_a_kill_of_the_redis_server(
    own_server: RedisServer,
) -> None:
    with client(own_server) as admin:
        knows_waitaof = admin.info()["redis_version"] >= "7.2"
        async with store_on(own_server.url, acknowledge="aof") as store:
            with pytest.raises(StoreError, match="appendonly yes"):
                await store.append(a_record(0))
            assert await everything(store) == []
        admin.config_set("appendonly", "yes")
        await until(lambda: not admin.info("persistence")["aof_rewrite_in_progress"])
        admin.config_set("appendfsync", "everysec")
        store = store_on(own_server.url, acknowledge="aof")
        if knows_waitaof:
            await store.append(a_record(0))
        else:
            with pytest.raises(StoreError, match="appendfsync always"):
                await store.append(a_record(0))
            admin.config_set("appendfsync", "always")
            await store.append(a_record(0))
        await store.aclose()
    own_server.kill()
    own_server.options = ("--appendonly", "yes")
    own_server.start()
    async with store_on(own_server.url) as store:
        assert [r.payload["n"] for r in await everything(store)] == [0]


async def test_a_flush_of_a_redis_store_waits_for_the_append_only_file(
    own_server: RedisServer,
) -> None:
    """Where the server can tell: from Redis 7.2 on, if it keeps a file."""
    own_server.kill()
    own_server.options = ("--appendonly", "yes", "--appendfsync", "everysec")
    own_server.start()
    with client(own_server) as admin:
        async with store_on(own_server.url) as store:
            await store.append(*map(a_record, range(5)))
            admin.config_resetstat()
            assert (await store.flush()).last_seq == 5
            await store.flush()
        stats = admin.info("commandstats")
        expected = 1 if admin.info()["redis_version"] >= "7.2" else None
        assert stats.get("cmdstat_waitaof", {}).get("calls") == expected


class Sentinels:
    """A master, a replica, and three Sentinels that watch them."""

    def __init__(self, binary: Path, directory: Path) -> None:
        self.master = RedisServer(binary)
        self.replica = RedisServer(binary, "--replicaof", "127.0.0.1", str(self.master.port))
        self.sentinels = []
        for number in range(3):
            conf = directory / f"sentinel-{number}.conf"
            conf.write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} 1000\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
            self.sentinels.append(Sentinel(binary, conf, free_port()))

    @property
    def servers(self) -> list[RedisServer]:
        return [self.master, self.replica, *self.sentinels]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    async def are_ready(self) -> None:
        await is_in_step(self.replica, self.master)
        for sentinel in self.sentinels:
            with client(sentinel) as admin:

                def knows_all(admin: redis.Redis = admin) -> bool:
                    state: Any = admin.sentinel_master(SERVICE)
                    return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2)

                await until(knows_all)


class Sentinel(RedisServer):
    def __init__(self, binary: Path, conf: Path, port: int) -> None:
        super().__init__(binary, port=port)
        self.conf = conf

    def command(self) -> list[str]:
        directory = str(self.directory)
        return [
            *(str(self.binary), str(self.conf), "--sentinel", "--port", str(self.port)),
            *("--bind", "127.0.0.1", "--dir", directory, "--logfile", f"{directory}/log"),
        ]


@pytest.fixture
def sentinels(binary: Path, tmp_path: Path) -> Iterator[Sentinels]:
    watched = Sentinels(binary, tmp_path)
    try:
        for server in watched.servers:
            server.start()
        yield watched
    finally:
        for server in watched.servers:
            server.close()


async def test_a_redis_store_loses_no_acknowledged_record_when_a_replica_is_promoted(
    sentinels: Sentinels,
) -> None:
    await sentinels.are_ready()
    acknowledged: list[int] = []
    raised = 0
    options = {"acknowledge": "replicas:1", "acknowledge_timeout": 3.0, "max_backoff": 0.05}
    async with store_on(sentinels.url, timeout=5.0, **options) as store:
        for number in range(20):
            await store.append(an_event(number))
            acknowledged.append(number)
        sentinels.master.kill()
        # From here on nobody confirms anything, until there is another replica.
        number = 20
        promoted = redis.Redis(port=sentinels.replica.port)
        await until(lambda: promoted.info("replication")["role"] == "master")
        with RedisServer(
            sentinels.replica.binary, "--replicaof", "127.0.0.1", str(sentinels.replica.port)
        ) as another:
            while len(acknowledged) < 40:
                try:
                    await store.append(an_event(number))
                except StoreError:
                    raised += 1
                else:
                    acknowledged.append(number)
                number += 1
            promoted.close()
            stored = [event.payload["n"] for event in await store.list_events()]
            assert stored == acknowledged
            assert (await store.scan()).is_clean
            sentinels.replica.kill()
            with client(another) as admin:
                admin.replicaof("no", "one")
            async with store_on(another.url) as survivor:
                stored = [event.payload["n"] for event in await survivor.list_events()]
                assert stored == acknowledged
    assert raised


async def test_a_store_behind_sentinels_goes_on_by_itself(sentinels: Sentinels) -> None:
    await sentinels.are_ready()
    async with store_on(sentinels.url, retry_for=60.0, max_backoff=0.05) as store:
        for number in range(20):
            await store.append(an_event(number))
        with client(sentinels.replica) as replica:
            await until(lambda: replica.xlen(store.config.keys.streams["event"]) == 20)
        sentinels.master.kill()
        for number in range(20, 40):
            assert (await store.append(an_event(number))).first_seq == number + 1
        assert [event.payload["n"] for event in await store.list_events()] == list(range(40))
    assert sentinels.replica.ask("ROLE").startswith(b"*3\r\n$6\r\nmaster")
