"""Cancellation that knows no scopes has one outcome, whenever it strikes.

Everybody stops, what was acknowledged is stored, the store is closed, nothing is left running, and
the right exception comes out. More moments: ``PAPYRA_CANCELLATIONS=1 python -m pytest
tests/runtime/test_cancellation.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import uvloop

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForOne
from papyra._runtime import shutdown
from papyra.exceptions import (
    ActorStopped,
    BackendInUse,
    EscalatedFailure,
    SystemNotRunning,
    WrongTask,
)
from papyra.persistence import Append, PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.actors import Echo, Gate, Parent, spawn_child, story
from tests.conftest import LOOPS

#: Every how many-th turn of the event loop is tried.
STRIDE = 1 if "PAPYRA_CANCELLATIONS" in os.environ else 17

NEW_LOOP = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Counter(Actor):
    """Stores each number that it is told, and then says that it has."""

    def __init__(self, acknowledged: list[int]) -> None:
        self.acknowledged = acknowledged

    async def on_start(self) -> None:
        self.context.spawn(Echo, name="child")

    async def receive(self, number: int) -> int:
        await self.context.persist(("Counted", {"number": number}))
        self.acknowledged.append(number)
        return number


class Sleeper(Actor):
    async def receive(self, message: Any) -> None:
        await anyio.sleep_forever()


class World:
    """A system that lives from start to stop, and what has to hold after that."""

    def __init__(self, store: PersistenceBackend) -> None:
        self.store = store
        self.acknowledged: list[int] = []
        self.refs: list[ActorRef] = []

    async def live(self) -> None:
        async with ActorSystem("world", persistence=self.store, shutdown_timeout=60) as system:
            counter = system.spawn(Counter, self.acknowledged, name="counter")
            self.refs = [counter, system.spawn(Echo, name="echo")]
            for number in range(3):
                await counter.ask(number)
            for number in range(3, 6):
                await counter.tell(number)
            assert await self.refs[1].ask("hello") == "hello"

    async def check(self) -> None:
        assert not any(ref.is_alive for ref in self.refs)
        async with self.store as store:  # raises if somebody hosts it still
            events = await store.list_events()
            assert (await store.scan()).is_clean
        stored = [e.payload["number"] for e in events if e.event_type == "Counted"]
        assert stored == list(range(len(stored)))
        assert set(self.acknowledged) <= set(stored)
        check_lives(events)


def check_lives(events: list[PersistedEvent]) -> None:
    lives: dict[str, list[str]] = {}
    for event in events:
        if event.event_type.startswith("Actor"):
            lives.setdefault(event.actor_address, []).append(event.event_type)
    for life in lives.values():
        # One that was told to stop before it had started has no start, and none has a crash.
        assert life in (["ActorStarted", "ActorStopped"], ["ActorStopped"]), lives


@pytest.fixture(params=["memory", "json"])
def new_store(request: pytest.FixtureRequest) -> Iterator[Callable[[], PersistenceBackend]]:
    numbers = itertools.count()
    # In memory, where there is such a place: a disk that stalls is not what this is about.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared) as directory:

        def new() -> PersistenceBackend:
            if request.param == "memory":
                return InMemoryPersistence()
            return JsonFilePersistence(Path(directory) / f"{next(numbers)}.ndjson", fsync="no")

        yield new


def moments() -> Iterator[int]:
    """Yield moments to strike in, the later the fewer, unless all of them are asked for.

    While a disk is slow the loop makes any number of turns.
    """
    moment, stride = 0, STRIDE
    for number in itertools.count(1):
        yield moment
        moment += stride
        if STRIDE > 1 and number % 10 == 0:
            stride *= 2


def after_turns(turns: list[int], strike: Callable[[], object]) -> None:
    """Call `strike` in these turns of the running event loop."""
    loop, turn = asyncio.get_running_loop(), 0

    def count() -> None:
        nonlocal turn
        if turn in turns:
            strike()
        turn += 1
        if turn <= max(turns):
            # No longer than that: a loop that never waits starves the threads of the stores.
            loop.call_soon(count)

    loop.call_soon(count)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT interrupt this process, which a shell may have started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


@pytest.mark.parametrize("loop", list(NEW_LOOP))
@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_task_of_a_system_may_be_cancelled_in_any_turn_of_the_loop(
    new_store: Callable[[], PersistenceBackend], loop: str, times: int
) -> None:
    async def run(turn: int) -> bool:
        world = World(new_store())
        task = asyncio.create_task(world.live())
        after_turns([turn + 2 * again for again in range(times)], task.cancel)
        await asyncio.wait([task])
        struck = task.cancelled()
        if not struck:
            task.result()
        assert not others()
        await world.check()
        return struck

    with asyncio.Runner(loop_factory=NEW_LOOP[loop]) as runner:
        for turn in moments():
            if not runner.run(run(turn)):
                break
    assert turn > STRIDE


@pytest.mark.parametrize("loop", list(NEW_LOOP))
def test_every_task_of_a_system_may_be_cancelled_in_any_turn_of_the_event_loop(
    new_store: Callable[[], PersistenceBackend], loop: str
) -> None:
    """As `asyncio.run` does at its end, when the system's task is still running."""

    async def run(turn: int) -> bool:
        world = World(new_store())
        task = asyncio.create_task(world.live())
        main = asyncio.current_task()

        def sweep() -> None:
            for other in asyncio.all_tasks():
                if other is not main:
                    other.cancel()

        after_turns([turn], sweep)
        await asyncio.wait([task])
        struck = task.cancelled()
        if not struck:
            task.result()
        if others():
            await asyncio.wait(others())
        await world.check()
        return struck

    with asyncio.Runner(loop_factory=NEW_LOOP[loop]) as runner:
        for turn in moments():
            if not runner.run(run(turn)):
                break
    assert turn > STRIDE


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("loop", list(NEW_LOOP))
def test_ctrl_c_in_any_turn_of_asyncio_stops_a_system_in_order(
    new_store: Callable[[], PersistenceBackend], loop: str
) -> None:
    def run(turn: int) -> bool:
        world = World(new_store())

        async def main() -> None:
            ended = False
            after_turns([turn], lambda: None if ended else signal.raise_signal(signal.SIGINT))
            try:
                await world.live()
            finally:
                ended = True

        struck = False
        with asyncio.Runner(loop_factory=NEW_LOOP[loop]) as runner:
            try:
                runner.run(main())
            except KeyboardInterrupt:
                struck = True
        asyncio.run(world.check())
        return struck

    for turn in moments():
        if not run(turn):
            break
    assert turn > STRIDE


