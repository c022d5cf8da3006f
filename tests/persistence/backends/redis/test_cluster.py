"""A cluster of three nodes, one of whose slots is moved while the store is written."""

from __future__ import annotations

import random
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from papyra import ActorSystem
from papyra.persistence import Append, PersistenceActor
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.snapshots import snapshots_of
from papyra.testing.conformance._fixtures import a_record, an_event, everything, without_seq
from tests.persistence.backends.redis.conftest import until
from tests.persistence.backends.redis.test_redis_snapshots import fill, listed, newest
from tests.redis_server import RedisServer

SLOTS = 16_384


def port_with_bus() -> int:
    """Return a free port; that of the cluster's bus, 10,000 above it, is free, too."""
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            for each in (port, port + 10_000):
                socket.create_server(("127.0.0.1", each)).close()
        except OSError:
            continue
        return port


class Cluster:
    def __init__(self, binary: Path) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.nodes = [RedisServer(binary, *options, port=port_with_bus()) for _ in range(3)]
        self.admins: list[Any] = []
        self.ids: list[str] = []

    def start(self) -> None:
        for node in self.nodes:
            node.start()
            self.admins.append(redis.Redis(port=node.port, decode_responses=True))
        for number, admin in enumerate(self.admins):
            share = range(number * SLOTS // 3, (number + 1) * SLOTS // 3)
            admin.execute_command("CLUSTER", "ADDSLOTS", *share)
            # Each node has an epoch of its own from the start.
            admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            self.ids.append(admin.execute_command("CLUSTER", "MYID"))
        for node in self.nodes[1:]:
            self.admins[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for admin in self.admins:

            def is_whole(admin: Any = admin) -> bool:
                info = str(admin.execute_command("CLUSTER", "INFO"))
                return "cluster_state:ok" in info and "cluster_known_nodes:3" in info

            while not is_whole():
                continue

    def close(self) -> None:
        for admin in self.admins:
            admin.close()
        for node in self.nodes:
            node.close()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def slot_of(self, key: str) -> int:
        slot: int = self.admins[0].execute_command("CLUSTER", "KEYSLOT", key)
        return slot

    async def move(self, slot: int, *, pause: Callable[[], Any]) -> None:
        """Move a slot to another node, key by key, as ``redis-cli --cluster reshard`` does.

        Nodes tell each other by gossip who has a slot. One that is moved again before all of them
        know may go back to who had it, so this waits until they do.
        """
        owner = self._owners(slot)[0]
        target = (owner + 1) % 3
        source, taker = self.admins[owner], self.admins[target]
        taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[owner])
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target])
        await pause()
        while keys := source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            port = self.nodes[target].port
            source.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
            await pause()
        for admin in (taker, source, self.admins[(owner + 2) % 3]):
            admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target])
            await pause()
        await until(lambda: self._owners(slot) == [target] * 3)

    def _owners(self, slot: int) -> list[int]:
        """Return who has a slot, as each of the nodes says; -1 where it does not know."""
        numbers = {node.port: number for number, node in enumerate(self.nodes)}
        owners = []
        for admin in self.admins:
            ranges = admin.execute_command("CLUSTER", "SLOTS")
            ports = [port for start, stop, (_, port, *_), *_ in ranges if start <= slot <= stop]
            owners.append(numbers[ports[0]] if ports else -1)
        return owners


@pytest.fixture(scope="session")
def cluster(binary: Path) -> Iterator[Cluster]:
    cluster = Cluster(binary)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.mark.parametrize("seeds", ["all", "one, which says that it is a cluster's"])
