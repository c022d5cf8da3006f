"""One runner of a name at a time: stand-bys, take-overs, and operators in other processes."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from papyra import ActorSystem
from papyra.exceptions import (
    DuplicateProjection,
    InvalidProjection,
    ProjectionOutdated,
    ProjectionStopped,
    SystemNotRunning,
)
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.projections import ProjectionRunner, SQLiteView
from papyra.testing import ManualClock
from tests.projections.balances import (
    Balances,
    Deposits,
    balances_in,
    in_state,
    looking,
    row,
    types_of,
    until,
)
from tests.projections.conftest import NewSystem


async def test_a_second_runner_stands_by_until_the_first_has_ended(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system, anyio.create_task_group() as tasks:
        deposits, view = Deposits(system), SQLiteView(path)
        first, second = (ProjectionRunner(system, Balances(view)) for _ in range(2))
        tasks.start_soon(first.run)
        await first.wait_for(await deposits.add(1), timeout=60)
        tasks.start_soon(second.run)
        await in_state(second, "standby")
        with pytest.raises(ProjectionStopped, match="another runner has it"):
            await second.pause()
        first.stop()
        await second.wait_for(await deposits.add(2), timeout=60)
        assert balances_in(path) == {"ann": 3}
        second.stop()


async def test_of_two_runners_one_of_which_was_paused_past_its_lease_one_writes(
    new_system: NewSystem, path: Path
) -> None:
    is_held, goes_on = threading.Event(), threading.Event()

    class PausedView(SQLiteView):
        """Its process stands still before a transaction, as with SIGSTOP."""

        def database(self) -> Any:
            database = super().database()
            begin = database.transaction

            def transaction() -> Any:
                if is_held.is_set():
                    goes_on.wait(60)
                return begin()

            database.transaction = transaction  # type: ignore[method-assign]
            return database

    async with new_system() as system, anyio.create_task_group() as tasks:
        deposits = Deposits(system)
        sleeper = ProjectionRunner(system, Balances(PausedView(path, lease=0.3)))
        tasks.start_soon(sleeper.run)
        await sleeper.wait_for(await deposits.add(1), timeout=60)
        is_held.set()
        await deposits.add(2, 4)
        runner = ProjectionRunner(system, Balances(SQLiteView(path, lease=0.3)))
        tasks.start_soon(runner.run)
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert balances_in(path) == {"ann": 7}
        goes_on.set()
        await in_state(sleeper, "standby")
        assert balances_in(path) == {"ann": 7}
        with looking(path) as view:
            assert view.execute("SELECT count(*) FROM seen").fetchone() == (3,)
        runner.stop()
        sleeper.stop()


async def test_a_name_that_two_classes_have_is_refused(new_system: NewSystem, path: Path) -> None:
    class Other(Balances):
        name = "balances"

    async with new_system() as system:
        system.project(Balances(SQLiteView(path)))
        with pytest.raises(DuplicateProjection, match="runs already, of Balances: give Other"):
            system.project(Other(SQLiteView(path)))
        assert list(system.projections) == ["balances"]


async def test_a_version_that_goes_down_is_refused(new_system: NewSystem, path: Path) -> None:
    class Newer(Balances):
        name, version = "balances", 2

    async with new_system() as system:
        runner = system.project(Newer(SQLiteView(path)))
        await in_state(runner, "running")
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "paused")
        assert runner.status.error.startswith(ProjectionOutdated.__name__)


async def test_a_setup_that_fails_leaves_nothing_and_is_tried_again_when_told(
    new_system: NewSystem, path: Path
) -> None:
    with looking(path) as view:
        view.execute("CREATE TABLE seen (other)")
    async with new_system() as system:
        last = await Deposits(system).add(1)
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "paused")
        assert "SetupFailed" in runner.status.error
        assert "table seen already exists" in runner.status.error
        with looking(path) as view:
            view.execute("DROP TABLE seen")
            assert view.execute("SELECT * FROM papyra_projections").fetchall() == []
        await runner.retry()
        await runner.wait_for(last, timeout=60)
        assert balances_in(path) == {"ann": 1}


async def test_what_is_asked_for_in_the_view_is_done(new_system: NewSystem, path: Path) -> None:
    view = SQLiteView(path, lease=0.3)
    assert view.read_status() == ()
    assert not view.post("balances", "pause")
    async with new_system() as system:
        runner = system.project(Balances(view))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        for request, state in (("pause", "paused"), ("resume", "running")):
            assert await anyio.to_thread.run_sync(view.post, "balances", request)
            await in_state(runner, state)
            await until(lambda: row(path, "request") == ("",))
        (build,) = view.read_status()
        assert (build.name, build.build, build.version, build.state) == (
            *("balances", 1, 1),
            "running",
        )


async def test_a_request_that_nobody_knows_is_dropped(new_system: NewSystem, path: Path) -> None:
    view = SQLiteView(path, lease=0.3)
    async with new_system() as system:
        runner = system.project(Balances(view))
        await in_state(runner, "running")
        for request in ("dance", "skip x", "pause pause"):
            view.post("balances", request)
            await until(lambda: row(path, "request") == ("",))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)


async def test_a_view_that_is_locked_is_waited_for(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path, busy_timeout=0.01)))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        with looking(path) as view:
            view.isolation_level = None
            view.execute("BEGIN IMMEDIATE")
            last = await Deposits(system).add(2)
            await in_state(runner, "waiting")
            assert "database is locked" in runner.status.error
            view.execute("ROLLBACK")
        await runner.wait_for(last, timeout=60)
        assert balances_in(path) == {"ann": 3}
        assert runner.status.error == ""


async def test_a_view_that_cant_be_opened_is_waited_for(
    new_system: NewSystem, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    path = folder / "views.db"
    async with new_system() as system:
        last = await Deposits(system).add(1)
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "waiting")
        assert "unable to open database file" in runner.status.error
        folder.mkdir()
        await runner.wait_for(last, timeout=60)


async def test_a_view_that_is_down_for_an_hour_is_waited_for_by_the_systems_clock(
    store: InMemoryPersistence, tmp_path: Path
) -> None:
    clock, folder = ManualClock(), tmp_path / "folder"
    async with ActorSystem("bank", persistence=store, clock=clock, audit_interval=None) as system:
        last = await Deposits(system).add(1)
        runner = system.project(Balances(SQLiteView(folder / "views.db")))
        await in_state(runner, "waiting")
        await clock.advance(3600)
        assert runner.status.state == "waiting"
        assert runner.status.lag == last
        folder.mkdir()
        await until(lambda: clock.next_deadline is not None)
        await clock.advance(10)
        await until(lambda: runner.status.position == last)


async def test_pause_and_resume_are_facts(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "running")
        await runner.pause("maintenance")
        await in_state(runner, "paused")
        assert runner.status.error == "maintenance"
        last = await Deposits(system).add(1)
        await runner.resume()
        await runner.wait_for(last, timeout=60)
        facts = await system.backend.list_events()
        assert types_of(facts) == ["ProjectionPaused", "ProjectionResumed"]


async def test_no_projection_is_given_the_facts_of_projections(
    new_system: NewSystem, path: Path
) -> None:
    seen: list[str] = []

    class All(Balances):
        name = "all"
        events: ClassVar[tuple[type, ...]] = ()

        def handle(self, received: Any, tx: sqlite3.Connection) -> None:
            seen.append(received.event_type)

    async with new_system() as system:
        runner = system.project(All(SQLiteView(path)))
        await in_state(runner, "running")
        await runner.pause()
        await runner.resume()
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        assert seen == ["Deposited"]


async def test_a_projection_is_started_in_a_running_system_only(
    new_system: NewSystem, path: Path
) -> None:
    system = new_system()
    with pytest.raises(SystemNotRunning):
        system.project(Balances(SQLiteView(path)))
    async with system:
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "running")
    assert runner.status.state == "stopped"
    with pytest.raises(ProjectionStopped):
        await runner.pause()


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"name": "a b"}, "a name is up to 100 letters"),
        ({"name": ""}, "a name is up to 100 letters"),
        ({"version": 0}, "version is a whole number from 1 on"),
        ({"version": "2"}, "version is a whole number from 1 on"),
        ({"batch_size": 0}, "batch_size is a whole number from 1 on"),
        ({"batch_seconds": 0}, "batch_seconds is seconds, more than 0"),
        ({"handle_timeout": None}, "handle_timeout is seconds, more than 0"),
        ({"kinds": ("event", "mail")}, "kinds are some of event, audit, dead_letter"),
        ({"kinds": "event"}, "kinds is a tuple"),
        ({"types": ("Deposited",)}, "give events, which are classes, or types, not both"),
        ({"kinds": ("audit",)}, "are of kind 'event' alone"),
        ({"tables": ("a; DROP TABLE b",)}, "tables are up to 50 letters"),
        ({"handle": None}, "has no handle"),
    ],
)
async def test_what_cant_be_run_is_refused_when_it_is_started(
    new_system: NewSystem, path: Path, attributes: dict[str, Any], why: str
) -> None:
    kind = type("Odd", (Balances,), {"name": "odd", **attributes})
    async with new_system() as system:
        with pytest.raises(InvalidProjection, match=why):
            system.project(kind(SQLiteView(path)))


async def test_a_handler_and_its_view_have_to_fit(new_system: NewSystem, path: Path) -> None:
    class Asynchronous(Balances):
        async def handle(self, received: Any, tx: Any = None) -> None:  # type: ignore[override]
            """Does nothing."""

    class Batched(Balances):
        def handle_batch(self, batch: Any, tx: Any) -> None:
            """Does nothing."""

    class AsyncBatched(Balances):
        async def handle_batch(self, batch: Any, tx: Any) -> None:
            """Does nothing."""

    async with new_system() as system:
        with pytest.raises(InvalidProjection, match="into a view, handle is a plain function"):
            system.project(Asynchronous(SQLiteView(path)))
        with pytest.raises(InvalidProjection, match="without a view, handle is a coroutine"):
            system.project(Balances())
        with pytest.raises(InvalidProjection, match="handle_batch writes a view"):
            system.project(Batched())
        with pytest.raises(InvalidProjection, match="handle_batch is a plain function"):
            system.project(AsyncBatched(SQLiteView(path)))
        with pytest.raises(InvalidProjection, match="a view is a SQLiteView or a PostgresView"):
            system.project(Balances(path))  # type: ignore[arg-type]
        with pytest.raises(InvalidProjection, match="an instance of Projection"):
            system.project(Balances)  # type: ignore[arg-type]
