"""`papyra inspect`, `timeline`, `metrics`, `top` and `completion`."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import termios
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import pyte
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.cells import cell_len

from papyra.persistence import PersistedAudit, PersistedDeadLetter, PersistedEvent, Record
from papyra.testing._redis_server import RedisServer, any_binary
from tests.cli.conftest import (
    PATIENCE,
    T0,
    Command,
    Done,
    Store,
    audit,
    dead_letter,
    event,
    life,
    new_store,
)

COUNTED = {"records_written": 321, "bytes_written": 65_432, "commits": 77, "write_errors": 2}
AUDITED = {
    "actors": 3,
    "messages_waiting": 12,
    "deepest_mailbox": 9,
    "deepest_actor": "shop/a",
    "persistence_waiting": 1,
    "started": 5,
    "stopped": 2,
    "crashed": 4,
    "restarted": 1,
    "dead_letters": 6,
    "unclaimed_replies": 0,
    "persistence": COUNTED,
}
FAULT = {"error_type": "ValueError", "error": "paper jam", "decision": "restart"}


def by_time(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.timestamp)


#: An hour of a shop: lives of four actors, events, audits and letters that reached nobody.
RECORDS = by_time(
    [
        *life("shop/till", T0, ("ActorStarted", {"actor_type": "Till"})),
        *life(
            *("shop/printer", T0 + 600),
            *(("ActorStarted", {"actor_type": "Printer"}), ("ActorCrashed", FAULT)),
            *(("ActorRestarted", {"restarts": 1}), ("ActorCrashed", FAULT | {"decision": "stop"})),
            ("ActorStopped", {"reason": "failed", "unhandled": 1}),
        ),
        *life(
            *("shop/printer/tray", T0 + 1200),
            *(("ActorStarted", {"actor_type": "Tray"}), ("ActorStopped", {"reason": "stopped"})),
        ),
        *life("shop/lost", T0 + 1800, ("ActorCrashed", FAULT), ("ActorRestarted", {})),
        *(event(n * 10) for n in range(300)),
        *(dead_letter(number) for number in (700, 2000)),
        PersistedDeadLetter("shop", "shop/printer", "Print", {"page": 1}, True, T0 + 800),
        *(audit(number) for number in (60, 1860)),
        PersistedAudit("shop", AUDITED, T0 + 3600),
    ]
)
COUNTS = Counter(type(record) for record in RECORDS)

HOSTILE = "\x1b[31m\x9b2J\u202e\t\n[red]界"
HOSTILE_RECORDS: list[Record] = [
    PersistedEvent(HOSTILE, HOSTILE, "ActorStarted", {"actor_type": HOSTILE}, T0),
    PersistedEvent(HOSTILE, HOSTILE, "ActorCrashed", {"error": HOSTILE, HOSTILE: HOSTILE}, T0 + 1),
    PersistedEvent(HOSTILE, f"{HOSTILE}/b", "ActorStarted", HOSTILE, T0 + 1),
    PersistedEvent(HOSTILE, f"{HOSTILE}/c", HOSTILE, HOSTILE, T0 + 2),
    PersistedDeadLetter(HOSTILE, HOSTILE, HOSTILE, HOSTILE, False, T0 + 3),
    PersistedAudit(HOSTILE, {HOSTILE: HOSTILE, "actors": HOSTILE, "started": 7}, T0 + 4),
]


@pytest.fixture(scope="module", params=["json", "rotating", "redis"])
def shop(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
) -> Store:
    """A store of each kind, which tests only read."""
    store = new_store(request.param, tmp_path_factory.mktemp("shop"), redis_server)
    store.append(*RECORDS)
    return store


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Store:
    """The same in a file alone, for what has nothing to do with where it is kept."""
    store = new_store("json", tmp_path_factory.mktemp("ledger"), redis_server)
    store.append(*RECORDS)
    return store


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Store:
    store = new_store("json", tmp_path_factory.mktemp("hostile"), redis_server)
    store.append(*HOSTILE_RECORDS)
    return store


def iso(when: float) -> str:
    return (
        f"{datetime.fromtimestamp(when, UTC).replace(tzinfo=None).isoformat('T', 'milliseconds')}Z"
    )


def encoded(kind: type[Record]) -> int:
    """Return the bytes of the records of a kind, as they are encoded in a store."""
    return sum(len(msgspec.json.encode(record)) for record in RECORDS if isinstance(record, kind))


def stored_bytes(store: Store) -> int:
    """Return what a store takes, as its file system or its server says."""
    if store.path is not None:
        files = [store.path] if store.path.is_file() else store.path.glob("*.ndjson")
        return sum(file.stat().st_size for file in files)
    assert store.server is not None
    keys = store.server.cli("KEYS", f"{store.tag}*").split()
    return sum(int(store.server.cli("MEMORY", "USAGE", key)) for key in keys)


def stream_lengths(store: Store) -> list[int]:
    assert store.server is not None
    keys = store.server.cli("KEYS", f"{store.tag}*").split()
    streams = [key for key in keys if store.server.cli("TYPE", key) == "stream"]
    return sorted(int(store.server.cli("XLEN", key)) for key in streams)


def widest(text: str) -> int:
    return max(cell_len(line) for line in text.split("\n"))


COLOUR = re.compile(r"\x1b\[(\d+;)*([34][0-8]|9[0-7])(;\d+)*m")
LOOKS: list[list[str]] = [["inspect"], ["timeline"], ["metrics"]]


# On any output


@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_colours_are_for_terminals_and_off_with_no_color(
    papyra: Command, ledger: Store, look: list[str]
) -> None:
    on_terminal = papyra.on_terminal(*look, ledger.name)
    without = papyra.on_terminal(*look, ledger.name, env={"NO_COLOR": "1"})
    piped = papyra(*look, ledger.name)
    assert [done.code for done in (on_terminal, without, piped)] == [0, 0, 0]
    assert without.text == on_terminal.text
    assert not COLOUR.search(without.out)
    assert "\x1b" not in piped.out
    assert piped.err == ""
    if look != ["metrics"]:
        assert COLOUR.search(on_terminal.out)


@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_a_terminal_of_40_columns_is_wide_enough(
    papyra: Command, shop: Store, look: list[str]
) -> None:
    done = papyra.on_terminal(*look, shop.name, columns=40)
    assert done.code == 0
    assert widest(done.text) <= 40
    in_ascii = papyra.on_terminal(
        *look, shop.name, columns=40, env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    )
    assert in_ascii.code == 0
    assert in_ascii.out.isascii()
    assert widest(in_ascii.text) <= 40


@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_nothing_in_a_record_reaches_a_terminal_as_a_command(
    papyra: Command, hostile: Store, look: list[str]
) -> None:
    done = papyra.on_terminal(*look, hostile.name, columns=200)
    assert done.code == 0
    for sequence in ("\x1b[31m", "\x9b", "\u202e", "\t"):
        assert sequence not in done.out or (sequence == "\x1b[31m" and "31m\\x9b" in done.out)
    assert done.text.replace("\n", "").isprintable()
    piped = papyra(*look, hostile.name)
    assert piped.code == 0
    assert re.sub("[\t\n]", "", piped.out).isprintable()


@pytest.mark.parametrize("look", [*LOOKS, ["top", "--count", "1"]], ids=" ".join)
def test_json_is_one_document_a_line(papyra: Command, ledger: Store, look: list[str]) -> None:
    piped = papyra(*look, ledger.name, "--json")
    assert (piped.code, piped.err) == (0, "")
    documents = [json.loads(line) for line in piped.lines]
    assert documents
    on_terminal = papyra.on_terminal(*look, ledger.name, "--json")
    assert on_terminal.code == 0
    assert [json.loads(line).keys() for line in on_terminal.lines] == [d.keys() for d in documents]


# inspect


def test_inspect_says_what_is_there(papyra: Command, shop: Store) -> None:
    done = papyra("inspect", shop.name)
    assert (done.code, done.err) == (0, "")
    facts = done.facts
    backend = {"json": "JSON file", "rotating": "rotating files", "redis": "Redis Streams"}
    assert facts["backend"].startswith(backend[shop.kind])
    assert (shop.tag or str(shop.path)) in facts["store"]
    assert facts["records"] == (
        f"{len(RECORDS)}: {COUNTS[PersistedEvent]} events, {COUNTS[PersistedAudit]} audits, "
        f"{COUNTS[PersistedDeadLetter]} dead letters"
    )
    assert facts["last position"] == str(len(RECORDS))
    assert facts["first"] == iso(T0)
    assert facts["last"].startswith(f"{iso(T0 + 3600)}, ")
    assert facts["last"].endswith(" ago")
    a_minute = len(RECORDS) / 60
    assert re.fullmatch(r"[\d.]+ a minute over 1h", facts["rate"])
    assert float(facts["rate"].split()[0]) == pytest.approx(a_minute, rel=0.06)
    assert facts["health"].startswith("nothing wrong is known")
    assert facts["system"].startswith("shop, ")
    assert facts["system"].endswith(": 3 actors, 12 messages waiting, 4 crashes, 6 dead letters")
    events = [
        (seq, record.event_type)
        for seq, record in enumerate(RECORDS, start=1)
        if isinstance(record, PersistedEvent)
    ]
    newest = [(int(cells[0]), cells[2]) for cells in done.rows if len(cells) == 5]
    assert newest == events[-5:]


def test_inspect_agrees_with_the_disk_and_with_the_server(papyra: Command, shop: Store) -> None:
    said = json.loads(papyra("inspect", shop.name, "--json").out)
    assert said["backend"] == shop.kind
    assert said["records"] == {
        "event": COUNTS[PersistedEvent],
        "audit": COUNTS[PersistedAudit],
        "dead_letter": COUNTS[PersistedDeadLetter],
    }
    assert said["record_bytes"] == {
        "event": encoded(PersistedEvent),
        "audit": encoded(PersistedAudit),
        "dead_letter": encoded(PersistedDeadLetter),
    }
    assert said["stored_bytes"] == stored_bytes(shop)
    assert said["last_seq"] == len(RECORDS)
    assert (said["oldest"], said["newest"]) == (T0, T0 + 3600)
    assert said["rate"] == pytest.approx(len(RECORDS) / 3600)
    assert said["damaged"] is False
    assert [each["seq"] for each in said["newest_events"]] == sorted(
        [n for n, record in enumerate(RECORDS, start=1) if isinstance(record, PersistedEvent)][-5:]
    )
    if shop.server is not None:
        assert stream_lengths(shop) == sorted(COUNTS.values())


def test_the_size_is_said_as_people_read_it(papyra: Command, shop: Store) -> None:
    records = encoded(PersistedEvent) + encoded(PersistedAudit) + encoded(PersistedDeadLetter)
    assert papyra("inspect", shop.name).facts["size"] == (
        f"{stored_bytes(shop) / 1024:.1f} KiB, of which {records / 1024:.1f} KiB are records"
    )


def test_inspect_on_a_terminal_says_the_same_as_elsewhere(papyra: Command, shop: Store) -> None:
    piped = papyra("inspect", shop.name)
    done = papyra.on_terminal("inspect", shop.name, columns=200)
    for name, value in piped.facts.items():
        if name not in ("records over time", "last", "system"):
            assert re.search(rf"^{name} +{re.escape(value)} *$", done.text, re.MULTILINE), name
    assert piped.facts["records over time"] in done.text
    assert done.text.count("\n") > len(piped.facts) + 5


BARS = " ▁▂▃▄▅▆▇█"


def heights(bars: str) -> list[int]:
    return [BARS.index(bar) for bar in bars]


@pytest.mark.parametrize("count", [10, 20_000])
def test_the_picture_shows_when_there_were_records(
    papyra: Command, store: Store, count: int
) -> None:
    # Two thirds at the beginning, the rest at the end, nothing in the middle.
    first = [event(n, timestamp=T0 + 40 * n / count) for n in range(2 * count)]
    last = [event(n, timestamp=T0 + 900 + 100 * n / count) for n in range(count)]
    store.append(*first, *last)
    said = json.loads(papyra("inspect", store.name, "--json").out)["intervals"]
    assert sum(said) == pytest.approx(3 * count, rel=0.02)
    assert sum(said[:5]) == pytest.approx(2 * count, rel=0.1)
    assert sum(said[-6:]) == pytest.approx(count, rel=0.1)
    bars = heights(papyra("inspect", store.name).facts["records over time"])
    assert len(bars) == len(said)
    assert max(bars) == max(bars[:5]) == 8
    assert min(bars[:3]) > max(bars[-4:]) > 0
    assert max(bars[8:40]) <= 1


def test_few_records_are_seen_in_the_picture(papyra: Command, store: Store) -> None:
    store.append(event(0), event(1), event(50), event(100))
    bars = heights(papyra("inspect", store.name).facts["records over time"])
    assert [bar > 0 for bar in bars].count(True) == 3
    assert bars[0] > bars[-1] > 0


def test_the_picture_is_one_line_of_a_narrow_terminal(papyra: Command, store: Store) -> None:
    store.append(*(event(n, timestamp=T0 + n * n) for n in range(1000)))
    text = papyra.on_terminal("inspect", store.name, columns=40).text
    [bars] = [line.strip() for line in text.splitlines() if set(line.strip()) & set(BARS[1:])]
    shape = heights(bars)
    assert shape[0] == 8
    assert len(shape) > 30
    assert shape[-1] > 0


def test_a_picture_in_ascii_is_made_of_what_that_has(papyra: Command, ledger: Store) -> None:
    done = papyra("inspect", ledger.name, env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "\\u" not in done.facts["records over time"]


def test_inspect_says_who_writes_a_store(papyra: Command, file_store: Store) -> None:
    file_store.append(event(1))
    free = json.loads(papyra("inspect", file_store.name, "--json").out)
    assert free["writer"] is None
    assert papyra("inspect", file_store.name).facts["writer"].startswith("nobody")
    holder = subprocess.Popen(
        [papyra.program[0], "-c", HOLDER, file_store.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert str(holder.pid) in papyra("inspect", file_store.name).facts["writer"]
        assert (
            str(holder.pid)
            in json.loads(papyra("inspect", file_store.name, "--json").out)["writer"]
        )
        holder.communicate("", timeout=PATIENCE)


HOLDER = """
import sys, anyio
from papyra.conf import backend_from_url
async def main():
    async with backend_from_url(sys.argv[1]):
        print("open", flush=True)
        sys.stdin.read()