async def test_a_redis_store_goes_on_while_its_slot_moves_in_a_cluster(
    cluster: Cluster, seeds: str
) -> None:
    url = cluster.url if seeds == "all" else cluster.nodes[0].url
    config = RedisStreamsConfig(
        url=url, system_id=uuid.uuid4().hex, retry_for=60.0, max_backoff=0.05
    )
    slot = cluster.slot_of(config.keys.meta)
    assert {cluster.slot_of(key) for key in config.keys.everything} == {slot}
    written = 0
    is_over = False

    async with ActorSystem(audit_interval=None) as system:
        store = RedisStreamsPersistence(config)
        ref = system.spawn(PersistenceActor, store)

        async def write() -> None:
            nonlocal written
            while not is_over:
                appended = await ref.ask(Append(a_record(written)))
                written += 1
                assert appended.first_seq == written

        async def pause() -> None:
            # While a slot moves the writer has to wait; it is given the time to find that out.
            for _ in range(20):
                await anyio.lowlevel.checkpoint()

        async def ten_more() -> None:
            enough = written + 10
            await until(lambda: written >= enough)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            for _ in range(3):
                await ten_more()
                await cluster.move(slot, pause=pause)
            await ten_more()
            is_over = True
        assert [without_seq(r) for r in await everything(store)] == list(
            map(a_record, range(written))
        )
        assert (await store.scan()).is_clean


async def test_a_redis_store_reads_recovers_follows_and_consumes_on_a_cluster(
    cluster: Cluster,
) -> None:
    config = RedisStreamsConfig(url=cluster.url, system_id=uuid.uuid4().hex)
    async with RedisStreamsPersistence(config) as store:
        await store.append(*map(an_event, range(30)))
        assert [e.seq for e in await store.list_events(limit=3)] == [28, 29, 30]
        assert [e.seq for e in (await store.read("event", after=10, limit=2)).records] == [11, 12]
        assert (await store.recover()).records_kept == 30
        assert (await store.compact()).records_before == 30
        async for record in store.follow("event", after=28):
            if record.seq == 30:
                break
        async for delivery in store.consume("group", "one", after=28):
            await store.ack("group", delivery)
            if delivery.record.seq == 30:
                break
        assert await store.pending("group") == []


async def test_an_append_that_no_replica_of_a_cluster_confirms_is_removed(cluster: Cluster) -> None:
    """What waits for a confirmation waits on the connection that has written."""
    config = RedisStreamsConfig(
        url=cluster.url,
        system_id=uuid.uuid4().hex,
        acknowledge="replicas:1",
        acknowledge_timeout=0.05,
    )
    async with RedisStreamsPersistence(config) as store:
        with pytest.raises(Exception, match="0 of 1 replicas"):
            await store.append(an_event(0))
        assert await store.list_events() == []


async def test_a_redis_store_in_a_cluster_keeps_snapshots(cluster: Cluster) -> None:
    config = RedisStreamsConfig(url=cluster.url, system_id=uuid.uuid4().hex)
    async with RedisStreamsPersistence(config) as store:
        await fill(store, 5, 9)
        made = await store.store_id()
    async with RedisStreamsPersistence(config) as store, store.reader() as reader:
        assert await reader.store_id() == made
        assert await newest(reader) == await newest(store) == (9, 0)
        assert [each.revision for each in await listed(store)] == [5, 9]
        await snapshots_of(store.store).remove_snapshot("s/a", 9)
        assert await newest(reader) == (5, 0)


async def test_requests_reach_the_writer_of_a_store_on_a_cluster(cluster: Cluster) -> None:
    config = RedisStreamsConfig(url=cluster.url, system_id=uuid.uuid4().hex)
    async with RedisStreamsPersistence(config) as store, store.reader() as beside:
        await store.append(an_event(0))
        assert await beside.store.is_attended()
        request_id = uuid.uuid4().hex
        await beside.store.post(request_id, b"x")
        assert await store.store.posted() == [request_id]
        assert await store.store.take(request_id) == b"x"
        assert not await beside.store.withdraw(request_id)
        await store.store.answer(request_id, b"y")
        assert await beside.store.answered(request_id) == b"y"


async def test_a_redis_store_in_a_cluster_keeps_positions(cluster: Cluster) -> None:
    config = RedisStreamsConfig(url=cluster.url, system_id=uuid.uuid4().hex)
    async with RedisStreamsPersistence(config) as store, store.reader() as reader:
        assert await store.save_position("a", b"1", None)
        assert not await store.save_position("a", b"2", None)
        assert await reader.load_position("a") == b"1"
        assert await reader.list_positions() == ["a"]
        assert await store.remove_position("a", b"1")
        assert await reader.load_position("a") is None
