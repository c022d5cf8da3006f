"""Probes: what they see, what they wait for, and what they say when it does not come."""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine
from typing import Any

import anyio
import msgspec
import pytest

from papyra import Actor, ActorRef, ActorSystem, Failure
from papyra.events import ActorStarted, ActorStopped
from papyra.exceptions import InvalidPolicy, SystemNotRunning
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import (
    CheckedSystem,
    FaultyPersistence,
    ManualClock,
    PersistenceProbe,
    TestProbe,
    wait_until_idle,
)
from tests.actors import Echo, event


class OrderPlaced(msgspec.Struct):
    order_id: int
    items: tuple[str, ...] = ()


@dataclasses.dataclass
class OrderPaid:
    order_id: int


class Desk(Actor):
    """Persists what it is told."""

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        if message == "stop":
            self.context.stop()
            return None
        return await self.context.persist(message)


@pytest.fixture
def probe(actor_system: CheckedSystem) -> PersistenceProbe:
    return PersistenceProbe(actor_system)


@pytest.fixture
async def desk(actor_system: CheckedSystem) -> ActorRef:
    return actor_system.spawn(Desk, name="desk")


def by_predicate(record: PersistedEvent) -> bool:
    return bool(record.payload["order_id"] == 7)


@pytest.mark.parametrize(
    ("expected", "part"),
    [
        (OrderPlaced(7, ("tea",)), None),
        (("OrderPlaced", {"order_id": 7, "items": ["tea"]}), None),
        (OrderPlaced, None),
        ("OrderPlaced", None),
        (by_predicate, None),
        (None, {"order_id": 7}),
        (OrderPlaced, {"items": ["tea"]}),
        (None, None),
    ],
)
async def test_a_persistence_probe_expects_an_event_by_value_type_name_or_predicate(
    probe: PersistenceProbe, desk: ActorRef, expected: object, part: Any
) -> None:
    await desk.tell(OrderPlaced(7, ("tea",)))
    found = await probe.expect_event(expected, payload=part)
    assert (found.event_type, found.actor_address) == ("OrderPlaced", "papyra/desk")
    assert found.payload == {"order_id": 7, "items": ["tea"]}


@pytest.mark.parametrize(
    ("expected", "part"),
    [
        (OrderPlaced(8, ("tea",)), None),
        (OrderPlaced(7), None),
        (OrderPaid(7), None),
        (OrderPaid, None),
        ("OrderPaid", None),
        (lambda record: False, None),
        (None, {"order_id": 8}),
        (None, {"customer": 1}),
        (None, {"items": []}),
        (OrderPaid, {"order_id": 7}),
    ],
)
async def test_a_persistence_probe_does_not_take_an_event_that_does_not_match(
    probe: PersistenceProbe, desk: ActorRef, expected: object, part: Any
) -> None:
    await desk.ask(OrderPlaced(7, ("tea",)))
    with pytest.raises(AssertionError, match="no fact came within 0 s"):
        await probe.expect_event(expected, payload=part, timeout=0)
    await probe.expect_event(OrderPlaced)


