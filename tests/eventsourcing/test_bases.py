"""A history whose beginning was removed begins with its base, and adds up to the same."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest

from papyra.eventsourcing import EventSourced, SnapshotPolicy, event, upcaster
from papyra.exceptions import InvalidPolicy, InvalidSchema, RecoveryFailed
from papyra.persistence import Compact, PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.retention import RetentionPolicy
from papyra.testing import CrashRun, crash_everywhere
from tests.eventsourcing.accounts import Account, Balance, Deposit, Deposited, Look
from tests.eventsourcing.test_snapshots import ANN, Saved, bank, deposit, look, saved
from tests.testing.shelf import Disk, Shelf

pytestmark = pytest.mark.anyio


def a_base(revision: int, state: object, /, version: int = 1, **changes: Any) -> PersistedEvent:
    payload = {"state": state, "version": version, "shape": "", "timestamp": 1.0, "checksum": ""}
    return PersistedEvent(
        "bank", ANN, "papyra.base", payload | changes, 1.0, seq=revision, revision=revision
    )


def a_deposit(revision: int) -> PersistedEvent:
    return PersistedEvent(
        *("bank", ANN, "Deposited", {"amount": 1}, 1.0), seq=revision, revision=revision
    )


async def a_store(*records: PersistedEvent) -> InMemoryPersistence:
    store = InMemoryPersistence()
    await store.restore(*records)
    return store


STATE = {"amount": 70, "movements": 9}


class Unsaved(Account):
    """It takes no snapshots."""


@pytest.mark.parametrize("kind", [Saved, Unsaved])
async def test_a_history_may_begin_with_a_base(kind: type[Account]) -> None:
    store = await a_store(a_base(9, STATE), a_deposit(10), a_deposit(11))
    assert await look(store, kind) == (72, 11)
    await deposit(store, 2, kind)
    assert await look(store, kind) == (74, 13)


async def test_a_base_may_be_all_that_there_is_of_a_history() -> None:
    store = await a_store(a_base(9, STATE))
    assert await look(store) == (70, 9)
    assert await saved(store) == [9], "it is long enough for a snapshot"
    await deposit(store, 1)
    assert await look(store) == (71, 10)
    assert store.metrics.snapshots_passed_over == 0


@pytest.mark.parametrize("left", [(1,), (1, 2, 3), tuple(range(1, 9))])
async def test_what_is_left_before_a_base_changes_nothing(left: tuple[int, ...]) -> None:
    store = await a_store(*map(a_deposit, left), a_base(9, STATE), a_deposit(10))
    assert await look(store) == (71, 10)


@pytest.mark.parametrize(
    ("records", "revision"),
    [
        ([a_deposit(2)], 1),
        ([a_base(9, STATE), a_deposit(11)], 10),
        ([a_deposit(1), a_deposit(3), a_base(9, STATE)], 2),
    ],
)
async def test_a_history_with_a_hole_is_not_recovered(
    records: list[PersistedEvent], revision: int
) -> None:
    with pytest.raises(RecoveryFailed, match=f"revision {revision} is missing"):
        await look(await a_store(*records))


async def test_a_base_that_comes_too_late_is_a_revision_that_is_doubled() -> None:
    late = msgspec.structs.replace(a_base(2, STATE), seq=4)
    with pytest.raises(RecoveryFailed, match="revision 2 is doubled"):
        await look(await a_store(a_deposit(1), a_deposit(2), a_deposit(3), late))


# Bases of other versions


async def fails(store: PersistenceBackend, kind: type[EventSourced[Any]]) -> RecoveryFailed:
    with pytest.raises(RecoveryFailed) as caught:
        await look(store, kind)
    assert (caught.value.actor, caught.value.revision) == (ANN, 9)
    assert caught.value.event_type == "papyra.base"
    return caught.value


@pytest.mark.parametrize(
    ("state", "version", "why"),
    [
        (STATE, 2, "version 2, and it is newer than 1"),
        ({"amount": "much"}, 1, "can't be read"),
        (None, 1, "can't be read"),
    ],
)
async def test_a_base_that_can_not_be_read_is_named_and_not_passed_over(
    state: object, version: int, why: str
) -> None:
    store = await a_store(a_base(9, state, version), a_deposit(10))
    assert why in str(await fails(store, Saved))


async def test_what_only_looks_like_a_base_is_named() -> None:
    store = await a_store(msgspec.structs.replace(a_base(9, STATE), payload=[1]))
    assert "the base of a history can't be read" in str(await fails(store, Saved))


async def test_a_base_of_an_older_version_has_to_be_upcast() -> None:
    class Second(Saved):
        snapshots = SnapshotPolicy(every=5, version=2)

    store = await a_store(a_base(9, STATE), a_deposit(10))
    assert "this reads 2, and there is no upcast" in str(await fails(store, Second))


async def test_a_base_is_upcast_by_the_policy() -> None:
    asked: list[tuple[Any, int]] = []

    def upcast(state: Any, from_version: int) -> Any:
        asked.append((state, from_version))
        return {"amount": state["euros"] * 100, "movements": 9}

    class Cents(Saved):
        snapshots = SnapshotPolicy(every=5, version=3, upcast=upcast)

    store = await a_store(a_base(9, {"euros": 7}, 2), a_deposit(10))
    assert await look(store, Cents) == (701, 10)
    assert asked == [({"euros": 7}, 2)]


async def test_a_base_of_another_shape_is_upcast_if_it_can_not_be_read_as_it_is() -> None:
    class Shaped(Saved):
        snapshots = SnapshotPolicy(
            every=5, upcast=lambda state, _: {"amount": state, "movements": 0}
        )

    assert await look(await a_store(a_base(9, 7)), Shaped) == (7, 9)
    assert await look(await a_store(a_base(9, STATE)), Shaped) == (70, 9)


@pytest.mark.parametrize("made", [None, "much", object(), {"amount": float("nan")}])
async def test_an_upcast_that_makes_no_state_is_named(made: object) -> None:
    class Odd(Saved):
        snapshots = SnapshotPolicy(every=5, version=2, upcast=lambda state, version: made)

    store = await a_store(a_base(9, STATE))
    assert "upcast from it failed" in str(await fails(store, Odd))


async def test_an_upcast_that_raises_is_named() -> None:
    def upcast(state: Any, from_version: int) -> Any:
        raise LookupError("what euros?")

    class Odd(Saved):
        snapshots = SnapshotPolicy(every=5, version=2, upcast=upcast)

    assert "LookupError: what euros?" in str(await fails(await a_store(a_base(9, STATE)), Odd))


async def test_a_class_that_does_not_say_its_state_reads_no_base() -> None:
    class Silent(EventSourced[Any]):
        events = (Deposited,)

        def initial_state(self) -> Any:
            return Balance()

        def apply(self, state: Any, event: Any) -> Any:
            return state

        async def receive(self, message: Any) -> Any:
            return self.state

    assert "say what Silent.initial_state returns" in str(
        await fails(await a_store(a_base(9, STATE)), Silent)
    )


def test_an_upcast_is_a_function() -> None:
    with pytest.raises(InvalidPolicy, match=r"SnapshotPolicy\.upcast is a function, not 1"):
        SnapshotPolicy(upcast=1)  # type: ignore[arg-type]


def test_names_that_papyra_keeps_for_itself_are_refused() -> None:
    for name in ("papyra.base", "papyra."):
        with pytest.raises(InvalidSchema, match=r"'papyra\.'"):
            event(name)
        with pytest.raises(InvalidSchema, match=r"'papyra\.'"):
            upcaster(name, 1)
        with pytest.raises(InvalidSchema, match=r"'papyra\.'"):
            upcaster("Opened", 1, to=name)
    event("papyra")


async def test_an_account_goes_on_from_a_base_in_one_life() -> None:
    store = await a_store(a_base(9, STATE))
    async with bank(store) as system:
        account = system.spawn(Saved, name="ann")
        assert await account.ask(Deposit(5)) == 75
        assert await account.ask(Look()) == (75, 10)


# Crashes


TRIM = RetentionPolicy(max_records=1, trim_histories=True)


class Tidy(msgspec.Struct, frozen=True):
    """Have the store compacted, and histories trimmed."""


class Tidying(Account):
    snapshots = SnapshotPolicy(every=2)

    async def receive(self, message: Any) -> Any:
        if message == Tidy():
            return await self.context.persistence.ask(Compact(TRIM))
        return await super().receive(message)


async def test_an_actor_that_crashes_anywhere_around_a_trimming_keeps_its_balance() -> None:
    disk = Disk()
    await deposit(Shelf(disk), 7, Tidying)
    report = await Shelf(disk).compact(TRIM)
    assert report.histories is not None
    assert report.histories.trimmed == 1

    async def check(run: CrashRun) -> None:
        own = [fact for fact in run.facts if isinstance(fact, PersistedEvent) and fact.revision]
        begun = [at for at, each in enumerate(own) if each.event_type == "papyra.base"]
        amount = own[begun[-1]].payload["state"]["amount"]
        amount += sum(each.payload["amount"] for each in own[begun[-1] + 1 :])
        assert await run.ref.ask(Look()) == (amount, own[-1].revision)
        acknowledged = [each for each in run.acknowledged if isinstance(each, Deposit)]
        assert amount >= 7 + sum(each.amount for each in acknowledged)

    crashes = await crash_everywhere(
        lambda system: system.spawn(Tidying, name="ann"),
        [Deposit(100), Deposit(1000), Tidy(), Deposit(10_000)],
        check,
        persistence=lambda: Shelf(copy.deepcopy(disk)),
        system_id="bank",
    )
    assert len(crashes.points) > 20
