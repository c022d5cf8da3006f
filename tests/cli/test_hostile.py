"""What comes from stores, names, URLs and arguments: shown, and never obeyed by a terminal."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import papyra.cli as papyra_cli
from papyra.persistence import PersistedAudit, PersistedDeadLetter
from tests.cli.conftest import Command, Done, Store, event
from tests.cli.test_app import LOOKING, SECRET, call
from tests.extent import CI

#: Colours, a bell, C1, DEL, the ends of lines of other systems, directions, what is not seen.
EVIL = "\x1b[31m\x07\x9b2J\x7f\r\n\x0b\x85\u2028\u2029\u202e\u2066\u200b\ufeff[bold]é"
#: The same as the name of a file, and bytes that are no text.
EVIL_NAME = EVIL + "\udc80\udcff"


def is_harmless(text: str) -> bool:
    """Return whether there is nothing but text in it, tabs between cells, and ends of lines."""
    return all(c.isprintable() or c in "\t\n" for c in text)


def spoilt(path: Path) -> None:
    """Change a record, take one away, and tear the last one."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"Counted", b"counted")
    del lines[3]
    path.write_bytes(b"".join(lines)[:-9])


def evil_store(kind: str, place: Path) -> Store:
    store = Store(kind, str(place), place)
    crash = {"decision": "restart", "error": EVIL, "error_type": EVIL}
    records: list[Any] = [event(n, payload={EVIL: [EVIL, {"n": 2**70}]}) for n in range(4)]
    records += [
        event(5, system_id=EVIL, actor_address=f"{EVIL}/x", event_type="ActorStarted"),
        event(6, actor_address=f"{EVIL}/x", event_type="ActorCrashed", payload=crash),
        event(7, actor_address=EVIL, event_type=EVIL),
        PersistedDeadLetter(EVIL, EVIL, EVIL, EVIL, False, 8.0),
        PersistedAudit(EVIL, {EVIL: 1, "actors": 10**400, "crashed": 2**60, "started": 1}, 9.0),
    ]
    store.append(*records)
    return store


EVERY: list[list[str]] = [
    *LOOKING,
    *([*command, "--json"] for command in LOOKING if command[0] != "top"),
    ["top", "--json", "--count", "1"],
    ["metrics", "--format", "prometheus"],
    ["timeline", "--html", "page.html"],
    ["events", "--output", "out.tsv"],
    ["events", "--actor", EVIL],
    ["events", "--type", EVIL],
    ["dead-letters", "--type", EVIL],
    ["timeline", "--actor", EVIL],
    ["events", "--since", EVIL],
    ["events", f"--{EVIL}"],
    ["events", "--limit", EVIL],
    ["scan", EVIL],
    ["recover", "--mode", EVIL],
    ["recover", "--quarantine-dir", EVIL],
    ["compact", "--max-age", EVIL],
    ["recover"],
    ["compact", "--max-records", "1"],
    ["copy", f"{EVIL}.ndjson"],
]


@pytest.mark.parametrize("kind", ["json", "rotating"] if CI else ["rotating"])
def test_papyra_prints_no_control_sequence_that_a_name_or_a_record_holds(
    papyra: Command, kind: str
) -> None:
    name = f"{EVIL_NAME}.ndjson" if kind == "json" else EVIL_NAME
    store = evil_store(kind, papyra.home / name)
    (papyra.home / f"{EVIL}.ndjson").write_text(f"{EVIL}\n")
    sound = [call(store.name, command) for command in EVERY]
    done = papyra.many([*sound, [EVIL], [EVIL, store.name], ["--" + EVIL]])
    spoilt(store.file)
    if store.path is not None and store.path.is_dir():
        (store.path / EVIL_NAME).write_text("a stranger")
    mend = [store.name, "--yes", "--mode", "quarantine", "--quarantine-dir", EVIL_NAME]
    done += papyra.many(
        [*sound, ["recover", *mend, "--json"], ["copy", store.name, f"{EVIL_NAME}2.ndjson"]]
    )
    spoilt(store.file)
    done += papyra.many([["recover", *mend], ["scan", f"/{EVIL}/x.ndjson"]])
    assert "the original is at" in done[-2].out
    for one in done:
        assert is_harmless(one.out), one
        assert is_harmless(one.err), one
        assert "Traceback" not in one.err, one


def test_papyra_recover_prints_hostile_names_as_text_in_its_question(papyra: Command) -> None:
    store = evil_store("json", papyra.home / f"{EVIL}.ndjson")
    spoilt(store.file)
    shown = papyra.on_terminal("recover", store.name, columns=400, answers=["y"])
    assert shown.code == 0
    assert "[bold]" in shown.text, "which is a name here, and no markup"
    assert is_harmless(shown.text.replace("\r", "")), shown.text


