"""The sum in the view equals the sum in the store, whenever the process is killed.

``PAPYRA_KILLS`` says how often it is.
"""

from __future__ import annotations

import random
import secrets
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import pytest

from papyra import ActorSystem
from papyra.persistence.backends.base import PersistenceBackend
from papyra.testing._postgres_server import own_database, shared_server
from tests.extent import count, some
from tests.postgres_server import query
from tests.projections.balances import Deposits, looking
from tests.projections.killed import Sums, store_at, view_at
from tests.projections.postgres.conftest import in_schema

KILLS = count("PAPYRA_KILLS", 1, 4)

#: Where the events are, and where the view is.
_PLACES = [("json", "sqlite"), ("json", "postgres"), ("sqlite", "postgres"), ("sqlite", "sqlite")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # what is killed is another process


def killed(store: str, view: str) -> None:
    """Run the program for a while, and kill it in the midst of it."""
    program = [sys.executable, "-m", "tests.projections.killed", store, view]
    root = Path(__file__).parents[2]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        for _ in range(random.randint(1, 30)):
            assert process.stdout.readline()
        process.kill()


@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize(("events", "kind"), some(_PLACES, every=2))
async def test_after_each_kill_the_view_is_the_sum_of_the_store(
    tmp_path: Path, events: str, kind: str
) -> None:
    store = str(tmp_path / ("store.db" if events == "sqlite" else "store.ndjson"))
    if kind == "sqlite":
        view = str(tmp_path / "view.db")
    else:
        url = own_database(shared_server())
        schema = f"view_{secrets.token_hex(8)}"
        query(url, f"CREATE SCHEMA {schema}")
        view = in_schema(url, schema)
    for _ in range(KILLS):
        killed(store, view)
        position, sums = left_in(view)
        assert sums == await sums_of(store_at(store), position)
    async with ActorSystem("bank", persistence=store_at(store), audit_interval=None) as system:
        runner = system.project(Sums(view_at(view)))
        await runner.wait_for(system.backend.last_seq, timeout=60)
    position, sums = left_in(view)
    assert sums == await sums_of(store_at(store), position)


async def test_of_two_processes_one_of_which_was_stopped_past_its_lease_one_writes(
    tmp_path: Path,
) -> None:
    """Who was stopped with SIGSTOP finds store and view taken over when it is woken."""
    store = f"{own_database(shared_server())}?schema=bank_{secrets.token_hex(8)}"
    view = str(tmp_path / "view.db")
    program = [sys.executable, "-m", "tests.projections.killed", store, view]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        is_held = True
        while is_held:
            for _ in range(random.randint(1, 10)):
                assert process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            # Who is stopped within a transaction keeps everybody out.
            is_held = is_in_transaction(store, view)
            if is_held:
                process.send_signal(signal.SIGCONT)
        async with ActorSystem("bank", persistence=store_at(store), audit_interval=None) as system:
            runner = system.project(Sums(view_at(view)))
            await runner.wait_for(await Deposits(system).add(1, 2, 3), timeout=60)
            process.send_signal(signal.SIGCONT)
            assert await anyio.to_thread.run_sync(notices_it, process.stderr)
            await runner.wait_for(await Deposits(system).add(4), timeout=60)
        process.kill()
    position, sums = left_in(view)
    assert sums == await sums_of(store_at(store), position)


def notices_it(stderr: IO[bytes]) -> bool:
    """Return whether a process says that it can't append any more, or can't write the view."""
    return any(b"StoreFenced" in line or b"another runner has it now" in line for line in stderr)


def is_in_transaction(store: str, view: str) -> bool:
    """Return whether somebody is in the midst of one, in PostgreSQL or in an SQLite view."""
    others = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    if query(store.partition("?")[0], others):
        return True
    with looking(Path(view)) as connection:
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


async def sums_of(store: PersistenceBackend, position: int) -> dict[str, int]:
    """Return the sum of each account in a store, up to a position."""
    sums: Counter[str] = Counter()
    async with store:
        async for record in store.stream("event"):
            if record.event_type == "Deposited" and (record.seq or 0) <= position:
                sums[record.actor_address.rpartition("/")[2]] += record.payload["amount"]
    return dict(sums)


def left_in(view: str) -> tuple[int, dict[str, int]]:
    """Return the position and the sums in a view, by another program's means."""
    rows = ask(
        view, "SELECT position, account, amount FROM papyra_projections LEFT JOIN sums ON true"
    )
    return rows[0][0], {account: amount for _, account, amount in rows if account is not None}


def ask(view: str, statement: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a statement in a view."""
    if view.startswith("postgresql:"):
        return query(view, statement)
    with looking(Path(view)) as connection:
        return connection.execute(statement).fetchall()
