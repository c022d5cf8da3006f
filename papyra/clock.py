"""The clock: the time in records, and every wait of the runtime, as one replaceable thing."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Protocol, runtime_checkable

import anyio

from papyra._durations import is_seconds, seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy


@runtime_checkable
class Clock(Protocol):
    """The time that a system reads and waits by. Tests give their own."""

    def time(self) -> float:
        """Return the wall clock: Unix time in seconds."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start, never going back."""

    def move_on_after(self, seconds: float) -> contextlib.AbstractContextManager[anyio.CancelScope]:
        """Return a cancel scope that is cancelled after `seconds`."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""


class SystemClock:
    """The clock of the machine."""

    #: returns seconds that never go back; Python's own, as it may be called at each message
    monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        """Return Unix time in seconds."""
        return time.time()

    def move_on_after(self, seconds: float) -> contextlib.AbstractContextManager[anyio.CancelScope]:
        """Return `anyio.move_on_after(seconds)`; raises `InvalidPolicy` for what is no number."""
        return anyio.move_on_after(span(seconds))

    async def sleep(self, seconds: float) -> None:
        """Wait as `anyio.sleep` does; raises `InvalidPolicy` for what is no number."""
        length = span(seconds)
        await (anyio.sleep_forever() if length == math.inf else anyio.sleep(length))


@runtime_checkable
class MovableClock(Protocol):
    """A clock that knows when its wall clock is moved, so that nobody has to look."""

    def move_on_at(self, time: float) -> contextlib.AbstractContextManager[anyio.CancelScope]:
        """Return a cancel scope that is cancelled once `time` has come, in Unix time."""


def move_on_at(
    clock: Clock, time: float, look_every: float
) -> contextlib.AbstractContextManager[anyio.CancelScope]:
    """Return a cancel scope that is cancelled once the wall clock shows Unix time `time`.

    It may be cancelled before: at the latest after `look_every` seconds, as a wall clock is moved
    without anybody being told.
    """
    if isinstance(clock, MovableClock):
        return clock.move_on_at(time)
    return clock.move_on_after(min(time - clock.time(), look_every))


def span(value: float) -> float:
    """Return `value` as a wait takes it: over at once if negative, never if it is infinity.

    Raises `InvalidPolicy` for what is no number of seconds.
    """
    if not is_seconds(value, -math.inf):
        raise InvalidPolicy(f"a wait takes seconds, not {shown(value)}")
    return max(0.0, seconds(value))
