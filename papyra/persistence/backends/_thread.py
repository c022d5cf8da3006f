"""A thread for the blocking calls of one store."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import anyio

from papyra._signal import Signal, signals_of_this_loop

__all__ = ("StoreThread",)

ResultT = TypeVar("ResultT")


class _Call(Generic[ResultT]):
    """One call, and what became of it."""

    def __init__(self, function: Callable[[], ResultT]) -> None:
        self.function = function
        self.enter_loop = _door_to_this_loop()
        self.done: Signal = signals_of_this_loop()()
        self.finished = False
        self.result: ResultT
        self.error: BaseException | None = None

    def carry_out(self) -> None:
        """Make the call; in the thread."""
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
            self.error = error

    def finish(self) -> None:
        """Wake the task that waits; in the event loop."""
        self.finished = True
        self.done.set()


class StoreThread:
    """Makes calls in a thread of its own, one after the other.

    `anyio.to_thread` takes any thread of a pool that the application may keep busy, and twice as
    long to get there and back: with an SSD, as long as the sync that it is for.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        # A daemon: an application that never closes its store can end all the same.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        """Return what `function` returns, once it has.

        Whoever is cancelled meanwhile waits for it all the same, and gets the result: what was
        stored must be known to be.
        """
        call = _Call(lambda: function(*args))
        self._calls.put(call)
        try:
            with anyio.CancelScope(shield=True):
                await call.done.wait()
        except asyncio.CancelledError:
            await self._insist(call)
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # which the traceback holds that it holds
        return call.result

    async def _insist(self, call: _Call[Any]) -> None:
        """Wait on, cancelled by asyncio itself, which knows no shields; then be cancelled."""
        while not call.finished:
            call.done = signals_of_this_loop()()
            try:
                await call.done.wait()
            except asyncio.CancelledError:
                continue
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        task.uncancel()
        task.cancel()

    def stop(self) -> None:
        """Let the thread end after the calls it was given."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.carry_out()
            # If the event loop is no more, nor is anybody who waits.
            with contextlib.suppress(RuntimeError):
                call.enter_loop(call.finish)


def _door_to_this_loop() -> Callable[[Callable[[], object]], object]:
    """Return what has the event loop that is running call something, from any thread."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        enter: Callable[[Callable[[], object]], object]
        enter = trio.lowlevel.current_trio_token().run_sync_soon
        return enter
    return asyncio.get_running_loop().call_soon_threadsafe
