"""Every example runs, and prints what it is there to show."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from examples.flights import FIRST_DAY, events_of, read_flights
from tests.extent import CI, some
from tests.redis_server import RedisServer, any_binary

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: str | Path, cwd: Path | None = None) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, cwd=cwd
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def test_quickstart() -> None:
    output = run(EXAMPLES / "quickstart.py")
    assert "order 3 is event 6" in output
    assert "OrderPlaced   {'order_id': 1, 'item': 'tea'}" in output
    assert "records_written             9" in output


@pytest.mark.parametrize(
    "store", some(["json:bank.ndjson", "memory:", "redis", "rotating:bank"], every=2)
)
def test_bank(tmp_path: Path, store: str) -> None:
    """Run twice, its account is what it was; kept elsewhere, by another value in one line."""
    with RedisServer(any_binary()) if store == "redis" else nullcontext() as server:
        url = f"{server.url}?system_id=bank" if server else store
        program = (EXAMPLES / "bank.py").read_text(encoding="utf-8")
        lines = re.findall(r"^STORE = .*$", program, re.MULTILINE)
        assert lines == ['STORE = "json:bank.ndjson"']
        (tmp_path / "bank.py").write_text(program.replace(lines[0], f'STORE = "{url}"'))
        assert run("bank.py", cwd=tmp_path).splitlines() == [
            "the account holds 0 after 0 events",
            "30 more: 30",
            "50 less: 50 is more than 30",
        ]
        # Or as an argument.
        assert run(EXAMPLES / "bank.py", url, cwd=tmp_path).splitlines() == [
            "the account holds 30 after 1 events",
            "30 more: 60",
            "50 less: 10",
        ]
        if server:
            (key,) = server.cli("KEYS", "*:events").splitlines()
            assert server.cli("XLEN", key) == "7"
    kept = {path.name for path in tmp_path.iterdir()} - {"bank.py"}
    place = {"memory:": "bank-copy.ndjson", "redis": ""}.get(store, store.partition(":")[2])
    assert min(kept, default="") == place


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


def test_own_backend() -> None:
    output = run(EXAMPLES / "own_backend.py").splitlines()
    assert output == [f"{seq} OrderPlaced {{'order_id': 1}}" for seq in (1, 2, 3)]


def test_many_processes() -> None:
    with RedisServer(any_binary()) as server:
        output = run(EXAMPLES / "many_processes.py", server.url).splitlines()
        total = 10 * sum(range(1, 41))
        shops = ["berlin", "lisbon", "vienna"]
        assert output[:3] == [f"{shop}: 40 orders, {total:,} in all" for shop in shops]
        assert output[3] == f"billed {3 * total:,} of {3 * total:,}"
        # Each has forty orders, two steps of the desk's life, and an audit.
        assert output[4:] == [f"{shop}'s store: 43 records, clean: True" for shop in shops]
        keys = server.cli("KEYS", "*:events").splitlines()
        assert sorted(key.rpartition(":")[0][-7:-1] for key in keys) == shops
        for key in keys:
            assert server.cli("XLEN", key) == "42"
            # What ada left in hand was taken over.
            assert server.cli("XPENDING", key, "billing").splitlines()[0] == "0"


@pytest.mark.parametrize("store", ["memory", "json", "rotating", "redis"] if CI else ["json"])
def test_testing(tmp_path: Path, store: str) -> None:
    """The project works where a newcomer has copied it to; in CI, on any store and loop."""
    project = tmp_path / "shop"
    shutil.copytree(
        EXAMPLES / "testing", project, ignore=shutil.ignore_patterns("__pycache__", ".*cache")
    )
    result = subprocess.run(
        # Without plugins that a newcomer has not, and which warn of what is not set for them.
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "error",
            *("-p", "no:asyncio", "-p", "no:trio"),
            *(() if CI else ("-k", "not trio")),
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=project,
        env=os.environ | {"PAPYRA_TEST_STORE": store},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ended = re.search(r"^(\d+) passed(, \d+ deselected)? in", result.stdout, re.MULTILINE)
    assert ended, "and nothing but passed"
    assert int(ended[1]) >= (2 if CI else 1) * (7 + 3 + 45)


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
    modules = Path(__file__).parent.glob("test_*_example.py")
    tested |= {path.stem.removeprefix("test_").removesuffix("_example") for path in modules}
    names = {path.stem for path in EXAMPLES.iterdir() if path.suffix in (".py", "")}
    assert names - {"__pycache__"} <= tested


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_says_how_to_run_it(path: Path) -> None:
    assert path.name in path.read_text(encoding="utf-8").split('"""')[1]


def test_dashboard() -> None:
    """Killed in the midst, it counts each flight once all the same; it is rebuilt while read."""
    output = run(EXAMPLES / "dashboard.py").splitlines()
    departed = [flight for flight in read_flights(FIRST_DAY) if flight.departure_delay is not None]
    total, half = len(departed), len(departed) // 2
    killed = re.fullmatch(rf"killed, with (\d+) of {half} flights counted", output[0])
    assert killed
    assert 0 < int(killed[1]) < half
    assert f"gone on: {total} of {total} flights counted" in output
    assert f"meanwhile readers saw [{total}] flights" in output
    hours = Counter(
        (row["origin"], int(row["hour"]))
        for row in csv.DictReader(FIRST_DAY.read_text(encoding="utf-8").splitlines())
        if row["dep_delay"] not in ("", "NA")
    )
    (airport, hour), flights = min(hours.items(), key=lambda each: (-each[1], each[0]))
    assert output[-3].startswith(f"  {airport} {hour:02}:00  {flights} flights")


def test_order_saga(tmp_path: Path) -> None:
    """Killed in the midst, it goes on where it was, however often a step fails."""
    command = [sys.executable, "-u", str(EXAMPLES / "order_saga.py")]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert "reserve lamp for 42" in next(line for line in first.stdout if "lamp" in line)
        first.kill()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] in {"shipped", "undone: it took too long"}
