"""Many timers that are due at the same moment: `PAPYRA_TIMERS`, so 100000 of them, say."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from papyra import ActorSystem
from papyra._runtime.timer_checkpoint import encoded_checkpoint, kept_of
from papyra._runtime.timer_index import TimerIndex
from papyra._runtime.timer_service import MAX_AT_HAND
from papyra.eventsourcing import EventSourced, Timer
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.timer_changes import TIMER, Scheduled
from papyra.persistence.timer_checkpoints import Checkpoint
from papyra.testing import ManualClock, wait_until_idle
from tests.extent import count

pytestmark = pytest.mark.anyio

TIMERS = count("PAPYRA_TIMERS", 1_000, 20_000)
NOW, THEN = 1e9, 1.5e9


class Counted(msgspec.Struct, frozen=True):
    number: int


class Due(msgspec.Struct, frozen=True):
    number: int


class Counter(EventSourced[int]):
    events = (Counted,)
    timer_messages = (Due,)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Counted) -> int:
        return state + 1

    async def receive(self, message: Any) -> Any:
        match message:
            case Due(number):
                await self.persist(Counted(number))
            case range():
                await self.persist(schedule=[Timer(str(n), Due(n), at=THEN) for n in message])
        return self.state


@pytest.mark.parametrize("entities", [1, 500])
async def test_all_come_within_the_room_of_a_mailbox_and_others_are_served(entities: int) -> None:
    clock = ManualClock(NOW)
    async with ActorSystem(
        persistence=InMemoryPersistence(),
        clock=clock,
        audit_interval=None,
        mailbox_capacity=1_000,
    ) as system:
        counters = [system.entity(Counter, str(number)) for number in range(entities)]
        each = TIMERS // entities
        for counter in counters:
            for first in range(0, each, 1_000):
                await counter.ask(range(first, min(first + 1_000, each)))
        await wait_until_idle()
        assert len(system.timers) == each * entities
        served, waiting, begun = 0, 0, anyio.Event()
        system.backend.watch_commits(lambda batch: begun.set())
        other = system.entity(Counter, "other")

        async def look() -> None:
            nonlocal served, waiting
            await begun.wait()
            while len(system.timers):
                assert await other.ask("state") == 0
                await counters[0].ask("state")
                waiting = max(waiting, system.audit().messages_waiting)
                served += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await clock.put_wall_clock(THEN - NOW)
        for counter in counters:
            assert await counter.ask("state") == each
    assert served > each / 10 or each < 10
    assert served
    assert waiting <= MAX_AT_HAND + 10


async def test_others_have_their_turns_while_a_checkpoint_of_many_timers_is_encoded() -> None:
    index = TimerIndex("shop")
    for number in range(2_000):
        change = Scheduled("pay", 60.0 + number, "Remind", {"text": "pay"})
        address = f"shop/Order/{number}"
        index.take_in(PersistedEvent("shop", address, TIMER, change, 1.0, revision=1))
    timers, turns = index.all(), 0
    is_encoded = False

    async def others() -> None:
        nonlocal turns
        while not is_encoded:
            turns += 1
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        encoded = await encoded_checkpoint(7, timers, is_alone=True)
        is_encoded = True
    kept = Checkpoint(7, True, [kept_of(timer) for timer in timers])
    assert msgspec.json.decode(encoded, type=Checkpoint) == kept
    assert turns >= 3
