"""The way into a system's event loop from other threads."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar, overload

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal

from papyra._home_loop import HomeLoop
from papyra.exceptions import SystemForked, SystemNotRunning, WrongLoop

T = TypeVar("T")
ValueT = TypeVar("ValueT")


class Portal:
    """anyio's `BlockingPortal` into the event loop of a system, for as long as the system runs.

    Its methods are for other threads: ``system.portal.call(ref.ask, message)``. They wait, so from
    another event loop ``await anyio.to_thread.run_sync(system.portal.call, ref.ask, message)``. The
    portal is entered when it is first used. Calls that are under way when the last actor has
    stopped are cancelled: they, and whoever comes later, raise `SystemNotRunning`.
    """

    def __init__(self, system_id: str, loop: HomeLoop, tasks: TaskGroup) -> None:
        self._system_id = system_id
        self._loop = loop
        self._tasks = tasks
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._entered: concurrent.futures.Future[BlockingPortal] | None = None
        self._closing: anyio.Event | None = None
        self.closed = False

    @overload
    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T: ...

    @overload
    def call(self, function: Callable[..., T], *args: Any) -> T: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function(*args)`` in the loop, await what is to be awaited, and return the result.

        Raises what the call raises, `WrongLoop` in the thread of the loop itself, which must not
        wait for itself, and `SystemForked` in a process that was forked since. What interrupts
        this thread, as Ctrl-C does, cancels the call.
        """
        future = self.start_task_soon(function, *args)
        try:
            return self._result_of(future)
        except BaseException:
            future.cancel()
            raise

    async def call_from_any_loop(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await ``function(*args)`` in the loop, whichever loop this is.

        Raises as `call` does. Who is cancelled cancels the call, and does not wait for its end.
        """
        if threading.get_ident() == self._loop.thread:
            return await function(*args)
        here, done = HomeLoop(self._system_id), anyio.Event()

        def wake(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop that has asked may have ended
                here.call_soon(done.set)

        # In a thread, as the first call waits until the portal is open.
        start = functools.partial(self.start_task_soon, function, *args)
        future: concurrent.futures.Future[T] = await anyio.to_thread.run_sync(start)
        try:
            future.add_done_callback(wake)
            await done.wait()
        except BaseException:
            future.cancel()
            raise
        return self._result_of(future)

    @overload
    def start_task_soon(
        self, function: Callable[..., Awaitable[T]], *args: Any, name: object = None
    ) -> concurrent.futures.Future[T]: ...

    @overload
    def start_task_soon(
        self, function: Callable[..., T], *args: Any, name: object = None
    ) -> concurrent.futures.Future[T]: ...

    def start_task_soon(
        self, function: Callable[..., Any], *args: Any, name: object = None
    ) -> concurrent.futures.Future[Any]:
        """Start the call, and return its future. To cancel that cancels the call."""
        return self._through(lambda portal: portal.start_task_soon(function, *args, name=name))

    def start_task(
        self, function: Callable[..., Awaitable[T]], *args: Any, name: object = None
    ) -> tuple[concurrent.futures.Future[T], Any]:
        """Start the call, and return its future and what it gives to ``task_status.started``."""
        return self._through(lambda portal: portal.start_task(function, *args, name=name))

    def wrap_async_context_manager(
        self, manager: AbstractAsyncContextManager[T]
    ) -> AbstractContextManager[T]:
        """Return a context manager that enters and leaves `manager` in the loop."""
        return self._through(lambda portal: portal.wrap_async_context_manager(manager))

    def close(self) -> None:
        """Take no more calls, and cancel those that are under way."""
        with self._lock:
            self.closed = True
            entered = self._entered
        if self._closing is not None:
            self._closing.set()
        if entered is not None and not entered.done():
            entered.set_exception(self._not_running())

    def _result_of(self, future: concurrent.futures.Future[T]) -> T:
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if not self.closed:
                raise
            raise self._not_running() from None

    def _through(self, use: Callable[[BlockingPortal], ValueT]) -> ValueT:
        if os.getpid() != self._process:
            # Before anything that a thread of the parent may have locked. Nobody would answer.
            raise SystemForked(
                f"the system {self._system_id!r} runs in the process {self._process}, from which "
                "this one was forked: start one here, after the fork"
            )
        if threading.get_ident() == self._loop.thread:
            raise WrongLoop(
                f"the portal of the system {self._system_id!r} is for other threads than its own: "
                "await the call here"
            )
        try:
            return use(self._enter().result())
        except RuntimeError as error:
            if not self.closed:
                raise
            raise self._not_running() from error

    def _enter(self) -> concurrent.futures.Future[BlockingPortal]:
        with self._lock:
            if self.closed:
                raise self._not_running()
            if self._entered is None:
                entered: concurrent.futures.Future[BlockingPortal] = concurrent.futures.Future()
                try:
                    self._loop.call_soon(lambda: self._open(entered))
                except RuntimeError as error:  # the loop has ended, whatever became of the system
                    raise self._not_running() from error
                self._entered = entered
            return self._entered

    def _open(self, entered: concurrent.futures.Future[BlockingPortal]) -> None:
        if self.closed:
            return
        try:
            # The thread that came first must not give its context to all that follow.
            self._loop.empty_context.copy().run(self._tasks.start_soon, self._stay_open, entered)
        except RuntimeError as error:  # the task group has been left
            entered.set_exception(error)

    async def _stay_open(self, entered: concurrent.futures.Future[BlockingPortal]) -> None:
        self._closing = anyio.Event()
        # Shielded as actors are: their threads may need it until the last of them has stopped.
        with anyio.CancelScope(shield=True):
            async with BlockingPortal() as portal:
                if not self.closed:
                    entered.set_result(portal)
                    await self._closing.wait()
                await portal.stop(cancel_remaining=True)

    def _not_running(self) -> SystemNotRunning:
        return SystemNotRunning(
            f"the system {self._system_id!r} is not running: its portal is open from the start of "
            "the system until the last actor has stopped"
        )
