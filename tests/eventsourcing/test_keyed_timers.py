"""A command that schedules is carried out once, too."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock

pytestmark = pytest.mark.anyio


class Ring(msgspec.Struct, frozen=True):
    pass


class Rang(msgspec.Struct, frozen=True):
    pass


class Alarm(EventSourced[int]):
    events = (Rang,)
    timer_messages = (Ring,)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Rang) -> int:
        return state + 1

    async def receive(self, message: Any) -> Any:
        match message:
            case Ring():
                await self.persist(Rang())
            case float():
                await self.schedule("ring", Ring(), after=message)
                return "scheduled"
        return self.state


async def test_a_timer_is_not_put_off_by_a_command_that_is_repeated() -> None:
    clock = ManualClock()
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store, clock=clock) as system:
        alarm = system.entity(Alarm, "a")
        for _ in range(3):
            assert await alarm.ask(60.0, idempotency_key="k") == "scheduled"
            await clock.advance(19)
        await clock.advance(10)
        assert await alarm.ask("look") == 1
    async with ActorSystem("bank", persistence=store, clock=clock) as system:
        assert await system.entity(Alarm, "a").ask(60.0, idempotency_key="k") == "scheduled"
        await clock.advance(100)
        assert await system.entity(Alarm, "a").ask("look") == 1
