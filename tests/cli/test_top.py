"""``papyra top``."""

from __future__ import annotations

import itertools
import json
import re
import signal
import termios
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pexpect
import pyte
import pytest

from papyra.persistence import PersistedEvent, Record
from tests.cli.conftest import (
    COLOUR,
    COUNTS,
    PATIENCE,
    RECORDS,
    Command,
    Store,
    audit,
    dead_letter,
    event,
    new_store,
    widest,
)
from tests.redis_server import RedisServer, any_binary

HOME = "\x1b[H"
"""Takes the cursor home, which begins a frame."""


def test_papyra_top_in_a_pipe_prints_a_line_for_each_look(papyra: Command, shop: Store) -> None:
    done = papyra("top", shop.name, "--count", 3, "--interval", "10ms")
    assert (done.code, done.err) == (0, "")
    assert len(done.rows) == 3
    for when, records, *rates in done.rows:
        assert datetime.fromisoformat(when).tzinfo is not None
        assert records == str(len(RECORDS))
        assert rates == ["0.0"] * 4


def test_papyra_top_counts_new_records(papyra: Command, store: Store) -> None:
    store.append(event(0))
    with papyra.start("top", store.name, "--json", "--interval", "50ms") as watching:
        try:
            assert watching.stdout is not None
            looks = [json.loads(watching.stdout.readline())]
            new: list[Record] = [event(n) for n in range(1, 41)]
            new += [event(n, event_type="ActorCrashed") for n in range(41, 46)]
            new += [audit(46), audit(47), dead_letter(48)]
            store.append(*new)
            while looks[-1]["records"] < 49:
                looks.append(json.loads(watching.stdout.readline()))
            looks.append(json.loads(watching.stdout.readline()))
        finally:
            watching.send_signal(signal.SIGINT)
            _, err = watching.communicate(timeout=PATIENCE)
    assert (watching.returncode, err) == (130, "")
    assert looks[0]["records"] == 1
    assert looks[0]["stored_bytes"] > 0
    assert set(looks[0]["rates"].values()) == {0}
    seen: Counter[str] = Counter()
    for before, look in itertools.pairwise(looks):
        for name, rate in look["rates"].items():
            seen[name] += rate * (look["time"] - before["time"])
    assert {name: round(count) for name, count in seen.items()} == {
        "event": 45,
        "audit": 2,
        "dead_letter": 1,
        "crashes": 5,
    }


@pytest.mark.parametrize(
    "options", [["-n", 0], ["-n", -1], ["--interval", "0s"], ["--interval", "x"]]
)
def test_papyra_top_with_an_invalid_count_or_interval_is_wrong_use(
    papyra: Command, hostile: Store, options: list[object]
) -> None:
    done = papyra("top", hostile.name, *options)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1


class Screen:
    """A terminal with a command on it, as somebody sees it.

    It changes by whole frames. One is complete once the cursor goes home for the next one: until
    then, the rest of the screen is the frame before, or nothing.
    """

    def __init__(self, child: pexpect.spawn[str], columns: int, rows: int) -> None:
        self.child = child
        self.raw = ""
        self._begun = ""  # the frame that is being printed
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    def until(self, condition: Callable[[list[str]], object]) -> None:
        """Read what is printed until the screen shows what it should."""
        while not condition(self.lines):
            self._take_frame()

    def end(self) -> int | None:
        """Read to the end; return the exit code."""
        try:
            while True:
                self._take_frame()
        except pexpect.EOF:
            self._stream.feed(self._begun)
            self.child.close()
            return self.child.exitstatus

    def _take_frame(self) -> None:
        while (end := self._begun.find(HOME, 1)) < 0:
            text = self.child.read_nonblocking(4096, timeout=PATIENCE)
            self.raw += text
            self._begun += text
        self._stream.feed(self._begun[:end])
        self._begun = self._begun[end:]


def watch(papyra: Command, store: Store, columns: int = 100, rows: int = 40) -> Screen:
    child = papyra.terminal("top", store.name, "--interval", "50ms", columns=columns, rows=rows)
    return Screen(child, columns, rows)


def has(text: str) -> Callable[[list[str]], object]:
    return lambda lines: any(text in line for line in lines)


