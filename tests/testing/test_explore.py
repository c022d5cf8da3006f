"""Many orders of the same program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio

from papyra import Actor, ActorRef, ActorSystem
from papyra.persistence import Append, PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import (
    FaultyPersistence,
    PersistenceProbe,
    ScheduleFailed,
    TestProbe,
    _schedule,
    explore,
    probes,
)
from tests.actors import Echo


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice at once that nothing happens any more; a busy machine is busy for less than this."""
    monkeypatch.setattr(_schedule, "PATIENCE", 0.5)


class Counter(Actor):
    def __init__(self) -> None:
        self.count = 0

    async def receive(self, message: Any) -> Any:
        match message:
            case ("set", int(count)):
                self.count = count
            case "add":
                self.count += 1
        return self.count


class Adder(Actor):
    """Adds one, by reading and writing, or by asking for it."""

    def __init__(self, counter: ActorRef, careful: bool) -> None:
        self.counter = counter
        self.careful = careful

    async def receive(self, message: Any) -> None:
        if self.careful:
            await self.counter.tell("add")
        else:
            count = await self.counter.ask("get")
            await self.counter.tell(("set", count + 1))


def adding(*, careful: bool) -> Callable[[ActorSystem], Awaitable[None]]:
    async def program(system: ActorSystem) -> None:
        counter = system.spawn(Counter, name="counter")
        adders = [system.spawn(Adder, counter, careful, name=f"adder-{n}") for n in range(2)]
        for adder in adders:
            await adder.tell("go")
        for adder in adders:
            await adder.stop()
        assert await counter.ask("get") == 2, "an addition was lost"

    return program


async def failing_seeds(program: Callable[[ActorSystem], Awaitable[None]], count: int) -> list[int]:
    failing = []
    for seed in range(count):
        try:
            await explore(program, [seed])
        except ScheduleFailed as failure:
            failing.append(failure.seed)
    return failing


async def test_explore_finds_the_schedule_in_which_an_addition_is_lost() -> None:
    with pytest.raises(ScheduleFailed) as caught:
        await explore(adding(careful=False))
    failure = caught.value
    assert "AssertionError: an addition was lost" in str(failure)
    assert f"explore(..., seeds=[{failure.seed}])" in str(failure)
    assert "papyra/counter" in str(failure)
    assert isinstance(failure.__cause__, AssertionError)
    with pytest.raises(ScheduleFailed) as again:
        await explore(adding(careful=False), [failure.seed])
    assert again.value.turns == failure.turns


#: The same on every loop: what a seed means does not depend on it.
FAILING = [0, 4, 7, 8, 10, 11, 13, 15, 18, 19]


async def test_a_seed_of_explore_means_the_same_schedule_on_every_platform() -> None:
    assert await failing_seeds(adding(careful=False), 20) == FAILING


async def test_a_sound_program_passes_under_every_schedule_of_explore() -> None:
    explored = await explore(adding(careful=True), seeds=60)
    assert explored.runs == 60
    assert explored.schedules > 30


async def test_explore_schedules_a_programs_own_tasks_the_same_way_each_time() -> None:
    async def program(system: ActorSystem) -> None:
        probe = TestProbe(system)

        async def tell(number: int) -> None:
            for _ in range(3):
                await probe.ref.tell(number)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(tell, number)
        orders.append([await probe.expect_next() for _ in range(15)])

    orders: list[list[int]] = []
    for _ in range(5):
        trio._core._run._r.random()  # what trio shuffles by is not where it was
        await explore(program, [1])
    assert orders == [orders[0]] * 5


@pytest.mark.usefixtures("impatient")
async def test_explore_finds_a_cycle_of_asks_without_a_timeout() -> None:
    class Polite(Actor):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, ActorRef):
                return await message.ask("after you")
            return message

    async def program(system: ActorSystem) -> None:
        one, two = system.spawn(Polite, name="one"), system.spawn(Polite, name="two")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.ask, two)
            tasks.start_soon(two.ask, one)

    with pytest.raises(ScheduleFailed, match="everybody waits for somebody else") as caught:
        await explore(program)
    assert "papyra/one (1 messages waiting)" in str(caught.value)


