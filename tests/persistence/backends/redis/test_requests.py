"""The inbox of a store on Redis is read by its writer alone, and harms nobody."""

from __future__ import annotations

import logging
import time
import uuid

import pytest

from papyra.exceptions import StoreFenced, StoreWrongType
from papyra.persistence import Attend, EventSkipped, PersistedEvent, SkipEvent
from papyra.persistence.backends._redis.request_keys import KEPT_FOR
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.inbox import (
    MAX_POSTED_BYTES,
    PostedRequest,
    Refused,
    decode_answer,
    encode_posted,
)
from tests.persistence.backends.redis.conftest import MakeStore
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


def step(revision: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Stepped", revision, float(revision), revision=revision)


def new_id() -> str:
    return uuid.uuid4().hex


def a_request() -> bytes:
    return encode_posted(PostedRequest(SkipEvent("s/a", 1, "why"), time.time() + 600))


async def attend(store: RedisStreamsPersistence) -> int | None:
    return (await store.execute(Attend())).count


async def test_who_is_not_the_writer_leaves_requests_to_who_is(make: MakeStore) -> None:
    async with make() as old, make() as new, make().reader() as beside:
        await old.append(step(1))
        request_id = new_id()
        await new.append(step(2))  # takes over
        await beside.store.post(request_id, a_request())
        assert await attend(old) == 0
        assert await beside.store.answered(request_id) is None
        assert await attend(new) == 1
        answer = decode_answer(await beside.store.answered(request_id) or b"")
        assert answer == EventSkipped(3, "why", is_new=True)
        with pytest.raises(StoreFenced):
            await old.append(PersistedEvent("s", "s/b", "Stepped", 1, 1.0))


async def test_who_has_not_written_yet_takes_no_request(make: MakeStore) -> None:
    async with make() as writer:
        await writer.append(step(1))
    async with make() as idle, make().reader() as beside:
        request_id = new_id()
        await beside.store.post(request_id, a_request())
        assert await attend(idle) == 0
        assert await beside.store.withdraw(request_id)


async def test_requests_and_answers_expire(
    make: MakeStore, server: RedisServer, config: RedisStreamsConfig
) -> None:
    async with make() as store, make().reader() as beside:
        await store.append(step(1))
        first, second = new_id(), new_id()
        await beside.store.post(first, a_request())
        assert await attend(store) == 1
        await beside.store.post(second, a_request())
        tag = config.keys.tag
        for key in (f"{tag}:requests", f"{tag}:answer:{first}"):
            assert 0 < int(server.cli("TTL", key)) <= KEPT_FOR, key
        assert await beside.store.withdraw(second)


async def test_what_others_put_into_the_hash_harms_nobody(
    make: MakeStore, server: RedisServer, config: RedisStreamsConfig
) -> None:
    key = f"{config.keys.tag}:requests"
    async with make() as store, make().reader() as beside:
        await store.append(step(1))
        too_long, nonsense, good = sorted((new_id(), new_id(), new_id()))
        server.cli("HSET", key, "no id", "x", nonsense, "x", too_long, "x" * (MAX_POSTED_BYTES + 1))
        await beside.store.post(good, a_request())
        assert await attend(store) == 3
        for request_id in (too_long, nonsense):
            data = await beside.store.answered(request_id) or b""
            assert isinstance(decode_answer(data), Refused)
        data = await beside.store.answered(good) or b""
        assert decode_answer(data) == EventSkipped(2, "why", is_new=True)
        assert await attend(store) == 0


async def test_a_key_of_another_type_is_logged_once_and_writing_goes_on(
    make: MakeStore,
    server: RedisServer,
    config: RedisStreamsConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with make() as store, make().reader() as beside:
        await store.append(step(1))
        server.cli("SET", f"{config.keys.tag}:requests", "x")
        caplog.clear()
        for _ in range(3):
            assert await attend(store) is None
        lines = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert ["can't be seen" in each.getMessage() for each in lines] == [True]
        with pytest.raises(StoreWrongType):
            await beside.store.post(new_id(), a_request())
        await store.append(step(2))
        server.cli("DEL", f"{config.keys.tag}:requests")
        assert await attend(store) == 0


async def test_a_writer_is_there_as_long_as_it_is_connected(make: MakeStore) -> None:
    async with make().reader() as beside:
        assert not await beside.store.is_attended()
        async with make() as writer:
            assert not await beside.store.is_attended()
            await writer.append(step(1))
            assert await beside.store.is_attended()
        assert not await beside.store.is_attended()