class _InterruptAt(trio.abc.Instrument):
    """Presses Ctrl-C before the n-th step of any task, the m-th, ..."""

    def __init__(self, *steps: int) -> None:
        self._steps = steps
        self.step = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.step in self._steps:
            signal.raise_signal(signal.SIGINT)
        self.step += 1


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("again", [None, 1, 3, 10])
def test_ctrl_c_at_any_step_of_trio_stops_a_system_in_order(
    new_store: Callable[[], PersistenceBackend], again: int | None
) -> None:
    def run(step: int) -> bool:
        world = World(new_store())
        interrupt = _InterruptAt(step, *() if again is None else (step + again,))
        struck = False
        try:
            trio.run(world.live, instruments=[interrupt])
        except KeyboardInterrupt:
            struck = True
        trio.run(world.check)
        return struck

    for step in moments():
        if not run(step):
            break
    assert step > STRIDE


async def told_to_sleep(system: ActorSystem) -> list[ActorRef]:
    refs = [system.spawn(Sleeper), system.spawn(Sleeper)]
    for ref in refs:
        await ref.tell("sleep")
    return refs


async def by_timeout(block: Callable[[], Awaitable[None]], seconds: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await block()


async def by_wait_for(block: Callable[[], Awaitable[None]], seconds: float) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(block(), seconds)


async def by_cancelling_twice(block: Callable[[], Awaitable[None]], seconds: float) -> None:
    task = asyncio.ensure_future(block())
    asyncio.get_running_loop().call_later(seconds, task.cancel)
    asyncio.get_running_loop().call_later(seconds * 1.5, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_a_sibling(block: Callable[[], Awaitable[None]], seconds: float) -> None:
    async def fail() -> None:
        await asyncio.sleep(seconds)
        raise ValueError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            tasks.create_task(block())  # type: ignore[arg-type]
    assert [str(error) for error in caught.value.exceptions] == ["mine"]


@pytest.mark.parametrize("loop", list(NEW_LOOP))
@pytest.mark.parametrize("strike", [by_timeout, by_wait_for, by_cancelling_twice, by_a_sibling])
@pytest.mark.parametrize("inside", [True, False])
def test_a_systems_block_cancelled_while_actors_are_busy_ends_in_time(
    tmp_path: Path, loop: str, strike: Any, inside: bool
) -> None:
    refs: list[ActorRef] = []
    path = tmp_path / "store.ndjson"

    async def block(seconds: float) -> None:
        store = JsonFilePersistence(path)
        # It lasts until it is struck, however late it has begun.
        patience = 0.1 if inside else 4 * seconds
        async with ActorSystem("s", persistence=store, shutdown_timeout=patience) as system:
            refs.extend(await told_to_sleep(system))
            if inside:
                await anyio.sleep_forever()

    async def main() -> None:
        for seconds in (0.02, 0.1, 0.5, 2.0):
            await strike(functools.partial(block, seconds), seconds)
            if refs:
                break  # else it was over before it had begun, on a machine that is busy
        assert not others()
        assert not any(ref.is_alive for ref in refs)
        async with JsonFilePersistence(path) as store:
            stops = [e for e in await store.list_events() if e.event_type == "ActorStopped"]
        assert [e.payload for e in stops] == [{"reason": "cancelled", "unhandled": 0}] * 2

    with asyncio.Runner(loop_factory=NEW_LOOP[loop]) as runner:
        runner.run(main())


async def test_an_exception_of_a_systems_block_gives_way_to_a_cancellation_only(
    anyio_backend_name: str,
) -> None:
    """As with any cleanup that is cancelled: the exception is the context of the cancellation."""
    if anyio_backend_name == "trio":
        with anyio.CancelScope() as scope:
            with pytest.raises(ValueError, match="mine"):
                async with ActorSystem(shutdown_timeout=0.01) as system:
                    await told_to_sleep(system)
                    scope.cancel()
                    raise ValueError("mine")
        return

    async def block() -> None:
        async with ActorSystem(shutdown_timeout=0.05) as system:
            await told_to_sleep(system)
            leaving.set()
            raise ValueError("mine")

    leaving = asyncio.Event()
    task = asyncio.create_task(block())
    await leaving.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__context__, ValueError)


class Fails(Echo):
    async def receive(self, message: Any) -> Any:
        raise ValueError("escalate")


@pytest.mark.parametrize("loop", list(NEW_LOOP))
def test_an_escalated_failure_wins_over_a_cancellation(loop: str) -> None:
    async def block(store: InMemoryPersistence) -> None:
        policy = OneForOne(default=Decision.ESCALATE)
        async with ActorSystem(supervision=policy, persistence=store) as system:
            await system.spawn(Fails).tell("now")
            await anyio.sleep_forever()

    async def run(turn: int) -> type[BaseException]:
        store = InMemoryPersistence()
        task = asyncio.ensure_future(block(store))
        after_turns([turn], task.cancel)
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, BaseException)
        crashed = "ActorCrashed" in story(store)
        assert type(outcome) is (EscalatedFailure if crashed else asyncio.CancelledError)
        return type(outcome)

    with asyncio.Runner(loop_factory=NEW_LOOP[loop]) as runner:
        outcomes = {runner.run(run(turn)) for turn in range(40)}
    assert outcomes == {EscalatedFailure, asyncio.CancelledError}


