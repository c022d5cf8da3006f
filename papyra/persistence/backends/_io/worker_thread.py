"""The worker thread of one store, for its blocking calls."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.lowlevel

from papyra._cancellation import cancelled_within, interrupt_later
from papyra._signal import Signal, new_signal, wake
from papyra._trio import running_trio
from papyra.exceptions import StoreForked
from papyra.persistence.backends._io.commit_token import CommitToken

ResultT = TypeVar("ResultT")


#: Tasks that a cancellation is to strike again, which it has done once already.
_to_be_struck: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


class _Call(ABC, Generic[ResultT]):
    """One call, and what became of it."""

    result: ResultT

    def __init__(self, function: Callable[..., ResultT], args: Sequence[object]) -> None:
        self._function, self._args = function, args
        #: what the task awaits that waits for it
        self.done: Signal | None = None
        self.finished = False
        self.error: BaseException | None = None

    def execute(self) -> None:
        """Call the function; in the worker thread."""
        try:
            self.result = self._function(*self._args)
        except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
            self.error = error
        # Here, and not where the task is woken: a Ctrl-C may get in between there, and whatever
        # wakes the task next must find this.
        self.finished = True

    def wake(self) -> None:
        """Wake the task that waits; in the event loop."""
        if self.done is not None:
            wake(self.done)

    @abstractmethod
    def enter_loop(self) -> None:
        """Have the event loop call `wake`. Raises `RuntimeError` if it has ended."""

    @abstractmethod
    async def wait(self, timeout: float | None) -> None:
        """Wait until it is finished, or for so many seconds, whatever is cancelled meanwhile."""

    @abstractmethod
    def hurry(self, seconds: float) -> None:
        """Have whoever waits with a time limit wait for so many seconds more, at most."""


class _TrioCall(_Call[ResultT]):
    def __init__(self, function: Callable[..., ResultT], args: Sequence[object]) -> None:
        super().__init__(function, args)
        self._token = sys.modules["trio"].lowlevel.current_trio_token()
        self._time: anyio.CancelScope | None = None

    def enter_loop(self) -> None:
        self._token.run_sync_soon(self.wake)

    async def wait(self, timeout: float | None) -> None:
        was_interrupted = False
        with anyio.move_on_after(timeout, shield=True) as self._time:
            is_waiting = True
            while is_waiting:
                self.done = new_signal()
                try:
                    await self.done
                    is_waiting = False
                except KeyboardInterrupt:
                    was_interrupted, is_waiting = True, not self.finished
        if was_interrupted:
            interrupt_later()

    def hurry(self, seconds: float) -> None:
        if self._time is not None:
            self._time.deadline = min(self._time.deadline, anyio.current_time() + seconds)


class _AsyncioCall(_Call[ResultT]):
    def __init__(
        self, function: Callable[..., ResultT], args: Sequence[object], watchdog: _Watchdog
    ) -> None:
        super().__init__(function, args)
        self.loop = asyncio.get_running_loop()
        self.is_overdue = False
        self._watchdog = watchdog

    def enter_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.wake)

    async def wait(self, timeout: float | None) -> None:
        self.done, self.is_overdue = self.loop.create_future(), False
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        before = task.cancelling() - (task in _to_be_struck)
        if timeout is not None:
            self._watchdog.watch(self, timeout)
        try:
            await self.done
        except asyncio.CancelledError:
            await self._wait_on(task, before)
        finally:
            self._watchdog.forget(self)

    def hurry(self, seconds: float) -> None:
        self._watchdog.hurry(self, seconds)

    async def _wait_on(self, task: asyncio.Task[Any], before: int) -> None:
        """Wait through cancellations, the first of which has struck.

        Few waits come to that, so only here are anyio's scopes shut out, which takes long. Theirs
        strike again by themselves, and are counted among asyncio's own, once. What strikes without
        them is asyncio's, be it counted `before`: a signal may have come right before the wait.
        """
        was_cancelled = not cancelled_within() or task.cancelling() > before + 1
        with anyio.CancelScope(shield=True):
            while not self.finished and not self.is_overdue:
                self.done = self.loop.create_future()
                try:
                    await self.done
                except asyncio.CancelledError:
                    was_cancelled = True  # by asyncio itself, which knows no shields
        if was_cancelled:
            _strike_later(task)


class _Watchdog:
    """Wakes whoever waits for a call for too long, by one timer of asyncio's for many calls.

    A timer for each takes as long as a sixth of an append, and hardly any would go off.
    """

    def __init__(self) -> None:
        #: until when each call may take, by the clock of its loop
        self._deadlines: dict[_AsyncioCall[Any], float] = {}
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: _AsyncioCall[Any], timeout: float) -> None:
        """Wake whoever waits for `call` after so many seconds, unless it is forgotten by then."""
        deadline = self._deadlines[call] = call.loop.time() + timeout
        if self._timer is None or self._loop is not call.loop or deadline < self._timer.when():
            self._set(call.loop, deadline)

    def hurry(self, call: _AsyncioCall[Any], seconds: float) -> None:
        """Wake whoever waits for a call that is watched after so many seconds, if not before."""
        deadline = self._deadlines.get(call)
        if deadline is not None and deadline > call.loop.time() + seconds:
            self.watch(call, seconds)

    def forget(self, call: _AsyncioCall[Any]) -> None:
        """Let a call take as long as it does."""
        self._deadlines.pop(call, None)

    def rest(self) -> None:
        """Have no timer any more, until there is another call."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        self.rest()
        self._loop, self._timer = loop, loop.call_at(deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for call, deadline in list(self._deadlines.items()):
            if deadline <= now:
                call.is_overdue = True
                call.wake()
                self.forget(call)
        if self._deadlines:
            self._set(self._loop, min(self._deadlines.values()))


def _strike_later(task: asyncio.Task[Any]) -> None:
    """Have the cancellation that `task` has waited through strike at what it awaits next.

    Unless whoever called ``cancel()`` takes it back before: `asyncio.timeout` does, when its block
    comes to its end after all.
    """

    def strike() -> None:
        _to_be_struck.discard(task)
        if task.cancelling():
            task.uncancel()
            task.cancel()

    _to_be_struck.add(task)
    asyncio.get_running_loop().call_soon(strike)


class _Calls:
    """A queue of calls to the thread, which waits for a byte in a pipe when there is none.

    A `queue.SimpleQueue` wakes it while the interpreter's lock is held, so it waits for that next,
    and is woken again: with an idle machine, that takes a tenth of an append. Writing lets go of
    the lock.
    """

    def __init__(self) -> None:
        self._calls: deque[_Call[Any] | None] = deque()
        self._reader, self._writer = os.pipe()

    def put(self, call: _Call[Any]) -> None:
        """Add a call."""
        self._calls.append(call)
        os.write(self._writer, b"\0")

    def end(self) -> None:
        """Add nothing any more."""
        self._calls.append(None)
        writer, self._writer = self._writer, -1  # a number that somebody else may get next
        os.close(writer)  # which wakes the thread, too

    def get(self) -> _Call[Any] | None:
        """Wait for a call, and return it; `None` at the end. In the thread."""
        # A call may be there without its byte, if a Ctrl-C got in between: the next one brings it.
        while not self._calls:
            os.read(self._reader, 4096)
        call = self._calls.popleft()
        if call is None:
            os.close(self._reader)
        return call


class WorkerThread:
    """Makes calls in a thread of its own, one after the other.

    `anyio.to_thread` takes any thread of a pool that the application may keep busy, and twice as
    long to get there and back: with an SSD, as long as the sync that it is for.
    """

    def __init__(self, name: str) -> None:
        self._calls = _Calls()
        self._given_up: _Call[Any] | None = None
        #: the call that somebody waits for
        self._at_hand: _Call[Any] | None = None
        self._watchdog = _Watchdog()
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
        call = self._new_call(function, args)
        self._at_hand = call
        self._calls.put(call)
        await call.wait(timeout)
        if not call.finished:
            if token is None or token.take():
                self._given_up = call
                raise TimeoutError(f"the store has not answered for {timeout:g} seconds")
            await call.wait(None)
        self._at_hand = None
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # which the traceback holds that it holds
        return call.result

    def hurry(self, seconds: float) -> None:
        """Have the call at hand, if it has a time limit, take so many seconds more, at most."""
        if self._at_hand is not None:
            self._at_hand.hurry(seconds)

    def stop(self, at_last: Callable[[], object] | None = None) -> None:
        """Let the thread end after what it was given, and after one call that nobody awaits."""
        if at_last is not None:
            self._calls.put(self._new_call(at_last, ()))
        self._calls.end()
        self._watchdog.rest()

    def _new_call(self, function: Callable[..., ResultT], args: Sequence[object]) -> _Call[ResultT]:
        if running_trio() is not None:
            return _TrioCall(function, args)
        return _AsyncioCall(function, args, self._watchdog)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.execute()
            # No context manager: what the thread does before it waits again keeps up who was woken.
            try:  # noqa: SIM105
                call.enter_loop()
            except RuntimeError:
                pass  # the event loop is no more, nor is anybody who waits
