"""A snapshot saves time, and nothing else depends on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Generic, TypeVar, cast

import anyio
import msgspec
import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.exceptions import InvalidPolicy, InvalidSchema, StoreError
from papyra.persistence import PersistedEvent, ReadHistory, Request, SaveSnapshot, Snapshot
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.snapshots import snapshots_of
from papyra.persistence.snapshots import decode_snapshot, encode_snapshot
from papyra.testing import CrashRun, FaultyPersistence, crash_everywhere
from tests.eventsourcing.accounts import (
    Account,
    Balance,
    Deposit,
    Deposited,
    Look,
    PipelinedAccount,
    Withdraw,
)
from tests.testing.shelf import Disk, Shelf, ShelfStore

pytestmark = pytest.mark.anyio

ANN = "bank/ann"


class Saved(Account):
    snapshots = SnapshotPolicy(every=5)


class SavedPipelined(PipelinedAccount):
    snapshots = SnapshotPolicy(every=5)


class Watched(InMemoryPersistence):
    """Notes after which revisions histories are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_after: list[int] = []

    async def handle(self, request: Request[Any]) -> Any:
        if isinstance(request, ReadHistory):
            self.read_after.append(request.after_revision)
        return await super().handle(request)


@asynccontextmanager
async def bank(store: PersistenceBackend) -> AsyncIterator[ActorSystem]:
    async with ActorSystem("bank", persistence=store) as system:
        yield system


async def deposit(store: PersistenceBackend, count: int, kind: type[Account] = Saved) -> None:
    """Deposit 1, `count` times, in one life of the account."""
    async with bank(store) as system:
        account = system.spawn(kind, name="ann")
        for _ in range(count):
            await account.ask(Deposit(1))


async def look(store: PersistenceBackend, kind: type[EventSourced[Any]] = Saved) -> Any:
    """Return balance and revision of the account in a new life."""
    async with bank(store) as system:
        return await system.spawn(kind, name="ann").ask(Look())


async def saved(store: PersistenceBackend) -> list[int]:
    return sorted(await snapshots_of(store.store).snapshot_revisions(ANN))


async def change(store: PersistenceBackend, revision: int, /, **changes: Any) -> None:
    """Change what a snapshot says, and keep it whole."""
    kept = snapshots_of(store.store)
    snapshot = decode_snapshot(await kept.load_snapshot(ANN, revision) or b"")
    data = encode_snapshot(msgspec.structs.replace(snapshot, **changes))
    await kept.save_snapshot(ANN, revision, data)


@pytest.mark.parametrize("kind", [Saved, SavedPipelined])
async def test_an_actor_recovers_from_its_newest_snapshot_and_the_events_behind_it(
    kind: type[Account],
) -> None:
    store = Watched()
    await deposit(store, 12, kind)
    assert await saved(store) == [5, 10]
    store.read_after.clear()
    assert await look(store, kind) == (12, 12)
    assert store.read_after == [10]
    assert store.metrics.snapshots_loaded == 1
    assert store.metrics.snapshots_passed_over == 0


async def test_as_many_snapshots_are_kept_as_the_policy_says() -> None:
    class Three(Saved):
        snapshots = SnapshotPolicy(every=2, keep=3)

    store = InMemoryPersistence()
    await deposit(store, 11, Three)
    assert await saved(store) == [6, 8, 10]
    assert store.metrics.snapshots_saved == 5


async def test_a_long_history_gets_a_snapshot_when_it_is_recovered() -> None:
    store = Watched()
    await deposit(store, 12, Account)
    assert await saved(store) == []
    assert await look(store) == (12, 12)
    assert await saved(store) == [12]
    store.read_after.clear()
    assert await look(store) == (12, 12)
    assert store.read_after == [12]


async def test_without_a_policy_nothing_is_saved_or_looked_for() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    store.fail_next("load_snapshot")
    await deposit(store, 12, Account)
    assert await look(store, Account) == (12, 12)
    assert store.pending
    assert store.metrics.snapshots_saved == 0


class Newer(Saved):
    snapshots = SnapshotPolicy(every=5, version=2)


