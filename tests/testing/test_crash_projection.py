"""A projection under a crash at every statement: exactly once, and what is not is found.

``PAPYRA_PROJECTION_POINTS=1`` tries each point, on every store.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from papyra import ActorSystem
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.projections import SQLiteView
from papyra.testing import CrashPointFailed, ProjectionCrashRun, crash_projection_everywhere
from tests.conftest import event_loops
from tests.extent import CI, count
from tests.projections.balances import Balances, Deposits, balances_in, looking

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

#: Every how many-th point is tried, of so many that there are at least.
EVERY, POINTS = count("PAPYRA_PROJECTION_POINTS", 24, 16), 60


class InTwoBatches(Balances):
    name = "balances"
    batch_size = 2


async def fill(system: ActorSystem) -> None:
    await Deposits(system).add(1, 2, 4)


def check(run: ProjectionCrashRun) -> None:
    path = Path(run.view.location)
    assert balances_in(path) == {"ann": 7}
    with looking(path) as view:
        assert view.execute("SELECT count(*) FROM seen").fetchone() == (3,)


def new_views(place: Path) -> Callable[[], SQLiteView]:
    numbers = itertools.count()
    return lambda: SQLiteView(place / f"view{next(numbers)}.db")


def new_stores(kind: str, place: Path) -> Callable[[], PersistenceBackend]:
    numbers = itertools.count()
    match kind:
        case "memory":
            return InMemoryPersistence
        case "json":
            return lambda: JsonFilePersistence(place / f"{next(numbers)}.ndjson", fsync="no")
        case _:
            return lambda: SQLitePersistence(place / f"{next(numbers)}.db", synchronous="off")


@pytest.mark.timeout(120 + 120 // EVERY)
@pytest.mark.parametrize("kind", ["memory", *(["json", "sqlite"] if CI else [])])
async def test_each_event_has_its_effect_once_wherever_it_crashes(
    kind: str, tmp_path: Path
) -> None:
    offset = {"memory": 0, "json": 3, "sqlite": 6}[kind]
    crashes = await crash_projection_everywhere(
        InTwoBatches,
        new_views(tmp_path),
        fill,
        check,
        points=None if EVERY == 1 else range(4 + offset, POINTS, EVERY),
        persistence=new_stores(kind, tmp_path),
        system_id="bank",
    )
    assert len(crashes.points) >= (POINTS - 4 - offset) // EVERY


async def test_an_effect_outside_of_the_transaction_is_found_to_come_twice(tmp_path: Path) -> None:
    outside = tmp_path / "outside.db"
    with contextlib.closing(sqlite3.connect(outside)) as connection, connection:
        connection.execute("CREATE TABLE sent (seq INTEGER)")

    class Sending(InTwoBatches):
        name = "balances"

        def handle(self, received: Any, tx: Any) -> None:
            super().handle(received, tx)
            with contextlib.closing(sqlite3.connect(outside)) as connection, connection:
                connection.execute("INSERT INTO sent VALUES (?)", (received.seq,))

    def check_sent(run: ProjectionCrashRun) -> None:
        with contextlib.closing(sqlite3.connect(outside)) as connection, connection:
            sent = connection.execute("SELECT seq FROM sent").fetchall()
            if run.restarted:
                connection.execute("DELETE FROM sent")
        assert len(sent) == 3

    with pytest.raises(CrashPointFailed) as failed:
        await crash_projection_everywhere(
            Sending,
            new_views(tmp_path),
            fill,
            check_sent,
            points=range(43, POINTS),
            system_id="bank",
        )
    assert failed.value.point is not None
    assert failed.value.point.what == "view"
    assert "run it alone: crash_projection_everywhere(..., points=[" in str(failed.value)
    assert [fact.seq for fact in failed.value.facts] == [1, 2, 3]


async def test_a_point_that_there_is_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no crash point 9000"):
        await crash_projection_everywhere(
            InTwoBatches, new_views(tmp_path), fill, check, points=[9000], system_id="bank"
        )
