"""An event-sourced actor comes back with the state it had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import msgspec
import pytest

from papyra import ActorRef, ActorSystem, Failure
from papyra.eventsourcing import EventSourced
from papyra.exceptions import (
    AskTimeout,
    InvalidEvent,
    PersistenceError,
    RecoveryFailed,
    RevisionConflict,
    StoreError,
    UnencodablePayload,
    UnhandledMessage,
    WrongTask,
)
from papyra.persistence import PersistedEvent, ReadHistory, Request
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence, ManualClock
from tests.eventsourcing.accounts import (
    Account,
    Balance,
    Deposit,
    Deposited,
    InsufficientFunds,
    Look,
    Withdraw,
    Withdrawn,
)

pytestmark = pytest.mark.anyio

ReplyT = TypeVar("ReplyT")


@asynccontextmanager
async def bank(
    store: InMemoryPersistence | FaultyPersistence, **options: Any
) -> AsyncIterator[ActorSystem]:
    async with ActorSystem("bank", persistence=store, **options) as system:
        yield system


async def revisions(store: InMemoryPersistence, actor: str = "bank/ann") -> list[int | None]:
    return [event.revision for event in (await store.read_history(actor)).events]


def a_deposit(revision: int, amount: int = 1, **changes: Any) -> PersistedEvent:
    fields = {"event_type": "Deposited", "payload": {"amount": amount}, "revision": revision}
    record = PersistedEvent("bank", "bank/ann", timestamp=1.0, **fields)  # type: ignore[arg-type]
    return msgspec.structs.replace(record, **changes)


async def test_an_event_sourced_actor_comes_back_with_its_state() -> None:
    store = InMemoryPersistence()
    for life in range(3):
        async with bank(store) as system:
            account = system.spawn(Account, name="ann")
            assert await account.ask(Look()) == (7 * life, 2 * life)
            assert await account.ask(Deposit(10)) == 7 * life + 10
            assert await account.ask(Withdraw(3)) == 7 * life + 7
    assert await revisions(store) == [1, 2, 3, 4, 5, 6]


async def test_a_restarted_event_sourced_actor_has_its_state_again() -> None:
    class Frail(Account):
        async def receive(self, message: Any) -> Any:
            if message == "crash":
                await self.persist(Deposited(5), Deposited(6))
                raise RuntimeError("crash")
            return await super().receive(message)

    async with bank(InMemoryPersistence()) as system:
        account = system.spawn(Frail, name="ann")
        await account.ask(Deposit(1))
        with pytest.raises(RuntimeError):
            await account.ask("crash")
        assert await account.ask(Look()) == (12, 3)


async def test_actors_have_histories_of_their_own() -> None:
    store = InMemoryPersistence()
    async with bank(store) as system:
        for number, name in enumerate(["ann", "bob", "eve"], 1):
            account = system.spawn(Account, name=name)
            for _ in range(number):
                await account.ask(Deposit(number))
    async with bank(store) as system:
        found = [await system.spawn(Account, name=n).ask(Look()) for n in ("ann", "bob", "eve")]
    assert found == [(1, 1), (4, 2), (9, 3)]


async def test_a_history_longer_than_a_page_is_recovered_whole() -> None:
    store = InMemoryPersistence()
    async with store:
        await store.append(*(a_deposit(revision) for revision in range(1, 2_501)))
    async with bank(store) as system:
        assert await system.spawn(Account, name="ann").ask(Look()) == (2500, 2500)


async def test_a_refusal_stores_nothing() -> None:
    store = InMemoryPersistence()
    async with bank(store) as system:
        account = system.spawn(Account, name="ann")
        with pytest.raises(InsufficientFunds):
            await account.ask(Withdraw(1))
        with pytest.raises(UnhandledMessage):
            await account.ask("what")
        assert await account.ask(Look()) == (0, 0)
    assert await revisions(store) == []


class Odd(Account):
    """Does what it is told, and says what came of it."""

    async def receive(self, message: Any) -> Any:
        try:
            await self.persist(*message)
        except Exception as error:
            return error, self.state, self.revision
        return None, self.state, self.revision

    def apply(self, state: Balance, event: Any) -> Balance:
        if isinstance(event, Deposited) and event.amount == 13:
            raise ValueError("thirteen")
        if isinstance(event, Deposited) and event.amount == 14:
            return None  # type: ignore[return-value]
        return super().apply(state, event)


@pytest.mark.parametrize(
    ("events", "error_type"),
    [
        ((Deposited(1), Deposited(13)), ValueError),
        ((Deposited(1), Deposited(14)), InvalidEvent),
        ((Deposited(1), Deposit(1)), InvalidEvent),
        (("Deposited",), InvalidEvent),
        ((Deposited(10**5000),), UnencodablePayload),
    ],
)
async def test_what_apply_or_the_codec_refuses_is_not_stored_and_changes_nothing(
    events: tuple[object, ...], error_type: type[Exception]
) -> None:
    store = InMemoryPersistence()
    async with bank(store) as system:
        account = system.spawn(Odd, name="ann")
        await account.ask([Deposited(1)])
        error, state, revision = await account.ask(events)
        assert isinstance(error, error_type)
        assert (state, revision) == (Balance(1, 1), 1)
        assert await account.ask([Deposited(2)]) == (None, Balance(3, 2), 2)
    assert await revisions(store) == [1, 2]


async def test_persisting_nothing_does_nothing() -> None:
    store = InMemoryPersistence()
    async with bank(store) as system:
        assert await system.spawn(Odd, name="ann").ask(()) == (None, Balance(), 0)


async def test_an_append_that_fails_leaves_the_state_as_it_was() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with bank(store) as system:
        account = system.spawn(Odd, name="ann")
        await account.ask([Deposited(1)])
        store.fail_next("append")
        error, state, revision = await account.ask([Deposited(2)])
        assert isinstance(error, StoreError)
        assert (state, revision) == (Balance(1, 1), 1)
        assert await account.ask([Deposited(4)]) == (None, Balance(5, 2), 2)


class Basket(EventSourced[list[int]]):
    """Its `apply` changes the state in place, which it should not."""

    events = (Deposited,)

    def initial_state(self) -> list[int]:
        return []

    def apply(self, state: list[int], event: Any) -> list[int]:
        state.append(event.amount)
        return state

    async def receive(self, message: Any) -> Any:
        match message:
            case Deposit(amount):
                try:
                    await self.persist(Deposited(amount))
                except (StoreError, ValueError) as error:
                    return Failure(error)
            case _:
                return self.unhandled(message)
        return list(self.state)


async def test_a_state_changed_in_place_is_read_again_after_an_append_that_failed() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with bank(store) as system:
        basket = system.spawn(Basket, name="ann")
        await basket.ask(Deposit(1))
        store.fail_next("append", times=2)
        for _ in range(2):
            with pytest.raises(StoreError):
                await basket.ask(Deposit(2))
        assert await basket.ask(Deposit(3)) == [1, 3]


async def test_an_apply_that_raises_after_it_changed_the_state_in_place_leaves_no_trace() -> None:
    class Picky(Basket):
        def apply(self, state: list[int], event: Any) -> list[int]:
            state.append(event.amount)
            if event.amount > 9:
                raise ValueError(event.amount)
            return state

    async with bank(InMemoryPersistence()) as system:
        basket = system.spawn(Picky, name="ann")
        await basket.ask(Deposit(1))
        with pytest.raises(ValueError, match="10"):
            await basket.ask(Deposit(10))
        assert await basket.ask(Deposit(2)) == [1, 2]


async def test_two_writers_of_one_history_are_told_apart_and_the_second_reads_again() -> None:
    store = InMemoryPersistence()
    async with bank(store) as system:
        account = system.spawn(Odd, name="ann")
        await account.ask([Deposited(1)])
        await system.backend.append(a_deposit(2, amount=10))
        error, _, _ = await _failed(account.ask([Deposited(100)]))
        assert isinstance(error, RevisionConflict)
        assert (error.actor, error.expected, error.found) == ("bank/ann", 3, 2)
        assert await account.ask([Deposited(5)]) == (None, Balance(16, 3), 3)


async def _failed(asking: Any) -> Any:
    try:
        return await asking
    except PersistenceError as error:
        return error, None, None
    except RecoveryFailed as error:
        return error.__cause__, None, None


class Impatient(Account):
    """Gives up on the store, and goes on."""

    async def keep(self, event: object) -> None:
        with anyio.move_on_after(0):
            await self.persist(event)

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Deposit):
            await self.keep(Deposited(message.amount))
            return "perhaps"
        return await super().receive(message)


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_persist_that_was_cancelled_is_settled_before_the_next_message(
    is_stored: bool,
) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with bank(store) as system:
        account = system.spawn(Impatient, name="ann")
        assert await account.ask(Look()) == (0, 0)
        await system.backend.flush()
        store.hang("append", kind="event")
        if not is_stored:
            store.fail_next("append", kind="event")
        assert await account.ask(Deposit(5)) == "perhaps"
        with pytest.raises(AskTimeout):
            await account.ask(Look(), timeout=0.05)
        store.release()
        assert await account.ask(Look()) == ((5, 1) if is_stored else (0, 0))


async def test_persist_in_a_task_that_is_not_the_actors_own_is_refused() -> None:
    class Spread(Account):
        async def receive(self, message: Any) -> Any:
            errors: list[Exception] = []

            async def persist() -> None:
                try:
                    await self.persist(Deposited(1))
                except WrongTask as error:
                    errors.append(error)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(persist)
            return errors

    store = InMemoryPersistence()
    async with bank(store) as system:
        (error,) = await system.spawn(Spread, name="ann").ask(1)
        assert "in its own task" in str(error)
    assert await revisions(store) == []


async def test_state_before_the_recovery_is_an_error_that_says_so() -> None:
    class Early(Account):
        def __init__(self) -> None:
            with pytest.raises(RecoveryFailed, match="no state yet"):
                _ = self.state

    async with bank(InMemoryPersistence()) as system:
        assert await system.spawn(Early, name="ann").ask(Look()) == (0, 0)


async def test_on_recovered_sees_the_state_and_may_persist() -> None:
    class Greeter(Account):
        async def on_recovered(self) -> None:
            await self.persist(Deposited(self.revision + 1))

    store = InMemoryPersistence()
    for expected in ((1, 1), (3, 2), (6, 3)):
        async with bank(store) as system:
            assert await system.spawn(Greeter, name="ann").ask(Look()) == expected


@pytest.mark.parametrize(
    ("bad", "revision", "event_type", "why"),
    [
        (a_deposit(3, payload={"amount": "x"}), 3, "Deposited", "is no such event"),
        (a_deposit(3, event_type="Stolen"), 3, "Stolen", "no event 'Stolen'"),
        (a_deposit(3, event_version=2), 3, "Deposited", "newer than the 1"),
        (a_deposit(4), 3, "Deposited", "revision 3 is missing"),
        (a_deposit(2), 3, "Deposited", "revision 2 is doubled"),
    ],
)
async def test_a_history_that_can_not_be_applied_fails_every_asker_and_is_recorded(
    bad: PersistedEvent, revision: int, event_type: str, why: str
) -> None:
    store = InMemoryPersistence()
    async with store:
        records = [a_deposit(1), a_deposit(2), bad, a_deposit(5)]
        await store.restore(*(msgspec.structs.replace(r, seq=n) for n, r in enumerate(records, 1)))
    async with bank(store) as system:
        account = system.spawn(Account, name="ann")
        for _ in range(2):
            with pytest.raises(RecoveryFailed, match=why) as caught:
                await account.ask(Look())
            failure = caught.value
            assert (failure.actor, failure.revision) == ("bank/ann", revision)
            assert failure.event_type == event_type
        await account.tell(Deposit(1))
        await system.backend.flush()
    facts = await store.read("event", event_type="ActorRecoveryFailed")
    (fact,) = facts.records
    assert isinstance(fact, PersistedEvent)
    assert (fact.payload["revision"], fact.payload["event_type"]) == (revision, event_type)
    assert why in fact.payload["reason"]
    letters = (await store.read("dead_letter", actor="bank/ann")).records
    assert len(letters) == 3


async def test_an_actor_whose_history_can_not_be_read_comes_back_when_it_can() -> None:
    clock = ManualClock()
    store = FaultyPersistence(InMemoryPersistence())
    async with bank(store, clock=clock, audit_interval=None) as system:
        await system.backend.append(a_deposit(1, amount=4))
        store.fail_when(lambda operation: operation.name == "read")
        account = system.spawn(Account, name="ann")
        with pytest.raises(RecoveryFailed, match="can't be read") as caught:
            await account.ask(Look())
        assert isinstance(caught.value.__cause__, StoreError)
        store.clear()
        with pytest.raises(RecoveryFailed):
            await account.ask(Look())  # it has been tried a moment ago
        await clock.advance(1.0)
        assert await account.ask(Look()) == (4, 1)
        assert await account.ask(Deposit(1)) == 5


async def test_recoveries_are_bounded_and_each_gets_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("papyra.system.MAX_RECOVERIES", 3)
    reading = most = 0

    class Watched(InMemoryPersistence):
        async def execute(self, request: Request[ReplyT]) -> ReplyT:
            nonlocal reading, most
            is_read = isinstance(request, ReadHistory)
            reading += is_read
            most = max(most, reading)
            try:
                await anyio.lowlevel.checkpoint()
                return await super().execute(request)
            finally:
                reading -= is_read

    async with bank(Watched()) as system:
        accounts = [system.spawn(Account, name=f"a{number}") for number in range(50)]
        for account in accounts:
            assert await account.ask(Deposit(1)) == 1
    assert most == 3


async def test_commands_wait_while_an_actor_recovers() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with bank(store) as system:
        await system.backend.append(*(a_deposit(revision) for revision in range(1, 4)))
        store.hang("read")
        account: ActorRef = system.spawn(Account, name="ann")
        for _ in range(5):
            await account.tell(Deposit(10))
        store.release()
        assert await account.ask(Look()) == (53, 8)


async def test_an_actor_of_events_may_be_stopped_while_it_waits_to_recover() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    with anyio.fail_after(60):
        async with bank(store, shutdown_timeout=0.1) as system:
            store.hang("read")
            system.spawn(Account, name="ann")
            await anyio.lowlevel.checkpoint()


async def test_withdrawn_and_deposited_add_up_under_many_askers() -> None:
    store = InMemoryPersistence()
    async with bank(store) as system:
        account = system.spawn(Account, name="ann")

        async def move() -> None:
            for _ in range(20):
                await account.ask(Deposit(3))
                await account.ask(Withdraw(2))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(move)
        assert await account.ask(Look()) == (200, 400)
    stored = (await store.read_history("bank/ann")).events
    total = sum(
        event.payload["amount"] * (1 if event.event_type == Deposited.__name__ else -1)
        for event in stored
    )
    assert total == 200
    assert {event.event_type for event in stored} == {Deposited.__name__, Withdrawn.__name__}
