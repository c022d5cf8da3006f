"""`papyra events`, `papyra audits` and `papyra dead-letters`.

``PAPYRA_CHOICES=1000`` tries more of what options mean together.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jq
import msgspec
import pexpect
import pytest

from papyra.persistence import PersistedAudit, PersistedDeadLetter, PersistedEvent, Record
from tests.cli.conftest import (
    KINDS,
    PATIENCE,
    T0,
    Command,
    Done,
    Store,
    audit,
    dead_letter,
    event,
    new_store,
)
from tests.conftest import kind_for
from tests.extent import CI, count
from tests.redis_server import RedisServer, any_binary

COMMANDS: dict[str, type[Record]] = {
    "events": PersistedEvent,
    "audits": PersistedAudit,
    "dead-letters": PersistedDeadLetter,
}


def letter(number: int, **changes: Any) -> PersistedDeadLetter:
    return msgspec.structs.replace(dead_letter(number), **changes)


def some_records() -> list[Record]:
    """Return records of all kinds, a third of them with times that are out of order."""
    chance = random.Random(6)
    records: list[Record] = []
    for number in range(150):
        late = chance.choice((0, 0, -chance.randrange(50)))
        at = T0 + number + late + chance.choice((0, 0.25))
        match number % 5:
            case 0:
                records.append(msgspec.structs.replace(audit(number), timestamp=at))
            case 1:
                what, target = chance.choice(("str", "Add")), chance.choice(("shop/a", "shop/gone"))
                records.append(
                    letter(number, message_type=what, target=target, timestamp=at, payload={"m": 1})
                )
            case _:
                what = chance.choice(("Counted", "Ordered"))
                records.append(event(number, event_type=what, timestamp=at))
    return records


#: With the positions that they have in a store.
RECORDS = [
    msgspec.structs.replace(record, seq=seq) for seq, record in enumerate(some_records(), start=1)
]

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "a\tb\nc\r\nd\x0be\x0cf",
    "\x9b31m\x9d0;x\x9c\x85\x90",
    "\u202egnp.exe\u2066\u200f",
    "\u2028\u2029\ufeff\u200b",
    "[red]markup[/red] [/] [link=http://x]y[/link] :smile:",
    "\x00\x07\x08\x7f\xa0",
    "\\x1b[31m \\n {{ }} %s $(reboot) `x`",
    "шапка 界 🎭 e\u0301",
    "\ue000\U000e0001\ufffe",
    "x" * 100_000,
]


def hostile_records() -> list[Record]:
    records: list[Record] = []
    for text in HOSTILE:
        payload = {text: [text, {"n": text}]}
        records += [
            PersistedEvent(text, text, text, payload, T0),
            PersistedDeadLetter(text, text, text, payload, True, T0),
            PersistedAudit(text, payload, T0),
        ]
    return records


class Stores(NamedTuple):
    """Of one kind; tests only read them."""

    plain: Store
    hostile: Store


@pytest.fixture(scope="module", params=KINDS if CI else None)
def stores(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
) -> Stores:
    directory = tmp_path_factory.mktemp("stores")
    stores = Stores(
        *(new_store(kind_for(request, KINDS), directory, redis_server) for _ in range(2))
    )
    stores.plain.append(*RECORDS)
    stores.hostile.append(*hostile_records())
    return stores


def selected(
    command: str,
    *,
    since: float | None = None,
    until: float | None = None,
    type: str | None = None,  # noqa: A002 - as the option is called
    actor: str | None = None,
    limit: int | None = None,
    reverse: bool = False,
) -> list[Record]:
    """Return what a command lists: the model."""
    found = [
        record
        for record in RECORDS
        if isinstance(record, COMMANDS[command])
        and (since is None or record.timestamp >= since)
        and (until is None or record.timestamp <= until)
        and type
        in (None, getattr(record, "event_type", None), getattr(record, "message_type", None))
        and actor in (None, getattr(record, "actor_address", None), getattr(record, "target", None))
    ]
    if limit is not None:
        found = found[len(found) - min(limit, len(found)) :]
    return found[::-1] if reverse else found


def iso(when: float) -> str:
    said = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    return said.replace("+00:00", "Z")


def row(record: Record) -> list[str]:
    match record:
        case PersistedEvent():
            names = [record.event_type, record.actor_address]
        case PersistedDeadLetter():
            names = [record.message_type, record.target]
        case _:
            names = ["Audit", record.system_id]
    payload = json.dumps(record.payload, separators=(",", ":"))
    return [str(record.seq), iso(record.timestamp), *names, payload]


def tabbed(records: Sequence[Record]) -> str:
    return "".join("\t".join(row(record)) + "\n" for record in records)


def in_json(records: Sequence[Record]) -> list[Any]:
    return [msgspec.to_builtins(record) for record in records]


def read_json(text: str) -> list[Any]:
    # At this line break only: others that Unicode has are characters in JSON.
    return [json.loads(line) for line in text.replace("\r\n", "\n").split("\n") if line]


def seqs(records: Sequence[Record]) -> list[int]:
    return [record.seq or 0 for record in records]


# What is listed


@pytest.mark.parametrize("command", COMMANDS)
def test_papyra_lists_all_records_of_a_kind_oldest_first_in_columns(
    papyra: Command, stores: Stores, command: str
) -> None:
    done = papyra(command, stores.plain.name)
    assert done == Done(0, tabbed(selected(command)))


#: Of options that are given together, for each command and store.
CHOICES = count("PAPYRA_CHOICES", 12, 100)


def combinations(command: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield options, and what they mean."""
    chance = random.Random(command)
    for _ in range(CHOICES):
        wanted: dict[str, Any] = {}
        options = []
        if chance.random() < 0.4:
            wanted["since"] = T0 + chance.choice((-1, 0, 40, 75.25, 149, 1000))
            form = chance.choice((iso(wanted["since"]), f"{wanted['since']}"))
            options += ["--since", form]
        if chance.random() < 0.4:
            wanted["until"] = T0 + chance.choice((-1, 0, 40, 99.25, 149, 1000))
            options += ["--until", iso(wanted["until"])]
        if chance.random() < 0.5:
            wanted["limit"] = chance.choice((0, 1, 2, 7, 50, 1000))
            options += [chance.choice(("--limit", "-n")), str(wanted["limit"])]
        if chance.random() < 0.4:
            wanted["reverse"] = True
            options += [chance.choice(("--reverse", "-r"))]
        if command != "audits" and chance.random() < 0.4:
            wanted["type"] = chance.choice(("Counted", "Ordered", "str", "Add", "count"))
            options += [chance.choice(("--type", "-t")), wanted["type"]]
        if command != "audits" and chance.random() < 0.4:
            wanted["actor"] = chance.choice(("shop/a", "shop/b", "shop/gone", "shop", "shop/"))
            options += [chance.choice(("--actor", "-a")), wanted["actor"]]
        if chance.random() < 0.5:
            wanted["json"] = True
            options += ["--json"]
        yield options, wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_a_listing_command_select_together_what_each_selects_alone(
    papyra: Command, stores: Stores, command: str
) -> None:
    cases = list(combinations(command))
    results = papyra.many([[command, stores.plain.name, *options] for options, _ in cases])
    for (options, wanted), done in zip(cases, results, strict=True):
        as_json = wanted.pop("json", False)
        expected = selected(command, **wanted)
        assert done.code == 0
        # Why there is nothing is said, unless nobody has asked for anything.
        is_explained = (
            not expected and wanted.get("limit") != 0 and {*wanted} - {"limit", "reverse"}
        )
        assert len(done.err.splitlines()) == bool(is_explained), options
        if as_json:
            assert read_json(done.out) == in_json(expected), options
        else:
            assert done.out == tabbed(expected), options


