"""Time, as one replaceable thing: what is stored in records, and what the runtime waits for."""

from __future__ import annotations

import contextlib
import time
from typing import Protocol

import anyio

__all__ = ("Clock", "SystemClock")


class Clock(Protocol):
    """What a system reads and waits by. Tests give their own."""

    def time(self) -> float:
        """Return the wall clock: Unix time in seconds."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start, never going back."""
        ...

    def move_on_after(self, seconds: float) -> contextlib.AbstractContextManager[anyio.CancelScope]:
        """Return a cancel scope that is cancelled after `seconds`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class SystemClock:
    """The clock of the machine."""

    def time(self) -> float:
        """Return Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def move_on_after(self, seconds: float) -> contextlib.AbstractContextManager[anyio.CancelScope]:
        """Return `anyio.move_on_after(seconds)`."""
        return anyio.move_on_after(seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait as `anyio.sleep` does."""
        await anyio.sleep(seconds)
