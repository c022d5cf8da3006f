"""The rows about durable timers: to schedule one, and to fire many."""

from __future__ import annotations

import time
from typing import Any

import anyio
import msgspec

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, Timer
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock
from tests.benchmarks.table import Loop, Options, Result, Row, compare

__all__ = ("DURABLE_TIMER_ROWS",)

NOW, THEN = 1e9, 4e9


class Counted(msgspec.Struct, frozen=True):
    number: int


class Due(msgspec.Struct, frozen=True):
    number: int


class Counter(EventSourced[int]):
    """Counts what it is told, and what its timers bring; schedules or persists in a loop."""

    events = (Counted,)
    timer_messages = (Due,)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Counted) -> int:
        return state + 1

    async def receive(self, message: Any) -> Any:
        match message:
            case Due(number) | Counted(number):
                await self.persist(Counted(number))
            case range():  # many in one append
                await self.persist(schedule=[Timer(str(n), Due(n), at=THEN) for n in message])
            case ("schedule", int(count)):
                for number in range(count):
                    await self.schedule(str(number % 100), Due(number), at=THEN)
            case ("persist", int(count)):
                for number in range(count):
                    await self.persist(Counted(number))


async def told(what: str, count: int) -> float:
    async with ActorSystem(persistence=InMemoryPersistence(), audit_interval=None) as system:
        counter = system.entity(Counter, "1")
        await counter.ask((what, 100))
        started = time.perf_counter()
        await counter.ask((what, count))
        return time.perf_counter() - started


def scheduling(loop: Loop, options: Options) -> Result:
    """Schedule, against persisting an event."""
    count = options.count(20_000)
    return compare(
        options,
        count,
        lambda: loop.run(told, "persist", count),
        lambda: loop.run(told, "schedule", count),
    )


#: Entities that the timers are of.
ENTITIES = 1_000


async def fired(each: int) -> float:
    clock = ManualClock(NOW)
    async with ActorSystem(
        persistence=InMemoryPersistence(), clock=clock, audit_interval=None
    ) as system:
        for number in range(ENTITIES):
            await system.entity(Counter, str(number)).ask(range(each))
        started = time.perf_counter()
        await clock.put_wall_clock(THEN - NOW)
        assert len(system.timers) == 0
        return time.perf_counter() - started


async def asked(each: int) -> float:
    """Ask the same of the same entities, which are awake: each event is stored before the reply."""
    async with ActorSystem(persistence=InMemoryPersistence(), audit_interval=None) as system:
        counters = [system.entity(Counter, str(number)) for number in range(ENTITIES)]
        for counter in counters:
            await counter.ask(range(each))

        async def ask(counter: Any) -> None:
            for number in range(each):
                await counter.ask(Counted(number))

        started = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for counter in counters:
                tasks.start_soon(ask, counter)
        return time.perf_counter() - started


def firing(loop: Loop, options: Options) -> Result:
    """Fire many timers at once, against asking their entities as often."""
    each = max(1, options.count(100_000) // ENTITIES)
    return compare(
        options,
        each * ENTITIES,
        lambda: loop.run(asked, each),
        lambda: loop.run(fired, each),
    )


DURABLE_TIMER_ROWS = [
    Row("schedule a durable timer, memory", "persist", 0.7, False, scheduling),
    Row("fire 100,000 durable timers, memory", "ask of the same", 0.3, False, firing),
]
