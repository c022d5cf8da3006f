"""The account that the tests of event-sourced actors use."""

from __future__ import annotations

from typing import Any

import msgspec

from papyra import Failure
from papyra.eventsourcing import EventSourced


class Deposited(msgspec.Struct, frozen=True):
    amount: int


class Withdrawn(msgspec.Struct, frozen=True):
    amount: int


class Balance(msgspec.Struct, frozen=True):
    amount: int = 0
    movements: int = 0


class Deposit(msgspec.Struct, frozen=True):
    amount: int


class Withdraw(msgspec.Struct, frozen=True):
    amount: int


class Look(msgspec.Struct, frozen=True):
    """Reply with the balance and the revision."""


class InsufficientFunds(Exception):
    """There is less than was to be withdrawn."""


class Account(EventSourced[Balance]):
    """An account. `Deposit` and `Withdraw` reply with the new amount."""

    events = (Deposited, Withdrawn)

    def initial_state(self) -> Balance:
        return Balance()

    def apply(self, state: Balance, event: Deposited | Withdrawn) -> Balance:
        match event:
            case Deposited(amount):
                return Balance(state.amount + amount, state.movements + 1)
            case Withdrawn(amount):
                return Balance(state.amount - amount, state.movements + 1)

    async def receive(self, message: Any) -> Any:
        match message:
            case Deposit(amount):
                await self.keep(Deposited(amount))
                return self.state.amount
            case Withdraw(amount):
                if amount > self.state.amount:
                    return Failure(InsufficientFunds(amount))
                await self.keep(Withdrawn(amount))
                return self.state.amount
            case Look():
                return self.state.amount, self.revision
            case _:
                return self.unhandled(message)

    async def keep(self, event: object) -> None:
        await self.persist(event)


class PipelinedAccount(Account):
    """The same, which does not wait for the store."""

    async def keep(self, event: object) -> None:
        self.persist_nowait(event)
