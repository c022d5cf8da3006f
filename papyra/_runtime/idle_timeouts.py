"""Idle timeouts: passivate the entities to which nobody has sent anything for a while."""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeAlias

import anyio

from papyra._signal import NewSignal, Signal
from papyra.clock import Clock
from papyra.mailbox import Mailbox

#: Ended lives that may stay in the heap, however few others there are.
_KEPT = 64

#: Starts a task of this name for a function; and again, as long as the other says it has not begun.
StartTask: TypeAlias = Callable[
    [str, Callable[[], Coroutine[Any, Any, None]], Callable[[], bool]], None
]


class Sleepy(Protocol):
    """An entity, as its mailbox sees it."""

    def mailbox_closed(self, mailbox: Mailbox[object]) -> None:
        """Take note that `mailbox` takes no more messages."""

    def passivate(self) -> None:
        """Have the life that runs end after the message at hand."""


class EntityMailbox(Mailbox[object]):
    """The mailbox of an entity, which outlives passivation as long as there are messages in it.

    It knows since when its consumer waits: that is read when it runs empty, and at no message.
    """

    __slots__ = ("_monotonic", "_new_loop_signal", "entity", "idle_since", "idle_timeout")

    def __init__(
        self,
        capacity: int,
        new_signal: NewSignal,
        clock: Clock,
        entity: Sleepy,
        idle_timeout: float | None,
    ) -> None:
        super().__init__(capacity, new_signal if idle_timeout is None else self._begin_wait)
        self._new_loop_signal = new_signal
        self._monotonic = clock.monotonic
        self.entity = entity
        #: seconds; `None` for never
        self.idle_timeout = idle_timeout
        #: when the consumer began to wait, if it waits
        self.idle_since = 0.0

    def close(self) -> None:
        super().close()
        self.entity.mailbox_closed(self)

    def _begin_wait(self) -> Signal:
        # Senders wait by such signals, too, but not while the consumer does.
        self.idle_since = self._monotonic()
        return self._new_loop_signal()


class IdleTimeouts:
    """The deadlines of all entities with an idle timeout, in one heap, and one task.

    A message moves no deadline. When one is due, it is looked up since when the entity has been
    idle, and if that is not long enough, the deadline is set anew.
    """

    def __init__(self, clock: Clock, start: StartTask) -> None:
        self._clock = clock
        self._start = start
        self._numbers = itertools.count()
        #: a heap; the number keeps those of one moment in order
        self._deadlines: list[tuple[float, int, EntityMailbox]] = []
        #: how many of them are of mailboxes that have been closed
        self._ended = 0
        self._sooner = anyio.Event()
        self._is_running = False
        self._is_closed = False

    def begin(self, mailbox: EntityMailbox) -> None:
        """Passivate the entity of `mailbox` whenever it has been idle for so long."""
        if mailbox.idle_timeout is None or self._is_closed:
            return
        self._push(self._clock.monotonic() + mailbox.idle_timeout, mailbox)
        if not self._is_running:
            self._is_running = True
            self._start_task()
        elif self._deadlines[0][2] is mailbox:
            self._sooner.set()

    def end(self, mailbox: EntityMailbox) -> None:
        """Forget `mailbox`, which has been closed."""
        if mailbox.idle_timeout is None or self._is_closed:
            return
        self._ended += 1
        if self._ended > _KEPT + len(self._deadlines) // 2:
            self._deadlines = [each for each in self._deadlines if not each[2].closed]
            heapq.heapify(self._deadlines)
            self._ended = 0

    def close(self) -> None:
        """Passivate nobody any more."""
        self._is_closed = True
        self._deadlines.clear()
        self._sooner.set()

    def _start_task(self) -> None:
        begun = False

        async def run() -> None:
            nonlocal begun
            begun = True
            try:
                # Cancelled by somebody, it is started again for the next entity that wakes.
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    while not self._is_closed:
                        await self._wait_and_passivate()
            finally:
                self._is_running = False

        self._start("papyra idle timeouts", run, lambda: begun)

    async def _wait_and_passivate(self) -> None:
        """Wait for the next deadline, or an earlier one, and passivate who is idle by then."""
        self._sooner = anyio.Event()
        if not self._deadlines:
            await self._sooner.wait()
            return
        due = self._deadlines[0][0]
        with self._clock.move_on_after(due - self._clock.monotonic()):
            await self._sooner.wait()
        now = self._clock.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            self._look_at(heapq.heappop(self._deadlines)[2], now)

    def _look_at(self, mailbox: EntityMailbox, now: float) -> None:
        if mailbox.closed or mailbox.idle_timeout is None:
            self._ended -= 1
            return
        deadline = now + mailbox.idle_timeout
        if mailbox.is_awaited and not len(mailbox):
            if mailbox.idle_since + mailbox.idle_timeout <= now:
                mailbox.entity.passivate()
            else:
                deadline = mailbox.idle_since + mailbox.idle_timeout
        # In any case: before it has stopped there may be a message, and then the mailbox goes on.
        self._push(deadline, mailbox)

    def _push(self, deadline: float, mailbox: EntityMailbox) -> None:
        heapq.heappush(self._deadlines, (deadline, next(self._numbers), mailbox))
