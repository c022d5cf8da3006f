"""The order of examples/order_saga.py comes to its end, whatever fails, and wherever it is killed.

None of this takes time: the clock is the test's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest

from examples.order_saga import DEADLINE, PATIENCE, Declined, HowFar, Order, Place, Progress
from papyra import ActorSystem
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, wait_until_idle

pytestmark = pytest.mark.anyio

STEPS = ["reserve", "pay", "ship"]


class World:
    """The services, what has come of them, and what fails."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        #: what was done for an order, each once however often it is asked for
        self.done: list[str] = []
        self.asked: list[str] = []
        #: how often each of them fails before it works
        self.failures: dict[str, float] = {}
        #: where the process is killed: in this step, before or after it is done
        self.killed: tuple[str, Literal["before", "after"]] | None = None
        self.is_killed = anyio.Event()
        self.declines = False

    async def _do(self, what: str) -> None:
        self.asked.append(what)
        if self.failures.get(what, 0) > 0:
            self.failures[what] -= 1
            raise ConnectionError(what)
        await self._be_killed(what, "before")
        if what not in self.done:
            self.done.append(what)
        await self._be_killed(what, "after")

    async def _be_killed(self, what: str, where: Literal["before", "after"]) -> None:
        if self.killed == (what, where):
            self.killed = None
            self.is_killed.set()
            await anyio.sleep_forever()

    async def reserve(self, order: str, item: str) -> None:
        assert (order, item) == ("42", "lamp")
        await self._do("reserve")

    async def pay(self, order: str, cents: int) -> None:
        assert (order, cents) == ("42", 4900)
        if self.declines:
            raise Declined
        await self._do("pay")

    async def ship(self, order: str, item: str) -> None:
        await self._do("ship")

    async def refund(self, order: str) -> None:
        await self._do("refund")

    async def release(self, order: str) -> None:
        await self._do("release")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def world(clock: ManualClock) -> World:
    return World(clock)


@asynccontextmanager
async def shop(
    store: PersistenceBackend, world: World, clock: ManualClock
) -> AsyncIterator[ActorSystem]:
    system = ActorSystem("shop", persistence=store, clock=clock, shutdown_timeout=0.0)
    system.entities.register(Order, world)
    async with system:
        yield system


async def end_of(world: World, clock: ManualClock, store: Any = None) -> Progress:
    """Place the order, let as much time pass as it may take, and return what has come of it."""
    async with shop(store or InMemoryPersistence(), world, clock) as system:
        order = system.entity(Order, "42")
        await order.ask(Place("lamp", 4900))
        await clock.advance(2 * DEADLINE)
        return await order.ask(HowFar())


async def test_an_order_is_reserved_paid_and_shipped(world: World, clock: ManualClock) -> None:
    progress = await end_of(world, clock)
    assert (progress.step, progress.why) == (None, "")
    assert world.done == world.asked == STEPS


async def test_a_service_that_fails_is_asked_again(world: World, clock: ManualClock) -> None:
    world.failures = {"reserve": 1, "pay": 2, "ship": 1}
    assert (await end_of(world, clock)).why == ""
    assert world.done == STEPS
    assert world.asked == ["reserve"] * 2 + ["pay"] * 3 + ["ship"] * 2


@pytest.mark.parametrize("step", STEPS)
async def test_what_takes_too_long_is_undone(step: str, world: World, clock: ManualClock) -> None:
    world.failures = {step: float("inf"), "refund": 2, "release": 2}
    progress = await end_of(world, clock)
    assert (progress.step, progress.why) == (None, "it took too long")
    assert world.done == [*STEPS[: STEPS.index(step)], "refund", "release"]


async def test_what_the_bank_declines_is_undone_at_once(world: World, clock: ManualClock) -> None:
    world.declines = True
    async with shop(InMemoryPersistence(), world, clock) as system:
        order = system.entity(Order, "42")
        await order.ask(Place("lamp", 4900))
        await wait_until_idle()
        progress = await order.ask(HowFar())
        assert (progress.step, progress.why) == (None, "the bank has declined")
        assert world.done == ["reserve", "refund", "release"]
        assert len(system.timers) == 0


class Killed(Exception):
    pass


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("step", [*STEPS, "refund", "release"])
async def test_an_order_that_is_killed_in_the_middle_of_a_step_comes_to_the_same_end(
    step: str, where: Literal["before", "after"], world: World, clock: ManualClock
) -> None:
    store = InMemoryPersistence()
    is_undone = step not in STEPS
    if is_undone:
        world.failures = {"ship": float("inf")}
    world.killed = (step, where)
    with pytest.raises(Killed):
        async with shop(store, world, clock) as system:
            await system.entity(Order, "42").ask(Place("lamp", 4900))
            await clock.advance(DEADLINE if is_undone else 0)
            await world.is_killed.wait()
            raise Killed
    async with shop(store, world, clock) as system:
        await clock.advance(2 * DEADLINE + PATIENCE)
        progress = await system.entity(Order, "42").ask(HowFar())
    assert progress.step is None
    if is_undone:
        assert world.done == ["reserve", "pay", "refund", "release"]
    else:
        assert world.done == STEPS
    assert world.asked.count(step) == 2
