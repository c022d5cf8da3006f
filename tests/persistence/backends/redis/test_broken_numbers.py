"""Numbers that others have changed, in entries and in the store's own hash.

Whatever they are, a store can be scanned, which says what is wrong; recovered, which keeps every
record that can be read; and then written and read. ``PAPYRA_BROKEN=300`` makes it a long run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
import redis

from papyra.exceptions import PositionsExhausted, StoreError
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.records import KINDS
from papyra.testing.conformance._fixtures import a_record, an_event, everything
from tests.conftest import event_loops
from tests.extent import count
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

BROKEN = count("PAPYRA_BROKEN", 5, 10)

NUMBERS = [
    *("0", "1", "3", "4", "7", "12", "100", "-1", "+5", "007", " 5", "5 ", "1_0", "0x10"),
    *("1.5", "1e3", "1e15", "1E+15", "inf", "-inf", "Infinity", "nan", "-nan", "", "abc", "\0"),
    *("99999999999999", "100000000000000", "1000000000000000", "9007199254740993"),
    *("18446744073709551615", "18446744073709551616", "9" * 400, "5" * 70_000, "٣", "½"),
]
JSON = [
    *("", "nul", "{}", "[]", "5", "[5]", "[[1,2,3]]", "[[1,2,3,4,5]]", '[["a",2,3,4]]'),
    *("[[1e15,1e15,0,0]]", "[[5,1,0,0]]", "[[1,2,9,3]]", "[[1.5,2,0,1]]", "[[-1,2,0,1]]"),
    *("[[1,99999999999999,0,99999999999999]]", "[" * 2000, "[[1e999,1e999,0,0]]", "\xff"),
]

Client: TypeAlias = redis.Redis
Breakage: TypeAlias = Callable[[random.Random, Any, RedisStreamsConfig], str]


def a_field_of_the_hash(chance: random.Random, client: Any, config: RedisStreamsConfig) -> str:
    names = ["epoch", "last", "ms", "late", "format"]
    names += [f"{kind}:{name}" for kind in KINDS for name in ("n", "total")]
    names += [f"{kind}:trimmed_{name}" for kind in KINDS for name in ("n", "total")]
    name = chance.choice(names)
    # A version that is not known yet is nobody's to touch.
    values = [each for each in NUMBERS if name != "format" or not each.isdecimal()]
    client.hset(config.keys.meta, name, value := chance.choice(values))
    return f"{name} {value[:30]!r}"


def what_is_lost(chance: random.Random, client: Any, config: RedisStreamsConfig) -> str:
    kind = chance.choice(KINDS)
    client.hset(config.keys.meta, f"{kind}:lost", value := chance.choice(JSON))
    return f"{kind}:lost {value[:30]!r}"


def a_field_that_is_gone(chance: random.Random, client: Any, config: RedisStreamsConfig) -> str:
    names = sorted(name.decode() for name in client.hkeys(config.keys.meta))
    client.hdel(config.keys.meta, name := chance.choice(names)) if names else None
    return f"without {name}"


def an_entry(chance: random.Random, client: Any, config: RedisStreamsConfig) -> str:
    """Write a stream anew, with another number in one of its entries."""
    kind = chance.choice(KINDS)
    key = config.keys.streams[kind]
    entries = client.xrange(key)
    if not entries:
        return ""
    at, name = chance.randrange(len(entries)), chance.choice([b"n", b"total", b"both"])
    value = chance.choice(NUMBERS)
    for field in (b"n", b"total") if name == b"both" else (name,):
        entries[at][1][field] = value
    client.delete(key)
    for identifier, fields in entries:
        client.xadd(key, fields, identifier)
    return f"{kind} {at} {name!r} {value[:30]!r}"


def an_id_from_the_future(chance: random.Random, client: Any, config: RedisStreamsConfig) -> str:
    key = config.keys.streams[chance.choice(KINDS)]
    entries = client.xrevrange(key, count=1)
    fields = entries[0][1] if entries and chance.random() < 0.5 else {"a": "b"}
    ms = chance.choice([10**14 - 1, 10**14, 10**15, 2**63, 2**64 - 1])
    seq = chance.choice([0, 1, 7, 10**14, 2**64 - 1])
    try:
        client.xadd(key, fields, f"{ms}-{seq}")
        if chance.random() < 0.5:
            client.xdel(key, f"{ms}-{seq}")
    except redis.ResponseError:
        return ""
    return f"{key} {ms}-{seq}"


BREAKAGES: list[Breakage] = [
    a_field_of_the_hash,
    a_field_of_the_hash,
    what_is_lost,
    a_field_that_is_gone,
    an_entry,
    an_entry,
    an_id_from_the_future,
]


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    with redis.Redis.from_url(server.url) as client:
        yield client


async def test_a_redis_store_with_broken_numbers_can_be_recovered_and_written(
    client: Client, config: RedisStreamsConfig
) -> None:
    for seed in range(BROKEN):
        chance = random.Random(seed)
        mine = msgspec.structs.replace(config, system_id=f"{config.system_id}-{seed}")
        async with RedisStreamsPersistence(mine) as store:
            for count in (5, 6):
                record = chance.choice([a_record, an_event])
                await store.append(*(record(chance.randrange(99)) for _ in range(count)))
            if chance.random() < 0.3:
                await store.compact(RetentionPolicy(max_records=4))
            before = await everything(store)
        done = [chance.choice(BREAKAGES)(chance, client, mine) for _ in range(chance.randint(1, 3))]
        if seed % 2:
            before += await write(mine, before)
        await check(mine, before, f"{seed}: {done}")
        client.delete(*mine.keys.all)


#: Fields of the hash, each with values that only just fit, or don't, or are no text.
LIMITS = [
    (name, value)
    for name in (
        *("epoch", "last", "ms", "late", "settled"),
        *(f"{kind}:{of}" for kind in ("event", "dead_letter") for of in ("n", "total")),
    )
    for value in (b"99999999999999", b"99999999999998", b"\xff\0")
]


async def test_a_redis_store_written_with_a_broken_number_can_still_be_recovered(
    client: Client, config: RedisStreamsConfig
) -> None:
    """Nobody builds on numbers that can't be right, or waits for ever for others."""
    for number, (name, value) in enumerate(LIMITS):
        mine = msgspec.structs.replace(config, system_id=f"{config.system_id}-{number}")
        async with RedisStreamsPersistence(mine) as store:
            await store.append(*map(a_record, range(9)))
            before = await everything(store)
        client.hset(mine.keys.meta, name, value)
        with anyio.fail_after(60):
            before += await write(mine, before)
            await check(mine, before, f"{name} {value!r}")
        client.delete(*mine.keys.all)


