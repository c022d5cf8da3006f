"""Cancel something at each of its awaits in turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio


async def cancel_at_each_await(
    action: Callable[[], Coroutine[Any, Any, object]], then: Callable[[], Awaitable[object]]
) -> None:
    """Run ``action()`` again and again, cancelled at its first await, its second, and so on.

    After each run it awaits ``then()``. The last run is the one that has no await left to be
    cancelled at.
    """
    number = 0
    while True:
        number += 1
        with anyio.CancelScope() as scope:
            await _Interrupted(action(), number, scope)
        await then()
        if not scope.cancel_called:
            return


class _Interrupted:
    """A coroutine, cancelled by `scope` when it awaits something for the `number`-th time."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, object], number: int, scope: anyio.CancelScope
    ) -> None:
        self._coroutine = coroutine
        self._number = number
        self._scope = scope

    def __await__(self) -> Generator[Any, Any, object]:
        awaits = 0
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = (
                    self._coroutine.send(value) if error is None else self._coroutine.throw(error)
                )
            except StopIteration as stop:
                return stop.value
            awaits += 1
            if awaits == self._number:
                self._scope.cancel()
            try:
                value, error = (yield waits_for), None
            except BaseException as caught:  # noqa: BLE001 - thrown into the coroutine
                value, error = None, caught
