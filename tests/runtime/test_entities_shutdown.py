"""Ending the system: its entities sleep, after every other actor has stopped."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from papyra import Actor, ActorSystem, EntityRef
from papyra.exceptions import ActorStopped
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, wait_until_idle
from tests.actors import letters, story
from tests.runtime.test_entities import Account, Door, Slow


@pytest.fixture
def log() -> list[Any]:
    return []


async def test_all_that_are_awake_handle_what_they_have_and_stop(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Account, log)
        for number in range(10):
            for amount in range(3):
                system.entity(Account, str(number)).tell_nowait(amount)
    for number in range(10):
        steps = [what for each, what in log if each == str(number)]
        assert steps == ["made", "start", 0, 1, 2, "stop"]
    assert len(system.entities) == 0
    assert (system.entities.activations, system.entities.passivations) == (10, 10)
    assert letters(persistence) == []


async def test_they_stop_all_at_once() -> None:
    stopping = 0
    everybody = anyio.Event()

    class Waits(Actor):
        async def receive(self, message: Any) -> None:
            pass

        async def on_stop(self) -> None:
            nonlocal stopping
            stopping += 1
            if stopping == 100:
                everybody.set()
            await everybody.wait()

    async with ActorSystem() as system:
        for number in range(100):
            system.entity(Waits, str(number)).tell_nowait(1)
    assert system.cancelled_actors == ()


async def test_an_actor_that_handles_what_it_has_still_reaches_them(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    class Router(Actor):
        async def receive(self, message: str) -> None:
            await self.context.entity(Account, message).ask(1)

        async def on_stop(self) -> None:
            await self.context.entity(Account, "last").ask(1)

    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Account, log)
        router = system.spawn(Router)
        for number in range(20):
            router.tell_nowait(str(number % 7))
    assert sum(what == 1 for _, what in log) == 21
    assert log.count(("last", "stop")) == 1
    assert letters(persistence) == []


async def test_what_is_sent_to_one_that_stops_with_its_system_is_a_dead_letter(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    class Last(Account):
        entity_name = "last"

        async def on_stop(self) -> None:
            me, other = self.context.self_ref, self.context.entity(Account, "other")
            assert not me.is_alive
            assert not other.is_alive
            await me.tell("to itself")
            other.tell_nowait("to another")
            with pytest.raises(ActorStopped, match="other is not woken any more") as caught:
                await other.ask("asked")
            assert caught.value.handled == "never"
            await super().on_stop()

    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Last, log)
        system.entities.register(Account, log)
        last = system.entity(Last, "42")
        await last.ask(1)
    assert log[-1] == ("42", "stop")
    assert letters(persistence) == ["to itself", "to another", "asked"]
    with pytest.raises(ActorStopped):
        await last.ask(1)
    await last.stop()
    assert not last.is_alive


async def test_one_that_always_sends_itself_another_message_stops_promptly(
    persistence: InMemoryPersistence,
) -> None:
    class Ticks(Actor):
        async def receive(self, message: int) -> None:
            self.context.self_ref.tell_nowait(message + 1)
            if message % 10 == 0:
                self.context.passivate()

    async with ActorSystem(persistence=persistence, clock=ManualClock()) as system:
        await system.entity(Ticks, "42").tell(1)
    assert system.cancelled_actors == ()
    assert len(letters(persistence)) == 1


async def test_two_that_wake_each_other_stop_promptly() -> None:
    class Player(Actor):
        async def receive(self, message: int) -> None:
            other = "ping" if self.context.entity_id == "pong" else "pong"
            self.context.passivate()
            await self.context.entity(Player, other).tell(message + 1)

    async with ActorSystem() as system:
        await system.entity(Player, "ping").tell(1)
    assert system.cancelled_actors == ()
    assert len(system.entities) == 0


async def test_one_that_never_ends_its_message_is_cancelled_when_the_time_is_up(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    system = ActorSystem("bank", persistence=persistence, shutdown_timeout=0.05)
    system.entities.register(Account, log)
    async with system:
        account = system.entity(Account, "42")
        entered = anyio.Event()
        account.tell_nowait((entered, anyio.Event()))
        account.tell_nowait(13)
        await entered.wait()
    assert system.cancelled_actors == ("bank/account/42",)
    assert log == [("42", "made"), ("42", "start"), ("42", "stop")]
    assert letters(persistence) == [13]
    assert len(system.entities) == 0


async def test_one_that_never_ends_its_on_stop_is_cancelled_and_leaves_nobody_waiting(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    system = ActorSystem("bank", persistence=persistence, shutdown_timeout=0.05)
    system.entities.register(Slow, log, Door())
    errors: list[Exception] = []

    async def ask(ref: EntityRef) -> None:
        try:
            await ref.ask(13)
        except ActorStopped as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks, system:
        slow = system.entity(Slow, "42")
        await slow.ask("sleep")
        tasks.start_soon(ask, slow)
        await wait_until_idle()
    assert system.cancelled_actors == ("bank/slow/42",)
    assert len(errors) == 1
    assert letters(persistence) == [13]


@pytest.mark.parametrize("end", ["sleep", "stop"])
async def test_messages_for_the_next_life_are_handled_before_the_system_ends(
    log: list[Any], persistence: InMemoryPersistence, end: str
) -> None:
    door = Door()

    async def release() -> None:
        await wait_until_idle()
        door.release.set()

    async with (
        anyio.create_task_group() as tasks,
        ActorSystem("bank", persistence=persistence) as system,
    ):
        system.entities.register(Slow, log, door)
        slow = system.entity(Slow, "42")
        await slow.ask(end)
        await door.entered.wait()
        slow.tell_nowait(1)
        tasks.start_soon(release)
    assert [what for _, what in log if what != "made"] == ["start", "stop", "start", 1, "stop"]
    assert letters(persistence) == []


@pytest.mark.parametrize("end", ["sleep", "stop"])
async def test_a_system_that_ends_by_an_error_begins_no_other_life(
    log: list[Any], persistence: InMemoryPersistence, end: str
) -> None:
    door, errors = Door(), []

    async def ask(ref: EntityRef) -> None:
        try:
            await ref.ask(14)
        except ActorStopped as error:
            errors.append(error)
            door.release.set()

    async def run(tasks: Any) -> None:
        async with ActorSystem("bank", persistence=persistence) as system:
            system.entities.register(Slow, log, door)
            system.entities.register(Account, log)
            slow = system.entity(Slow, "42")
            await slow.ask(end)
            await door.entered.wait()
            slow.tell_nowait(13)
            tasks.start_soon(ask, slow)
            await wait_until_idle()
            tasks.start_soon(wake_another, system)
            raise ValueError("the end")

    async def wake_another(system: ActorSystem) -> None:
        await wait_until_idle()
        await system.entity(Account, "42").tell(15)
        door.release.set()

    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:
            await run(tasks)
    assert caught.group_contains(ValueError, match="the end")
    assert [what for _, what in log] == ["made", "start", "stop"]
    assert sorted(letters(persistence)) == [13, 14, 15] or sorted(letters(persistence)) == [13, 14]


async def test_a_system_whose_entities_all_sleep_ends_at_once(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    class Idle(Account):
        entity_name = "idle"
        idle_timeout = 10

    async with ActorSystem("bank", persistence=persistence, clock=ManualClock()) as system:
        system.entities.register(Idle, log)
        await system.entity(Idle, "42").ask("sleep")
        await wait_until_idle()
        assert len(system.entities) == 0
    assert story(persistence, "bank/idle/42") == ["ActorStarted", "ActorStopped"]
