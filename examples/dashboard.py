"""A dashboard in SQLite that follows the flights, is killed half way, goes on, and is rebuilt.

Each airport is an entity whose departures are stored events. The dashboard is a projection: tables
in another database, made of these events, each of which counts once. First a process that makes it
is killed in the midst; then another one goes on where that has stopped, and catches up while more
flights depart; last it is built anew, with a column more, while somebody reads it.

Run it on the first day, which is in this folder:      python examples/dashboard.py
On the whole year, from where flights.py says it is:   python examples/dashboard.py flights.csv.zip
"""

from __future__ import annotations

import csv
import io
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import msgspec

from papyra import ActorSystem, EventSourced
from papyra.persistence import Received
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.projections import Projection, ProjectionRunner, SQLiteView

FIRST_DAY = Path(__file__).with_name("flights-2013-01-01.csv")


class Departed(msgspec.Struct, frozen=True):
    flight: str
    hour: int
    delay: int


class Airport(EventSourced[int]):
    """Counts its departures."""

    events = (Departed,)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Departed) -> int:
        return state + 1

    async def receive(self, message: Departed | None) -> int:
        if message is not None:
            self.persist_nowait(message)
        return self.state


class Dashboard(Projection):
    """The departures of each airport, by the hour."""

    name, version = "dashboard", 1
    events = (Departed,)
    tables = ("departures",)
    batch_size = 50  # so that there is something to be seen

    def setup(self, tx: sqlite3.Connection) -> None:
        tx.execute(
            f"CREATE TABLE {self.table('departures')}"
            " (airport TEXT, hour INTEGER, flights INTEGER, PRIMARY KEY (airport, hour))"
        )

    def handle(self, received: Received, tx: sqlite3.Connection) -> None:
        tx.execute(
            f"INSERT INTO {self.table('departures')} VALUES (?, ?, 1)"
            " ON CONFLICT (airport, hour) DO UPDATE SET flights = flights + 1",
            (received.actor.rpartition("/")[2], received.event.hour),
        )


class SlowDashboard(Dashboard):
    """The same, slow enough to be killed in the midst of a day."""

    name, version = "dashboard", 1

    def handle(self, received: Received, tx: sqlite3.Connection) -> None:
        time.sleep(0.001)
        super().handle(received, tx)


class DelayDashboard(Dashboard):
    """The same, and how long they were delayed together."""

    name, version = "dashboard", 2

    def setup(self, tx: sqlite3.Connection) -> None:
        super().setup(tx)
        tx.execute(f"ALTER TABLE {self.table('departures')} ADD COLUMN minutes INTEGER DEFAULT 0")

    def handle(self, received: Received, tx: sqlite3.Connection) -> None:
        airport, event = received.actor.rpartition("/")[2], received.event
        tx.execute(
            f"INSERT INTO {self.table('departures')} VALUES (?, ?, 1, ?)"
            " ON CONFLICT (airport, hour)"
            " DO UPDATE SET flights = flights + 1, minutes = minutes + excluded.minutes",
            (airport, event.hour, max(0, event.delay)),
        )


def read_departures(path: Path) -> Iterator[tuple[str, Departed]]:
    """Yield the airport and what happened, for each flight that has left."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as raw:
            yield from _parsed(io.TextIOWrapper(raw, encoding="utf-8"))
    else:
        with path.open(encoding="utf-8") as lines:
            yield from _parsed(lines)


def _parsed(lines: Iterator[str] | io.TextIOBase) -> Iterator[tuple[str, Departed]]:
    for row in csv.DictReader(lines):
        if row["dep_delay"] not in ("", "NA"):
            flight = row["carrier"] + row["flight"]
            yield row["origin"], Departed(flight, int(row["hour"]), int(row["dep_delay"]))


def system_in(folder: Path) -> ActorSystem:
    return ActorSystem("airports", persistence=SQLitePersistence(folder / "events.db"))


async def depart(system: ActorSystem, departures: list[tuple[str, Departed]]) -> None:
    """Have flights depart."""
    for airport, departed in departures:
        await system.entity(Airport, airport).tell(departed)
    for airport in {airport for airport, _ in departures}:
        await system.entity(Airport, airport).ask(None)  # so all of them are stored


async def show(runner: ProjectionRunner, until: int) -> None:
    """Say how far a projection is, until it is there."""
    shown = ""
    while (status := runner.status).position < until:
        line = f"  {status.state} at {status.position:,} of {until:,}"
        if line != shown:
            print(shown := line, flush=True)
        await anyio.sleep(0.02)
    await runner.wait_for(until)


async def make_half(folder: Path) -> None:
    """Count flights, in the process that is killed."""
    async with system_in(folder) as system:
        runner = system.project(SlowDashboard(SQLiteView(folder / "views.db", lease=1)))
        await show(runner, system.backend.last_seq)


def flights_in(folder: Path) -> int:
    """Read the dashboard, as any other program does."""
    with closing(sqlite3.connect(folder / "views.db")) as view:
        (flights,) = view.execute("SELECT sum(flights) FROM departures").fetchone()
        return flights or 0


def kill_in_the_midst(folder: Path) -> None:
    """Run `make_half` until it has counted some flights, then kill it."""
    program = [sys.executable, __file__, "--half", str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[2] != b"0":
                break
        process.send_signal(signal.SIGKILL)


async def go_on(folder: Path, more: list[tuple[str, Departed]]) -> None:
    """Go on where the process that was killed has stopped, while more flights depart."""
    async with system_in(folder) as system:
        runner = system.project(Dashboard(SQLiteView(folder / "views.db")))
        await depart(system, more)
        await show(runner, system.backend.last_seq)


async def rebuild(folder: Path) -> None:
    """Build the next version, while somebody reads."""
    read: set[int] = set()

    async def look() -> None:
        while True:
            read.add(flights_in(folder))
            await anyio.sleep(0.005)

    async with system_in(folder) as system, anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        runner = system.project(DelayDashboard(SQLiteView(folder / "views.db")))
        await runner.wait_for(system.backend.last_seq)
        await runner.drop_old()
        tasks.cancel_scope.cancel()
    print(f"meanwhile readers saw {sorted(read)} flights")


def print_dashboard(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "views.db")) as view:
        busiest = view.execute(
            "SELECT airport, hour, flights, minutes FROM departures"
            " ORDER BY flights DESC, airport, hour LIMIT 3"
        )
        for airport, hour, flights, minutes in busiest:
            print(f"  {airport} {hour:02}:00  {flights} flights, {minutes / flights:.0f} min late")


async def main(path: Path) -> None:
    departures = list(read_departures(path))
    half = len(departures) // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with system_in(folder) as system:
            await depart(system, departures[:half])
        kill_in_the_midst(folder)
        print(f"killed, with {flights_in(folder):,} of {half:,} flights counted")
        await go_on(folder, departures[half:])
        print(f"gone on: {flights_in(folder):,} of {len(departures):,} flights counted")
        await rebuild(folder)
        print_dashboard(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--half"]:
        anyio.run(make_half, Path(sys.argv[2]))
    else:
        anyio.run(main, Path(sys.argv[1]) if sys.argv[1:] else FIRST_DAY)
