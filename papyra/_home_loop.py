"""The event loop that a system runs on."""

from __future__ import annotations

import asyncio
import functools
import math
import sys
from collections.abc import Callable
from contextvars import Context
from threading import get_ident
from typing import Any

import anyio

from papyra._logs import about, fields
from papyra._signal import NewSignal, signals_of_this_loop
from papyra._trio import running_trio
from papyra.exceptions import WrongLoop

_running_loop, _modules = asyncio._get_running_loop, sys.modules
if sys.version_info >= (3, 12):
    _current_task: Callable[[Any], object] = asyncio.current_task
else:  # where that is not in C yet
    _current_task = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]


class HomeLoop:
    """The event loop that a system was started on, which alone may run its actors.

    Refs compare `thread` before they touch a mailbox (30 ns). Whatever waits compares the loop
    itself (200 ns), as one thread may run several: one after the other, or one inside another.
    """

    def __init__(self, system_id: str) -> None:
        """Take the loop that is running."""
        self._system_id = system_id
        self._asyncio: Any = _running_loop()
        self._trio = _trio_run()
        self._trio_run = _trio_run if self._trio is None else _run_of(sys.modules["trio"].lowlevel)
        #: the thread it runs in
        self.thread = get_ident()
        self.new_signal: NewSignal = signals_of_this_loop()
        #: whether a task can only be looked into while it runs
        self.is_opaque = self._trio is not None
        #: returns the running task
        self.current_task: Callable[[], object]
        self._current_deadline: Callable[[], float]
        if self._trio is None:
            self.current_task = functools.partial(_current_task, self._asyncio)
            self._current_deadline = anyio.current_effective_deadline
        else:
            self.current_task = sys.modules["trio"].lowlevel.current_task
            self._current_deadline = sys.modules["trio"].current_effective_deadline

    def has_deadline(self, task: Any) -> bool:
        """Return whether `task` is in a cancel scope that has a deadline, or is cancelled.

        `None` stands for one that has not begun. Trio can only be asked about the task that is
        running.
        """
        if task is None:
            return False
        if self.is_opaque or task is (here := self.current_task()):
            return self._current_deadline() < math.inf
        # As those do who bring their own tasks along: for this moment, it is the running one.
        self._switch(here, task)
        try:
            return self._current_deadline() < math.inf
        finally:
            self._switch(task, here)

    def is_in(self, task: object) -> bool:
        """Return whether this code runs in `task`, even where the loop has ended."""
        try:
            return self.current_task() is task
        except RuntimeError:  # trio's, where it does not run
            return False

    def _switch(self, before: Any, after: Any) -> None:
        asyncio._leave_task(self._asyncio, before)
        asyncio._enter_task(self._asyncio, after)

    def check(self) -> None:
        """Raise `WrongLoop` unless this code runs on it."""
        if _running_loop() is not self._asyncio or (
            # Who has not imported trio is not in it.
            "trio" in _modules and self._trio_run() is not self._trio
        ):
            self.refuse()

    def refuse(self) -> None:
        """Raise `WrongLoop`."""
        raise WrongLoop(
            f"the actors of the system {self._system_id!r} can't be reached from another thread or "
            "event loop, nor without one: call system.portal.call(ref.ask, message), with any "
            "function in place of ref.ask, from a thread other than the system's own"
        )

    def is_same(self, other: HomeLoop) -> bool:
        """Return whether `other` is this loop, as another system sees it."""
        return self._asyncio is other._asyncio and self._trio is other._trio

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the loop call `function`, from any thread; raise `RuntimeError` if it has ended."""
        if self._trio is None:
            self._asyncio.call_soon_threadsafe(function)
        else:
            self._trio.run_sync_soon(function)

    @functools.cached_property
    def empty_context(self) -> Context:
        """A context in which nothing is set but which library of coroutines this is, and for logs.

        anyio asks sniffio for that, which can't tell by itself in a callback of asyncio's loop. To
        be copied, which takes no time.
        """
        context = Context()
        context.run(about.set, fields(system=self._system_id))
        sniffio = sys.modules.get("sniffio")
        if sniffio is not None and self._trio is None:
            context.run(sniffio.current_async_library_cvar.set, "asyncio")
        return context


def _trio_run() -> Any:
    """Return the run of trio in which this code runs, or `None`.

    One of asyncio may be running, too: trio as its guest, or one that was run inside the other.
    Between the turns of a guest there is no task of trio.
    """
    trio = running_trio()
    return None if trio is None else trio.lowlevel.current_trio_token()


def _run_of(lowlevel: Any) -> Callable[[], Any]:
    in_trio_task, current_trio_token = lowlevel.in_trio_task, lowlevel.current_trio_token
    return lambda: current_trio_token() if in_trio_task() else None
