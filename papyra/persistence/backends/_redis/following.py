"""Following a stream: the records after a position, and then those to come.

It is the one subscription that does so, on a connection of its own: the server says when there is
something to be read.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self, cast

import anyio
import msgspec

from papyra.exceptions import (
    BackendClosed,
    StoreError,
    StoreNotReady,
    StoreReplaced,
    StoreUnreachable,
)
from papyra.message import ReplyT
from papyra.persistence.backends._redis import scripts, stream_iterator
from papyra.persistence.backends._redis.actor_index import ActorIndex
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.entry_format import RawEntry, id_of, record_of
from papyra.persistence.backends._redis.reader import Reader
from papyra.persistence.backends._redis.store_state import read_state
from papyra.persistence.backends._redis.stream_iterator import Session, blocking_for, read_once
from papyra.persistence.backends.all_kinds import read_all
from papyra.persistence.messages import AllPage, Page, Read, ReadAll, Request
from papyra.persistence.recent_commits import CommitFeed
from papyra.persistence.records import KINDS, Kind, Record
from papyra.persistence.retention import RetentionPolicy
from papyra.persistence.subscription import (
    CHECK_INTERVAL,
    CaughtUp,
    FellBehind,
    Item,
    Selection,
    Subscription,
)

__all__ = ("Follower", "id_before")

logger = logging.getLogger("papyra")

#: Items that are taken from the subscription at once, at most.
BATCH = 1_000
#: What a subscription says, beside the records.
_SIGNS = (CaughtUp, FellBehind)


class Follower:
    """The records after a seq, and then those to come. It holds nothing open."""

    def __init__(self, session: Session, kind: Kind, after: int | None) -> None:
        self._session = session
        self._after = after or 0
        self._stream = _Stream(session, kind, from_end=after is None)
        self._selection = Selection((kind,))
        self._items: Subscription | None = None
        self._found: deque[Item] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        while not self._found:
            try:
                found = await (await self._subscribed()).batch(BATCH)
            except StoreReplaced as error:
                self._begin_again(error)
            except StopAsyncIteration:
                raise BackendClosed("what was followed is closed") from None
            except _ForGood as error:
                raise error.error from error.error.__cause__
            else:
                self._found += [each for each in found if type(each) not in _SIGNS]
        return cast("Record", self._found.popleft())

    async def _subscribed(self) -> Subscription:
        if self._items is None:
            items = Subscription(self._stream, self._selection, self._after, waiting=self._wait)
            self._items = await items.__aenter__()  # nobody else tells it of commits
        return self._items

    def _begin_again(self, error: StoreReplaced) -> None:
        """Go on with what comes, though the records before it are not those that were read."""
        assert self._items is not None
        logger.error(
            "%s: the server has lost what was followed, or others have changed it: %s",
            *(self._stream.key, error),
        )
        self._after, self._items = min(self._items.position, self._stream.head), None

    def _wait(self, error: StoreError) -> None:
        tag = self._session.client.config.keys.tag
        logger.warning("waiting for the server of %s: %s", tag, error)


class _ForGood(Exception):
    """An error of the store that does not pass by itself."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(error)
        self.error = error