anyio.run(main)
"""


def test_inspect_says_what_retention_the_settings_set(papyra: Command) -> None:
    (papyra.home / "shopsettings.py").write_text(
        "from papyra.persistence.retention import RetentionPolicy\n"
        "from papyra.persistence.backends.json import JsonFilePersistence\n"
        "persistence = JsonFilePersistence('kept.ndjson', retention_policy=RetentionPolicy("
        "max_records=1000, max_age_seconds=90000, max_total_bytes=1024**3))\n"
    )
    Store("json", "kept.ndjson", papyra.home / "kept.ndjson").append(*RECORDS[:9])
    env = {"PAPYRA_SETTINGS_MODULE": "shopsettings"}
    done = papyra("inspect", env=env)
    assert (done.code, done.err) == (0, "")
    retention = done.facts["retention"]
    assert "1,000 records" in retention
    assert "1d 1h" in retention
    assert "1.0 GiB" in retention
    assert json.loads(papyra("inspect", "--json", env=env).out)["retention"] == {
        "max_records": 1000,
        "max_age_seconds": 90000,
        "max_total_bytes": 1024**3,
    }


def test_inspect_sees_damage_that_is_known_of(papyra: Command, file_store: Store) -> None:
    file_store.append(*RECORDS)
    lines = file_store.file.read_bytes().splitlines(keepends=True)
    lines[7] = b"nonsense\n"
    file_store.file.write_bytes(b"".join(lines))
    done = papyra("inspect", file_store.name)
    assert done.code == 0
    assert "papyra scan" in done.facts["health"]
    assert "damaged" in done.facts["health"]


# timeline


LANES = ["shop/till", "shop/printer", "shop/printer/tray", "shop/lost"]


def lanes(text: str) -> dict[str, str]:
    """Return the pictures of the actors by their names."""
    found = [line.partition(" ") for line in text.splitlines() if line.startswith("shop/")]
    return {name: picture.strip() for name, _, picture in found}


def marks(picture: str) -> str:
    return re.sub(r"[ ─╌]", "", picture)


def test_a_timeline_has_a_lane_for_each_actor_with_its_steps(papyra: Command, shop: Store) -> None:
    done = papyra("timeline", shop.name)
    assert (done.code, done.err) == (0, "")
    assert list(lanes(done.out)) == LANES
    pictures = lanes(papyra.on_terminal("timeline", shop.name, columns=600).text)
    assert list(pictures) == LANES
    assert marks(pictures["shop/till"]) == "●"
    assert marks(pictures["shop/printer"]) == "●✗↻✗■◆"
    assert marks(pictures["shop/printer/tray"]) == "●■"
    assert marks(pictures["shop/lost"]) == "✗↻"
    assert pictures["shop/till"].endswith("─")
    assert "╌" in pictures["shop/lost"]
    legend = done.lines[-1]
    for mark, what in zip(
        "●✗↻■◆", ("started", "crashed", "restarted", "stopped", "dead letter"), strict=True
    ):
        assert f"{mark} {what}" in legend
    assert iso(T0) in done.lines[-2]


def test_a_timeline_selects_by_time_and_by_actor(papyra: Command, shop: Store) -> None:
    def actors(*options: object) -> list[str]:
        done = papyra("timeline", shop.name, "--json", *options)
        assert done.code == 0
        assert ("did you mean shop/printer" in done.err) == ("shop/print" in options)
        return [json.loads(line)["actor"] for line in done.lines]

    assert actors() == LANES
    assert actors("--actor", "shop/printer") == ["shop/printer", "shop/printer/tray"]
    assert actors("-a", "shop/print") == []
    assert actors("--limit", 0) == []
    assert actors("-n", 2) == ["shop/printer", "shop/lost"]
    assert actors("--since", iso(T0 + 1200)) == ["shop/printer/tray", "shop/lost"]
    assert actors("--until", iso(T0 + 599)) == ["shop/till"]
    assert actors("--since", iso(T0 + 610), "--until", iso(T0 + 610)) == ["shop/printer"]


def test_the_steps_of_a_life_in_json_are_its_events(papyra: Command, shop: Store) -> None:
    done = papyra("timeline", shop.name, "--json")
    for line in done.lines:
        said = json.loads(line)
        events = [
            (seq, record)
            for seq, record in enumerate(RECORDS, start=1)
            if isinstance(record, PersistedEvent)
            and record.actor_address == said["actor"]
            and record.event_type != "Counted"
        ]
        assert said["steps"] == [
            {
                "seq": seq,
                "time": record.timestamp,
                "what": record.event_type.removeprefix("Actor").lower(),
                "detail": record.payload,
            }
            for seq, record in events
        ]


def test_a_timeline_says_how_many_actors_it_leaves_out(papyra: Command, store: Store) -> None:
    store.append(
        *(PersistedEvent("shop", f"shop/a{n:02}", "ActorStarted", {}, T0 + n) for n in range(40))
    )
    done = papyra.on_terminal("timeline", store.name)
    assert len(lanes(done.text)) == 30
    assert "30 of 40" in done.text
    assert len(lanes(papyra("timeline", store.name).out)) == 40
    limited = papyra("timeline", store.name, "--limit", 7)
    assert len(lanes(limited.out)) == 7
    assert "7 of 40" in limited.err


def test_a_timeline_in_ascii_has_marks_of_its_own(papyra: Command, ledger: Store) -> None:
    done = papyra("timeline", ledger.name, env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "\\u" not in done.out
    assert set(lanes(done.out)["shop/printer"]) <= set("oxr#!-. ")


def test_lanes_begin_in_one_column_however_wide_the_names_are(
    papyra: Command, store: Store
) -> None:
    names = ["shop/a", "shop/界界界界", "shop/e\u0301\u0301", "shop/🎭"]
    for number, name in enumerate(names):
        started, stopped = ("ActorStarted", {"actor_type": "A"}), ("ActorStopped", {"n": number})
        store.append(*life(name, T0, started, stopped))
    for columns in (100, 40):
        text = papyra.on_terminal("timeline", store.name, columns=columns).text
        pictures = [line for line in text.splitlines() if line.startswith("shop/")]
        starts = {cell_len(line.partition("●")[0]) for line in pictures}
        ends = {cell_len(line.rstrip()) for line in pictures}
        assert len(pictures) == len(names)
        assert len(starts) == len(ends) == 1
        assert all(line.rstrip().endswith("■") for line in pictures)
    in_ascii = papyra.on_terminal(
        "timeline", store.name, columns=60, env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    )
    ends = {len(line.rstrip()) for line in in_ascii.lines if line.startswith("shop/")}
    assert len(ends) == 1
    assert widest(in_ascii.text) <= 60


def test_html_writes_a_page_with_the_actors_in_it(
    papyra: Command, ledger: Store, tmp_path: Path
) -> None:
    done = papyra("timeline", ledger.name, "--html", tmp_path / "lives.html")
    assert (done.code, done.out) == (0, "")
    assert "lives.html" in done.err
    page = (tmp_path / "lives.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    [data] = re.findall(
        r'<script type="application/json" id="lives">(.*?)</script>', page, re.DOTALL
    )
    lives = json.loads(data)
    assert [each["actor"] for each in lives["lives"]] == LANES
    assert len(lives["dead_letters"]) == COUNTS[PersistedDeadLetter]
    some = papyra.on_terminal(
        *("timeline", ledger.name, "--html", "some.html", "-a", "shop/lost", "-n", 1)
    )
    assert some.code == 0
    assert "shop/till" not in (tmp_path / "some.html").read_text("utf-8")
    assert "shop/lost" in (tmp_path / "some.html").read_text("utf-8")


def test_html_over_the_store_itself_is_refused(papyra: Command, file_store: Store) -> None:
    file_store.append(*RECORDS[:20])
    before = file_store.file.read_bytes()
    done = papyra("timeline", file_store.name, "--html", file_store.file)
    assert file_store.file.read_bytes() == before
    assert done.code != 0
    assert len(done.err.splitlines()) == 1


def test_html_that_cannot_be_written_is_one_error(papyra: Command, ledger: Store) -> None:
    done = papyra("timeline", ledger.name, "--html", "/dev/full")
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"error: .*No space left on device\n", done.err)


# metrics


def test_metrics_in_prometheus_format_hold_the_facts(papyra: Command, shop: Store) -> None:
    done = papyra("metrics", shop.name, "--format", "prometheus")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("\n")
    families = {each.name: each for each in text_string_to_metric_families(done.out)}
    value = {
        (sample.name, sample.labels.get("kind")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    kinds: dict[str, type[Record]] = {
        "event": PersistedEvent,
        "audit": PersistedAudit,
        "dead_letter": PersistedDeadLetter,
    }
    for kind, record_type in kinds.items():
        assert value["papyra_store_records", kind] == COUNTS[record_type]
        assert value["papyra_store_record_bytes", kind] == encoded(record_type)
    assert value["papyra_store_stored_bytes", None] == stored_bytes(shop)
    assert value["papyra_store_last_seq", None] == len(RECORDS)
    assert value["papyra_store_oldest_timestamp_seconds", None] == T0
    assert value["papyra_store_newest_timestamp_seconds", None] == T0 + 3600
    assert value["papyra_store_damaged", None] == 0
    for name, count in COUNTED.items():
        assert value[f"papyra_persistence_{name}_total", None] == count
    for name in ("started", "stopped", "crashed", "restarted", "dead_letters"):
        assert families[f"papyra_system_{name}"].type == "counter"
        assert value[f"papyra_system_{name}_total", None] == AUDITED[name]
    for name in ("actors", "messages_waiting", "deepest_mailbox", "persistence_waiting"):
        assert families[f"papyra_system_{name}"].type == "gauge"
        assert value[f"papyra_system_{name}", None] == AUDITED[name]
    assert value["papyra_system_audit_timestamp_seconds", None] == T0 + 3600
    for family in families.values():
        assert family.documentation
        for sample in family.samples:
            assert (shop.tag or str(shop.path)) in sample.labels["store"]
            assert sample.labels.get("system_id", "shop") == "shop"


def test_metrics_in_json_and_in_a_table_are_the_same_figures(papyra: Command, shop: Store) -> None:
    said = json.loads(papyra("metrics", shop.name, "--json").out)
    assert said == json.loads(papyra("metrics", shop.name, "--format", "json").out)
    assert said["holds"]["records"]["event"] == COUNTS[PersistedEvent]
    assert said["holds"]["stored_bytes"] == stored_bytes(shop)
    assert {name: said["counters"][name] for name in COUNTED} == COUNTED
    assert said["counters"]["scans"] == 0
    assert said["system"]["crashed"] == 4
    assert said["system"]["timestamp"] == T0 + 3600
    table = {(whose, name): value for whose, name, value in papyra("metrics", shop.name).rows}
    assert table["store", "records.event"] == str(COUNTS[PersistedEvent])
    assert table["store", "newest_timestamp"] == iso(T0 + 3600)
    for name, count in said["counters"].items():
        assert table["persistence", name] == str(count)
    assert table["system", "time"] == iso(T0 + 3600)
    assert table["system", "messages_waiting"] == "12"
    text = papyra.on_terminal("metrics", shop.name).text
    assert re.search(r"persistence +bytes_written +65,432", text)


def test_metrics_of_hostile_names_are_read_back(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    path = tmp_path / 'a"b\\n\\c\nd{}.ndjson'
    Store("json", str(path), path).append(*HOSTILE_RECORDS)
    done = papyra("metrics", path, "--format", "prometheus")
    assert (done.code, done.err) == (0, "")
    samples = [
        sample for family in text_string_to_metric_families(done.out) for sample in family.samples
    ]
    assert {sample.labels["store"] for sample in samples} == {str(path)}
    # With what a terminal would obey written out.
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\x9b", "\\x9b").replace("\u202e", "\\u202e")
    shown = shown.replace("\t", "\\t")
    assert {s.labels["system_id"] for s in samples if "system_id" in s.labels} == {shown}
    [started] = [sample for sample in samples if sample.name == "papyra_system_started_total"]
    assert started.value == 7


def test_metrics_of_a_store_without_audits_has_counters_of_nothing(
    papyra: Command, store: Store
) -> None:
    store.append(event(1))
    said = json.loads(papyra("metrics", store.name, "--json").out)
    assert said["system"] is None
    assert set(said["counters"].values()) == {0}
    table = papyra("metrics", store.name)
    assert table.code == 0
    assert "system" not in {cells[0] for cells in table.rows}


@pytest.mark.parametrize(
    "payload",
    [None, [], "text", 7, {"persistence": 7}, {"persistence": {"commits": "x"}}, {"actors": 1e300}],
)
def test_metrics_take_any_audit(papyra: Command, tmp_path: Path, payload: Any) -> None:
    path = tmp_path / "audits.ndjson"
    Store("json", str(path), path).append(PersistedAudit("shop", payload, T0))
    for output in ("table", "prometheus"):
        done = papyra("metrics", path, "--format", output)
        assert (done.code, done.err) == (0, "")
        assert done.out


# top


def test_top_prints_a_line_for_each_look(papyra: Command, shop: Store) -> None:
    done = papyra("top", shop.name, "--count", 3, "--interval", "10ms")
    assert (done.code, done.err) == (0, "")
    assert len(done.rows) == 3
    for when, records, *rates in done.rows:
        assert datetime.fromisoformat(when).tzinfo is not None
        assert records == str(len(RECORDS))
        assert rates == ["0.0"] * 4


def test_top_counts_what_comes(papyra: Command, store: Store) -> None:
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
def test_top_that_would_never_look_is_wrong_use(
    papyra: Command, hostile: Store, options: list[object]
) -> None:
    done = papyra("top", hostile.name, *options)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1


class Screen:
    """A terminal with a command on it, as somebody sees it."""

    def __init__(self, child: pexpect.spawn[str], columns: int, rows: int) -> None:
        self.child = child
        self.raw = ""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    def until(self, condition: Callable[[list[str]], object]) -> None:
        """Read what is printed until the screen shows what it should."""
        while not condition(self.lines):
            self._take(self.child.read_nonblocking(4096, timeout=PATIENCE))

    def end(self) -> int | None:
        """Read to the end; return the exit code."""
        try:
            while True:
                self._take(self.child.read_nonblocking(4096, timeout=PATIENCE))
        except pexpect.EOF:
            self.child.close()
            return self.child.exitstatus

    def _take(self, text: str) -> None:
        self.raw += text
        self._stream.feed(text)


def watch(papyra: Command, store: Store, columns: int = 100, rows: int = 40) -> Screen:
    child = papyra.terminal("top", store.name, "--interval", "50ms", columns=columns, rows=rows)
    return Screen(child, columns, rows)


def has(text: str) -> Callable[[list[str]], object]:
    return lambda lines: any(text in line for line in lines)


def test_top_on_a_terminal_is_live_and_ends_with_q(papyra: Command, store: Store) -> None:
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
def test_top_leaves_a_terminal_as_it_was(papyra: Command, hostile: Store, key: str) -> None:
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


def test_top_on_a_terminal_ends_after_as_many_looks_as_it_is_told(
    papyra: Command, ledger: Store
) -> None:
    done = papyra.on_terminal("top", ledger.name, "--count", 2, "--interval", "10ms")
    assert done.code == 0
    assert "newest events" in done.text


@pytest.mark.parametrize("columns", [40, 80])
def test_top_fits_on_a_small_terminal_whatever_is_in_the_records(
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


def test_top_waits_for_a_server_that_goes_away_and_comes_back(
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


def test_top_ends_with_one_line_when_the_store_can_be_read_no_more(
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


def test_top_without_colour_has_none(papyra: Command, hostile: Store) -> None:
    done = papyra.on_terminal("top", hostile.name, "-n", 1, env={"NO_COLOR": "1"})
    assert done.code == 0
    assert not COLOUR.search(done.out)


# completion


@pytest.fixture
def completion(papyra: Command) -> Path:
    done = papyra("completion", "bash")
    assert (done.code, done.err) == (0, "")
    path = papyra.home / "completion.bash"
    path.write_text(done.out)
    return path


def test_bash_completes_commands_and_options(papyra: Command, completion: Path) -> None:
    assert papyra.shell(f"bash -n {completion}") == Done(0, "")
    complete = f"""
    source {completion}
    name=$(complete -p papyra | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    completed() {{
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${{#COMP_LINE}}
        COMPREPLY=()
        $name papyra "${{@: -1}}" "${{@: -2:1}}"
        echo "${{COMPREPLY[@]}}"
    }}
    completed papyra ins
    completed papyra dead
    completed papyra ''
    completed papyra events --fo
    completed papyra metrics --format prom
    completed papyra completion z
    """
    done = papyra.shell(complete)
    assert done.err == ""
    inspect, dead, every, follow, prometheus, shell = (line.strip() for line in done.lines)
    assert inspect == "inspect"
    assert dead == "dead-letters"
    assert {"inspect", "events", "timeline", "recover", "copy", "bench"} <= set(every.split())
    assert follow == "--follow"
    assert prometheus == "prometheus"
    assert shell == "zsh"


def test_the_tab_key_completes_a_command_in_bash(papyra: Command, completion: Path) -> None:
    child = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        env=papyra.environment({"PS1": "> ", "INPUTRC": "/dev/null"}),
        cwd=str(papyra.home),
        dimensions=(24, 80),
        timeout=PATIENCE,
        encoding="utf-8",
    )
    child.sendline(f"source {completion}; papyra() {{ echo \"called $*;\"; }}; echo read''y")
    child.expect("ready")
    child.send("papyra ins\t")
    child.expect("papyra inspect ")
    child.sendline("")
    child.expect("called inspect;")
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_learn_every_command(papyra: Command, shell: str) -> None:
    from papyra.cli.app import COMMANDS  # noqa: PLC0415

    done = papyra("completion", shell)
    assert (done.code, done.err) == (0, "")
    for name in COMMANDS:
        assert name in done.out


def test_a_shell_that_is_not_known_is_wrong_use(papyra: Command) -> None:
    for arguments in (["completion"], ["completion", "ksh"]):
        done = papyra(*arguments)
        assert (done.code, done.out) == (2, "")
        assert len(done.err.splitlines()) == 1