def test_papyra_top_on_a_terminal_is_live_and_ends_with_q(papyra: Command, store: Store) -> None:
    store.append(*RECORDS)
    screen = watch(papyra, store, columns=200)  # has a long path
    screen.until(has("dead letters"))
    [total] = [line for line in screen.lines if line.startswith("event ")]
    assert total.split()[1] == str(COUNTS[PersistedEvent])
    assert has(f"{len(RECORDS)} records")(screen.lines)
    assert has("shop/printer")(screen.lines)
    store.append(event(5000, event_type="Special"), event(5001, event_type="ActorCrashed"))
    store.append(dead_letter(5002))
    screen.until(has("Special"))
    screen.until(has('"m5002"'))
    assert has(f"{len(RECORDS) + 3} records")(screen.lines)
    crashes = screen.lines.index("crashes")
    assert any('{"n":5001}' in line for line in screen.lines[crashes:])
    screen.child.send("q")
    assert screen.end() == 0
    # The alternate screen is left, and there is a cursor.
    assert screen.raw.rindex("\x1b[?1049l") > screen.raw.rindex("\x1b[?1049h")
    assert screen.raw.rindex("\x1b[?25h") > screen.raw.rindex("\x1b[?25l")


@pytest.mark.parametrize("key", ["q", "Q", "\x03"])
def test_papyra_top_leaves_the_terminal_as_it_was(
    papyra: Command, hostile: Store, key: str
) -> None:
    program = " ".join(papyra.program)
    script = f"{program} top '{hostile.name}' --interval 50ms; echo code $?; stty -a; echo done"
    child = pexpect.spawn(
        "bash",
        ["--norc", "-c", f"stty -a; echo begin; trap : INT; {script}"],
        env=papyra.environment({}),
        cwd=str(papyra.home),
        dimensions=(24, 80),
        timeout=PATIENCE,
        encoding="utf-8",
    )
    child.expect("begin")
    before = child.before
    child.expect(r"\?1049h")
    child.expect("dead letters")
    assert not termios.tcgetattr(child.child_fd)[3] & termios.ICANON
    child.send(key)
    child.expect(r"code (\d+)\r\n")
    assert isinstance(child.match, re.Match)
    assert child.match[1] == "0"
    child.expect("done")
    assert child.before == before
    child.expect(pexpect.EOF)
    child.close()


def test_papyra_top_on_a_terminal_ends_after_the_given_count_of_looks(
    papyra: Command, ledger: Store
) -> None:
    done = papyra.on_terminal("top", ledger.name, "--count", 2, "--interval", "10ms")
    assert done.code == 0
    assert "newest events" in done.text


@pytest.mark.parametrize("columns", [40, 80])
def test_papyra_top_fits_a_small_terminal_whatever_is_in_the_records(
    papyra: Command, hostile: Store, columns: int
) -> None:
    screen = watch(papyra, hostile, columns, 24)
    screen.until(has("dead letters"))
    shown = "\n".join(screen.lines)
    for title in ("event", "audit", "dead letter", "crashes", "newest events"):
        assert title in shown
    assert "6 records" in shown or columns == 40
    screen.child.send("q")
    assert screen.end() == 0
    assert not re.search("[\x9b\u202e]|\x1b\\[2J|\t", screen.raw.replace("\x1b[2J", "", 1))
    # On a wider terminal, a line that is too long would not have been broken.
    wide = pyte.Screen(400, 24)
    pyte.Stream(wide).feed(screen.raw.partition("\x1b[?1049l")[0])
    assert "dead letters" in "".join(wide.display)
    assert widest("\n".join(line.rstrip() for line in wide.display)) <= columns


def test_papyra_top_waits_for_a_redis_server_that_goes_away_and_comes_back(
    papyra: Command, tmp_path: Path
) -> None:
    with RedisServer(any_binary(), "--appendonly", "yes", "--appendfsync", "always") as server:
        store = new_store("redis", tmp_path, server)
        store.append(event(1))
        screen = watch(papyra, store)
        screen.until(has("1 records"))
        server.kill()
        screen.until(has("waiting: "))
        server.start()
        store.append(event(2, event_type="Back"))
        screen.until(has("Back"))
        screen.until(lambda lines: not has("waiting: ")(lines))
        screen.child.send("q")
        assert screen.end() == 0


def test_papyra_top_ends_with_one_line_when_the_store_becomes_unreadable(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = new_store("redis", tmp_path, redis_server)
    store.append(event(1))
    screen = watch(papyra, store)
    screen.until(has("1 records"))
    redis_server.cli("DEL", f"{store.tag}:events")
    redis_server.cli("SET", f"{store.tag}:events", "no stream")
    assert screen.end() == 1
    # Behind the alternate screen, which is left.
    after = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.raw.rpartition("\x1b[?1049l")[2])
    [line] = after.split("\r\n")[:-1]
    assert "WRONGTYPE" in line


def test_papyra_top_with_no_color_prints_no_colours(papyra: Command, hostile: Store) -> None:
    done = papyra.on_terminal("top", hostile.name, "-n", 1, env={"NO_COLOR": "1"})
    assert done.code == 0
    assert not COLOUR.search(done.out)
