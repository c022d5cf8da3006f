"""The stores that the guide of the command shows, the same each time.

One has six hours of a shop, one an account of `examples/bank.py`, and one an unpaid order.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import msgspec

from examples.bank import Account, Deposit, Withdraw
from papyra import Actor, ActorSystem, EventSourced, OneForOne
from papyra.persistence import PersistedEvent, Record
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import Limits, RetentionPolicy
from papyra.testing import ManualClock

__all__ = ("open_the_bank", "open_the_shop", "take_an_order")

#: 2026-01-01T09:00:00Z
OPENED_AT = 1_767_258_000.0
PLACES = ("till", "kitchen", "printer", "stock", "door")


class Place(Actor):
    """Keeps what it is told; a paper jam is too much for it."""

    async def receive(self, message: Any) -> None:
        if message == "jam":
            raise ValueError("paper jam")
        await self.context.persist(("OrderPlaced", {"item": message}))


async def open_the_shop(path: Path) -> None:
    """Run the shop for a day, in memory; then write its facts to the file at `path`."""
    chance, clock = random.Random(7), ManualClock(OPENED_AT)
    facts = InMemoryPersistence()
    logging.disable(logging.ERROR)
    try:
        async with ActorSystem(
            "shop",
            persistence=facts,
            clock=clock,
            audit_interval=3600,
            supervision=OneForOne(backoff=900, max_backoff=900),
        ) as system:
            places = {}
            for name in PLACES:
                places[name] = system.spawn(Place, name=name)
                await clock.advance(180)
            for number in range(200):
                name = chance.choice(PLACES)
                jams = name == "printer" and chance.random() < 0.12
                await places[name].tell("jam" if jams else chance.choice(("tea", "coffee", "cake")))
                await clock.advance(chance.expovariate(1 / 100))
                if number == 130:
                    await places["stock"].stop()
    finally:
        logging.disable(logging.NOTSET)
    records: list[Record] = [*facts.events, *facts.audits, *facts.dead_letters]
    async with JsonFilePersistence(path, fsync="no") as file:
        await file.restore(*sorted(records, key=lambda record: record.seq or 0))


async def open_the_bank(path: Path) -> None:
    """Have an account, on whose third day somebody knew better than its class."""
    clock = ManualClock(OPENED_AT)
    async with ActorSystem("bank", persistence=JsonFilePersistence(path), clock=clock) as system:
        account = system.spawn(Account, name="ann")
        for message in (Deposit(30), Withdraw(12)):
            await account.ask(message)
            await clock.advance(86_400)
        interest = PersistedEvent("bank", "bank/ann", "InterestPaid", {"cents": 5}, clock.time())
        await system.backend.append(msgspec.structs.replace(interest, revision=3))
    # What a system counts is another matter with each version.
    async with JsonFilePersistence(path) as store:
        await store.compact(RetentionPolicy(audits=Limits(max_age_seconds=1)))


class PaymentIsDue(msgspec.Struct, frozen=True):
    pass


class Order(EventSourced[None]):
    """Waits for its payment for ten minutes."""

    timer_messages = (PaymentIsDue,)

    def initial_state(self) -> None:
        return None

    def apply(self, state: None, event: object) -> None:
        return None

    async def receive(self, message: Any) -> None:
        await self.schedule("payment", PaymentIsDue(), after=600)


async def take_an_order(path: Path) -> None:
    """Write a store with a durable timer."""
    async with ActorSystem("shop", persistence=JsonFilePersistence(path)) as system:
        await system.entity(Order, "42").ask("a lamp")
