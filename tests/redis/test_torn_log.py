"""A server is killed in the middle of writing a transaction to its append-only file.

Redis and Valkey, whatever their version, leave out what is incomplete when they start, but keep its
commands in the file where the tear is within a command: there they run with the next transaction's
when the server starts once more. See ``loadAppendOnlyFile`` in Redis's ``aof.c``: where a file
ends within a command, it is cut behind the last whole one, and not before the ``MULTI``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from papyra.exceptions import StoreUnreachable
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.records import Record
from papyra.testing._redis_server import RedisServer
from papyra.testing.conformance._parts import T0, a_record, an_event, everything, without_seq
from tests.redis.proxy import Cut, Proxy

#: What an append of three records of different kinds writes: MULTI, three XADD, four HSET, EXEC.
COMMANDS = 9
#: In which of them it is torn: after one of the XADDs, after all of them, in the EXEC.
TORN = (2, 4, 8)


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


def tear(server: RedisServer, command: int, commands: int = COMMANDS) -> None:
    """Cut the file in the middle of a command of the last transaction in it, which has so many."""
    places = [*server.directory.glob("appendonly*.aof"), *server.directory.glob("*/*.incr.aof")]
    (path,) = places
    data = path.read_bytes()
    start = data.rindex(b"*1\r\n$5\r\nMULTI\r\n")
    starts = [start + match.start() for match in re.finditer(rb"\*\d+\r\n\$", data[start:])]
    assert len(starts) == commands
    end = (*starts, len(data))[command + 1]
    path.write_bytes(data[: (starts[command] + end) // 2])


@contextlib.asynccontextmanager
async def torn(
    server: RedisServer, proxy: Proxy, command: int, *, restored: bool = False
) -> AsyncIterator[RedisStreamsPersistence]:
    """Append two records, then three that fail, of which the server writes a part.

    Leaving this starts the server once more: what was torn runs now.
    """
    config = RedisStreamsConfig(url=proxy.url, retry_for=0)
    async with RedisStreamsPersistence(config) as store:
        await store.append(a_record(0), a_record(1))
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


@pytest.mark.parametrize("command", TORN)
@pytest.mark.parametrize(
    "numbers",
    [range(400, 405), range(2, 4), range(300, 303)],
    ids=["later", "earlier", "the same"],
)
async def test_what_raised_does_not_come_back(
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


@pytest.mark.parametrize("command", TORN)
@pytest.mark.parametrize("number", [300, 3], ids=["the same", "others"])
async def test_what_was_to_be_restored_keeps_its_positions(
    logging_server: RedisServer, proxy: Proxy, command: int, number: int
) -> None:
    later = placed(number, 5)
    async with torn(logging_server, proxy, command, restored=True) as store:
        await store.restore(*later)
    async with RedisStreamsPersistence(RedisStreamsConfig(url=logging_server.url)) as store:
        first = [msgspec.structs.replace(a_record(i), seq=i + 1) for i in range(2)]
        assert await everything(store) == [*first, *later]
        assert (await store.scan()).is_clean


@pytest.mark.parametrize("command", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 3, 5])
async def test_what_its_writer_did_not_survive_either_is_found(
    logging_server: RedisServer, proxy: Proxy, command: int, count: int
) -> None:
    """Who writes next does not know of it: it comes back, and a recovery removes it."""
    config = RedisStreamsConfig(url=proxy.url, retry_for=0)
    store = RedisStreamsPersistence(config)
    await store.append(an_event(0), an_event(1))
    proxy.cuts.append(Cut("after"))
    with pytest.raises(StoreUnreachable):
        await store.append(*map(an_event, range(300, 303)))
    logging_server.kill()
    with contextlib.suppress(StoreUnreachable):  # to sync, where the server knows that
        await store.aclose()
    tear(logging_server, command, commands=6)
    logging_server.start()
    config = RedisStreamsConfig(url=logging_server.url)
    async with RedisStreamsPersistence(config) as store:
        await store.append(*map(an_event, range(400, 400 + count)))
    logging_server.kill()
    logging_server.start()
    expected = [0, 1, *range(400, 400 + count)]
    async with RedisStreamsPersistence(config) as store:
        if count >= command - 1:
            # Others have all its positions: nobody sees it.
            assert [event.payload["n"] for event in await store.list_events()] == expected
            page = await store.read("event")
            assert [event.payload["n"] for event in page.records] == expected
        report = await store.scan()
        assert report.records_scanned == len(expected)
        ids = [anomaly.entry for anomaly in report.anomalies]
        assert ids == [f"{(T0 + 300 + i) * 1000:.0f}-{3 + i}" for i in range(command - 1)]
        assert {anomaly.kind for anomaly in report.anomalies} == {"duplicate"}
        recovery = await store.recover()
        assert (recovery.records_removed, recovery.records_kept) == (command - 1, len(expected))
        shown = [event.payload["n"] for event in await store.list_events()]
        assert shown == expected
