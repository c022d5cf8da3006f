"""The capacity of a mailbox holds at every moment of its actor's life, and so does the store's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem, OneForOne
from papyra.exceptions import MailboxFull
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, wait_until_idle

CAPACITY = 10
FLOOD = 300


class Held(Actor):
    """Stays where it is told to, until it is released."""

    def __init__(self, where: str, entered: anyio.Event, release: anyio.Event) -> None:
        self.where, self.entered, self.release = where, entered, release

    async def hold(self, where: str) -> None:
        if where == self.where:
            self.entered.set()
            await self.release.wait()

    async def on_start(self) -> None:
        await self.hold("starting")

    async def receive(self, message: Any) -> Any:
        await self.hold("handling")
        if message == "fail":
            raise ValueError(message)
        await self.hold("draining")

    async def on_stop(self) -> None:
        await self.hold("stopping")


class Waits(Held):
    async def on_start(self) -> None:
        self.context.spawn(Held, "stopping", self.entered, self.release)


async def flood(system: ActorSystem, ref: ActorRef) -> tuple[int, int]:
    """Return how many messages went in, and how many were refused as there was no room."""
    accepted = refused = 0
    for number in range(FLOOD):
        try:
            ref.tell_nowait(number)
            accepted += 1
        except MailboxFull:
            refused += 1
        report = system.audit()
        assert report.deepest_mailbox <= CAPACITY
        assert report.persistence_waiting <= 10_000
    return accepted, refused


async def stop_soon(ref: ActorRef, tasks: Any) -> None:
    tasks.start_soon(ref.stop)
    await wait_until_idle()


HELD: dict[str, tuple[type[Held], str | None, bool]] = {
    # the class, what it is told first, and whether it is to stop then
    "starting": (Held, None, False),
    "handling": (Held, "x", False),
    "stopping": (Held, None, True),
    "draining": (Held, "x", True),
    "stopping children": (Waits, None, True),
    "restarting": (Waits, "fail", False),
}


@pytest.mark.parametrize("where", HELD)
async def test_a_flood_of_messages_does_not_exceed_a_mailboxs_capacity(
    persistence: InMemoryPersistence, where: str
) -> None:
    entered, release = anyio.Event(), anyio.Event()
    actor_class, first, stops = HELD[where]
    async with (
        ActorSystem(persistence=persistence, mailbox_capacity=CAPACITY) as system,
        anyio.create_task_group() as tasks,
    ):
        ref = system.spawn(actor_class, where, entered, release)
        await wait_until_idle()
        if first is not None:
            await ref.tell(first)
        if stops:
            await stop_soon(ref, tasks)
        await wait_until_idle()
        assert entered.is_set()
        accepted, refused = await flood(system, ref)
        release.set()
    letters = len(persistence.dead_letters)
    assert (accepted, letters) == ((FLOOD, FLOOD) if stops else (CAPACITY, 0))
    assert accepted + refused == FLOOD


async def test_a_flood_does_not_exceed_the_mailbox_of_an_actor_waiting_to_be_restarted() -> None:
    clock = ManualClock()
    supervision = OneForOne(backoff=10)
    async with ActorSystem(
        clock=clock, mailbox_capacity=CAPACITY, supervision=supervision
    ) as system:
        ref = system.spawn(Held, "nowhere", anyio.Event(), anyio.Event())
        await ref.tell("fail")
        await wait_until_idle()
        assert (await flood(system, ref))[0] == CAPACITY
        await clock.advance(10)
        await ref.ask("handled")


@pytest.mark.parametrize("send", ["tell_nowait", "tell"])
async def test_dead_letters_do_not_exceed_the_persistence_actors_mailbox(
    persistence: InMemoryPersistence, send: str
) -> None:
    deepest = 0

    async def watch() -> None:
        nonlocal deepest
        deepest = max(deepest, system.audit().persistence_waiting)

    tell: dict[str, Callable[[ActorRef, int], Any]] = {
        "tell_nowait": lambda ref, number: ref.tell_nowait(number),
        "tell": lambda ref, number: ref.tell(number),
    }
    accepted = refused = 0
    texts: set[str] = set()
    async with ActorSystem("shop", persistence=persistence) as system:
        ref = system.spawn(Held, "nowhere", anyio.Event(), anyio.Event(), name="held")
        await ref.stop()
        await system.backend.flush()
        for number in range(12_000):
            try:
                result = tell[send](ref, number)
                if result is not None:
                    await result
                accepted += 1
            except MailboxFull as error:
                refused += 1
                texts.add(str(error))
            await watch()
        assert deepest <= 10_000
        await system.backend.flush()
        ref.tell_nowait("there is room again")
    assert (accepted, refused) == ((10_000, 2_000) if send == "tell_nowait" else (12_000, 0))
    assert len(persistence.dead_letters) == accepted + 1
    assert all("shop/held takes no more messages, and the store has no" in text for text in texts)
