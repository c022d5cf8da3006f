"""Passivation against messages, in many orders: what is sent is handled, in order, once."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from papyra import Actor, ActorSystem, EntityRef
from papyra.exceptions import MailboxFull
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, explore, wait_until_idle
from tests.actors import Echo, letters
from tests.extent import count

#: `PAPYRA_TEST_SCHEDULES` says how many orders are tried.
SCHEDULES = count("PAPYRA_TEST_SCHEDULES", 15, 100)


class Heard:
    """What was handled, by sender, and how many lives were at it at the same time."""

    def __init__(self) -> None:
        self.numbers: defaultdict[str, list[int]] = defaultdict(list)
        self.order = ""
        self.lives = 0


class Sleepy(Actor):
    """Sleeps again and again, and takes several turns for it."""

    mailbox_capacity = 3
    idle_timeout: ClassVar[float | None] = 1.0

    def __init__(self, heard: Heard, bystander: Any) -> None:
        self.heard = heard
        self.bystander = bystander

    async def on_start(self) -> None:
        self.heard.lives += 1
        assert self.heard.lives == 1
        await self.bystander.ask("starting")

    async def receive(self, message: tuple[str, int]) -> int:
        sender, number = message
        self.heard.numbers[sender].append(number)
        self.heard.order += sender
        if number % 3 == 0:
            self.context.passivate()
        await self.bystander.ask("handling")
        return number

    async def on_stop(self) -> None:
        await self.bystander.ask("stopping")
        self.heard.lives -= 1


class Sender(Actor):
    """Sends numbers in each of the ways that there are."""

    async def receive(self, message: tuple[EntityRef, int]) -> int:
        entity, numbers = message
        name = self.context.self_ref.address.name
        for number in range(numbers):
            match number % 4:
                case 0:
                    assert await entity.ask((name, number)) == number
                case 1:
                    await entity.tell((name, number))
                case 2:
                    try:
                        entity.tell_nowait((name, number))
                    except MailboxFull:
                        await entity.tell((name, number))
                case _:
                    assert await entity.ask((name, number), timeout=1_000) == number
        return numbers


class Stops(Actor):
    """Has the entity stop, again and again."""

    async def receive(self, message: tuple[EntityRef, int]) -> None:
        entity, times = message
        for _ in range(times):
            await entity.stop()
            await self.context.entity(Sleepy, "bystander").stop()


@pytest.mark.parametrize("stops", [0, 3])
async def test_in_every_schedule_what_was_sent_is_handled_in_order_once(stops: int) -> None:
    orders: set[str] = set()

    async def program(system: ActorSystem) -> None:
        heard, echo = Heard(), system.spawn(Echo, name="echo")
        system.entities.register(Sleepy, heard, echo)
        entity = system.entity(Sleepy, "42")
        senders = [system.spawn(Sender, name=name) for name in ("a", "b", "c")]
        stopper = system.spawn(Stops)
        async with anyio.create_task_group() as tasks:
            for sender in senders:
                tasks.start_soon(sender.ask, (entity, 6))
            tasks.start_soon(stopper.ask, (entity, stops))
        await entity.stop()
        assert heard.numbers == {name: list(range(6)) for name in ("a", "b", "c")}
        assert heard.lives == 0
        assert system.audit().dead_letters == 0
        assert len(system.entities) == 0
        assert system.entities.activations > 6
        orders.add(heard.order)

    await explore(program, SCHEDULES)
    assert len(orders) > SCHEDULES // 10


async def test_in_every_schedule_a_failed_life_loses_what_it_had_and_nothing_that_comes_later() -> (
    None
):
    class Fragile(Sleepy):
        async def receive(self, message: tuple[str, int]) -> int:
            if message[1] == 5:
                self.heard.numbers[message[0]].append(5)
                self.context.stop()
                return 5
            return await super().receive(message)

    async def program(system: ActorSystem) -> None:
        heard, echo = Heard(), system.spawn(Echo, name="echo")
        system.entities.register(Fragile, heard, echo)
        entity = system.entity(Fragile, "42")
        async with anyio.create_task_group() as tasks:
            for name in ("a", "b"):
                tasks.start_soon(tell_all, entity, name)
        await entity.stop()
        handled = sum(len(numbers) for numbers in heard.numbers.values())
        assert handled + system.audit().dead_letters == 20
        for numbers in heard.numbers.values():
            assert numbers == sorted(set(numbers))
        assert heard.lives == 0

    async def tell_all(entity: EntityRef, name: str) -> None:
        for number in range(10):
            await entity.tell((name, number))

    await explore(program, SCHEDULES)


class Account(Actor):
    """Hears numbers; a negative one puts it to sleep."""

    mailbox_capacity = 2
    idle_timeout: ClassVar[float | None] = 10.0

    def __init__(self, heard: list[int]) -> None:
        self.heard = heard

    async def receive(self, number: int) -> int:
        self.heard.append(number)
        if number < 0:
            self.context.passivate()
        for _ in range(number % 3):
            await checkpoint()
        return number

    async def on_stop(self) -> None:
        for _ in range(len(self.heard) % 4):
            await checkpoint()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["tell", "ask", "background"]), st.integers(-5, 5)),
        st.tuples(st.sampled_from(["yield", "advance", "stop", "settle"]), st.integers(0, 11)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=count("PAPYRA_TEST_PROGRAMS", 20, 60), deadline=None)
@given(steps=STEPS)
def test_whatever_one_does_what_was_sent_is_handled_in_order_once(
    backend: str, steps: list[tuple[str, int]]
) -> None:
    heard: list[int] = []
    sent: list[int] = []

    async def main() -> None:
        clock, store = ManualClock(), InMemoryPersistence()
        async with (
            ActorSystem(clock=clock, persistence=store, audit_interval=None) as system,
            anyio.create_task_group() as tasks,
        ):
            system.entities.register(Account, heard)
            account = system.entity(Account, "42")
            for what, number in steps:
                match what:
                    case "tell":
                        sent.append(number)
                        await account.tell(number)
                    case "ask":
                        sent.append(number)
                        assert await account.ask(number) == number
                    case "background":
                        sent.append(number)
                        tasks.start_soon(account.ask, number)
                        await checkpoint()
                        await checkpoint()
                    case "yield":
                        for _ in range(number):
                            await checkpoint()
                    case "advance":
                        await clock.advance(number)
                    case "stop":
                        tasks.start_soon(account.stop)
                    case "settle":
                        await wait_until_idle()
            await account.stop()
        assert letters(store) == []
        assert len(system.entities) == 0
        assert system.entities.activations == system.entities.passivations

    anyio.run(main, backend=backend)
    assert heard == sent
