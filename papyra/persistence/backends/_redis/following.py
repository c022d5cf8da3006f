"""Following a stream: the records after a position, and then those to come."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from papyra.persistence.backends._redis import scripts, stream_iterator
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.entry_format import RawEntry, id_of
from papyra.persistence.backends._redis.stream_iterator import Session, StreamIterator, read_once
from papyra.persistence.records import KINDS, Kind, Record

__all__ = ("Follower", "id_before")

logger = logging.getLogger("papyra")


class Follower(StreamIterator[Record]):
    """The records after a seq, and then those to come."""

    def __init__(self, session: Session, kind: Kind, after: int | None) -> None:
        super().__init__(session)
        self._kind = kind
        self._after = after
        self._position: str | None = None
        #: the last one that was yielded
        self._seq = after or 0

    async def _fetch(self) -> None:
        kind, client, run = self._kind, self._session.client, self._session.asyncio.run
        if self._position is None:
            self._position = await run(id_before, client, kind, self._after)
        raws = await run(
            _read_after, client, kind, self._position, self._block(stream_iterator.BLOCK)
        )
        if not raws and await run(_is_before, client, kind, self._position):
            self._log_loss(f"the stream ends before record {self._seq}")
            self._position = await run(id_before, client, kind, self._seq)
        for raw in raws:
            self._position = raw[0].decode()
            record = self._readable(kind, raw)
            # Where the store ends before that position, what comes may be up to it, still.
            if record is not None and (record.seq or 0) > (self._after or 0):
                self._take(record)

    def _take(self, record: Record) -> None:
        seq = record.seq or 0
        if seq <= self._seq:
            self._log_loss(f"record {seq} came after record {self._seq}")
        self._seq = max(seq, self._seq)
        self._items.append(record)

    def _log_loss(self, detail: str) -> None:
        logger.error(
            "%s: the server has lost what was followed, or others have changed it: %s",
            self._session.client.keys.streams[self._kind],
            detail,
        )


async def id_before(client: RedisClient, kind: Kind, after: int | None) -> str:
    """Return an id after which the records after a seq come; the last one for `None`."""
    if after == 0:
        await client.info()  # which knows the names
        return "0-0"
    found, is_first, _ = await _begin(client, kind, after)
    ms, last = id_of(found)
    return f"{ms}-{last - is_first}"


async def _is_before(client: RedisClient, kind: Kind, position: str) -> bool:
    """Return whether the stream ends before an id that it has given."""
    _, _, end = await _begin(client, kind, None)
    return bool(end) and id_of(end) < id_of(position.encode())


async def _begin(client: RedisClient, kind: Kind, after: int | None) -> tuple[bytes, int, bytes]:
    number, seq = KINDS.index(kind) + 1, "" if after is None else after
    first, is_first, end = await client.run(scripts.BEGIN, client.keys.all, number, seq)
    return first, is_first, end


async def _read_after(
    client: RedisClient, kind: Kind, position: str, block: int
) -> Sequence[RawEntry]:
    key = client.keys.streams[kind]
    return await read_once(
        client, lambda each: each.xread({key: position}, count=stream_iterator.COUNT, block=block)
    )