async def test_a_persistence_probes_expectation_waits_for_a_later_event(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    found: list[PersistedEvent] = []

    async def expect() -> None:
        found.append(await probe.expect_event(OrderPaid))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(expect)
        for number in range(3):
            await desk.ask(OrderPlaced(number))
            await desk.ask(OrderPaid(number))
    assert sorted(record.payload["order_id"] for record in found) == [0, 1, 2]


async def test_each_fact_meets_one_expectation_of_a_persistence_probe(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    await desk.ask(OrderPlaced(1))
    await probe.expect_event(OrderPlaced)
    with pytest.raises(AssertionError, match="no fact came"):
        await probe.expect_event(OrderPlaced, timeout=0)


async def test_a_persistence_probe_takes_events_in_any_order_except_by_expect_next(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    for number in range(4):
        await desk.ask(OrderPlaced(number))
    await probe.expect_event(OrderPlaced(2))
    assert (await probe.expect_next()).payload["order_id"] == 0
    assert (await probe.expect_next(OrderPlaced(1))).seq == 3
    with pytest.raises(AssertionError, match=r"the next fact is not OrderPlaced.*'order_id': 9"):
        await probe.expect_next(OrderPlaced(9))


async def test_a_persistence_probes_expected_sequence_has_no_gaps(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    for one in (OrderPlaced(1), OrderPaid(1), OrderPlaced(2)):
        await desk.tell(one)
    found = await probe.expect_sequence([OrderPlaced(1), "OrderPaid", by_type])
    assert [record.event_type for record in found] == ["OrderPlaced", "OrderPaid", "OrderPlaced"]
    await desk.tell(OrderPaid(2))
    with pytest.raises(AssertionError, match="1 of 1 in the sequence: the next fact is not"):
        await probe.expect_sequence([OrderPlaced])


def by_type(record: PersistedEvent) -> bool:
    return record.event_type == "OrderPlaced"


async def test_a_persistence_probe_sees_the_runtimes_own_events_when_one_is_named(
    probe: PersistenceProbe, desk: ActorRef, actor_system: CheckedSystem
) -> None:
    await desk.ask(OrderPlaced(1))
    await probe.expect_next(OrderPlaced(1))
    await desk.stop()
    await probe.expect_sequence([ActorStarted, ActorStopped("stopped", 0)], actor=desk)


async def test_a_persistence_probe_tells_actors_apart(
    actor_system: CheckedSystem, probe: PersistenceProbe
) -> None:
    desks = [actor_system.spawn(Desk, name=name) for name in ("left", "right")]
    for desk in desks:
        await desk.ask(OrderPlaced(1))
    assert (await probe.expect_next(actor=desks[1])).actor_address == "papyra/right"
    with pytest.raises(AssertionError, match="that is OrderPlaced of papyra/right"):
        await probe.expect_event(OrderPlaced, actor=desks[1], timeout=0)
    found = await probe.expect_event(OrderPlaced, actor="papyra/left")
    assert found.actor_address == "papyra/left"
    await probe.expect_none(OrderPlaced, actor=desks[0])


async def test_a_persistence_probe_sees_facts_from_before_it_was_made(
    actor_system: CheckedSystem, desk: ActorRef
) -> None:
    await desk.ask(OrderPlaced(1))
    probe = PersistenceProbe(actor_system)
    await desk.ask(OrderPlaced(2))
    await probe.expect_sequence([OrderPlaced(1), OrderPlaced(2)])
    assert [record.seq for record in probe.facts] == [1, 2, 3]


async def test_concurrent_expectations_of_a_persistence_probe_read_earlier_facts_once(
    actor_system: CheckedSystem, desk: ActorRef
) -> None:
    for number in range(3):
        await desk.ask(OrderPlaced(number))
    probe = PersistenceProbe(actor_system)
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(probe.expect_event, OrderPlaced(number))
    assert [record.seq for record in probe.facts] == [1, 2, 3, 4]


async def test_a_persistence_probe_does_not_see_facts_from_before_the_system(
    persistence: InMemoryPersistence,
) -> None:
    await persistence.append(event(1))
    async with ActorSystem(persistence=persistence) as system:
        probe = PersistenceProbe(system)
        await probe.expect_none()
        await system.spawn(Desk).ask(OrderPlaced(2))
        assert (await probe.expect_event()).seq == 3


async def test_a_later_persistence_probe_does_not_read_facts_from_before_the_system(
    persistence: InMemoryPersistence,
) -> None:
    await persistence.append(event(1))
    async with ActorSystem(persistence=persistence) as system:
        await system.spawn(Desk).ask(OrderPlaced(2))
        probe = PersistenceProbe(system)
        await probe.expect_next(OrderPlaced(2))
        assert [record.seq for record in probe.facts] == [2, 3]


async def test_a_persistence_probe_misses_no_fact_that_comes_while_it_reads_the_past(
    persistence: InMemoryPersistence,
) -> None:
    store = FaultyPersistence(persistence)
    async with ActorSystem(persistence=store) as system:
        desk = system.spawn(Desk)
        await desk.ask(OrderPlaced(1))
        probe = PersistenceProbe(system)
        store.hang("read", kind="audit")  # events are read by then
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(probe.expect_sequence, [OrderPlaced(1), OrderPlaced(2)])
            await wait_until_idle()
            await desk.tell(OrderPlaced(2))
            await wait_until_idle()
            store.release()


async def test_a_persistence_probe_outlives_its_system(persistence: InMemoryPersistence) -> None:
    async with ActorSystem(persistence=persistence) as system:
        await system.spawn(Desk, name="desk").ask(OrderPlaced(1))
        probe = PersistenceProbe(system)
    await probe.expect_event(ActorStopped, actor="papyra/desk")
    late = PersistenceProbe(system)
    await late.expect_sequence([ActorStarted, OrderPlaced, ActorStopped])


async def test_expect_none_waits_for_facts_that_are_on_the_way(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    await probe.expect_none()
    await desk.tell(OrderPlaced(1))
    await probe.expect_none(OrderPaid)
    with pytest.raises(AssertionError, match="there is a fact that is OrderPlaced"):
        await probe.expect_none(OrderPlaced)
    with pytest.raises(AssertionError, match="there is a fact that is anything: 2 papyra/desk"):
        await probe.expect_none()
    with pytest.raises(AssertionError, match=r"that is with .'order_id': 1."):
        await probe.expect_none(payload={"order_id": 1})


async def outcome_of(expectation: Coroutine[Any, Any, None]) -> AssertionError | None:
    try:
        await expectation
    except AssertionError as error:
        return error
    return None


async def test_expect_none_within_seconds_fails_at_a_fact_that_comes_in_that_time(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    await probe.expect_none(within=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.ask, OrderPlaced(1))
        failure = await outcome_of(probe.expect_none(within=60))
    assert "there is a fact" in str(failure)
    with pytest.raises(InvalidPolicy):
        await probe.expect_none(within=-1)


async def test_expect_none_within_seconds_goes_by_a_manual_clock(
    manual_clock: ManualClock, actor_system: CheckedSystem, probe: PersistenceProbe
) -> None:
    class Later(Actor):
        async def receive(self, message: Any) -> None:
            await self.context.clock.sleep(60)
            await self.context.persist(OrderPaid(1))

    await actor_system.spawn(Later).tell("go")
    await probe.expect_none(within=59)
    with pytest.raises(AssertionError, match="there is a fact"):
        await probe.expect_none(within=1)


@pytest.mark.parametrize("message", ["hello", 5, OrderPlaced(1), {"a": [1]}, object()])
async def test_a_persistence_probe_expects_a_dead_letter_by_its_message(
    actor_system: CheckedSystem, probe: PersistenceProbe, message: Any
) -> None:
    echo = actor_system.spawn(Echo, name="echo")
    await echo.stop()
    await echo.tell("another")
    await echo.tell(message)
    found = await probe.expect_dead_letter(message, target=echo)
    assert (found.message_type, found.expects_reply) == (type(message).__name__, False)
    with pytest.raises(AssertionError, match="no fact came"):
        await probe.expect_dead_letter(message, timeout=0)
    await probe.expect_dead_letter(str, target="papyra/echo")
    with pytest.raises(AssertionError, match="dead letter"):
        await probe.expect_dead_letter(lambda letter: letter.expects_reply, timeout=0)


async def test_a_persistence_probe_expects_a_restart_of_an_actor(
    actor_system: CheckedSystem, probe: PersistenceProbe, desk: ActorRef
) -> None:
    other = actor_system.spawn(Desk)
    for _ in range(2):
        with pytest.raises(ValueError, match="boom"):
            await desk.ask(ValueError("boom"))
    assert (await probe.expect_restart(desk)).payload == {"restarts": 1}
    assert (await probe.expect_restart("papyra/desk")).payload == {"restarts": 2}
    with pytest.raises(AssertionError, match="that is ActorRestarted of papyra/Desk-1"):
        await probe.expect_restart(other, timeout=0)


async def test_a_failed_expectation_of_a_probe_shows_the_closest_fact_and_all_seen(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    await desk.ask(OrderPlaced(1, ("tea",)))
    await desk.ask(OrderPlaced(2, ("tea", "cups")))
    await probe.expect_event(OrderPlaced(1, ("tea",)))
    with pytest.raises(AssertionError) as caught:
        await probe.expect_event(OrderPlaced(3, ("tea", "cups")), timeout=0)
    assert str(caught.value).splitlines() == [
        "no fact came within 0 s that is OrderPlaced {'items': ['tea', 'cups'], 'order_id': 3}",
        "the closest differs (- expected, + found):",
        "      {",
        '    -   "order_id": 3,',
        '    +   "order_id": 2,',
        '        "items": [',
        '          "tea",',
        '          "cups"',
        "        ]",
        "      }",
        "seen so far (3; = taken by an earlier expectation):",
        '    1 papyra/desk ActorStarted {"actor_type":"Desk"}',
        '  = 2 papyra/desk OrderPlaced {"order_id":1,"items":["tea"]}',
        '    3 papyra/desk OrderPlaced {"order_id":2,"items":["tea","cups"]}',
    ]


async def test_a_failed_expectation_of_a_probe_shows_only_the_last_of_many_facts(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    for number in range(100):
        await desk.ask(OrderPlaced(number))
    with pytest.raises(AssertionError, match=r"\.\.\. 71 older"):
        await probe.expect_event(OrderPaid, timeout=0)


async def test_a_store_that_hangs_fails_the_expectation_of_a_persistence_probe(
    actor_system: CheckedSystem,
) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem(persistence=store, shutdown_timeout=0) as system:
        await system.spawn(Desk).ask(OrderPlaced(1))
        store.hang("read")
        with pytest.raises(AssertionError, match=r"could not be read within 0\.01 s"):
            await PersistenceProbe(system).expect_event(OrderPlaced, timeout=0.01)


async def test_a_closed_persistence_probe_sees_no_new_facts(
    probe: PersistenceProbe, desk: ActorRef
) -> None:
    await desk.ask(OrderPlaced(1))
    probe.close()
    await desk.ask(OrderPlaced(2))
    assert len(probe.facts) == 2


def test_a_persistence_probe_needs_a_running_system() -> None:
    with pytest.raises(SystemNotRunning):
        PersistenceProbe(ActorSystem())


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5"])
async def test_a_probe_refuses_a_timeout_that_is_no_number_of_seconds(
    probe: PersistenceProbe, timeout: Any
) -> None:
    with pytest.raises(InvalidPolicy, match="timeout is seconds"):
        await probe.expect_event(timeout=timeout)


# Probes of messages


async def test_a_test_probe_keeps_the_messages_it_is_sent(actor_system: CheckedSystem) -> None:
    probe = TestProbe(actor_system, "till")
    assert str(probe.ref.address) == "papyra/till"
    for message in (1, "two", OrderPlaced(3), None):
        await probe.ref.tell(message)
    assert await probe.expect_message(OrderPlaced(3)) == OrderPlaced(3)
    assert await probe.expect_next(int) == 1
    assert await probe.expect_sequence([lambda message: message == "two", None]) == ["two", None]
    await probe.expect_none()
    assert probe.messages == (1, "two", OrderPlaced(3), None)


async def test_a_failed_expectation_of_a_test_probe_shows_the_messages_it_has(
    actor_system: CheckedSystem,
) -> None:
    probe = TestProbe(actor_system)
    await probe.ref.ask(OrderPaid(1))
    with pytest.raises(AssertionError) as caught:
        await probe.expect_next(OrderPaid(2))
    assert '    -   "order_id": 2' in str(caught.value).splitlines()
    with pytest.raises(AssertionError, match=r"no message came within 0 s that is of type str"):
        await probe.expect_message(str, timeout=0)
    with pytest.raises(AssertionError, match=r"there is a message that is OrderPaid\(order_id=1\)"):
        await probe.expect_none(OrderPaid(1))


@pytest.mark.parametrize(
    ("reply", "replied"),
    [
        (None, None),
        ("yes", "yes"),
        (lambda message: message * 2, 42),
        (Failure(KeyError(1)), KeyError),
    ],
)
async def test_a_test_probe_replies_as_it_is_told(
    actor_system: CheckedSystem, reply: object, replied: Any
) -> None:
    probe = TestProbe(actor_system, reply=reply)
    if isinstance(replied, type):
        with pytest.raises(replied):
            await probe.ref.ask(21)
    else:
        assert await probe.ref.ask(21) == replied


async def test_a_test_probe_raises_an_exception_given_as_its_reply(
    actor_system: CheckedSystem,
) -> None:
    probe = TestProbe(actor_system, reply=ValueError)
    with pytest.raises(ValueError, match="closed"):
        await probe.ref.ask("closed")
    assert actor_system.audit().crashed == 0


async def test_a_test_probe_watches_for_the_end_of_an_actor(
    actor_system: CheckedSystem, desk: ActorRef
) -> None:
    probe = TestProbe(actor_system)
    with pytest.raises(AssertionError, match="no message came"):
        await probe.expect_terminated(desk, timeout=0.01)
    await desk.tell("stop")
    await probe.expect_terminated(desk)
    await probe.expect_none()
