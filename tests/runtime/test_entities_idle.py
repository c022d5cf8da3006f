"""Idle timeouts: an entity to which nobody has sent anything for a while is passivated."""

from __future__ import annotations

import gc
import weakref
from typing import Any, ClassVar

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, EntityRef, OneForOne
from papyra._runtime.idle_timeouts import EntityMailbox
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, wait_until_idle
from tests.actors import letters, story


class Idle(Actor):
    """Is idle after ten seconds."""

    idle_timeout: ClassVar[float | None] = 10

    async def receive(self, message: Any) -> Any:
        match message:
            case (anyio.Event() as entered, anyio.Event() as release):
                entered.set()
                await release.wait()
            case "sleep":
                self.context.passivate()
            case BaseException():
                raise message
        return message


class Patient(Idle):
    idle_timeout = 1_000


class Sleepless(Idle):
    idle_timeout = None


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_an_entity_sleeps_when_it_was_idle_for_so_long(
    clock: ManualClock, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(clock=clock, persistence=persistence) as system:
        idle = system.entity(Idle, "42")
        await idle.ask(1)
        await clock.advance(9.9)
        assert len(system.entities) == 1
        await clock.advance(0.1)
        assert len(system.entities) == 0
        assert (system.entities.activations, system.entities.passivations) == (1, 1)
        assert await idle.ask(2) == 2
    assert story(persistence, "papyra/Idle/42") == ["ActorStarted", "ActorStopped"] * 2
    assert letters(persistence) == []


async def test_each_message_puts_that_off(clock: ManualClock) -> None:
    async with ActorSystem(clock=clock) as system:
        idle = system.entity(Idle, "42")
        for seconds in (3, 9, 9.99, 4, 7):
            await clock.advance(seconds)
            await idle.ask(1)
        await clock.advance(9.9)
        assert (system.entities.activations, len(system.entities)) == (1, 1)
        await clock.advance(0.2)
        assert len(system.entities) == 0


async def test_one_that_handles_a_message_is_not_idle(clock: ManualClock) -> None:
    async with ActorSystem(clock=clock) as system:
        idle = system.entity(Idle, "42")
        entered, release = anyio.Event(), anyio.Event()
        await idle.tell((entered, release))
        await entered.wait()
        await clock.advance(1_000)
        assert len(system.entities) == 1
        release.set()
        await clock.advance(9.9)
        assert len(system.entities) == 1
        await clock.advance(10)
        assert len(system.entities) == 0


async def test_each_class_has_its_own_time_and_one_without_is_never_idle(
    clock: ManualClock,
) -> None:
    async with ActorSystem(clock=clock, audit_interval=None) as system:
        for each in (Patient, Sleepless, Idle):
            await system.entity(each, "42").ask(1)
        await clock.advance(10)
        assert [entity.type for entity in system.entities] == ["Patient", "Sleepless"]
        await clock.advance(990)
        assert [entity.type for entity in system.entities] == ["Sleepless"]
        await clock.advance(10_000)
        assert len(system.entities) == 1


async def test_an_actor_that_was_spawned_has_no_idle_timeout(clock: ManualClock) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Idle)
        await clock.advance(1_000)
        assert await ref.ask(1) == 1


async def test_time_that_passes_while_it_waits_for_its_restart_is_not_idle(
    clock: ManualClock,
) -> None:
    policy = OneForOne(default=Decision.RESTART, backoff=30)
    async with ActorSystem(clock=clock, supervision=policy) as system:
        idle = system.entity(Idle, "42")
        with pytest.raises(ValueError, match="lost"):
            await idle.ask(ValueError("lost"))
        await wait_until_idle()
        idle.tell_nowait(1)
        await clock.advance(29)
        assert len(system.entities) == 1
        await clock.advance(1)
        assert await idle.ask(2) == 2
        assert system.audit().restarted == 1
        assert system.entities.activations == 1