async def test_snapshots_of_another_version_are_passed_over() -> None:
    store = Watched()
    await deposit(store, 12)
    assert await look(store, Newer) == (12, 12)
    assert store.metrics.snapshots_passed_over == 2
    assert store.read_after[-1] == 0
    # It has been replaced by one of the newer version, which the older program passes over.
    assert await saved(store) == [10, 12]
    assert await look(store, Newer) == (12, 12)
    assert store.read_after[-1] == 12
    assert await look(store) == (12, 12)
    assert store.read_after[-1] == 10


class Wide(msgspec.Struct, frozen=True):
    """A balance with a field more, which older snapshots know nothing of."""

    amount: int = 0
    movements: int = 0
    largest: int = 0


class WideAccount(EventSourced[Wide]):
    events = Account.events
    snapshots = SnapshotPolicy(every=5)

    def initial_state(self) -> Wide:
        return Wide()

    def apply(self, state: Wide, event: Any) -> Wide:
        largest = max(state.largest, event.amount)
        return Wide(state.amount + event.amount, state.movements + 1, largest)

    async def receive(self, message: Any) -> Any:
        return self.state


async def test_a_field_more_in_the_state_is_noticed_without_a_new_version() -> None:
    store = InMemoryPersistence()
    await deposit(store, 12)
    assert await look(store, WideAccount) == Wide(12, 12, 1)
    assert store.metrics.snapshots_passed_over == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"state": msgspec.Raw(b'{"amount":"much"}')},
        {"state": msgspec.Raw(b"[]")},
        {"version": 7},
        {"store_id": "another"},
        {"checksum": "another"},
        {"seq": 1},
        {"actor": "bank/bob"},
        {"revision": 9},
        {"shape": "another"},
    ],
    ids=",".join,
)
async def test_a_snapshot_that_can_not_be_used_is_passed_over_for_an_older_one(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = Watched()
    await deposit(store, 12)
    await change(store, 10, **changes)
    assert await look(store) == (12, 12)
    assert store.read_after[-1] == 5
    assert store.metrics.snapshots_passed_over == 1
    assert "passed over snapshot 10 of" in caplog.text
    # Behind that one there was so much to read that there is a new one.
    assert await saved(store) == [10, 12]
    assert await look(store) == (12, 12)
    assert store.read_after[-1] == 12


async def test_without_any_that_can_be_used_the_whole_history_is_read() -> None:
    store = Watched()
    await deposit(store, 12)
    for revision in (5, 10):
        await change(store, revision, store_id="another")
    assert await look(store) == (12, 12)
    assert store.read_after[-1] == 0
    assert store.metrics.snapshots_passed_over == 2


async def test_a_snapshot_of_what_the_last_second_lost_is_passed_over() -> None:
    whole = InMemoryPersistence()
    await deposit(whole, 12)
    kept = await whole.read_history(ANN)
    # The store comes back without its end, and others are stored at those places.
    store = Watched()
    store.store._id = whole.store._id
    store.store._snapshots = whole.store._snapshots
    async with store:
        for record in await whole.list_events():
            if record.seq is not None and record.seq <= (kept.events[6].seq or 0):
                await store.append(msgspec.structs.replace(record, seq=None))
    async with bank(store) as system:
        account = system.spawn(Saved, name="ann")
        assert await account.ask(Look()) == (7, 7)
        assert store.read_after[-1] == 5
        for _ in range(3):
            await account.ask(Deposit(100))
    assert await look(store) == (307, 10)


async def test_a_command_does_not_wait_for_the_snapshot_or_fail_with_it() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    store.fail_next("save_snapshot")
    await deposit(store, 7)
    assert store.metrics.snapshot_errors == 1
    assert store.metrics.write_errors == 0
    assert await saved(store.wrapped) == []
    await deposit(store, 5)
    assert await saved(store.wrapped) == [7, 12] or await saved(store.wrapped) == [10]


async def test_snapshots_that_can_not_be_loaded_are_passed_over() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    await deposit(store, 12)
    store.fail_next("load_snapshot", OSError("bad sector"))
    assert await look(store) == (12, 12)
    assert store.metrics.snapshots_passed_over == 1
    store.fail_next("load_snapshot", times=2)
    assert await look(store) == (12, 12)
    assert store.metrics.snapshots_passed_over == 3


@pytest.mark.parametrize("after", [False, True])
async def test_there_is_no_snapshot_of_what_was_not_stored(after: bool) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with bank(store) as system:
        account = system.spawn(SavedPipelined, name="ann")
        for _ in range(4):
            await account.ask(Deposit(1))
        store.fail_next("append", after=after)
        with pytest.raises(StoreError):
            await account.ask(Deposit(1))
        await system.backend.flush()
        assert await account.ask(Look()) == ((5, 5) if after else (4, 4))
        if not after:
            assert await saved(store.wrapped) == []
        await account.ask(Deposit(10))
    assert await look(store, SavedPipelined) == ((15, 6) if after else (14, 5))
    assert store.metrics.snapshots_passed_over == 0


class Basket(EventSourced[list[int]]):
    """Its `apply` changes the state in place, which it should not."""

    events = (Deposited,)
    snapshots = SnapshotPolicy(every=3)

    def initial_state(self) -> list[int]:
        return []

    def apply(self, state: list[int], event: Any) -> list[int]:
        state.append(event.amount)
        return state

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Deposit):
            self.persist_nowait(Deposited(message.amount))
        return list(self.state), self.revision


