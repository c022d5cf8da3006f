"""Deadlines: whatever the runtime has to do at a moment, in one heap and one task."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from papyra._cancellation import shield_from_interrupts, take_cancellation
from papyra._signal import Latch
from papyra.clock import Clock

#: Entries that are over which may stay in the heap, however few others there are.
_KEPT = 64

#: What becomes due at one moment, and is done before the others have their turn.
_AT_ONCE = 500

#: Starts a task of this name for a function; and again, as long as the other says it has not begun.
StartTask: TypeAlias = Callable[
    [str, Callable[[], Coroutine[Any, Any, None]], Callable[[], bool]], None
]


class Due(Protocol):
    """Something that is to be done at a moment."""

    @property
    def is_over(self) -> bool:
        """Whether it need not be done any more."""

    def due(self, now: float) -> float | None:
        """Do it, without waiting; return the moment of the next time, `None` for none."""


class Deadlines:
    """The deadlines of a system. Moments are those of the clock's `Clock.monotonic`.

    What is over stays in the heap until it is due, or until half of the heap is such.
    """

    def __init__(self, clock: Clock, start: StartTask) -> None:
        self._clock = clock
        self._start = start
        # The number keeps those of one moment in order.
        self._numbers, self._first_numbers = itertools.count(), itertools.count(-(2**62))
        self._heap: list[tuple[float, int, Due]] = []
        #: how many in the heap are over
        self._over = 0
        #: the moment until which the task waits
        self._awaited = math.inf
        self._sooner = Latch()
        self._is_running = False
        self._is_closed = False

    def add(self, moment: float, each: Due, *, first: bool = False) -> None:
        """Have `each` done at `moment`, never if that is infinity; `first` of those of one moment.

        It must not be in the heap already.
        """
        if moment == math.inf or self._is_closed:
            return
        number = next(self._first_numbers if first else self._numbers)
        heapq.heappush(self._heap, (moment, number, each))
        if moment < self._awaited:
            self._awaited = moment
            self._sooner.set()
        if not self._is_running:
            # A Ctrl-C of trio's must not strike between the two.
            shield_from_interrupts(self._start_task)()

    def forget(self, count: int = 1) -> None:
        """Take note that so many more of those in the heap are over."""
        self._over += count
        if self._over > _KEPT + len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if not entry[2].is_over]
            heapq.heapify(self._heap)
            self._over = 0

    def close(self) -> None:
        """Do nothing any more."""
        self._is_closed = True
        self._heap.clear()
        self._sooner.set()

    def _start_task(self) -> None:
        self._is_running, begun = True, False

        async def run() -> None:
            nonlocal begun
            begun = True
            # Until it is closed: actors that finish what they have at hand may wait for a timer.
            with anyio.CancelScope(shield=True):
                await self._run()

        self._start("papyra deadlines", shield_from_interrupts(run), lambda: begun)

    async def _run(self) -> None:
        try:
            while not self._is_closed:
                await self._wait_and_do()
        except anyio.get_cancelled_exc_class():
            # Somebody has cancelled this very task of asyncio's. That ends it, and nothing else.
            take_cancellation()
            self._is_running = False
            if self._heap and not self._is_closed:
                self._start_task()
        else:
            self._is_running = False

    async def _wait_and_do(self) -> None:
        """Wait for the next deadline, or an earlier one, and do what is due by then."""
        self._sooner = Latch()
        self._awaited = self._heap[0][0] if self._heap else math.inf
        with self._clock.move_on_after(self._awaited - self._clock.monotonic()):
            await self._sooner.wait()
        now, done = self._clock.monotonic(), 0
        while self._heap and self._heap[0][0] <= now:
            self._do(heapq.heappop(self._heap), now)
            done += 1
            if not done % _AT_ONCE:
                await checkpoint()

    def _do(self, entry: tuple[float, int, Due], now: float) -> None:
        _, number, each = entry
        if each.is_over:
            self._over -= 1
        elif (again := each.due(now)) is not None:
            self.add(again, each, first=number < 0)
