"""Time that a test moves."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorSystem, Clock, OneForOne
from papyra.events import ActorStarted
from papyra.exceptions import ActorStopped, AskTimeout, InvalidPolicy
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.testing import ManualClock, PersistenceProbe, wait_until_idle
from tests.actors import Echo, Gate


class Ticker(Actor):
    """Notes the time every ten seconds."""

    def __init__(self, ticks: list[float]) -> None:
        self.ticks = ticks

    async def receive(self, message: Any) -> None:
        while True:
            await self.context.clock.sleep(10)
            self.ticks.append(self.context.clock.monotonic())


def test_a_manual_clock_is_a_clock() -> None:
    clock: Clock = ManualClock(time=100.0)
    assert (clock.time(), clock.monotonic()) == (100.0, 0.0)
    assert ManualClock().time() == ManualClock().time()


async def test_a_manual_clock_stands_still_until_it_is_advanced() -> None:
    clock = ManualClock(time=100.0)
    await wait_until_idle()
    assert clock.time() == 100.0
    await clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (102.5, 2.5)


async def test_advancing_a_manual_clock_wakes_a_waiter_at_its_own_time() -> None:
    clock, ticks = ManualClock(), list[float]()
    async with ActorSystem(clock=clock, shutdown_timeout=0) as system:
        await system.spawn(Ticker, ticks).tell("go")
        await clock.advance(60)
        assert ticks == [10, 20, 30, 40, 50, 60]
        await clock.advance(5)
        await clock.advance(5)
        assert ticks[6:] == [70]


async def test_waiters_of_a_manual_clock_due_at_once_run_in_the_order_they_came() -> None:
    clock, order = ManualClock(), list[int]()

    async def wait(number: int) -> None:
        await clock.sleep(1)
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(wait, number)
            await wait_until_idle()
        await clock.advance(1)
    assert order == [0, 1, 2, 3, 4]


async def test_rounding_of_a_manual_clocks_time_keeps_no_waiter_waiting() -> None:
    clock, woken = ManualClock(), list[float]()

    async def sleep_three_times() -> None:
        for _ in range(3):
            await clock.sleep(0.1)
            woken.append(clock.monotonic())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleep_three_times)
        await clock.advance(0.3)
        assert len(woken) == 3


async def test_the_timeout_of_an_ask_goes_by_a_manual_clock() -> None:
    clock = ManualClock()
    async with ActorSystem(clock=clock) as system:
        gate = system.spawn(Gate)
        entered, release = anyio.Event(), anyio.Event()
        await gate.tell((entered, release))
        errors: list[Exception] = []

        async def ask() -> None:
            try:
                await gate.ask("handled", timeout=30)
            except AskTimeout as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await clock.advance(29)
            assert not errors
            await clock.advance(1)
        assert len(errors) == 1
        release.set()


async def test_the_restart_window_of_supervision_goes_by_a_manual_clock() -> None:
    clock = ManualClock()
    policy = OneForOne(max_restarts=1, within=60)
    async with ActorSystem(clock=clock, supervision=policy) as system:
        ref = system.spawn(Echo)
        for seconds in (61, 61, 1):
            with pytest.raises(ValueError, match="boom"):
                await ref.ask(ValueError("boom"))
            await clock.advance(seconds)
        with pytest.raises(ValueError, match="boom"):
            await ref.ask(ValueError("boom"))
        with pytest.raises(ActorStopped):
            await ref.ask("x")


async def test_times_of_records_and_retention_go_by_a_manual_clock() -> None:
    clock = ManualClock(time=1000.0)
    backend = InMemoryPersistence(
        retention_policy=RetentionPolicy(max_age_seconds=60), clock=clock.time
    )
    async with ActorSystem(persistence=backend, clock=clock, audit_interval=None) as system:
        await system.spawn(Echo).ask("x")
        assert [e.timestamp for e in await backend.list_events()] == [1000.0]
        await clock.advance(60)
        assert len(await backend.list_events()) == 1
        await clock.advance(0.5)
        assert await backend.list_events() == []


async def test_a_wait_that_ends_early_leaves_no_deadline_in_a_manual_clock() -> None:
    clock = ManualClock()
    deadlines = []
    with clock.move_on_after(5) as scope:
        deadlines.append(clock.next_deadline)
    deadlines.append(clock.next_deadline)
    with clock.move_on_after(float("inf")):
        deadlines.append(clock.next_deadline)
    assert deadlines == [5, None, None]
    assert not scope.cancelled_caught


async def test_a_timeout_of_zero_on_a_manual_clock_strikes_at_the_next_await() -> None:
    clock = ManualClock()
    awaits: list[str] = []
    with clock.move_on_after(0) as scope:
        awaits.append("before")
        await anyio.lowlevel.checkpoint()
        awaits.append("after")
    assert (scope.cancelled_caught, awaits) == (True, ["before"])
    await clock.sleep(0)


async def test_advancing_a_manual_clock_waits_for_tasks_on_their_way_to_a_sleep() -> None:
    clock, done = ManualClock(), list[str]()

    async def work() -> None:
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        await clock.sleep(1)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        done.append("done")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await clock.advance(1)
        assert done == ["done"]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "5", None, True])
async def test_a_manual_clock_refuses_to_advance_by_what_is_no_number_of_seconds(
    seconds: Any,
) -> None:
    with pytest.raises(InvalidPolicy, match="advanced by seconds"):
        await ManualClock().advance(seconds)


async def test_two_tasks_cannot_advance_one_manual_clock_at_once() -> None:
    clock, refused = ManualClock(), list[Exception]()

    async def advance() -> None:
        try:
            await clock.advance(1)
        except anyio.BusyResourceError as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(advance)
        tasks.start_soon(advance)
    assert len(refused) == 1
    assert clock.monotonic() == 1


async def test_wait_until_idle_returns_when_every_task_waits() -> None:
    log: list[str] = []

    async def busy() -> None:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        log.append("done")
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy)
        await wait_until_idle()
        assert log == ["done"]
        tasks.cancel_scope.cancel()


def test_wait_until_idle_waits_for_callbacks_on_asyncio() -> None:
    log: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(log.append, "done"))
        await wait_until_idle()
        assert log == ["done"]

    asyncio.run(main())


async def test_wait_until_idle_with_the_smallest_cushion_returns_first() -> None:
    log: list[int] = []

    async def wait(cushion: int) -> None:
        await wait_until_idle(cushion=cushion)
        log.append(cushion)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()

    for order in itertools.permutations((0, 1, 2)):
        async with anyio.create_task_group() as tasks:
            for cushion in order:
                tasks.start_soon(wait, cushion)
    assert log == [0, 1, 2] * 6


async def test_the_pytest_fixtures_go_by_the_manual_clock_of_the_test(
    manual_clock: ManualClock, persistence: InMemoryPersistence, actor_system: ActorSystem
) -> None:
    assert actor_system.clock is manual_clock
    await manual_clock.advance(5)
    started = await PersistenceProbe(actor_system).expect_event(
        ActorStarted, actor=actor_system.spawn(Echo)
    )
    assert started.timestamp == manual_clock.time()
    assert persistence.clock() == manual_clock.time()
