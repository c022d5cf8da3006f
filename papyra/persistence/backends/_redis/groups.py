"""For other programs: consumer groups, and following a stream as it grows."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Self, TypeVar

import anyio
import msgspec
import redis.exceptions
from redis.backoff import ExponentialWithJitterBackoff

from papyra.exceptions import StoreError, StoreNotReady, StoreUnreachable
from papyra.persistence.backends._asyncio import AsyncioHost
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.config import RedisStreamsConfig
from papyra.persistence.backends._redis.entries import RawEntry, id_of, record_of
from papyra.persistence.backends._redis.link import AnyClient, RedisLink
from papyra.persistence.records import KINDS, Kind, Record

__all__ = ("Consumer", "Delivery", "Follower", "Groups", "Pending", "Session", "deliveries_of")

logger = logging.getLogger("papyra")

ItemT = TypeVar("ItemT")

#: Seconds that a call waits for something new, at most.
BLOCK = 1.0
#: Records that one call brings.
COUNT = 100


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


class Groups:
    """What followers and consumer groups ask of the server. Runs on asyncio."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._keys = link.keys

    def key_of(self, kind: Kind) -> str:
        return self._keys.streams[kind]

    async def id_before(self, kind: Kind, after: int | None) -> str:
        """Return an id after which the records after a seq come; the last one for `None`."""
        if after == 0:
            await self._link.info()  # which knows the names
            return "0-0"
        found, is_first, _ = await self._begin(kind, after)
        ms, last = id_of(found)
        return f"{ms}-{last - is_first}"

    async def is_before(self, kind: Kind, position: str) -> bool:
        """Return whether the stream ends before an id that it has given."""
        _, _, end = await self._begin(kind, None)
        return bool(end) and id_of(end) < id_of(position.encode())

    async def _begin(self, kind: Kind, after: int | None) -> tuple[bytes, int, bytes]:
        number, seq = KINDS.index(kind) + 1, "" if after is None else after
        first, is_first, end = await self._link.run(scripts.BEGIN, self._keys.all, number, seq)
        return first, is_first, end

    async def read_after(self, kind: Kind, position: str, block: int) -> Sequence[RawEntry]:
        key = self._keys.streams[kind]
        return await self._once(
            lambda client: client.xread({key: position}, count=COUNT, block=block)
        )

    async def create(self, kind: Kind, group: str, after: int | None) -> None:
        start = await self.id_before(kind, after)
        key = self._keys.streams[kind]

        async def create(client: AnyClient) -> None:
            try:
                await client.xgroup_create(key, group, id=start, mkstream=True)
            except redis.exceptions.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

        await self._link.call(create)

    async def deliver(
        self, kind: Kind, group: str, consumer: str, start: str, block: int
    ) -> Sequence[RawEntry]:
        key = self._keys.streams[kind]
        return await self._once(
            lambda client: client.xreadgroup(
                group,
                consumer,
                {key: start},
                count=COUNT,
                block=block if start == ">" else None,
            )
        )

    async def ack(self, kind: Kind, group: str, ids: Sequence[str]) -> int:
        async def ack(client: AnyClient) -> int:
            return int(await client.xack(self._keys.streams[kind], group, *ids))

        return await self._link.call(ack)

    async def pending(self, kind: Kind, group: str, count: int) -> list[Pending]:
        async def look(client: AnyClient) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = await client.xpending_range(
                self._keys.streams[kind], group, "-", "+", count
            )
            return found

        return [
            Pending(
                each["message_id"].decode(),
                id_of(each["message_id"])[1],
                each["consumer"].decode(),
                each["time_since_delivered"] / 1000,
                each["times_delivered"],
            )
            for each in await self._link.call(look)
        ]

    async def claim(
        self, kind: Kind, group: str, consumer: str, min_idle: float, count: int
    ) -> list[RawEntry]:
        claimed: list[RawEntry] = []
        await self._link.info()
        key, cursor = self._keys.streams[kind], b"0-0"
        while len(claimed) < count:

            async def claim(
                client: AnyClient, start: bytes = cursor, wanted: int = count - len(claimed)
            ) -> list[Any]:
                found: list[Any] = await client.xautoclaim(
                    key, group, consumer, int(min_idle * 1000), start, wanted
                )
                return found

            cursor, entries, *_ = await self._link.call(claim)
            # What was deleted is none, or is not there, depending on the server's version.
            claimed += [entry for entry in entries if entry[0] is not None]
            if cursor == b"0-0":
                break
        return claimed

    async def _once(self, call: Callable[[AnyClient], Awaitable[Any]]) -> Sequence[RawEntry]:
        reply = await self._link.call(call, retry=False)
        entries: Sequence[RawEntry] = reply[0][1] if reply else ()
        return entries