class GroupActor(Actor):
    """Opens a task group when it starts, and leaves it when it stops, if it is told to."""

    def __init__(self, log: list[str], *, new: Callable[[], Any], leaves: bool = True) -> None:
        self.log = log
        self.new = new
        self.leaves = leaves

    async def on_start(self) -> None:
        self.log.append("start")
        self.group = self.new()
        await self.group.__aenter__()

    async def receive(self, message: Any) -> Any:
        match message:
            case "fail in the group":
                start = getattr(self.group, "start_soon", None) or (
                    lambda function: self.group.create_task(function())
                )
                start(self.fail)
            case "fail, and wait for it":
                self.group.start_soon(self.fail)
                await anyio.sleep_forever()
            case "work in the group":
                self.group.start_soon(self.work)
        return message

    async def fail(self) -> None:
        raise ValueError("in the group")

    async def work(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.log.append("work ended")

    async def on_stop(self) -> None:
        self.log.append("stop")
        if self.leaves:
            self.group.cancel_scope.cancel() if hasattr(self.group, "cancel_scope") else None
            await self.group.__aexit__(None, None, None)


def crashes(store: InMemoryPersistence) -> list[tuple[str, str, str]]:
    return [
        (e.payload["error_type"], e.payload["where"], e.payload["decision"])
        for e in store.events
        if e.event_type == "ActorCrashed"
    ]


@pytest.mark.parametrize("kind", ["anyio", "asyncio"])
async def test_a_task_group_that_fails_while_its_actor_is_idle_is_a_crash_of_the_actor(
    persistence: InMemoryPersistence, anyio_backend_name: str, kind: str
) -> None:
    new = anyio.create_task_group
    if kind == "asyncio" and anyio_backend_name != "trio":
        new = asyncio.TaskGroup  # type: ignore[assignment]
    log: list[str] = []
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(GroupActor, log, new=new)
        assert await ref.ask("fail in the group") == "fail in the group"
        while "ActorRestarted" not in story(persistence):
            await anyio.lowlevel.checkpoint()
        assert await ref.ask("fine") == "fine"
    assert log == ["start", "stop", "start", "stop"]
    assert crashes(persistence) == [("ExceptionGroup", "on_stop", "restart")]


async def test_a_task_group_that_fails_while_its_actor_is_busy_fails_the_asker_too(
    persistence: InMemoryPersistence,
) -> None:
    log: list[str] = []
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(GroupActor, log, new=anyio.create_task_group)
        with pytest.raises(ExceptionGroup) as caught:
            await ref.ask("fail, and wait for it")
        assert str(caught.value.exceptions[0]) == "in the group"
        assert await ref.ask("fine") == "fine"
    assert log == ["start", "stop", "start", "stop"]


@pytest.mark.parametrize("what", ["fail in the group", "work in the group", "nothing"])
async def test_a_task_group_that_an_actor_never_leaves_stops_it_as_task_group_left_open(
    persistence: InMemoryPersistence, what: str
) -> None:
    log: list[str] = []
    async with ActorSystem(persistence=persistence) as system:
        parent = system.spawn(Parent)
        ref = await spawn_child(parent, GroupActor, log, new=anyio.create_task_group, leaves=False)
        await ref.ask(what)
        await ref.stop()
        assert await parent.ask(("children",)) == ()
        while what == "work in the group" and "work ended" not in log:
            await anyio.lowlevel.checkpoint()
    assert crashes(persistence) == [("TaskGroupLeftOpen", "on_stop", "stop")]
    assert log[:2] == ["start", "stop"]


async def test_an_actor_is_not_restarted_within_a_task_group_that_it_did_not_leave(
    persistence: InMemoryPersistence,
) -> None:
    log: list[str] = []
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(GroupActor, log, new=anyio.create_task_group, leaves=False)
        with pytest.raises(AttributeError):
            await system.spawn(Echo).ask(AttributeError())
        await ref.tell("fail, and wait for it")
        with pytest.raises(ActorStopped):
            await ref.ask("and then?")
    assert ("TaskGroupLeftOpen", "on_stop", "stop") in crashes(persistence)
    assert log == ["start", "stop"]


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "left to the end"])
async def test_a_system_that_an_actor_starts_and_never_stops_ends_with_the_actor(
    tmp_path: Path, persistence: InMemoryPersistence, stopped: bool
) -> None:
    inner = JsonFilePersistence(tmp_path / "inner.ndjson")

    class Host(Actor):
        async def on_start(self) -> None:
            self.system = ActorSystem("inner", persistence=inner)
            await self.system.start()
            self.echo = self.system.spawn(Echo)

        async def receive(self, message: Any) -> Any:
            return await self.echo.ask(message)

    async with ActorSystem(persistence=persistence) as system:
        host = system.spawn(Host)
        assert await host.ask("hello") == "hello"
        if stopped:
            await host.stop()
    assert crashes(persistence) == [("TaskGroupLeftOpen", "on_stop", "stop")]
    stored: list[str] = []
    with anyio.fail_after(60):
        while not stored:
            # asyncio does not wait for tasks in groups that are never left.
            with contextlib.suppress(BackendInUse):
                async with JsonFilePersistence(tmp_path / "inner.ndjson") as store:
                    stored = [e.event_type for e in await store.list_events()]
            await anyio.lowlevel.checkpoint()
    assert stored == ["ActorStarted", "ActorStopped"]


