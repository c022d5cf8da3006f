"""A command that was cut short is finished when it is repeated with its idempotency key."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy, event, upcaster
from papyra.exceptions import ReplyNotKept
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.messages import AppendMany
from papyra.persistence.records import PersistedEvent
from papyra.retry import Retry
from papyra.testing import FaultyPersistence
from tests.eventsourcing.accounts import (
    Account,
    Balance,
    Deposit,
    Deposited,
    Look,
    PipelinedAccount,
    Withdraw,
    Withdrawn,
)

pytestmark = pytest.mark.anyio

ANN = "bank/ann"
ACCOUNTS = pytest.mark.parametrize("account_class", [Account, PipelinedAccount])


def stored(
    revision: int, stored_event: object, command: object = None, key: str = "a"
) -> PersistedEvent:
    """Return an event of ann's, and that of a command if one is given."""
    of_command = {"papyra.idempotency_key": key, "papyra.command": type(command).__name__}
    return PersistedEvent(
        *("bank", ANN, type(stored_event).__name__, stored_event, 1.0),
        revision=revision,
        metadata={} if command is None else of_command,
    )


async def cut_short(
    store: PersistenceBackend, *before: object, command: object, events: tuple[object, ...]
) -> None:
    """Store the events of a command whose process ended before the reply was stored."""
    first = len(before) + 1
    records = [stored(revision, each) for revision, each in enumerate(before, 1)]
    records += [stored(revision, each, command) for revision, each in enumerate(events, first)]
    async with store:
        await store.execute(AppendMany(tuple(records)))


async def types(store: PersistenceBackend) -> list[str]:
    return [each.event_type for each in (await store.read_history(ANN)).events]


@ACCOUNTS
async def test_it_replies_with_the_state_that_it_had(account_class: type[Account]) -> None:
    store = InMemoryPersistence()
    await cut_short(store, Deposited(5), command=Withdraw(5), events=(Withdrawn(5),))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(account_class, name="ann")
        # With the state of now it would be refused.
        assert await account.ask(Withdraw(5), idempotency_key="a") == 0
        assert await account.ask(Withdraw(5), idempotency_key="a") == 0
        assert await types(system.backend) == ["Deposited", "Withdrawn", "papyra.replied"]
        assert await account.ask(Deposit(3)) == 3
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(account_class, name="ann")
        assert await account.ask(Withdraw(5), idempotency_key="a") == 0
        assert (await account.ask(Look()))[0] == 3


@ACCOUNTS
async def test_what_others_have_stored_since_stays(account_class: type[Account]) -> None:
    store = InMemoryPersistence()
    await cut_short(store, Deposited(5), command=Withdraw(5), events=(Withdrawn(5),))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(account_class, name="ann")
        assert await account.ask(Deposit(8)) == 8
        assert await account.ask(Withdraw(1), idempotency_key="b") == 7
        assert await account.ask(Withdraw(5), idempotency_key="a") == 0
        assert (await account.ask(Look()))[0] == 7
        assert await account.ask(Withdraw(1)) == 6


@ACCOUNTS
async def test_an_answer_of_the_store_that_got_lost_is_made_good_by_a_retry(
    account_class: type[Account],
) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(account_class, name="ann")
        await account.ask(Look())
        await system.backend.flush()
        store.fail_next("append", kind="event", after=True)
        assert await account.ask(Deposit(5), retry=Retry(3), idempotency_key="a") == 5
        assert (await account.ask(Look()))[0] == 5


class Transfer(msgspec.Struct, frozen=True):
    """Withdraw and deposit again, twice; with a failure between these, the first few times."""

    amount: int


class Clumsy(Account):
    crashes = 0

    async def receive(self, message: Any) -> Any:
        match message:
            case Transfer(amount):
                await self.persist(Withdrawn(amount))
                between = self.state
                if type(self).crashes:
                    type(self).crashes -= 1
                    raise OSError("no network")
                await self.persist(Deposited(amount), Deposited(1))
                return [between.amount, self.state.amount]
        return await super().receive(message)


async def test_a_command_that_crashed_between_two_persists_is_finished() -> None:
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        account = system.entity(Clumsy, "ann")
        await account.ask(Deposit(5))
        Clumsy.crashes = 3
        for _ in range(3):
            with pytest.raises(OSError, match="no network"):
                await account.ask(Transfer(2), idempotency_key="a")
        assert (await account.ask(Look()))[0] == 3
        assert await account.ask(Transfer(2), idempotency_key="a") == [3, 6]
        assert await account.ask(Transfer(2), idempotency_key="a") == [3, 6]
        assert (await account.ask(Look()))[0] == 6


async def test_the_rest_of_a_command_stands_on_what_has_come_since() -> None:
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        account = system.entity(Clumsy, "ann")
        await account.ask(Deposit(5))
        Clumsy.crashes = 1
        with pytest.raises(OSError, match="no network"):
            await account.ask(Transfer(2), idempotency_key="a")
        assert await account.ask(Deposit(10)) == 13
        assert await account.ask(Transfer(2), idempotency_key="a") == [3, 16]
        assert (await account.ask(Look()))[0] == 16


@pytest.mark.parametrize("amounts", [(4,), (5, 5), (), (7, 5)])
async def test_what_does_something_else_the_second_time_is_refused(
    amounts: tuple[int, ...],
) -> None:
    class Fickle(Account):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, Deposit):
                for amount in amounts:
                    await self.persist(Deposited(amount))
                return "done"
            return await super().receive(message)

    store = InMemoryPersistence()
    await cut_short(store, command=Deposit(5), events=(Deposited(5), Deposited(6)))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(Fickle, name="ann")
        for _ in range(2):
            with pytest.raises(ReplyNotKept):
                await account.ask(Deposit(5), idempotency_key="a")
            assert await account.ask(Look()) == (11, 2)
        assert await account.ask(Withdraw(1)) == 10