class Session(msgspec.Struct, frozen=True):
    """What an iterator needs of the backend that it belongs to."""

    groups: Groups
    config: RedisStreamsConfig
    asyncio: AsyncioHost
    #: raises `BackendClosed` when it is
    check_open: Callable[[], None]


class _Patient(Generic[ItemT]):
    """An async iterator that waits for its server as long as it takes. It holds nothing open."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._groups = session.groups
        self._config = session.config
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

    def _block(self, seconds: float) -> int:
        """Return for how many milliseconds a call waits; less than until it is given up."""
        return max(1, int(min(seconds, self._config.timeout / 2) * 1000))

    def _readable(self, kind: Kind, raw: RawEntry) -> Record | None:
        record, _, wrong = record_of(raw, kind)
        if record is None and raw[1]:
            logger.warning(
                "%s: entry %s can't be read, and is left out: %s",
                self._groups.key_of(kind),
                raw[0].decode(),
                wrong,
            )
        return record


class Follower(_Patient[Record]):
    """The records after a seq, and then those to come."""

    def __init__(self, session: Session, kind: Kind, after: int | None) -> None:
        super().__init__(session)
        self._kind = kind
        self._after = after
        self._position: str | None = None
        #: the last one that was yielded
        self._seq = after or 0

    async def _fetch(self) -> None:
        kind, run = self._kind, self._session.asyncio.run
        if self._position is None:
            self._position = await run(self._groups.id_before, kind, self._after)
        raws = await run(self._groups.read_after, kind, self._position, self._block(BLOCK))
        if not raws and await run(self._groups.is_before, kind, self._position):
            self._say_lost(f"the stream ends before record {self._seq}")
            self._position = await run(self._groups.id_before, kind, self._seq)
        for raw in raws:
            self._position = raw[0].decode()
            record = self._readable(kind, raw)
            # Where the store ends before that position, what comes may be up to it, still.
            if record is not None and (record.seq or 0) > (self._after or 0):
                self._take(record)

    def _take(self, record: Record) -> None:
        seq = record.seq or 0
        if seq <= self._seq:
            self._say_lost(f"record {seq} came after record {self._seq}")
        self._seq = max(seq, self._seq)
        self._items.append(record)

    def _say_lost(self, detail: str) -> None:
        logger.error(
            "%s: the server has lost what was followed, or others have changed it: %s",
            self._groups.key_of(self._kind),
            detail,
        )


class Consumer(_Patient[Delivery]):
    """What one consumer of a group is to handle."""

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
        self._kind = kind
        self._group = group
        self._name = consumer
        self._after = after
        self._claim_after = claim_after
        self._rest = BLOCK if claim_after is None else claim_after / 4
        self._claim_at = 0.0
        self._is_created = False
        # First what was delivered to this consumer before, after the last that it knows of.
        self._position = "0"
        self._is_new = False

    async def _fetch(self) -> None:
        kind, group, run = self._kind, self._group, self._session.asyncio.run
        if not self._is_created:
            await run(self._groups.create, kind, group, self._after)
            self._is_created = True
        try:
            raws = await self._claim() or await self._deliver()
        except StoreError as error:
            if "NOGROUP" not in str(error):
                raise
            logger.warning("group %s is gone, and begins anew: %s", group, error)
            self._is_created, self._after = False, 0
            self._position, self._is_new = "0", False
            return
        for raw in raws:
            record, identifier = self._readable(kind, raw), raw[0].decode()
            if record is not None:
                self._items.append(Delivery(record, kind, identifier))
            else:
                await run(self._groups.ack, kind, group, [identifier])

    async def _claim(self) -> Sequence[RawEntry]:
        now = anyio.current_time()
        if self._claim_after is None or now < self._claim_at:
            return ()
        self._claim_at = now + self._rest
        return await self._session.asyncio.run(
            self._groups.claim, self._kind, self._group, self._name, self._claim_after, COUNT
        )

    async def _deliver(self) -> Sequence[RawEntry]:
        raws = await self._session.asyncio.run(
            self._groups.deliver,
            self._kind,
            self._group,
            self._name,
            ">" if self._is_new else self._position,
            self._block(min(BLOCK, self._rest)),
        )
        if raws:
            self._position = raws[-1][0].decode()
        else:
            self._is_new = True
        return raws

    def _lost_touch(self) -> None:
        # What was delivered with a lost answer is asked for once more.
        self._is_new = False


def deliveries_of(kind: Kind, raws: Sequence[RawEntry]) -> list[Delivery]:
    """Return what can be read of some entries."""
    records = [(record_of(raw, kind)[0], raw[0].decode()) for raw in raws]
    return [Delivery(record, kind, name) for record, name in records if record is not None]
