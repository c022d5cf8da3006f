"""Histories that an older release has stored, read with the classes of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy, event, upcaster
from papyra.exceptions import InvalidPath
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.testing import CheckedHistories, HistoryCheckFailed, HistoryProblem, check_history
from tests.eventsourcing.accounts import Account, Balance, Deposit, Deposited, Withdraw, Withdrawn


async def open_accounts(store: PersistenceBackend) -> None:
    async with ActorSystem("bank", persistence=store) as system:
        for number, name in enumerate(["ann", "bob"], 1):
            account = system.spawn(Account, name=name)
            for _ in range(number):
                await account.ask(Deposit(10))
            await account.ask(Withdraw(3))


@pytest.fixture(params=["json", "rotating"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / ("events.ndjson" if request.param == "json" else "journal")


def backend_at(place: Path) -> PersistenceBackend:
    return JsonFilePersistence(place) if place.suffix else RotatingFilePersistence(place)


async def test_histories_that_are_good_are_counted(place: Path) -> None:
    await open_accounts(backend_at(place))
    scheme = "json" if place.suffix else "rotating"
    for store in (place, str(place), f"{scheme}:{place}", backend_at(place)):
        assert await check_history(store, Account) == CheckedHistories(actors=2, events=5)
    assert await check_history(place, Account, actors="bank/a*") == CheckedHistories(1, 2)


async def test_a_check_changes_nothing_and_needs_no_leave_of_the_writer(place: Path) -> None:
    await open_accounts(backend_at(place))
    async with backend_at(place):
        files = {path: path.read_bytes() for path in place.parent.rglob("*") if path.is_file()}
        await check_history(place, Account)
        assert {p: p.read_bytes() for p in place.parent.rglob("*") if p.is_file()} == files


class Withdrawn2(msgspec.Struct, frozen=True):
    amount: str


class Renamed(Account):
    """Its release has forgotten an event, and how it was called."""

    events = (Deposited,)  # type: ignore[assignment]


class Retyped(Account):
    events = (Deposited, type("Withdrawn", (Withdrawn2,), {}))  # type: ignore[assignment]


class Stricter(Account):
    """Its `apply` refuses what it has accepted once."""

    def apply(self, state: Balance, event: Any) -> Balance:
        if isinstance(event, Deposited) and state.amount >= 10:
            raise ValueError("rich enough")
        return super().apply(state, event)


class Forgetful(Account):
    def apply(self, state: Balance, event: Any) -> Balance:
        after = super().apply(state, event)
        return None if isinstance(event, Withdrawn) else after  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("account_class", "found", "reason"),
    [
        (
            Renamed,
            [("bank/ann", 2, "Withdrawn"), ("bank/bob", 3, "Withdrawn")],
            "Renamed has no event 'Withdrawn'",
        ),
        (
            Retyped,
            [("bank/ann", 2, "Withdrawn"), ("bank/bob", 3, "Withdrawn")],
            "Expected `str`, got `int`",
        ),
        (Stricter, [("bank/bob", 2, "Deposited")], "ValueError: rich enough"),
        (
            Forgetful,
            [("bank/ann", 2, "Withdrawn"), ("bank/bob", 3, "Withdrawn")],
            "apply returned None",
        ),
    ],
)
async def test_every_event_that_could_not_be_recovered_from_is_named(
    account_class: type[Account], found: list[tuple[str, int, str]], reason: str
) -> None:
    store = InMemoryPersistence()
    await open_accounts(store)
    async with store:
        with pytest.raises(
            HistoryCheckFailed, match=r"can't be recovered from \d events"
        ) as caught:
            await check_history(store, account_class)
    problems = caught.value.problems
    assert [(each.actor, each.revision, each.event_type) for each in problems] == found
    for each in problems:
        assert reason in each.reason
        assert f"{each.actor}, revision {each.revision} {each.event_type}: " in str(caught.value)


class Photographed(Account):
    snapshots = SnapshotPolicy(every=2)


class Generous(Photographed):
    """Its `apply` has changed, and the version of its snapshots has not."""

    def apply(self, state: Balance, event: Any) -> Balance:
        after = super().apply(state, event)
        return Balance(after.amount + 1, after.movements)


class Rounded(msgspec.Struct, frozen=True):
    amount: Any = ()


class Loose(EventSourced[Rounded]):
    """A snapshot would make another value of its state."""

    events = (Deposited, Withdrawn)
    snapshots = SnapshotPolicy()

    def initial_state(self) -> Rounded:
        return Rounded()

    def apply(self, state: Rounded, event: Deposited | Withdrawn) -> Rounded:
        return Rounded((*state.amount, event.amount))

    async def receive(self, message: Any) -> Any: ...


async def open_photographed(store: PersistenceBackend) -> None:
    async with ActorSystem("bank", persistence=store) as system:
        for _ in range(5):
            await system.spawn(Photographed, name="ann").ask(Deposit(10))
            await system.find("bank/ann").stop()  # type: ignore[union-attr]


async def test_stored_snapshots_are_compared_with_what_the_events_add_up_to(place: Path) -> None:
    await open_photographed(backend_at(place))
    assert await check_history(place, Photographed) == CheckedHistories(1, 5, snapshots=2)
    assert await check_history(place, Account) == CheckedHistories(1, 5)
    with pytest.raises(HistoryCheckFailed) as caught:
        await check_history(place, Generous)
    assert [(each.revision, each.reason) for each in caught.value.problems] == [
        (
            2,
            "in the snapshot that is stored, the state was Balance(amount=22, movements=2), "
            "and is Balance(amount=20, movements=2): amount was 22, and is 20",
        )
    ]


async def test_snapshots_that_a_recovery_would_pass_over_are_passed_over(place: Path) -> None:
    class Newer(Generous):
        snapshots = SnapshotPolicy(every=2, version=2)

    class Resized(msgspec.Struct, frozen=True):
        amount: int = 0

    class Reshaped(EventSourced[Resized]):
        events = (Deposited,)
        snapshots = SnapshotPolicy(every=2)

        def initial_state(self) -> Resized:
            return Resized()

        def apply(self, state: Resized, event: Deposited) -> Resized:
            return Resized(state.amount - event.amount)

        async def receive(self, message: Any) -> Any: ...

    await open_photographed(backend_at(place))
    assert await check_history(place, Newer) == CheckedHistories(1, 5)
    assert await check_history(place, Reshaped) == CheckedHistories(1, 5)


async def test_a_state_that_a_snapshot_would_change_is_named_with_its_revision() -> None:
    store = InMemoryPersistence()
    await open_accounts(store)
    async with store:
        with pytest.raises(
            HistoryCheckFailed,
            match=r"bank/ann, revision 1 Deposited: with a snapshot, the state was .*: "
            r"amount was \(10,\), and is \[10\]",
        ) as caught:
            await check_history(store, Loose)
    assert [each.revision for each in caught.value.problems] == [1, 1]  # of each history, the first


async def test_events_that_are_missing_or_there_twice_are_named(tmp_path: Path) -> None:
    def deposit(seq: int, revision: int) -> PersistedEvent:
        record = PersistedEvent("bank", "bank/ann", "Deposited", {"amount": 1}, 1.0)
        return msgspec.structs.replace(record, seq=seq, revision=revision)

    store = InMemoryPersistence()
    async with store:
        await store.restore(*map(deposit, (1, 2, 3, 4), (1, 4, 4, 5)))
        with pytest.raises(HistoryCheckFailed) as caught:
            await check_history(store, Account)
    assert caught.value.problems == (
        HistoryProblem("bank/ann", 2, "", "it is missing"),
        HistoryProblem("bank/ann", 3, "", "it is missing"),
        HistoryProblem("bank/ann", 4, "Deposited", "it is there twice"),
    )


async def test_a_store_that_is_open_stays_open() -> None:
    store = InMemoryPersistence()
    await open_accounts(store)
    async with store:
        await check_history(store, Account)
        assert store.is_open
        await check_history(store, Account)


async def test_nothing_is_applied_to_a_state_that_is_not_known() -> None:
    class Poor(Account):
        def apply(self, state: Balance, event: Any) -> Balance:
            after = super().apply(state, event)
            if after.amount < 0:
                raise ValueError("less than nothing")
            return after

    store = InMemoryPersistence()
    async with store:
        for revision, name in enumerate(["Lost", "Withdrawn", "Gone"], 1):
            record = PersistedEvent("bank", "bank/ann", name, {"amount": 1}, 1.0, None, revision)
            await store.append(record)
        with pytest.raises(HistoryCheckFailed) as caught:
            await check_history(store, Poor)
    assert [each.event_type for each in caught.value.problems] == ["Lost", "Gone"]


async def test_a_history_that_retention_hides_is_found_by_its_address() -> None:
    store = InMemoryPersistence(retention_policy=RetentionPolicy(max_records=1))
    await open_accounts(store)
    async with store:
        assert await check_history(store, Account, actors="bank/ann") == CheckedHistories(1, 2)
        with pytest.raises(HistoryCheckFailed, match="no history of an actor 'bank/eve' in "):
            await check_history(store, Account, actors="bank/eve")


async def test_a_check_of_nothing_has_failed(tmp_path: Path) -> None:
    with pytest.raises(InvalidPath, match="no store at"):
        await check_history(tmp_path / "missing.ndjson", Account)
    assert list(tmp_path.iterdir()) == []
    await open_accounts(JsonFilePersistence(tmp_path / "events.ndjson"))
    with pytest.raises(HistoryCheckFailed, match=r"no history of an actor 'shop/\*' in "):
        await check_history(tmp_path / "events.ndjson", Account, actors="shop/*")


async def test_the_message_shows_so_many_problems_and_counts_the_rest() -> None:
    store = InMemoryPersistence()
    async with store:
        for revision in range(1, 31):
            record = PersistedEvent("bank", "bank/ann", "Lost", {}, 1.0, None, revision)
            await store.append(record)
        with pytest.raises(HistoryCheckFailed, match="and 10 more") as caught:
            await check_history(store, Account)
    assert len(caught.value.problems) == 30
    assert len(str(caught.value).splitlines()) == 22


async def test_actors_that_need_arguments_get_them() -> None:
    class Limited(Account):
        def __init__(self, limit: int, *, name: str) -> None:
            self.limit, self.name = limit, name

        def apply(self, state: Balance, event: Any) -> Balance:
            if event.amount > self.limit:
                raise ValueError(f"too much for {self.name}")
            return super().apply(state, event)

    store = InMemoryPersistence()
    await open_accounts(store)
    async with store:
        await check_history(store, Limited, args=[10], kwargs={"name": "ann"})
        with pytest.raises(HistoryCheckFailed, match="too much for bob"):
            await check_history(store, Limited, args=[9], kwargs={"name": "bob"})


async def test_histories_of_entities_are_checked_with_their_ids() -> None:
    class Known(Account):
        entity_name = "account"

        def __init__(self) -> None:
            self.owner = self.context.entity_id

        def apply(self, state: Balance, event: Any) -> Balance:
            if self.owner == "eve/2":
                raise ValueError(f"{self.owner} is not known")
            return super().apply(state, event)

    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        await system.entity(Known, "ann/1").ask(Deposit(1))
    async with store:
        await check_history(store, Known, actors="bank/account/*")
        record = PersistedEvent("bank", "bank/account/eve%2F2", "Deposited", {"amount": 1}, 1.0)
        await store.append(msgspec.structs.replace(record, revision=1))
        with pytest.raises(HistoryCheckFailed, match="eve/2 is not known"):
            await check_history(store, Known, actors="bank/account/*")


# Histories that begin with a base


class Saved(Account):
    snapshots = SnapshotPolicy(every=2)


class OfAnotherVersion(Account):
    snapshots = SnapshotPolicy(every=2, version=2)


async def trimmed(place: Path) -> None:
    async with ActorSystem("bank", persistence=backend_at(place)) as system:
        account = system.spawn(Saved, name="ann")
        for _ in range(7):
            await account.ask(Deposit(10))
    async with backend_at(place) as store:
        await store.compact(RetentionPolicy(max_records=1, trim_histories=True))


async def test_a_history_that_begins_with_a_base_is_good(place: Path) -> None:
    await trimmed(place)
    for account_class in (Account, Saved):
        checked = await check_history(place, account_class)
        assert (checked.actors, checked.events) == (1, 4)


async def test_a_base_that_can_not_be_decoded_is_named(place: Path) -> None:
    await trimmed(place)
    with pytest.raises(HistoryCheckFailed) as caught:
        await check_history(place, OfAnotherVersion)
    (problem,) = caught.value.problems
    assert (problem.revision, problem.event_type) == (4, "papyra.base")
    assert "there is no upcast" in problem.reason


async def test_what_is_missing_behind_a_base_is_named(tmp_path: Path) -> None:
    await trimmed(tmp_path / "events.ndjson")
    async with backend_at(tmp_path / "events.ndjson") as store:
        events = [event for event in await store.list_events() if event.revision]
    copy = InMemoryPersistence()
    await copy.restore(*(event for event in events if event.revision != 6))
    with pytest.raises(HistoryCheckFailed) as caught:
        await check_history(copy, Saved)
    assert [(each.revision, each.reason) for each in caught.value.problems] == [
        (6, "it is missing")
    ]


# Timers that are pending


class Ring(msgspec.Struct, frozen=True):
    """As the older release had it."""

    text: str


class Alarm(Account):
    timer_messages: ClassVar[tuple[type, ...]] = (Ring,)

    async def receive(self, command: Any) -> Any:
        match command:
            case Ring():
                await self.schedule("morning", command, after=60)
            case "cancel":
                await self.unschedule("morning")
            case _:
                return await super().receive(command)
        return None


@event("Ring", version=2)
class NewRing(msgspec.Struct, frozen=True):
    texts: list[str]


class Deaf(Alarm):
    """Its release has forgotten the message."""

    timer_messages = ()


class Raised(Alarm):
    """Its message has changed, and nothing leads to it from what it was."""

    timer_messages = (NewRing,)


class Upcast(Raised):
    @staticmethod
    @upcaster("Ring", 1)
    def with_texts(payload: dict[str, Any]) -> dict[str, Any]:
        return {"texts": [payload["text"]]}


class Broken(Raised):
    @staticmethod
    @upcaster("Ring", 1)
    def with_texts(payload: dict[str, Any]) -> dict[str, Any]:
        return {"texts": payload["text"]}


async def alarm(store: PersistenceBackend, *commands: Any) -> None:
    async with ActorSystem("home", persistence=store) as system:
        hall = system.spawn(Alarm, name="hall")
        for command in commands:
            await hall.ask(command)


@pytest.mark.parametrize(
    ("alarm_class", "reason"),
    [
        (Deaf, "timer 'morning': Deaf has no message 'Ring'"),
        (Raised, "timer 'morning': message 'Ring' is of version 1"),
        (Broken, "timer 'morning': "),
    ],
)
async def test_a_pending_timer_whose_message_can_not_be_read_is_named(
    alarm_class: type[Alarm], reason: str
) -> None:
    store = InMemoryPersistence()
    await alarm(store, Deposit(1), Ring("up"), Deposit(1))
    with pytest.raises(HistoryCheckFailed) as caught:
        await check_history(store, alarm_class)
    (problem,) = caught.value.problems
    assert (problem.revision, problem.event_type) == (2, "papyra.timer")
    assert problem.reason.startswith(reason)


async def test_a_pending_timer_is_good_whose_message_an_upcaster_leads_to() -> None:
    store = InMemoryPersistence()
    await alarm(store, Ring("up"))
    assert await check_history(store, Upcast) == CheckedHistories(actors=1, events=1)


async def test_a_message_is_not_missed_whose_timer_is_not_pending_any_more() -> None:
    store = InMemoryPersistence()
    await alarm(store, Ring("up"), "cancel")
    assert await check_history(store, Deaf) == CheckedHistories(actors=1, events=2)


async def test_a_change_of_a_timer_that_can_not_be_read_is_named() -> None:
    store = InMemoryPersistence()
    await alarm(store, Ring("up"))
    async with store:
        record = PersistedEvent("home", "home/hall", "papyra.timer", {"change": "odd"}, 1.0)
        await store.append(msgspec.structs.replace(record, revision=2))
    with pytest.raises(HistoryCheckFailed) as caught:
        await check_history(store, Alarm)
    assert [each.revision for each in caught.value.problems] == [2]


async def test_a_timer_in_a_base_whose_message_can_not_be_read_is_named(tmp_path: Path) -> None:
    class SavedAlarm(Alarm):
        snapshots = SnapshotPolicy(every=2)

    place = tmp_path / "events.ndjson"
    async with ActorSystem("home", persistence=backend_at(place)) as system:
        hall = system.spawn(SavedAlarm, name="hall")
        for command in (Ring("up"), *[Deposit(1)] * 7):
            await hall.ask(command)
    async with backend_at(place) as store:
        await store.compact(RetentionPolicy(max_records=1, trim_histories=True))
    await check_history(place, SavedAlarm)
    with pytest.raises(HistoryCheckFailed) as caught:
        await check_history(place, Deaf)
    (problem,) = caught.value.problems
    assert (problem.revision, problem.event_type) == (1, "papyra.timer")
