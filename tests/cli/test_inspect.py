"""``papyra inspect``."""

from __future__ import annotations

import json
import re
import subprocess

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papyra.cli.inspect import counts_over_time
from papyra.persistence import Kind, PersistedAudit, PersistedDeadLetter, PersistedEvent
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.records import KINDS, Record
from tests.cli.conftest import (
    COUNTS,
    PATIENCE,
    RECORDS,
    T0,
    Command,
    Store,
    encoded,
    event,
    iso,
    stored_bytes,
    stream_lengths,
)


def test_papyra_inspect_shows_backend_records_size_and_health_of_a_store(
    papyra: Command, shop: Store
) -> None:
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


def test_papyra_inspect_agrees_with_the_disk_and_with_the_redis_server(
    papyra: Command, shop: Store
) -> None:
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


def test_papyra_inspect_shows_the_size_in_kibibytes(papyra: Command, shop: Store) -> None:
    records = encoded(PersistedEvent) + encoded(PersistedAudit) + encoded(PersistedDeadLetter)
    assert papyra("inspect", shop.name).facts["size"] == (
        f"{stored_bytes(shop) / 1024:.1f} KiB, of which {records / 1024:.1f} KiB are records"
    )


def test_papyra_inspect_shows_the_same_on_a_terminal_and_in_a_pipe(
    papyra: Command, shop: Store
) -> None:
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
def test_papyra_inspect_draws_when_records_were_written(
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


def test_papyra_inspect_draws_even_a_few_records_visibly(papyra: Command, store: Store) -> None:
    store.append(event(0), event(1), event(50), event(100))
    bars = heights(papyra("inspect", store.name).facts["records over time"])
    assert [bar > 0 for bar in bars].count(True) == 3
    assert bars[0] > bars[-1] > 0


def test_papyra_inspect_draws_records_over_time_in_one_line_of_a_narrow_terminal(
    papyra: Command, store: Store
) -> None:
    store.append(*(event(n, timestamp=T0 + n * n) for n in range(1000)))
    text = papyra.on_terminal("inspect", store.name, columns=40).text
    [bars] = [line.strip() for line in text.splitlines() if set(line.strip()) & set(BARS[1:])]
    shape = heights(bars)
    assert shape[0] == 8
    assert len(shape) > 30
    assert shape[-1] > 0


def test_papyra_inspect_draws_records_over_time_in_ascii(papyra: Command, ledger: Store) -> None:
    done = papyra("inspect", ledger.name, env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "\\u" not in done.facts["records over time"]


def test_papyra_inspect_says_who_writes_a_store(papyra: Command, file_store: Store) -> None:
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


def test_papyra_inspect_says_what_retention_the_settings_set(papyra: Command) -> None:
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
        "events": None,
        "audits": None,
        "dead_letters": None,
        "trim_histories": False,
    }


def test_papyra_inspect_says_what_retention_the_settings_set_for_a_kind(papyra: Command) -> None:
    (papyra.home / "shopsettings.py").write_text(
        "from papyra.persistence.retention import Limits, RetentionPolicy\n"
        "from papyra.persistence.backends.json import JsonFilePersistence\n"
        "persistence = JsonFilePersistence('kept.ndjson', retention_policy=RetentionPolicy("
        "max_records=1000, events=Limits(), audits=Limits(max_age_seconds=90000)))\n"
    )
    Store("json", "kept.ndjson", papyra.home / "kept.ndjson").append(*RECORDS[:9])
    env = {"PAPYRA_SETTINGS_MODULE": "shopsettings"}
    assert papyra("inspect", env=env).facts["retention"] == (
        "events: no limit; audits: at most 1d 1h; dead letters: at most 1,000 records"
    )
    assert json.loads(papyra("inspect", "--json", env=env).out)["retention"]["audits"] == {
        "max_records": None,
        "max_age_seconds": 90000,
        "max_total_bytes": None,
    }


def test_papyra_inspect_reports_a_damaged_store(papyra: Command, file_store: Store) -> None:
    file_store.append(*RECORDS)
    lines = file_store.file.read_bytes().splitlines(keepends=True)
    lines[7] = b"nonsense\n"
    file_store.file.write_bytes(b"".join(lines))
    done = papyra("inspect", file_store.name)
    assert done.code == 0
    assert "papyra scan" in done.facts["health"]
    assert "damaged" in done.facts["health"]


def record_of(kind: Kind, time: float) -> Record:
    match kind:
        case "event":
            return PersistedEvent("s", "s/a", "Counted", {}, time)
        case "audit":
            return PersistedAudit("s", {}, time)
        case "dead_letter":
            return PersistedDeadLetter("s", "s/a", "Order", {}, False, time)


TIMES = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(TIMES, st.sampled_from(KINDS)), min_size=1), st.integers(1, 60))
def test_every_record_is_counted_in_some_interval(
    records: list[tuple[float, Kind]], intervals: int
) -> None:
    async def count() -> list[int]:
        async with InMemoryPersistence() as backend:
            await backend.append(*(record_of(kind, time) for time, kind in records))
            return await counts_over_time(backend, await backend.summarize(), intervals)

    counts = anyio.run(count)
    assert len(counts) == intervals
    assert min(counts) >= 0
    assert sum(counts) == len(records)


async def test_each_kind_is_counted_where_its_records_are() -> None:
    async with InMemoryPersistence() as backend:
        await backend.append(*(record_of("event", time) for time in (0.0, 1.0, 2.0)))
        await backend.append(*(record_of("dead_letter", time) for time in (9.0, 9.5, 9.9, 10.0)))
        summary = await backend.summarize()
        assert await counts_over_time(backend, summary, 5) == [2, 1, 0, 0, 4]
        reads = backend.metrics.reads
        await counts_over_time(backend, summary, 1_000)
        # What was found for one time is not looked for again at the times before it.
        assert backend.metrics.reads - reads <= 3 + 4 + 3
