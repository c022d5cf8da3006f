"""Cancellation that nobody here asked for: tell whose it is, and wait through it.

anyio's cancel scopes know each other, so a shielded one keeps the others out. What knows no scopes
is asyncio's own ``Task.cancel()``, with all that stands on it (`asyncio.timeout`, ``wait_for``, the
first Ctrl-C, the end of `asyncio.run`), and trio's ``KeyboardInterrupt``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import signal
import weakref
from collections.abc import Callable, Coroutine, Iterable
from types import FunctionType
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import anyio
import anyio.lowlevel

from papyra._trio import running_trio

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])

#: Seconds between two looks at the tasks of a nursery, which tells nobody when it is empty.
_LOOK = 0.01


class _Ends(Protocol):
    def end_left_open(self) -> None:
        """End what shields itself from the cancellation of the group that it is in."""


#: The task of trio's in which an interrupt is to strike once more.
_interrupted: weakref.ref[Any] | None = None

#: Classes the methods of which may be interrupted, or may not.
_interruptible: WeakSet[type] = WeakSet()
_shielded: WeakSet[type] = WeakSet()

#: By the task of trio's that has started them.
_started: WeakKeyDictionary[Any, WeakSet[_Ends]] = WeakKeyDictionary()


def cancelled_within() -> bool:
    """Return whether a scope is cancelled that is entered, and not yet left, in this task."""
    return anyio.current_effective_deadline() == -math.inf


def cancelled_by_its_task() -> bool:
    """Return whether somebody called ``cancel()`` on the running asyncio task."""
    if running_trio() is not None:
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def take_cancellation() -> None:
    """Take the calls of ``cancel()`` on the running asyncio task for dealt with."""
    if running_trio() is not None:
        return
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


async def meet_cancellation() -> None:
    """Let a ``cancel()`` of the running asyncio task that has not struck yet strike here.

    A task that ends before it has struck is a cancelled one, and takes its group along.
    """
    if cancelled_by_its_task():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


def without_cancellation(error: BaseException) -> BaseException | None:
    """Return `error` less the cancellations in it, alone or in groups; `None` if that is all."""
    if isinstance(error, Exception):
        # First, as this asks no class of errors what it is: trio's asks back.
        return error
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)[1]
    return None if isinstance(error, cancelled) else error


def interrupt_later() -> None:
    """Have trio's ``KeyboardInterrupt``, which has been waited through, strike once more.

    As a cancellation does, it strikes at what the main task awaits next.
    """
    global _interrupted  # noqa: PLW0603 - there is one main task
    trio = running_trio()
    assert trio is not None
    _interrupted = weakref.ref(trio.lowlevel.current_task())
    signal.raise_signal(signal.SIGINT)


async def raise_if_cancelled() -> None:
    """Let strike what came while something was waited for to its end.

    Whoever waits so time and again would never notice it.
    """
    global _interrupted  # noqa: PLW0603
    if cancelled_within():
        await anyio.lowlevel.checkpoint_if_cancelled()
    trio = running_trio()
    if trio is None:
        if cancelled_by_its_task():
            await asyncio.sleep(0)  # by asyncio itself, of which anyio does not know
    elif _interrupted is not None and _interrupted() is trio.lowlevel.current_task():
        _interrupted = None
        await trio.lowlevel.checkpoint()


def interrupt_in(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that `error` is, or that is in it, if it is a group."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(interrupt_in, error.exceptions)), None)
    return error if isinstance(error, KeyboardInterrupt) else None


async def wait_through(
    event: anyio.Event, struck: Callable[[], None] | None = None
) -> BaseException | None:
    """Wait until `event` is set, through all cancellations; return the error to raise for them.

    That is the last ``KeyboardInterrupt``, or else the first cancellation. `struck` is called each
    time.
    """
    blow: BaseException | None = None
    with anyio.CancelScope(shield=True):
        while not event.is_set():
            try:
                await event.wait()
            except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as error:
                if blow is None or isinstance(error, KeyboardInterrupt):
                    blow = error
                if struck is not None:
                    struck()
    return blow


def start_surely(
    start: Callable[[Callable[[], Coroutine[Any, Any, None]]], object],
    function: Callable[[], Coroutine[Any, Any, None]],
    has_begun: Callable[[], bool],
) -> None:
    """Have `start` start a task for `function`; and again, if it is cancelled before it has begun.

    asyncio never runs such a task, not even what it would do in the end.
    """
    begun: list[Coroutine[Any, Any, None]] = []

    def begin() -> Coroutine[Any, Any, None]:
        begun.append(function())
        return begun[0]

    def check() -> None:
        if not has_begun():
            begun[0].close()
            in_a_task(lambda: start_surely(start, function, has_begun))

    start(begin)
    if running_trio() is None:
        # The task's own first step is in the queue already, and comes before this.
        asyncio.get_running_loop().call_soon(check)


def in_a_task(function: Callable[[], object]) -> None:
    """Call `function` in a task of asyncio's, soon; anyio starts no task in a mere callback."""
    has_run = False

    async def run() -> None:
        nonlocal has_run
        has_run = True
        function()

    def start() -> None:
        coroutine = run()

        def check(_: object) -> None:
            if not has_run:
                coroutine.close()
                start()

        asyncio.get_running_loop().create_task(coroutine).add_done_callback(check)

    start()


