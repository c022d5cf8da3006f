"""Event-sourced entities crashed everywhere and in many orders: sound ones pass, others are found.

The faults are put in where Papyra keeps a promise, so that it does not keep it any more.
``PAPYRA_ORDERS`` says in how many orders each sound entity is run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import accumulate
from typing import Any

import pytest

from papyra import Actor, ActorRef, ActorSystem, Failure
from papyra._runtime.lifecycle import Lifecycle
from papyra.eventsourcing import SnapshotPolicy
from papyra.eventsourcing.bookkeeping import Bookkeeping
from papyra.eventsourcing.history import History
from papyra.exceptions import StoreError
from papyra.output_gate import Output, OutputGate
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.messages import AppendMany
from papyra.ref import Answered
from papyra.testing import (
    CrashPointFailed,
    CrashRun,
    FaultyPersistence,
    Operation,
    ScheduleFailed,
    check_history,
    crash_everywhere,
    explore,
)
from tests.conftest import event_loops
from tests.eventsourcing.accounts import Account, Deposit, Deposited, Look
from tests.extent import count


class Sleeper(Account):
    """An account that is put to sleep, and refuses what could not be stored."""

    snapshots = SnapshotPolicy(every=2)

    async def receive(self, message: Any) -> Any:
        if message == "sleep":
            self.context.passivate()
            return None
        try:
            return await super().receive(message)
        except StoreError as error:
            return Failure(error)


class Pipelined(Sleeper):
    async def keep(self, event: object) -> None:
        self.persist_nowait(event)


class InHalves(Pipelined):
    """Stores a deposit as two events."""

    snapshots = SnapshotPolicy(every=1)

    async def keep(self, event: object) -> None:
        assert isinstance(event, Deposited)
        half = event.amount // 2
        self.persist_nowait(Deposited(half))
        self.persist_nowait(Deposited(event.amount - half))


anyio_backend = event_loops("asyncio")

ORDERS = count("PAPYRA_ORDERS", 6, 50)

#: Awake and asleep, each deposit by itself and with others; no two sums of them are equal.
COMMANDS = [Deposit(1), Deposit(2), "sleep", Deposit(4)]


def check_of(account_class: type[Account]) -> Callable[[CrashRun], Awaitable[None]]:
    """Return the check that such an account is what is stored, and has told of nothing else."""

    async def check(run: CrashRun) -> None:
        amounts = [payload["amount"] for payload in run.events(Deposited)]
        assert await run.ref.ask(Look()) == (sum(amounts), len(amounts))
        sums = list(accumulate(amounts))
        for command, outcome in run.outcomes:
            if isinstance(command, Deposit) and not isinstance(outcome, Exception):
                assert outcome in sums, f"it told of {outcome}"
        if amounts:
            await check_history(run.system.backend, account_class)

    return check


async def crash(account_class: type[Account], commands: list[Any] = COMMANDS) -> list[str]:
    """Crash an account everywhere, and return where that was."""

    def build(system: ActorSystem) -> ActorRef:
        return system.entity(account_class, "ann")

    crashes = await crash_everywhere(build, commands, check_of(account_class))
    return [f"{point.what} {point.where} {point.about}" for point in crashes.points]


@pytest.mark.parametrize("account_class", [Sleeper, Pipelined])
async def test_a_sound_entity_passes_wherever_it_crashes(account_class: type[Account]) -> None:
    places = await crash(account_class)
    entity = f"papyra/{account_class.__name__}/ann"
    for what in ("store", "process"):
        assert f"{what} before the read of the history of {entity}" in places
        assert f"{what} before the load of snapshot 2 of {entity}" in places
        for where in ("before", "after"):
            assert f"{what} {where} the save of snapshot 2 of {entity}" in places
            assert f"{what} {where} the append of ActorStopped of {entity}" in places


async def test_a_recovery_that_has_failed_is_tried_again_with_retry() -> None:
    def build(system: ActorSystem) -> ActorRef:
        return system.entity(Pipelined, "ann")

    def check(run: CrashRun) -> None:
        if run.point is not None and "the read of" in run.point.about:
            assert all(not isinstance(outcome, Exception) for _, outcome in run.outcomes)

    await crash_everywhere(build, [Deposit(1), "sleep", Deposit(2)], check, retry=True)


@pytest.fixture
def replies_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the gate let out what it should hold."""

    def hold(gate: OutputGate, output: Output) -> None:
        output.release()

    monkeypatch.setattr(OutputGate, "hold", hold)


@pytest.fixture
def state_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `persist` take on the state first, and keep it when the append fails."""

    async def append(history: History[Any], events: list[object], *rest: object) -> None:
        history.total, records = history._next(history.state, events, None, ())
        history.revision += len(records)
        await history._context.persistence.ask(AppendMany(tuple(records)))

    monkeypatch.setattr(History, "append", append)


@pytest.fixture
def snapshots_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a snapshot be of the state when its event is stored, and not when that was persisted."""
    append_nowait = History.append_nowait

    def append(
        history: History[Any], events: list[object], answered: Answered, *rest: object
    ) -> None:
        revision = history.revision + len(events)

        def stored(reply: Any, error: Exception | None) -> None:
            answered(reply, error)
            if error is None and snapshots is not None:
                save = snapshots.take(history.total, revision, Bookkeeping())
                if save is not None:
                    save(reply.last_seq)

        snapshots, history._snapshots = history._snapshots, None
        try:
            append_nowait(history, events, stored)
        finally:
            history._snapshots = snapshots

    monkeypatch.setattr(History, "append_nowait", append)