async def test_explore_fails_a_program_whose_actor_only_sleeps() -> None:
    class Sleeper(Actor):
        async def receive(self, message: Any) -> None:
            while True:
                await self.context.clock.sleep(1)

    async def program(system: ActorSystem) -> None:
        await system.spawn(Sleeper).ask("wake up")

    with pytest.raises(ScheduleFailed, match="nobody can go on"):
        await explore(program, 1)


async def test_explore_reports_an_expectation_of_a_probe_that_is_not_met() -> None:
    async def program(system: ActorSystem) -> None:
        await PersistenceProbe(system).expect_event("Missing", timeout=0.01)

    with pytest.raises(ScheduleFailed, match=r"no fact came within 0\.01 s that is Missing"):
        await explore(program, 1)
    assert _schedule.PATIENCE > probes.TIMEOUT


async def test_explore_lets_time_pass_when_every_task_waits() -> None:
    async def program(system: ActorSystem) -> None:
        before = system.clock.monotonic()
        await system.clock.sleep(3600)
        times.append(system.clock.monotonic() - before)

    times: list[float] = []
    await explore(program, 3)
    assert times == [3600, 3600, 3600]


APPEND = Append(PersistedEvent("papyra", "papyra/x", "Noted", None, 1.0))


async def test_everybody_waits_for_a_store_that_is_at_work_in_explore() -> None:
    def slow() -> PersistenceBackend:
        store = FaultyPersistence(InMemoryPersistence())
        store.delay(0.02)  # by a real clock, as a thread would
        return store

    async def program(system: ActorSystem) -> None:
        echo = system.spawn(Echo)
        before = system.clock.time()
        ends: list[str] = []

        async def ask(what: str, ref: ActorRef, message: object) -> None:
            await ref.ask(message)
            ends.append(what)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.clock.sleep, 1.0)
            await system.persistence.ask(APPEND)
            assert system.clock.time() == before
            # Its lifecycle is recorded by now, and these two are all that is to be done.
            tasks.start_soon(ask, "store", system.persistence, APPEND)
            tasks.start_soon(ask, "echo", echo, "hello")
        turns.append(tuple(ends))

    turns: list[tuple[str, ...]] = []
    await explore(program, seeds=6, persistence=slow)
    in_memory, turns = turns, []
    await explore(program, seeds=6)
    assert turns == in_memory
    assert set(turns) == {("store", "echo"), ("echo", "store")}


async def test_a_store_that_hangs_does_not_keep_others_from_their_turns_in_explore(
    impatient: None,
) -> None:
    def hanging() -> PersistenceBackend:
        stores.append(FaultyPersistence(InMemoryPersistence()))
        return stores[-1]

    async def program(system: ActorSystem) -> None:
        stores[-1].hang()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.persistence.ask, APPEND)
            await system.clock.sleep(1.0)
            stores[-1].release()

    stores: list[FaultyPersistence] = []
    await explore(program, seeds=2, persistence=hanging)


async def test_each_run_of_explore_has_a_store_of_its_own() -> None:
    stores: list[InMemoryPersistence] = []

    def make() -> InMemoryPersistence:
        stores.append(InMemoryPersistence())
        return stores[-1]

    async def program(system: ActorSystem) -> None:
        assert system.system_id == "shop"
        await system.spawn(Echo, name="echo").ask("x")
        await PersistenceProbe(system).expect_event("ActorStarted", actor="shop/echo")

    await explore(program, 3, persistence=make, system_id="shop")
    assert [len(store.events) for store in stores] == [2, 2, 2]


async def test_explore_does_not_fail_at_an_actors_exception_that_the_program_catches() -> None:
    async def program(system: ActorSystem) -> None:
        with pytest.raises(ValueError, match="mine"):
            await system.spawn(Echo).ask(ValueError("mine"))

    await explore(program, 3)