def test_papyra_prints_log_messages_without_control_sequences_or_passwords(papyra: Command) -> None:
    (papyra.home / "loud.py").write_text(
        "import logging, msgspec\n"
        f"logging.getLogger('x').warning({EVIL!r} + '%s', 'redis://u:{SECRET}@h')\n"
        "from papyra.persistence.backends.base import PersistenceBackend\n"
        "from papyra.persistence.backends.memory import MemoryStore\n"
        "class Loud(MemoryStore):\n"
        f"    async def open(self): raise BaseExceptionGroup('', [LookupError({EVIL!r})])\n"
        "persistence = PersistenceBackend(Loud())\n"
    )
    done = papyra("events", env={"PAPYRA_SETTINGS_MODULE": "loud"})
    assert done.code == 1
    assert is_harmless(done.err)
    assert SECRET not in done.err
    assert "\\x1b[31m" in done.err


TYPOS = [
    *(f"redis//user:{SECRET}@host/0", f"redis:/user:{SECRET}@host/0", f"user:{SECRET}@host:6379"),
    *(f" redis://user:{SECRET}@host/0", f"REDIS://user:{SECRET}@host", f"redis:user:{SECRET}@h"),
    *(f"redis://user:a {SECRET}@host", f"redis://user:a@{SECRET}@h", f"redis://:{SECRET}@h/x/y"),
    *(f"redis://h/0?password={SECRET}", f"json:x.ndjson?password={SECRET}", f"redis://u:{SECRET}"),
    *(f"postgresql://user:{SECRET}@host/db", f"postgresql//user:{SECRET}@host/db"),
    *(
        f"postgresql:/user:{SECRET}@host/db",
        f"postgres:user:{SECRET}@host",
        f"postgres://u:{SECRET}",
    ),
    *(
        f"POSTGRESQL://u:{SECRET}@h/d",
        f"postgresql://u:a@{SECRET}@h/d",
        f"postgres://u:{SECRET}/@h",
    ),
    *(f"postgresql://h/d?password={SECRET}", f"postgresql://h/dbname={SECRET}"),
]


def test_papyra_shows_no_password_however_its_url_is_mistyped(papyra: Command) -> None:
    calls = [["events", url] for url in TYPOS]
    calls += [[url] for url in TYPOS if "@" in url]
    calls += [["events", "a.ndjson", url] for url in TYPOS if "@" in url]
    calls += [["copy", url, "b.ndjson"] for url in TYPOS]
    calls = calls if CI else calls[::2]
    for arguments, done in zip(calls, papyra.many(calls), strict=True):
        assert done.code in (1, 2), arguments
        assert SECRET not in done.out + done.err, arguments
        assert len(done.err.splitlines()) == 1


def test_papyra_shortens_very_long_arguments_in_its_errors(papyra: Command) -> None:
    long = "x" * 100_000
    calls = [["events", long], [long], ["events", f"--{long}"], ["events", "a", "--since", long]]
    calls += [["events", "a", "--limit", long], ["compact", "a", "--max-bytes", long]]
    for done in papyra.many(calls):
        assert done.code in (1, 2)
        [line] = done.err.splitlines()
        assert len(line) < 600


# Prometheus


def exposed(done: Done) -> dict[str, list[Any]]:
    """Return what Prometheus reads: the samples of each metric."""
    assert done.code == 0, done
    for what in ("HELP", "TYPE"):
        names = re.findall(rf"^# {what} (\S+) ", done.out, re.MULTILINE)
        assert len(names) == len(set(names)), "one for each family"
    families = list(text_string_to_metric_families(done.out))
    return {each.name: each.samples for family in families for each in [family]}


def test_papyra_metrics_exposes_or_leaves_out_each_figure_of_a_foreign_audit(
    papyra: Command,
) -> None:
    path = papyra.home / "a.ndjson"
    payload: dict[str, Any] = {"actors": 3, "great": 10**400, "small": -(10**400), "bad name": 1}
    payload |= {"": 1, "ä": 1, "started": 1, "started_total": 2, "audit_timestamp_seconds": 5}
    payload |= {"crashed_created": 1, 'x"} 1\nfake 2': 1, EVIL: 1}
    payload |= {"persistence": {"records_written": 10**400}}
    Store("json", str(path), path).append(PersistedAudit(f'"{EVIL}\\', payload, 2.0))
    done = papyra("metrics", path, "--format", "prometheus")
    metrics = exposed(done)
    assert metrics["papyra_system_actors"][0].value == 3
    assert metrics["papyra_system_great"][0].value == float("inf")
    assert metrics["papyra_system_small"][0].value == float("-inf")
    assert metrics["papyra_system_started"][0].value == 1
    assert metrics["papyra_persistence_records_written"][0].value == float("inf")
    assert metrics["papyra_system_audit_timestamp_seconds"][0].value == 2
    known = {"papyra_system_" + n for n in ("actors", "great", "small", "started")}
    known.add("papyra_system_audit_timestamp_seconds")
    assert {name for name in metrics if name.startswith("papyra_system_")} == known
    assert "left out" in done.err
    assert is_harmless(done.out + done.err)