async def test_thousands_with_deadlines_of_their_own_sleep_each_at_its_time(
    clock: ManualClock,
) -> None:
    async with ActorSystem(clock=clock) as system:
        refs = [system.entity(Idle, str(number)) for number in range(2_000)]
        for each in refs:
            each.tell_nowait(1)
        await wait_until_idle()
        tasks = len(anyio.get_running_tasks())
        await clock.advance(5)
        for each in refs[:1_000]:
            each.tell_nowait(2)
        await wait_until_idle()
        assert len(anyio.get_running_tasks()) == tasks
        await clock.advance(5)
        assert len(system.entities) == 1_000
        await clock.advance(5)
        assert len(system.entities) == 0
        assert (system.entities.activations, system.entities.passivations) == (2_000, 2_000)


async def test_one_task_looks_after_all_idle_timeouts(clock: ManualClock) -> None:
    async with ActorSystem(clock=clock, audit_interval=None) as system:
        await wait_until_idle()
        before = len(anyio.get_running_tasks())
        for number in range(100):
            await system.entity(Idle, str(number)).ask(1)
        assert len(anyio.get_running_tasks()) == before + 100 + 1


async def test_those_that_have_ended_are_not_kept_for_their_deadlines(clock: ManualClock) -> None:
    async with ActorSystem(clock=clock) as system:
        for number in range(1_000):
            await system.entity(Patient, str(number)).ask("sleep")
        await wait_until_idle()
        gc.collect()
        kept = [type(each) for each in gc.get_objects()]
        assert kept.count(Patient) + kept.count(EntityMailbox) < 200
        assert system.entities.passivations == 1_000


async def test_a_ref_that_nobody_holds_costs_nothing_once_the_entity_sleeps(
    clock: ManualClock,
) -> None:
    async with ActorSystem(clock=clock) as system:
        await system.entity(Idle, "42").ask(1)
        found = system.find("papyra/Idle/42")
        assert isinstance(found, EntityRef)
        kept = weakref.ref(found)
        del found
        gc.collect()
        assert kept() is not None
        await clock.advance(10)
        await clock.advance(10)  # by then its deadline is forgotten, too
        gc.collect()
        assert kept() is None
        system.entity(Idle, "43")
        asleep = weakref.ref(system.entity(Idle, "43"))
        assert asleep() is None


async def test_a_message_in_the_moment_of_its_passivation_is_for_the_next_life(
    clock: ManualClock, persistence: InMemoryPersistence
) -> None:
    class Late(Idle):
        async def on_stop(self) -> None:
            # The same moment: nobody has had a turn since.
            self.context.self_ref.tell_nowait("late")

    async with ActorSystem(clock=clock, persistence=persistence) as system:
        late = system.entity(Late, "42")
        await late.ask(1)
        await clock.advance(10)
        assert (len(system.entities), system.entities.activations) == (1, 2)
        await clock.advance(9.9)
        assert len(system.entities) == 1
        await clock.advance(0.1)
        assert system.entities.activations == 3
    assert letters(persistence) == ["late"]  # of the last life, as the system stops


async def test_refs_work_while_the_clock_is_the_machine_s(
    persistence: InMemoryPersistence,
) -> None:
    class Brief(Actor):
        idle_timeout = 0.001

        def __init__(self, stopped: anyio.Event) -> None:
            self.stopped = stopped

        async def receive(self, message: Any) -> Any:
            return message

        async def on_stop(self) -> None:
            self.stopped.set()

    stopped = anyio.Event()
    async with ActorSystem(persistence=persistence) as system:
        system.entities.register(Brief, stopped)
        ref: ActorRef = system.entity(Brief, "42")
        assert await ref.ask(1) == 1
        await stopped.wait()
        for number in range(300):
            assert await ref.ask(number) == number
    assert letters(persistence) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_task_of_idle_timeouts_is_started_again_when_somebody_cancels_it(
    clock: ManualClock, anyio_backend: str
) -> None:
    import asyncio  # noqa: PLC0415 - where asyncio runs

    async with ActorSystem(clock=clock, audit_interval=None) as system:
        await system.entity(Idle, "1").ask(1)
        (task,) = [each for each in asyncio.all_tasks() if each.get_name() == "papyra deadlines"]
        task.cancel()
        await wait_until_idle()
        assert task.done()
        await clock.advance(10)
        assert len(system.entities) == 0