async def test_who_catches_the_refusal_can_not_store_it_twice() -> None:
    class Stubborn(Account):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, Deposit):
                for amount in (7, 5, 6, 8):
                    try:
                        await self.persist(Deposited(amount))
                    except ReplyNotKept:
                        continue
                return "done"
            return await super().receive(message)

    store = InMemoryPersistence()
    await cut_short(store, command=Deposit(5), events=(Deposited(5),))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(Stubborn, name="ann")
        with pytest.raises(ReplyNotKept):
            await account.ask(Deposit(5), idempotency_key="a")
        assert await account.ask(Look()) == (5, 1)


async def test_a_random_id_is_not_replied_as_another_one() -> None:
    numbers = itertools.count(100)

    class Random(Account):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, Deposit):
                number = next(numbers)
                await self.persist(Deposited(number))
                return number
            return await super().receive(message)

    store = InMemoryPersistence()
    await cut_short(store, command=Deposit(5), events=(Deposited(42),))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(Random, name="ann")
        with pytest.raises(ReplyNotKept):
            await account.ask(Deposit(5), idempotency_key="a")


class OldAccount(Account):
    snapshots = SnapshotPolicy(every=2, keep=2)


async def test_it_goes_back_behind_snapshots_and_leaves_them_right() -> None:
    store = InMemoryPersistence()
    before = tuple(Deposited(1) for _ in range(9))
    await cut_short(store, *before, command=Withdraw(9), events=(Withdrawn(9),))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(OldAccount, name="ann")
        for _ in range(5):
            await account.ask(Deposit(1))
        await system.backend.flush()
        assert await account.ask(Withdraw(9), idempotency_key="a") == 0
        for number in range(5):
            assert await account.ask(Deposit(1)) == 6 + number
        await system.backend.flush()
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(OldAccount, name="ann")
        assert await account.ask(Withdraw(9), idempotency_key="a") == 0
        assert (await account.ask(Look()))[0] == 10


async def test_what_is_not_in_the_store_any_more_can_not_be_handled_once_more(
    tmp_path: Path,
) -> None:
    store = JsonFilePersistence(tmp_path / "bank.ndjson", fsync="no")
    await cut_short(store, command=Deposit(9), events=(Deposited(9),))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(OldAccount, name="ann")
        for _ in range(8):
            await account.ask(Deposit(1))
            await system.backend.flush()
        report = await system.backend.compact(RetentionPolicy(max_records=1, trim_histories=True))
        assert report.histories is not None
        assert report.histories.trimmed == 1
        with pytest.raises(ReplyNotKept, match="not in the store"):
            await account.ask(Deposit(9), idempotency_key="a")
        assert (await account.ask(Look()))[0] == 17


class Basket(EventSourced[list[int]]):
    """Its state is changed in place."""

    events = (Deposited,)

    def initial_state(self) -> list[int]:
        return []

    def apply(self, state: list[int], event: Deposited) -> list[int]:
        state.append(event.amount)
        return state

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Deposit):
            await self.persist(Deposited(message.amount))
        return list(self.state)


async def test_a_state_that_is_changed_in_place_is_that_of_now_afterwards() -> None:
    store = InMemoryPersistence()
    await cut_short(store, Deposited(1), command=Deposit(2), events=(Deposited(2),))
    async with ActorSystem("bank", persistence=store) as system:
        basket = system.spawn(Basket, name="ann")
        assert await basket.ask(Deposit(3)) == [1, 2, 3]
        assert await basket.ask(Deposit(2), idempotency_key="a") == [1, 2]
        assert await basket.ask("look") == [1, 2, 3]
        assert await basket.ask(Deposit(4)) == [1, 2, 3, 4]


@event("Deposited", version=2)
class InCents(msgspec.Struct, frozen=True):
    cents: int


class NewAccount(EventSourced[int]):
    events = (InCents,)

    @staticmethod
    @upcaster("Deposited", from_version=1)
    def in_cents(payload: Any) -> Any:
        return {"cents": 100 * payload["amount"]}

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: InCents) -> int:
        return state + event.cents

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Deposit):
            await self.persist(InCents(100 * message.amount))
        return self.state


async def test_events_of_an_older_version_are_those_that_they_have_become() -> None:
    store = InMemoryPersistence()
    await cut_short(store, Deposited(1), command=Deposit(2), events=(Deposited(2),))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(NewAccount, name="ann")
        assert await account.ask(Deposit(2), idempotency_key="a") == 300
        assert await account.ask("look") == 300


async def test_the_revision_is_that_of_then_while_it_is_handled_once_more() -> None:
    seen: list[tuple[int, Balance]] = []

    class Watched(Account):
        async def receive(self, message: Any) -> Any:
            seen.append((self.revision, self.state))
            reply = await super().receive(message)
            seen.append((self.revision, self.state))
            return reply

    store = InMemoryPersistence()
    await cut_short(store, Deposited(1), command=Deposit(2), events=(Deposited(2),))
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(Watched, name="ann")
        await account.ask(Deposit(4))
        await account.ask(Deposit(2), idempotency_key="a")
        assert seen == [
            *((2, Balance(3, 2)), (3, Balance(7, 3))),
            *((1, Balance(1, 1)), (2, Balance(3, 2))),
        ]
