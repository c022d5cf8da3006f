"""A crash at every point."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, Failure, OneForOne
from papyra.persistence import Append
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import (
    Crashed,
    CrashPointFailed,
    CrashRun,
    InjectedFault,
    _schedule,
    crash_everywhere,
)
from tests.testing.shelf import Disk, Shelf


class Deposit(msgspec.Struct, frozen=True):
    amount: int
    number: int = 0


class Deposited(msgspec.Struct, frozen=True):
    amount: int
    number: int


class Account(Actor):
    """Rebuilds its balance from its events."""

    def __init__(self) -> None:
        self.balance = 0
        self.numbers: set[int] = set()

    async def on_start(self) -> None:
        store = self.context.system.backend
        address = str(self.context.self_ref.address)
        async for event in store.stream("event", event_type="Deposited", actor=address):
            self.apply(msgspec.convert(event.payload, Deposited))

    def apply(self, event: Deposited) -> None:
        self.balance += event.amount
        self.numbers.add(event.number)

    async def receive(self, message: Any) -> Any:
        match message:
            case "balance":
                return self.balance
            case Deposit(amount) if amount <= 0:
                return Failure(ValueError("deposit something"))
            case Deposit():
                return await self.deposit(Deposited(message.amount, message.number))

    async def deposit(self, event: Deposited) -> int:
        await self.context.persist(event)
        self.apply(event)
        return self.balance


class TooEarly(Account):
    """Counts first and stores then: wrong where it goes on after a failure."""

    async def deposit(self, event: Deposited) -> int:
        self.apply(event)
        await self.context.persist(event)
        return self.balance


class NeverStored(Account):
    """Tells the store, and does not wait: what was acknowledged may be lost."""

    async def deposit(self, event: Deposited) -> int:
        await self.context.persistence.tell(Append(self.context.event(event)))
        self.apply(event)
        return self.balance


class Idempotent(Account):
    """Does nothing twice."""

    async def deposit(self, event: Deposited) -> int:
        if event.number not in self.numbers:
            await super().deposit(event)
        return self.balance


DEPOSITS = [Deposit(10, 1), Deposit(20, 2), Deposit(30, 3)]


async def the_balance_is_what_is_stored(run: CrashRun) -> None:
    stored = sum(payload["amount"] for payload in run.events(Deposited))
    assert await run.ref.ask("balance") == stored


async def what_was_acknowledged_is_stored(run: CrashRun) -> None:
    numbers = [payload["number"] for payload in run.events("Deposited")]
    for command in run.acknowledged:
        assert isinstance(command, Deposit)
        assert command.number in numbers


def each_deposit_is_stored_once(run: CrashRun) -> bool:
    return [payload["number"] for payload in run.events(Deposited)] == [1, 2, 3]


def account(system: ActorSystem) -> ActorRef:
    return system.spawn(Account, name="account")


async def test_a_sound_actor_passes_at_every_crash_point() -> None:
    for check in (the_balance_is_what_is_stored, what_was_acknowledged_is_stored):
        crashes = await crash_everywhere(account, DEPOSITS, check)
        assert [point.number for point in crashes.points] == list(range(1, len(crashes.points) + 1))
    # Three messages and three writes; each before and after; each by itself and with the process.
    assert len(crashes.points) == 6 * 2 * 2
    places = {(point.what, point.where) for point in crashes.points}
    whats = ("actor", "store", "process")
    assert places == {(what, where) for what in whats for where in ("before", "after")}
    assert str(crashes.points[0]) == (
        "crash point 1: the actor fails before Deposit at papyra/account"
    )


async def test_crash_everywhere_finds_state_that_runs_ahead_of_the_store() -> None:
    async def build(system: ActorSystem) -> ActorRef:
        # A supervisor that resumes keeps what the failed message has done to the state.
        parent = system.spawn(Resuming, name="parent")
        ref: ActorRef = await parent.ask("child")
        return ref

    class Resuming(Actor):
        supervision = OneForOne(default=Decision.RESUME)

        async def receive(self, message: Any) -> ActorRef:
            return self.context.spawn(TooEarly, name="account")

    with pytest.raises(CrashPointFailed) as caught:
        await crash_everywhere(build, DEPOSITS, the_balance_is_what_is_stored)
    failed = caught.value
    assert failed.point is not None
    assert failed.point.what == "store"
    assert failed.point.where == "before"
    assert f"crash_everywhere(..., points=[{failed.point.number}])" in str(failed)
    assert "stored when it crashed" in str(failed)
    assert [fact.payload for fact in failed.facts if hasattr(fact, "event_type")]
    with pytest.raises(CrashPointFailed) as again:
        await crash_everywhere(
            build, DEPOSITS, the_balance_is_what_is_stored, points=[failed.point.number]
        )
    assert again.value.point == failed.point
    assert again.value.facts == failed.facts


async def test_crash_everywhere_finds_an_acknowledgement_that_came_too_early() -> None:
    def build(system: ActorSystem) -> ActorRef:
        return system.spawn(NeverStored, name="account")

    with pytest.raises(CrashPointFailed, match="the process fails before Deposit"):
        await crash_everywhere(build, DEPOSITS, what_was_acknowledged_is_stored)


async def test_crash_everywhere_with_retry_finds_a_command_that_is_done_twice() -> None:
    with pytest.raises(CrashPointFailed, match="check returned False") as caught:
        await crash_everywhere(account, DEPOSITS, each_deposit_is_stored_once, retry=True)
    assert caught.value.point is not None
    assert caught.value.point.where == "after"

    def build(system: ActorSystem) -> ActorRef:
        return system.spawn(Idempotent, name="account")

    await crash_everywhere(build, DEPOSITS, each_deposit_is_stored_once, retry=True)


async def test_crash_everywhere_checks_each_run_and_again_after_a_restart() -> None:
    looks: list[tuple[object, bool, int]] = []

    def check(run: CrashRun) -> None:
        looks.append((run.point and run.point.number, run.restarted, len(run.outcomes)))

    await crash_everywhere(account, DEPOSITS[:1], check)
    assert looks[:4] == [(None, False, 1), (None, True, 1), (1, False, 1), (1, True, 1)]
    assert looks[-1][1]
    assert {count for _, _, count in looks} == {1}


async def test_outcomes_of_a_crash_run_are_what_the_sender_was_told() -> None:
    outcomes: set[type] = set()

    def check(run: CrashRun) -> None:
        (_, refused), (_, outcome) = run.outcomes
        assert isinstance(refused, (ValueError, Crashed))
        outcomes.add(type(outcome))

    await crash_everywhere(account, [Deposit(-1), Deposit(5, 1)], check)
    assert outcomes == {int, Crashed, InjectedFault}


async def test_crash_everywhere_with_retry_does_not_repeat_a_refused_command() -> None:
    refused: list[int] = []

    class Strict(Account):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, Deposit) and message.amount < 0:
                refused.append(message.number)
            return await super().receive(message)

    def build(system: ActorSystem) -> ActorRef:
        return system.spawn(Strict, name="account")

    def check(run: CrashRun) -> bool:
        return len(refused) == 1

    commands = [Deposit(10, 1), Deposit(-1, 2)]
    (point, *_) = (await crash_everywhere(account, commands[:1], lambda run: None)).points
    await crash_everywhere(build, commands, check, retry=True, points=[point.number])


async def test_crash_everywhere_says_when_its_check_fails_without_any_crash() -> None:
    def check(run: CrashRun) -> bool:
        return False

    with pytest.raises(CrashPointFailed, match="without any crash: AssertionError") as caught:
        await crash_everywhere(account, DEPOSITS, check)
    assert caught.value.point is None


async def test_crash_everywhere_fails_a_scenario_that_gets_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_schedule, "PATIENCE", 0.5)

    class Stubborn(Account):
        """Waits for an acknowledgement of its own making."""

        async def on_start(self) -> None:
            await super().on_start()
            if self.balance:
                await self.context.system.spawn(Waiting).ask("for ever")

    class Waiting(Actor):
        async def receive(self, message: Any) -> Any:
            return await self.context.system.clock.sleep(float("inf"))

    async def build(system: ActorSystem) -> ActorRef:
        ref = system.spawn(Stubborn, name="account")
        await ref.ask("balance")  # else the scenario may be over before the actor has started
        return ref

    with pytest.raises(CrashPointFailed, match="nobody can go on"):
        await crash_everywhere(build, DEPOSITS, lambda run: None, points=[1])


async def test_crash_everywhere_refuses_an_unknown_crash_point() -> None:
    with pytest.raises(ValueError, match="has no crash point 999"):
        await crash_everywhere(account, DEPOSITS, lambda run: None, points=[999])


async def test_crash_everywhere_takes_any_backend() -> None:
    crashes = await crash_everywhere(
        account,
        DEPOSITS,
        the_balance_is_what_is_stored,
        persistence=lambda: Shelf(Disk()),
        system_id="bank",
    )
    assert "bank/account" in crashes.points[0].about
    assert len(crashes.points) == 24


class Counted(Actor):
    """Keeps its count in a position, and no event."""

    async def receive(self, message: Any) -> int:
        store = self.context.system.backend
        last = await store.load_position("count")
        count = int(last or b"0")
        if message == "count":
            return count
        assert await store.save_position("count", b"%d" % (count + 1), last)
        return count + 1


async def test_crash_everywhere_crashes_before_and_after_a_position_is_saved() -> None:
    def spawn(system: ActorSystem) -> ActorRef:
        return system.spawn(Counted, name="counted")

    seen = set()

    async def check(run: CrashRun) -> None:
        count = await run.ref.ask("count")
        assert len(run.acknowledged) <= count <= 2
        if run.point is not None and "position" in run.point.about:
            seen.add((run.point.what, run.point.where))

    await crash_everywhere(spawn, ["one", "two"], check)
    assert seen == {(what, where) for what in ("store", "process") for where in ("before", "after")}


async def test_each_run_of_crash_everywhere_starts_on_a_fresh_store() -> None:
    stores: list[InMemoryPersistence] = []

    def make() -> InMemoryPersistence:
        stores.append(InMemoryPersistence())
        return stores[-1]

    crashes = await crash_everywhere(account, DEPOSITS[:1], lambda run: None, persistence=make)
    assert len(stores) == len(crashes.points) + 2