@pytest.fixture
def lost_in_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what an entity that is passivated leaves in its mailbox go to nobody."""
    monkeypatch.setattr(Lifecycle, "passivates", False)


@pytest.mark.usefixtures("replies_ahead")
async def test_replies_ahead_of_the_store_are_found_by_a_crash() -> None:
    await crash(Sleeper, COMMANDS[:2])  # which waits for the store itself
    with pytest.raises(CrashPointFailed, match=r"the (process|store) fails .* it told of 1"):
        await crash(Pipelined, COMMANDS[:2])


@pytest.mark.usefixtures("state_ahead")
async def test_a_state_ahead_of_the_store_is_found_by_a_crash() -> None:
    with pytest.raises(CrashPointFailed, match="the store fails before the append of") as caught:
        await crash(Sleeper, COMMANDS[:2])
    assert caught.value.point is not None
    assert caught.value.point.what == "store"


@pytest.mark.usefixtures("snapshots_ahead")
async def test_a_snapshot_ahead_of_the_store_is_found_by_a_crash() -> None:
    await crash(Pipelined, COMMANDS[:2])  # which has but one append at a time here
    with pytest.raises(CrashPointFailed, match="in the snapshot that is stored, the state was"):
        await crash(InHalves, COMMANDS[:2])


# In many orders


class Client(Actor):
    """Pays in, and puts the account to sleep under the feet of the others."""

    def __init__(self, account: ActorRef, note: Callable[[int], None]) -> None:
        self.account, self.note = account, note

    async def receive(self, amounts: Any) -> None:
        for amount in amounts:
            try:
                self.note(await self.account.ask(Deposit(amount)))
            except StoreError:
                continue  # which is not for ever
            finally:
                await self.account.tell("sleep")


class Bank:
    """An account and its clients, on a store that may fail once."""

    def __init__(self, account_class: type[Account], *, failing: int = 0) -> None:
        self._class, self._failing = account_class, failing
        self._store = InMemoryPersistence()
        #: how often an account went to sleep, in all orders
        self.passivations = 0

    def new_store(self) -> PersistenceBackend:
        self._store = InMemoryPersistence()
        store = FaultyPersistence(self._store)
        seen = 0

        def is_failing(operation: Operation) -> bool:
            nonlocal seen
            is_deposit = any(
                isinstance(record, PersistedEvent) and record.revision
                for record in operation.records
            )
            seen += is_deposit
            return is_deposit and seen == self._failing

        store.fail_when(is_failing)
        return store

    @property
    def stored(self) -> list[int]:
        events = [record for record in self._store.events if record.revision]
        return [event.payload["amount"] for event in events]

    def note(self, reply: int) -> None:
        """Take note of what somebody is told, at this moment."""
        self.told.append(reply)
        if reply not in accumulate(self.stored):
            self.ahead.append(reply)

    async def run(self, system: ActorSystem) -> None:
        self.told: list[int] = []
        self.ahead: list[int] = []
        account = system.entity(self._class, "ann")
        clients = [system.spawn(Client, account, self.note) for _ in range(2)]
        for client, amounts in zip(clients, [(1, 2), (4, 8, 16)], strict=True):
            await client.tell(amounts)
        for client in clients:
            await client.stop()
        failed = 1 if self._failing else 0
        assert not self.ahead, f"it told of {self.ahead}"
        assert len(self.stored) >= 5 - 2 * failed
        assert len(self.told) >= 5 - 2 * failed
        assert await account.ask(Look()) == (sum(self.stored), len(self.stored))
        await check_history(system.backend, self._class)
        self.passivations += system.entities.passivations

    async def explore(self, seeds: int = 30) -> int:
        """Run in as many orders; return how many were different."""
        return (await explore(self.run, seeds, persistence=self.new_store)).schedules


@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("account_class", [Sleeper, Pipelined])
async def test_a_sound_entity_passes_in_every_order(
    account_class: type[Account], failing: int
) -> None:
    bank = Bank(account_class, failing=failing)
    assert await bank.explore(ORDERS) == ORDERS
    assert bank.passivations > ORDERS


@pytest.mark.usefixtures("replies_ahead")
async def test_replies_ahead_of_the_store_are_found_in_some_order() -> None:
    with pytest.raises(ScheduleFailed, match="it told of"):
        await Bank(Pipelined).explore()


@pytest.mark.usefixtures("state_ahead")
async def test_a_state_ahead_of_the_store_is_found_in_some_order() -> None:
    with pytest.raises(ScheduleFailed):
        await Bank(Sleeper, failing=1).explore()


@pytest.mark.usefixtures("snapshots_ahead")
async def test_a_snapshot_ahead_of_the_store_is_found_in_some_order() -> None:
    with pytest.raises(ScheduleFailed, match=r"it told of|in the snapshot that is stored"):
        await Bank(InHalves).explore()


@pytest.mark.usefixtures("lost_in_sleep")
async def test_a_message_that_is_lost_when_an_entity_goes_to_sleep_is_found_in_some_order() -> None:
    with pytest.raises(ScheduleFailed):
        await Bank(Pipelined).explore()
