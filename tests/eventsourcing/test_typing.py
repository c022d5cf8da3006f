"""What a type checker knows of an event-sourced actor; ``mypy --strict`` checks it in this file."""

from __future__ import annotations

from typing import Any, assert_type

import msgspec
import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced
from papyra.message import Message
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.retry import Retry

pytestmark = pytest.mark.anyio


class Opened(msgspec.Struct, frozen=True):
    owner: str


class Deposited(msgspec.Struct, frozen=True):
    amount: int


class Balance(msgspec.Struct, frozen=True):
    owner: str = ""
    amount: int = 0


class Deposit(msgspec.Struct, Message[int], frozen=True):
    amount: int


class WhoOwns(msgspec.Struct, Message[str], frozen=True):
    pass


class Account(EventSourced[Balance]):
    events = (Opened, Deposited)

    def initial_state(self) -> Balance:
        return Balance()

    def apply(self, state: Balance, event: Opened | Deposited) -> Balance:
        match event:
            case Opened(owner):
                return Balance(owner, state.amount)
            case Deposited(amount):
                return Balance(state.owner, state.amount + amount)

    async def receive(self, message: Any) -> Any:
        assert_type(self.state, Balance)
        assert_type(self.revision, int)
        match message:
            case Deposit(amount):
                assert_type(await self.persist(Opened("ann"), Deposited(amount)), None)
                return self.state.amount
            case WhoOwns():
                return self.state.owner
            case _:
                return self.unhandled(message)


class Wrong(EventSourced[int]):
    """The checker tells of each of these."""

    def initial_state(self) -> str:  # type: ignore[override]
        return ""

    def apply(self, state: int, event: Deposited) -> str:  # type: ignore[override]
        return str(state + event.amount)

    async def receive(self, message: object) -> object:
        return self.state.amount  # type: ignore[attr-defined]


async def test_a_typed_message_says_what_its_ask_returns() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        account = system.spawn(Account, name="ann")
        assert assert_type(await account.ask(Deposit(3)), int) == 3
        assert assert_type(await account.ask(WhoOwns(), timeout=10), str) == "ann"
        again = await account.ask(Deposit(4), retry=Retry(2), idempotency_key="a")
        assert assert_type(again, int) == 7
