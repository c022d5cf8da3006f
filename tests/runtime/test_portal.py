"""`ActorSystem.portal` is the way to the actors from other threads."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorSystem, Decision, OneForOne
from papyra.exceptions import (
    ActorStopped,
    EscalatedFailure,
    StoreError,
    SystemNotRunning,
    WrongLoop,
)
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import MemoryStore
from tests.actors import Echo, Gate, Log


async def in_a_thread(function: Callable[[], Any]) -> Any:
    """Return what `function` returns in a thread that anyio knows nothing of."""
    done = anyio.Event()
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(thread.join)
    done.set()
    return future.result()


async def test_another_thread_tells_asks_spawns_and_stops_through_the_portal() -> None:
    log: list[Any] = []
    async with ActorSystem("shop") as system:

        def outside() -> Any:
            call = system.portal.call
            ref = call(lambda: system.spawn(Log, log, name="log"))
            call(ref.tell, 1)
            call(ref.tell_nowait, 2)
            assert call(system.find, "shop/log") is ref
            reply = call(ref.ask, 3)
            call(ref.stop)
            return reply

        assert await in_a_thread(outside) == 4
        assert await anyio.to_thread.run_sync(lambda: system.portal.call(system.audit).actors) == 0
    assert log == ["start", 1, 2, 3, "stop"]


async def test_a_portal_raises_what_the_call_raises() -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Echo)
        with pytest.raises(KeyError, match="lost"):
            await in_a_thread(lambda: system.portal.call(ref.ask, KeyError("lost")))
        with pytest.raises(RuntimeError, match="mine"):
            await in_a_thread(lambda: system.portal.call(ref.ask, RuntimeError("mine")))


async def test_many_threads_at_once_may_be_the_first_to_use_a_portal() -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Echo)
        replies: list[Any] = []

        def outside(number: int) -> None:
            replies.append(system.portal.call(ref.ask, number))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(anyio.to_thread.run_sync, outside, number)
    assert sorted(replies) == list(range(10))


async def test_a_portal_that_is_handed_to_a_thread_works_at_once() -> None:
    for _ in range(50):
        async with ActorSystem() as system:
            ref = system.spawn(Echo)
            portal, replies = system.portal, list[Any]()
            thread = threading.Thread(target=lambda: replies.append(portal.call(ref.ask, 1)))  # noqa: B023
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
            assert replies == [1]


async def test_a_portal_starts_tasks_and_enters_context_managers() -> None:
    entered: list[str] = []

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[str]:
        entered.append("in")
        yield "value"
        entered.append("out")

    async def starting(*, task_status: anyio.abc.TaskStatus[str]) -> str:
        task_status.started("started")
        return "done"

    async with ActorSystem() as system:
        ref = system.spawn(Echo)

        def outside() -> None:
            portal = system.portal
            assert portal.start_task_soon(ref.ask, 1, name="asks").result() == 1
            future, value = portal.start_task(starting)
            assert (value, future.result()) == ("started", "done")
            with portal.wrap_async_context_manager(manager()) as value:
                assert value == "value"

        await in_a_thread(outside)
    assert entered == ["in", "out"]


async def test_an_actor_at_work_in_a_worker_thread_asks_others_through_the_portal() -> None:
    class Worker(Actor):
        async def receive(self, message: Any) -> Any:
            system, other = self.context.system, message
            return await anyio.to_thread.run_sync(
                lambda: system.portal.call(other.ask, "from a thread")
            )

    async with ActorSystem() as system:
        other = system.spawn(Echo)
        assert await system.spawn(Worker).ask(other) == "from a thread"


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_another_event_loop_asks_an_actor_through_the_portal(other: str) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Echo)

        async def ask() -> Any:
            return await anyio.to_thread.run_sync(system.portal.call, ref.ask, "from afar")

        reply = await anyio.to_thread.run_sync(lambda: anyio.run(ask, backend=other))
    assert reply == "from afar"


async def test_the_portal_is_open_while_a_stopping_system_drains_its_mailboxes() -> None:
    replies: list[Any] = []

    class Worker(Actor):
        async def receive(self, message: Any) -> None:
            system = self.context.system
            await anyio.to_thread.run_sync(
                lambda: replies.append(system.portal.call(message.ask, "draining"))
            )

        async def on_stop(self) -> None:
            system = self.context.system
            await anyio.to_thread.run_sync(
                lambda: replies.append(system.portal.call(lambda: "stopping"))
            )

    async with ActorSystem() as system:
        other = system.spawn(Echo)
        await system.spawn(Worker).tell(other)
    assert replies == ["draining", "stopping"]


async def test_a_portal_call_in_the_event_loops_own_thread_is_refused_with_await_instead() -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Echo)
        with pytest.raises(WrongLoop, match="await the call here"):
            system.portal.call(ref.ask, 1)


async def test_before_the_start_and_after_the_end_there_is_no_portal() -> None:
    system = ActorSystem("shop")
    with pytest.raises(SystemNotRunning, match="its portal is open from"):
        _ = system.portal
    async with system:
        portal = system.portal
        ref = system.spawn(Echo)
    with pytest.raises(SystemNotRunning, match="its portal is open from"):
        _ = system.portal
    with pytest.raises(SystemNotRunning):
        await in_a_thread(lambda: portal.call(ref.ask, 1))


def test_a_portal_whose_event_loop_has_ended_raises_system_not_running(
    anyio_backend: Any,
) -> None:
    kept: list[Any] = []

    async def main() -> None:
        async with ActorSystem() as system:
            kept.append(system.portal)
            kept.append(system.spawn(Echo))
            assert await in_a_thread(lambda: kept[0].call(kept[1].ask, 1)) == 1

    name, options = anyio_backend
    anyio.run(main, backend=name, backend_options=options)
    portal, ref = kept
    outcomes: list[BaseException] = []

    def outside() -> None:
        with pytest.raises(SystemNotRunning) as caught:
            portal.call(ref.ask, 1)
        outcomes.append(caught.value)

    thread = threading.Thread(target=outside)
    thread.start()
    thread.join()
    assert len(outcomes) == 1


async def test_the_portal_is_open_while_a_system_opens_its_store() -> None:
    class Scanned(MemoryStore):
        system: ActorSystem

        async def open(self) -> None:
            system = self.system
            seen.append(await in_a_thread(lambda: system.portal.call(lambda: "open")))
            await super().open()

    seen: list[str] = []
    store = Scanned()
    store.system = ActorSystem(persistence=PersistenceBackend(store))
    async with store.system:
        pass
    assert seen == ["open"]


async def test_a_portal_call_that_would_not_end_is_cancelled_and_the_thread_told() -> None:
    started, outcomes = threading.Event(), list[str]()

    async def wait_for_ever() -> None:
        started.set()
        await anyio.sleep_forever()

    def outside(system: ActorSystem) -> None:
        with pytest.raises(SystemNotRunning, match="its portal is open from"):
            system.portal.call(wait_for_ever)
        outcomes.append("told")

    async with anyio.create_task_group() as tasks, ActorSystem() as system:
        tasks.start_soon(anyio.to_thread.run_sync, outside, system)
        await anyio.to_thread.run_sync(started.wait)
    assert outcomes == ["told"]


async def test_a_portal_ask_under_way_at_the_end_of_the_system_raises_actor_stopped() -> None:
    entered, release = anyio.Event(), anyio.Event()
    outcomes: list[str] = []

    def outside(system: ActorSystem, gate: Any) -> None:
        with pytest.raises(ActorStopped):
            system.portal.call(gate.ask, (entered, release))
        outcomes.append("stopped")

    async with anyio.create_task_group() as tasks, ActorSystem(shutdown_timeout=0.01) as system:
        gate = system.spawn(Gate)
        tasks.start_soon(anyio.to_thread.run_sync, outside, system, gate)
        await entered.wait()
    assert outcomes == ["stopped"]


async def test_a_thread_that_uses_the_portal_while_the_system_fails_is_answered() -> None:
    asked = threading.Event()

    class Fails(Actor):
        async def receive(self, message: Any) -> None:
            raise ValueError("fatal")

    def outside(system: ActorSystem, outcomes: list[str]) -> None:
        asked.set()
        with contextlib.suppress(SystemNotRunning, ActorStopped):
            while True:
                system.portal.call(lambda: None)
        outcomes.append("answered")

    outcomes: list[str] = []
    async with anyio.create_task_group() as tasks:
        with pytest.raises(EscalatedFailure):
            async with ActorSystem(supervision=OneForOne(default=Decision.ESCALATE)) as system:
                ref = system.spawn(Fails)
                tasks.start_soon(anyio.to_thread.run_sync, outside, system, outcomes)
                await anyio.to_thread.run_sync(asked.wait)
                await ref.tell("x")
                await anyio.sleep_forever()
    assert outcomes == ["answered"]


async def test_a_system_that_does_not_start_has_no_portal_afterwards() -> None:
    class Broken(MemoryStore):
        async def open(self) -> None:
            raise OSError("no disk")

    system = ActorSystem(persistence=PersistenceBackend(Broken()))
    with pytest.raises(StoreError):
        await system.start()
    with pytest.raises(SystemNotRunning):
        _ = system.portal
