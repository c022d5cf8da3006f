"""The inbox of a store on Redis: a hash of requests, and a key for each answer."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import RedisCluster

from papyra.exceptions import StoreAccessDenied
from papyra.persistence.backends._redis.client import AnyClient, RedisClient, connection_name
from papyra.persistence.inbox import MAX_POSTED_BYTES

__all__ = ("RequestKeys",)

ResultT = TypeVar("ResultT")

_ID = re.compile(rb"[0-9a-f]{32}")

#: Seconds after the last request for which the hash is kept, and an answer.
KEPT_FOR = 3600


class RequestKeys:
    """Requests and answers beside the streams of one store. Runs on asyncio.

    No call is tried again: who has posted a request does not wait for that.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def post(self, request_id: str, data: bytes) -> None:
        """Leave a request."""

        async def post(client: AnyClient) -> None:
            await client.hset(self._requests, request_id, data)
            await client.expire(self._requests, KEPT_FOR)

        await self._call(post)

    async def posted(self, epoch: int) -> list[str]:
        """Return the ids of requests, if the writer is still that of this epoch."""

        async def look(client: AnyClient) -> list[str]:
            ids = [each for each in await client.hkeys(self._requests) if _ID.fullmatch(each)]
            # One that was fenced leaves them to who has taken over.
            if not ids or await client.hget(self._client.keys.meta, "epoch") != b"%d" % epoch:
                return []
            return sorted(each.decode() for each in ids)

        return await self._call(look)

    async def take(self, request_id: str) -> bytes | None:
        """Take a request; `None` if it is not there, and nothing for one that is too long."""

        async def take(client: AnyClient) -> bytes | None:
            is_short = await client.hstrlen(self._requests, request_id) <= MAX_POSTED_BYTES
            data = await client.hget(self._requests, request_id) if is_short else b""
            # It belongs to whoever removes it.
            return data if await client.hdel(self._requests, request_id) else None

        return await self._call(take)

    async def answer(self, request_id: str, data: bytes) -> None:
        """Leave an answer."""

        async def answer(client: AnyClient) -> None:
            await client.set(self._answer_to(request_id), data, ex=KEPT_FOR)

        await self._call(answer)

    async def answered(self, request_id: str) -> bytes | None:
        """Return an answer, and remove it; `None` if there is none yet."""

        async def look(client: AnyClient) -> bytes | None:
            data: bytes | None = await client.get(self._answer_to(request_id))
            if data is not None:
                await client.delete(self._answer_to(request_id))
            return data

        return await self._call(look)

    async def withdraw(self, request_id: str) -> bool:
        """Take a request back; return whether it was still there."""

        async def withdraw(client: AnyClient) -> bool:
            return bool(await client.hdel(self._requests, request_id))

        return await self._call(withdraw)

    async def is_attended(self) -> bool:
        """Return whether the writer that is noted is still connected, as far as the server tells.

        It does not tell everybody; and whoever names his connections himself is not found.
        """

        async def look(client: AnyClient) -> bool:
            meta, options = self._client.keys.meta, {}
            if isinstance(client, RedisCluster):
                options["target_nodes"] = client.get_node_from_key(meta)
            writer = await client.hget(meta, "writer") or b""
            name = connection_name(writer.decode(errors="replace"))
            return any(each.get("name") == name for each in await client.client_list(**options))

        try:
            return await self._call(look)
        except StoreAccessDenied:
            return False

    @property
    def _requests(self) -> str:
        return f"{self._client.keys.tag}:requests"

    def _answer_to(self, request_id: str) -> str:
        return f"{self._client.keys.tag}:answer:{request_id}"

    async def _call(self, operation: Callable[[AnyClient], Awaitable[ResultT]]) -> ResultT:
        return await self._client.call(operation, retry=False)
