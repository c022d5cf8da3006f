"""Applications that contend for a database while the system that takes over is killed.

At more statements, and more often: ``PAPYRA_KILLS=1000``.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from papyra.persistence import PersistedEvent, outbox
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.actors import event
from tests.conftest import LOOPS, event_loops
from tests.extent import count

anyio_backend = event_loops("asyncio")

ROOT = Path(__file__).parents[4]
KILLS = count("PAPYRA_KILLS", 3, 60)
WRITERS = 3
#: Statements from the start of a system until it has taken something over several times.
STATEMENTS = 120


class Application(threading.Thread):
    """Commits and rolls back, until it is told to end, and knows what it has committed."""

    def __init__(self, path: Path, name: str, enough: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._path = path
        self._enough = enough
        self._chance = random.Random(name)
        #: the events of each transaction that was committed, in order
        self.committed: list[list[str]] = []
        self.rolled_back = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with contextlib.closing(
                sqlite3.connect(self._path, timeout=60, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA wal_autocheckpoint = 0")
                number = 0
                # Who waits for a lock of SQLite's looks now and then, and has to find it free.
                while not self._enough.wait(self._chance.random() * 0.1):
                    number += 1
                    self._transact(connection, number)
        except BaseException as error:
            self.error = error
            raise

    def _transact(self, connection: sqlite3.Connection, number: int) -> None:
        names = [f"{self.name}-{number}-{part}" for part in range(self._chance.randint(1, 4))]
        begin = self._chance.choice(["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
        connection.execute(begin)
        for name in names:
            connection.execute("INSERT INTO orders VALUES (?)", (name,))
            outbox.add(connection, event(0, event_type="Ordered", payload=name))
            self._dawdle(connection)
        if self._chance.random() < 0.3:
            connection.execute("ROLLBACK")
            self.rolled_back += 1
        else:
            connection.execute("COMMIT")
            self.committed.append(names)

    def _dawdle(self, connection: sqlite3.Connection) -> None:
        """Keep the transaction open for some time."""
        steps = self._chance.choice([1, 1, 1, 10_000])
        query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        connection.execute(f"{query} SELECT max(i) FROM n", (steps,)).fetchone()


@contextlib.contextmanager
def applications(path: Path) -> Iterator[list[Application]]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE orders (name TEXT PRIMARY KEY)")
    enough = threading.Event()
    running = [Application(path, f"app{number}", enough) for number in range(WRITERS)]
    for each in running:
        each.start()
    try:
        yield running
    finally:
        enough.set()
        for each in running:
            each.join()


def kill_a_relay(path: Path, loop: str, statements: int) -> None:
    """Have a system take over what there is, and be killed in front of one of its statements."""
    module = "tests.persistence.backends.sqlite.relay"
    command = [sys.executable, "-m", module, str(path), loop, str(statements)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-9, "ready\n"), done.stderr


def is_of(each: PersistedEvent) -> bool:
    """Return whether an event is one that an application has handed over."""
    return each.event_type == "Ordered"


def by_application(found: list[PersistedEvent]) -> dict[str, list[str]]:
    """Return what each application has handed over, in the order of the store."""
    names: dict[str, list[str]] = defaultdict(list)
    for each in found:
        if is_of(each):
            names[each.payload.partition("-")[0]].append(each.payload)
    return names


@pytest.mark.timeout(7200)
async def test_what_was_committed_is_delivered_once_however_often_the_system_is_killed(
    tmp_path: Path, anyio_backend: Any
) -> None:
    path = tmp_path / "shop.sqlite"
    await SQLitePersistence(path).migrate()
    chance = random.Random("kill")
    with applications(path) as running:
        for number in range(KILLS):
            # Every one of them in turn, from another one on each event loop; and some at random.
            step = 1 + (number * STATEMENTS // KILLS) % STATEMENTS
            statements = step if number % 4 else chance.randint(1, STATEMENTS)
            kill_a_relay(path, list(LOOPS)[number % len(LOOPS)], statements)
    assert [each.error for each in running] == [None] * WRITERS
    async with SQLitePersistence(path, synchronous="off") as store:
        await store.take_outbox()
        found = [each async for each in store.stream("event")]
        assert (await store.scan()).is_clean
        summary = await store.summarize()
    assert (summary.outbox_waiting, summary.outbox_refused) == (0, 0)
    # Each in the order in which its application has committed them, none missing, none twice.
    assert by_application(found) == {
        each.name: [name for names in each.committed for name in names] for each in running
    }
    assert all(each.rolled_back and each.committed for each in running)
    # The application's own table says the same.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        orders = {name for (name,) in connection.execute("SELECT name FROM orders")}
    assert orders == {each.payload for each in found if is_of(each)}
    # No event of another transaction is between those of one.
    places = {
        name: place for place, name in enumerate(each.payload for each in found if is_of(each))
    }
    for names in (names for each in running for names in each.committed):
        first = places[names[0]]
        assert [places[name] for name in names] == list(range(first, first + len(names)))
