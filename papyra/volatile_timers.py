"""Timers of one actor: messages to itself after a while, now and then, or when nobody sends any."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Protocol, TypeGuard

from papyra._durations import is_seconds, seconds
from papyra._home_loop import HomeLoop
from papyra._safe_repr import shown
from papyra.clock import Clock
from papyra.exceptions import ActorNotRunning, InvalidPolicy, MailboxClosed
from papyra.mailbox import IdleSince, Mailbox
from papyra.ref import Terminated, Values

__all__ = ("Timers",)

#: Seconds; the shortest time between two messages of a timer.
SHORTEST_PERIOD = 0.001

#: Messages that were taken back which may stay in a mailbox, however few others there are.
_KEPT = 16

#: Where a timer is.
_WAITING: Final = "waiting"
_IN_MAILBOX: Final = "in the mailbox"
_OVER: Final = "over"


class OwnMessage:
    """A message of an actor to itself, as it is in the mailbox. Only the runtime sees these.

    It belongs to one incarnation, and may have been taken back by the time that it is its turn.
    """

    __slots__ = ("message", "values")

    #: whether one that gets it is not idle
    is_activity = True

    def __init__(self, message: object, values: Values) -> None:
        self.message = message
        self.values = values

    @property
    def is_over(self) -> bool:
        """Whether it was taken back."""
        raise NotImplementedError

    def take(self) -> bool:
        """Return whether it is to be handled, now that it is its turn."""
        raise NotImplementedError


class Deadlines(Protocol):
    """The deadlines of the system."""

    def add(self, moment: float, each: _Timer, *, first: bool = False) -> None:
        """Call ``each.due`` at `moment`, by `Clock.monotonic`; `first` of those of one moment."""

    def forget(self, count: int = 1) -> None:
        """Take note that so many of them are over."""


class TimersOwner(Protocol):
    """The actor that timers belong to."""

    mailbox: Mailbox[object]
    loop: HomeLoop
    clock: Clock

    @property
    def deadlines(self) -> Deadlines:
        """The deadlines of the system."""

    def captured_values(self) -> Values:
        """Return the context variables that are to travel with a message."""


class Timers:
    """The volatile timers of one actor, as ``self.timers``: each sends it a message of its own.

    They end with the incarnation: when the actor stops or restarts, and when an entity falls
    asleep, which they do not keep awake. What has to outlast that belongs into a durable timer. Of
    each timer there is at most one message in the mailbox, which finds room there even if the
    mailbox is full: no timer is lost for that, none waits, and none holds up another.
    """

    __slots__ = ("_active", "_deadlines", "_idle_timer", "_is_over", "_left", "_owner")

    def __init__(self, owner: TimersOwner) -> None:
        self._owner = owner
        self._deadlines = owner.deadlines
        self._active: dict[Hashable, _Timer] = {}
        self._idle_timer: _ReceiveTimeout | None = None
        #: messages that were taken back, and are in the mailbox still
        self._left = 0
        self._is_over = False

    def start(
        self,
        key: Hashable,
        message: object,
        *,
        after: float | None = None,
        every: float | None = None,
    ) -> None:
        """Send `message` to this actor `after` so many seconds, once, or `every` so many.

        It takes the place of the timer that was started with the same `key`: that one's message
        does not arrive any more, not even if it is in the mailbox already. The first of a timer's
        messages `every` so many seconds comes after that time. They do not drift, and do not pile
        up: while one waits in the mailbox, or if the actor was busy for longer than a period, those
        in between are left out.

        The context variables that travel with messages are those of this call. Raises
        `InvalidPolicy` for a time that makes no sense (negative, or a period under a millisecond;
        infinity is never), `TypeError` for a key that can't be hashed, `WrongLoop` in another
        thread, and `ActorNotRunning` in ``__init__``, and once the incarnation has ended.
        """
        owner = self._owner
        owner.loop.check()
        if self._is_over:
            raise _not_running()
        if every is None:
            if after is None or not is_seconds(after):
                raise InvalidPolicy(f"after is seconds, 0 or more, not {shown(after)}")
            delay, period = seconds(after), 0.0
        else:
            delay = period = _checked_period(every, after)
        # First, as keys may raise, too.
        before = self._active.pop(key, None)
        if before is not None:
            self._take_back(before)
        begun = owner.clock.monotonic()
        timer = _Timer(self, key, message, owner.captured_values(), begun, period)
        self._active[key] = timer
        self._deadlines.add(begun + delay, timer)

    def cancel(self, key: Hashable) -> bool:
        """End the timer that was started with `key`; return whether there was one.

        Its message does not arrive any more, not even if it is in the mailbox already.
        """
        self._owner.loop.check()
        timer = self._active.pop(key, None)
        if timer is None:
            hash(key)  # an empty dictionary has not asked for it
            return False
        self._take_back(timer)
        return True

    @property
    def active(self) -> tuple[Hashable, ...]:
        """The keys of the timers from which a message is to come, in the order of their starts.

        One that sends a single message is active until that is handled.
        """
        return tuple(self._active)

    def set_receive_timeout(self, length: float | None, message: object, idle: IdleSince) -> None:
        """Send `message` whenever there was none for so long: `ActorContext.receive_timeout`."""
        if length is not None and not is_seconds(length, above=True):
            raise InvalidPolicy(
                f"receive_timeout is seconds, more than 0, or None for none, not {shown(length)}"
            )
        if self._is_over:
            raise _not_running()
        if self._idle_timer is not None:
            self._take_back(self._idle_timer)
            self._idle_timer = None
        if length is not None:
            timer = _ReceiveTimeout(self, message, seconds(length), idle)
            self._idle_timer = timer
            self._deadlines.add(timer.begun + timer.period, timer, first=True)

    def end(self) -> None:
        """End them all, with the incarnation."""
        self._is_over = True
        timers = [*self._active.values(), *([self._idle_timer] if self._idle_timer else [])]
        self._active.clear()
        self._idle_timer = None
        waiting = 0
        for timer in timers:
            waiting += timer.where == _WAITING
            timer.where = _OVER
        self._deadlines.forget(waiting)

    def _take_back(self, timer: _Timer) -> None:
        where, timer.where = timer.where, _OVER
        if where == _WAITING:
            self._deadlines.forget()
        elif where == _IN_MAILBOX:
            self._left += 1
            if self._left > _KEPT + len(self._owner.mailbox) // 2:
                self._owner.mailbox.discard(_is_taken_back)
                self._left = 0


class _Timer(OwnMessage):
    """A timer, and its message."""

    __slots__ = ("_count", "_key", "_timers", "begun", "period", "where")

    is_activity = False

    def __init__(
        self,
        timers: Timers,
        key: Hashable,
        message: object,
        values: Values,
        begun: float,
        period: float,
    ) -> None:
        self._timers = timers
        self._key = key
        self.message = message
        self.values = values
        #: by the clock's `monotonic`
        self.begun = begun
        #: seconds from one message to the next, or 0
        self.period = period
        self._count = 1
        self.where = _WAITING

    @property
    def is_over(self) -> bool:
        return self.where is _OVER

    def due(self, now: float) -> float | None:
        """Put the message into the mailbox."""
        del now
        try:
            self._timers._owner.mailbox.push(self)
        except MailboxClosed:
            self.where = _OVER
        else:
            self.where = _IN_MAILBOX
        return None

    def take(self) -> bool:
        timers = self._timers
        if self.where is _OVER:
            timers._left = max(0, timers._left - 1)
            return False
        if not self.period:
            self.where = _OVER
            del timers._active[self._key]
            return True
        # From the beginning, and not from now: it must not drift.
        passed = int((timers._owner.clock.monotonic() - self.begun) // self.period)
        self._count = max(self._count, passed) + 1
        self.where = _WAITING
        timers._deadlines.add(self.begun + self._count * self.period, self)
        return True


class _ReceiveTimeout(_Timer):
    """The timer of an actor to which nobody sends anything."""

    __slots__ = ("_idle",)

    def __init__(self, timers: Timers, message: object, length: float, idle: IdleSince) -> None:
        owner = timers._owner
        begun = owner.clock.monotonic()
        super().__init__(timers, None, message, owner.captured_values(), begun, length)
        self._idle = idle

    def due(self, now: float) -> float | None:
        if self._timers._owner.mailbox.closed:
            self.where = _OVER
            return None
        if not self._idle.is_idle:
            return now + self.period
        since = max(self._idle.since, self.begun)
        return super().due(now) if since + self.period <= now else since + self.period

    def take(self) -> bool:
        if self.where is _OVER:
            return super().take()
        self.begun = self._timers._owner.clock.monotonic()
        self.where = _WAITING
        self._timers._deadlines.add(self.begun + self.period, self, first=True)
        return True


def is_own_message(item: object) -> TypeGuard[OwnMessage]:
    """Return whether what is in a mailbox is an `OwnMessage`; asks no object of users' for that."""
    return issubclass(type(item), OwnMessage)


def is_of_one_life(item: object) -> bool:
    """Return whether what is in a mailbox concerns one incarnation, and nobody misses it."""
    return type(item) is Terminated or is_own_message(item)


def _is_taken_back(item: object) -> bool:
    return is_own_message(item) and item.is_over


def _checked_period(every: float, after: float | None) -> float:
    if after is not None:
        raise InvalidPolicy("a timer is started with after= or with every=, not with both")
    if not is_seconds(every, SHORTEST_PERIOD):
        raise InvalidPolicy(f"every is seconds, a millisecond at least, not {shown(every)}")
    return seconds(every)


def _not_running() -> ActorNotRunning:
    return ActorNotRunning(
        "timers are an actor's from on_start on, until it stops or restarts: "
        "messages of others reach it by its ref"
    )