async def test_a_shielded_task_in_a_group_that_an_actor_never_leaves_may_finish(
    persistence: InMemoryPersistence, anyio_backend_name: str
) -> None:
    ended, begun, let_go = False, anyio.Event(), anyio.Event()

    async def shielded() -> None:
        nonlocal ended
        begun.set()
        with anyio.CancelScope(shield=True):
            await let_go.wait()
        ended = True

    class Leaver(Actor):
        async def on_start(self) -> None:
            self.tasks = await anyio.create_task_group().__aenter__()
            self.tasks.start_soon(shielded)

        async def receive(self, message: Any) -> None: ...

    async def let_it_go() -> None:
        await ref.stop()
        let_go.set()

    async with anyio.create_task_group() as tasks, ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Leaver)
        await begun.wait()
        tasks.start_soon(let_it_go)
    # asyncio knows no shields from the cancellation of a task.
    assert ended is (anyio_backend_name == "trio")
    assert crashes(persistence) == [("TaskGroupLeftOpen", "on_stop", "stop")]


def actor_task(ref: ActorRef) -> asyncio.Task[Any]:
    (task,) = [t for t in asyncio.all_tasks() if t.get_name() == str(ref.address)]
    return task


@pytest.mark.parametrize("busy", [True, False])
async def test_an_actor_whose_task_is_cancelled_stops_and_has_not_crashed(
    persistence: InMemoryPersistence, anyio_backend_name: str, busy: bool
) -> None:
    if anyio_backend_name == "trio":
        return  # nobody can do that there
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Gate)
        entered, outcome = anyio.Event(), []

        async def ask() -> None:
            try:
                await ref.ask((entered, anyio.Event()))
            except ActorStopped as error:
                outcome.append(str(error))

        async with anyio.create_task_group() as tasks:
            if busy:
                tasks.start_soon(ask)
                await entered.wait()
            else:
                await ref.ask("hello")
            actor_task(ref).cancel()
            with pytest.raises(ActorStopped):
                await ref.ask("anybody?")
        assert len(outcome) == busy
        assert await system.spawn(Echo).ask("the system goes on") == "the system goes on"
    stops = [e.payload for e in persistence.events if e.event_type == "ActorStopped"]
    assert stops[0]["reason"] == "cancelled"
    assert "ActorCrashed" not in story(persistence)


