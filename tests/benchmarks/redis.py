"""The rows about Redis. They start a server of their own, or take the one at ``REDIS_URL``."""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import msgspec
from redis.asyncio import Redis

from papyra import ActorSystem
from papyra.persistence import Append, Flush, PersistenceActor
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing._redis_server import shared_server
from tests.benchmarks.table import Loop, Options, Result, Row, compare
from tests.benchmarks.workload import ask_from_tasks, build

__all__ = ("REDIS_ROWS",)

#: Adds what it is given, an entry each, under ids of the server's own.
ADD = """
for i = 1, #ARGV do redis.call('XADD', KEYS[1], '*', 'record', ARGV[i]) end
return #ARGV
"""
PREPARED = 500
PAGE = 1000


@functools.cache
def url() -> str:
    return os.environ.get("REDIS_URL") or shared_server().url


def new_config() -> RedisStreamsConfig:
    return RedisStreamsConfig(url=url(), prefix="benchmark", system_id=uuid.uuid4().hex)


# The references, all with redis-py itself; on asyncio, the only loop that it knows


def bare(function: Callable[..., Awaitable[float]], *args: object) -> float:
    return anyio.run(function, *args, backend="asyncio")


async def script_of_500(count: int) -> float:
    """Call a script that adds 500 prepared entries a call."""
    encode, key = msgspec.json.Encoder().encode, uuid.uuid4().hex
    prepared = [encode(build(number)) for number in range(PREPARED)]
    async with Redis.from_url(url()) as client:
        sha = await client.script_load(ADD)
        started = time.perf_counter()
        for _ in range(max(1, count // PREPARED)):
            await client.evalsha(sha, 1, key, *prepared)
        seconds = time.perf_counter() - started
        await client.delete(key)
    return seconds * count / (max(1, count // PREPARED) * PREPARED)


async def one_xadd_at_a_time(count: int) -> float:
    record, key = msgspec.json.encode(build(0)), uuid.uuid4().hex
    async with Redis.from_url(url()) as client:
        started = time.perf_counter()
        for _ in range(count):
            await client.xadd(key, {"record": record})
        seconds = time.perf_counter() - started
        await client.delete(key)
    return seconds


async def raw_pages(key: str) -> float:
    """Read a stream from end to end."""
    async with Redis.from_url(url()) as client:
        started, position = time.perf_counter(), b"-"
        while entries := cast("Any", await client.xrange(key, position, "+", PAGE)):
            position = b"(" + entries[-1][0]
        return time.perf_counter() - started


# The subjects


async def hosted(work: Callable[[Any], Awaitable[None]]) -> float:
    config = new_config()
    async with ActorSystem(audit_interval=None) as system:
        ref = system.spawn(PersistenceActor, RedisStreamsPersistence(config))
        await ref.ask(Append(build(0)))
        started = time.perf_counter()
        await work(ref)
        seconds = time.perf_counter() - started
    await anyio.to_thread.run_sync(forget, config)
    return seconds


def forget(config: RedisStreamsConfig) -> None:
    async def delete() -> float:
        async with Redis.from_url(url()) as client:
            await client.delete(*config.keys.all)
        return 0.0

    bare(delete)


async def timed_tells(count: int) -> float:
    async def work(ref: Any) -> None:
        for number in range(count):
            await ref.tell(Append(build(number)))
        await ref.ask(Flush())

    return await hosted(work)


async def timed_asks(count: int, tasks: int) -> float:
    async def work(ref: Any) -> None:
        await ask_from_tasks(ref, count, tasks)

    return await hosted(work)


async def fill(config: RedisStreamsConfig, count: int) -> None:
    async with RedisStreamsPersistence(config) as store:
        for first in range(0, count, 5000):
            await store.append(*map(build, range(first, min(first + 5000, count))))


@functools.cache
def filled(count: int) -> RedisStreamsConfig:
    config = new_config()
    anyio.run(fill, config, count)
    return config


async def scan(config: RedisStreamsConfig) -> float:
    async with RedisStreamsPersistence(config) as store:
        started = time.perf_counter()
        assert (await store.scan()).is_clean
        return time.perf_counter() - started


async def newest_ten(config: RedisStreamsConfig, count: int) -> float:
    async with RedisStreamsPersistence(config) as store:
        await store.list_events(limit=10)
        started = time.perf_counter()
        for _ in range(count):
            await store.list_events(limit=10)
        return time.perf_counter() - started


def tells(loop: Loop, options: Options) -> Result:
    count = options.count(100_000)
    subject = functools.partial(loop.run, timed_tells, count)
    return compare(options, count, lambda: bare(script_of_500, count), subject)


def asks(loop: Loop, options: Options) -> Result:
    count = options.count(2000)
    subject = functools.partial(loop.run, timed_asks, count, 1)
    return compare(options, count, lambda: bare(one_xadd_at_a_time, count), subject)


def many_asks(loop: Loop, options: Options) -> Result:
    count = options.count(1000)
    many = count * 32
    return compare(
        options,
        many,
        lambda: loop.run(timed_asks, count, 1) * many / count,
        lambda: loop.run(timed_asks, many, 256),
    )


def reading(loop: Loop, options: Options) -> Result:
    size, count = options.count(1_000_000), options.count(500)
    small = functools.partial(loop.run, newest_ten, filled(1000), count)
    large = functools.partial(loop.run, newest_ten, filled(size), count)
    # How many times as long: what took longer is the reference.
    return compare(options, count, large, small)


def scanning(loop: Loop, options: Options) -> Result:
    count = options.count(1_000_000)
    config = filled(count)
    key = config.keys.streams["event"]
    return compare(options, count, lambda: loop.run(scan, config), lambda: bare(raw_pages, key))


REDIS_ROWS = [
    Row("Redis, tell", "a script adds 500 prepared", 0.4, False, tells),
    Row("Redis, ask, one task", "redis-py, one XADD", 0.6, False, asks),
    Row("Redis, ask, 256 tasks", "ask, one task", 15, False, many_asks),
    Row("Redis, newest 10 of 1,000,000", "the same at 1,000", 1.5, True, reading),
    Row("Redis, scan 1,000,000", "pages of XRANGE", 2.5, True, scanning),
]
