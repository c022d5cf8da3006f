"""Following a store: what is in it from a position on, and then what comes, each record once.

The position is the only cursor. Commits of this process are a hint, and so is a poll's answer: what
is given out is what was read after the position, or what was committed right behind it. So nothing
is lost between reading to the end and waiting for more.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import anyio
import anyio.lowlevel
import msgspec

from papyra._cancellation import shield_methods_from_interrupts
from papyra._safe_repr import shown
from papyra._signal import signals_of_this_loop
from papyra.exceptions import (
    ActorStopped,
    BackendBusy,
    BackendClosed,
    InvalidRequest,
    MailboxClosed,
    StoreAccessDenied,
    StoreChanged,
    StoreError,
    StoreForked,
    StoreMoved,
    StoreReplaced,
    StoreWrongType,
    SystemNotRunning,
)
from papyra.message import ReplyT
from papyra.persistence.anchors import anchor_of
from papyra.persistence.messages import AllPage, Anchor, ReadAll, Request
from papyra.persistence.recent_commits import CommitFeed, RecentCommits
from papyra.persistence.records import (
    KINDS,
    Kind,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
    kind_of,
)

__all__ = (
    "CaughtUp",
    "Decode",
    "FellBehind",
    "Followed",
    "Item",
    "Received",
    "Selection",
    "Subscription",
)

logger = logging.getLogger("papyra")

#: Seconds between two looks at a store that others may write.
POLL_INTERVAL = 0.05
#: The same for the one that writes it, as far as it knows.
WRITER_POLL_INTERVAL = 1.0
#: Seconds between two checks of whether a store with nothing new is still the same.
CHECK_INTERVAL = 1.0
#: Seconds between two tries to read a store that fails, at first and at most.
RETRY_INTERVAL, LONGEST_RETRY_INTERVAL = 0.05, 1.0

#: How many commits are taken, at most, before others have their turn.
_CHECKPOINT_EVERY = 16

#: Seconds to the next try where another task uses the backend.
_BUSY_INTERVAL = 0.001

#: The names in the address of an entity: the system, the type, the id.
_ENTITY_NAMES = 3

#: What reading again would not mend.
_FINAL = (
    *(StoreReplaced, StoreMoved, StoreChanged, StoreForked),
    *(StoreWrongType, StoreAccessDenied),
)
#: What is raised once nobody is there who reads.
_ENDED = (ActorStopped, BackendClosed, MailboxClosed, SystemNotRunning)


def _log_waiting(error: StoreError) -> None:
    logger.warning("what is followed can't be read, and is tried again: %s", error)


class CaughtUp(NamedTuple):
    """Everything up to position `head` was given out; what follows is new."""

    head: int


class FellBehind(NamedTuple):
    """More was stored than this reader has taken: it reads pages again, after `position`."""

    position: int


class Received(NamedTuple):
    """An event, as an object of one of the classes that were asked for."""

    event: Any
    #: as it is stored
    record: PersistedEvent

    @property
    def seq(self) -> int:
        """The position of the record."""
        return self.record.seq or 0

    @property
    def actor(self) -> str:
        """The address of the actor that it has happened to."""
        return self.record.actor_address


Item: TypeAlias = Record | Received | CaughtUp | FellBehind

#: Returns the events of today that a stored one stands for.
Decode: TypeAlias = Callable[[PersistedEvent], Iterable[Any]]


class Followed(Protocol):
    """The part of a backend that a subscription needs."""

    async def execute(self, request: Request[ReplyT]) -> ReplyT:
        """Execute `request` and return the reply."""
        ...

    @property
    def commits(self) -> CommitFeed:
        """What tells of the commits of this process."""
        ...

    @property
    def poll_interval(self) -> float | None:
        """Seconds to the next look at the store; `None` to wait for a commit."""
        ...


class Selection(msgspec.Struct, frozen=True):
    """Which records somebody follows, and in which form. Raises `InvalidRequest`."""

    kinds: tuple[Kind, ...]
    #: the types of events; `None` for all of them
    types: frozenset[str] | None = None
    #: the address of an actor
    actor: str | None = None
    #: the type of entities
    entity: str | None = None
    decode: Decode | None = None

    @classmethod
    def of(
        cls,
        kinds: Iterable[Kind],
        types: Iterable[str] | None,
        actor: str | None,
        entity: str | None,
        decode: Decode | None,
    ) -> Selection:
        """Return what users select, who may give kinds and types as any iterable."""
        for name, values in (("kinds", kinds), ("types", () if types is None else types)):
            if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
                raise InvalidRequest(f"{name} are several, as in a tuple, not {shown(values)}")
        names = None if types is None else frozenset(types)
        return cls(tuple(kinds), names, actor, entity, decode)

    def __post_init__(self) -> None:
        for name in ("actor", "entity"):
            value = getattr(self, name)
            if value is not None and type(value) is not str:
                raise InvalidRequest(f"{name} is a string, not {shown(value)}")
        if self.types is not None and self.kinds != ("event",):
            raise InvalidRequest("types selects events, and no other kinds")
        if (self.actor, self.entity) != (None, None) and "audit" in self.kinds:
            raise InvalidRequest("an audit is of a system: leave out actor and entity, or audits")

    def request(self, after: int, anchor: Anchor | None, *, afresh: bool) -> ReadAll:
        """Return a request for those after a position. What it can't say, `selects` does."""
        (only,) = self.types if self.types is not None and len(self.types) == 1 else (None,)
        return ReadAll(after, self.kinds, only, self.actor, anchor, afresh)

    def selects(self, record: Record) -> bool:
        """Return whether a record is to be given out."""
        if kind_of(record) not in self.kinds:
            return False
        if isinstance(record, PersistedEvent):
            address = record.actor_address
            if self.types is not None and record.event_type not in self.types:
                return False
        elif isinstance(record, PersistedDeadLetter):
            address = record.target
        else:
            return True
        if self.actor is not None and address != self.actor:
            return False
        return self.entity is None or _entity_type(address) == self.entity

    def select_of_page(self, records: Iterable[Record]) -> Iterable[Record]:
        """Return those of a page that are to be given out: the request has selected most."""
        is_done = self.entity is None and (self.types is None or len(self.types) == 1)
        return records if is_done else filter(self.selects, records)

    def select(self, records: Iterable[Record]) -> Iterable[Record]:
        """Return those of some records that are to be given out."""
        if (self.types, self.actor, self.entity) == (None, None, None) and self.kinds == KINDS:
            return records
        return filter(self.selects, records)


