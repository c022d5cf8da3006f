"""An event that an operator has decided to pass over is no part of the state any more."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy, event, upcaster
from papyra.exceptions import InvalidRequest, InvalidSchema, RecoveryFailed, RevisionConflict
from papyra.persistence import EventSkipped, PersistedEvent, SkipEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.snapshots import snapshots_of
from papyra.testing import ManualClock, check_history
from papyra.testing.check_history import HistoryCheckFailed
from tests.eventsourcing.accounts import Account, Deposit, Look, PipelinedAccount

pytestmark = pytest.mark.anyio

ANN = "bank/ann"


class Saved(Account):
    snapshots = SnapshotPolicy(every=5)


def fact(revision: int, name: str = "Deposited", payload: Any = None) -> PersistedEvent:
    payload = {"amount": 10**revision} if payload is None else payload
    return PersistedEvent("bank", ANN, name, payload, 1.0, revision=revision)


def unknown(revision: int) -> PersistedEvent:
    return fact(revision, "Bitten")


async def store_of(*records: PersistedEvent) -> InMemoryPersistence:
    store = InMemoryPersistence()
    await store.append(*records)
    return store


async def skip(store: PersistenceBackend, revision: int, reason: str) -> EventSkipped:
    """Decide to pass over an event while no system has the store."""
    async with store:
        return await store.execute(SkipEvent(ANN, revision, reason))


async def look(store: PersistenceBackend, kind: type[EventSourced[Any]] = Account) -> Any:
    """Return balance and revision of the account in a new life."""
    async with ActorSystem("bank", persistence=store) as system:
        return await system.spawn(kind, name="ann").ask(Look())


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


# The decision


async def test_a_decision_is_the_next_event_of_the_history() -> None:
    store = await store_of(fact(1), unknown(2), fact(3))
    assert await store.execute(SkipEvent(ANN, 2, "no dog")) == EventSkipped(4, "no dog", True)
    *_, last = (await store.read_history(ANN)).events
    assert (last.revision, last.event_type) == (4, "papyra.event_skipped")
    assert (last.system_id, last.payload) == ("bank", {"revision": 2, "reason": "no dog"})


async def test_a_second_decision_about_an_event_stores_nothing() -> None:
    store = await store_of(fact(1), unknown(2), fact(3))
    await store.execute(SkipEvent(ANN, 2, "no dog"))
    again = await store.execute(SkipEvent(ANN, 2, "no cat"))
    assert again == EventSkipped(4, "no dog", False)
    assert len((await store.read_history(ANN)).events) == 4


@pytest.mark.parametrize("revision", [4, 5, 10**14 - 1])
async def test_a_decision_about_no_event_or_about_a_decision_is_refused(revision: int) -> None:
    store = await store_of(fact(1), unknown(2), fact(3))
    await store.execute(SkipEvent(ANN, 2, "no dog"))
    with pytest.raises(InvalidRequest, match=str(revision)):
        await store.execute(SkipEvent(ANN, revision, "why not"))
    with pytest.raises(InvalidRequest, match="bank/bob"):
        await store.execute(SkipEvent("bank/bob", 1, "why not"))
    assert len((await store.read_history(ANN)).events) == 4


@pytest.mark.parametrize(
    ("actor", "revision", "reason"),
    [
        (b"bank", 1, "x"),
        (ANN, 0, "x"),
        (ANN, True, "x"),
        (ANN, 10**14, "x"),
        (ANN, 1, ""),
        (ANN, 1, " \n"),
        (ANN, 1, "x" * 1001),
        (ANN, 1, None),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(actor: Any, revision: Any, reason: Any) -> None:
    with pytest.raises(InvalidRequest):
        SkipEvent(actor, revision, reason)


async def test_a_decision_survives_retention_and_compaction() -> None:
    store = await store_of(fact(1), unknown(2), fact(3))
    await store.execute(SkipEvent(ANN, 2, "no dog"))
    await store.compact(RetentionPolicy(max_records=1))
    assert await look(store) == (1010, 4)


@pytest.mark.parametrize("name", ["papyra.event_skipped", "papyra.", "papyra.base"])
def test_names_that_are_papyras_own_are_refused(name: str) -> None:
    with pytest.raises(InvalidSchema, match="Papyra's own"):
        event(name)
    with pytest.raises(InvalidSchema, match="Papyra's own"):
        upcaster(name, from_version=1)
    with pytest.raises(InvalidSchema, match="Papyra's own"):
        upcaster("Deposited", from_version=1, to=name)
    event("papyrus")


# The recovery


async def test_a_recovery_passes_over_an_event_that_cannot_be_decoded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = await store_of(fact(1), unknown(2), fact(3))
    with pytest.raises(RecoveryFailed):
        await look(store)
    await skip(store, 2, "no dog")
    caplog.clear()
    assert await look(store) == (1010, 4)
    (line,) = warnings(caplog)
    assert ANN in line
    assert "revision 2" in line
    assert "no dog" in line
    (said,) = [each for each in store.events if each.event_type == "ActorRecoveredWithout"]
    assert (said.actor_address, said.payload) == (ANN, {"revisions": [2]})


async def test_a_recovery_without_decisions_reads_the_history_once() -> None:
    store = await store_of(fact(1), fact(2), fact(3))
    reads = store.metrics.reads
    assert await look(store) == (1110, 3)
    assert store.metrics.reads == reads + 1
    assert "ActorRecoveredWithout" not in {each.event_type for each in store.events}


async def test_a_decision_wins_over_an_event_that_is_fine() -> None:
    store = await store_of(fact(1), fact(2), fact(3))
    await skip(store, 2, "paid twice")
    assert await look(store) == (1010, 4)


async def test_a_first_and_a_last_event_can_be_passed_over() -> None:
    store = await store_of(fact(1), unknown(2))
    await skip(store, 2, "no dog")
    await skip(store, 1, "paid twice")
    assert await look(store) == (0, 4)


async def test_an_event_that_cannot_be_applied_can_be_passed_over() -> None:
    store = await store_of(fact(1), fact(2, payload={"amount": "many"}), fact(3))
    await skip(store, 2, "no number")
    assert await look(store) == (1010, 4)


async def test_what_is_still_in_the_way_fails_the_recovery() -> None:
    store = await store_of(fact(1), unknown(2), unknown(3), fact(4))
    await skip(store, 2, "no dog")
    with pytest.raises(RecoveryFailed) as failed:
        await look(store)
    assert failed.value.revision == 3
    await skip(store, 3, "no dog either")
    assert await look(store) == (10_010, 6)


async def test_a_missing_revision_can_be_passed_over() -> None:
    store = InMemoryPersistence()
    await store.restore(*(fact_at(revision) for revision in (1, 4, 5)))
    with pytest.raises(RecoveryFailed, match="revision 2 is missing"):
        await look(store)
    await skip(store, 2, "lost with the disk")
    with pytest.raises(RecoveryFailed, match="revision 3 is missing"):
        await look(store)
    await skip(store, 3, "lost with the disk")
    assert await look(store) == (110_010, 7)


def fact_at(revision: int) -> PersistedEvent:
    return PersistedEvent(
        "bank", ANN, "Deposited", {"amount": 10**revision}, 1.0, revision, revision
    )


async def test_a_decision_far_behind_is_found_page_by_page() -> None:
    store = await store_of(unknown(1), *(fact(n, payload={"amount": 1}) for n in range(2, 2502)))
    await skip(store, 1, "no dog")
    await skip(store, 1500, "paid twice")
    assert await look(store) == (2499, 2503)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {"revision": 1},
        {"revision": "1", "reason": "x"},
        {"revision": 0, "reason": "x"},
        {"revision": 3, "reason": "x"},
        {"revision": 4, "reason": "x"},
        ["papyra"],
    ],
)
async def test_what_only_looks_like_a_decision_fails_the_recovery_until_it_is_passed_over(
    payload: Any,
) -> None:
    store = InMemoryPersistence()
    await store.append(fact(1), fact(2))
    await store.append(
        PersistedEvent("bank", ANN, "papyra.event_skipped", payload, 1.0, revision=3)
    )
    with pytest.raises(RecoveryFailed, match=r"papyra\.event_skipped"):
        await look(store)
    await skip(store, 3, "not written by Papyra")
    assert await look(store) == (110, 4)


# Snapshots


async def test_a_snapshot_that_an_event_is_part_of_is_not_believed_once_that_is_passed_over() -> (
    None
):
    store = await store_of(*(fact(n, payload={"amount": 10**n}) for n in range(1, 8)))
    assert await look(store, Saved) == (11_111_110, 7)
    assert await snapshots_of(store.store).snapshot_revisions(ANN) == [7]
    await skip(store, 6, "paid twice")
    assert await look(store, Saved) == (10_111_110, 8)
    # Saved after the decision, so that one is part of it.
    assert 8 in await snapshots_of(store.store).snapshot_revisions(ANN)
    reads = store.metrics.reads
    assert await look(store, Saved) == (10_111_110, 8)
    assert store.metrics.reads == reads + 1


async def test_a_snapshot_before_the_event_is_still_believed() -> None:
    store = await store_of(*(fact(n) for n in range(1, 6)))
    assert await look(store, Saved) == (111_110, 5)
    async with store:
        await store.append(unknown(6), fact(7))
    await skip(store, 6, "no dog")
    loaded = store.metrics.snapshots_loaded
    assert await look(store, Saved) == (10_111_110, 8)
    assert store.metrics.snapshots_loaded > loaded


# Actors that are awake


@pytest.mark.parametrize("kind", [Account, PipelinedAccount])
async def test_an_actor_that_is_awake_learns_of_it_when_it_persists(kind: type[Account]) -> None:
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(kind, name="ann")
        for amount in (1, 10, 100):
            await account.ask(Deposit(amount))
        await store.execute(SkipEvent(ANN, 2, "paid twice"))
        with pytest.raises(RevisionConflict):
            await account.ask(Deposit(1000))
        assert await account.ask(Look()) == (101, 4)
        assert await account.ask(Deposit(1000)) == 1101
    assert await look(store) == (1101, 5)


async def test_an_actor_whose_recovery_failed_comes_back_by_itself() -> None:
    store, clock = await store_of(fact(1), unknown(2), fact(3)), ManualClock()
    async with ActorSystem("bank", persistence=store, clock=clock) as system:
        account = system.spawn(Account, name="ann")
        with pytest.raises(RecoveryFailed):
            await account.ask(Look())
        await store.execute(SkipEvent(ANN, 2, "no dog"))
        await clock.advance(60)
        assert await account.ask(Look()) == (1010, 4)


async def test_many_decisions_in_an_adverse_order_do_not_make_a_recovery_endless() -> None:
    store = await store_of(*(fact(n, payload={"amount": 1}) for n in range(1, 31)))
    for revision in range(30, 0, -1):
        await store.execute(SkipEvent(ANN, revision, "paid twice"))
    with anyio.fail_after(60):
        assert await look(store) == (0, 60)
    assert store.metrics.reads < 200


# The testing kit


async def test_a_check_of_stored_histories_goes_by_decisions() -> None:
    store = await store_of(fact(1), unknown(2), fact(3))
    async with store:
        with pytest.raises(HistoryCheckFailed):
            await check_history(store, Account)
        await store.execute(SkipEvent(ANN, 2, "no dog"))
        assert (await check_history(store, Account)).events == 4


async def test_no_base_is_made_of_a_snapshot_that_holds_what_is_skipped(tmp_path: Path) -> None:
    store = JsonFilePersistence(tmp_path / "bank.ndjson")
    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(Saved, name="ann")
        for exponent in range(12):  # snapshots 5 and 10
            await account.ask(Deposit(10**exponent))
    await skip(store, 3, "paid twice")
    trim = RetentionPolicy(max_records=1, trim_histories=True)
    async with store:
        report = await store.compact(trim)
    assert report.histories is not None
    assert (report.histories.trimmed, report.histories.without_snapshots) == (0, 1)
    assert await look(store, Saved) == (111_111_111_011, 13)

    async with ActorSystem("bank", persistence=store) as system:
        account = system.spawn(Saved, name="ann")
        for _ in range(12):  # two more snapshots, of what is left
            await account.ask(Deposit(10**12))
    async with store:
        report = await store.compact(trim)
        assert report.histories is not None
        assert report.histories.trimmed == 1
    assert await look(store, Saved) == (12_111_111_111_011, 25)
