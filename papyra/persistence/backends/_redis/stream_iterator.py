"""An async iterator over a stream that outlives its server, and what following shares with it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Self, TypeVar

import anyio
import msgspec
from redis.backoff import ExponentialWithJitterBackoff

from papyra.exceptions import StoreError, StoreNotReady, StoreUnreachable
from papyra.persistence.backends._io.asyncio_bridge import AsyncioBridge
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.config import RedisStreamsConfig
from papyra.persistence.backends._redis.entry_format import RawEntry, record_of
from papyra.persistence.records import Kind, Record

__all__ = ("BLOCK", "COUNT", "Session", "StreamIterator", "blocking_for", "read_once")

logger = logging.getLogger("papyra")

ItemT = TypeVar("ItemT")

#: Seconds that a call waits for new entries, at most.
BLOCK = 1.0
#: Entries that one call returns, at most.
COUNT = 100


class Session(msgspec.Struct, frozen=True):
    """The parts of a backend that its iterators use."""

    client: RedisClient
    asyncio: AsyncioBridge
    #: raises `BackendClosed` when it is
    check_open: Callable[[], None]
    #: returns the positions that are in doubt
    in_doubt: Callable[[], range]
    #: returns the id of the store, or the empty string; on asyncio
    find_id: Callable[[], Awaitable[str]]


class StreamIterator(Generic[ItemT]):
    """An async iterator that waits for its server as long as it takes. It holds nothing open."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._config = session.client.config
        self._items: deque[ItemT] = deque()
        self._failures = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemT:
        while not self._items:
            self._session.check_open()
            try:
                await self._fetch()
            except (StoreUnreachable, StoreNotReady) as error:
                self._lost_touch()
                await self._wait(error)
            except BaseException:
                # Cancelled, most likely.
                self._lost_touch()
                raise
            else:
                self._failures = 0
        return self._items.popleft()

    async def _fetch(self) -> None:
        """Ask the server for more, and put it in `_items`."""
        raise NotImplementedError

    def _lost_touch(self) -> None:
        """Take into account that the last answer may have been lost."""

    async def _wait(self, error: StoreError) -> None:
        config = self._config
        if not self._failures:
            logger.warning("waiting for the server of %s: %s", config.keys.tag, error)
        backoff = ExponentialWithJitterBackoff(base=config.backoff, cap=config.max_backoff)
        await anyio.sleep(backoff.compute(min(self._failures, 30)))
        self._failures += 1

    def _readable(self, kind: Kind, raw: RawEntry) -> Record | None:
        record, _, wrong = record_of(raw, kind)
        if record is None and raw[1]:
            logger.warning(
                "%s: entry %s can't be read, and is left out: %s",
                self._session.client.keys.streams[kind],
                raw[0].decode(),
                wrong,
            )
        return record


async def read_once(
    client: RedisClient, call: Callable[[AnyClient], Awaitable[Any]]
) -> Sequence[RawEntry]:
    """Return the entries of one stream that a call reads, which is not tried again."""
    reply = await client.call(call, retry=False)
    if not reply:
        return ()
    key, entries = reply[0]
    return await client.with_bases(key.decode(), entries)


def blocking_for(config: RedisStreamsConfig, seconds: float) -> int:
    """Return for how many milliseconds a call waits; less than until it is given up."""
    return max(1, int(min(seconds, config.timeout / 2) * 1000))
