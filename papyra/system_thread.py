"""A system in a thread of its own, for code that has no event loop."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, overload

import anyio

from papyra._home_loop import HomeLoop
from papyra._portal import Portal
from papyra._safe_repr import type_and_text
from papyra.actor import Actor
from papyra.entity import EntityRef
from papyra.exceptions import SystemNotRunning, WrongLoop
from papyra.message import Message, ReplyT
from papyra.ref import ActorRef
from papyra.retry import Retry

__all__ = ("SystemThread",)

T = TypeVar("T")

logger = logging.getLogger("papyra")


class Threadable(Protocol):
    """The part of a system that runs in a thread."""

    @property
    def system_id(self) -> str: ...

    @property
    def portal(self) -> Portal: ...

    @property
    def spawn(self) -> Callable[..., ActorRef]: ...

    @property
    def entity(self) -> Callable[[type[Actor], str], EntityRef]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None: ...


class SystemThread:
    """A system that runs in a thread of its own: `ActorSystem.run_in_thread` starts it.

    Its methods are for all other threads, as many at a time as there are. They wait, and raise what
    the same call raises in an event loop: an actor's own error, `AskTimeout`, `ActorStopped`. When
    the system has stopped they raise `SystemNotRunning`, whose `__cause__` is the failure if that
    was one; `WrongLoop` in the system's own thread, so in an actor, which awaits instead; and
    `SystemForked` in a process that was forked from the one that has started it. What interrupts a
    thread that waits, as Ctrl-C does, cancels the call.

    It stops with the process: when the main thread and all that are no daemons have ended, the
    system stops in order, as on leaving a block. `stop`, or leaving ``with``, is the way before.
    """

    def __init__(
        self,
        system: Threadable,
        hurry: Callable[[], None],
        patience: float,
        backend: str,
        backend_options: dict[str, Any] | None,
    ) -> None:
        """Take a system that is to be started; `hurry` makes its stop quicker.

        A process that ends waits for it `patience` seconds at most.
        """
        self._system = system
        self._hurry = hurry
        self._patience = min(patience, threading.TIMEOUT_MAX)
        self._process = os.getpid()
        self._begun = threading.Event()
        self._error: BaseException | None = None
        self._loop: HomeLoop | None = None
        self._stop: anyio.Event
        run = functools.partial(
            anyio.run, self._live, backend=backend, backend_options=backend_options
        )
        self._thread = threading.Thread(
            target=self._run, args=(run,), name=f"papyra system {system.system_id}", daemon=True
        )

    def start(self) -> None:
        """Start it, and return when actors can be asked. Raises what the start raises."""
        self._thread.start()
        atexit.register(self._stop_at_exit)
        try:
            self._begun.wait()
        except BaseException:
            self._end()
            raise
        if self._error is not None:
            atexit.unregister(self._stop_at_exit)
            self._thread.join()
            raise self._error

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs: until the last actor has stopped and the store is closed."""
        return self._process == os.getpid() and self._thread.is_alive()

    def entity(self, actor_class: type[Actor], entity_id: str) -> EntityRef:
        """Return the ref of an entity, as `ActorSystem.entity` does."""
        return self.call(self._system.entity, actor_class, entity_id)

    def spawn(
        self,
        actor_class: type[Actor],
        *args: Any,
        name: str | None = None,
        mailbox_capacity: int | None = None,
        **kwargs: Any,
    ) -> ActorRef:
        """Start an actor, and return its ref, as `ActorSystem.spawn` does."""
        spawn = functools.partial(
            self._system.spawn,
            *(actor_class, *args),
            name=name,
            mailbox_capacity=mailbox_capacity,
            **kwargs,
        )
        return self.call(spawn)

    @overload
    def ask(
        self,
        ref: ActorRef,
        message: Message[ReplyT],
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> ReplyT: ...

    @overload
    def ask(
        self,
        ref: ActorRef,
        message: object,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> Any: ...

    def ask(
        self,
        ref: ActorRef,
        message: object,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Send `message`, wait, and return the reply, as `ActorRef.ask` does."""
        return self.call(
            lambda: ref.ask(message, timeout, retry=retry, idempotency_key=idempotency_key)
        )

    def tell(self, ref: ActorRef, message: object) -> None:
        """Put `message` into the mailbox, and wait for room, as `ActorRef.tell` does."""
        self.call(ref.tell, message)

    @overload
    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T: ...

    @overload
    def call(self, function: Callable[..., T], *args: Any) -> T: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function(*args)`` in the event loop, await it if need be, and return the result.

        This is for whatever there is no method for: ``thread.call(system.project, balances)``.
        """
        try:
            return self._system.portal.call(function, *args)
        except SystemNotRunning:
            if self._error is None:
                raise
            raise SystemNotRunning(
                f"the system {self._system.system_id!r} is not running any more"
            ) from self._error

    def stop(self) -> None:
        """Stop the system as on leaving a block, and return when it has. Twice is allowed.

        Raises `EscalatedFailure` if that is why it has stopped, and `WrongLoop` in its own thread.
        A Ctrl-C meanwhile makes it quicker, and is raised at once; the process waits for the rest.
        """
        if self._process != os.getpid():
            return
        if threading.current_thread() is self._thread:
            raise WrongLoop("a system can't be stopped by its own thread, which would never end")
        self._end()
        try:
            self._thread.join()
        except BaseException:
            self._call_soon(self._hurry)
            raise
        atexit.unregister(self._stop_at_exit)
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - raised where somebody waits
            self._error = error
        finally:
            self._begun.set()

    async def _live(self) -> None:
        async with self._system:
            self._stop = anyio.Event()
            self._loop = HomeLoop(self._system.system_id)
            self._begun.set()
            await self._stop.wait()

    def _end(self) -> None:
        """Have it begin to stop."""
        self._begun.wait()
        self._call_soon(self._let_end)

    def _let_end(self) -> None:
        self._stop.set()

    def _call_soon(self, function: Callable[[], object]) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon(function)
        except RuntimeError:
            return  # the loop has ended

    def _stop_at_exit(self) -> None:
        """Stop it as the process ends, which waits no longer than that may take."""
        if self._process != os.getpid():
            return  # a child that was forked ends
        self._end()
        try:
            self._thread.join(self._patience)
        except BaseException:
            self._call_soon(self._hurry)
            raise
        name = self._system.system_id
        if self._thread.is_alive():
            logger.error("the process ends before the system %r has stopped", name)
        elif self._error is not None:
            logger.error("the system %r has failed: %s", name, type_and_text(self._error))
