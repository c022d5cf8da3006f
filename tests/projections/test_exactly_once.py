"""A projection into SQLite: each event has its effect once, over batches, restarts and crashes."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from papyra import ActorSystem
from papyra.exceptions import ProjectionBehind, ProjectionStopped
from papyra.persistence.records import PersistedEvent
from papyra.projections import Skip, SQLiteView
from papyra.projections.sqlite import SQLiteDatabase
from papyra.testing import ManualClock
from tests.extent import some
from tests.projections.balances import (
    Balances,
    Deposited,
    Deposits,
    balances_in,
    in_state,
    let_the_lease_run_out,
    looking,
    row,
    store_something_else,
    until,
)
from tests.projections.conftest import NewSystem


async def test_past_events_and_those_to_come_are_in_the_view(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        deposits = Deposits(system)
        await deposits.add(1, 2, 3)
        runner = system.project(Balances(SQLiteView(path)))
        await deposits.add(10, account="bob")
        await runner.wait_for(await deposits.add(4), timeout=60)
        assert balances_in(path) == {"ann": 10, "bob": 10}


async def test_it_goes_on_where_it_was_in_the_next_system(
    new_system: NewSystem, path: Path
) -> None:
    for total in (1, 2, 3):
        async with new_system() as system:
            runner = system.project(Balances(SQLiteView(path)))
            await runner.wait_for(await Deposits(system).add(1), timeout=60)
            assert balances_in(path) == {"ann": total}


async def test_events_are_handled_in_one_transaction_up_to_the_size_of_a_batch(
    new_system: NewSystem, path: Path
) -> None:
    class Small(Balances):
        name = "balances"
        batch_size = 10

    async with new_system() as system:
        last = await Deposits(system).add(*range(95))
        runner = system.project(Small(SQLiteView(path)))
        await runner.wait_for(last, timeout=60)
        assert (runner.status.commits, runner.status.handled) == (10, 95)


class Withdrawn(msgspec.Struct, frozen=True):
    amount: int


@pytest.mark.parametrize("odd", [None, "an unknown type", "an older version", "a wrong payload"])
async def test_events_of_several_classes_are_handled_in_the_order_of_their_positions(
    new_system: NewSystem, path: Path, odd: str | None
) -> None:
    handled = []

    class Both(Balances):
        name = "balances"
        events = (Deposited, Withdrawn)
        on_error = Skip()

        def handle(self, received: Any, tx: Any) -> None:
            del tx
            handled.append((received.seq, received.event, received.record.payload["amount"]))

    async with new_system() as system:
        classes = (Deposited, Deposited, Withdrawn, Deposited, Withdrawn)
        for number, event_class in enumerate(classes, 1):
            record = PersistedEvent(
                *("bank", "bank/Account/ann", event_class.__name__, event_class(number), 1.0),
                revision=number,
            )
            if number == 3 and odd == "an unknown type":
                record = msgspec.structs.replace(record, event_type="Closed")
            if number == 3 and odd == "an older version":
                record = msgspec.structs.replace(record, event_version=2)
            if number == 3 and odd == "a wrong payload":
                record = msgspec.structs.replace(record, payload={"amount": "much"})
            await system.backend.append(record)
        first = system.backend.last_seq - len(classes)
        runner = system.project(Both(SQLiteView(path)))
        await runner.wait_for(system.backend.last_seq, timeout=60)
    assert handled[-4 if odd else -5 :] == [
        (first + number, event_class(number), number)
        for number, event_class in enumerate(classes, 1)
        if odd is None or number != 3
    ]


async def test_a_transaction_takes_no_more_events_once_it_is_old(
    new_system: NewSystem, path: Path
) -> None:
    class Slow(Balances):
        name = "balances"
        batch_seconds = 1e-9

    async with new_system() as system:
        last = await Deposits(system).add(*range(7))
        runner = system.project(Slow(SQLiteView(path)))
        await runner.wait_for(last, timeout=60)
        assert runner.status.commits == 7


async def test_all_of_a_projection_runs_on_one_thread_that_is_not_the_event_loops(
    new_system: NewSystem, path: Path
) -> None:
    threads = set()

    class Watching(Balances):
        name = "balances"

        def handle(self, received: Any, tx: Any) -> None:
            threads.add(threading.current_thread())
            super().handle(received, tx)

    async with new_system() as system:
        runner = system.project(Watching(SQLiteView(path)))
        for amount in range(3):
            await runner.wait_for(await Deposits(system).add(amount), timeout=60)
        assert len(threads) == 1
        assert threading.current_thread() not in threads


async def test_reading_ones_own_writes_also_waits_for_what_the_projection_is_not_told(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        other = await store_something_else(system)
        await runner.wait_for(other, timeout=60)
        assert runner.status.lag == 0


async def test_what_is_not_for_it_moves_its_position_in_the_view_in_the_end(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        other = await store_something_else(system)
        await until(lambda: row(path, "position")[0] >= other)


async def test_waiting_for_a_position_that_is_not_reached_ends_by_the_systems_clock(
    store: Any, path: Path
) -> None:
    clock = ManualClock()
    async with ActorSystem("bank", persistence=store, clock=clock) as system:
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "running")
        behind: list[str] = []

        async def wait() -> None:
            with pytest.raises(ProjectionBehind, match="and 1000 was waited for") as raised:
                await runner.wait_for(1000, timeout=5)
            behind.append(str(raised.value))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await clock.advance(4.9)
            assert not behind
            await clock.advance(0.2)
        assert behind


async def test_waiting_for_a_paused_projection_raises_at_once(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "running")
        await runner.pause("for the test")
        with pytest.raises(ProjectionStopped, match=r"paused at position .*for the test"):
            await runner.wait_for(1000)


async def test_the_position_is_written_with_what_holds_on_to_the_record_there(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        last = await Deposits(system).add(1)
        await runner.wait_for(last, timeout=60)
        seq, kind, checksum, version, owner = row(
            path, "record_seq, record_kind, record_checksum, version, owner"
        )
        assert (seq, kind, version) == (last, "event", 1)
        assert checksum
        assert owner
    assert row(path, "owner") == (None,)  # nobody has to wait for the lease


class ImagedView(SQLiteView):
    """Keeps what a crash would leave before each statement: the database and its log."""

    def __init__(self, path: Path, images: Path) -> None:
        super().__init__(path)
        self.images = images
        self.count = 0

    def database(self) -> SQLiteDatabase:
        view = self

        class Imaged(SQLiteDatabase):
            def open(self, *, to_read: bool = False) -> None:
                super().open(to_read=to_read)
                self.connection.set_trace_callback(view.image)

        return Imaged(Path(self.location), 5.0)

    def image(self, statement: str) -> None:
        del statement
        folder = self.images / str(self.count)
        folder.mkdir()
        # By another process: closing a file here would let go of SQLite's locks on it.
        files = [str(file) for file in Path(self.location).parent.glob("views.db*")]
        subprocess.run(["cp", *files, str(folder)], check=True)
        self.count += 1


async def test_after_a_crash_at_any_statement_each_event_counts_once(
    new_system: NewSystem, path: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    view = ImagedView(path, images)
    async with new_system() as system:
        deposits = Deposits(system)
        await deposits.add(1, 2)
        runner = system.project(Balances(view))
        await runner.wait_for(await deposits.add(3), timeout=60)
    assert view.count > 15
    for number in some(range(view.count), every=3):
        image = images / str(number) / "views.db"
        let_the_lease_run_out(image)
        async with new_system() as system:
            runner = system.project(Balances(SQLiteView(image)))
            await runner.wait_for(system.backend.last_seq, timeout=60)
        assert balances_in(image) == {"ann": 6}, number
        with looking(image) as left:
            assert left.execute("SELECT count(*) FROM seen").fetchone() == (3,)