async def test_an_actor_that_crashes_as_its_task_is_cancelled_takes_nobody_along(
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name == "trio":
        return  # nobody can do that there

    class Doomed(Actor):
        async def receive(self, message: Any) -> Any:
            actor_task(self.context.self_ref).cancel()
            raise LookupError(message)

    async with ActorSystem() as system:
        doomed = system.spawn(Doomed)
        with pytest.raises(LookupError):
            await doomed.ask("crash")
        with pytest.raises(LookupError):
            await doomed.ask("crash again, restarted")
        assert await system.spawn(Echo).ask("the system goes on") == "the system goes on"


async def test_a_system_whose_persistence_actor_is_cancelled_ends_in_order(
    tmp_path: Path, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        return  # nobody can do that there
    store = JsonFilePersistence(tmp_path / "store.ndjson")
    with pytest.raises(EscalatedFailure, match="persistence"):
        async with ActorSystem(persistence=store) as system:
            echo = system.spawn(Echo)
            await echo.ask("hello")
            actor_task(system.persistence).cancel()
            await anyio.sleep_forever()
    assert not echo.is_alive
    async with store:
        assert [e.event_type for e in await store.list_events()] == ["ActorStarted", "ActorStopped"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("backend", list(LOOPS))
def test_a_system_exit_comes_out_of_an_actor_once_all_actors_have_stopped(
    tmp_path: Path, backend: str, error: BaseException
) -> None:
    path = tmp_path / "store.ndjson"

    class Exits(Actor):
        async def receive(self, message: Any) -> None:
            await self.context.persistence.tell(
                Append(self.context.event(("Told", {"before": "exit"})))
            )
            raise error

    async def main() -> None:
        async with ActorSystem(persistence=JsonFilePersistence(path)) as system:
            system.spawn(Echo)
            await system.spawn(Exits).tell("exit")
            await anyio.sleep_forever()

    name, options = (
        ("trio", {}) if backend == "trio" else ("asyncio", {"use_uvloop": backend == "uvloop"})
    )
    with pytest.raises(type(error)) as caught:
        anyio.run(main, backend=name, backend_options=options)
    assert caught.value is error

    async def stored() -> list[str]:
        async with JsonFilePersistence(path) as store:
            return [e.event_type for e in await store.list_events()]

    assert sorted(asyncio.run(stored())) == sorted(["ActorStarted", "ActorStopped"] * 2 + ["Told"])


async def test_an_actor_that_swallows_cancellation_does_not_keep_the_store_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "GRACE", 0.05)
    path = tmp_path / "store.ndjson"
    let_go = False

    class Stubborn(Actor):
        async def receive(self, message: Any) -> None:
            while not let_go:
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class():
                    await anyio.lowlevel.cancel_shielded_checkpoint()

    async def look() -> None:
        nonlocal let_go
        while True:
            try:
                async with JsonFilePersistence(path) as store:
                    stored.extend(e.event_type for e in await store.list_events())
                break
            except BackendInUse:
                await anyio.lowlevel.checkpoint()
        let_go = True

    stored: list[str] = []
    async with anyio.create_task_group() as tasks:
        store = JsonFilePersistence(path)
        async with ActorSystem(persistence=store, shutdown_timeout=0.01) as system:
            await system.spawn(Stubborn).tell("go")
            await system.spawn(Echo).ask("hello")
            tasks.start_soon(look)
    assert "ActorStarted" in stored
    assert "papyra/Stubborn-1" in system.cancelled_actors


async def test_leaving_a_system_in_another_task_raises_wrong_task_and_stops_the_system(
    persistence: InMemoryPersistence,
) -> None:
    system = ActorSystem(persistence=persistence)
    caught: list[WrongTask] = []

    async def enter_and_wait() -> None:
        await system.__aenter__()
        system.spawn(Echo)
        entered.set()
        await left.wait()
        await system._runtime.task_group.__aexit__(None, None, None)  # so that trio can end it

    async def leave() -> None:
        try:
            await system.__aexit__(None, None, None)
        except WrongTask as error:
            caught.append(error)

    entered, left = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter_and_wait)
        await entered.wait()
        await leave()
        left.set()
    assert "in a task of its own" in str(caught[0])
    assert story(persistence) == ["ActorStarted", "ActorStopped"]


def test_an_async_generator_that_holds_a_system_may_be_closed_in_another_task(
    new_store: Callable[[], PersistenceBackend],
) -> None:
    """As some plugins do with fixtures, and notebooks with their cells."""
    store = new_store()

    async def fixture() -> Any:
        async with ActorSystem(persistence=store) as system:
            yield system

    generator = fixture()

    async def cell_1() -> ActorSystem:
        return await anext(generator)

    async def cell_2() -> None:
        assert await system.spawn(Echo).ask("hello") == "hello"

    with asyncio.Runner() as runner:
        system = runner.run(cell_1())
        runner.run(cell_2())
        with pytest.raises(WrongTask):
            runner.run(generator.aclose())
        with pytest.raises(SystemNotRunning):
            system.spawn(Echo)

    async def stored() -> list[str]:
        async with store:
            return [event.event_type for event in await store.list_events()]

    assert asyncio.run(stored()) == ["ActorStarted", "ActorStopped"]


@pytest.mark.parametrize("loop", list(NEW_LOOP))
def test_an_event_loop_that_ends_stops_a_system_that_was_never_left(
    new_store: Callable[[], PersistenceBackend], loop: str
) -> None:
    store = new_store()

    async def enter() -> None:
        system = await ActorSystem(persistence=store).__aenter__()
        await system.spawn(Echo).ask("hello")

    with asyncio.Runner(loop_factory=NEW_LOOP[loop]) as runner:
        runner.run(enter())

    async def stored() -> list[str]:
        async with store:
            return [event.event_type for event in await store.list_events()]

    assert asyncio.run(stored()) == ["ActorStarted", "ActorStopped"]
