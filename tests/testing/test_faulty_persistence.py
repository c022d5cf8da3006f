"""A store that fails when it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import anyio
import msgspec
import pytest

from papyra import ActorSystem
from papyra.exceptions import (
    BackendBusy,
    BackendInUse,
    HistoriesUnsupported,
    InvalidPolicy,
    InvalidRecord,
    InvalidSetting,
    SnapshotsUnsupported,
    StoreError,
)
from papyra.persistence import (
    Append,
    AppendMany,
    Attend,
    EventSkipped,
    PersistedAudit,
    PersistenceActor,
    PersistenceRecoveryConfig,
    SkipEvent,
)
from papyra.persistence.backends import store as store_module
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.backends.store import OPTIONAL_PARTS, Store
from papyra.persistence.inbox import PostedRequest, decode_answer, encode_posted
from papyra.persistence.messages import ReadEncodedHistory
from papyra.testing import (
    Delay,
    Fail,
    Fault,
    FaultyPersistence,
    Hang,
    InjectedFault,
    ManualClock,
    Operation,
    PersistenceProbe,
    wait_until_idle,
)
from papyra.testing.faulty_persistence import FaultyStore
from tests.actors import event
from tests.persistence.backends.trimmed_accounts import (
    ACCOUNTS,
    TRIM,
    fill,
    history,
    replayed,
)

AUDIT = PersistedAudit("shop", {}, 1.0)


@pytest.fixture
def store() -> InMemoryPersistence:
    return InMemoryPersistence()


@pytest.fixture
def faulty(store: InMemoryPersistence) -> FaultyPersistence:
    return FaultyPersistence(store)


async def test_faulty_persistence_fails_the_next_append_and_not_the_one_after(
    faulty: FaultyPersistence, store: InMemoryPersistence
) -> None:
    faulty.fail_next("append")
    with pytest.raises(InjectedFault, match="append failed on purpose"):
        await faulty.append(event(1))
    assert (await faulty.append(event(2))).first_seq == 1
    assert [e.payload["order_id"] for e in store.events] == [2]
    assert faulty.metrics.snapshot().write_errors == 1
    assert store.metrics.snapshot().write_errors == 0


async def test_faulty_persistence_fails_with_the_given_error(faulty: FaultyPersistence) -> None:
    mine = StoreError("mine")
    faulty.fail_next(error=mine, times=2)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"^mine$"):
            await faulty.append(event(1))
    faulty.fail_next(error=OSError(28, "No space left"))
    with pytest.raises(StoreError, match=r"write failed: OSError\(28, 'No space left'\)"):
        await faulty.append(event(1))


async def test_faulty_persistence_may_fail_one_kind_of_record_alone(
    faulty: FaultyPersistence,
) -> None:
    faulty.fail_next("append", kind="audit")
    faulty.fail_next("read", kind="dead_letter")
    await faulty.append(event(1))
    with pytest.raises(InjectedFault):
        await faulty.append(event(2), AUDIT)
    assert len(await faulty.list_events()) == 1
    with pytest.raises(InjectedFault):
        await faulty.list_dead_letters()
    assert await faulty.list_dead_letters() == []


async def test_faulty_persistence_can_fail_every_operation(faulty: FaultyPersistence) -> None:
    faulty.fail_next("open")
    with pytest.raises(InjectedFault):
        await faulty.append(event(1))
    await faulty.append(event(1))
    verbs: dict[Any, Any] = {
        "append": lambda: faulty.append(event(1)),
        "read": faulty.list_events,
        "scan": faulty.scan,
        "recover": lambda: faulty.recover(PersistenceRecoveryConfig()),
        "compact": faulty.compact,
        "flush": faulty.flush,
        "close": faulty.aclose,
    }
    for name, verb in verbs.items():
        faulty.fail_next(name)
        with pytest.raises(InjectedFault, match=f"{name} failed on purpose"):
            await verb()
        if name != "close":
            await verb()
    assert [injection.operation.name for injection in faulty.injected] == ["open", *verbs]


async def test_faulty_persistence_may_store_an_append_and_lose_its_answer(
    faulty: FaultyPersistence, store: InMemoryPersistence
) -> None:
    seen: list[int] = []
    faulty.watch_commits(lambda batch: seen.append(batch.first_seq))
    faulty.fail_next("append", after=True)
    with pytest.raises(InjectedFault):
        await faulty.append(event(1), event(2))
    assert (await faulty.append(event(3))).first_seq == 3
    assert [e.seq for e in store.events] == [1, 2, 3]
    assert seen == [1, 3]


async def test_faulty_persistence_fails_when_a_predicate_says_so(faulty: FaultyPersistence) -> None:
    faulty.fail_when(lambda operation: operation.name == "append" and len(operation.records) > 1)
    await faulty.append(event(1))
    for _ in range(3):
        with pytest.raises(InjectedFault):
            await faulty.append(event(1), event(2))
    faulty.clear()
    await faulty.append(event(1), event(2))


async def test_faulty_persistence_fails_every_so_many_operations(faulty: FaultyPersistence) -> None:
    faulty.fail_every(3)
    failed = []
    for number in range(1, 10):
        try:
            await faulty.append(event(number))
        except InjectedFault:
            failed.append(number)
    assert failed == [3, 6, 9]


async def test_a_request_that_faulty_persistence_rejects_fails_alone(
    faulty: FaultyPersistence, store: InMemoryPersistence
) -> None:
    faulty.reject(lambda record: record.payload == {"order_id": 2})
    outcomes: dict[int, object] = {}

    async def ask(number: int, *records: Any) -> None:
        try:
            outcomes[number] = (await faulty.append(*records)).first_seq
        except InvalidRecord as error:
            outcomes[number] = error

    async with ActorSystem() as system:
        system.spawn(PersistenceActor, faulty)
        faulty.hang("open")
        async with anyio.create_task_group() as tasks:
            for number in range(1, 5):
                tasks.start_soon(ask, number, event(number), event(number))
                await wait_until_idle()
            faulty.release()
        assert (outcomes[1], outcomes[3], outcomes[4]) == (1, 3, 5)
        assert isinstance(outcomes[2], InvalidRecord)
        assert (await faulty.append(event(2))).first_seq == 7
    assert (faulty.metrics.write_errors, store.metrics.write_errors) == (1, 0)
    assert [e.payload["order_id"] for e in store.events] == [1, 1, 3, 3, 4, 4, 2]


async def test_faulty_persistence_may_reject_every_request_of_a_group_commit(
    faulty: FaultyPersistence,
) -> None:
    faulty.reject(kind="audit", error=StoreError("no audits"), times=None)
    for _ in range(2):
        with pytest.raises(StoreError, match="no audits"):
            await faulty.append(AUDIT)
    assert (await faulty.append(event(1))).first_seq == 1


async def test_delays_of_faulty_persistence_go_by_the_clock(store: InMemoryPersistence) -> None:
    clock = ManualClock()
    faulty = FaultyPersistence(store, clock=clock)
    faulty.delay(0.2)
    faulty.delay(0.3, times=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(faulty.append, event(1))
        await clock.advance(0.49)
        assert not store.events
        await clock.advance(0.01)
        assert len(store.events) == 1
        tasks.start_soon(faulty.append, event(2))
        await clock.advance(0.2)
        assert len(store.events) == 2
    assert await faulty.list_events() == [*store.events]


async def test_an_operation_that_faulty_persistence_hangs_can_be_released(
    faulty: FaultyPersistence, store: InMemoryPersistence
) -> None:
    for number in (1, 2):
        faulty.hang()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(faulty.append, event(number))
            await wait_until_idle()
            assert len(store.events) == number - 1
            with pytest.raises(BackendBusy):
                await faulty.flush()
            faulty.release()
    assert len(store.events) == 2


async def test_an_append_that_faulty_persistence_hangs_can_be_cancelled_unstored(
    faulty: FaultyPersistence, store: InMemoryPersistence
) -> None:
    faulty.hang()
    with anyio.move_on_after(0.01):
        await faulty.append(event(1))
    assert (await faulty.append(event(2))).first_seq == 1
    assert len(store.events) == 1


async def test_a_fault_policy_decides_about_every_operation(faulty: FaultyPersistence) -> None:
    class Weather:
        def __init__(self) -> None:
            self.asked: list[Operation] = []

        def decide(self, operation: Operation) -> Fault | None:
            self.asked.append(operation)
            match operation.name, operation.number:
                case "append", 2:
                    return Fail(OSError("storm"))
                case "read", 1:
                    return Delay(0)
            return None

    weather = Weather()
    faulty.use(weather)
    await faulty.append(event(1))
    with pytest.raises(StoreError, match="storm"):
        await faulty.append(event(2), AUDIT)
    await faulty.list_events()
    assert [(o.name, o.number, sorted(o.kinds)) for o in weather.asked] == [
        ("open", 1, []),
        ("append", 1, ["event"]),
        ("append", 2, ["audit", "event"]),
        ("read", 1, ["event"]),
    ]


async def test_faulty_persistence_reports_injected_and_pending_faults(
    faulty: FaultyPersistence,
) -> None:
    faulty.fail_next("append", times=3)
    faulty.hang("scan")
    faulty.reject(times=2)
    for _ in range(3):
        with pytest.raises((InjectedFault, InvalidRecord)):
            await faulty.append(event(1))
    assert [type(injection.fault).__name__ for injection in faulty.injected] == [
        "Reject",
        "Reject",
        "Fail",
    ]
    left = [(repr(rule.fault), rule.times) for rule in faulty.pending]
    assert left == [
        (repr(Fail(InjectedFault())).replace("()", "('append failed on purpose')"), 2),
        (repr(Hang()), 1),
    ]
    assert "for append, 2 times more" in repr(faulty.pending[0])
    faulty.clear()
    assert faulty.pending == ()
    assert len(faulty.injected) == 3


async def test_verbs_of_a_backend_wrapped_by_faulty_persistence_meet_its_faults(
    faulty: FaultyPersistence, store: InMemoryPersistence
) -> None:
    async with ActorSystem("shop", persistence=faulty) as system:
        faulty.fail_next("scan")
        with pytest.raises(InjectedFault):
            await store.scan()
        await store.append(event(1))
        with pytest.raises(BackendInUse, match=r"hosted by a FaultyPersistence \(shop/\$persist"):
            system.spawn(PersistenceActor, store)
    assert len(await store.list_events()) == 1
    await faulty.wrapped.aclose()


async def test_faulty_persistence_releases_a_backend_that_can_not_be_opened(
    store: InMemoryPersistence,
) -> None:
    inner = FaultyPersistence(store)
    outer = FaultyPersistence(inner)
    inner.fail_next("open")
    with pytest.raises(InjectedFault):
        await outer.append(event(1))
    async with ActorSystem() as system:
        system.spawn(PersistenceActor, inner)
        await inner.append(event(1))
    assert len(store.events) == 1


async def test_faulty_persistence_can_be_reopened_after_any_fault(
    faulty: FaultyPersistence,
) -> None:
    for operation in ("open", "flush", "close"):
        for _ in range(2):
            faulty.fail_next(operation)
            with pytest.raises(InjectedFault):
                async with faulty:
                    await faulty.append(event(1))
        async with faulty:
            await faulty.append(event(1))
    seqs = [e.seq for e in await faulty.list_events()]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_a_system_survives_a_store_that_fails(faulty: FaultyPersistence) -> None:
    faulty.fail_every(2)
    async with ActorSystem(persistence=faulty) as system:
        probe = PersistenceProbe(system)
        ref = system.persistence
        refused = 0
        for number in range(20):
            try:
                await ref.ask(AppendMany((event(number), event(number))))
            except InjectedFault:
                refused += 1
        assert refused == 10
        stored = [fact.payload["order_id"] for fact in probe.facts]
        assert stored == [number for number in range(0, 20, 2) for _ in range(2)]


async def test_faulty_persistence_shows_retention_and_capabilities_of_what_it_wraps() -> None:
    policy = RetentionPolicy(max_records=2)
    store = InMemoryPersistence(retention_policy=policy)
    faulty = FaultyPersistence(store)
    assert faulty.wrapped is store
    assert faulty.retention == policy
    assert faulty.capabilities == store.capabilities
    async with ActorSystem(persistence=faulty) as system:
        await system.persistence.ask(Append(event(1)))


@pytest.mark.parametrize("backend", [None, "memory:", InMemoryPersistence])
def test_faulty_persistence_wraps_only_a_backend(backend: Any) -> None:
    with pytest.raises(InvalidSetting, match="wraps a PersistenceBackend"):
        FaultyPersistence(backend)


def test_faulty_persistence_refuses_invalid_rules(faulty: FaultyPersistence) -> None:
    wrong: Any
    for wrong in ("write", "", 5):
        with pytest.raises(InvalidPolicy, match="an operation is one of"):
            faulty.fail_next(wrong)
    with pytest.raises(InvalidPolicy, match="kind is one of"):
        faulty.delay(1, kind="events")  # type: ignore[arg-type]
    for wrong in (0, -1, 1.5):
        with pytest.raises(InvalidPolicy, match="whole number greater than 0"):
            faulty.fail_every(wrong)
        with pytest.raises(InvalidPolicy, match="whole number greater than 0"):
            faulty.fail_next(times=wrong)
    for wrong in (-1, float("nan"), "1"):
        with pytest.raises(InvalidPolicy, match="seconds"):
            faulty.delay(wrong)


# Optional parts


class Bare:
    """A store that leaves out every optional part: one in memory, of which no more is seen."""

    def __init__(self) -> None:
        store = InMemoryPersistence().store
        for name in vars(Store):
            if not name.startswith("_"):
                setattr(self, name, getattr(store, name))


def bare() -> PersistenceBackend:
    store: Any = Bare()
    return PersistenceBackend(store)


MAKERS: dict[str, Callable[[Path], PersistenceBackend]] = {
    "bare": lambda _: bare(),
    "memory": lambda _: InMemoryPersistence(),
    "json": lambda path: JsonFilePersistence(path / "events.ndjson"),
    "sqlite": lambda path: SQLitePersistence(path / "events.sqlite"),
    "redis": lambda _: RedisStreamsPersistence(RedisStreamsConfig()),
}


def parts_of(backend: PersistenceBackend) -> list[str]:
    return [part.__name__ for part in OPTIONAL_PARTS if isinstance(backend.store, part)]


@pytest.mark.parametrize("name", MAKERS)
def test_a_faulty_store_has_the_optional_parts_of_the_one_below_and_no_others(
    name: str, tmp_path: Path
) -> None:
    backend = MAKERS[name](tmp_path)
    expected = parts_of(backend)
    assert bool(expected) == (name != "bare")
    faulty = FaultyPersistence(backend)
    assert parts_of(faulty) == expected
    assert parts_of(FaultyPersistence(faulty)) == expected
    assert faulty.has_inbox == backend.has_inbox


def test_every_optional_part_of_a_store_may_be_passed_on() -> None:
    known = {each for each in vars(store_module).values() if getattr(each, "_is_protocol", False)}
    assert known - {Store, Protocol} == set(OPTIONAL_PARTS)
    for part in OPTIONAL_PARTS:
        assert issubclass(FaultyStore, part)


async def test_a_store_without_optional_parts_stays_one_that_has_none() -> None:
    faulty = FaultyPersistence(bare())
    with pytest.raises(HistoriesUnsupported):
        await faulty.read_history("shop/a")
    with pytest.raises(SnapshotsUnsupported):
        await faulty.load_snapshot("shop/a")
    assert await faulty.store_id() is None


async def test_histories_are_trimmed_through_faulty_persistence_unless_a_compaction_fails(
    tmp_path: Path,
) -> None:
    store = JsonFilePersistence(tmp_path / "bank.ndjson", fsync="no")
    faulty = FaultyPersistence(store)
    await fill(faulty)
    async with faulty:
        faulty.fail_next("compact")
        with pytest.raises(InjectedFault):
            await faulty.compact(TRIM)
        assert len(await history(faulty, "ann")) == 11
        report = await faulty.compact(TRIM)
        assert report.histories is not None
        assert report.histories.trimmed == 2
    assert await replayed(store) == ACCOUNTS


async def test_a_recovery_reads_through_faulty_persistence_what_is_stored_encoded(
    tmp_path: Path,
) -> None:
    faulty = FaultyPersistence(JsonFilePersistence(tmp_path / "bank.ndjson", fsync="no"))
    await fill(faulty)
    reads = list[Operation]()
    faulty.fail_when(
        lambda operation: reads.append(operation) if operation.name == "read" else None
    )
    assert await replayed(faulty) == ACCOUNTS
    assert {type(each.request) for each in reads} == {ReadEncodedHistory}


async def test_requests_for_the_writer_meet_faults_of_the_inbox(tmp_path: Path) -> None:
    path = tmp_path / "shop.ndjson"
    faulty = FaultyPersistence(JsonFilePersistence(path, fsync="no"))
    async with faulty:
        await faulty.append(msgspec.structs.replace(event(1), actor_address="s/a", revision=1))
        async with JsonFilePersistence(path, read_only=True) as beside:
            request = PostedRequest(SkipEvent("s/a", 1, "why"), time.time() + 600)
            await beside.store.post("0" * 32, encode_posted(request))
            faulty.fail_next("inbox")
            assert (await faulty.execute(Attend())).count is None
            assert (await faulty.execute(Attend())).count == 1
            assert decode_answer(await beside.store.answered("0" * 32) or b"") == EventSkipped(
                2, "why", is_new=True
            )
    assert [each.operation.name for each in faulty.injected] == ["inbox"]


async def test_faults_are_injected_into_positions_and_one_may_be_set_though_it_fails() -> None:
    faulty = FaultyPersistence(InMemoryPersistence())
    faulty.fail_next("save_position")
    with pytest.raises(InjectedFault):
        await faulty.save_position("balances", b"1", None)
    assert await faulty.load_position("balances") is None
    faulty.fail_next("save_position", after=True)
    with pytest.raises(InjectedFault):
        await faulty.save_position("balances", b"1", None)
    faulty.fail_next("load_position")
    with pytest.raises(InjectedFault):
        await faulty.load_position("balances")
    assert await faulty.load_position("balances") == b"1"
    faulty.fail_next("save_position")
    with pytest.raises(InjectedFault):
        await faulty.remove_position("balances", b"1")
    assert await faulty.list_positions() == ["balances"]
    assert await faulty.remove_position("balances", b"1")
