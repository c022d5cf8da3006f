"""Whoever comes to follow, at any step of appends and in any order of messages, misses nothing.

Schedules are explored, and not slept for. With PAPYRA_FOLLOW_SCHEDULES=10000 they are many more.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from papyra import Actor, ActorSystem
from papyra.persistence import CaughtUp, FellBehind, PersistedEvent, Subscribe
from papyra.persistence.subscription import Subscription
from papyra.testing import explore
from tests.conftest import event_loops
from tests.extent import count

anyio_backend = event_loops("asyncio")

SCHEDULES = count("PAPYRA_FOLLOW_SCHEDULES", 20, 300)
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300 + SCHEDULES)]
#: Events of the programs here.
EVENTS = 12


class Teller(Actor):
    """Persists so many events."""

    async def receive(self, message: int) -> None:
        for number in range(message):
            await self.context.persist(("Added", {"number": number}))


class Listener(Actor):
    """Follows after the last event that any life of it has handled, and fails now and then."""

    def __init__(self, found: list[PersistedEvent], done: anyio.Event, failures: set[int]) -> None:
        self.found = found
        self.done = done
        #: how many it had when it is to fail, once each
        self.failures = failures

    async def on_start(self) -> None:
        after = self.found[-1].seq or 0 if self.found else 0
        me = self.context.self_ref
        await self.context.persistence.ask(Subscribe(me, after=after, types=["Added"]))

    async def receive(self, message: Any) -> None:
        if not isinstance(message, PersistedEvent):
            return
        if len(self.found) in self.failures:
            self.failures.remove(len(self.found))
            raise RuntimeError("now and then")
        self.found.append(message)
        if len(self.found) == EVENTS:
            self.done.set()


async def added(items: Subscription, wanted: int) -> list[PersistedEvent]:
    """Return the next so many events."""
    found: list[PersistedEvent] = []
    async for item in items:
        if not isinstance(item, (CaughtUp, FellBehind)):
            assert isinstance(item, PersistedEvent)
            found.append(item)
        if len(found) == wanted:
            break
    return found


async def all_added(system: ActorSystem) -> list[PersistedEvent]:
    return [
        event
        async for event in system.backend.stream("event", event_type="Added")
        if isinstance(event, PersistedEvent)
    ]


async def test_readers_that_begin_at_any_step_miss_nothing_in_any_schedule() -> None:
    async def program(system: ActorSystem) -> None:
        found: dict[int, list[PersistedEvent]] = {}

        async def follow(steps: int) -> None:
            for _ in range(steps):
                await checkpoint()
            async with system.subscribe(types=["Added"]) as items:
                found[steps] = await added(items, EVENTS)

        async with anyio.create_task_group() as tasks:
            for steps in range(0, 40, 8):
                tasks.start_soon(follow, steps)
            for number in (3, 4, 5):
                await system.spawn(Teller).tell(number)
        stored = await all_added(system)
        assert len(stored) == EVENTS
        assert list(found.values()) == [stored] * 5

    explored = await explore(program, SCHEDULES)
    assert explored.schedules > SCHEDULES / 2


async def test_actors_that_follow_and_fail_miss_nothing_in_any_schedule() -> None:
    async def program(system: ActorSystem) -> None:
        logs: list[list[PersistedEvent]] = [[], []]
        done = [anyio.Event() for _ in logs]
        system.spawn(Listener, logs[0], done[0], {3, 8})
        for number in (3, 4, 5):
            await system.spawn(Teller).tell(number)
        system.spawn(Listener, logs[1], done[1], {0, 11})
        for each in done:
            await each.wait()
        assert logs == [await all_added(system)] * 2

    explored = await explore(program, SCHEDULES)
    assert explored.schedules > SCHEDULES / 2
