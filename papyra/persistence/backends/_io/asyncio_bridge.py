"""The bridge to libraries that know asyncio alone, from whatever event loop is running."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import anyio
import anyio.from_thread

from papyra._trio import running_trio

Parameters = ParamSpec("Parameters")
ResultT = TypeVar("ResultT")


class AsyncioBridge:
    """Runs coroutine functions on asyncio: in place, or on trio in a thread with a loop of its own.

    The thread is started when it is needed, and ends with `stop`.
    """

    def __init__(self) -> None:
        self._portal: anyio.from_thread.BlockingPortal | None = None
        self._thread: threading.Thread

    async def run(
        self,
        function: Callable[Parameters, Awaitable[ResultT]],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> ResultT:
        """Return what `function` returns.

        Whoever is cancelled meanwhile cancels it, and waits until it has ended. If it has shielded
        itself and comes to its end, that is what counts here, too.
        """
        trio = running_trio()
        if trio is None:
            return await function(*args, **kwargs)
        done, enter_loop = trio.Event(), trio.lowlevel.current_trio_token().run_sync_soon
        results: list[ResultT] = []
        errors: list[BaseException] = []

        async def call() -> None:
            try:
                results.append(await function(*args, **kwargs))
            except BaseException as error:
                errors.append(error)
                raise
            finally:
                with contextlib.suppress(trio.RunFinishedError):
                    enter_loop(done.set)

        future = self._portal_into_thread().start_task_soon(call)
        try:
            await done.wait()
        except BaseException:
            future.cancel()
            with anyio.CancelScope(shield=True):
                await done.wait()
            if errors and isinstance(errors[0], asyncio.CancelledError):
                raise
        if errors:
            try:
                raise errors[0]
            finally:
                errors.clear()  # which the traceback holds that it holds
        return results[0]

    def _portal_into_thread(self) -> anyio.from_thread.BlockingPortal:
        """Return the portal into the worker thread, starting it if needed."""
        # Not `start_blocking_portal`: where nobody stops the thread, the garbage collector would
        # end it, and wait for that, in whatever thread it happens to run and with whatever locks.
        if self._portal is None:
            started: concurrent.futures.Future[anyio.from_thread.BlockingPortal]
            started = concurrent.futures.Future()

            async def serve() -> None:
                async with anyio.from_thread.BlockingPortal() as portal:
                    started.set_result(portal)
                    await portal.sleep_until_stopped()

            self._thread = threading.Thread(
                target=anyio.run, args=(serve,), name="papyra asyncio", daemon=True
            )
            self._thread.start()
            self._portal = started.result()
        return self._portal

    def stop(self) -> None:
        """End the thread. Used again, it starts another one."""
        portal, self._portal = self._portal, None
        if portal is not None:
            portal.call(portal.stop)
            self._thread.join()