async def write(config: RedisStreamsConfig, before: list[Any]) -> list[Any]:
    """Read and append as if nothing had happened: that is refused, or does no harm."""
    async with RedisStreamsPersistence(config) as store:
        assert [record for record in await everything(store) if record in before] == before
        refused = ""
        try:
            appended = await store.append(an_event(100))
        except StoreError as error:
            refused = str(error)
        assert "write failed" not in refused  # it has a name
        if refused:
            return []
        assert appended.first_seq > (before[-1].seq or 0)
        return [msgspec.structs.replace(an_event(100), seq=appended.last_seq)]


async def check(config: RedisStreamsConfig, before: list[Any], done: str) -> None:
    """Scan, recover, append and read."""
    async with RedisStreamsPersistence(config) as store:
        await store.scan()
        recovery = await store.recover()
        assert recovery.scan.is_clean, (done, recovery.scan)
        assert await everything(store) == before, done
        try:
            appended = await store.append(*map(a_record, range(3)))
        except PositionsExhausted:
            assert "9999999999999" in done  # which nobody can tell from a true one
            return
        assert appended.first_seq > (before[-1].seq or 0), done
    async with RedisStreamsPersistence(config) as store:
        assert len(await everything(store)) == len(before) + 3, done
        assert (await store.scan()).is_clean, done
        await store.compact(RetentionPolicy(max_records=2))
        assert (await store.scan()).is_clean, done
        assert (await store.append(an_event(1))).first_seq == appended.last_seq + 1
        assert (await store.summarize()).total_records, done
