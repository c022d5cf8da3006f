"""Consumer groups: each record goes to one consumer, until it is acknowledged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import anyio
import msgspec
import redis.exceptions

from papyra.exceptions import StoreError
from papyra.persistence.backends._redis import stream_iterator
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.entry_format import RawEntry, id_of, record_of
from papyra.persistence.backends._redis.following import id_before
from papyra.persistence.backends._redis.stream_iterator import (
    Session,
    StreamIterator,
    blocking_for,
    read_once,
)
from papyra.persistence.records import Kind, Record

__all__ = ("Consumer", "ConsumerGroup", "Delivery", "Pending", "deliveries_of")

logger = logging.getLogger("papyra")


class Delivery(msgspec.Struct, frozen=True):
    """A record that a consumer is to handle, and then to `ack`."""

    record: Record
    kind: Kind
    #: the entry's
    id: str


class Pending(msgspec.Struct, frozen=True):
    """A record that was delivered and not acknowledged yet."""

    id: str
    seq: int
    #: to whom
    consumer: str
    #: seconds since it was delivered last
    idle: float
    #: how often it was delivered
    deliveries: int


class ConsumerGroup:
    """The commands of one group of a stream's consumers. Runs on asyncio."""

    def __init__(self, client: RedisClient, kind: Kind, group: str) -> None:
        self._client = client
        self._kind = kind
        self.name = group

    @property
    def _key(self) -> str:
        return self._client.keys.streams[self._kind]

    async def create(self, after: int | None) -> None:
        """Create the group after a seq, or at the end for `None`, if it is not there yet."""
        start = await id_before(self._client, self._kind, after)

        async def create(client: AnyClient) -> None:
            try:
                await client.xgroup_create(self._key, self.name, id=start, mkstream=True)
            except redis.exceptions.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

        await self._client.call(create)

    async def deliver(self, consumer: str, start: str, block: int) -> Sequence[RawEntry]:
        """Return new entries for ``>``, waiting for some; or those delivered before, from an id."""
        wait = block if start == ">" else None
        return await read_once(
            self._client,
            lambda client: client.xreadgroup(
                self.name, consumer, {self._key: start}, count=stream_iterator.COUNT, block=wait
            ),
        )

    async def ack(self, ids: Sequence[str]) -> int:
        """Acknowledge entries; return how many of them were pending."""
        count = await self._client.call(lambda client: client.xack(self._key, self.name, *ids))
        return int(count)

    async def pending(self, count: int) -> list[Pending]:
        """Return up to `count` deliveries that are not acknowledged."""
        found: list[dict[str, Any]] = await self._client.call(
            lambda client: client.xpending_range(self._key, self.name, "-", "+", count)
        )
        return [
            Pending(
                each["message_id"].decode(),
                id_of(each["message_id"])[1],
                each["consumer"].decode(),
                each["time_since_delivered"] / 1000,
                each["times_delivered"],
            )
            for each in found
        ]

    async def claim(self, consumer: str, min_idle: float, count: int) -> list[RawEntry]:
        """Take over up to `count` entries that nobody has acknowledged for `min_idle` seconds."""
        claimed: list[RawEntry] = []
        await self._client.info()  # which knows the names
        cursor, idle = b"0-0", int(min_idle * 1000)
        while len(claimed) < count:
            take = (self._key, self.name, consumer, idle, cursor, count - len(claimed))

            async def claim(client: AnyClient, arguments: tuple[Any, ...] = take) -> list[Any]:
                found: list[Any] = await client.xautoclaim(*arguments)
                return found

            cursor, entries, *_ = await self._client.call(claim)
            # What was deleted is none, or is not there, depending on the server's version.
            there = [entry for entry in entries if entry[0] is not None]
            claimed += await self._client.with_bases(self._key, there)
            if cursor == b"0-0":
                break
        return claimed


class Consumer(StreamIterator[Delivery]):
    """The deliveries to one consumer of a group."""

    def __init__(
        self,
        session: Session,
        kind: Kind,
        group: str,
        consumer: str,
        after: int | None,
        claim_after: float | None,
    ) -> None:
        super().__init__(session)
        self._group = ConsumerGroup(session.client, kind, group)
        self._kind = kind
        self._name = consumer
        self._after = after
        self._claim_after = claim_after
        self._rest = stream_iterator.BLOCK if claim_after is None else claim_after / 4
        self._claim_at = 0.0
        self._is_created = False
        # First what was delivered to this consumer before, after the last that it knows of.
        self._position = "0"
        self._is_new = False

    async def _fetch(self) -> None:
        group, run = self._group, self._session.asyncio.run
        if not self._is_created:
            await run(group.create, self._after)
            self._is_created = True
        try:
            raws = await self._claim() or await self._deliver()
        except StoreError as error:
            if "NOGROUP" not in str(error):
                raise
            logger.warning("group %s is gone, and begins anew: %s", group.name, error)
            self._is_created, self._after = False, 0
            self._position, self._is_new = "0", False
            return
        for raw in raws:
            record, identifier = self._readable(self._kind, raw), raw[0].decode()
            if record is not None:
                self._items.append(Delivery(record, self._kind, identifier))
            else:
                await run(group.ack, [identifier])

    async def _claim(self) -> Sequence[RawEntry]:
        now = anyio.current_time()
        if self._claim_after is None or now < self._claim_at:
            return ()
        self._claim_at = now + self._rest
        return await self._session.asyncio.run(
            self._group.claim, self._name, self._claim_after, stream_iterator.COUNT
        )

    async def _deliver(self) -> Sequence[RawEntry]:
        start = ">" if self._is_new else self._position
        block = blocking_for(self._config, min(stream_iterator.BLOCK, self._rest))
        raws = await self._session.asyncio.run(self._group.deliver, self._name, start, block)
        if raws:
            self._position = raws[-1][0].decode()
        else:
            self._is_new = True
        return raws

    def _lost_touch(self) -> None:
        # What was delivered with a lost answer is asked for once more.
        self._is_new = False


def deliveries_of(kind: Kind, raws: Sequence[RawEntry]) -> list[Delivery]:
    """Return the deliveries of those entries that can be read."""
    records = [(record_of(raw, kind)[0], raw[0].decode()) for raw in raws]
    return [Delivery(record, kind, name) for record, name in records if record is not None]
