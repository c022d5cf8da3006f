"""Positions hold on to records: stores that were replaced, cut off or compacted are noticed."""

from __future__ import annotations

from pathlib import Path

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import Limits, RetentionPolicy
from papyra.projections import Projection, SQLiteView
from tests.projections.balances import (
    Balances,
    Deposited,
    Deposits,
    balances_in,
    in_state,
    looking,
    row,
    store_something_else,
)
from tests.projections.conftest import NewSystem


async def test_another_store_pauses_it(path: Path) -> None:
    for number in range(2):
        store = InMemoryPersistence()
        async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
            last = await Deposits(system).add(1, 2, 4)
            runner = system.project(Balances(SQLiteView(path)))
            if number == 0:
                await runner.wait_for(last, timeout=60)
                continue
            await in_state(runner, "paused")
            assert "StoreReplaced: this is store" in runner.status.error
            assert balances_in(path) == {"ann": 7}


async def test_a_store_that_lost_its_end_and_has_other_events_there_pauses_it(
    tmp_path: Path, path: Path
) -> None:
    """As Redis after a crash with ``appendfsync everysec``."""
    file = tmp_path / "store.ndjson"
    async with system_on(file) as system:
        await Deposits(system).add(1)
    kept = file.read_bytes()
    async with system_on(file) as system:
        runner = system.project(Balances(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(2), timeout=60)
    file.write_bytes(kept)
    async with system_on(file) as system:
        await Deposits(system).add(100, 200, 400)
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "paused")
        assert "StoreReplaced: another record is at position" in runner.status.error
        assert balances_in(path) == {"ann": 3}


async def test_a_position_from_the_future_pauses_it(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
    with looking(path) as view, view:
        view.execute("UPDATE papyra_projections SET position = 1000")
    async with new_system() as system:
        await Deposits(system).add(2)
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "paused")
        assert "StoreReplaced: the store ends at" in runner.status.error
        assert balances_in(path) == {"ann": 1}


async def test_a_store_that_was_compacted_past_the_position_pauses_it_and_skip_goes_on(
    tmp_path: Path, path: Path
) -> None:
    file = tmp_path / "store.ndjson"

    class Others(Projection):
        name = "balances"
        types = ("Other",)

        def setup(self, tx: object) -> None:
            pass

        def handle(self, received: object, tx: object) -> None:
            pass

    async with system_on(file) as system:
        runner = system.project(Others(SQLiteView(path)))
        await runner.wait_for(await store_something_else(system), timeout=60)
    async with system_on(file) as system:
        for _ in range(5):
            last = await store_something_else(system)
        await system.backend.compact(RetentionPolicy(max_records=2))
        runner = system.project(Others(SQLiteView(path)))
        await in_state(runner, "paused")
        assert "EventsCompacted: the positions from 3 to 5 were removed" in runner.status.error
        await runner.skip()
        await runner.wait_for(last, timeout=60)
        assert row(path, "is_paused") == (0,)


class Trimmed(EventSourced[int]):
    events = (Deposited,)
    snapshots = SnapshotPolicy(every=2, keep=2)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Deposited) -> int:
        return state + event.amount

    async def receive(self, amount: int) -> int:
        await self.persist(Deposited(amount))
        return self.state


async def test_a_history_whose_beginning_was_removed_is_an_event_that_cant_be_handled(
    tmp_path: Path, path: Path
) -> None:
    file = tmp_path / "store.ndjson"
    async with system_on(file) as system:
        account = system.entity(Trimmed, "ann")
        for _ in range(9):
            await account.ask(1)
        policy = RetentionPolicy(events=Limits(max_records=1), trim_histories=True)
        while not (await system.backend.compact(policy)).kinds["event"].records_after < 9:
            await account.ask(1)
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "paused")
        assert "EventsCompacted: the events of bank/Trimmed/ann up to" in runner.status.error
        await runner.skip()
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert 0 < balances_in(path)["ann"] < 9


def system_on(file: Path) -> ActorSystem:
    """Return a system whose store is in a file."""
    return ActorSystem("bank", persistence=JsonFilePersistence(file), audit_interval=None)
