"""`ActorSystem.wait_stopped` and `ActorSystem.failure`: how others learn that it has ended."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from papyra import Actor, ActorSystem, Decision, OneForOne
from papyra.exceptions import EscalatedFailure, SystemNotRunning, WrongLoop
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.actors import Echo, Gate
from tests.conftest import event_loops
from tests.runtime.test_portal import in_a_thread

anyio_backend = event_loops("asyncio", "trio")

ESCALATE = OneForOne(default=Decision.ESCALATE)


async def test_wait_stopped_returns_when_the_system_was_left_and_its_store_is_closed() -> None:
    store, seen = InMemoryPersistence(), list[Any]()
    waiting = anyio.Event()

    async def watch(system: ActorSystem) -> None:
        waiting.set()
        await system.wait_stopped()
        seen.append((system.is_running, store.is_closed, system.failure))

    async with anyio.create_task_group() as tasks, ActorSystem(persistence=store) as system:
        tasks.start_soon(watch, system)
        await waiting.wait()
        await system.spawn(Echo).ask(1)
        assert seen == []
    assert seen == [(False, True, None)]


async def test_wait_stopped_returns_at_once_in_any_loop_when_the_system_has_stopped() -> None:
    async with ActorSystem() as system:
        pass
    await system.wait_stopped()
    await system.wait_stopped()
    await in_a_thread(lambda: anyio.run(system.wait_stopped))
    await in_a_thread(lambda: anyio.run(system.wait_stopped, backend="trio"))


async def test_wait_stopped_raises_before_the_start_and_outside_of_the_loop() -> None:
    system = ActorSystem()
    assert system.failure is None
    with pytest.raises(SystemNotRunning, match="has not been started"):
        await system.wait_stopped()
    async with system:
        with pytest.raises(WrongLoop):
            await in_a_thread(lambda: anyio.run(system.wait_stopped))


async def test_wait_stopped_can_be_cancelled_and_stops_nothing_itself() -> None:
    async with ActorSystem() as system:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(system.wait_stopped)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        with anyio.move_on_after(0):
            await system.wait_stopped()
        assert await system.spawn(Echo).ask(1) == 1


async def test_an_actor_waits_in_the_background_for_the_system_to_stop() -> None:
    class Watcher(Actor):
        async def on_start(self) -> None:
            self.context.run_in_background(system.wait_stopped)

        async def receive(self, message: Any) -> None: ...

    async with ActorSystem(shutdown_timeout=60) as system:
        await system.spawn(Watcher).ask("begun?")
    assert system.cancelled_actors == ()


async def test_the_failure_of_a_system_is_known_before_its_actors_have_stopped() -> None:
    seen: list[Any] = []

    async def watch(system: ActorSystem) -> None:
        # The block is cancelled at once; the other actor is still at its message.
        while system.failure is None:
            await anyio.lowlevel.checkpoint()
        seen.append(system.failure)
        release.set()
        await system.wait_stopped()
        seen.append(system.failure)

    entered, release = anyio.Event(), anyio.Event()
    with pytest.raises(EscalatedFailure, match="ValueError: boom") as raised:
        async with anyio.create_task_group() as tasks:
            try:
                async with ActorSystem(supervision=ESCALATE, shutdown_timeout=60) as system:
                    gate = system.spawn(Gate, name="gate")
                    await gate.tell((entered, release))
                    await entered.wait()
                    tasks.start_soon(watch, system)
                    await system.spawn(Echo).tell(ValueError("boom"))
                    await anyio.sleep_forever()
            except EscalatedFailure as failure:
                caught = failure
        raise caught
    assert seen[0] is seen[1] is raised.value is system.failure
    assert isinstance(raised.value.__cause__, ValueError)


async def test_wait_stopped_in_the_block_itself_serves_until_a_failure_is_escalated() -> None:
    with pytest.raises(EscalatedFailure, match="boom"):
        async with ActorSystem(supervision=ESCALATE) as system:
            await system.spawn(Echo).tell(ValueError("boom"))
            await system.wait_stopped()


async def test_a_system_that_an_actor_ends_by_system_exit_has_no_failure() -> None:
    class Leaving(Actor):
        async def receive(self, message: Any) -> None:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with ActorSystem() as system:
            await system.spawn(Leaving).tell("go")
            await anyio.sleep_forever()
    assert system.failure is None
    await system.wait_stopped()


async def test_a_system_that_did_not_start_has_stopped() -> None:
    store = InMemoryPersistence()
    async with ActorSystem(persistence=store):
        second = ActorSystem(persistence=store)
        with pytest.raises(Exception, match="hosted"):
            await second.start()
        await second.wait_stopped()
        assert second.failure is None