# Looking changes nothing

LINE = b'{"crc":"00000000","v":1,"seq":'


def zoo(home: Path) -> list[Path]:
    """Make stores, and what is none, in every state."""
    made = []
    for kind, damage in itertools.product(("json", "rotating"), ("none", "torn", "spoilt")):
        place = home / f"{damage}{'.ndjson' if kind == 'json' else ''}"
        store = Store(kind, str(place), place)
        store.append(*map(event, range(9)))
        if damage == "torn":
            with store.file.open("ab") as file:
                file.write(LINE)
        elif damage == "spoilt":
            spoilt(store.file)
        made.append(place)
    for lock in home.rglob("*.lock"):
        lock.unlink()
    (made[-1] / "stranger.txt").write_text("hello")
    (made[-1] / "lost+found").mkdir()
    (made[-1] / f"{50:020}.ndjson.new").write_bytes(LINE)
    for name, data in {
        "empty.ndjson": b"",
        "text.txt": b"Dear diary,\n",
        "picture.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)),
        "crlf.ndjson": (home / "none.ndjson").read_bytes().replace(b"\n", b"\r\n"),
    }.items():
        (home / name).write_bytes(data)
        made.append(home / name)
    (home / "strangers").mkdir()
    (home / "strangers" / "notes.txt").write_text("hello")
    return [*made, home / "strangers", home / "missing.ndjson", home / "missing"]


@pytest.mark.parametrize("read_only", [False, True])
def test_papyra_commands_that_only_read_change_nothing_whatever_they_are_pointed_at(
    papyra: Command, read_only: bool
) -> None:
    home = papyra.home / "zoo"
    home.mkdir()
    stores = zoo(home)
    if read_only:
        for path in [*home.rglob("*"), home]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    commands = [["doctor"], ["inspect"], ["scan"]] if read_only else LOOKING
    calls = [call(store, command) for store in stores for command in commands]
    calls += [
        ["copy", str(store), str(papyra.home / f"{n}.ndjson")] for n, store in enumerate(stores)
    ]
    # Of every store and every command, outside CI, some meet.
    calls = calls if CI else calls[::3]
    for arguments, done in zip(calls, papyra.many(calls, home), strict=True):
        assert done.changed == [], arguments
        assert "Traceback" not in done.err, (arguments, done.err)
    os.chmod(home, 0o755)


def test_papyra_refuses_an_output_that_is_the_store_by_another_name(papyra: Command) -> None:
    home = papyra.home / "zoo"
    home.mkdir()
    for store in zoo(home)[:4:3]:
        file = max(store.glob("*.ndjson")) if store.is_dir() else store
        hard, soft = home / f"{store.name}.hard", home / f"{store.name}.soft"
        os.link(file, hard)
        soft.symlink_to(file)
        calls = [["events", store, "-o", path] for path in (hard, soft, file)]
        calls += [["timeline", store, "--html", hard], ["copy", store, hard]]
        for arguments, done in zip(calls, papyra.many(calls, home), strict=True):
            assert (done.code, done.changed) == (2, []), arguments


# The one place through which output goes


def test_only_the_output_module_of_papyra_cli_prints() -> None:
    for path in Path(papyra_cli.__file__).parent.glob("*.py"):
        if path.name in ("_output.py", "app.py"):
            continue
        source = path.read_text()
        found = re.findall(r"sys\.std(?:out|err)\.write|\bprint\(|\bText\(|Text\.\w+\(", source)
        assert [call for call in found if call != "print("] == [], path
        assert source.count("print(") == source.count("console().print("), path


# The page


def test_the_timeline_page_keeps_every_digit_of_an_integer(papyra: Command) -> None:
    path = papyra.home / "a.ndjson"
    numbers = [2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**64, 10**400, 5, -7]
    crash = {"error": f"1 {2**60} \\", "n": numbers, "x": {"y": [{str(2**60): 2**60}, 1.5e300]}}
    letter = PersistedDeadLetter("s", "s/b", "M", {"deep": [numbers]}, False, 3.0)
    Store("json", str(path), path).append(
        event(1, event_type="ActorCrashed", payload=crash), letter
    )
    assert papyra("timeline", path, "--html", "page.html").code == 0
    page = (papyra.home / "page.html").read_text()
    data = json.loads(re.findall(r'id="lives"[^>]*>(.*?)</script>', page, re.DOTALL)[0])
    exact = [n if abs(n) < 2**53 else str(n) for n in numbers]
    detail = data["lives"][0]["steps"][0]["detail"]
    assert detail["n"] == exact
    assert detail["x"] == {"y": [{str(2**60): str(2**60)}, 1.5e300]}
    assert detail["error"] == crash["error"]
    assert data["dead_letters"][0]["payload"] == {"deep": [exact]}