def test_papyra_events_with_an_empty_type_or_actor_matches_no_record(
    papyra: Command, stores: Stores
) -> None:
    calls = [
        [command, stores.plain.name, option, ""]
        for command in ("events", "dead-letters")
        for option in ("--type", "--actor")
    ]
    for done in papyra.many(calls):
        assert (done.code, done.out) == (0, "")
        assert "there is, for example," in done.err


def test_papyra_events_counts_since_and_until_durations_back_from_now(
    papyra: Command, tmp_path: Path
) -> None:
    now = datetime.now(UTC).timestamp()
    store = new_store("json", tmp_path, RedisServer(any_binary()))
    store.append(*(event(n, timestamp=now - age) for n, age in enumerate((7500, 3900, 60, -600))))
    since, between, until = papyra.many(
        [
            ["events", store.name, "--since", "1h30m"],
            ["events", store.name, "--since", "2h", "--until", "0s"],
            ["events", store.name, "--until", "2h"],
        ],
    )
    assert [line[0] for line in since.rows] == ["2", "3", "4"]
    assert [line[0] for line in between.rows] == ["2", "3"]
    assert [line[0] for line in until.rows] == ["1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", "-1"], "--limit"),
        (["--limit", "many"], "--limit"),
        (["--limit", "1.5"], "--limit"),
        (["--since", "yesterday"], "--since"),
        (["--until", "2025-02-30"], "--until"),
        (["--follow", "--reverse"], "--reverse"),
        (["--follow", "--until", "1h"], "--until"),
        (["--sinse", "1h"], "--sinse"),
        (["--since"], "--since"),
        (["another"], "another"),
    ],
)
def test_invalid_options_of_a_listing_command_are_wrong_use_and_list_nothing(
    papyra: Command, options: list[str], said: str
) -> None:
    # Before anybody looks for the store.
    for done in papyra.many([[name, "nowhere.ndjson", *options] for name in COMMANDS]):
        assert (done.code, done.out) == (2, "")
        [line] = done.err.splitlines()
        assert line.startswith("error: ")
        assert said in line


