"""A projection into PostgreSQL: each event has its effect once, whatever becomes of connections.

``PAPYRA_PROJECTION_CUTS`` says at every how many-th message a connection is cut; with 1, it was
seen to hold at each of them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import anyio
import psycopg
import pytest

from papyra.exceptions import InvalidSetting
from papyra.projections import (
    DeadLetter,
    Pause,
    PostgresView,
    Projection,
    ProjectionRunner,
    Skip,
)
from tests.extent import CI, count
from tests.persistence.backends.postgres.proxy import Cut, Place, Proxy
from tests.persistence.backends.postgres.test_cuts import Guard
from tests.postgres_server import query
from tests.projections.balances import Deposited, Deposits, in_state, until
from tests.projections.conftest import NewSystem
from tests.projections.postgres.conftest import in_schema

PLACES: tuple[Place, ...] = ("before", "in", "after", "late") if CI else ("late",)
EVERY = count("PAPYRA_PROJECTION_CUTS", 8, 3)
BAD = 666


class Balances(Projection):
    name = "balances"
    events = (Deposited,)
    tables = ("balances",)

    def setup(self, tx: Any) -> None:
        tx.execute(f"CREATE TABLE {self.table('balances')} (account text PRIMARY KEY, amount int8)")
        tx.execute("CREATE TABLE IF NOT EXISTS seen (name text, build text, seq int8)")
        tx.execute("CREATE UNIQUE INDEX IF NOT EXISTS once ON seen (name, build, seq)")

    def handle(self, received: Any, tx: Any) -> None:
        table = self.table("balances")
        tx.execute(
            f"INSERT INTO {table} AS b VALUES (%s, %s)"
            " ON CONFLICT (account) DO UPDATE SET amount = b.amount + excluded.amount",
            (received.actor.rpartition("/")[2], received.event.amount),
        )
        tx.execute("INSERT INTO seen VALUES (%s, %s, %s)", (self.name, table, received.seq))


def balances_in(url: str) -> dict[str, int]:
    return dict(query(url, "SELECT account, amount FROM balances"))


async def test_past_events_and_those_to_come_are_in_the_view_over_restarts(
    new_system: NewSystem, url: str
) -> None:
    for total in (7, 14):
        async with new_system() as system:
            deposits = Deposits(system)
            await deposits.add(1, 2)
            runner = system.project(Balances(PostgresView(url)))
            await runner.wait_for(await deposits.add(4), timeout=60)
            assert balances_in(url) == {"ann": total}
    ((owner, position, kind),) = query(
        url, "SELECT owner, position, record_kind FROM papyra_projections"
    )
    assert (owner, kind) == (None, "event")
    assert position >= 6


@pytest.mark.timeout(600)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # it is the view's thread that is cut off
@pytest.mark.parametrize("place", PLACES)
async def test_each_event_counts_once_at_whichever_message_the_connection_is_cut(
    new_system: NewSystem, database: str, schema: str, url: str, proxy: Proxy, place: Place
) -> None:
    through = in_schema(proxy.url(database), schema)
    for message in itertools.count(step=EVERY):
        async with new_system() as system:
            kind = type(
                *("Cut", (Balances,)),
                {
                    "name": f"b{message}",
                    "tables": (f"t{message}",),
                    "table": lambda self, name: Projection.table(self, self.tables[0]),
                },
            )
            runner = system.project(kind(PostgresView(through)))
            await runner.wait_for(system.backend.last_seq, timeout=60)
            await in_state(runner, "running")
            proxy.arm(Cut(message, place))
            last = await Deposits(system).add(1, 2)
            with Guard(proxy, database):
                await runner.wait_for(last, timeout=60)
            is_cut = proxy.disarm()
            if proxy.is_late:  # nobody has waited for it, and it changes nothing
                proxy.release()
            amount = query(url, f"SELECT amount FROM t{message}")
            stored = await system.backend.list_events()
            assert amount == [
                (sum(r.payload["amount"] for r in stored if r.event_type == "Deposited"),)
            ], (message, proxy.seen)
        if not is_cut:
            break
    assert message >= EVERY


async def test_an_event_that_fails_is_parked_alone_though_it_fails_when_it_is_committed(
    new_system: NewSystem, url: str
) -> None:
    class Constrained(Balances):
        name = "balances"
        on_error = DeadLetter()

        def setup(self, tx: Any) -> None:
            super().setup(tx)
            tx.execute("CREATE TABLE known (amount int8 PRIMARY KEY)")
            tx.execute("INSERT INTO known SELECT generate_series(1, 100)")
            tx.execute(
                "CREATE TABLE entries (amount int8 REFERENCES known DEFERRABLE INITIALLY DEFERRED)"
            )

        def handle(self, received: Any, tx: Any) -> None:
            tx.execute("INSERT INTO entries VALUES (%s)", (received.event.amount,))

    async with new_system() as system:
        deposits = Deposits(system)
        await deposits.add(*range(1, 40))
        bad = await deposits.add(BAD, account="bob")
        last = await deposits.add(*range(1, 40))
        runner = system.project(Constrained(PostgresView(url)))
        await runner.wait_for(last, timeout=60)
        assert query(url, "SELECT seq, actor FROM papyra_parked") == [(bad, "bank/Account/bob")]
        assert query(url, "SELECT count(*) FROM entries") == [(78,)]


@pytest.mark.parametrize("way", ["method", "statement", "rollback"])
async def test_a_handler_that_ends_the_transaction_is_stopped(
    new_system: NewSystem, url: str, way: str
) -> None:
    class Ending(Balances):
        name = "balances"
        on_error = Skip()

        def handle(self, received: Any, tx: Any) -> None:
            super().handle(received, tx)
            if received.event.amount == BAD:
                match way:
                    case "method":
                        tx.commit()
                    case "statement":
                        tx.execute("COMMIT")
                    case _:
                        tx.execute("ROLLBACK")

    async with new_system() as system:
        bad = await Deposits(system).add(1, BAD)
        runner = system.project(Ending(PostgresView(url)))
        await in_state(runner, "paused")
        assert "HandlerCommitted" in runner.status.error
        assert runner.status.position < bad


async def test_an_error_with_a_nul_in_it_is_noted_without(new_system: NewSystem, url: str) -> None:
    class Raising(Balances):
        name = "balances"
        on_error = Pause()

        def handle(self, received: Any, tx: Any) -> None:
            raise ValueError("a\0b")

    async with new_system() as system:
        await Deposits(system).add(1)
        runner = system.project(Raising(PostgresView(url)))
        await in_state(runner, "paused")
        await runner.pause("by \0 hand")
    (status,) = PostgresView(url).read_status()
    assert "\0" not in status.error


async def test_an_error_that_a_handler_has_swallowed_is_its_own(
    new_system: NewSystem, url: str
) -> None:
    class Swallowing(Balances):
        name = "balances"
        on_error = Skip()

        def handle(self, received: Any, tx: Any) -> None:
            super().handle(received, tx)
            if received.event.amount == BAD:
                with contextlib.suppress(psycopg.Error):
                    tx.execute("SELECT 1 / 0")

    async with new_system() as system:
        last = await Deposits(system).add(1, BAD, 2)
        runner = system.project(Swallowing(PostgresView(url)))
        await runner.wait_for(last, timeout=60)
        assert balances_in(url) == {"ann": 3}
        assert runner.status.skipped == 1


async def test_a_connection_that_is_terminated_is_made_again(
    new_system: NewSystem, url: str
) -> None:
    async with new_system() as system:
        runner = system.project(Balances(PostgresView(url)))
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        query(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'papyra projections' AND datname = current_database()",
        )
        await runner.wait_for(await Deposits(system).add(2), timeout=60)
        assert balances_in(url) == {"ann": 3}
        assert runner.status.error == ""


async def test_a_server_that_is_not_there_is_waited_for(
    new_system: NewSystem,
) -> None:
    view = PostgresView("postgresql://nobody:secret@127.0.0.1:1/none")
    assert view.location == "postgresql://127.0.0.1:1/none"
    async with new_system() as system:
        runner = system.project(Balances(view))
        await in_state(runner, "waiting")
        assert "ViewUnavailable: postgresql://127.0.0.1:1/none" in runner.status.error
        assert "secret" not in runner.status.error


async def test_a_second_runner_stands_by_and_takes_over(new_system: NewSystem, url: str) -> None:
    async with new_system() as system, anyio.create_task_group() as tasks:
        deposits = Deposits(system)
        first, second = (ProjectionRunner(system, Balances(PostgresView(url))) for _ in range(2))
        tasks.start_soon(first.run)
        await first.wait_for(await deposits.add(1), timeout=60)
        tasks.start_soon(second.run)
        await in_state(second, "standby")
        first.stop()
        await second.wait_for(await deposits.add(2), timeout=60)
        assert balances_in(url) == {"ann": 3}
        second.stop()


async def test_a_rebuild_takes_over_and_the_old_tables_are_dropped(
    new_system: NewSystem, url: str
) -> None:
    async with new_system() as system:
        runner = system.project(Balances(PostgresView(url)))
        await runner.wait_for(await Deposits(system).add(1, 2), timeout=60)
        await runner.rebuild()
        await runner.wait_for(await Deposits(system).add(4), timeout=60)
        assert balances_in(url) == {"ann": 7}
        await runner.drop_old()
        await until(lambda: query(url, "SELECT to_regclass('balances_1')") == [(None,)])


async def test_what_is_asked_for_in_the_view_is_done(new_system: NewSystem, url: str) -> None:
    view = PostgresView(url, lease=0.3)
    assert view.read_status() == ()
    async with new_system() as system:
        runner = system.project(Balances(view))
        await in_state(runner, "running")
        assert await anyio.to_thread.run_sync(view.post, "balances", "pause")
        await in_state(runner, "paused")
        (build,) = view.read_status()
        assert (build.name, build.is_paused) == ("balances", True)


def test_what_libpq_cant_read_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidSetting) as raised:
        PostgresView("postgresql://a:secret@[/x?y=z")
    assert "secret" not in str(raised.value)


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(database).port or 5432) as proxy:
        yield proxy
