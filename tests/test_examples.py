"""Every example runs, and prints what it is there to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples.flights import FIRST_DAY, events_of, read_flights

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def test_quickstart() -> None:
    output = run(EXAMPLES / "quickstart.py")
    assert "order 3 is event 6" in output
    assert "OrderPlaced   {'order_id': 1, 'item': 'tea'}" in output
    assert "records_written           9" in output


def test_supervision() -> None:
    output = run(EXAMPLES / "supervision.py")
    story = [line.split()[2] for line in output.splitlines() if line.lstrip()[:1].isdigit()]
    assert story[:10] == [
        "ActorStarted",
        "ActorStarted",
        "ActorCrashed",
        "ActorCrashed",
        "ActorRestarted",
        "ActorCrashed",
        "ActorStopped",
        "OfficeClosed",
        "ActorStopped",
        "(dead",
    ]


def test_testing_with_memory() -> None:
    output = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "testing_with_memory.py"
    )
    assert "3 passed" in output


def test_flights() -> None:
    output = run(EXAMPLES / "flights.py")
    flights = list(read_flights(FIRST_DAY))
    aircraft = {flight.aircraft for flight in flights}
    assert len(flights) == 842
    assert f"842 flights of {len(aircraft)} aircraft" in output
    # What was stored is what the file says: an independent count.
    departures = [flight.aircraft for flight in flights if flight.departure_delay is not None]
    most = max(departures.count(name) for name in aircraft)
    assert f"{most:5,} departures" in output
    facts = sum(len(list(events_of(flight))) for flight in flights) + 2 * len(aircraft)
    assert f"{facts:,} records" in output


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_says_how_to_run_it(path: Path) -> None:
    assert f"{path.name}" in path.read_text(encoding="utf-8").split('"""')[1]
