"""The event loop that a system runs on."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from contextvars import Context
from threading import get_ident
from typing import Any

from papyra._signal import NewSignal, signals_of_this_loop
from papyra.exceptions import WrongLoop

__all__ = ("HomeLoop",)


class HomeLoop:
    """The event loop that a system was started on, which alone may run its actors.

    Refs compare `thread` before they touch a mailbox (30 ns). Whatever waits compares the loop
    itself (200 ns), as one thread may run several: one after the other, or one inside another.
    """

    def __init__(self, system_id: str) -> None:
        """Take the loop that is running."""
        self._system_id = system_id
        self._asyncio, self._trio = _running()
        #: the thread it runs in
        self.thread = get_ident()
        self.new_signal: NewSignal = signals_of_this_loop()
        #: returns the running task
        self.current_task: Callable[[], object]
        if self._trio is None:
            self.current_task = functools.partial(asyncio.current_task, self._asyncio)
        else:
            self.current_task = sys.modules["trio"].lowlevel.current_task

    def is_here(self) -> bool:
        """Return whether this code runs on it."""
        return _running() == (self._asyncio, self._trio)

    def check(self) -> None:
        """Raise `WrongLoop` unless this code runs on it."""
        if not self.is_here():
            self.refuse()

    def refuse(self) -> None:
        """Raise `WrongLoop`."""
        raise WrongLoop(
            f"the actors of the system {self._system_id!r} can't be reached from another thread or "
            "event loop, nor without one: call system.portal.call(ref.ask, message), with any "
            "function in place of ref.ask, from a thread other than the system's own"
        )

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the loop call `function`, from any thread; raise `RuntimeError` if it has ended."""
        if self._trio is None:
            self._asyncio.call_soon_threadsafe(function)
        else:
            self._trio.run_sync_soon(function)

    @functools.cached_property
    def empty_context(self) -> Context:
        """A context in which nothing is set but which library of coroutines this is.

        anyio asks sniffio for that, which can't tell by itself in a callback of asyncio's loop. To
        be copied, which takes no time.
        """
        context = Context()
        sniffio = sys.modules.get("sniffio")
        if sniffio is not None and self._trio is None:
            context.run(sniffio.current_async_library_cvar.set, "asyncio")
        return context


def _running() -> tuple[Any, Any]:
    """Return the loop of asyncio and the run of trio in which this code runs; `None` for none.

    There may be both: trio as a guest of asyncio, or one that was run inside the other. Between the
    turns of a guest there is no task of trio.
    """
    lowlevel = getattr(sys.modules.get("trio"), "lowlevel", None)
    run = lowlevel.current_trio_token() if lowlevel and lowlevel.in_trio_task() else None
    return asyncio._get_running_loop(), run