async def test_a_state_that_changes_in_place_is_saved_as_it_was() -> None:
    store = InMemoryPersistence()
    async with bank(store) as system, anyio.create_task_group() as tasks:
        basket = system.spawn(Basket, name="ann")
        for number in range(1, 11):
            tasks.start_soon(basket.ask, Deposit(number))
    amounts = [event.payload["amount"] for event in (await store.read_history(ANN)).events]
    assert len(amounts) == 10
    for revision in await saved(store):
        data = await store.store.load_snapshot(ANN, revision)
        snapshot = decode_snapshot(data or b"")
        assert msgspec.json.decode(snapshot.state) == amounts[:revision]
    assert await look(store, Basket) == (amounts, 10)
    assert store.metrics.snapshots_loaded == 1


class Loose(EventSourced[dict[str, Any]]):
    """Its state is lost in the codec: a tuple comes back as a list."""

    events = (Deposited,)
    snapshots = SnapshotPolicy(every=1)
    states: ClassVar[list[object]] = []

    def initial_state(self) -> dict[str, Any]:
        return {"last": ()}

    def apply(self, state: dict[str, Any], event: Any) -> dict[str, Any]:
        return {"last": (event.amount,)}

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Deposit):
            await self.persist(Deposited(message.amount))
        return self.state, self.revision


async def test_a_state_that_does_not_come_back_as_it_was_is_not_saved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = InMemoryPersistence()
    async with bank(store) as system:
        await system.spawn(Loose, name="ann").ask(Deposit(1))
    assert await saved(store) == []
    assert "does not come back" in caplog.text
    assert await look(store, Loose) == ({"last": (1,)}, 1)


async def test_a_store_without_snapshots_is_replayed(caplog: pytest.LogCaptureFixture) -> None:
    class Plain(ShelfStore):
        save_snapshot = None  # type: ignore[assignment]

    class PlainShelf(Shelf):
        store_type = Plain

    store = PlainShelf(Disk())
    await deposit(store, 7)
    assert await look(store) == (7, 7)


@pytest.mark.parametrize("base", [Account, PipelinedAccount])
async def test_no_crash_at_any_point_leaves_a_snapshot_that_is_wrong(base: type[Account]) -> None:
    class Crashing(base):  # type: ignore[misc, valid-type]
        snapshots = SnapshotPolicy(every=1)

    async def check(run: CrashRun) -> None:
        amounts = [event["amount"] for event in run.events(Deposited)]
        assert await run.ref.ask(Look()) == (sum(amounts), len(amounts))
        assert {command.amount for command in cast("list[Any]", run.acknowledged)} <= set(amounts)

    commands = [Deposit(1), Deposit(20), Deposit(300)]
    crashes = await crash_everywhere(
        lambda system: system.spawn(Crashing, name="ann"), commands, check
    )
    assert len(crashes.points) >= 24