class _Stream:
    """One kind's stream as a subscription follows it, whatever else the backend is asked for."""

    #: the server is asked to wait
    poll_interval = 0.0

    def __init__(self, session: Session, kind: Kind, *, from_end: bool) -> None:
        self.commits = CommitFeed(_watch_nothing)
        #: the position up to which the store was read last
        self.head = 0
        self._session = session
        self._kind = kind
        self._reader = Reader(session.client, ActorIndex(session.client))
        #: whether what is there when it is read first is passed over
        self._begins_at_end = from_end
        #: whether the store goes as far as what was asked for at first
        self._reaches_start = False
        #: an id that was the last one before the end was read; `None` before that
        self._end: str | None = None
        #: when what was read last is looked at again, by the clock of the event loop
        self._check_at = 0.0
        self._store_id: str | None = None

    @property
    def key(self) -> str:
        """The name of the stream."""
        return self._session.client.keys.streams[self._kind]

    async def execute(self, request: Request[ReplyT]) -> ReplyT:
        """Return a page; at the end, wait a second at most for something to be on it."""
        assert isinstance(request, ReadAll)
        self._session.check_open()
        try:
            return cast("ReplyT", await self._page(request))
        except (StoreReplaced, StoreUnreachable, StoreNotReady):
            self._check_at = 0.0  # a server that was away may have lost something
            raise
        except StoreError as error:
            raise _ForGood(error) from error

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of this kind's records, without what is in doubt."""
        if request.before == self.head + 1:  # whoever asks leaves out what has come since
            request = msgspec.structs.replace(request, before=None)
        in_doubt = self._session.in_doubt()
        run = self._session.asyncio.run
        return await run(self._reader.page, request, policy, now, in_doubt)

    async def store_id(self) -> str:
        """Return the id of the store, or the empty string if there is none."""
        return await self._session.asyncio.run(self._session.find_id)

    async def _page(self, request: ReadAll) -> AllPage:
        run, client = self._session.asyncio.run, self._session.client
        if self._end is not None:
            raws = await run(_read_behind, client, self._kind, self._end)
            page = self._page_of(raws, request.after)
            if page is not None:
                return page
        state = await run(read_state, client)
        in_doubt, last = self._session.in_doubt(), state.last
        if in_doubt.start > request.after:
            last = min(last, in_doubt.start - 1)
        self.head = last
        if self._begins_at_end:
            self._begins_at_end = False
            return AllPage((), last, last)
        last_id = (state.streams[self._kind].last_id or b"0-0").decode()
        if not self._reaches_start and last < request.after:
            self._end = last_id
            return AllPage((), request.after, request.after)
        self._reaches_start = True
        now = anyio.current_time()
        if now < self._check_at:
            request = msgspec.structs.replace(request, anchor=None)
        else:
            self._check_at = now + CHECK_INTERVAL
        page = await read_all(self, request, last, is_writer=False)
        is_end = page.next_after == page.head
        self._end = last_id if is_end else None
        self._store_id = page.store_id or self._store_id
        return page

    def _page_of(self, raws: Sequence[RawEntry], after: int) -> AllPage | None:
        """Return the page that new entries are; `None` if they have to be looked at more closely.

        They are if it is time to look whether the store is the same, and if there are others among
        them than records that follow each other.
        """
        records: list[Record] = []
        in_doubt = self._session.in_doubt()
        for raw in raws:
            record = record_of(raw, self._kind)[0]
            seq = 0 if record is None else record.seq or 0
            if record is None or seq <= after or seq in in_doubt:
                return None
            records.append(record)
            after = seq
        if not records or anyio.current_time() >= self._check_at:
            return None
        self._end, self.head = raws[-1][0].decode(), after
        return AllPage(tuple(records), after, after, self._store_id)


def _watch_nothing(watcher: object) -> Callable[[], None]:
    """Watch no commits: the server tells of them, whoever has made them."""
    del watcher
    return lambda: None


async def id_before(client: RedisClient, kind: Kind, after: int | None) -> str:
    """Return an id after which the records after a seq come; the last one for `None`."""
    if after == 0:
        await client.info()  # which knows the names
        return "0-0"
    number, seq = KINDS.index(kind) + 1, "" if after is None else after
    found, is_first, _ = await client.run(scripts.BEGIN, client.keys.all, number, seq)
    ms, last = id_of(found)
    return f"{ms}-{last - is_first}"


async def _read_behind(client: RedisClient, kind: Kind, position: str) -> Sequence[RawEntry]:
    """Return the entries behind an id; wait for them, for so long at most."""
    key, block = client.keys.streams[kind], blocking_for(client.config, stream_iterator.BLOCK)
    return await read_once(
        client, lambda each: each.xread({key: position}, count=stream_iterator.COUNT, block=block)
    )
