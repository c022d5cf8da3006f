"""A clock that a test moves."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections.abc import Collection, Iterator

import anyio

from papyra._durations import LONGEST, is_seconds
from papyra._safe_repr import shown
from papyra.clock import span
from papyra.exceptions import InvalidPolicy
from papyra.testing.wait_idle import wait_until_idle

#: Seconds. Three times 0.1 is more than 0.3.
_ROUNDING = 1e-9


class ManualClock:
    """A `Clock` that stands still until `advance` moves it.

    Given to a system, it times all that the system does: record times, the timeouts of asks,
    restart windows and backoff, audits, and whatever actors wait for with ``context.clock``. Given
    to a backend as ``clock=manual_clock.time``, it is what retention judges the age of records by.

    After `trio.testing.MockClock` and Akka's ``ManualTime``.
    """

    def __init__(self, time: float = 1_000_000_000.0) -> None:
        """Start at Unix time `time`, and at 0.0 of `monotonic`."""
        if not is_seconds(time, -LONGEST) or not time <= LONGEST * 100:
            raise InvalidPolicy(f"a clock starts at Unix time in seconds, not {shown(time)}")
        self._start = float(time)
        self._now = 0.0
        self._numbers = itertools.count()
        #: (deadline, number, scope), a heap; the number keeps those of one moment in order
        self._deadlines: list[tuple[float, int, anyio.CancelScope]] = []
        self._guard = anyio.ResourceGuard("advancing")
        #: the waits for a moment of the wall clock, by their scopes
        self._moments: dict[anyio.CancelScope, float] = {}

    def time(self) -> float:
        """Return Unix time in seconds."""
        return self._start + self._now

    def monotonic(self) -> float:
        """Return the seconds that it was advanced by."""
        return self._now

    @contextlib.contextmanager
    def move_on_after(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Return a cancel scope that is cancelled once the clock has been advanced that far."""
        length = span(seconds)
        with anyio.CancelScope() as scope:
            entry = (self._now + length, next(self._numbers), scope)
            if length <= 0:
                scope.cancel()
            elif length < math.inf:
                heapq.heappush(self._deadlines, entry)
            try:
                yield scope
            finally:
                if entry in self._deadlines:
                    self._deadlines.remove(entry)
                    heapq.heapify(self._deadlines)

    @contextlib.contextmanager
    def move_on_at(self, time: float) -> Iterator[anyio.CancelScope]:
        """Return a cancel scope that is cancelled once `time` has come, in Unix time.

        That may be because the wall clock was put forward.
        """
        with anyio.CancelScope() as scope:
            self._moments[scope] = time
            self._set_deadline(scope, time)
            try:
                yield scope
            finally:
                del self._moments[scope]
                self._drop_deadlines({scope})

    async def put_wall_clock(self, seconds: float) -> None:
        """Put the wall clock forward by `seconds`, or back if they are negative.

        `monotonic`, and all that waits for seconds to pass, notices nothing. Returns when whatever
        becomes due by it has run.
        """
        if not is_seconds(seconds, -LONGEST) or not seconds <= LONGEST * 100:
            raise InvalidPolicy(f"a wall clock is put by seconds, not {shown(seconds)}")
        with self._guard:
            await wait_until_idle(cushion=1)
            self._start += seconds
            moments = dict(self._moments)
            self._drop_deadlines(moments.keys())
            for scope, time in moments.items():
                self._set_deadline(scope, time)
            await wait_until_idle(cushion=1)

    def _set_deadline(self, scope: anyio.CancelScope, time: float) -> None:
        length = time - self.time()
        if length <= 0:
            scope.cancel()
        elif length < math.inf:
            heapq.heappush(self._deadlines, (self._now + length, next(self._numbers), scope))

    def _drop_deadlines(self, scopes: Collection[anyio.CancelScope]) -> None:
        self._deadlines = [each for each in self._deadlines if each[2] not in scopes]
        heapq.heapify(self._deadlines)

    async def sleep(self, seconds: float) -> None:
        """Return once the clock has been advanced that far."""
        with self.move_on_after(seconds):
            await anyio.sleep_forever()

    @property
    def next_deadline(self) -> float | None:
        """Seconds until somebody's wait is over, or `None` if nobody waits by this clock."""
        return self._deadlines[0][0] - self._now if self._deadlines else None

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, stopping wherever something becomes due; return when all is quiet.

        Whatever becomes due has run, until it waits again, before time goes further. So an actor
        that sleeps for ten seconds in a loop wakes six times in a minute.
        """
        if not is_seconds(seconds) or not seconds <= LONGEST * 100:
            raise InvalidPolicy(f"a clock is advanced by seconds, 0 or more, not {shown(seconds)}")
        with self._guard:
            target = self._now + seconds
            # Somebody may be on the way to wait for this.
            await wait_until_idle(cushion=1)
            while self._deadlines and self._deadlines[0][0] <= target + _ROUNDING:
                self.pass_to_next_deadline()
                await wait_until_idle(cushion=1)
            self._now = max(self._now, target)

    def pass_to_next_deadline(self) -> None:
        """Let the next wait be over, at its own time. Returns at once; there must be one."""
        self._now, _, scope = heapq.heappop(self._deadlines)
        scope.cancel()

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now:g} s>"
