"""An account that survives its process.

Run it twice, and the balance comes back: python examples/bank.py

On another store: python examples/bank.py 'redis://localhost/0?system_id=bank'

Then look at what it is the sum of: cd examples && papyra history bank/ann ../bank.ndjson --app bank
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
import msgspec

from papyra import ActorSystem, EventSourced, Failure, Message
from papyra.conf import backend_from_url
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.records import KINDS

# Where the events are kept: change this line, and nothing else, to have them elsewhere. Such as
# "rotating:bank", a directory; "redis://localhost/0?system_id=bank"; or "memory:".
STORE = "json:bank.ndjson"
# What is in memory is copied here in the end, and back the next time. A crash would lose it.
COPY = "bank-copy.ndjson"


class Deposited(msgspec.Struct, frozen=True):
    amount: int


class Withdrawn(msgspec.Struct, frozen=True):
    amount: int


class Deposit(msgspec.Struct, Message[int], frozen=True):
    """Reply with the new balance, as `Withdraw` does."""

    amount: int


class Withdraw(msgspec.Struct, Message[int], frozen=True):
    amount: int


class InsufficientFunds(Exception):
    """There is less than was to be withdrawn."""


class Account(EventSourced[int]):
    """What it holds is the sum of its events; so are all that it will ever hold again."""

    events = (Deposited, Withdrawn)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Deposited | Withdrawn) -> int:
        match event:
            case Deposited(amount):
                return state + amount
            case Withdrawn(amount):
                return state - amount

    async def receive(self, message: Any) -> Any:
        match message:
            case Deposit(amount):
                await self.persist(Deposited(amount))
                return self.state
            case Withdraw(amount) if amount > self.state:
                return Failure(InsufficientFunds(f"{amount} is more than {self.state}"))
            case Withdraw(amount):
                await self.persist(Withdrawn(amount))
                return self.state
            case _:
                return self.unhandled(message)

    async def on_recovered(self) -> None:
        print(f"the account holds {self.state} after {self.revision} events")


async def copy(source: PersistenceBackend, target: PersistenceBackend) -> None:
    """Bring `target`, which holds a beginning of `source`, up to date."""
    async with source, target:
        there = (await target.summarize()).last_seq
        new = [record for kind in KINDS async for record in source.stream(kind, after=there)]
        if new:
            await target.restore(*sorted(new, key=lambda record: record.seq or 0))


async def main(url: str) -> None:
    store, is_in_memory = backend_from_url(url), url == "memory:"
    if is_in_memory:
        await copy(JsonFilePersistence(COPY), store)
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(Account, name="ann")
        print("30 more:", await account.ask(Deposit(30)))
        try:
            print("50 less:", await account.ask(Withdraw(50)))
        except InsufficientFunds as refused:
            print("50 less:", refused)
    if is_in_memory:
        await copy(store, JsonFilePersistence(COPY))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if sys.argv[1:] else STORE)
