"""The pytest plugin: fixtures for tests of actors that persist. Pytest finds it by itself.

Fixtures:

- ``persistence``: a store, a fresh one for each test; in memory, unless the environment variable
  ``PAPYRA_TEST_STORE`` names another backend, or ``module:callable`` that makes one.
- ``actor_system``: a running `CheckedSystem` on that store, on the event loop of the test. When the
  test is over it is stopped, and what the test left behind makes it fail.
- ``manual_clock``: a `ManualClock`; the other two go by it in a test that uses it.

Mark: ``@pytest.mark.papyra(given=[...], allow=[...], **options)`` puts facts into the store first,
says what may be left behind, and passes options to the system.

Any plugin may run the tests. With that of anyio, the system runs before the test's own fixtures
are made. With pytest-asyncio and pytest-trio, in any mode and on a loop of any scope, it starts
with the test: fixtures can name it, and use it only in the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.abc import TaskStatus

from papyra._trio import running_trio
from papyra.exceptions import BackendBusy, BackendInUse, SystemNotRunning
from papyra.persistence.backends.base import PersistenceBackend
from papyra.ref import ActorRef
from papyra.system import ActorSystem
from papyra.testing import _stores
from papyra.testing.checked_system import CheckedSystem
from papyra.testing.clock import ManualClock
from papyra.testing.preloaded import Given, given

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
def actor_system(request: pytest.FixtureRequest, persistence: PersistenceBackend) -> CheckedSystem:
    """Return a running system on `persistence`, which is stopped and checked after the test."""
    if "anyio_backend" in request.fixturenames:
        hosted: CheckedSystem = request.getfixturevalue("_system_of_anyio")
        return hosted
    if not inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        raise pytest.UsageError(
            f"{request.node.nodeid}: actor_system runs on the event loop of its test, which has "
            "none: make it 'async def'; or, with anyio's plugin, let it name actor_system or "
            "anyio_backend itself"
        )
    return _new_system(request, persistence)


@pytest.fixture
async def _system_of_anyio(
    request: pytest.FixtureRequest,
    anyio_backend: object,  # noqa: ARG001 - has anyio run this fixture in the loop of the test
    persistence: PersistenceBackend,
) -> AsyncIterator[CheckedSystem]:
    """Run a system in the loop of anyio's plugin."""
    system = _new_system(request, persistence)
    async with system.hosted():
        yield system
        await system.stop()
        if not system.is_checked:
            system.check()


def _new_system(request: pytest.FixtureRequest, persistence: PersistenceBackend) -> _HostedSystem:
    mark = request.node.get_closest_marker("papyra")
    options = dict(mark.kwargs) if mark else {}
    facts, actor = options.pop("given", ()), options.pop("actor", "given")
    clock = _clock(request)
    if clock is not None:
        options.setdefault("clock", clock)
    system = _HostedSystem(persistence=persistence, **options)
    if facts:
        system.given = given(
            facts, actor=actor, system_id=system.system_id, persistence=persistence, clock=clock
        )
    return system


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> None:
    """Let anyio run a test with a system, unless another plugin is asked to."""
    if (
        collector.config.pluginmanager.has_plugin("anyio")
        and collector.istestfunction(obj, name)
        and _names_a_system(obj)
        and not _is_of_another_plugin(collector, obj)
    ):
        pytest.mark.usefixtures("anyio_backend")(obj)


def _is_of_another_plugin(collector: pytest.Module | pytest.Class, obj: object) -> bool:
    """Return whether pytest-asyncio or pytest-trio runs this test."""
    if not inspect.iscoroutinefunction(obj):
        return False
    config = collector.config
    marks = {mark.name for mark in getattr(obj, "pytestmark", ())}
    marks |= {mark.name for mark in collector.iter_markers()}
    others = {each for each in ("asyncio", "trio") if config.pluginmanager.has_plugin(each)}
    if marks & {"anyio", *others}:
        return "anyio" not in marks
    if _is_auto(config, "anyio_mode"):
        return False
    return ("trio" in others and bool(config.getini("trio_mode"))) or (
        "asyncio" in others and _is_auto(config, "asyncio_mode")
    )


