"""A bounded queue with one consumer and many senders."""

from __future__ import annotations

from asyncio import InvalidStateError
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from itertools import islice, takewhile
from typing import Any, Generic, NamedTuple, TypeVar

from papyra._safe_repr import MEANT, shown
from papyra._signal import NewSignal, Signal, new_signal, wake
from papyra.clock import Clock
from papyra.exceptions import InvalidPolicy, MailboxClosed, MailboxFull

__all__ = ("Mailbox", "MailboxStatistics")

T = TypeVar("T")
D = TypeVar("D")

_NO_SENDERS: Any = ()

#: Messages up to which they are in a list. It takes 100 bytes, and a deque 760: there may be many
#: consumers, each with few messages at a time.
_FEW = 16


class MailboxStatistics(NamedTuple):
    """How full a mailbox is."""

    messages: int  #: messages waiting to be handled
    capacity: int  #: messages it takes before senders wait
    tasks_waiting_put: int  #: senders waiting for room
    closed: bool  #: whether it takes no more messages


class Mailbox(Generic[T]):
    """Messages in the order they were put, for one consumer.

    Not for use from several threads. The senders' queue and how it gives way to cancellation
    follow `anyio.streams.memory`, but for this: waiting senders are let in only when the mailbox is
    empty, and then as many as there is room for. So most of those find room for what they send
    next, and one task switch serves many messages.
    """

    __slots__ = (
        "_capacity",
        "_items",
        "_limit",
        "_new_signal",
        "_senders",
        "_wakeup",
        "closed",
    )

    def __init__(self, capacity: int, new_signal: NewSignal = new_signal) -> None:
        if type(capacity) is not int or capacity < 1:
            raise InvalidPolicy(
                f"a mailbox's capacity is a whole number greater than 0, not {shown(capacity)}"
            )
        self._capacity = capacity
        # How many it takes at this moment: none when it is closed, nor when senders wait, as nobody
        # may pass them even if there is room again. One comparison says it all.
        self._limit = capacity
        self._items: deque[T] | list[T] = []
        #: whether it takes no more messages
        self.closed = False
        self._new_signal = new_signal
        self._senders: OrderedDict[Signal, T] = _NO_SENDERS
        self._wakeup: Signal | None = None

    def __len__(self) -> int:
        return len(self._items)

    def holds_any(self) -> bool:
        """Return whether there is a message; a third of the time of `len`, called from Python."""
        return bool(self._items)

    @property
    def has_room(self) -> bool:
        """Whether it takes a message at this moment."""
        return len(self._items) < self._limit

    @property
    def is_awaited(self) -> bool:
        """Whether the consumer waits for a message."""
        return self._wakeup is not None

    def statistics(self) -> MailboxStatistics:
        """Return how full it is."""
        return MailboxStatistics(len(self._items), self._capacity, len(self._senders), self.closed)

    def put_nowait(self, item: T) -> None:
        """Add `item` at the end.

        Raises `MailboxFull` if there is no room or others wait for it, and `MailboxClosed`.
        """
        if len(self._items) >= self._limit:
            raise MailboxClosed if self.closed else MailboxFull
        if (wakeup := self._wakeup) is not None:
            # As `wake` does, without the call: each ask passes here.
            self._wakeup = None
            try:  # noqa: SIM105 - each ask passes here
                wakeup.set_result(None)
            except InvalidStateError:
                pass  # the task that waits was cancelled
        self._items.append(item)

    async def put(self, item: T) -> None:
        """Add `item` at the end, as soon as there is room; without a task switch if there is.

        Raises `MailboxClosed` if it is closed already; who waits when it closes still gets in. A
        caller that is cancelled while it waits has not put anything.
        """
        try:
            self.put_nowait(item)
        except MailboxFull:
            await self.queue_up(item)

    async def queue_up(self, item: T, admitted: Signal | None = None) -> None:
        """Add `item` once there is room, after `put_nowait` has said that there is none.

        `admitted` is set when there is, and a new signal where nobody else wants to know.
        """
        if admitted is None:
            admitted = self._new_signal()
        if self._senders is _NO_SENDERS:
            self._senders = OrderedDict()
        self._senders[admitted] = item
        self._limit = 0
        try:
            await admitted
        except BaseException:
            # Cancelled. If the item was let in at the same moment, it stays where it is.
            self._senders.pop(admitted, None)
            self._set_limit()
            raise

    def push(self, item: T) -> None:
        """Add `item` at the end, whether there is room or not; raises `MailboxClosed`."""
        if self.closed:
            raise MailboxClosed
        self.wake()
        self._items.append(item)

    def put_back(self, items: Sequence[T]) -> None:
        """Put `items`, which were taken, where they were: at the front."""
        self.wake()
        self._deque().extendleft(reversed(items))

    def pop(self, default: D) -> T | D:
        """Take the oldest message, or return `default` if there is none."""
        items = self._items
        if not items:
            return default
        if not isinstance(items, list):
            item = items.popleft()
        elif len(items) <= _FEW:
            item = items.pop(0)
        else:
            item = self._deque().popleft()
        if self._senders and not self._items:
            self._admit()
        return item

    def run(self, accepted: frozenset[type], limit: int) -> tuple[int, AbstractSet[type]]:
        """Return how many of the oldest messages, at most `limit`, are accepted, and their types.

        It ends with the first message of a type that is not accepted.
        """
        limit = min(limit, len(self._items))
        found: list[type] = []
        try:
            types = set(map(type, islice(self._items, limit)))
            if types <= accepted:
                return limit, types
            oldest = map(type, islice(self._items, limit))
            found.extend(takewhile(accepted.__contains__, oldest))
        except MEANT:
            raise
        except BaseException:  # noqa: BLE001 - a type that can't be hashed is not accepted
            return len(found), set(found)
        return len(found), set(found)

    def peek(self, count: int) -> Iterator[T]:
        """Iterate over the oldest messages, at most `count`, and leave them where they are."""
        return islice(self._items, count)

    def pop_run(self, count: int) -> list[T]:
        """Take the `count` oldest messages; raises `IndexError` if there are fewer."""
        if count == len(self._items):
            run = list(self._items)
            self._items.clear()
        else:
            items = self._deque()
            run = [items.popleft() for _ in range(count)]
        if self._senders and not self._items:
            self._admit()
        return run

    def drop(self, unwanted: Callable[[T], bool]) -> None:
        """Drop what it holds, and what waiting senders have, of which `unwanted` says so.

        Those senders must have been cancelled.
        """
        if self._senders:
            for admitted in [key for key, item in self._senders.items() if unwanted(item)]:
                del self._senders[admitted]
            self._set_limit()
        self.discard(unwanted)

    def discard(self, unwanted: Callable[[T], bool]) -> None:
        """Drop what it holds of which `unwanted` says so."""
        kept = [item for item in self._items if not unwanted(item)]
        if len(kept) < len(self._items):
            self._items = deque(kept)
            if not kept:
                self._admit()

    @property
    def idle(self) -> IdleSince | None:
        """Since when the consumer waits, where somebody wants to know."""
        noting = getattr(self._new_signal, "__self__", None)
        return noting if isinstance(noting, IdleSince) else None

    def note_idleness(self, clock: Clock) -> IdleSince:
        """Have it noted, from now on, since when the consumer waits."""
        return self.idle or IdleSince(self, clock)

    def wakeup(self) -> Signal | None:
        """Return the signal for the consumer to wait for, or `None` if it need not wait."""
        if self._items or self.closed:
            return None
        if not isinstance(self._items, list):
            self._items = []
        self._wakeup = self._new_signal()
        return self._wakeup

    async def wait(self) -> None:
        """Return when there may be something to do: a message, `close()` or `wake()`."""
        wakeup = self.wakeup()
        if wakeup is not None:
            await wakeup

    async def wait_closed(self) -> None:
        """Return when it has been closed."""
        while not self.closed:
            self._wakeup = self._new_signal()
            await self._wakeup

    def wake(self) -> None:
        """Make `wait` return."""
        if self._wakeup is not None:
            wake(self._wakeup)
            self._wakeup = None  # once is enough, however many messages follow

    def close(self) -> None:
        """Take no more messages. What it holds can still be taken, waiting senders' included."""
        self.closed = True
        self.wake()
        self._admit(everybody=True)

    def _deque(self) -> deque[T]:
        items = self._items
        if isinstance(items, list):
            items = self._items = deque(items)
        return items

    def _admit(self, everybody: bool = False) -> None:
        while self._senders and (everybody or len(self._items) < self._capacity):
            admitted, item = self._senders.popitem(last=False)
            self._items.append(item)
            wake(admitted)
        self._set_limit()

    def _set_limit(self) -> None:
        self._limit = 0 if self.closed or self._senders else self._capacity


