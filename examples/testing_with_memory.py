"""How to test code that persists: with the in-memory backend as a fixture.

Run it: pytest examples/testing_with_memory.py
"""

import msgspec
import pytest

from papyra import Actor, ActorSystem
from papyra.persistence import Append, GetMetrics, PersistedEvent, PersistenceActor
from papyra.persistence.backends.memory import InMemoryPersistence


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def persistence() -> InMemoryPersistence:
    backend = InMemoryPersistence()
    backend.metrics.reset()
    return backend


class Deposited(msgspec.Struct, frozen=True):
    amount: int


class Account(Actor):
    def __init__(self) -> None:
        self.balance = 0

    async def receive(self, amount: int) -> int:
        if amount <= 0:
            raise ValueError("deposit something")
        await self.context.persist(Deposited(amount))
        self.balance += amount
        return self.balance


@pytest.mark.anyio
async def test_a_deposit_is_an_event(persistence: InMemoryPersistence) -> None:
    async with ActorSystem("bank", persistence=persistence) as system:
        account = system.spawn(Account, name="account-1")
        assert await account.ask(30) == 30
        assert await account.ask(12) == 42
    deposits = [event for event in persistence.events if event.event_type == "Deposited"]
    assert [event.payload for event in deposits] == [{"amount": 30}, {"amount": 12}]


@pytest.mark.anyio
async def test_a_refused_deposit_leaves_a_crash_and_no_deposit(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem("bank", persistence=persistence) as system:
        account = system.spawn(Account)
        with pytest.raises(ValueError, match="deposit something"):
            await account.ask(-1)
    assert [event.event_type for event in persistence.events] == [
        "ActorStarted",
        "ActorCrashed",
        "ActorRestarted",
        "ActorStopped",
    ]


@pytest.mark.anyio
async def test_a_persistence_actor_by_itself(persistence: InMemoryPersistence) -> None:
    async with ActorSystem("bank") as system:
        ref = system.spawn(PersistenceActor, persistence)
        await ref.ask(Append(PersistedEvent("bank", "bank/account-1", "Opened", {}, 1.0)))
        snapshot = await ref.ask(GetMetrics())
    assert snapshot["records_written"] == 1
    assert persistence.events[0].event_type == "Opened"
