"""Mailboxes that count for the class of their actors: what waits in them, and for how long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from papyra._runtime.idle_timeouts import EntityMailbox, Sleepy
from papyra._signal import NewSignal, Signal
from papyra.class_counters import ClassCounters
from papyra.clock import Clock
from papyra.exceptions import MailboxClosed, MailboxFull
from papyra.mailbox import Mailbox

D = TypeVar("D")

# An actor that waits holds none, and a deque takes 760 bytes.
_NO_TIMES: Any = ()


class _Measured(Mailbox[object]):
    """Keeps beside each message the time at which it came in.

    Where a sender waits for room, its message comes in when there is some.
    """

    _counters: ClassCounters
    _waited: Callable[[float], None]
    _now: Callable[[], float]
    _times: deque[float] | list[float]

    def _measure(self, counters: ClassCounters, clock: Clock) -> None:
        assert counters.mailbox_seconds is not None
        self._counters = counters
        self._waited = counters.mailbox_seconds.add
        self._now = clock.monotonic
        self._times = []

    def put_nowait(self, item: object) -> None:
        # As above; a call of that takes a tenth of the time of a message.
        if len(self._items) >= self._limit:
            raise MailboxClosed if self.closed else MailboxFull
        if self._wakeup is not None:
            self.wake()
        self._items.append(item)
        self._times.append(self._now())
        self._counters.messages_waiting += 1

    def push(self, item: object) -> None:
        super().push(item)
        self._times.append(self._now())
        self._counters.messages_waiting += 1

    def put_back(self, items: Sequence[object]) -> None:
        super().put_back(items)
        self._deque_of_times().extendleft([self._now()] * len(items))
        self._counters.messages_waiting += len(items)

    def pop(self, default: D) -> object | D:
        times = self._times
        if times:
            if isinstance(times, list):
                time = times.pop() if len(times) == 1 else self._deque_of_times().popleft()
            else:
                time = times.popleft()
            self._waited(self._now() - time)
            self._counters.messages_waiting -= 1
        return super().pop(default)

    def pop_run(self, count: int) -> list[object]:
        times, now = self._deque_of_times(), self._now()
        for _ in range(min(count, len(times))):
            self._waited(now - times.popleft())
            self._counters.messages_waiting -= 1
        return super().pop_run(count)

    def discard(self, unwanted: Callable[[object], bool]) -> None:
        pairs = zip(self._items, self._times, strict=True)
        kept = [pair for pair in pairs if not unwanted(pair[0])]
        if len(kept) < len(self._items):
            self._counters.messages_waiting -= len(self._items) - len(kept)
            self._items = deque(item for item, _ in kept)
            self._times = deque(time for _, time in kept)
            if not kept:
                self._admit()

    def wakeup(self) -> Signal | None:
        signal = super().wakeup()
        if signal is not None:
            self._times = _NO_TIMES
        return signal

    def wake(self) -> None:
        super().wake()
        if self._times is _NO_TIMES:
            self._times = []

    def _admit(self, everybody: bool = False) -> None:
        before = len(self._items)
        super()._admit(everybody)
        count = len(self._items) - before
        self._times.extend([self._now()] * count)
        self._counters.messages_waiting += count

    def _deque_of_times(self) -> deque[float]:
        times = self._times
        if not isinstance(times, deque):
            times = self._times = deque(times)
        return times


class MeasuredMailbox(_Measured):
    """The mailbox of an actor that was spawned."""

    def __init__(
        self, capacity: int, new_signal: NewSignal, clock: Clock, counters: ClassCounters
    ) -> None:
        super().__init__(capacity, new_signal)
        self._measure(counters, clock)


class MeasuredEntityMailbox(_Measured, EntityMailbox):
    """The mailbox of an entity."""

    def __init__(
        self,
        capacity: int,
        new_signal: NewSignal,
        clock: Clock,
        entity: Sleepy,
        idle_timeout: float | None,
        counters: ClassCounters,
    ) -> None:
        EntityMailbox.__init__(self, capacity, new_signal, clock, entity, idle_timeout)
        self._measure(counters, clock)


def new_mailbox(
    capacity: int, new_signal: NewSignal, clock: Clock, counters: ClassCounters
) -> Mailbox[object]:
    """Return the mailbox of an actor that was spawned, measured if its class is."""
    if counters.mailbox_seconds is None:
        return Mailbox(capacity, new_signal)
    return MeasuredMailbox(capacity, new_signal, clock, counters)


def new_entity_mailbox(
    capacity: int,
    new_signal: NewSignal,
    clock: Clock,
    entity: Sleepy,
    idle_timeout: float | None,
    counters: ClassCounters,
) -> EntityMailbox:
    """Return the mailbox of an entity, measured if its class is."""
    if counters.mailbox_seconds is None:
        return EntityMailbox(capacity, new_signal, clock, entity, idle_timeout)
    return MeasuredEntityMailbox(capacity, new_signal, clock, entity, idle_timeout, counters)