def put_bringing(
    mailbox: Mailbox[Any],
    variable: ContextVar[Any],
    latest: list[Any],
    ask_type: Any,
    told: Callable[[Any, Any], object],
) -> Callable[[Any], None]:
    """Return what puts an item into `mailbox`, with a variable's value if it is set for the sender.

    An item of `ask_type` has it put into its `values`, and any other is what `told` makes of both.
    `latest` holds what the latest item has brought, as a value and as values: the next one brings
    the same, most likely.
    """
    get, put_nowait, unset = variable.get, mailbox.put_nowait, object()
    is_plain = type(mailbox).put_nowait is Mailbox.put_nowait

    def put(item: Any) -> None:
        # Called for each message, so it calls nothing that it need not.
        value = get(unset)
        if value is not unset:
            if latest[0] is not value:
                latest[:] = value, ((variable, value),)
            if type(item) is ask_type:
                item.values = latest[1]
            else:
                item = told(item, latest[1])
        if is_plain and len(mailbox._items) < mailbox._limit:
            # As `put_nowait` does.
            if mailbox._wakeup is not None:
                mailbox.wake()
            mailbox._items.append(item)
        else:
            put_nowait(item)

    return put


class IdleSince:
    """Since when the consumer of a mailbox waits for the messages of others.

    The clock is read when the mailbox runs empty, and at no message.
    """

    __slots__ = ("_mailbox", "_monotonic", "_new_signal", "is_still", "since")

    def __init__(self, mailbox: Mailbox[Any], clock: Clock) -> None:
        self._mailbox = mailbox
        self._monotonic = clock.monotonic
        self._new_signal = mailbox._new_signal
        # Senders wait by such signals, too, but not while the consumer does.
        mailbox._new_signal = self._begin_wait
        #: by the clock's `monotonic`
        self.since = clock.monotonic()
        #: whether the message at hand, or the last one, is no reason not to be idle
        self.is_still = False

    @property
    def is_idle(self) -> bool:
        """Whether the consumer has nothing to do, or nothing that counts."""
        return (self._mailbox.is_awaited or self.is_still) and not self._mailbox.holds_any()

    def _begin_wait(self) -> Signal:
        if not self.is_still:
            self.since = self._monotonic()
        return self._new_signal()
