"""The life of a system inside a web server."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
from anyio.abc import TaskGroup

from papyra._safe_repr import shown
from papyra.exceptions import InvalidSetting, SystemAlreadyStarted, SystemNotRunning
from papyra.system import ActorSystem

__all__ = ("Lifespan", "end_process", "lifespan")

logger = logging.getLogger("papyra")

#: Seconds in which requests that were in flight can be answered when their system has stopped.
GRACE = 3.0

#: What makes the system; one that is given itself can be started once.
MakeSystem: TypeAlias = ActorSystem | Callable[[], ActorSystem]
#: Called with the system that has started, before requests are served.
Setup: TypeAlias = Callable[[ActorSystem], Awaitable[object] | object]
#: Called with the system that ends by itself, at that moment.
OnFailure: TypeAlias = Callable[[ActorSystem], Awaitable[None]]


async def end_process(system: ActorSystem) -> None:
    """Have the server end as on SIGTERM, so that whoever runs it starts it anew.

    Where the server handles that signal in this process, it is raised at once: what is in flight is
    answered. In a process of `multiprocessing` that does not, such as hypercorn's workers, it is
    raised `GRACE` seconds after the system has stopped, and ends the process without more ado.
    Elsewhere, so in a test, the failure is only logged.
    """
    logger.critical("the system %r has ended by itself: %s", system.system_id, system.failure)
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, None):
        signal.raise_signal(signal.SIGTERM)
    elif multiprocessing.parent_process() is not None:
        await system.wait_stopped()
        await anyio.sleep(GRACE)
        signal.raise_signal(signal.SIGTERM)


class Lifespan:
    """Runs a system while a server runs an application: see `lifespan`."""

    def __init__(self, make_system: MakeSystem, setup: Setup | None, on_failure: OnFailure) -> None:
        if not callable(make_system) and not isinstance(make_system, ActorSystem):
            raise InvalidSetting(f"a lifespan is made of an ActorSystem, not {shown(make_system)}")
        if setup is not None and not callable(setup):
            raise InvalidSetting(f"setup is a function that gets the system, not {shown(setup)}")
        if not callable(on_failure):
            raise InvalidSetting(f"on_failure is a coroutine function, not {shown(on_failure)}")
        self._make_system = make_system
        self._setup = setup
        self._on_failure = on_failure
        self._is_running = False
        #: the system, once it has started and was set up; also when it has ended
        self.current: ActorSystem | None = None

    @property
    def system(self) -> ActorSystem:
        """The system. Raises `SystemNotRunning` before the start."""
        if self.current is None:
            raise SystemNotRunning("the server has not started the system yet")
        return self.current

    @asynccontextmanager
    async def __call__(self, app: object = None) -> AsyncIterator[dict[str, Any]]:
        """Run the system as long as the block runs.

        The value, ``{"system": system}``, is the state of each request in Starlette and FastAPI.
        Raises what the system raises as it starts, and as it ends.
        """
        del app
        if self._is_running:
            raise SystemAlreadyStarted("this lifespan runs already: it is of one server at a time")
        self._is_running, self.current = True, None
        try:
            async with _Host(self, self._setup, self._on_failure).run(self._make_system):
                yield {"system": self.system}
        finally:
            self._is_running = False


class _Host:
    """The task that a system runs in.

    A system cancels that task when it fails. If it was the server's own one, what the server waits
    for would end behind its back.
    """

    def __init__(self, lifespan: Lifespan, setup: Setup | None, on_failure: OnFailure) -> None:
        self._lifespan = lifespan
        self._setup = setup
        self._on_failure = on_failure
        self._begun, self._stop = anyio.Event(), anyio.Event()
        self._error: BaseException | None = None
        self._tells = False
        self._seeing_to = anyio.CancelScope()

    @asynccontextmanager
    async def run(self, make_system: MakeSystem) -> AsyncIterator[None]:
        """Run the system around a block; raise the error of that, or what has ended the system."""
        raised: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._live, make_system, tasks)
            await self._begun.wait()
            if self._error is None:
                try:
                    yield
                # Raised below, as a group would wrap it.
                except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001
                    raised = error
                    tasks.cancel_scope.cancel()
                self._seeing_to.cancel()
                self._stop.set()
        if (ended := raised or self._error) is not None:
            raise ended

    async def _live(self, make_system: MakeSystem, tasks: TaskGroup) -> None:
        system = None
        try:
            system = make_system if isinstance(make_system, ActorSystem) else make_system()
            async with system:
                await self._set_up(system)
                self._lifespan.current = system
                self._begun.set()
                try:
                    await self._stop.wait()
                finally:
                    if system.failure is not None:
                        self._tell(system, tasks)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised where the server sees it
            self._error = error
            # An actor that raises SystemExit ends the system, too.
            if system is not None and self._begun.is_set() and not self._stop.is_set():
                self._tell(system, tasks)
        finally:
            self._begun.set()

    async def _set_up(self, system: ActorSystem) -> None:
        done = None if self._setup is None else self._setup(system)
        if inspect.isawaitable(done):
            await done

    def _tell(self, system: ActorSystem, tasks: TaskGroup) -> None:
        """Have somebody see to it that the system has ended, once."""
        if not self._tells:
            self._tells = True
            tasks.start_soon(self._see_to, system)

    async def _see_to(self, system: ActorSystem) -> None:
        try:
            with self._seeing_to:
                await self._on_failure(system)
        except Exception:
            logger.exception("nobody sees to the end of the system %r", system.system_id)


def lifespan(
    make_system: MakeSystem, *, setup: Setup | None = None, on_failure: OnFailure = end_process
) -> Lifespan:
    """Return what runs a system while a server runs an application.

    ``FastAPI(lifespan=service)``, the same with Starlette, ``Litestar(lifespan=[service])``, or
    ``async with service():`` around anything else. `make_system` returns the system, which is
    started before the first request, and stopped after the last. `setup` is called with it in
    between, to spawn and to project; it may be a coroutine function.

    When the system ends by itself, as a failure was escalated, the server is not cancelled: it goes
    on to answer, `ready` and `health` say no from that moment on, and `on_failure` is called, which
    has the server end: see `end_process`. The failure is raised when the server ends the lifespan.
    """
    return Lifespan(make_system, setup, on_failure)
