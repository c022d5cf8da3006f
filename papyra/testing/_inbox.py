"""The inbox of a probe: items that have come, and waiting for more of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio

from papyra._durations import is_seconds, seconds
from papyra._safe_repr import shown
from papyra.clock import Clock
from papyra.exceptions import InvalidPolicy
from papyra.testing._matchers import Pattern, difference
from papyra.testing.clock import ManualClock
from papyra.testing.wait_idle import wait_until_idle

T = TypeVar("T")

#: A report shows at most this many items.
_SHOWN = 30


class Inbox(Generic[T]):
    """Items in the order they came. Each of them meets one expectation at most.

    A wait ends with the item that it is for, not by looking again and again. Time limits are the
    machine's: they only matter when the test has failed.
    """

    def __init__(self, noun: str, show: Callable[[T], str], clock: Clock) -> None:
        self._noun = noun
        self._show = show
        self._clock = clock
        self.items: list[T] = []
        self._taken: set[int] = set()
        self._arrived = anyio.Event()

    def add(self, item: T) -> None:
        """Take in one more item."""
        self.items.append(item)
        if not self._arrived.is_set():
            self._arrived.set()

    async def take(
        self,
        pattern: Pattern,
        timeout: float,
        among: Callable[[T], bool],
        *,
        next_only: bool = False,
    ) -> T:
        """Wait for an item that matches, take it, and return it.

        With `next_only` the oldest that is left must match. Raises `AssertionError`.
        """
        __tracebackhide__ = True
        timeout = checked_seconds("timeout", timeout)
        position = self._find(pattern, among, 0, next_only)
        if position is None:
            with anyio.move_on_after(timeout):
                while position is None:
                    seen = len(self.items)
                    await self._wait()
                    position = self._find(pattern, among, seen, next_only)
        if position is None:
            raise AssertionError(
                self._report(
                    f"no {self._noun} came within {timeout:g} s that is {pattern.description}",
                    pattern,
                    among,
                )
            )
        self._taken.add(position)
        return self.items[position]

    async def take_sequence(
        self, patterns: Sequence[Pattern], timeout: float, among: Callable[[T], bool]
    ) -> list[T]:
        """Wait for items that match one after the other, with nothing in between."""
        __tracebackhide__ = True
        found: list[T] = []
        deadline = anyio.current_time() + timeout
        for pattern in patterns:
            left = max(0.0, deadline - anyio.current_time())
            try:
                found.append(await self.take(pattern, left, among, next_only=True))
            except AssertionError as error:
                position = f"{len(found) + 1} of {len(patterns)} in the sequence"
                raise AssertionError(f"{position}: {error}") from None
        return found

    async def take_none(
        self, pattern: Pattern, within: float | None, among: Callable[[T], bool]
    ) -> None:
        """Raise `AssertionError` if an item matches that is there, or comes in time."""
        __tracebackhide__ = True
        if within is not None:
            within = checked_seconds("within", within)
        self._refuse(pattern, among)
        if within is None:
            await wait_until_idle(cushion=1)
        elif isinstance(self._clock, ManualClock):
            # Nothing else would let this time pass.
            await self._clock.advance(within)
        else:
            with anyio.move_on_after(within):
                while True:
                    await self._wait()
                    self._refuse(pattern, among)
        self._refuse(pattern, among)

    def _find(
        self, pattern: Pattern, among: Callable[[T], bool], start: int, next_only: bool
    ) -> int | None:
        """Return the position of the first item that is left and matches, from `start` on."""
        __tracebackhide__ = True
        for position in range(start, len(self.items)):
            item = self.items[position]
            if position in self._taken or not among(item):
                continue
            if pattern.matches(item):
                return position
            if next_only:
                raise AssertionError(
                    self._report(
                        f"the next {self._noun} is not {pattern.description}",
                        pattern,
                        among,
                        only=item,
                    )
                )
        return None

    def _refuse(self, pattern: Pattern, among: Callable[[T], bool]) -> None:
        __tracebackhide__ = True
        position = self._find(pattern, among, 0, next_only=False)
        if position is not None:
            raise AssertionError(
                self._report(
                    f"there is a {self._noun} that is {pattern.description}: "
                    f"{self._show(self.items[position])}",
                    pattern,
                    among,
                )
            )

    async def _wait(self) -> None:
        if self._arrived.is_set():
            self._arrived = anyio.Event()
        await self._arrived.wait()

    def _report(
        self, headline: str, pattern: Pattern, among: Callable[[T], bool], only: T | None = None
    ) -> str:
        # All of it, not only what counts: that the actor has crashed may say everything.
        seen = [
            ("=" if position in self._taken else " ", item)
            for position, item in enumerate(self.items)
        ]
        lines = [headline]
        left = [item for mark, item in seen if mark == " " and among(item)]
        candidates = left if only is None else [only]
        compared = [pair for item in candidates if (pair := pattern.compare(item)) is not None]
        if compared:
            expected, found = min(compared, key=lambda pair: len(difference(*pair)))
            lines.append("the closest differs (- expected, + found):")
            lines += [f"    {line}" for line in difference(expected, found)]
        lines.append(f"seen so far ({len(seen)}; = taken by an earlier expectation):")
        if len(seen) > _SHOWN:
            lines.append(f"    ... {len(seen) - _SHOWN} older")
        lines += [f"  {mark} {self._show(item)}" for mark, item in seen[-_SHOWN:]]
        return "\n".join(lines)


def checked_seconds(name: str, value: float) -> float:
    """Return `value` as a length of time; raise `InvalidPolicy` for what is none."""
    if not is_seconds(value):
        raise InvalidPolicy(f"{name} is seconds, 0 or more, not {shown(value)}")
    return seconds(value)