def shield_from_interrupts(function: FunctionT) -> FunctionT:
    """Return `function` so that trio raises no ``KeyboardInterrupt`` in its midst.

    It strikes the main task where that waits next.
    """
    trio = running_trio()
    return function if trio is None else trio.lowlevel.enable_ki_protection(function)


def enable_interrupts(function: FunctionT) -> FunctionT:
    """Return `function` with `shield_from_interrupts` undone for it, and for all that it calls."""
    trio = running_trio()
    return function if trio is None else trio.lowlevel.disable_ki_protection(function)


def enable_interrupts_in_methods(kind: type, names: Iterable[str]) -> None:
    """Undo `shield_from_interrupts` for methods of a class, decorated ones too, of users'."""
    if running_trio() is None or kind in _interruptible:
        return
    for name in names:
        function = getattr(kind, name, None)
        while function is not None:
            # Trio marks code, not calls: what is Papyra's own runs elsewhere, too.
            if isinstance(function, FunctionType) and not _is_own(function):
                enable_interrupts(function)
            function = getattr(function, "__wrapped__", None)
    _interruptible.add(kind)


def shield_methods_from_interrupts(*kinds: type) -> None:
    """Shield the methods of these classes, and of their bases, that are Papyra's own."""
    if running_trio() is None:
        return
    for base in {base: None for kind in kinds for base in kind.__mro__}:
        if base in _shielded or not _is_own(base):
            continue
        for attribute in vars(base).values():
            # Trio marks code, and what decorates others is not theirs alone.
            function = inspect.unwrap(getattr(attribute, "fget", attribute))
            if isinstance(function, FunctionType):
                shield_from_interrupts(function)
        _shielded.add(base)  # last: it may be interrupted itself


def _is_own(defined: type | FunctionType) -> bool:
    return (defined.__module__ or "").startswith("papyra.")


def cancel_groups_left_open() -> None:
    """Cancel the tasks of the groups that the running task has entered and will not leave."""
    trio = running_trio()
    if trio is not None:
        task = trio.lowlevel.current_task()
        for ends in tuple(_started.get(task, ())):
            ends.end_left_open()
        for nursery in task.child_nurseries:
            nursery.cancel_scope.cancel()
        return
    ours = anyio.get_current_task().id
    theirs = {task.id for task in anyio.get_running_tasks() if task.parent_id == ours}
    for task in asyncio.all_tasks():
        if id(task) in theirs:
            task.cancel()


def end_if_left_open(ends: _Ends) -> None:
    """Have `ends` told to end, should the running task of trio's never leave the group it is in.

    Tasks of asyncio's are cancelled one by one, through any shield.
    """
    trio = running_trio()
    if trio is not None:
        _started.setdefault(trio.lowlevel.current_task(), WeakSet()).add(ends)


async def wait_for_groups_left_open() -> None:
    """Return when nothing runs any more in the groups that the running task will not leave.

    Trio breaks down if a task ends before them; asyncio does not mind.
    """
    trio = running_trio()
    if trio is None:
        return
    nurseries = trio.lowlevel.current_task().child_nurseries
    with anyio.CancelScope(shield=True):
        while any(nursery.child_tasks for nursery in nurseries):
            await trio.sleep(_LOOK)
