"""A server is killed in the middle of writing a transaction to its append-only file.

Redis, and Valkey before 9, leave out what is incomplete when they start, but keep its
commands in the file where the tear is within a command: there they run with the next transaction's
when the server starts once more. See ``loadAppendOnlyFile`` in Redis's ``aof.c``: where a file
ends within a command, it is cut behind the last whole one, and not before the ``MULTI``. Valkey 9
cuts it there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from papyra.exceptions import StoreUnreachable
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.records import Record
from papyra.persistence.retention import RetentionPolicy
from papyra.testing.conformance._fixtures import T0, a_record, an_event, everything, without_seq
from tests.conftest import event_loops
from tests.extent import some
from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

#: What an append of three records of different kinds writes: MULTI, three XADD, four HSET, EXEC.
COMMANDS = 9
#: In which of them it is torn: after one of the XADDs, after all of them, in the EXEC.
TORN = (2, 4, 8)
MULTI = b"*1\r\n$5\r\nMULTI\r\n"


@pytest.fixture
def logging_server(own_server: RedisServer) -> RedisServer:
    own_server.kill()
    own_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.start()
    return own_server


@pytest.fixture
def proxy(logging_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(logging_server.port) as proxy:
        proxy.marker = scripts.APPEND.sha.encode()
        yield proxy


def log_of(server: RedisServer) -> Path:
    """Return the file that it appends to."""
    places = [*server.directory.glob("appendonly*.aof"), *server.directory.glob("*/*.incr.aof")]
    (path,) = places
    return path


def keeps_what_was_torn(server: RedisServer) -> bool:
    """Return whether it has left an incomplete transaction in its file, for the next start."""
    data = log_of(server).read_bytes()
    kept = data.rfind(MULTI) > data.rfind(b"$4\r\nEXEC\r\n")
    assert kept or "valkey" in server.binary.name
    return kept


def tear(server: RedisServer, command: int, commands: int = COMMANDS) -> None:
    """Cut the file in the middle of a command of the last transaction in it, which has so many."""
    path = log_of(server)
    data = path.read_bytes()
    start = data.rindex(MULTI)
    starts = [start + match.start() for match in re.finditer(rb"\*\d+\r\n\$", data[start:])]
    assert len(starts) == commands
    end = (*starts, len(data))[command + 1]
    path.write_bytes(data[: (starts[command] + end) // 2])


@contextlib.asynccontextmanager
async def torn(
    server: RedisServer, proxy: Proxy, command: int, *, restored: bool = False, failures: int = 0
) -> AsyncIterator[RedisStreamsPersistence]:
    """Append two records, then three that fail, of which the server writes a part.

    Of those that are restored, it did not get the first tries, as many as there are `failures`.
    Leaving this starts the server once more: what was torn runs now.
    """
    config = RedisStreamsConfig(url=proxy.url, retry_for=0)
    async with RedisStreamsPersistence(config) as store:
        await store.append(a_record(0), a_record(1))
        for _ in range(failures):
            proxy.cuts.append(Cut("before"))
            with pytest.raises(StoreUnreachable):
                await store.restore(*placed(300, 5))
        proxy.cuts.append(Cut("after"))
        with pytest.raises(StoreUnreachable):
            if restored:
                await store.restore(*placed(300, 5))
            else:
                await store.append(*map(a_record, range(300, 303)))
        server.kill()
        tear(server, command)
        server.start()
        yield store
    server.kill()
    server.start()


def placed(number: int, first_seq: int) -> list[Record]:
    """Return three records with positions."""
    return [msgspec.structs.replace(a_record(number + i), seq=first_seq + i) for i in range(3)]


@pytest.mark.parametrize("command", some(TORN, every=2))
@pytest.mark.parametrize(
    "numbers",
    [range(400, 405), range(2, 4), range(300, 303)],
    ids=["later", "earlier", "the same"],
)
async def test_an_append_that_raised_does_not_come_back_from_a_torn_redis_log(
    logging_server: RedisServer, proxy: Proxy, command: int, numbers: range
) -> None:
    later = [*map(a_record, numbers)]
    async with torn(logging_server, proxy, command) as store:
        appended = await store.append(*later)
    async with RedisStreamsPersistence(RedisStreamsConfig(url=logging_server.url)) as store:
        records = await everything(store)
        expected = [a_record(0), a_record(1), *later]
        assert [without_seq(record) for record in records] == expected
        positions = range(appended.first_seq, appended.last_seq + 1)
        assert [record.seq for record in records] == [1, 2, *positions]
        assert (await store.scan()).is_clean
        assert (await store.append(a_record(9))).first_seq == appended.last_seq + 1


@pytest.mark.parametrize("command", some(TORN, every=2))
@pytest.mark.parametrize("number", [300, 3], ids=["the same", "others"])
@pytest.mark.parametrize("failures", [0, 1])
async def test_a_restore_repeated_after_a_torn_redis_log_keeps_its_positions(
    logging_server: RedisServer, proxy: Proxy, command: int, number: int, failures: int
) -> None:
    later = placed(number, 5)
    async with torn(logging_server, proxy, command, restored=True, failures=failures) as store:
        await store.restore(*later)
    async with RedisStreamsPersistence(RedisStreamsConfig(url=logging_server.url)) as store:
        first = [msgspec.structs.replace(a_record(i), seq=i + 1) for i in range(2)]
        assert await everything(store) == [*first, *later]
        assert (await store.scan()).is_clean


async def write_and_forget(
    server: RedisServer, proxy: Proxy, command: int, *batches: Sequence[Record]
) -> tuple[RedisStreamsConfig, bool]:
    """Append the second batch, which fails and is torn, and the third, with another writer.

    Nobody tells that one of the second. Return whether it comes back, too.
    """
    first, second, third = batches
    store = RedisStreamsPersistence(RedisStreamsConfig(url=proxy.url, retry_for=0))
    await store.append(*first)
    proxy.cuts.append(Cut("after"))
    with pytest.raises(StoreUnreachable):
        await store.append(*second)
    server.kill()
    with contextlib.suppress(StoreUnreachable):  # to sync, where the server knows that
        await store.aclose()
    tear(server, command, commands=9 if len(set(map(type, second))) > 1 else 6)
    server.start()
    comes_back = keeps_what_was_torn(server)
    config = RedisStreamsConfig(url=server.url)
    async with RedisStreamsPersistence(config) as store:
        await store.append(*third)
    server.kill()
    server.start()
    return config, comes_back


@pytest.mark.parametrize("command", some([2, 3, 4], every=2))
@pytest.mark.parametrize("count", some([1, 3, 5], every=2))
@pytest.mark.parametrize("first", [a_record(1), an_event(0)], ids=["none before", "one before"])
async def test_a_recovery_removes_a_batch_that_comes_back_from_a_torn_redis_log(
    logging_server: RedisServer, proxy: Proxy, command: int, count: int, first: Record
) -> None:
    """Who writes next does not know of it: it comes back, and a recovery removes it."""
    given_up = [*map(an_event, range(300, 303))]
    later = [*map(an_event, range(400, 400 + count))]
    batches = [first], given_up, later
    config, comes_back = await write_and_forget(logging_server, proxy, command, *batches)
    expected = [first, *later]
    async with RedisStreamsPersistence(config) as store:
        if not comes_back:
            assert (await store.scan()).is_clean
            assert [without_seq(record) for record in await everything(store)] == expected
            return
        if count >= command - 1:
            # Others have all its positions: nobody sees it.
            assert [without_seq(record) for record in await everything(store)] == expected
            page = await store.read("event", after=1)
            assert [without_seq(record) for record in page.records] == later
        report = await store.scan()
        assert report.records_scanned == len(expected)
        ids = [anomaly.entry for anomaly in report.anomalies]
        assert ids == [f"{(T0 + 300 + i) * 1000:.0f}-{2 + i}" for i in range(command - 1)]
        assert {anomaly.kind for anomaly in report.anomalies} == {"duplicate"}
        recovery = await store.recover()
        assert (recovery.records_removed, recovery.records_kept) == (command - 1, len(expected))
        assert [without_seq(record) for record in await everything(store)] == expected


async def test_a_recovery_removes_a_batch_that_a_torn_redis_log_brings_back_after_a_gap(
    logging_server: RedisServer, proxy: Proxy
) -> None:
    given_up, later = [*map(an_event, range(300, 303))], [*map(an_event, range(400, 403))]
    config = RedisStreamsConfig(url=logging_server.url)
    async with RedisStreamsPersistence(config) as store:
        await store.append(an_event(0), an_event(1))
        key = config.keys.streams["event"]
        logging_server.cli("XDEL", key, f"{(T0 + 1) * 1000:.0f}-2")
        assert (await store.recover()).records_kept == 1
    await write_and_forget(logging_server, proxy, 4, [a_record(1)], given_up, later)
    async with RedisStreamsPersistence(config) as store:
        await store.recover()
        numbers = [event.payload["n"] for event in await store.list_events()]
        assert numbers == [0, 400, 401, 402]
        assert (await store.scan()).is_clean


async def test_a_recovery_after_a_torn_redis_log_leaves_no_position_twice(
    logging_server: RedisServer, proxy: Proxy
) -> None:
    """What came back in streams in which nothing was written since counts as there, or not."""
    later = [*map(an_event, range(400, 402))]
    config, comes_back = await write_and_forget(
        logging_server, proxy, 6, [a_record(0)], [*map(a_record, range(300, 303))], later
    )
    async with RedisStreamsPersistence(config) as store:
        assert (await store.scan()).is_clean is not comes_back
        assert (await store.recover()).scan.is_clean
        found = await everything(store)
        assert [without_seq(record) for record in found if record.seq in {2, 3}] == later
        seqs = [record.seq or 0 for record in found]
        assert seqs == sorted(set(seqs))


async def test_a_redis_server_killed_after_a_failed_restore_gives_no_position_twice(
    logging_server: RedisServer, proxy: Proxy
) -> None:
    """Even where the streams do not show the last one, and the backend is opened anew."""
    store = RedisStreamsPersistence(RedisStreamsConfig(url=proxy.url, retry_for=0))
    async with store:
        await store.append(*map(a_record, range(10)))
        await store.compact(RetentionPolicy(max_age_seconds=1.0))
        assert await everything(store) == []
        proxy.cuts.append(Cut("before"))
        with pytest.raises(StoreUnreachable):
            await store.restore(*placed(300, 20))
        logging_server.kill()
        with contextlib.suppress(StoreUnreachable):
            await store.aclose()
    logging_server.start()
    async with store:
        assert (await store.append(a_record(11))).first_seq == 11
