"""A store that fails every time is not asked for a while."""

from __future__ import annotations

from typing import Any

import pytest

from papyra import ActorRef, ActorSystem
from papyra.exceptions import InvalidPolicy, InvalidRecord, StoreError, StoreUnavailable
from papyra.persistence import Append, AppendMany, CircuitBreakerPolicy, PersistenceActor
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence, ManualClock
from tests.actors import event
from tests.testing.shelf import Disk, Shelf

POLICY = CircuitBreakerPolicy(max_failures=3, reset_timeout=10)


@pytest.fixture
def store() -> FaultyPersistence:
    return FaultyPersistence(InMemoryPersistence())


async def outcomes(ref: ActorRef, count: int) -> list[str]:
    found = []
    for number in range(count):
        try:
            await ref.ask(Append(event(number)))
            found.append("stored")
        except StoreError as error:
            found.append(type(error).__name__)
    return found


async def test_a_circuit_breaker_opens_after_so_many_failures_and_closes_on_a_success(
    store: FaultyPersistence,
) -> None:
    clock = ManualClock()
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(PersistenceActor, store, POLICY)
        store.fail_every(1, "append")
        assert await outcomes(ref, 5) == ["InjectedFault"] * 3 + ["StoreUnavailable"] * 2
        assert len(store.injected) == 3, "the store is left alone"
        await clock.advance(9.9)
        assert await outcomes(ref, 1) == ["StoreUnavailable"]
        await clock.advance(0.1)
        assert await outcomes(ref, 2) == ["InjectedFault", "StoreUnavailable"]
        store.clear()
        await clock.advance(10)
        assert await outcomes(ref, 3) == ["stored"] * 3
        assert store.metrics.records_dropped == 4
        assert store.metrics.write_errors == 8


async def test_records_told_while_the_circuit_breaker_is_open_are_counted_as_dropped(
    store: FaultyPersistence,
) -> None:
    async with ActorSystem(clock=ManualClock()) as system:
        ref = system.spawn(PersistenceActor, store, POLICY)
        store.fail_every(1, "append")
        await outcomes(ref, 3)
        for number in range(10):
            await ref.tell(Append(event(number)))
        await ref.tell(AppendMany((event(1), event(2))))
        await ref.tell(AppendMany(5))  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable, match=r"tried again in 10\.0 seconds"):
            await ref.ask(Append(event(1)))
        assert store.metrics.records_dropped == 13
        assert await store.list_events() == [], "reads are not kept from it"


async def test_failures_with_a_success_in_between_do_not_open_the_circuit_breaker(
    store: FaultyPersistence,
) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, store, POLICY)
        for _ in range(3):
            store.fail_next("append", times=2)
            assert await outcomes(ref, 3) == ["InjectedFault", "InjectedFault", "stored"]


async def test_bad_records_do_not_open_the_circuit_breaker(store: FaultyPersistence) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, store, POLICY)
        for _ in range(10):
            with pytest.raises(InvalidRecord):
                await ref.ask(Append(event(payload=object())))
        assert await outcomes(ref, 1) == ["stored"]


async def test_a_system_takes_a_circuit_breaker_policy(store: FaultyPersistence) -> None:
    policy = CircuitBreakerPolicy(max_failures=1)
    async with ActorSystem(persistence=store, breaker=policy, clock=ManualClock()) as system:
        store.fail_next("append")
        assert await outcomes(system.persistence, 2) == ["InjectedFault", "StoreUnavailable"]


@pytest.mark.parametrize("policy", [None, CircuitBreakerPolicy(max_failures=None)])
async def test_an_in_memory_store_has_no_circuit_breaker_and_others_may_do_without(
    policy: CircuitBreakerPolicy | None,
) -> None:
    store = FaultyPersistence(Shelf(Disk()) if policy else InMemoryPersistence())
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, store, policy)
        store.fail_next("append", times=20)
        assert await outcomes(ref, 21) == ["InjectedFault"] * 20 + ["stored"]


async def test_a_durable_store_has_a_circuit_breaker(store: FaultyPersistence) -> None:
    durable = FaultyPersistence(Shelf(Disk()))
    async with ActorSystem(clock=ManualClock()) as system:
        ref = system.spawn(PersistenceActor, durable)
        durable.fail_next("append", times=20)
        assert await outcomes(ref, 11) == ["InjectedFault"] * 10 + ["StoreUnavailable"]


@pytest.mark.parametrize(
    "limits",
    [{"max_failures": 0}, {"max_failures": 1.5}, {"reset_timeout": 0}, {"reset_timeout": "1"}],
)
async def test_an_invalid_circuit_breaker_policy_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy):
        CircuitBreakerPolicy(**limits)
    with pytest.raises(InvalidPolicy, match="breaker is a CircuitBreakerPolicy"):
        ActorSystem(breaker=5)  # type: ignore[arg-type]
    async with ActorSystem() as system:
        with pytest.raises(InvalidPolicy, match="breaker is a CircuitBreakerPolicy"):
            system.spawn(PersistenceActor, InMemoryPersistence(), 5)
