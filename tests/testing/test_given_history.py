"""Given events, when a command, then events, reply, state and error."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from papyra import ActorRef, Failure
from papyra.eventsourcing import EventSourced, SnapshotPolicy, Timer, event, upcaster
from papyra.exceptions import (
    InvalidEvent,
    InvalidIdempotencyKey,
    NotAnEntity,
    RecoveryFailed,
    StoreError,
    SystemNotRunning,
    UnencodablePayload,
    UnhandledMessage,
    WouldDeadlock,
    WrongTask,
)
from papyra.output_gate import OutputGate
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import (
    CheckedSystem,
    FaultyPersistence,
    ManualClock,
    ReplayMismatch,
    SetTimer,
    TestProbe,
    given_history,
)
from tests.eventsourcing.accounts import (
    Account,
    Balance,
    Deposit,
    Deposited,
    InsufficientFunds,
    Look,
    PipelinedAccount,
    Withdraw,
    Withdrawn,
)


@pytest.fixture(params=["no store", "memory", "a file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PersistenceBackend | None:
    match request.param:
        case "no store":
            return None
        case "memory":
            return InMemoryPersistence()
        case _:
            return JsonFilePersistence(tmp_path / "events.ndjson")


@pytest.mark.parametrize("account_class", [Account, PipelinedAccount])
async def test_a_command_has_events_a_reply_and_a_state(
    account_class: type[Account], store: PersistenceBackend | None
) -> None:
    account = given_history(account_class, Deposited(10), Deposited(5), store=store)
    outcome = await account.when(Withdraw(3))
    assert outcome.events == (Withdrawn(3),)
    assert outcome.reply == 12
    assert outcome.error is None
    assert outcome.state == Balance(12, 3)
    assert outcome.revision == 3
    assert (outcome.has_crashed, outcome.has_stopped, outcome.told_itself) == (False, False, ())


async def test_commands_follow_each_other(store: PersistenceBackend | None) -> None:
    account = given_history(Account, store=store)
    assert (await account.when(Deposit(10))).reply == 10
    outcome = await account.when(Withdraw(3))
    assert (outcome.reply, outcome.events) == (7, (Withdrawn(3),))
    assert (await account.when(Look())).reply == (7, 2)


async def test_a_refusal_is_an_error_without_events(store: PersistenceBackend | None) -> None:
    account = given_history(Account, Deposited(10), store=store)
    outcome = await account.when(Withdraw(11))
    assert isinstance(outcome.error, InsufficientFunds)
    assert (outcome.events, outcome.reply, outcome.state) == ((), None, Balance(10, 1))
    assert not outcome.has_crashed
    assert isinstance((await account.when("what")).error, UnhandledMessage)


class Frail(Account):
    """Crashes as it is told, and counts the messages that its instance has had."""

    def __init__(self) -> None:
        self.handled = 0

    async def receive(self, message: Any) -> Any:
        self.handled += 1
        match message:
            case "crash":
                await self.persist(Deposited(5))
                raise RuntimeError("crash")
            case "stop":
                self.context.stop()
                return "stopping"
            case "handled":
                return self.handled
            case "tell":
                await self.context.self_ref.tell(Deposit(1))
                self.context.self_ref.tell_nowait(Look())
                return str(self.context.self_ref.address)
            case "ask":
                await self.context.self_ref.ask(Look())
            case "spawn":
                self.context.spawn(Frail)
        return await super().receive(message)


async def test_after_a_crash_a_new_instance_has_the_state_that_is_stored(
    store: PersistenceBackend | None,
) -> None:
    account = given_history(Frail, Deposited(1), store=store)
    await account.when("handled")
    outcome = await account.when("crash")
    assert outcome.has_crashed
    assert str(outcome.error) == "crash"
    assert (outcome.events, outcome.state) == ((Deposited(5),), Balance(6, 2))
    assert (await account.when("handled")).reply == 1


async def test_an_actor_that_has_stopped_starts_anew_with_the_next_command() -> None:
    account = given_history(Frail, Deposited(1))
    outcome = await account.when("stop")
    assert (outcome.has_stopped, outcome.reply) == (True, "stopping")
    assert (await account.when("handled")).reply == 1


async def test_what_was_left_unhandled_is_an_error_whatever_is_returned() -> None:
    class Lazy(Account):
        async def receive(self, message: Any) -> Any:
            self.unhandled(message)
            return "done"

    outcome = await given_history(Lazy).when("what")
    assert isinstance(outcome.error, UnhandledMessage)
    assert (outcome.reply, outcome.has_crashed) == (None, False)


async def test_on_stop_is_called_after_a_crash_and_when_it_stops() -> None:
    stopped: list[str] = []

    class Tidy(Frail):
        async def on_stop(self) -> None:
            stopped.append("tidied up")

    account = given_history(Tidy)
    for command, times in (("handled", 0), ("crash", 1), ("handled", 1), ("stop", 2)):
        await account.when(command)
        assert len(stopped) == times


async def test_what_an_actor_tells_itself_is_seen() -> None:
    account = given_history(Frail, actor="ann", system_id="bank")
    outcome = await account.when("tell")
    assert (outcome.told_itself, outcome.reply) == ((Deposit(1), Look()), "bank/ann")
    assert (await account.when(Look())).told_itself == ()


@pytest.mark.parametrize(
    ("command", "error"), [("ask", WouldDeadlock), ("spawn", SystemNotRunning)]
)
async def test_what_needs_others_says_so(command: str, error: type[Exception]) -> None:
    outcome = await given_history(Frail).when(command)
    assert isinstance(outcome.error, error)


class Guest(Account):
    entity_name = "guest"

    def __init__(self) -> None:
        self.name = self.context.entity_id

    async def receive(self, message: Any) -> Any:
        match message:
            case "name":
                return self.name, str(self.context.self_ref.address)
            case "sleep":
                self.context.passivate()
            case "entity":
                self.context.entity(Guest, "5")
        return None


async def test_an_entity_has_its_id_and_may_be_passivated() -> None:
    guest = given_history(Guest, Deposited(1), entity_id="4/12", system_id="hotel")
    assert (await guest.when("name")).reply == ("4/12", "hotel/guest/4%2F12")
    assert (await guest.when("sleep")).has_stopped
    outcome = await guest.when("name")
    assert (outcome.has_stopped, outcome.state) == (False, Balance(1, 1))
    assert isinstance((await guest.when("entity")).error, SystemNotRunning)


async def test_an_actor_that_was_spawned_has_no_entitys_id() -> None:
    with pytest.raises(NotAnEntity):
        await given_history(Guest).when("name")


class Teller(Account):
    """Tells somebody of each deposit, once it is stored."""

    def __init__(self, friend: ActorRef, greeting: str = "got") -> None:
        self.friend, self.greeting = friend, greeting

    async def receive(self, message: Any) -> Any:
        reply = await super().receive(message)
        await self.friend.tell((self.greeting, message.amount))
        return reply


async def test_an_actor_may_have_arguments_and_real_friends(actor_system: CheckedSystem) -> None:
    friend = TestProbe(actor_system, "friend")
    account = given_history(Teller, args=(friend.ref,), kwargs={"greeting": "hi"})
    assert (await account.when(Deposit(4))).reply == 4
    await friend.expect_message(("hi", 4))


async def test_events_that_are_given_are_those_of_the_class() -> None:
    with pytest.raises(InvalidEvent, match="Deposit is no event of Account"):
        given_history(Account, Deposit(1))


async def test_given_events_that_can_not_be_applied_fail_the_test(
    store: PersistenceBackend | None,
) -> None:
    class Strict(Account):
        def apply(self, state: Balance, event: Any) -> Balance:
            if event.amount == 13:
                raise ValueError("thirteen")
            return super().apply(state, event)

    account = given_history(Strict, Deposited(1), Deposited(13), store=store)
    with pytest.raises(RecoveryFailed, match="thirteen") as caught:
        await account.when(Look())
    assert caught.value.revision == 2


@pytest.mark.parametrize("account_class", [Account, PipelinedAccount])
async def test_an_append_that_fails_is_an_error_and_leaves_the_state(
    account_class: type[Account],
) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    account = given_history(account_class, Deposited(1), store=store)
    await account.when(Look())
    store.fail_next("append", OSError("disk full"))
    outcome = await account.when(Deposit(5))
    assert isinstance(outcome.error, StoreError)
    assert (outcome.events, outcome.state) == ((), Balance(1, 1))
    outcome = await account.when(Deposit(6))
    assert (outcome.reply, outcome.state) == (7, Balance(7, 2))


async def test_no_gate_is_left_shut() -> None:
    class Both(PipelinedAccount):
        async def receive(self, message: Any) -> Any:
            self.persist_nowait(Deposited(1))
            await self.persist(Deposited(2), Deposited(3))
            self.persist_nowait(Deposited(4))
            if message == "crash":
                raise RuntimeError("crash")
            return self.state.amount

    shut = OutputGate.shut
    outcome = await given_history(Both).when("add")
    assert (outcome.reply, outcome.events) == (10, tuple(map(Deposited, (1, 2, 3, 4))))
    outcome = await given_history(Both).when("crash")
    assert (outcome.has_crashed, outcome.state) == (True, Balance(10, 4))
    assert OutputGate.shut == shut


async def test_who_waits_at_the_gate_gets_through() -> None:
    class Basket(EventSourced[list[int]]):
        """Its `apply` changes the state in place, so that it is lost when it raises."""

        events = (Deposited,)

        def initial_state(self) -> list[int]:
            return []

        def apply(self, state: list[int], event: Deposited) -> list[int]:
            state.append(event.amount)
            if event.amount == 13:
                raise ValueError("thirteen")
            return state

        async def receive(self, message: Any) -> Any:
            self.persist_nowait(Deposited(1))
            with pytest.raises(ValueError, match="thirteen"):
                self.persist_nowait(Deposited(13))
            await self.persist(Deposited(2))
            return list(self.state)

    outcome = await given_history(Basket).when("fill it")
    assert (outcome.reply, outcome.events) == ([1, 2], (Deposited(1), Deposited(2)))


async def test_on_recovered_persists_before_the_first_command() -> None:
    class Greeter(Account):
        async def on_recovered(self) -> None:
            await self.persist(Deposited(100))

    account = given_history(Greeter, Deposited(1))
    outcome = await account.when(Deposit(1))
    assert (outcome.events, outcome.state) == ((Deposited(1),), Balance(102, 3))


async def test_persist_in_another_task_is_refused_as_in_a_system() -> None:
    class Spread(Account):
        async def receive(self, message: Any) -> Any:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.persist, Deposited(1))

    outcome = await given_history(Spread).when(1)
    assert isinstance(outcome.error, ExceptionGroup)
    assert isinstance(outcome.error.exceptions[0], WrongTask)


async def test_time_is_that_of_the_clock_that_is_given() -> None:
    store, clock = InMemoryPersistence(), ManualClock()
    account = given_history(Account, Deposited(1), store=store, clock=clock)
    await account.when(Look())
    await clock.advance(60)
    await account.when(Deposit(1))
    first, second = (await store.read_history("papyra/given")).events
    assert second.timestamp - first.timestamp == 60


async def test_what_is_in_the_store_already_is_recovered() -> None:
    store = InMemoryPersistence()
    await given_history(Account, Deposited(1), store=store).when(Deposit(2))
    assert (await given_history(Account, store=store).when(Look())).reply == (3, 2)


class Photographed(Account):
    """An account with a snapshot after every event."""

    snapshots = SnapshotPolicy(every=1)


async def test_an_actor_with_snapshots_is_tested_as_one_without(
    store: PersistenceBackend | None,
) -> None:
    account = given_history(Photographed, Deposited(1), store=store)
    assert (await account.when(Deposit(2))).state == Balance(3, 2)
    assert (await account.when(Withdraw(1))).reply == 2


# What events in memory hide


class Tagged(msgspec.Struct, frozen=True):
    tags: Any


@dataclasses.dataclass(frozen=True)
class Named:
    name: str


class Bag(EventSourced[tuple[Any, ...]]):
    events = (Tagged, Named)

    def initial_state(self) -> tuple[Any, ...]:
        return ()

    def apply(self, state: tuple[Any, ...], event: Tagged | Named) -> tuple[Any, ...]:
        return (*state, event.tags if isinstance(event, Tagged) else event.name)

    async def receive(self, message: Any) -> Any:
        await self.persist(message)


async def test_an_event_that_comes_back_as_something_else_is_found_with_a_store() -> None:
    assert (await given_history(Bag).when(Tagged((1, 2)))).state == ((1, 2),)
    with pytest.raises(ReplayMismatch, match=r"an event was Tagged\(tags=\(1, 2\)\), and comes"):
        await given_history(Bag, store=InMemoryPersistence()).when(Tagged((1, 2)))
    outcome = await given_history(Bag, store=InMemoryPersistence()).when(Tagged([1, 2]))
    assert outcome.state == ([1, 2],)


async def test_an_event_that_could_not_be_read_back_is_an_error(
    store: PersistenceBackend | None,
) -> None:
    outcome = await given_history(Bag, store=store).when(Named(5))  # type: ignore[arg-type]
    assert isinstance(outcome.error, InvalidEvent)
    assert (outcome.events, outcome.state) == ((), ())


async def test_an_event_that_could_not_be_stored_is_an_error_with_a_store() -> None:
    outcome = await given_history(Bag, store=InMemoryPersistence()).when(Tagged(float("nan")))
    assert isinstance(outcome.error, UnencodablePayload)
    assert (outcome.events, outcome.state) == ((), ())


class Moody(Bag):
    """Its `apply` looks at more than the event."""

    mood = 0

    def apply(self, state: tuple[Any, ...], event: Any) -> tuple[Any, ...]:
        Moody.mood += 1
        return (*state, Moody.mood)


async def test_a_state_that_a_replay_does_not_lead_to_is_found_with_a_store() -> None:
    with pytest.raises(ReplayMismatch, match="the state was"):
        await given_history(Moody, store=InMemoryPersistence()).when(Tagged(1))


class Cup(msgspec.Struct, frozen=True):
    content: Any = ()


class Cupboard(EventSourced[Cup]):
    events = (Named,)

    def initial_state(self) -> Cup:
        return Cup()

    def apply(self, state: Cup, event: Named) -> Cup:
        return Cup((*state.content, event.name))

    async def receive(self, message: Any) -> Any:
        await self.persist(Named(message))


async def test_a_state_that_a_snapshot_would_change_is_found_with_a_store() -> None:
    assert (await given_history(Cupboard).when("tea")).state == Cup(("tea",))
    with pytest.raises(ReplayMismatch, match="the state was Cup"):
        await given_history(Cupboard, store=InMemoryPersistence()).when("tea")


class Color(enum.StrEnum):
    RED = "red"
    GREEN = "green"


class Light(msgspec.Struct, frozen=True):
    color: Any = Color.RED
    changes: int = 0


class Lamp(EventSourced[Light]):
    """Its states are equal to those of snapshots, and not the same to `apply`."""

    events = (Named,)

    def initial_state(self) -> Light:
        return Light()

    def apply(self, state: Light, event: Named) -> Light:
        is_red = state.color is Color.RED
        return Light(Color.GREEN if is_red else Color.RED, state.changes + 1)

    async def receive(self, message: Any) -> Any:
        await self.persist(Named(message))


async def test_a_snapshot_that_leads_to_another_state_later_is_found_at_its_revision() -> None:
    lamp = given_history(Lamp, *map(Named, "ab"), store=InMemoryPersistence())
    assert (await given_history(Lamp, *map(Named, "ab")).when("c")).state.changes == 3
    with pytest.raises(
        ReplayMismatch,
        match=r"^at revision 3: from a snapshot of the revision before, the state was Light\(.*"
        r": color was .*GREEN.*, and is .*RED.*$",
    ):
        await lamp.when("c")


async def test_a_snapshot_of_a_state_that_the_events_do_not_lead_to_is_found() -> None:
    class Touched(Photographed):
        """Changes its state beside its events, so that only a snapshot knows of it."""

        async def keep(self, event: object) -> None:
            assert self._history is not None
            self._history.total = Balance(self.state.amount + 1, self.state.movements)
            await super().keep(event)

    with pytest.raises(
        ReplayMismatch,
        match=r"^at revision 2: in the snapshot that is stored, the state was .*: "
        r"amount was 3, and is 4$",
    ):
        await given_history(Touched, Deposited(1), store=InMemoryPersistence()).when(Deposit(2))


class Opaque:
    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names


class Safe(EventSourced[Opaque]):
    events = (Named,)

    def initial_state(self) -> Opaque:
        return Opaque()

    def apply(self, state: Opaque, event: Named) -> Opaque:
        return Opaque((*state.names, event.name))

    async def receive(self, message: Any) -> Any:
        await self.persist(Named(message))


async def test_a_state_that_json_has_no_form_for_is_taken_as_it_is() -> None:
    outcome = await given_history(Safe, store=InMemoryPersistence()).when("gold")
    assert outcome.state.names == ("gold",)


@event("Deposited", version=2)
class DepositedCents(msgspec.Struct, frozen=True):
    cents: int


class Upcasting(EventSourced[int]):
    events = (DepositedCents,)

    @staticmethod
    @upcaster("Deposited", from_version=1)
    def in_cents(payload: Any) -> Any:
        return {"cents": 100 * payload["amount"]}

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: DepositedCents) -> int:
        return state + event.cents

    async def receive(self, message: Any) -> Any:
        await self.persist(DepositedCents(message))
        return Failure(KeyError(message)) if message > 99 else self.state


async def test_old_events_in_the_store_are_upcast() -> None:
    store = InMemoryPersistence()
    await given_history(Account, Deposited(3), store=store).when(Look())
    outcome = await given_history(Upcasting, store=store).when(7)
    assert (outcome.events, outcome.reply) == ((DepositedCents(7),), 307)
    outcome = await given_history(Upcasting, store=store).when(100)
    assert (outcome.state, type(outcome.error)) == (407, KeyError)


async def test_a_history_that_begins_with_a_base_is_given_by_its_store() -> None:
    store = InMemoryPersistence()
    payload = {"state": {"amount": 70}, "version": 1, "shape": "", "timestamp": 1.0, "checksum": ""}
    base = PersistedEvent(
        *("papyra", "papyra/given", "papyra.base", payload, 1.0), seq=9, revision=9
    )
    await store.restore(base)
    outcome = await given_history(Account, store=store).when(Deposit(5))
    assert (outcome.reply, outcome.revision) == (75, 10)
    assert outcome.state == Balance(75, 1)


@pytest.mark.parametrize("account_class", [Account, PipelinedAccount])
async def test_a_command_that_is_repeated_with_its_key_has_no_events(
    account_class: type[Account], store: PersistenceBackend | None
) -> None:
    account = given_history(account_class, Deposited(10), store=store)
    first = await account.when(Withdraw(3), idempotency_key="a")
    assert (first.events, first.reply, first.state.amount) == ((Withdrawn(3),), 7, 7)
    assert (await account.when(Deposit(1))).reply == 8
    again = await account.when(Withdraw(3), idempotency_key="a")
    assert (again.events, again.reply, again.state.amount) == ((), 7, 8)
    assert (await account.when(Withdraw(3), idempotency_key="b")).reply == 5
    with pytest.raises(InvalidIdempotencyKey):
        await account.when(Withdraw(3), idempotency_key="")


class CrashesOnce(Account):
    crashes = 1

    async def receive(self, message: Any) -> Any:
        reply = await super().receive(message)
        if type(self).crashes:
            type(self).crashes -= 1
            raise RuntimeError("at the end")
        return reply


async def test_a_command_that_crashed_is_finished_when_it_is_repeated_with_its_key(
    store: PersistenceBackend | None,
) -> None:
    CrashesOnce.crashes = 1
    account = given_history(CrashesOnce, Deposited(10), store=store)
    crashed = await account.when(Withdraw(3), idempotency_key="a")
    assert (crashed.has_crashed, crashed.events, crashed.state.amount) == (True, (Withdrawn(3),), 7)
    again = await account.when(Withdraw(3), idempotency_key="a")
    assert (again.events, again.reply, again.state.amount) == ((), 7, 7)


# Durable timers


class PaymentIsDue(msgspec.Struct, frozen=True):
    item: Any


class Ordering(EventSourced[int]):
    events = (Deposited,)
    timer_messages = (PaymentIsDue,)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Deposited) -> int:
        return state + event.amount

    async def receive(self, message: Any) -> Any:
        match message:
            case ("order", item):
                await self.persist(
                    Deposited(1), schedule=Timer("payment", PaymentIsDue(item), after=900)
                )
            case "pay":
                await self.persist(Deposited(2), unschedule=["payment", "never scheduled"])
            case "postpone":
                await self.unschedule("payment")
                await self.schedule("payment", PaymentIsDue("later"), at=2e9)
            case "think better of it":
                await self.schedule("reminder", PaymentIsDue(""), every=5)
                await self.unschedule("reminder")
            case PaymentIsDue():
                await self.persist(Deposited(10))


@pytest.mark.parametrize("store", [None, InMemoryPersistence], ids=["alone", "with a store"])
async def test_the_outcome_has_the_timers_that_a_command_has_scheduled_and_taken_back(
    store: Callable[[], PersistenceBackend] | None,
) -> None:
    order = given_history(Ordering, store=store and store(), clock=ManualClock(1e9))
    outcome = await order.when(("order", "lamp"))
    assert outcome.scheduled == {"payment": (PaymentIsDue("lamp"), 1e9 + 900)}
    assert (outcome.unscheduled, outcome.events) == ((), (Deposited(1),))
    outcome = await order.when("postpone")
    assert outcome.scheduled["payment"] == SetTimer(PaymentIsDue("later"), due=2e9)
    assert outcome.unscheduled == ("payment",)
    outcome = await order.when("pay")
    assert (outcome.scheduled, outcome.unscheduled) == ({}, ("payment",))
    outcome = await order.when("think better of it")
    assert (outcome.scheduled, outcome.unscheduled) == ({}, ("reminder",))


async def test_the_message_of_a_timer_is_given_as_a_command() -> None:
    order = given_history(Ordering, Deposited(1))
    outcome = await order.when(PaymentIsDue("lamp"))
    assert (outcome.state, outcome.scheduled, outcome.unscheduled) == (11, {}, ())


async def test_the_message_of_a_timer_is_in_the_outcome_as_it_will_be_brought() -> None:
    outcome = await given_history(Ordering).when(("order", (1, 2)))
    assert outcome.scheduled["payment"].message == PaymentIsDue([1, 2])
