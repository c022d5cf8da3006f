"""The connection is cut at every stage of a batch: what is stored is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import msgspec
import pytest
import redis

from papyra.exceptions import StoreFenced, StoreUnreachable
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing.conformance._fixtures import a_record, an_event, everything, without_seq
from tests.extent import some
from tests.persistence.backends.redis.conftest import MakeStore, until
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.redis_server import RedisServer

CUTS = [
    Cut("before"),
    *(Cut("in request", at) for at in (1, 90, 400)),
    Cut("after"),
    *(Cut("in reply", at) for at in (1, 5, 12)),
    Cut("late"),
]


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def through(proxy: Proxy, config: RedisStreamsConfig, **changes: Any) -> RedisStreamsPersistence:
    options = {"backoff": 0.001, "max_backoff": 0.01, "timeout": 10.0} | changes
    return RedisStreamsPersistence(msgspec.structs.replace(config, url=proxy.url, **options))


def numbers(records: list[Any]) -> list[int]:
    return [record.payload["n"] for record in records]


@pytest.mark.parametrize("cut", some(CUTS, every=3), ids=str)
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("script", [scripts.APPEND, scripts.CLAIM], ids=["append", "claim"])
async def test_a_batch_is_stored_once_wherever_the_connection_is_cut(
    proxy: Proxy,
    config: RedisStreamsConfig,
    make: MakeStore,
    cut: Cut,
    size: int,
    script: scripts.Script,
) -> None:
    proxy.marker = script.sha.encode()
    async with through(proxy, config) as store:
        if script is scripts.APPEND:
            await store.append(a_record(0))
        first = store.last_seq
        proxy.cuts.append(cut)
        appended = await store.append(*map(a_record, range(first, first + size)))
        assert not proxy.cuts
        assert (appended.first_seq, appended.last_seq) == (first + 1, first + size)
        if cut.place == "late":
            # In the end the first copy arrives, too, and is known already.
            assert b"ok" in proxy.release()
        await store.append(a_record(first + size))
    async with make() as store:
        records = await everything(store)
        assert [without_seq(record) for record in records] == list(
            map(a_record, range(first + size + 1))
        )
        assert [record.seq for record in records] == list(range(1, first + size + 2))
        assert (await store.scan()).is_clean


@pytest.mark.parametrize("cut", some(CUTS, every=3), ids=str)
@pytest.mark.parametrize("size", [1, 7])
async def test_an_append_that_raised_at_a_cut_connection_is_not_stored_in_redis(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore, cut: Cut, size: int
) -> None:
    proxy.marker = scripts.APPEND.sha.encode()
    async with through(proxy, config, retry_for=0) as store:
        await store.append(a_record(0))
        proxy.cuts.append(cut)
        with pytest.raises(StoreUnreachable):
            await store.append(*map(a_record, range(100, 100 + size)))
        # Neither shown, ...
        assert numbers(await everything(store)) == [0]
        # ... nor there, once the store has been written again, ...
        appended = await store.append(a_record(1), a_record(2))
        assert numbers(await everything(store)) == [0, 1, 2]
        if cut.place == "late":
            # ... nor when it arrives after all.
            assert b"fenced" in proxy.release()
        # Its positions stay unused, whether it was stored or not.
        assert appended.first_seq == 2 + size
    async with make() as store:
        records = await everything(store)
        assert numbers(records) == [0, 1, 2]
        assert [r.seq for r in records] == [1, appended.first_seq, appended.last_seq]
        assert (await store.scan()).is_clean
        assert (await store.append(a_record(3))).first_seq == appended.last_seq + 1


async def test_followers_and_consumers_do_not_see_records_of_a_failed_redis_append(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore
) -> None:
    """What did not arrive is added and removed at once, in front of those who wait."""
    proxy.marker = scripts.APPEND.sha.encode()
    followed: list[int] = []
    consumed: list[int] = []
    async with through(proxy, config, retry_for=0) as store, make() as other:
        await store.append(an_event(0))

        async def follow() -> None:
            async for event in other.follow():
                followed.append(event.payload["n"])  # noqa: PERF401 - each as it comes

        async def consume() -> None:
            async for delivery in other.consume("group", "one"):
                await other.ack("group", delivery)
                consumed.append(delivery.record.payload["n"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            tasks.start_soon(consume)
            for number in range(1, 6):
                await until(lambda: len(followed) == len(consumed) == number)  # noqa: B023
                proxy.cuts.append(Cut("before"))
                with pytest.raises(StoreUnreachable):
                    await store.append(an_event(100), an_event(101))
                await store.append(an_event(number))
            await until(lambda: len(followed) == len(consumed) == 6)
            tasks.cancel_scope.cancel()
        assert followed == consumed == [*range(6)]
        assert await other.pending("group") == []
        assert (await store.scan()).is_clean


async def test_closing_a_redis_store_removes_its_in_doubt_batch(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore
) -> None:
    proxy.marker = scripts.APPEND.sha.encode()
    async with through(proxy, config, retry_for=0) as store:
        await store.append(a_record(0))
        proxy.cuts.append(Cut("after"))
        with pytest.raises(StoreUnreachable):
            await store.append(a_record(1))
    async with make() as store:
        assert numbers(await everything(store)) == [0]


@pytest.mark.parametrize("size", [1, 7])
async def test_an_in_doubt_batch_is_removed_even_after_another_redis_writer_took_over(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore, size: int
) -> None:
    """The one who failed knows alone that it has raised, and says so when it gets through."""
    proxy.marker = scripts.APPEND.sha.encode()
    store = through(proxy, config, retry_for=0)
    await store.append(a_record(0))
    proxy.cuts.append(Cut("after"))
    with pytest.raises(StoreUnreachable):
        await store.append(*map(a_record, range(100, 100 + size)))
    async with make() as other:
        await other.append(a_record(1))
        await store.aclose()
        assert numbers(await everything(other)) == [0, 1]
        assert (await other.append(a_record(2))).first_seq == 3 + size
        assert (await other.scan()).is_clean
    async with store:
        await store.append(a_record(3))
        assert numbers(await everything(store)) == [0, 1, 2, 3]
        assert (await store.scan()).is_clean


@pytest.mark.parametrize("verb", ["append", "scan", "recover", "compact"])
async def test_any_next_call_of_a_fenced_redis_writer_removes_its_in_doubt_batch(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore, verb: str
) -> None:
    proxy.marker = scripts.APPEND.sha.encode()
    async with through(proxy, config, retry_for=0) as store, make() as other:
        await store.append(a_record(0))
        proxy.cuts.append(Cut("after"))
        with pytest.raises(StoreUnreachable):
            await store.append(a_record(100))
        await other.append(a_record(1))
        with pytest.raises(StoreFenced):
            await (store.append(a_record(101)) if verb == "append" else getattr(store, verb)())
        assert numbers(await everything(other)) == [0, 1]
        assert (await other.scan()).is_clean


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_redis_writer_fenced_while_it_retries_learns_whether_its_batch_is_stored(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore, size: int, is_stored: bool
) -> None:
    """Stored by the first try, a batch belongs to what the other one builds on."""
    proxy.marker = scripts.APPEND.sha.encode()
    rival = make()

    async def take_over() -> None:
        async with rival:
            await rival.append(a_record(50))

    def meanwhile(request: bytes) -> None:
        if proxy.marker in request and proxy.cuts_made and not rival.last_seq:
            anyio.run(take_over)

    async with through(proxy, config) as store:
        await store.append(a_record(0))
        batch = [*map(a_record, range(1, 1 + size))]
        if is_stored:
            proxy.cuts.append(Cut("after"))
            proxy.meanwhile = meanwhile
            assert (await store.append(*batch)).last_seq == 1 + size
        else:
            await take_over()
            proxy.cuts.append(Cut("before"))
            with pytest.raises(StoreFenced):
                await store.append(*batch)
        with pytest.raises(StoreFenced):
            await store.append(a_record(99))
        kept = range(size + 1) if is_stored else [0]
        assert numbers(await everything(store)) == [*kept, 50]
        assert (await store.scan()).is_clean


async def test_closing_a_redis_store_retries_the_removal_of_an_in_doubt_batch(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore
) -> None:
    async with through(proxy, config, retry_for=0) as store:
        await store.append(a_record(0))
        proxy.marker = scripts.APPEND.sha.encode()
        proxy.cuts.append(Cut("after"))
        with pytest.raises(StoreUnreachable):
            await store.append(a_record(1))
        proxy.marker = scripts.CLAIM.sha.encode()
        proxy.cuts += [Cut("before"), Cut("before")]
    assert not proxy.cuts
    async with make() as store:
        assert numbers(await everything(store)) == [0]


async def test_closing_a_redis_store_logs_an_in_doubt_batch_it_could_not_remove(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with through(proxy, config, retry_for=0) as store:
        await store.append(a_record(0))
        proxy.marker = scripts.APPEND.sha.encode()
        proxy.cuts.append(Cut("after"))
        with pytest.raises(StoreUnreachable):
            await store.append(a_record(1), a_record(2))
        proxy.marker = b""
        proxy.cuts += [Cut("before")] * 9
    assert "the append of the records 2 to 3 has failed" in caplog.text


async def test_a_removed_in_doubt_batch_does_not_come_back_with_a_promoted_replica(
    server: RedisServer, proxy: Proxy, config: RedisStreamsConfig
) -> None:
    """That was promoted, and had the batch, and not yet that it was taken back."""
    proxy.marker = scripts.APPEND.sha.encode()
    keys = [config.keys.meta, *config.keys.streams.values()]
    async with through(proxy, config, retry_for=0) as store:
        await store.append(*map(a_record, range(3)))
        proxy.cuts.append(Cut("after"))
        with pytest.raises(StoreUnreachable):
            await store.append(*map(a_record, range(100, 105)))
        with redis.Redis.from_url(server.url) as client:
            copies: list[Any] = [client.dump(key) for key in keys]
            await store.append(a_record(3))
            for key, copy in zip(keys, copies, strict=True):
                client.restore(key, 0, copy, replace=True)
        # What it had acknowledged since is lost, and said to be.
        assert (await store.append(a_record(4))).first_seq == 10
        assert numbers(await everything(store)) == [0, 1, 2, 4]
        await store.recover()
        assert (await store.append(a_record(5))).first_seq == 11
        assert (await store.scan()).is_clean


async def test_reads_and_scans_of_a_redis_store_go_on_after_a_cut_connection(
    proxy: Proxy, config: RedisStreamsConfig
) -> None:
    async with through(proxy, config) as store:
        await store.append(*map(a_record, range(30)))
        for verb in (store.list_events, store.scan, store.recover, store.compact, store.flush):
            for cut in (Cut("before"), Cut("after"), Cut("in reply", 5)):
                proxy.cuts.append(cut)
                await verb()
                assert not proxy.cuts or verb == store.flush
                proxy.cuts.clear()
        assert len(await everything(store)) == 30


@pytest.mark.parametrize("cut", some(CUTS, every=3), ids=str)
@pytest.mark.parametrize("reopen", [False, True], ids=["at once", "reopened"])
async def test_a_redis_restore_that_failed_at_a_cut_can_be_repeated_at_the_same_positions(
    proxy: Proxy, config: RedisStreamsConfig, make: MakeStore, cut: Cut, reopen: bool
) -> None:
    """The same records, at the same positions: taking them back has not used these up."""
    records = [msgspec.structs.replace(a_record(seq), seq=seq) for seq in (3, 4, 9, 10, 11)]
    proxy.marker = scripts.APPEND.sha.encode()
    store = through(proxy, config, retry_for=0.0)
    async with store:
        await store.restore(*records[:2])
        proxy.cuts.append(cut)
        with pytest.raises(StoreUnreachable):
            await store.restore(*records[2:])
        if reopen:
            await store.aclose()
            store = make()
            await store.flush()
        assert (await store.restore(*records[2:])).last_seq == 11
        if cut.place == "late":
            assert b"fenced" in proxy.release() or reopen
        assert await everything(store) == records
        assert (await store.append(a_record(12))).first_seq == 12
        assert (await store.scan()).is_clean
        await store.aclose()
