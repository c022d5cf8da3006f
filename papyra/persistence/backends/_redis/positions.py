"""The positions of a store, which those who follow it keep in it: a hash beside the streams.

Each name is a field. One script compares and sets, as the writer and once, however often it is
called: a field without a name tells it which change was the last.
"""

from __future__ import annotations

from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.fenced_writer import Writer

__all__ = ("RedisPositions",)


class RedisPositions:
    """The positions of one store. Runs on asyncio."""

    def __init__(self, client: RedisClient, writer: Writer) -> None:
        self._client = client
        self._keys = client.keys
        self._writer = writer
        #: how many changes this process has asked for
        self._changes = 0

    async def load(self, name: str) -> bytes | None:
        """Return what a name has, or `None`."""

        async def fetch(client: AnyClient) -> bytes | None:
            value: bytes | None = await client.hget(self._keys.positions, name)
            return value

        return await self._client.call(fetch)

    async def change(self, name: str, wanted: bytes | None, expected: bytes | None) -> bool:
        """Set what a name has, or remove it, if it is as expected, as durably as an append."""
        self._changes += 1
        return await self._writer.change_beside(
            scripts.POSITION,
            [self._keys.meta, self._keys.positions],
            *(self._changes, name, _tagged(expected), _tagged(wanted)),
        )

    async def page(self, after: str | None, limit: int) -> list[str]:
        """Return up to `limit` names in the order of their bytes; it costs what all of them do."""

        async def fetch(client: AnyClient) -> list[bytes]:
            fields: list[bytes] = await client.hkeys(self._keys.positions)
            return fields

        last = (after or "").encode()
        fields = sorted(field for field in await self._client.call(fetch) if field > last)
        return [field.decode(errors="replace") for field in fields[:limit]]


def _tagged(data: bytes | None) -> bytes:
    return b"-" if data is None else b"=" + data