def test_papyra_audits_takes_no_option_for_type_or_actor(papyra: Command, stores: Stores) -> None:
    for option in ("--type", "--actor"):
        done = papyra("audits", stores.plain.name, option, "x")
        assert (done.code, done.out) == (2, "")
        assert len(done.err.splitlines()) == 1


def test_jq_reads_what_papyra_lists_in_json(papyra: Command, stores: Stores) -> None:
    program = 'select(.actor_address == "shop/a") | [.seq, .payload.n, .timestamp]'
    done = papyra("events", stores.plain.name, "--json")
    expected = [
        [record.seq, record.payload["n"], record.timestamp]
        for record in selected("events", actor="shop/a")
    ]
    assert jq.compile(program).input_text(done.out).all() == expected
    hostile = papyra("dead-letters", stores.hostile.name, "--json")
    assert jq.compile(".").input_text(hostile.out).all() == read_json(hostile.out)


# On a terminal


def shown(record: Record) -> str:
    seq, *cells = row(record)
    return " ".join([f"{seq:>7}", *cells])


@pytest.mark.parametrize("command", COMMANDS)
def test_papyra_lists_records_on_a_terminal_in_colour_one_per_line(
    papyra: Command, stores: Stores, command: str
) -> None:
    done = papyra.on_terminal(command, stores.plain.name, "--limit", 9, "-r", columns=200)
    assert done.code == 0
    assert done.text.splitlines() == [
        shown(record) for record in selected(command, limit=9, reverse=True)
    ]
    assert "\x1b[" in done.out
    plain = papyra.on_terminal(
        command, stores.plain.name, "--limit", 9, "-r", columns=200, env={"NO_COLOR": "1"}
    )
    assert plain.text == done.text
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", plain.out)


