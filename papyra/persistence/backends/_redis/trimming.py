"""The trimming of histories: bases are written first, and then what they stand for is removed.

A stream takes nothing in the place of an entry, so a base is kept beside it (`entry_format`) and
read in place of the event at its revision, which stays where it is. So no other entry changes, and
neither do the positions and the pending deliveries of consumer groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.actor_index import TRIES, ActorIndex, actor_key
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.entry_format import base_as_kept, id_of, read
from papyra.persistence.backends._redis.fenced_writer import Writer
from papyra.persistence.backends._redis.stream_scan import PAGE_BYTES
from papyra.persistence.backends._redis.thinning import Thinning
from papyra.persistence.backends.store import NewBase

__all__ = ("Removed", "Trimming")

#: Bases that one call of a script writes, and events that one looks at, at most.
BASES_AT_ONCE = 200
EVENTS_AT_ONCE = 1000


class Removed(msgspec.Struct):
    """The events that bases stand for."""

    count: int = 0
    #: of the records, encoded
    size: int = 0
    #: how many of them are hidden by the policy
    hidden: int = 0
    #: bytes of the events at whose places the bases are
    replaced: int = 0


class Trimming:
    """Has histories begin with bases. Runs on asyncio."""

    def __init__(
        self, client: RedisClient, writer: Writer, index: ActorIndex, thinning: Thinning
    ) -> None:
        self._client = client
        self._keys = client.keys
        self._writer = writer
        self._index = index
        self._thinning = thinning

    async def foresee(self, bases: Sequence[NewBase], first: str | None) -> Removed:
        """Return what `trim` would remove, of events up to the entry `first` or the end."""
        return await self._shorten(bases, first, "")

    async def trim(self, bases: Sequence[NewBase], first: str | None) -> Removed:
        """Write bases, confirmed as appends are, and remove what they stand for.

        Raises `StoreFenced`, and changes nothing more, once another writer has taken over.
        """
        removed = Removed()
        for part in _parts(bases):
            await self._write(part)
            more = await self._shorten(part, first, await self._writer.epoch_beside())
            removed = Removed(
                *(a + b for a, b in zip(_fields(removed), _fields(more), strict=True))
            )
        return removed

    async def _write(self, bases: Sequence[NewBase]) -> None:
        kept = [base_as_kept(base.seq, base.encoded) for base in bases]
        words = [
            word
            for base, value in zip(bases, kept, strict=True)
            for word in (actor_key(base.actor), base.seq, base.revision, value)
        ]
        status, *ids = await self._call(words)
        if status != b"ok":
            raise self._writer.refusal(status, ids)

        async def fetch(client: AnyClient) -> list[bytes | None]:
            values: list[bytes | None] = await client.hmget(self._keys.bases, ids)
            return values

        if await self._client.call(fetch) != kept:
            raise StoreError(
                f"{self._client.location}: a base that was written to {self._keys.bases} is not "
                "there; no event was removed"
            )

    async def _call(self, words: Sequence[Any]) -> list[Any]:
        """Have bases written, once the index is up to date and compactions have looked so far."""
        reply: list[Any] = []
        for _ in range(TRIES):
            epoch = await self._writer.epoch_beside()
            reply = await self._writer.run_confirmed(scripts.REBASE, (epoch, *words))
            if reply[0] == b"unindexed":
                await self._index.catch_up("event", "indexed")
            elif reply[0] == b"beyond":
                await self._thinning.pass_over(reply[1])
            else:
                break
        return reply

    async def _shorten(
        self, bases: Sequence[NewBase], first: str | None, epoch: int | str
    ) -> Removed:
        """Remove what bases stand for, some events at a time, or count it, without an epoch."""
        removed, number, cursor = Removed(), 1, ""
        while number:
            ahead = bases[number - 1 : number - 1 + BASES_AT_ONCE]
            words = [
                word for base in ahead for word in (actor_key(base.actor), base.seq, base.revision)
            ]
            status, *reply = await self._client.run(
                scripts.SHORTEN, self._keys.all, epoch, EVENTS_AT_ONCE, first or "", cursor, *words
            )
            if status == b"unindexed" and epoch == "":
                return await self._count(bases, first)
            if status == b"unindexed":
                await self._index.catch_up("event", "indexed")
                continue
            if status != b"ok":
                raise self._writer.refusal(status, reply)
            following, cursor, *counts = reply
            if following:
                number += following - 1
            else:
                number = number + len(ahead) if number + len(ahead) <= len(bases) else 0
            removed = Removed(*(a + b for a, b in zip(_fields(removed), counts, strict=True)))
        return removed

    async def _count(self, bases: Sequence[NewBase], first: str | None) -> Removed:
        """Count what bases stand for without the index, which a reader can't bring up to date."""
        removed, start = Removed(), "-"
        of_actors = {base.actor: base for base in bases}
        while page := await self._client.entries(self._keys.streams["event"], start, "+", 1000):
            for entry in filter(None, (read(raw)[0] for raw in page)):
                actor, revision = codec.concerned(entry.record)
                base = None if actor is None else of_actors.get(actor)
                if base is None or revision is None or revision > base.revision:
                    continue
                if entry.seq == base.seq:
                    removed.replaced += len(entry.record)
                elif revision < base.revision:
                    removed.count += 1
                    removed.size += len(entry.record)
                    removed.hidden += first is None or id_of(entry.id) < id_of(first.encode())
            start = f"({page[-1][0].decode()}"
        return removed


def _parts(bases: Sequence[NewBase]) -> Iterator[Sequence[NewBase]]:
    """Yield bases, some at a time."""
    part: list[NewBase] = []
    size = 0
    for base in bases:
        if part and (len(part) >= BASES_AT_ONCE or size + len(base.encoded) > PAGE_BYTES):
            yield part
            part, size = [], 0
        part.append(base)
        size += len(base.encoded)
    if part:
        yield part


def _fields(removed: Removed) -> tuple[int, ...]:
    return msgspec.structs.astuple(removed)
