"""Timers that are set, taken back, replaced and fired, under crashes and in any order.

`PAPYRA_CI=1` tries this on every durable backend, with more crashes, and in more orders.
``PAPYRA_TIMER_POINTS`` says every how many-th crash is tried, 1 for each, and
``PAPYRA_TIMER_SEEDS`` how many schedules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.testing import CrashRun, _postgres_server, _redis_server, crash_everywhere, explore
from tests.eventsourcing.orders import Cancel, Do, KeptOrder, Look, Remind, Set
from tests.extent import CI, count

pytestmark = pytest.mark.anyio

#: Every how many-th crash is tried.
EVERY = count("PAPYRA_TIMER_POINTS", 13, 4)
#: How many there are, at least.
POINTS = 148
SEEDS = count("PAPYRA_TIMER_SEEDS", 3, 30)
#: Seconds in which each timer here has its time, failures included.
LONG = 200.0


class Customer(Actor):
    """Hands on what it is told to an order; or lets time pass."""

    async def receive(self, message: Any) -> Any:
        if isinstance(message, float):
            return await self.context.clock.sleep(message)
        return await self.context.entity(KeptOrder, "1").ask(message)


COMMANDS: list[Any] = [
    Set("pay", {"after": 10}, "ordered", Remind("pay")),
    Set("gone", {"after": 20}, None, Remind("gone")),
    Set("twice", {"after": 10}, None, Remind("old")),
    Cancel("gone"),
    Set("twice", {"after": 15}, "changed", Remind("new")),
    Set("silent", {"after": 15}, None, Do("nothing")),
    Set("fast", {"after": 15}, None, Do("nowait")),
    LONG,
]


def customer(system: ActorSystem) -> ActorRef:
    system.entities.register(KeptOrder)
    return system.spawn(Customer, name="customer")


async def check(run: CrashRun) -> None:
    for _ in range(10):
        if not len(run.system.timers):
            break
        # Where a store is slow, the clock may be there before it is noted when one comes again.
        await run.ref.ask(LONG)
        await run.ref.ask(Look())
    state = await run.ref.ask(Look())
    assert len(run.system.timers) == 0
    for command in (each for each in COMMANDS if isinstance(each, Set)):
        for text in (command.text, brought(command)):
            assert state.count(text) <= 1, state
            if command in run.acknowledged and text not in {None, "nothing", "gone", "old"}:
                assert state.count(text) == 1, (text, state)
    events = (await run.system.backend.read_history("papyra/Order/1")).events
    assert_nothing_stale([event.payload for event in events])


def brought(command: Set) -> str:
    message = command.message
    return str(message.text if isinstance(message, Remind) else message.what)


def assert_nothing_stale(payloads: list[Any]) -> None:
    """Each timer brings what it was scheduled with last, once, and nothing when it is taken back.

    Time may pass while a file is written, so it may come before it is taken back.
    """
    pending: dict[str, str] = {}
    before: Any = None
    for payload in payloads:
        match payload:
            case {"change": "scheduled", "name": name, "message": message}:
                pending[name] = message.get("text") or message["what"]
            case {"change": "unscheduled", "name": name}:
                pending.pop(name, None)
            case {"change": "fired", "name": name}:
                text = pending.pop(name)
                assert text == "nothing" or before == {"text": text}
        before = payload
    assert pending == {}


def new_stores(kind: str, place: Path) -> Callable[[], PersistenceBackend]:
    if kind == "memory":
        return InMemoryPersistence
    paths = (place / str(number) for number in itertools.count())
    match kind:
        case "json":
            return lambda: JsonFilePersistence(next(paths).with_suffix(".ndjson"), fsync="no")
        case "rotating":
            return lambda: RotatingFilePersistence(next(paths), fsync="no")
        case "sqlite":
            return lambda: SQLitePersistence(next(paths).with_suffix(".db"), synchronous="off")
        case "redis":
            return lambda: _redis_server.new_store(lambda: place, {})
        case _:
            return lambda: _postgres_server.new_store(lambda: place, {})


KINDS = ["memory", "json", *(["rotating", "sqlite", "redis", "postgres"] if CI else [])]


@pytest.mark.timeout(120 + 600 // EVERY)
@pytest.mark.parametrize("kind", KINDS)
async def test_no_timer_is_lost_or_stale_and_each_counts_once_wherever_it_crashes(
    kind: str, tmp_path: Path
) -> None:
    stores = new_stores(kind, tmp_path)
    points = None if EVERY == 1 else range(1, POINTS + 1, EVERY)
    crashes = await crash_everywhere(customer, COMMANDS, check, persistence=stores, points=points)
    assert points is not None or len(crashes.points) >= POINTS


#: What is done to a timer; a number lets so many seconds pass, in which it fires.
STEPS: list[Any] = [
    Set("pay", {"after": 10}, None, Remind("old")),
    Set("pay", {"after": 10}, None, Remind("new")),
    Cancel("pay"),
    20.0,
]


def brought_by(steps: Sequence[Any]) -> tuple[str, ...]:
    """Return what comes of steps, one after the other, in the end."""
    came: list[str] = []
    pending: str | None = None
    for step in (*steps, 20.0):
        match step:
            case Set():
                pending = brought(step)
            case Cancel():
                pending = None
            case _ if pending is not None:
                came.append(pending)
                pending = None
    return tuple(came)


@pytest.mark.timeout(120 + 10 * SEEDS)
@pytest.mark.parametrize("kind", KINDS)
async def test_timers_come_as_they_were_set_last_in_any_order_of_steps_and_of_turns(
    kind: str, tmp_path: Path
) -> None:
    async def program(system: ActorSystem) -> None:
        system.entities.register(KeptOrder)

        async def live(order: ActorRef, steps: Sequence[Any]) -> None:
            for step in steps:
                if isinstance(step, float):
                    await order.stop()  # its timer wakes it
                    await system.clock.sleep(step)
                else:
                    await order.ask(step)

        orders = [
            (system.entity(KeptOrder, str(number)), steps)
            for number, steps in enumerate(permutations(STEPS))
        ]
        async with anyio.create_task_group() as tasks:
            for order, steps in orders:
                tasks.start_soon(live, order, steps)
        await system.clock.sleep(20.0)
        for order, steps in orders:
            assert await order.ask(Look()) == brought_by(steps), steps
        assert len(system.timers) == 0

    await explore(program, seeds=SEEDS, persistence=new_stores(kind, tmp_path))
