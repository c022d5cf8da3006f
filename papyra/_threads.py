"""Blocking calls in threads that nobody has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, TypeVar, cast

import anyio.to_thread

from papyra._home_loop import HomeLoop
from papyra._signal import Signal, wake
from papyra._trio import running_trio

T = TypeVar("T")


async def run_in_thread(loop: HomeLoop, function: Callable[..., T], args: Sequence[Any]) -> T:
    """Return what ``function(*args)`` returns in a thread of its own, and raise what it raises.

    No more run at a time than anyio's default limiter lets. A caller that is cancelled goes on at
    once, and the thread on its own: it is no reason for the process to stay alive. anyio's threads
    are one, on asyncio.
    """
    call = _Call(loop, function, args)
    trio = running_trio()
    # A Ctrl-C in its midst would leave the limiter in doubt; who waits is struck later.
    run = _run if trio is None else trio.lowlevel.enable_ki_protection(_run)
    await run(call)
    if call.error is not None:
        try:
            raise call.error
        finally:
            call.error = None  # not to be in a circle with its traceback
    return cast("T", call.result)


async def _run(call: _Call) -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    await limiter.acquire_on_behalf_of(call)
    call.start(lambda: limiter.release_on_behalf_of(call))
    await call.done


class _Call:
    """A call in a thread."""

    def __init__(self, loop: HomeLoop, function: Callable[..., Any], args: Sequence[Any]) -> None:
        self._loop = loop
        self._function, self._args = function, args
        self._context = copy_context()
        self._release: Callable[[], None]
        self.done: Signal = loop.new_signal()
        self.result: object = None
        self.error: BaseException | None = None

    def start(self, release: Callable[[], None]) -> None:
        """Call the function, and then `release` in the event loop."""
        self._release = release
        thread = threading.Thread(target=self._run, name="papyra blocking call", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            release()  # there are too many threads
            raise

    def _run(self) -> None:
        try:
            self.result = self._context.run(self._function, *self._args)
        except BaseException as error:  # noqa: BLE001 - raised in the caller
            self.error = error
        try:
            self._loop.call_soon(self._finish)
        except RuntimeError:
            return  # the event loop has ended, and with it whoever wanted to know

    def _finish(self) -> None:
        self._release()
        wake(self.done)