async def test_a_withdrawal_after_a_snapshot_knows_the_balance() -> None:
    store = InMemoryPersistence()
    await deposit(store, 5)
    async with bank(store) as system:
        account = system.spawn(Saved, name="ann")
        assert await account.ask(Withdraw(3)) == 2
    assert await look(store) == (2, 6)


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"every": 1.5}, {"keep": 1}, {"version": 0}, {"version": True}]
)
def test_a_policy_that_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy):
        SnapshotPolicy(**arguments)


StateT = TypeVar("StateT")


class Untyped(EventSourced[StateT], Generic[StateT]):
    """Leaves open what its state is."""

    def initial_state(self):  # type: ignore[no-untyped-def]
        return None

    def apply(self, state: StateT, event: Any) -> StateT:
        return state

    async def receive(self, message: Any) -> Any:
        return self.state


class Opaque:
    """A state that JSON has no form for."""


def define(state: Any, policy: Any = SnapshotPolicy()) -> type:  # noqa: B008
    base = EventSourced[state] if state is not None else Untyped
    return type(
        "Defined",
        (base,) if state is None else (EventSourced,),
        {
            "snapshots": policy,
            "__orig_bases__": (base,),
            "apply": lambda self, state, event: state,
            "receive": Account.receive,
        }
        | ({} if state is None else {"initial_state": lambda self: None}),
    )


@pytest.mark.parametrize("state", [Opaque, dict[str, Opaque], int | Balance | dict[str, int], None])
def test_a_state_that_could_not_be_read_back_is_refused_when_the_class_is_defined(
    state: Any,
) -> None:
    with pytest.raises(InvalidSchema, match="Defined has snapshots"):
        define(state)


@pytest.mark.parametrize("state", [int, Balance, dict[str, Balance], tuple[int, ...], set[str]])
def test_a_state_that_comes_back_is_taken_when_the_class_is_defined(state: Any) -> None:
    assert define(state)


def test_a_state_that_only_a_function_knows_is_found_out() -> None:
    class Local(msgspec.Struct, frozen=True):
        opaque: int = 0

    class Keeper(EventSourced[Local]):
        snapshots = SnapshotPolicy()

        def initial_state(self) -> Local:
            return Local()

        def apply(self, state: Local, event: Any) -> Local:
            return state

        async def receive(self, message: Any) -> Any:
            return self.state

    assert Keeper._definition is not None
    codec = Keeper._definition.state_codec
    assert codec is not None
    assert codec.decode(codec.encode(Local(7))) == Local(7)


def test_a_policy_of_another_type_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(InvalidPolicy, match=r"Defined.snapshots is a SnapshotPolicy, not 500"):
        define(int, 500)


def test_an_actor_that_is_still_abstract_may_leave_its_state_open() -> None:
    class Base(EventSourced[StateT], Generic[StateT]):
        snapshots = SnapshotPolicy()

    with pytest.raises(InvalidSchema):

        class Bad(Base[Opaque]):
            def initial_state(self) -> Opaque:
                return Opaque()


async def test_what_is_saved_says_where_it_belongs() -> None:
    store = InMemoryPersistence()
    await deposit(store, 5)
    (event,) = (await store.read_history(ANN, after_revision=4)).events
    snapshot = (await store.load_snapshot(ANN)).snapshot
    assert isinstance(snapshot, Snapshot)
    assert isinstance(event, PersistedEvent)
    assert (snapshot.actor, snapshot.revision, snapshot.seq) == (ANN, 5, event.seq)
    assert snapshot.store_id == await store.store_id()
    assert msgspec.json.decode(snapshot.state, type=Balance) == Balance(5, 5)
    state = msgspec.Raw(b'{"amount":99,"movements":5}')
    async with store:
        await store.execute(SaveSnapshot(ANN, 5, event.seq or 0, state, 1.0, shape=snapshot.shape))
    assert await look(store) == (99, 5)
