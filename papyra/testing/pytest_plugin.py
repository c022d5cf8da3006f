"""The pytest plugin: fixtures for tests of actors that persist. Pytest finds it by itself.

Fixtures:

- ``persistence``: a store, a fresh one for each test; in memory, unless the environment variable
  ``PAPYRA_TEST_STORE`` names another backend, or ``module:callable`` that makes one.
- ``actor_system``: a running `CheckedSystem` on that store, on the event loop of the test. When the
  test is over it is stopped, and what the test left behind makes it fail.
- ``manual_clock``: a `ManualClock`; the other two go by it in a test that uses it.

Mark: ``@pytest.mark.papyra(given=[...], allow=[...], **options)`` puts facts into the store first,
says what may be left behind, and passes options to the system.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from papyra.exceptions import BackendBusy, BackendInUse
from papyra.persistence.backends.base import PersistenceBackend
from papyra.system import ActorSystem
from papyra.testing import _stores
from papyra.testing.checked import CheckedSystem
from papyra.testing.clock import ManualClock
from papyra.testing.given import given

__all__ = ("actor_system", "manual_clock", "persistence")

# Subclassed by users, whose failures should show what was compared.
pytest.register_assert_rewrite("papyra.testing.conformance")


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        "papyra(given=[...], allow=[...], **options): facts for the store of this test's "
        "actor_system, what the test may leave behind, and options of ActorSystem.",
    )


@pytest.fixture
def manual_clock() -> ManualClock:
    """Return a clock that stands still until the test advances it."""
    return ManualClock()


@pytest.fixture
def persistence(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[PersistenceBackend]:
    """Return a fresh store: in memory, or what ``PAPYRA_TEST_STORE`` names."""
    clock = _clock(request)

    def directory() -> Path:
        return tmp_path_factory.mktemp("papyra")

    try:
        store = _stores.new_store(directory, {"clock": clock.time} if clock else {})
    except _stores.UnknownStore as error:
        raise pytest.UsageError(str(error)) from None
    yield store
    _stores.forget(store)


@pytest.fixture
async def actor_system(
    request: pytest.FixtureRequest,
    anyio_backend: object,  # noqa: ARG001 - has anyio run this fixture in the loop of the test
    persistence: PersistenceBackend,
) -> AsyncIterator[CheckedSystem]:
    """Return a running system on `persistence`, which is stopped and checked after the test."""
    mark = request.node.get_closest_marker("papyra")
    options = dict(mark.kwargs) if mark else {}
    facts, actor = options.pop("given", ()), options.pop("actor", "given")
    clock = _clock(request)
    if clock is not None:
        options.setdefault("clock", clock)
    system = _HostedSystem(persistence=persistence, **options)
    if facts:
        await given(
            facts, actor=actor, system_id=system.system_id, persistence=persistence, clock=clock
        ).store()
    # In a task of its own: were it the test's, a failure that is escalated to the system would
    # cancel the task in which all tests of the module run.
    async with anyio.create_task_group() as tasks:
        await tasks.start(system.host)
        yield system
        await system.stop()
        if not system.is_checked:
            system.check()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Stop and check the system as the last step of the test, so that it is the test that fails.

    A store that the test has used without a system is closed in the event loop of the test: one on
    a server has connections there.
    """
    test = pyfuncitem.obj
    system = pyfuncitem.funcargs.get("actor_system")
    store = pyfuncitem.funcargs.get("persistence")
    if not inspect.iscoroutinefunction(test) or not (
        isinstance(system, _HostedSystem) or isinstance(store, PersistenceBackend)
    ):
        return (yield)

    @functools.wraps(test)
    async def checked(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        if isinstance(system, _HostedSystem):
            system.is_checked = True  # here or, if the test fails, not at all
        try:
            await test(*args, **kwargs)
            if isinstance(system, _HostedSystem):
                await system.stop()
                system.check()
        finally:
            if isinstance(store, PersistenceBackend):
                # Whoever hosts it, or is using it, will close it.
                with contextlib.suppress(BackendInUse, BackendBusy):
                    await store.aclose()

    pyfuncitem.obj = checked
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


def _clock(request: pytest.FixtureRequest) -> ManualClock | None:
    if "manual_clock" not in request.fixturenames:
        return None
    clock: ManualClock = request.getfixturevalue("manual_clock")
    return clock


class _HostedSystem(CheckedSystem):
    """A system in a task of its own, which any task may stop."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_checked = False
        self._leave = anyio.Event()
        self._left = anyio.Event()
        self._error: Exception | None = None

    async def host(self, *, task_status: TaskStatus[None]) -> None:
        """Run the system until somebody stops it."""
        started = False
        try:
            async with self:
                started = True
                task_status.started()
                await self._leave.wait()
        except Exception as error:
            if not started:
                raise
            self._error = error
        finally:
            self._left.set()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await ActorSystem.__aexit__(self, exc_type, exc, traceback)  # the plugin checks

    async def stop(self) -> None:
        """Stop the system. Any task may call this that is not an actor's."""
        self._leave.set()
        await self._left.wait()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
