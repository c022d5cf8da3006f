"""``papyra projections``, beside the system that runs them, and without one."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra.projections import SQLiteView
from papyra.projections.inspection import inspect_store, inspect_view
from tests.cli.conftest import Command, Store, event, new_store
from tests.cli.test_app import is_one_error
from tests.cli.test_hostile import is_harmless
from tests.extent import CI
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a file, with nothing in it yet: what is asked for comes to it as to any other."""
    path = tmp_path / "bank.ndjson"
    return Store("json", str(path), path)


@pytest.fixture
def view(tmp_path: Path) -> Path:
    return tmp_path / "views.db"


class Runner:
    """A process that runs the projections of `tests.cli.projecting`."""

    def __init__(self, store: Store, view: Path | str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.projecting", store.url, str(view)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def add(self, *lines: str) -> int:
        """Store events, and return the position of the last."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        last = 0
        for line in lines:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            last = int(self._process.stdout.readline())
        return last

    def end(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


@contextlib.contextmanager
def running(store: Store, view: Path | str) -> Iterator[Runner]:
    runner = Runner(store, view)
    try:
        yield runner
    finally:
        runner.end()


def listed(papyra: Command, store: Store, view: Path | str) -> dict[str, Any]:
    done = papyra("projections", store.name, "--view", view, "--over", "0s", "--json")
    assert done.code == 0, done.err
    return {each["name"]: each for each in json.loads(done.out)}


def until(
    papyra: Command, store: Store, view: Path | str, name: str, **fields: Any
) -> dict[str, Any]:
    """Wait until a projection is listed with these fields."""
    end = time.monotonic() + 60
    while True:
        found = listed(papyra, store, view).get(name, {})
        if {**found, **fields} == found:
            return dict(found)
        assert time.monotonic() < end, found


def parked(found: dict[str, Any]) -> list[tuple[int, bool]]:
    return [(each["seq"], each["is_held"]) for each in found.get("parked", ())]


def ask(
    papyra: Command, action: str, name: str, store: Store, view: Path | str, *options: Any
) -> Any:
    words = ("projections", action, name, store.name, "--view", view)
    done = papyra(*words, *options, "--yes", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def facts(papyra: Command, store: Store, name: str, view: Path) -> list[tuple[str, str]]:
    done = papyra("projections", "show", name, store.name, "--view", view, "--json", "--over", "0s")
    records = json.loads(done.out)["facts"]
    return [(each["event_type"], each["payload"].get("reason", "")) for each in records]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("json", "lines"), ("sqlite", "mails"), ("redis", "mails")] if CI else [("json", "mails")],
)
def test_a_projection_is_listed_paused_resumed_and_led_past_an_event_while_it_is_run(
    papyra: Command, redis_server: RedisServer, view: Path, kind: str, name: str
) -> None:
    store = new_store(kind, view.parent, redis_server)
    with running(store, view) as runner:
        head = runner.add("one", "two")
        found = until(papyra, store, view, name, position=head)
        assert (found["state"], found["is_run"], found["lag"]) == ("running", True, 0)
        assert found["view"] == (str(view) if name == "lines" else None)

        asked = ask(papyra, "pause", name, store, view, "--reason", "a\nmove")
        assert (asked["done"], asked["taken"], asked["state"]) == (True, True, "paused")
        assert asked["error"] == "a\nmove"
        runner.add("three")
        assert listed(papyra, store, view)[name]["lag"] >= 1
        assert ask(papyra, "pause", name, store, view)["taken"] is False
        asked = ask(papyra, "resume", name, store, view)
        assert (asked["done"], asked["request"]) == (True, None)
        head = runner.add("four")
        until(papyra, store, view, name, position=head, state="running")

        bad = runner.add("bad")
        found = until(papyra, store, view, name, state="paused", error_seq=bad)
        assert found["lag"] >= 1
        assert found["lag_seconds"] > 0
        done = papyra("projections", store.name, "--view", view)
        assert is_harmless(done.out)
        assert f"paused at {bad}" in done.out

        failed = papyra(
            *("projections", "retry", name, store.name, "--view", view, "--yes", "--timeout", "30s")
        )
        assert (failed.code, failed.out.count("paused at")) == (1, 1)
        assert f"it is paused at {bad}" in failed.err
        assert is_harmless(failed.err)
        asked = ask(papyra, "skip", name, store, view, "--reason", "no line")
        assert asked["state"] == "running"
        until(papyra, store, view, name, position=runner.add("five"), parked=[])
    told = facts(papyra, store, name, view)
    assert ("ProjectionSkipped", "no line") in told
    assert ("ProjectionPaused", "a\nmove") in told
    assert "ProjectionResumed" in dict(told)


def test_parked_events_are_shown_tried_again_and_skipped(
    papyra: Command, store: Store, view: Path
) -> None:
    with running(store, view) as runner:
        first, held, second = runner.add("bad"), runner.add("b"), runner.add("bad")
        wanted = [(first, False), (held, True), (second, True)]
        while parked(listed(papyra, store, view).get("parking", {})) != wanted:
            pass  # a command takes long enough
        shown = papyra("projections", "show", "parking", store.name, "--view", view)
        assert "this is bad" in shown.facts[f"parked {first}"]
        assert is_harmless(shown.out)
        missing = papyra(
            "projections", "retry", "parking", store.name, "--view", view, "--event", 99, "--yes"
        )
        assert is_one_error(missing, 1)
        assert "event 99 is not parked" in missing.err
        assert str(first) in missing.err
        asked = ask(papyra, "skip", "parking", store, view, "--event", first)
        assert first not in [each["seq"] for each in asked["parked"]]
        view.with_name(f"{view.name}.mended").touch()
        for each in until(papyra, store, view, "parking")["parked"]:
            ask(papyra, "retry", "parking", store, view, "--event", each["seq"])
        assert until(papyra, store, view, "parking")["parked"] == []


def test_a_view_is_built_anew_when_its_runner_is_asked_to(
    papyra: Command, store: Store, view: Path
) -> None:
    with running(store, view) as runner:
        head = runner.add("one", "two")
        until(papyra, store, view, "lines", position=head, state="running")
        asked = ask(papyra, "rebuild", "lines", store, view)
        assert asked["done"]
        found = until(papyra, store, view, "lines", build=2, state="running")
        assert (found["retired"], found["rebuilding"]) == (1, None)
        refused = papyra("projections", "rebuild", "mails", store.name, "--yes")
        assert is_one_error(refused, 1)
        assert "no view" in refused.err
    with contextlib.closing(sqlite3.connect(view)) as database:
        assert database.execute("SELECT line FROM lines").fetchall() == [("one",), ("two",)]


@pytest.mark.parametrize("name", ["lines", "mails"] if CI else ["lines"])
def test_what_nobody_runs_is_asked_for_and_found_by_who_runs_it_next(
    papyra: Command, store: Store, view: Path, name: str
) -> None:
    with running(store, view) as runner:
        until(papyra, store, view, name, position=runner.add("one"), state="running")
    found = listed(papyra, store, view)[name]
    assert (found["state"], found["is_run"]) == ("stopped", False)
    done = papyra("projections", "pause", name, store.name, "--view", view, "--yes")
    assert (done.code, done.out.count("stopped")) == (0, 1)
    assert "waits for whoever does" in done.err
    assert listed(papyra, store, view)[name]["request"] == "pause"
    with running(store, view) as runner:
        runner.add("two")
        until(papyra, store, view, name, state="paused", request=None)


def test_a_request_that_nobody_takes_is_taken_back(
    papyra: Command, store: Store, view: Path
) -> None:
    with running(store, view) as runner:
        until(papyra, store, view, "lines", position=runner.add("one"), state="running")
    with contextlib.closing(sqlite3.connect(view)) as database, database:
        # As if it were run by a process that hangs.
        database.execute("UPDATE papyra_projections SET owner = 'x', lease_until = 9e9")
    done = papyra(
        *("projections", "pause", "lines", store.name, "--view", view, "--yes", "--timeout", "1s")
    )
    assert (done.code, done.out.count("running")) == (1, 1)
    assert "nothing was changed" in done.err
    found = listed(papyra, store, view)["lines"]
    assert (found["request"], found["state"]) == (None, "running")


# Without any system


VIEWS = """
from papyra.projections import Projection, SQLiteView

class Other(Projection):
    def handle(self, received, tx):
        raise NotImplementedError

projections = [Other(SQLiteView({path!r}))]
"""


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a system has left its store and its view."""
    folder = tmp_path_factory.mktemp("stopped")
    store = Store("json", str(folder / "bank.ndjson"), folder / "bank.ndjson")
    with running(store, folder / "views.db") as runner:
        last = runner.add("one")
        while anyio.run(behind, store, folder / "views.db", last):
            pass  # so does a reader that opens the store
    return folder


async def behind(store: Store, view: Path, position: int) -> bool:
    """Return whether one of the three projections has not come to a position."""
    async with store.backend().reader() as reader:
        found = [*await inspect_store(reader), *inspect_view(SQLiteView(view))]
    return [each.build.position >= position for each in found] != [True] * 3


@pytest.fixture
def stopped(left_behind: Path, tmp_path: Path) -> tuple[Store, Path]:
    """Return a store and a view whose system has stopped."""
    shutil.copytree(left_behind, tmp_path / "stopped")
    path = tmp_path / "stopped" / "bank.ndjson"
    return Store("json", str(path), path), path.with_name("views.db")


def test_views_are_found_by_the_module_that_makes_them(
    papyra: Command, stopped: tuple[Store, Path], tmp_path: Path
) -> None:
    store, view = stopped
    (papyra.home / "their_views.py").write_text(VIEWS.format(path=str(view)))
    (papyra.home / "no_views.py").write_text("x = 1\n")
    (papyra.home / "bad_views.py").write_text("raise ValueError('\x1b[31mno')\n")
    options = ("--over", "0s", "--json")
    by_app = papyra("projections", store.name, "--app", "their_views", *options)
    by_view = papyra("projections", store.name, "--view", view, *options)
    names = [each["name"] for each in json.loads(by_app.out)]
    assert names == ["lines", "mails", "parking"]
    assert [each["name"] for each in json.loads(by_view.out)] == names
    for module, said in (("no_views", "--view"), ("bad_views", "can't be imported"), ("", "--app")):
        done = papyra("projections", store.name, "--app", module)
        assert is_one_error(done, 2)
        assert said in done.err
        assert is_harmless(done.err)


def test_papyra_projections_asks_and_a_no_changes_nothing(
    papyra: Command, stopped: tuple[Store, Path]
) -> None:
    store, view = stopped
    call = ("projections", "pause", "lines", store.name, "--view", view)
    refused = papyra.on_terminal(*call, answers=["n"])
    assert refused.code == 1
    assert "nothing was changed" in refused.text
    assert papyra(*call).code == 2
    assert listed(papyra, store, view)["lines"]["request"] is None
    assert papyra.on_terminal(*call, answers=["y"]).code == 0
    assert listed(papyra, store, view)["lines"]["request"] == "pause"
    again = papyra.on_terminal(
        *("projections", "rebuild", "lines", store.name, "--view", view), answers=["n"]
    )
    assert "in place of 'pause'" in " ".join(again.text.split())


def test_what_makes_no_sense_to_ask_a_projection_for_is_one_error(
    papyra: Command, stopped: tuple[Store, Path]
) -> None:
    store, view = stopped
    cases: list[tuple[list[str], int, str]] = [
        (["pause"], 2, "which projection"),
        (["pause", "lines", store.name, "more"], 2, "which projection"),
        (["pause", " ", store.name], 2, "which projection"),
        (["halt", "lines"], 2, "halt"),
        (["pause", "nothing", store.name], 1, "there is lines, mails, parking"),
        (["skip", "lines", store.name], 1, "not paused"),
        (["pause", "lines", store.name, "--event", "3"], 2, "--event"),
        (["retry", "lines", store.name, "--event", "3"], 1, "event 3 is not parked"),
    ]
    for words, code, said in cases:
        done = papyra("projections", *words, "--view", view, "--yes")
        assert is_one_error(done, code)
        assert said in done.err


def test_a_store_without_projections_says_where_others_are(
    papyra: Command, file_store: Store, tmp_path: Path
) -> None:
    file_store.append(event(1))
    done = papyra("projections", file_store.name)
    assert (done.code, done.out) == (0, "")
    assert "--view" in done.err
    assert papyra("projections", file_store.name, "--json").out == "[]\n"


def test_what_is_under_the_name_of_a_projection_and_is_none_is_passed_over_aloud(
    papyra: Command, file_store: Store
) -> None:
    async def write() -> None:
        async with file_store.backend() as backend:
            for name, data in (("a", b"\xff"), ("b", b"[]"), ("c\x1b[31m", b"{}")):
                await backend.save_position(f"projections/{name}", data, None)
            await backend.append(event(1))

    anyio.run(write)
    done = papyra("projections", file_store.name, "--json", "--over", "0s")
    assert (done.code, done.out) == (0, "[]\n")
    assert done.err.count("none of a projection") == 3
    assert is_harmless(done.err)
    assert papyra("top", file_store.name, "--count", 1).code == 0


def test_papyra_top_shows_projections(papyra: Command, stopped: tuple[Store, Path]) -> None:
    store, view = stopped
    call = ("top", store.name, "--view", view, "--interval", "50ms", "--count", 2)
    looks = [json.loads(line) for line in papyra(*call, "--json").lines]
    assert [each["name"] for each in looks[1]["projections"]] == ["lines", "mails", "parking"]
    assert [each["rate"] for each in looks[1]["projections"]] == [0.0] * 3
    assert looks[0]["projections"][0]["rate"] is None
    shown = papyra.on_terminal(*call)
    assert shown.code == 0
    for name in ("lines", "mails", "parking"):
        assert re.search(rf"{name} +stopped", shown.text)


def test_a_view_of_another_store_is_known_by_its_id(
    papyra: Command, stopped: tuple[Store, Path], tmp_path: Path
) -> None:
    _, view = stopped
    path = tmp_path / "other.ndjson"
    other = Store("json", str(path), path)

    async def write() -> None:
        async with other.backend() as backend:
            await backend.append(*map(event, range(1, 9)))
            await backend.store_id()

    anyio.run(write)
    found = listed(papyra, other, view)["lines"]
    assert (found["lag"], found["position"]) == (None, 1)
    row = papyra("projections", other.name, "--view", view, "--over", "0s").rows[0]
    assert "of another store" in row[1]


def test_a_view_that_is_not_there_is_an_error_and_is_not_made(
    papyra: Command, file_store: Store, tmp_path: Path
) -> None:
    file_store.append(event(1))
    done = papyra("projections", file_store.name, "--view", tmp_path / "nowhere.db")
    assert is_one_error(done, 1)
    assert "nowhere.db" in done.err
    assert not (tmp_path / "nowhere.db").exists()
