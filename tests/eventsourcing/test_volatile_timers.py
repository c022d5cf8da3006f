"""Volatile timers and background work of event-sourced actors, and of those that are entities."""

from __future__ import annotations

from typing import Any

import pytest

from papyra import ActorSystem
from papyra.exceptions import RecoveryFailed, StoreError
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence, ManualClock, given_history, wait_until_idle
from tests.actors import letters
from tests.eventsourcing.accounts import Account, Deposit, Deposited, Look


class Saver(Account):
    """Pays something in on its own, again and again."""

    idle_timeout = 25

    async def on_recovered(self) -> None:
        self.timers.start("save", Deposit(1), every=10)

    async def receive(self, message: Any) -> Any:
        match message:
            case "later":
                self.context.run_in_background(self.context.clock.sleep, 1, pipe_to_self=_deposit)
                return None
            case "active":
                return self.timers.active
            case _:
                return await super().receive(message)


def _deposit(_: object) -> Deposit:
    return Deposit(100)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_a_timer_that_is_started_on_recovery_sends_messages_that_persist(
    clock: ManualClock, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(clock=clock, persistence=persistence) as system:
        ref = system.spawn(Saver, name="saver")
        await clock.advance(35)
        assert await ref.ask(Look()) == (3, 3)


async def test_an_entity_starts_its_timers_again_when_it_wakes(
    clock: ManualClock, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(clock=clock, persistence=persistence) as system:
        ref = system.entity(Saver, "42")
        await ref.ask(Deposit(5))
        await clock.advance(100)
        assert len(system.entities) == 0
        assert await ref.ask(Look()) == (7, 3)
        await clock.advance(10)
        assert await ref.ask(Look()) == (8, 4)


async def test_the_result_of_background_work_can_be_persisted(clock: ManualClock) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Saver)
        await ref.ask("later")
        await clock.advance(1)
        assert await ref.ask(Look()) == (100, 1)


async def test_a_timer_s_message_waits_for_the_recovery(clock: ManualClock) -> None:
    class Slow(Saver):
        async def on_recovered(self) -> None:
            self.timers.start("early", Deposit(1), after=5)
            await self.context.clock.sleep(20)

    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Slow)
        await clock.advance(19)
        assert system.audit().messages_waiting == 1
        await clock.advance(1)
        assert await ref.ask(Look()) == (1, 1)


async def test_a_timer_s_message_is_a_dead_letter_where_nothing_can_be_handled(
    clock: ManualClock, persistence: InMemoryPersistence
) -> None:
    class Lost(Saver):
        async def on_recovered(self) -> None:
            if not self.timers.active:
                self.timers.start("early", Deposit(1), after=5)
            raise RecoveryFailed("never")

    async with ActorSystem(clock=clock, persistence=persistence) as system:
        system.spawn(Lost)
        await clock.advance(5)
    assert letters(persistence) == [{"amount": 1}]


async def test_no_timer_of_a_state_that_was_not_kept_arrives_after_the_restart(
    clock: ManualClock,
) -> None:
    store = FaultyPersistence(InMemoryPersistence())

    class Reminded(Account):
        async def receive(self, message: Any) -> Any:
            match message:
                case Deposit(amount):
                    self.timers.start("remind", "remind", after=5)
                    await self.persist(Deposited(amount))
                    return self.state.amount
                case "remind":
                    raise AssertionError("of a life that is over")
                case _:
                    return await super().receive(message)

    async with ActorSystem(clock=clock, persistence=store) as system:
        ref = system.spawn(Reminded, name="reminded")
        await wait_until_idle()
        store.fail_next("append", OSError("no"))
        with pytest.raises(StoreError, match="no"):
            await ref.ask(Deposit(1))
        await clock.advance(10)
        assert await ref.ask(Look()) == (0, 0)
        assert system.audit().crashed == 1


async def test_an_actor_alone_knows_its_timers_and_none_becomes_due(clock: ManualClock) -> None:
    saver = given_history(Saver, Deposited(10), clock=clock)
    outcome = await saver.when("active")
    assert outcome.reply == ("save",)
    await clock.advance(100)
    assert (await saver.when(Look())).reply == (10, 1)