def _entity_type(address: str) -> str | None:
    """Return the type of the entity at an address; `None` if it is another actor's."""
    names = address.split("/")
    return names[1] if len(names) == _ENTITY_NAMES else None


class Subscription:
    """Records in the order of their positions, each once; past ones, and those to come.

    An asynchronous context manager and iterator, for one task. Items are records, a `Received` for
    each event where classes were asked for, `CaughtUp` each time the end is reached, also of an
    empty store, and `FellBehind` when a reader that was at the end has to read pages again. It ends
    when the system or the backend that it reads stops.

    It is pulled: a slow reader costs nobody memory, and holds nobody up. A store that fails is
    tried again until it answers, at intervals of up to a second; each spell is logged. What can't
    get better by itself is raised: `StoreReplaced`, `StoreMoved`, `StoreAccessDenied`. What a
    process writes is given out once it is committed; what another one writes, up to 50 ms later, as
    soon as it is in the store: in a file that is before it is synced. Of all who wait for that with
    one backend, one looks.
    """

    def __init__(
        self,
        followed: Followed,
        selection: Selection,
        after: int = 0,
        *,
        waiting: Callable[[StoreError], None] | None = None,
    ) -> None:
        selection.request(after, None, afresh=False)  # which checks the position
        self._waiting = waiting or _log_waiting
        self._followed = followed
        self._selection = selection
        self._decode = selection.decode
        self._position = after
        #: what was read last: its place, or the record itself, and the id of the store, if known
        self._anchor: Anchor | None = None
        self._last: Record | None = None
        self._store_id: str | None = None
        #: whether a page is to be read, whatever was committed here
        self._is_due = False
        #: by the clock of the event loop
        self._check_at = 0.0
        self._items: deque[Item] = deque()
        self._has_caught_up = False
        self._recent: RecentCommits | None = None
        self._delay = 0.0
        self._fetched = 0
        #: what the next call is to raise
        self._error: Exception | None = None

    @property
    def position(self) -> int:
        """The position up to which everything was read, and what was selected given out or queued.

        It moves on over what is not selected. To go on another time, keep the `seq` of the last
        record handled, or this one right after a `CaughtUp`.
        """
        return self._position

    async def __aenter__(self) -> Self:
        shield_methods_from_interrupts(type(self))
        self._recent = self._followed.commits.follow(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._recent is not None:
            self._followed.commits.unfollow(self)
        self._recent = None

    def __aiter__(self) -> Self:
        return self

    async def batch(self, limit: int) -> list[Item]:
        """Wait for an item, and return it with those behind it that are at hand: `limit` at most.

        Raises `StopAsyncIteration` at the end. An event that can't be decoded is raised by the next
        call, if others are before it.
        """
        if type(limit) is not int or limit < 1:
            raise InvalidRequest(f"limit is a whole number from 1 on, not {shown(limit)}")
        found: list[Item] = []
        while not found or (self._items and len(found) < limit):
            if self._decode is None and self._items and self._error is None:
                take = self._items.popleft
                found += [take() for _ in range(min(limit - len(found), len(self._items)))]
                continue
            try:
                found.append(await anext(self))
            except Exception as error:
                if not found:
                    raise
                self._error = error
                break
        return found

    async def __anext__(self) -> Item:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        while True:
            if not self._items:
                await self._fill()
            item = self._items.popleft()
            if self._decode is None or not isinstance(item, PersistedEvent):
                return item
            # An event that can't be decoded is raised once: who goes on gets the next one.
            events = [Received(event, item) for event in self._decode(item)]
            self._items.extendleft(reversed(events))
            if events:
                return self._items.popleft()

    async def _fill(self) -> None:
        """Wait for something to be queued."""
        recent = self._recent
        if recent is None:
            raise RuntimeError("a subscription is used inside 'async with'")
        try:
            while not self._items:
                await self._fetch(recent)
        finally:
            recent.leave(self)  # whoever handles items, or has ended, looks for nobody

    async def _fetch(self, recent: RecentCommits) -> None:
        """Queue what comes next, if there is anything; else wait for it."""
        self._fetched += 1
        if self._fetched % _CHECKPOINT_EVERY == 0:  # what is at hand comes without waiting
            await anyio.lowlevel.checkpoint()
        changes = recent.changes
        records = None if self._is_due else recent.after(self._position)
        if records is None:
            is_end = await self._read_page(recent)
        elif records:
            self._last = records[-1]
            self._position = self._last.seq or 0
            self._items += self._selection.select(records)
            is_end = False
        else:
            is_end = True
        if not is_end:
            return
        if not self._has_caught_up:
            self._has_caught_up = True
            self._items.append(CaughtUp(self._position))
        elif not self._items:
            await self._wait(recent, changes)

    async def _read_page(self, recent: RecentCommits) -> bool:
        """Read a page, and return whether it goes to the end."""
        page = await self._attempt(recent)
        if page is None:
            return False
        recent.saw(page.head)
        if self._has_caught_up and page.next_after < page.head:
            self._has_caught_up = False
            self._items.append(FellBehind(self._position))
        self._position = page.next_after
        self._is_due = False
        if page.records:
            self._last, self._store_id = page.records[-1], page.store_id
            self._items += self._selection.select_of_page(page.records)
        return page.next_after == page.head

    async def _attempt(self, recent: RecentCommits) -> AllPage | None:
        """Return a page; or `None`, after a pause, if the store fails."""
        now = anyio.current_time()
        afresh = self._is_due and now >= self._check_at
        try:
            page = await self._followed.execute(
                self._selection.request(self._position, self._held(), afresh=afresh)
            )
            if afresh:
                self._check_at = now + CHECK_INTERVAL
        except _ENDED:
            raise StopAsyncIteration from None
        except BackendBusy:
            # Nobody hosts the backend, and another task uses it right now.
            await anyio.sleep(_BUSY_INTERVAL)
            return None
        except _FINAL:
            recent.forget_end()
            raise
        except StoreError as error:
            if recent.has_ended:
                raise StopAsyncIteration from None
            if not self._delay:
                self._waiting(error)
                recent.forget_commits()  # so that all who follow find out
            recent.leave(self)
            self._delay = min(2 * self._delay or RETRY_INTERVAL, LONGEST_RETRY_INTERVAL)
            await anyio.sleep(self._delay)
            return None
        if self._delay:
            self._delay = 0.0
            logger.info("what is followed can be read again, after position %d", self._position)
        return page

    def _held(self) -> Anchor | None:
        """Return what holds on to the last record that was read."""
        if self._last is not None:
            self._anchor, self._last = anchor_of(self._last, self._store_id), None
        return self._anchor

    async def _wait(self, recent: RecentCommits, changes: int) -> None:
        """Wait for a commit after so many changes, or until it is time to look.

        Of all who wait, one looks: what it finds, it tells the others.
        """
        if recent.has_ended:
            raise StopAsyncIteration
        signal = recent.next_commit(signals_of_this_loop(), changes, self)
        interval = self._followed.poll_interval
        try:
            if interval is None:
                await signal
            elif not recent.is_looker(self):
                await signal
                # Where nothing is known to have changed, it is up to this one from now on.
                self._is_due = recent.changes == changes and recent.is_looker(self)
            else:
                with anyio.move_on_after(interval) as scope:
                    await signal
                self._is_due = scope.cancelled_caught
        finally:
            recent.forget(signal)
