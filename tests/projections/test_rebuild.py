"""Rebuilds beside the live view, and side effects, which are for what is new."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from papyra.exceptions import InvalidProjection, ProjectionStopped
from papyra.projections import Pause, Projection, SQLiteView
from tests.projections.balances import (
    Balances,
    Deposited,
    Deposits,
    balances_in,
    in_state,
    looking,
    row,
    types_of,
    until,
)
from tests.projections.conftest import NewSystem


class Built(Projection):
    name = "balances"
    events = (Deposited,)
    tables = ("balances",)
    factor = 1

    def __init__(self, view: SQLiteView) -> None:
        super().__init__(view)
        self.lived: list[int] = []

    def setup(self, tx: Any) -> None:
        tx.execute(f"CREATE TABLE {self.table('balances')} (account TEXT PRIMARY KEY, amount)")

    def handle(self, received: Any, tx: Any) -> None:
        tx.execute(
            f"INSERT INTO {self.table('balances')} VALUES (?, ?)"
            " ON CONFLICT (account) DO UPDATE SET amount = amount + excluded.amount",
            (received.actor, received.event.amount * self.factor),
        )

    def live(self, received: Any) -> None:
        self.lived.append(received.event.amount)


async def test_a_rebuild_takes_over_with_all_events_in_it(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        deposits = Deposits(system)
        projection = Built(SQLiteView(path))
        runner = system.project(projection)
        await runner.wait_for(await deposits.add(1, 2), timeout=60)
        projection.factor = 10
        await runner.rebuild()
        assert balances_in(path) == {"ann": 30}
        await runner.wait_for(await deposits.add(4), timeout=60)
        assert balances_in(path) == {"ann": 70}
        assert row(path, "state, is_live", 1) == ("retired", 0)
        assert row(path, "state, is_live", 2) == ("running", 1)
        assert "ProjectionRebuilt" in types_of(await system.backend.list_events())
        await runner.drop_old()
        with looking(path) as view:
            tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'bal%'"
            assert view.execute(tables).fetchall() == [("balances_2",)]


async def test_the_live_build_is_read_and_goes_on_while_the_next_is_built(
    new_system: NewSystem, path: Path
) -> None:
    waits, goes_on = threading.Event(), threading.Event()

    class Slow(Built):
        name = "balances"

        def handle(self, received: Any, tx: Any) -> None:
            if self.table("balances") == "balances_2" and not goes_on.is_set():
                # Without a transaction of its own in the way: this is before its first write.
                waits.set()
                raise RuntimeError("not yet")
            super().handle(received, tx)

    async with new_system() as system:
        deposits = Deposits(system)
        runner = system.project(Slow(SQLiteView(path)))
        await runner.wait_for(await deposits.add(1), timeout=60)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.rebuild)
            await until(waits.is_set)
            await runner.wait_for(await deposits.add(2), timeout=60)
            assert balances_in(path) == {"ann": 3}
            assert runner.status.rebuilding is not None
            goes_on.set()
        assert balances_in(path) == {"ann": 3}
        assert row(path, "is_live", 2) == (1,)


async def test_a_rebuild_that_was_interrupted_goes_on_in_the_next_system(
    new_system: NewSystem, path: Path
) -> None:
    class Failing(Built):
        name = "balances"
        fails = True

        def handle(self, received: Any, tx: Any) -> None:
            if self.fails and self.table("balances") == "balances_2":
                raise RuntimeError("not yet")
            super().handle(received, tx)

    async with new_system() as system:
        runner = system.project(Failing(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.rebuild)
            await until(lambda: runner.status.rebuilding is not None)
            tasks.cancel_scope.cancel()
    async with new_system() as system:
        projection = Failing(SQLiteView(path))
        projection.fails = False
        runner = system.project(projection)
        await until(lambda: row(path, "is_live", 2) == (1,))
        await runner.wait_for(await Deposits(system).add(2), timeout=60)
        assert balances_in(path) == {"ann": 3}


async def test_a_greater_version_is_built_beside_the_live_one_and_takes_over(
    new_system: NewSystem, path: Path
) -> None:
    class Newer(Built):
        name, version = "balances", 2
        factor = 100

    async with new_system() as system:
        runner = system.project(Built(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(1, 2), timeout=60)
    async with new_system() as system:
        runner = system.project(Newer(SQLiteView(path)))
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert balances_in(path) == {"ann": 300}
        assert row(path, "version, is_live", 2) == (2, 1)


async def test_a_rebuild_that_cant_handle_an_event_says_so_and_the_old_one_stays(
    new_system: NewSystem, path: Path
) -> None:
    class Failing(Built):
        name = "balances"
        on_error = Pause()

        def handle(self, received: Any, tx: Any) -> None:
            if self.table("balances") == "balances_2":
                raise RuntimeError("not so")
            super().handle(received, tx)

    async with new_system() as system:
        runner = system.project(Failing(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        with pytest.raises(ProjectionStopped, match=r"the new build is paused: .*not so"):
            await runner.rebuild()
        await runner.wait_for(await Deposits(system).add(2), timeout=60)
        assert balances_in(path) == {"ann": 3}


async def test_without_tables_there_is_no_rebuild(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "running")
        with pytest.raises(InvalidProjection, match="it names no tables"):
            await runner.rebuild()


async def test_side_effects_are_for_new_events_and_not_for_rebuilds(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        deposits = Deposits(system)
        await deposits.add(1, 2)
        projection = Built(SQLiteView(path))
        runner = system.project(projection)
        await in_state(runner, "running")
        await runner.wait_for(await deposits.add(4), timeout=60)
        await until(lambda: projection.lived == [4])
        await runner.rebuild()
        await runner.wait_for(await deposits.add(8), timeout=60)
        await until(lambda: projection.lived == [4, 8])


async def test_side_effects_of_events_that_came_while_nobody_ran_are_made_up_for(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        await in_state(system.project(Built(SQLiteView(path))), "running")
    async with new_system() as system:
        await Deposits(system).add(1)
        projection = Built(SQLiteView(path))
        system.project(projection)
        await until(lambda: projection.lived == [1])


async def test_side_effects_that_fail_pause_it_and_are_tried_again_when_told(
    new_system: NewSystem, path: Path
) -> None:
    class Mailing(Built):
        name = "balances"
        on_error = Pause()
        is_down = True

        async def live(self, received: Any) -> None:  # type: ignore[override]
            await anyio.lowlevel.checkpoint()
            if self.is_down:
                raise ConnectionError("no mail today")
            self.lived.append(received.event.amount)

    async with new_system() as system:
        projection = Mailing(SQLiteView(path))
        runner = system.project(projection)
        await in_state(runner, "running")
        await Deposits(system).add(5)
        await in_state(runner, "paused")
        assert "no mail today" in runner.status.error
        projection.is_down = False
        await runner.retry()
        await until(lambda: projection.lived == [5])
        assert balances_in(path) == {"ann": 5}