def _is_auto(config: pytest.Config, mode: str) -> bool:
    try:
        said = config.getoption(mode, None) or config.getini(mode)
    except ValueError:  # a version that has no such mode
        return False
    return bool(getattr(said, "value", said) == "auto")


def _names_a_system(obj: object) -> bool:
    try:
        return callable(obj) and "actor_system" in inspect.signature(obj).parameters
    except ValueError:  # of what is not written in Python
        return False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Stop and check the system as the last step of the test, so that it is the test that fails.

    A store that the test has used without a system is closed in the event loop of the test: one on
    a server has connections there. Whichever plugin runs the test, it runs what is put in here.
    """
    test = getattr(item, "obj", None)
    if not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(test):
        return (yield)
    system = item.funcargs.get("actor_system")
    store = item.funcargs.get("persistence")
    checked: Test = test
    if isinstance(store, PersistenceBackend):
        checked = _closing(checked, store)
    if isinstance(system, _HostedSystem):
        checked = _checking(checked, system)
    if checked is test:
        return (yield)
    item.obj = checked
    try:
        return (yield)
    finally:
        item.obj = test


Test: TypeAlias = Callable[..., Awaitable[None]]


def _closing(test: Test, store: PersistenceBackend) -> Test:
    @functools.wraps(test)
    async def closing(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        try:
            await test(*args, **kwargs)
        finally:
            # Whoever hosts it, or is using it, will close it.
            with contextlib.suppress(BackendInUse, BackendBusy):
                await store.aclose()

    return closing


def _checking(test: Test, system: _HostedSystem) -> Test:
    @functools.wraps(test)
    async def checking(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        system.is_checked = True  # here or, if the test fails, not at all
        if system.loop is None:
            async with system.hosted():
                await _check(test, system, args, kwargs)
            return
        if system.loop is not _running_loop():
            pytest.fail(
                "actor_system runs on the event loop of anyio's plugin, and this test on that of "
                "another plugin: leave out the mark 'anyio' and the fixture anyio_backend here, or "
                "the mark or the mode of the other plugin (asyncio_mode = strict)",
                pytrace=False,
            )
        await _check(test, system, args, kwargs)

    return checking


async def _check(
    test: Test, system: _HostedSystem, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    __tracebackhide__ = True
    await test(*args, **kwargs)
    await system.stop()
    system.check()


def _running_loop() -> object:
    """Return what there is one of for each run of an event loop."""
    trio = running_trio()
    return asyncio.get_running_loop() if trio is None else trio.lowlevel.current_trio_token()


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
        #: facts to store first
        self.given: Given | None = None
        #: the event loop on which it was started
        self.loop: object | None = None
        self._leave = anyio.Event()
        self._left = anyio.Event()
        self._error: Exception | None = None

    def spawn(self, *args: Any, **options: Any) -> ActorRef:
        """Start an actor, as `ActorSystem.spawn` does."""
        if self.loop is None:
            raise SystemNotRunning(
                "actor_system starts with the test itself: spawn actors in the test, not in its "
                "fixtures; with anyio's plugin (pytest.mark.anyio) these may use it, too"
            )
        return super().spawn(*args, **options)

    @contextlib.asynccontextmanager
    async def hosted(self) -> AsyncIterator[None]:
        """Run the system until the block is left.

        In a task of its own: were it the test's, a failure that is escalated to the system would
        cancel the task in which all tests of the module run.
        """
        self.loop = _running_loop()
        if self.given is not None:
            await self.given.store()
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._host)
                try:
                    yield
                finally:
                    self._leave.set()
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            # The group is ours, and what is in it was raised by the test.
            raise group.exceptions[0] from group.exceptions[0].__cause__

    async def _host(self, *, task_status: TaskStatus[None]) -> None:
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
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None:
        await ActorSystem.__aexit__(self, exc_type, exc, traceback)  # the plugin checks

    async def stop(self) -> None:
        """Stop the system. Any task may call this that is not an actor's."""
        self._leave.set()
        await self._left.wait()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
