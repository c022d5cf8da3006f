"""Events that can't be handled: isolated, tried again, then paused at, passed over or parked."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from papyra import ActorSystem
from papyra.exceptions import ProjectionStopped
from papyra.persistence import GetMetrics, PersistedEvent, ResetMetrics
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.metrics import MetricsSnapshot
from papyra.projections import DeadLetter, OnError, Pause, Projection, Retry, Skip, SQLiteView
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

BAD = 666


class Picky(Balances):
    """Can't handle one amount, as long as it is bad."""

    name = "balances"
    on_error: ClassVar[OnError] = Pause()

    def __init__(self, view: SQLiteView) -> None:
        super().__init__(view)
        self.is_bad = True
        self.tries = 0

    def handle(self, received: Any, tx: Any) -> None:
        super().handle(received, tx)
        if received.event.amount == BAD and self.is_bad:
            self.tries += 1
            raise ValueError("666 is no amount")


class Skipping(Picky):
    name = "balances"
    on_error = Skip()


class Parking(Picky):
    name = "balances"
    on_error = DeadLetter()


async def test_it_pauses_at_exactly_the_event_that_fails(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        deposits = Deposits(system)
        bad = await deposits.add(1, 2, BAD)
        await deposits.add(4)
        runner = system.project(Picky(SQLiteView(path)))
        await in_state(runner, "paused")
        assert balances_in(path) == {"ann": 3}
        status = runner.status
        assert (status.error_seq, status.error) == (bad, "ValueError: 666 is no amount")
        assert row(path, "position, is_paused, error_seq, error") == (
            *(bad - 1, 1, bad),
            "ValueError: 666 is no amount",
        )
        facts = await system.backend.list_events()
        assert types_of(facts) == ["ProjectionPaused"]


async def test_it_stays_paused_over_a_restart(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        await Deposits(system).add(BAD)
        await in_state(system.project(Picky(SQLiteView(path))), "paused")
    async with new_system() as system:
        projection = Picky(SQLiteView(path))
        runner = system.project(projection)
        await in_state(runner, "paused")
        assert projection.tries == 0
        projection.is_bad = False
        await runner.resume()
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert balances_in(path) == {"ann": BAD}


async def test_an_event_in_a_batch_of_a_thousand_is_the_only_one_that_is_parked(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        deposits = Deposits(system)
        accounts = [f"account-{number}" for number in range(1_000)]
        for number, account in enumerate(accounts):
            await deposits.add(BAD if number == 617 else 1, account=account)
        runner = system.project(Parking(SQLiteView(path)))
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert runner.status.parked == 1
        with looking(path) as view:
            assert view.execute("SELECT actor, is_held FROM papyra_parked").fetchall() == [
                ("bank/Account/account-617", 0)
            ]
        assert set(balances_in(path)) == set(accounts) - {"account-617"}
        # In few transactions: before it, alone, and after it.
        assert runner.status.commits <= 4


async def test_a_handler_of_batches_gets_what_a_transaction_holds_and_the_bad_one_is_found(
    new_system: NewSystem, path: Path
) -> None:
    class Batched(Balances):
        """Takes events in batches, and can't take one amount."""

        name = "balances"
        on_error = DeadLetter()
        batch_size = 400
        sizes: ClassVar[list[int]] = []

        def handle_batch(self, batch: list[Any], tx: sqlite3.Connection) -> None:
            self.sizes.append(len(batch))
            for received in batch:
                super().handle(received, tx)
            if any(received.event.amount == BAD for received in batch):
                raise ValueError("666 is no amount")

    async with new_system() as system:
        deposits = Deposits(system)
        accounts = [f"account-{number}" for number in range(1_000)]
        for number, account in enumerate(accounts):
            await deposits.add(BAD if number == 617 else 1, account=account)
        last = await deposits.add(5, account="account-617")
        runner = system.project(Batched(SQLiteView(path)))
        await runner.wait_for(last, timeout=60)
        assert (runner.status.handled, runner.status.parked) == (999, 2)
        assert set(balances_in(path)) == set(accounts) - {"account-617"}
        assert Batched.sizes[:2] == [400, 400]
        # 400, 200, 100, ..., 1, and the parts beside them.
        assert len(Batched.sizes) <= 2 + 2 * 9 + 2
        with looking(path) as view:
            seen = view.execute("SELECT seq FROM seen ORDER BY seq").fetchall()
        assert len(seen) == 999


async def test_a_commit_that_fails_for_one_event_is_halved_until_that_is_found(
    new_system: NewSystem, path: Path
) -> None:
    class Constrained(Balances):
        """Its constraint is looked at when the transaction commits, and not before."""

        name = "balances"
        on_error = Skip()

        def setup(self, tx: sqlite3.Connection) -> None:
            super().setup(tx)
            tx.execute("CREATE TABLE known (amount INTEGER PRIMARY KEY)")
            tx.executemany("INSERT INTO known VALUES (?)", [(n,) for n in range(100)])
            tx.execute(
                "CREATE TABLE entries (amount INTEGER REFERENCES known"
                " DEFERRABLE INITIALLY DEFERRED)"
            )

        def handle(self, received: Any, tx: sqlite3.Connection) -> None:
            tx.execute("INSERT INTO entries VALUES (?)", (received.event.amount,))

    class Strict(SQLiteView):
        def database(self) -> Any:
            found = super().database()
            was_open = found.open

            def open_strictly(*, to_read: bool = False) -> None:
                was_open(to_read=to_read)
                found.connection.execute("PRAGMA foreign_keys = ON")

            found.open = open_strictly  # type: ignore[method-assign]
            return found

    async with new_system() as system:
        last = await Deposits(system).add(*range(40), BAD, *range(40))
        runner = system.project(Constrained(Strict(path)))
        await runner.wait_for(last, timeout=60)
        assert (runner.status.handled, runner.status.skipped) == (80, 1)


async def test_skip_passes_over_the_event_and_says_so(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        bad = await Deposits(system).add(1, BAD)
        last = await Deposits(system).add(2)
        runner = system.project(Skipping(SQLiteView(path)))
        await runner.wait_for(last, timeout=60)
        assert balances_in(path) == {"ann": 3}
        assert runner.status.skipped == 1
        await until(lambda: runner.status.lag == 0)
        (fact,) = [
            each
            for each in await system.backend.list_events()
            if each.event_type == "ProjectionSkipped"
        ]
        assert fact.payload == {"seq": bad, "reason": "ValueError: 666 is no amount"}


async def test_later_events_of_the_same_actor_are_held_back_and_others_are_not(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        deposits = Deposits(system)
        bad = await deposits.add(1, BAD)
        await deposits.add(2)
        await deposits.add(10, account="bob")
        projection = Parking(SQLiteView(path))
        runner = system.project(projection)
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert balances_in(path) == {"ann": 1, "bob": 10}
        with pytest.raises(ProjectionStopped, match=f"event {bad} stays parked: .*no amount"):
            await runner.retry(bad)
        projection.is_bad = False
        await runner.retry(bad)
        assert balances_in(path) == {"ann": 1 + BAD + 2, "bob": 10}
        with looking(path) as view:
            assert view.execute("SELECT * FROM papyra_parked").fetchall() == []
        assert runner.status.parked == 0


async def test_who_skips_a_parked_event_gets_those_held_back_behind_it(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        bad = await Deposits(system).add(1, BAD)
        last = await Deposits(system).add(2, 4)
        runner = system.project(Parking(SQLiteView(path)))
        await runner.wait_for(last, timeout=60)
        await runner.skip(bad, "nobody knows what it means")
        assert balances_in(path) == {"ann": 7}
        with pytest.raises(ProjectionStopped, match=f"no event {bad} is parked"):
            await runner.skip(bad)


async def test_what_is_held_back_stays_so_over_a_restart(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        await Deposits(system).add(BAD)
        runner = system.project(Parking(SQLiteView(path)))
        await runner.wait_for(system.backend.last_seq, timeout=60)
    async with new_system() as system:
        runner = system.project(Parking(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(5), timeout=60)
        assert balances_in(path) == {}


async def test_it_is_tried_again_with_backoff_by_the_systems_clock_then_paused(
    store: Any, path: Path
) -> None:
    class Trying(Picky):
        name = "balances"
        on_error = Retry(3, backoff=10.0).then(Pause())

    clock = ManualClock()
    async with ActorSystem("bank", persistence=store, clock=clock, audit_interval=None) as system:
        await Deposits(system).add(BAD)
        projection = Trying(SQLiteView(path))
        runner = system.project(projection)
        await until(lambda: projection.tries == 1)
        await clock.advance(9)
        assert projection.tries == 1
        await clock.advance(2)
        await until(lambda: projection.tries == 2)
        assert runner.status.error == "ValueError: 666 is no amount"
        await clock.advance(17)
        assert projection.tries == 2
        await clock.advance(5)
        await in_state(runner, "paused")
        assert (projection.tries, runner.status.retries) == (3, 2)


async def test_a_projection_that_handles_nothing_is_behind_since_its_runner_began(
    store: Any, path: Path
) -> None:
    clock = ManualClock()
    async with ActorSystem("bank", persistence=store, clock=clock, audit_interval=None) as system:
        await Deposits(system).add(BAD)
        runner = system.project(Picky(SQLiteView(path)))
        await in_state(runner, "paused")
        await clock.advance(60)
        assert runner.status.lag_seconds == 60


async def test_an_event_that_goes_well_the_second_time_is_handled_once(
    new_system: NewSystem, path: Path
) -> None:
    class Moody(Picky):
        name = "balances"
        on_error = Retry(2)

        def handle(self, received: Any, tx: Any) -> None:
            try:
                super().handle(received, tx)
            finally:
                self.is_bad = False

    async with new_system() as system:
        last = await Deposits(system).add(BAD)
        runner = system.project(Moody(SQLiteView(path)))
        await runner.wait_for(last, timeout=60)
        assert balances_in(path) == {"ann": BAD}
        assert runner.status.retries == 1


async def test_an_operator_passes_over_the_event_that_it_is_paused_at(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        await Deposits(system).add(1, BAD, 2)
        runner = system.project(Picky(SQLiteView(path)))
        await in_state(runner, "paused")
        await runner.skip(reason="a joke")
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert balances_in(path) == {"ann": 3}
        facts = types_of(await system.backend.list_events())
        assert facts == ["ProjectionPaused", "ProjectionSkipped", "ProjectionResumed"]
        with pytest.raises(ProjectionStopped, match="not paused at any event"):
            await runner.skip()


async def test_an_event_that_cant_be_decoded_is_one_that_cant_be_handled(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        deposits = Deposits(system)
        await deposits.add(1)
        odd = PersistedEvent(
            *("bank", "bank/Account/bob", "Deposited", {"amount": "much"}, 1.0), revision=1
        )
        bad = (await system.backend.append(odd)).last_seq
        runner = system.project(Picky(SQLiteView(path)))
        await in_state(runner, "paused")
        assert runner.status.error_seq == bad
        assert "amount" in runner.status.error


async def test_a_handler_that_commits_is_stopped_before_it_has(
    new_system: NewSystem, path: Path
) -> None:
    class Committing(Balances):
        name = "balances"
        on_error = Skip()
        ways: Any = None

        def handle(self, received: Any, tx: sqlite3.Connection) -> None:
            super().handle(received, tx)
            if received.event.amount == BAD:
                self.ways(tx)

    ways = [
        lambda tx: tx.commit(),
        lambda tx: tx.execute("COMMIT"),
        lambda tx: tx.execute("END"),
        lambda tx: tx.rollback(),
        lambda tx: tx.executescript("CREATE TABLE t (a); COMMIT"),
        lambda tx: tx.__exit__(None, None, None),
    ]
    for number, way in enumerate(ways):
        place = path.with_name(f"{number}.db")
        async with new_system() as system:
            bad = await Deposits(system).add(1, BAD)
            projection = Committing(SQLiteView(place))
            projection.ways = way
            runner = system.project(projection)
            await in_state(runner, "paused")
            assert "HandlerCommitted" in runner.status.error, number
            assert runner.status.position < bad
            assert balances_in(place).get("ann", 0) < BAD, number


async def test_a_handler_that_ends_the_transaction_by_a_conflict_and_goes_on_is_stopped(
    new_system: NewSystem, path: Path
) -> None:
    class Careless(Balances):
        name = "balances"

        def handle(self, received: Any, tx: sqlite3.Connection) -> None:
            super().handle(received, tx)
            try:
                tx.execute("INSERT OR ROLLBACK INTO seen VALUES (?)", (received.seq,))
            except sqlite3.IntegrityError:
                tx.execute("INSERT OR IGNORE INTO balances VALUES ('left', 1)")

    async with new_system() as system:
        await Deposits(system).add(1)
        runner = system.project(Careless(SQLiteView(path)))
        await in_state(runner, "paused")
        assert "HandlerCommitted" in runner.status.error


async def test_a_handler_that_always_raises_is_retried_no_more_than_was_said(
    new_system: NewSystem, path: Path
) -> None:
    class Never(Projection):
        name = "never"
        on_error = Retry(4).then(Skip())
        calls = 0

        def handle(self, received: Any, tx: Any) -> None:
            Never.calls += 1
            raise KeyError("always")

    async with new_system() as system:
        last = await Deposits(system).add(1, 2, 3)
        runner = system.project(Never(SQLiteView(path)))
        await runner.wait_for(last, timeout=60)
        assert runner.status.skipped >= 3
        assert Never.calls == 4 * runner.status.skipped


async def test_a_handler_that_hangs_is_noticed_and_its_late_commit_is_void(
    new_system: NewSystem, path: Path
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    class Hanging(Balances):
        name = "balances"
        handle_timeout = 0.2

        def handle(self, received: Any, tx: Any) -> None:
            super().handle(received, tx)
            if not goes_on.is_set():
                hangs.set()
                goes_on.wait(60)

    async with new_system() as system:
        last = await Deposits(system).add(5)
        runner = system.project(Hanging(SQLiteView(path)))
        await in_state(runner, "paused")
        assert hangs.is_set()
        assert "HandlerTimedOut" in runner.status.error
        goes_on.set()
        await runner.retry()
        await runner.wait_for(last, timeout=60)
        assert balances_in(path) == {"ann": 5}


async def test_what_a_handler_writes_elsewhere_is_at_least_once(
    new_system: NewSystem, path: Path
) -> None:
    elsewhere: list[int] = []

    class Leaking(Picky):
        name = "balances"
        on_error = Retry(2)

        def handle(self, received: Any, tx: Any) -> None:
            elsewhere.append(received.event.amount)
            try:
                super().handle(received, tx)
            finally:
                self.is_bad = self.tries == 0

    async with new_system() as system:
        last = await Deposits(system).add(1, BAD)
        runner = system.project(Leaking(SQLiteView(path)))
        await runner.wait_for(last, timeout=60)
        assert balances_in(path) == {"ann": 1 + BAD}
        assert elsewhere == [1, BAD, 1, BAD]


async def test_a_handler_that_wants_to_end_the_program_ends_nothing(
    new_system: NewSystem, path: Path
) -> None:
    class Exiting(Balances):
        name = "balances"
        on_error = Pause()

        def handle(self, received: Any, tx: Any) -> None:
            raise SystemExit(3)

    async with new_system() as system:
        await Deposits(system).add(1)
        runner = system.project(Exiting(SQLiteView(path)))
        await in_state(runner, "paused")
        assert "handle has raised SystemExit" in runner.status.error


async def test_a_view_whose_tables_are_gone_ends_neither_the_system_nor_its_stop(
    new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        with looking(path) as view:
            view.execute("DROP TABLE papyra_projections")
            view.execute("DROP TABLE papyra_parked")
        await Deposits(system).add(2)
        await in_state(runner, "waiting", "paused")
    assert runner.status.state == "stopped"


async def test_what_becomes_of_events_is_in_the_metrics(new_system: NewSystem, path: Path) -> None:
    async with new_system() as system:
        deposits = Deposits(system)
        bad = await deposits.add(1, 2, BAD)
        parking = Parking(SQLiteView(path))
        runner = system.project(parking)
        await runner.wait_for(await deposits.add(4), timeout=60)  # held back, behind the bad one
        await runner.wait_for(await deposits.add(5, account="bob"), timeout=60)
        assert projected(await system.backend.execute(GetMetrics())) == {
            "handled": 3,
            "retries": 0,
            "skipped": 0,
            "parked": 2,
            "pauses": 0,
        }
        parking.is_bad = False
        await runner.skip(bad)
        assert projected(await system.backend.execute(ResetMetrics())) == {
            "handled": 4,
            "retries": 0,
            "skipped": 1,
            "parked": 2,
            "pauses": 0,
        }
        assert set(projected(await system.backend.execute(GetMetrics())).values()) == {0}


async def test_a_projection_that_pauses_is_in_the_metrics_and_in_the_audit(
    new_system: NewSystem, path: Path
) -> None:
    class Retrying(Picky):
        name = "balances"
        on_error = Retry(3).then(Pause())

    async with new_system() as system:
        assert (system.audit().projections, system.audit().projections_paused) == (0, 0)
        await Deposits(system).add(1, BAD, 3)
        runner = system.project(Retrying(SQLiteView(path)))
        await in_state(runner, "paused")
        counted = projected(await system.backend.execute(GetMetrics()))
        assert (counted["handled"], counted["retries"], counted["pauses"]) == (1, 2, 1)
        assert runner.status.pauses == 1
        audit = system.audit()
        assert (audit.projections, audit.projections_paused) == (1, 1)
        assert audit.projections_longest_lag == runner.status.lag > 0


def projected(metrics: MetricsSnapshot) -> dict[str, int]:
    """Return the counters of projections."""
    prefix = "projection_"
    return {
        name.removeprefix(prefix): count
        for name, count in metrics.items()
        if name.startswith(prefix)
    }


async def test_a_handler_that_hangs_does_not_keep_a_system_from_ending(
    store: InMemoryPersistence, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    goes_on = threading.Event()

    class Hanging(Balances):
        name = "balances"
        hangs = True
        handle_timeout = 3_600.0

        def handle(self, received: Any, tx: Any) -> None:
            super().handle(received, tx)
            if Hanging.hangs:
                has_begun.set()
                assert goes_on.wait(100)

    has_begun = threading.Event()
    try:
        with anyio.fail_after(60):
            system = ActorSystem("bank", persistence=store, shutdown_timeout=0.1)
            async with system:
                await Deposits(system).add(1, 2)
                system.project(Hanging(SQLiteView(path, lease=0.1)))
                await until(has_begun.is_set)
        assert "was given up, as the system stops" in caplog.text
    finally:
        goes_on.set()
    Hanging.hangs = False
    async with ActorSystem("bank", persistence=store) as system:
        runner = system.project(Hanging(SQLiteView(path)))
        await runner.wait_for(await Deposits(system).add(4), timeout=60)
        assert balances_in(path) == {"ann": 7}
        assert runner.status.error == ""


async def test_a_batch_that_is_slow_while_the_system_stops_is_committed_if_it_is_in_time(
    store: InMemoryPersistence, path: Path
) -> None:
    has_begun, goes_on = threading.Event(), threading.Event()

    class Slow(Balances):
        name = "balances"

        def handle(self, received: Any, tx: Any) -> None:
            super().handle(received, tx)
            has_begun.set()
            assert goes_on.wait(100)

    async with ActorSystem("bank", persistence=store, shutdown_timeout=60.0) as system:
        await Deposits(system).add(1, 2)
        runner = system.project(Slow(SQLiteView(path)))
        await until(has_begun.is_set)
        releasing = Releasing(goes_on)
        system.project(releasing)
        await releasing.has_begun.wait()
    assert balances_in(path) == {"ann": 3}
    assert runner.status.state == "stopped"


class Releasing(Projection):
    """Sets an event when the system stops."""

    name = "releasing"

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.has_begun = anyio.Event()
        self._event = event

    async def handle(self, received: Any) -> None:
        self.has_begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self._event.set()


async def test_what_is_asked_for_from_elsewhere_and_refused_is_logged(
    new_system: NewSystem, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with new_system() as system:
        view = SQLiteView(path)
        runner = system.project(Balances(view))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        for request, why in {"skip 17: twice": "no event 17", "rebuild": "names no tables"}.items():
            assert view.post("balances", request)
            await until(lambda: f"projection balances: {request!r} was refused" in caplog.text)  # noqa: B023
            assert why in caplog.text
        assert runner.status.state == "running"
