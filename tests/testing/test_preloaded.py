"""Facts that were there before."""

from __future__ import annotations

import msgspec
import pytest

from papyra import ActorSystem
from papyra.exceptions import InvalidRecord, StoreError
from papyra.persistence import PersistedAudit, PersistedDeadLetter
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import (
    CheckedSystem,
    FaultyPersistence,
    ManualClock,
    PersistenceProbe,
    given,
)
from tests.actors import event
from tests.testing.test_crash import Account, Deposit, Deposited


async def test_given_stores_facts_before_the_system_starts() -> None:
    facts = [Deposited(10, 1), ("Deposited", {"amount": 20, "number": 2})]
    async with given(facts, actor="account") as system:
        account = system.spawn(Account, name="account")
        assert await account.ask("balance") == 30
        await account.ask(Deposit(5, 3))
        probe = PersistenceProbe(system)
        found = await probe.expect_next(Deposited(5, 3))
        assert (found.seq, system.stored_before) == (4, 2)
        await probe.expect_none()


async def test_given_takes_records_of_every_kind(persistence: InMemoryPersistence) -> None:
    audit = PersistedAudit("shop", {}, 1.0)
    letter = PersistedDeadLetter("shop", "shop/a", "str", "x", False, 2.0)
    stored = await given(
        [event(1), audit, letter, Deposited(1, 1)], persistence=persistence
    ).store()
    assert (stored.first_seq, stored.last_seq) == (1, 4)
    assert [e.actor_address for e in persistence.events] == ["shop/order-1", "papyra/given"]
    assert msgspec.structs.replace(persistence.audits[0], seq=None) == audit
    assert msgspec.structs.replace(persistence.dead_letters[0], seq=None) == letter


async def test_given_takes_the_options_of_a_system() -> None:
    clock = ManualClock(time=50.0)
    async with given([Deposited(1, 1)], system_id="bank", clock=clock, actor="a/b") as system:
        assert system.clock is clock
        (given_event,) = await system.backend.list_events()
        assert (given_event.actor_address, given_event.timestamp) == ("bank/a/b", 50.0)


async def test_given_refuses_what_is_no_event() -> None:
    with pytest.raises(InvalidRecord, match="an event is a msgspec Struct"):
        given(["Deposited"])


async def test_given_raises_when_its_store_fails() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    store.fail_next()
    with pytest.raises(StoreError):
        async with given([Deposited(1, 1)], persistence=store):
            pytest.fail("it should not have started")


@pytest.mark.papyra(given=[Deposited(7, 1)], actor="account", system_id="bank")
async def test_the_fixture_actor_system_takes_given_facts_from_a_mark(
    actor_system: CheckedSystem, persistence: InMemoryPersistence
) -> None:
    assert persistence.events[0].actor_address == "bank/account"
    assert await actor_system.spawn(Account, name="account").ask("balance") == 7


async def test_given_stops_its_system_when_its_block_raises() -> None:
    with pytest.raises(KeyError):
        async with given([]) as system:
            raise KeyError
    assert isinstance(system, ActorSystem)
    assert not system.is_running