def test_papyra_lists_the_newest_fifty_records_on_a_terminal_without_a_limit(
    papyra: Command, stores: Stores
) -> None:
    assert len(selected("events")) > 50 > len(selected("audits"))
    done = papyra.on_terminal("events", stores.plain.name, columns=200)
    *lines, hint = done.text.splitlines()
    assert lines == [shown(record) for record in selected("events", limit=50)]
    assert "50" in hint
    assert "--limit" in hint
    every = papyra.on_terminal("events", stores.plain.name, "--limit", 1000, columns=200)
    assert every.text.splitlines() == [shown(record) for record in selected("events")]
    audits = papyra.on_terminal("audits", stores.plain.name, columns=200)
    assert audits.text.splitlines() == [shown(record) for record in selected("audits")]


def test_papyra_events_json_on_a_terminal_lists_every_record_and_nothing_else(
    papyra: Command, stores: Stores
) -> None:
    done = papyra.on_terminal("events", stores.plain.name, "--json")
    assert read_json(done.out) == in_json(selected("events"))
    assert "\x1b" not in done.out


def test_papyra_events_on_a_terminal_says_when_no_record_matches(
    papyra: Command, stores: Stores
) -> None:
    done = papyra.on_terminal("events", stores.plain.name, "--type", "Nonsense")
    assert done.code == 0
    assert len(done.text.splitlines()) == 1


# What may be in records


ALLOWED_ON_TERMINAL = re.compile(r"\r\n|\x1b\[[0-9;]*m")


