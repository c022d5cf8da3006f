"""The worker thread of one store, for its blocking calls."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.lowlevel

from papyra._signal import Signal, new_signal
from papyra._trio import running_trio
from papyra.exceptions import StoreForked
from papyra.persistence.backends._io.commit_token import CommitToken

ResultT = TypeVar("ResultT")


class _Call(Generic[ResultT]):
    """One call, and what became of it."""

    def __init__(self, function: Callable[[], ResultT]) -> None:
        self.function = function
        self.enter_loop = _portal_to_this_loop()
        self.done: Signal = new_signal()
        self.finished = False
        self.result: ResultT
        self.error: BaseException | None = None

    def execute(self) -> None:
        """Call the function; in the worker thread."""
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
            self.error = error
        # Here, and not where the task is woken: a Ctrl-C may get in between there, and whatever
        # wakes the task next must find this.
        self.finished = True

    def wake(self) -> None:
        """Wake the task that waits; in the event loop."""
        if not self.done.done():
            self.done.set_result(None)

    async def wait(self, timeout: float) -> None:
        """Wait until it is finished, or for so many seconds, whatever is cancelled meanwhile."""
        was_cancelled = False
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + timeout) as scope:
            while not self.finished:
                try:
                    await self.done
                except asyncio.CancelledError:
                    self.done = new_signal()
                    if scope.cancel_called:
                        raise
                    # By asyncio itself, which knows no shields.
                    was_cancelled = True
        if was_cancelled:
            _strike_later(cast("asyncio.Task[Any]", asyncio.current_task()))


def _strike_later(task: asyncio.Task[Any]) -> None:
    """Have the cancellation that `task` has waited through strike at what it awaits next.

    Unless whoever called ``cancel()`` takes it back before: `asyncio.timeout` does, when its block
    comes to its end after all.
    """

    def strike() -> None:
        if task.cancelling():
            task.uncancel()
            task.cancel()

    asyncio.get_running_loop().call_soon(strike)


async def raise_if_cancelled() -> None:
    """Let a cancellation strike that came while a call was waited for.

    A call is waited for to its end, so whoever makes one after the other would never notice it.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    if running_trio() is None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            await asyncio.sleep(0)  # by asyncio itself, of which anyio does not know


class WorkerThread:
    """Makes calls in a thread of its own, one after the other.

    `anyio.to_thread` takes any thread of a pool that the application may keep busy, and twice as
    long to get there and back: with an SSD, as long as the sync that it is for.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._given_up: _Call[Any] | None = None
        self._process = os.getpid()
        # A daemon: an application that never closes its store can end all the same.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(
        self,
        function: Callable[..., ResultT],
        *args: object,
        timeout: float | None = None,
        token: CommitToken | None = None,
    ) -> ResultT:
        """Return what `function` returns, once it has.

        Whoever is cancelled meanwhile waits for it all the same, and gets the result: what was
        stored must be known to be. Raises `TimeoutError` when it takes longer than `timeout`
        seconds, unless it has taken its commit `token` by then; and at once, as long as a call that
        was given up so is not at its end. Raises `StoreForked` in another process than it was made
        in, where there is no such thread.
        """
        if os.getpid() != self._process:
            raise StoreForked(
                f"this store was opened by process {self._process}, before that forked process "
                f"{os.getpid()}: make a backend here, once the other is closed"
            )
        if self._given_up is not None and not self._given_up.finished:
            raise TimeoutError("the store has not yet answered what it was asked before")
        call = _Call(lambda: function(*args))
        self._calls.put(call)
        await call.wait(math.inf if timeout is None else timeout)
        if not call.finished:
            if token is None or token.take():
                self._given_up = call
                raise TimeoutError(f"the store has not answered for {timeout:g} seconds")
            await call.wait(math.inf)
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # which the traceback holds that it holds
        return call.result

    def stop(self, at_last: Callable[[], object] | None = None) -> None:
        """Let the thread end after what it was given, and after one call that nobody awaits."""
        if at_last is not None:
            self._calls.put(_Call(at_last))
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.execute()
            # If the event loop is no more, nor is anybody who waits.
            with contextlib.suppress(RuntimeError):
                call.enter_loop(call.wake)


def _portal_to_this_loop() -> Callable[[Callable[[], object]], object]:
    """Return the thread-safe ``call_soon`` of the running event loop."""
    trio = running_trio()
    if trio is not None:
        enter: Callable[[Callable[[], object]], object]
        enter = trio.lowlevel.current_trio_token().run_sync_soon
        return enter
    return asyncio.get_running_loop().call_soon_threadsafe