def hostile_fields(command: str) -> list[Record]:
    return [
        msgspec.structs.replace(record, seq=seq)
        for seq, record in enumerate(hostile_records(), start=1)
        if isinstance(record, COMMANDS[command])
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_content_of_a_record_breaks_a_line_or_a_column_of_a_listing(
    papyra: Command, stores: Stores, command: str
) -> None:
    done = papyra(command, stores.hostile.name)
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == len(HOSTILE)  # by any line break that Unicode has
    assert [len(line) for line in done.rows] == [5] * len(HOSTILE)
    assert all(character.isprintable() for character in re.sub("[\t\n]", "", done.out))
    # It is all there, and to be recognized.
    assert "\\x1b[31mred\\x1b[0m" in done.rows[0]
    assert "x" * 100_000 in done.rows[-1][-1]
    assert "界 🎭" in done.out
    assert "[red]markup[/red] [/] [link=http://x]y[/link] :smile:" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_no_content_of_a_listed_record_controls_the_terminal(
    papyra: Command, stores: Stores, command: str
) -> None:
    done = papyra.on_terminal(command, stores.hostile.name, columns=200)
    assert done.code == 0
    assert len(done.text.splitlines()) == len(HOSTILE)
    assert ALLOWED_ON_TERMINAL.sub("", done.out).isprintable()
    assert "[red]markup[/red] [/] [link=http://x]y[/link] :smile:" in done.text
    for colour in ("\x1b[31mred", "\x1b[2J", "\x1b]"):
        assert colour not in done.out


def test_no_content_of_a_record_listed_in_json_controls_the_terminal(
    papyra: Command, stores: Stores
) -> None:
    done = papyra.on_terminal("events", stores.hostile.name, "--json")
    assert read_json(done.out) == in_json(hostile_fields("events"))
    unsafe = {c for c in done.out.replace("\r\n", "") if not c.isprintable()}
    # What a terminal obeys: C0, DEL and C1, and what turns the direction of the text.
    assert not {c for c in unsafe if c < "\xa0" or c in "\u202a\u202b\u202c\u202d\u202e\u2066"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_json_listing_holds_the_records_to_the_last_character(
    papyra: Command, stores: Stores, command: str
) -> None:
    done = papyra(command, stores.hostile.name, "--json")
    assert done.out.count("\n") == len(HOSTILE)
    assert read_json(done.out) == in_json(hostile_fields(command))
    decoder = msgspec.json.Decoder(Record)
    assert decoder.decode_lines(done.out) == hostile_fields(command)


def test_papyra_events_escapes_characters_that_the_output_cannot_encode(
    papyra: Command, stores: Stores
) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    done = papyra("events", stores.hostile.name, env=ascii_only)
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "\\u754c \\U0001f3ad" in done.out
    in_data = papyra("events", stores.hostile.name, "--json", env=ascii_only)
    assert in_data.code == 0
    assert in_data.out.isascii()
    terminal = papyra.on_terminal("events", stores.hostile.name, env=ascii_only)
    assert terminal.code == 0
    assert terminal.out.isascii()


def test_papyra_events_json_is_valid_whatever_the_encoding_of_the_output(
    papyra: Command, stores: Stores
) -> None:
    done = papyra("events", stores.hostile.name, "--json", env={"PYTHONIOENCODING": "ascii"})
    assert read_json(done.out) == in_json(hostile_fields("events"))


# To a file


@pytest.mark.parametrize("command", COMMANDS)
def test_a_listing_to_a_file_takes_its_format_from_the_file_name(
    papyra: Command, stores: Stores, command: str, tmp_path: Path
) -> None:
    names = ["list.txt", "list", "list.ndjson", "list.jsonl", "list.json", "forced.txt"]
    (tmp_path / "list.txt").write_text("something longer " * 10_000)
    calls = [[command, stores.plain.name, "--output", name, "-n", "7"] for name in names]
    calls[-1] += ["--json"]
    for done in papyra.many(calls):
        assert (done.code, done.out) == (0, "")
    expected = selected(command, limit=7)
    for name in names[:2]:
        assert (tmp_path / name).read_text() == tabbed(expected)
    for name in names[2:]:
        assert read_json((tmp_path / name).read_text()) == in_json(expected)


def test_a_listing_to_a_file_is_utf_8_and_complete_even_from_an_ascii_terminal(
    papyra: Command, stores: Stores, tmp_path: Path
) -> None:
    done = papyra.on_terminal(
        *("events", stores.hostile.name, "-o", "h.ndjson"), env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.code == 0
    assert "h.ndjson" in done.text
    written = (tmp_path / "h.ndjson").read_bytes().decode()
    assert read_json(written) == in_json(hostile_fields("events"))
    papyra.on_terminal("events", stores.plain.name, "-o", "all.ndjson")
    assert len((tmp_path / "all.ndjson").read_text().splitlines()) == len(selected("events"))


def test_papyra_events_refuses_to_write_its_output_over_the_store(
    papyra: Command, file_store: Store
) -> None:
    file_store.append(*RECORDS)
    before = file_store.file.read_bytes()
    done = papyra("events", file_store.name, "--output", file_store.file)
    assert file_store.file.read_bytes() == before
    assert done.code != 0
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("ending", [".lock", ".new", ".damaged-1"])
def test_papyra_events_refuses_to_write_its_output_over_files_of_the_store(
    papyra: Command, tmp_path: Path, ending: str
) -> None:
    """It is the store's: a lock, a rewrite, a copy of what was damaged."""
    file = tmp_path / "events.ndjson"
    file.touch()
    link = tmp_path / "link"
    link.symlink_to(file.with_name(f"{file.name}{ending}"))
    for output in (link.resolve(), link):
        done = papyra("events", file, "--output", output)
        assert done.code == 2
        assert "of the store itself" in done.err
    assert not link.exists()
    assert papyra("events", file, "--output", f"{file}.txt").code == 0


@pytest.mark.parametrize("output", ["", "nowhere/list.txt", "list.txt/x"])
def test_a_listing_to_a_file_that_cannot_be_written_fails_with_one_line(
    papyra: Command, stores: Stores, tmp_path: Path, output: str
) -> None:
    (tmp_path / "list.txt").touch()
    done = papyra("audits", stores.plain.name, "--output", tmp_path / output)
    assert (done.code, done.out) == (1, "")
    [line] = done.err.splitlines()
    assert line.startswith(f"error: {tmp_path / output}")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_listing_to_a_full_disk_fails_with_one_line(
    papyra: Command, stores: Stores, command: str
) -> None:
    for options in ([], ["--json", "--limit", "1"]):
        with open("/dev/full", "w") as full:
            done = papyra(command, stores.plain.name, *options, stdout=full)
        assert (done.code, done.err) == (1, "error: No space left on device\n"), options
    done = papyra(command, stores.plain.name, "--output", "/dev/full")
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"error: .*No space left on device\n", done.err)


@pytest.mark.parametrize("command", COMMANDS if CI else ["events"])
def test_a_listing_whose_pipe_is_closed_early_succeeds(
    papyra: Command, stores: Stores, command: str
) -> None:
    program = f"{sys.executable} -m papyra.cli"
    # The last record alone is more than a pipe holds.
    for options in ("--json", "--reverse"):
        listing = f"{program} {command} '{stores.hostile.name}' {options}"
        done = papyra.shell(f"{listing} | head -1; echo ${{PIPESTATUS[0]}}")
        assert done.err == "", options
        assert len(done.lines) == 2
        assert done.lines[-1] == "0", options


# What comes


Follow: TypeAlias = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def follow(papyra: Command) -> Iterator[Follow]:
    """Starts commands, which are ended in any case."""
    with ExitStack() as started:

        def start(*arguments: object) -> subprocess.Popen[str]:
            process = papyra.start(*arguments)
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start


def next_lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().removesuffix("\n") for _ in range(count)]


def interrupted(process: subprocess.Popen[str]) -> Done:
    """End a command as Ctrl-C does; return what was left to be read."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, out, err)


def test_papyra_events_follow_shows_the_last_ten_and_goes_on_until_ctrl_c(
    store: Store, follow: Follow
) -> None:
    store.append(*(event(n) for n in range(1, 16)), audit(16), dead_letter(17))
    following = follow("events", store.name, "--follow")
    audits = follow("audits", store.name, "-f", "--json")
    letters = follow("dead-letters", store.name, "-f", "-n", 1, "--type", "str", "-a", "shop/gone")
    some = follow("events", store.name, "-f", "-n", 2, "-t", "Ordered", "--actor", "shop/a")
    limited = follow("events", store.name, "-f", "--limit", 1, "--since", iso(T0 + 2))
    numbers = [line.split("\t")[0] for line in next_lines(following, 10)]
    assert numbers == [str(n) for n in range(6, 16)]
    assert [json.loads(line)["seq"] for line in next_lines(audits, 1)] == [16]
    assert next_lines(letters, 1)[0].startswith("17\t")
    assert next_lines(limited, 1)[0].startswith("15\t")
    store.append(
        *(event(18, event_type="Ordered"), letter(19, message_type="Add"), audit(20)),
        *(letter(21, target="shop/a"), event(22, actor_address="shop/b"), dead_letter(23)),
        *(event(24, event_type="Ordered"), event(25, timestamp=T0)),
    )
    assert [line.split("\t")[0] for line in next_lines(following, 4)] == ["18", "22", "24", "25"]
    assert next_lines(audits, 1) == [
        json.dumps(in_json([at(20, audit(20))])[0], separators=(",", ":"))
    ]
    assert next_lines(letters, 1) == [tabbed([at(23, dead_letter(23))]).strip()]
    assert next_lines(some, 2) == [
        tabbed([at(n, event(n, event_type="Ordered"))]).strip() for n in (18, 24)
    ]
    assert [line.split("\t")[0] for line in next_lines(limited, 3)] == ["18", "22", "24"]
    store.append(event(26, event_type="Ordered"))
    assert next_lines(following, 1)[0].startswith("26\t")
    assert next_lines(some, 1)[0].startswith("26\t")
    assert next_lines(limited, 1)[0].startswith("26\t")
    for process in (following, audits, letters, some, limited):
        assert interrupted(process) == Done(130, "")


def at(seq: int, record: Record) -> Record:
    return msgspec.structs.replace(record, seq=seq)


def test_papyra_events_follow_ends_when_its_pipe_is_closed(store: Store, follow: Follow) -> None:
    store.append(event(1))
    following = follow("events", store.name, "--follow")
    next_lines(following, 1)
    assert following.stdout is not None
    assert following.stderr is not None
    following.stdout.close()
    store.append(event(2))
    assert following.wait(PATIENCE) == 0
    assert following.stderr.read() == ""


def test_papyra_events_follow_on_a_terminal_shows_new_records_until_ctrl_c(
    papyra: Command, store: Store
) -> None:
    store.append(event(1))
    child = papyra.terminal("events", store.name, "--follow", columns=200)
    child.expect("Counted")
    store.append(event(2, event_type="Ordered\x1b[2J"))
    child.expect(r"Ordered\\x1b\[2J")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_papyra_events_follow_writes_new_records_to_a_file(
    papyra: Command, store: Store, follow: Follow, tmp_path: Path
) -> None:
    store.append(event(1))
    following = follow("events", store.name, "--follow", "-o", "new.ndjson")
    watching = follow("events", store.name, "--follow")
    next_lines(watching, 1)
    store.append(event(2))
    next_lines(watching, 1)
    new = tmp_path / "new.ndjson"
    tail = subprocess.Popen(
        ["tail", "-n", "+1", "-F", str(new)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with tail:
        lines = next_lines(tail, 2)
        tail.kill()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2]
    assert interrupted(following).code == 130
    assert read_json(new.read_text()) == in_json([at(1, event(1)), at(2, event(2))])


def test_papyra_events_follow_waits_for_a_redis_server_that_goes_away_and_comes_back(
    follow: Follow, tmp_path: Path
) -> None:
    with RedisServer(any_binary(), "--appendonly", "yes", "--appendfsync", "always") as server:
        store = new_store("redis", tmp_path, server)
        store.append(event(1))
        following = follow("events", store.name, "--follow")
        assert next_lines(following, 1)[0].startswith("1\t")
        assert following.stderr is not None
        for number in (2, 3):
            server.kill()
            waiting = following.stderr.readline()
            assert waiting.startswith("waiting: ")
            assert f"127.0.0.1:{server.port}" in waiting
            server.start()
            store.append(event(number))
            assert next_lines(following, 1) == [tabbed([at(number, event(number))]).strip()]
        assert interrupted(following) == Done(130, "")


# While it is written


#: Persists numbered events as fast as it can until it is told to stop, and says how many.
LIVE = """
import sys, threading
import anyio
from papyra import Actor, ActorSystem
from papyra.conf import backend_from_url

class Counter(Actor):
    def __init__(self):
        self.n = 0

    async def receive(self, message):
        self.n += 1
        await self.context.persist(("Counted", {"n": self.n}))
        return self.n

async def main(url):
    told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
    async with ActorSystem("live", persistence=backend_from_url(url)) as system:
        counter = system.spawn(Counter, name="counter")
        while not told.is_set():
            for _ in range(20):
                await counter.tell("count")
            if await counter.ask("count") == 21:
                print("ready", flush=True)
        count = await counter.ask("count")
    print(count, flush=True)

anyio.run(main, sys.argv[1])
"""


def test_papyra_events_lists_a_store_while_a_system_writes_it(
    papyra: Command, store: Store, follow: Follow
) -> None:
    url = f"{store.url}?max_segment_records=400" if store.kind == "rotating" else store.url
    live = subprocess.Popen(
        [sys.executable, "-c", LIVE, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=papyra.environment({}),
    )
    options = ["--type", "Counted", "--json"]

    def listed(*more: object) -> list[int]:
        done = papyra("events", store.name, *options, *more)
        assert (done.code, done.err) == (0, "")
        return [each["payload"]["n"] for each in read_json(done.out)]

    with live:
        try:
            assert next_lines(live, 1) == ["ready"]
            following = follow("events", store.name, "-f", "-n", 1_000_000, *options)
            count = 0
            for _ in range(3):
                numbers = listed()
                assert numbers == list(range(1, len(numbers) + 1))
                assert len(numbers) > count
                newest = listed("-n", 5)
                count = newest[-1]
                assert newest == list(range(count - 4, count + 1))
                assert count >= len(numbers)
            shown = papyra("inspect", store.name, "--json")
            assert (shown.code, shown.err) == (0, "")
            assert json.loads(shown.out)["records"]["event"] >= count
            assert json.loads(shown.out)["writer"]
        finally:
            out, _ = live.communicate("", timeout=PATIENCE)
    assert live.returncode == 0
    every = list(range(1, int(out) + 1))
    assert [json.loads(line)["payload"]["n"] for line in next_lines(following, len(every))] == every
    assert interrupted(following) == Done(130, "")
    assert listed() == every


# Filters that let nothing through


def test_a_listing_whose_filter_matches_nothing_says_why(papyra: Command, store: Store) -> None:
    store.append(*(event(n, actor_address=f"shop/acc-{n}") for n in range(3)))
    first, last = "2025-07-01T00:00:00.000Z", "2025-07-01T00:00:02.000Z"
    wanted = {
        "events --actor acc-0": "no event has that; did you mean shop/acc-0?",
        "events --actor SHOP/ACC-1": "did you mean shop/acc-1?",
        "events --actor nowhere": "there is, for example, shop/acc-0",
        "events --actor acc-0 --limit 1 --json": "did you mean shop/acc-0?",
        "events --type counted": "--type counted: no event has that; did you mean Counted?",
        "events --since 1s": f"in that time; there are some from {first} to {last}",
        "events --since 1h --until 2h": "--since is after --until",
        "events --type Counted --actor shop/acc": "did you mean shop/acc-",
        "dead-letters --type str": "there is no dead letter at all",
        "audits --since 1h": "there is no audit at all",
        "timeline --actor acc-0": "did you mean shop/acc-0?",
    }
    calls = [line.split() for line in wanted]
    calls = [[name, store.name, *options] for name, *options in calls]
    for line, done in zip(wanted, papyra.many(calls), strict=True):
        assert (done.code, done.out) == (0, ""), line
        assert wanted[line] in done.err, line
    for command in (["events", "--actor", "shop/acc-1"], ["events", "--limit", "0"], ["audits"]):
        done = papyra(command[0], store.name, *command[1:])
        assert (done.code, done.err) == (0, ""), command


# Of a damaged store


@pytest.mark.parametrize("command", ["events", "timeline", "metrics"])
def test_a_listing_of_a_damaged_store_says_that_records_were_passed_over(
    papyra: Command, file_store: Store, command: str
) -> None:
    file_store.append(*map(event, range(5)))
    data = file_store.file.read_bytes()
    assert "damaged" not in papyra(command, file_store.name).err
    file_store.file.write_bytes(data[:-7])  # a torn end, which nobody was told of
    assert "damaged" not in papyra(command, file_store.name).err
    file_store.file.write_bytes(data.replace(b'"n":2', b'"n":9'))
    done = papyra(command, file_store.name)
    assert "is damaged: what can't be read was passed over; papyra scan says where" in done.err
    if command == "events":
        assert [row[0] for row in done.rows] == ["1", "2", "4", "5"]


def test_papyra_lists_scans_and_recovers_a_file_with_windows_newlines(
    papyra: Command, file_store: Store
) -> None:
    file_store.append(*map(event, range(5)))
    data = file_store.file.read_bytes()
    file_store.file.write_bytes(data.replace(b"\n", b"\r\n"))
    done = papyra("events", file_store.name)
    assert [row[0] for row in done.rows] == ["1", "2", "3", "4", "5"]
    assert "is damaged" in done.err
    found = papyra("scan", file_store.name)
    assert (found.code, len(found.rows)) == (3, 1)
    assert "line_ending" in found.out
    assert "CRLF, as Windows has it" in found.out
    assert papyra("recover", file_store.name, "--yes").code == 0
    assert file_store.file.read_bytes().count(b"\r") == 0
    assert papyra("events", file_store.name).rows == done.rows
