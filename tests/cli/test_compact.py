"""``papyra compact``: what is removed, what is said about it, and what stays as it was."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from papyra.persistence import PersistedAudit, PersistedDeadLetter, PersistedEvent, Record
from tests.cli.conftest import Command, Done, Store, audit, dead_letter, event, new_store
from tests.cli.test_checking import (
    COUNT,
    WIDE,
    Fact,
    a_live_system,
    append,
    at_the_question,
    contents,
    damage,
    facts,
    files_of,
    fill,
    interrupted_while_it_reads,
    jq,
    one_line,
)
from tests.redis_server import RedisServer

HOUR = 3600
KINDS = (PersistedEvent, PersistedAudit, PersistedDeadLetter)
FIGURES = "[.records_before, .records_after, .bytes_before, .bytes_after]"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a policy says, as a list understands it."""

    hours: float | None = None
    records: int | None = None
    size: int | None = None


def hours_ago(number: int) -> float:
    """Return when a record was: the last half an hour ago."""
    return int(time.time()) - (COUNT - number - 0.5) * HOUR


def fill_by_the_hour(store: Store) -> list[Record]:
    """Write records of all kinds, an hour apart, none as large as the next."""
    made: list[Record] = []
    for number in range(COUNT):
        changes: dict[str, Any] = {"timestamp": hours_ago(number)}
        if number % 5 != 1:
            changes["payload"] = {"n": number, "x": "x" * (number * 13 % 80)}
        kind = (event, audit, event, dead_letter, event)[number % 5]
        made.append(_replace(kind(number), **changes))
    append(store, *made)
    return made


def _replace(record: Record, **changes: Any) -> Record:
    return type(record)(**({name: getattr(record, name) for name in _names(record)} | changes))


def _names(record: Record) -> tuple[str, ...]:
    return tuple(name for name in record.__struct_fields__ if name != "seq")


def kept(made: list[Record], found: list[Fact], limits: Limits) -> list[Fact]:
    """Return what there should be left: each kind by itself, counted from the newest."""
    left: list[Fact] = []
    for kind in {type(record) for record in made}:
        count = size = 0
        for record, fact in reversed(list(zip(made, found, strict=True))):
            if type(record) is not kind:
                continue
            count, size = count + 1, size + len(fact[1])
            if (
                (limits.records is None or count <= limits.records)
                and (limits.size is None or size <= limits.size)
                and (limits.hours is None or record.timestamp >= time.time() - limits.hours * HOUR)
            ):
                left.append(fact)
    return sorted(left)


def size_of(found: list[Fact]) -> int:
    return sum(len(body) for _, body in found)


def in_history(revision: int) -> Record:
    """Return an event of the history of an actor."""
    address = {"actor_address": "shop/account", "revision": revision}
    return _replace(event(revision), timestamp=int(time.time()), **address)


# What is removed


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        (["--max-age", "20h"], Limits(hours=20)),
        (["--max-age", "1d12h"], Limits(hours=36)),
        (["--max-records", "5"], Limits(records=5)),
        (["--max-bytes", "1.5KiB"], Limits(size=1536)),
        (["--max-age", "2d", "--max-records", "9"], Limits(hours=48, records=9)),
        (
            ["--max-age", "1d", "--max-records", "12", "--max-bytes", "1500"],
            Limits(24, 12, 1500),
        ),
    ],
    ids=["age", "more age", "count", "bytes", "age and count", "everything"],
)
def test_papyra_compact_keeps_what_a_list_would_keep_as_its_dry_run_says(
    papyra: Command, store: Store, options: list[str], limits: Limits
) -> None:
    made = fill_by_the_hour(store)
    before, all_of_it = facts(store), contents(store)
    expected = kept(made, before, limits)
    assert 0 < len(expected) < COUNT, "some are removed, and some are not"
    figures = [COUNT, len(expected), size_of(before), size_of(expected)]

    planned = papyra("compact", store.name, *options, "--dry-run", "--json")
    assert (planned.code, planned.err) == (0, "")
    assert jq(FIGURES, planned.out) == figures
    assert contents(store) == all_of_it

    done = papyra("compact", store.name, *options, "--yes", "--json")
    assert (done.code, done.err) == (0, "")
    assert jq("if .done then del(.done) else null end", done.out) == jq("del(.done)", planned.out)
    assert facts(store) == expected

    rest = contents(store)
    again = papyra("compact", store.name, *options, "--yes")
    assert (again.code, again.out) == (0, "")
    assert "none of them to remove" in again.err
    assert contents(store) == rest
    assert append(store, event(99)) == COUNT + 1
    assert papyra("scan", store.name).code == 0


def test_papyra_compact_removes_old_records_also_from_between_younger_ones(
    papyra: Command, file_store: Store
) -> None:
    store = file_store
    ages = [1, 50, 2, 60, 70, 3, 4, 80] * 7
    made: list[Record] = [
        event(number, timestamp=int(time.time()) - age * HOUR) for number, age in enumerate(ages)
    ]
    append(store, *made)
    before = facts(store)
    expected = kept(made, before, Limits(hours=24))
    planned = papyra("compact", store.name, "--max-age", "24h", "--dry-run", "--json")
    done = papyra("compact", store.name, "--max-age", "24h", "--yes", "--json")
    assert jq(FIGURES, done.out) == jq(FIGURES, planned.out)
    assert facts(store) == expected
    assert len(expected) == 28
    assert papyra("scan", store.name).code == 0


def test_papyra_compact_may_remove_every_record_without_freeing_a_position(
    papyra: Command, store: Store
) -> None:
    fill_by_the_hour(store)
    planned = papyra("compact", store.name, "--max-age", "1s", "--dry-run", "--json")
    done = papyra("compact", store.name, "--max-age", "1s", "--yes", "--json")
    assert jq(FIGURES, done.out) == jq(FIGURES, planned.out)
    assert jq("[.records_after, .bytes_after]", done.out) == [0, 0]
    assert facts(store) == []
    assert papyra("scan", store.name).code == 0
    assert append(store, event(1), event(2)) == COUNT + 2
    assert [seq for seq, _ in facts(store)] == [COUNT + 1, COUNT + 2]
    assert papyra("scan", store.name).code == 0


def test_papyra_compact_makes_the_files_of_a_store_smaller(
    papyra: Command, file_store: Store
) -> None:
    fill_by_the_hour(file_store)
    before = sum(path.stat().st_size for path in files_of(file_store))
    assert papyra("compact", file_store.name, "--max-records", "2", "--yes").code == 0
    assert sum(path.stat().st_size for path in files_of(file_store)) < before / 3


# What is said


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def test_papyra_compact_shows_the_counts_before_and_after(papyra: Command, store: Store) -> None:
    fill(store, 1200, 300)
    planned = papyra("compact", store.name, "--max-records", "3", "--dry-run")
    assert planned.code == 0
    assert [(row[0], _number(row[1])) for row in planned.rows[-3:]] == [
        ("before", 1200),
        ("to remove", 1191),
        ("after", 9),
    ]
    done = papyra("compact", store.name, "--max-records", "3", "--yes")
    assert done.code == 0
    last = done.rows[-3:]
    assert [row[1:] for row in last] == [row[1:] for row in planned.rows[-3:]]
    assert [row[0] for row in last] == ["before", "removed", "after"]
    assert len(facts(store)) == 9


def test_papyra_compact_shows_what_goes_of_each_kind_what_is_kept_and_why(
    papyra: Command, store: Store
) -> None:
    made = fill_by_the_hour(store)
    append(store, *(in_history(revision) for revision in range(1, 31)))
    assert [sum(type(record) is kind for record in made) for kind in KINDS] == [34, 11, 11]
    planned = papyra("compact", store.name, "--max-records", "5", "--dry-run")
    assert planned.rows[:-3] == [
        ["events", "34", "30", "at most 5 records; 25 are part of histories"],
        ["audits", "6", "5", "at most 5 records"],
        ["dead letters", "6", "5", "at most 5 records"],
    ]
    done = papyra("compact", store.name, "--max-records", "5", "--yes")
    assert done.rows[-6:-3] == planned.rows[:-3]


def test_papyra_compact_says_in_json_how_many_events_it_keeps_for_histories(
    papyra: Command, store: Store
) -> None:
    fill_by_the_hour(store)
    append(store, *(in_history(revision) for revision in range(1, 31)))
    options = ["--max-records", "5", "--json"]
    planned = papyra("compact", store.name, *options, "--dry-run")
    done = papyra("compact", store.name, *options, "--yes")
    assert jq("del(.done)", done.out) == jq("del(.done)", planned.out)
    assert jq(".kept_for_histories", done.out) == 25
    left = jq(".kinds | map_values([.records_before, .records_after])", done.out)
    assert left == {"event": [64, 30], "audit": [11, 5], "dead_letter": [11, 5]}
    assert jq(".retention.max_records", done.out) == 5


def test_papyra_compact_says_why_nothing_goes_of_histories(papyra: Command, store: Store) -> None:
    append(store, *(in_history(revision) for revision in range(1, 31)))
    done = papyra("compact", store.name, "--max-records", "5", "--yes")
    assert (done.code, done.out) == (0, "")
    assert "none of them to remove; 25 are kept as part of histories" in done.err
    assert len(facts(store)) == 30


# Of which kind


def test_papyra_compact_removes_only_records_of_the_kinds_that_are_named(
    papyra: Command, store: Store
) -> None:
    made = fill_by_the_hour(store)
    before = facts(store)
    options = ["--kind", "audits", "--kind", "dead-letters", "--max-records", "2"]
    planned = papyra("compact", store.name, *options, "--dry-run", "--json")
    done = papyra("compact", store.name, *options, "--yes", "--json")
    assert jq(FIGURES, done.out) == jq(FIGURES, planned.out)
    limited = set(kept(made, before, Limits(records=2)))
    expected = [
        fact
        for record, fact in zip(made, before, strict=True)
        if fact in limited or type(record) is PersistedEvent
    ]
    assert facts(store) == expected
    assert len(expected) == 34 + 2 + 2
    rows = papyra("compact", store.name, "--kind", "events", "--max-records", "9", "--yes").rows
    assert rows[1][1:] == ["0", "2", "no limit"]
    assert len(facts(store)) == 9 + 2 + 2
    assert papyra("scan", store.name).code == 0


def test_papyra_compact_of_one_kind_uses_the_limits_that_the_settings_have_for_it(
    papyra: Command, store: Store, tmp_path: Path
) -> None:
    fill_by_the_hour(store)
    env = settings_with(store, tmp_path, "max_records=7, audits=Limits(max_records=3)")
    done = papyra("compact", "--kind", "audits", "--yes", "--json", env=env)
    assert jq("[.kinds[] | .records_after]", done.out) == [34, 3, 11]
    done = papyra("compact", "--kind", "dead-letters", "--yes", "--json", env=env)
    assert jq("[.kinds[] | .records_after]", done.out) == [34, 3, 7]
    done = papyra("compact", "--yes", "--json", env=env)
    assert jq("[.kinds[] | .records_after]", done.out) == [7, 3, 7]


def test_papyra_compact_of_a_kind_without_any_limit_is_wrong_use(
    papyra: Command, store: Store, tmp_path: Path
) -> None:
    fill(store)
    before = contents(store)
    env = settings_with(store, tmp_path, "max_records=7, events=Limits()")
    for done in (
        papyra("compact", store.name, "--kind", "audits", "--yes"),
        papyra("compact", "--kind", "events", "--yes", env=env),
        papyra("compact", store.name, "--kind", "event", "--max-records", "3", "--yes"),
    ):
        assert (done.code, done.out) == (2, "")
        one_line(done)
    assert contents(store) == before


def test_papyra_compact_on_a_terminal_removes_records_only_after_a_yes(
    papyra: Command, store: Store
) -> None:
    fill_by_the_hour(store)
    before = contents(store)
    unasked = papyra("compact", store.name, "--max-records", "5")
    assert unasked.code == 2
    assert "--yes" in unasked.err.splitlines()[-1]
    call = ["compact", store.name, "--max-records", "5"]
    dry = papyra.on_terminal(*call, "--dry-run", columns=WIDE)
    assert (dry.code, "[y/n]" in dry.text, "to remove" in dry.text) == (0, False, True)
    refused = papyra.on_terminal(*call, columns=WIDE, answers=["n"])
    assert refused.code == 1
    assert "nothing was changed" in refused.text
    assert at_the_question(papyra, "sendeof", *call).code == 1
    assert contents(store) == before
    done = papyra.on_terminal(*call, columns=WIDE, answers=["y"])
    assert done.code == 0
    assert f"remove {COUNT - 15} records" in done.text
    words = [line.split()[:2] for line in done.text.splitlines()]
    assert ["removed", str(COUNT - 15)] in words
    assert ["after", "15"] in words
    assert len(facts(store)) == 15


def test_an_interrupt_at_the_question_of_papyra_compact_changes_nothing(
    papyra: Command, file_store: Store
) -> None:
    fill_by_the_hour(file_store)
    before = contents(file_store)
    done = at_the_question(papyra, "sendintr", "compact", file_store.name, "--max-records", "5")
    assert done.code == 130
    assert contents(file_store) == before


def test_an_interrupt_while_papyra_compact_reads_changes_nothing(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store, 40_000, 40_000)
    before = contents(file_store)
    done = interrupted_while_it_reads(
        papyra, file_store, "compact", file_store.name, "--max-records", "9", "--yes"
    )
    assert done.code == 130
    is_unchanged = contents(file_store) == before
    assert is_unchanged


def test_papyra_compact_does_not_ask_when_no_record_is_to_be_removed(
    papyra: Command, store: Store
) -> None:
    fill(store)
    before = contents(store)
    call = ["compact", store.name, "--max-records", str(COUNT), "--max-bytes", "1GiB"]
    for done in (papyra(*call), papyra.on_terminal(*call)):
        assert done.code == 0
        assert "none of them to remove" in done.err or "none of them to remove" in done.text
    said = papyra(*call, "--json")
    assert jq("[.done, .records_before, .records_after]", said.out) == [False, COUNT, COUNT]
    assert contents(store) == before


# Whose limits


def settings_with(store: Store, home: Path, policy: str) -> Mapping[str, str]:
    """Write a module of settings, and return the environment that names it."""
    place = "rotating" if store.kind == "rotating" else store.kind
    make = {
        "json": f"JsonFilePersistence({str(store.path)!r}",
        "rotating": f"RotatingFilePersistence({str(store.path)!r}",
        "redis": f"RedisStreamsPersistence(RedisStreamsConfig.from_url({store.url!r})",
    }[place]
    (home / "shop_settings.py").write_text(
        f"from papyra.persistence.backends.{place} import *\n"
        "from papyra.persistence.retention import Limits, RetentionPolicy\n"
        f"persistence = {make}, retention_policy=RetentionPolicy({policy}))\n"
    )
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PAPYRA_SETTINGS_MODULE": "shop_settings", "PYTHONPATH": path}


def test_papyra_compact_uses_the_limits_of_the_settings_when_none_are_given(
    papyra: Command, store: Store, tmp_path: Path
) -> None:
    made = fill_by_the_hour(store)
    before = facts(store)
    env = settings_with(store, tmp_path, "max_records=7, max_total_bytes=900")
    expected = kept(made, before, Limits(records=7, size=900))
    planned = papyra("compact", "--dry-run", "--json", env=env)
    assert jq(FIGURES, planned.out) == [COUNT, len(expected), size_of(before), size_of(expected)]
    # Those that are given take their place.
    few = papyra("compact", "--max-records", "20", "--yes", "--json", env=env)
    assert jq(".records_after", few.out) == len(kept(made, before, Limits(records=20)))
    assert facts(store) == kept(made, before, Limits(records=20))
    done = papyra("compact", "--yes", env=env)
    assert done.code == 0
    assert facts(store) == expected


def test_papyra_compact_without_any_limit_is_wrong_use(
    papyra: Command, store: Store, tmp_path: Path
) -> None:
    fill(store)
    before = contents(store)
    nowhere: list[Done] = [
        papyra("compact", store.name, "--yes"),
        papyra("compact", "--yes", env=settings_with(store, tmp_path, "")),
        papyra("compact", "--yes", env={"PAPYRA_PERSISTENCE": store.url}),
    ]
    for done in nowhere:
        assert (done.code, done.out) == (2, "")
        assert "--max-age" in one_line(done)
    assert contents(store) == before


@pytest.mark.parametrize(
    "options",
    [
        ["--max-records", "0"],
        ["--max-records", "-3"],
        ["--max-records", "many"],
        ["--max-records", "1.5"],
        ["--max-age", "0s"],
        ["--max-age", "soon"],
        ["--max-age", "3 fortnights"],
        ["--max-bytes", "0"],
        ["--max-bytes", "5 parsecs"],
        ["--max-size", "5"],
    ],
    ids=" ".join,
)
def test_papyra_compact_with_an_invalid_limit_is_wrong_use(
    papyra: Command, tmp_path: Path, redis_server: RedisServer, options: list[str]
) -> None:
    store = new_store("json", tmp_path, redis_server)
    fill(store, 3)
    before = contents(store)
    done = papyra("compact", store.name, *options, "--yes")
    assert (done.code, done.out) == (2, "")
    one_line(done)
    assert contents(store) == before


# Where nothing can be done


def test_papyra_compact_does_nothing_in_memory(papyra: Command) -> None:
    for done in (papyra("compact", "memory:", "--max-age", "1d"), papyra("compact", "memory:")):
        assert (done.code, done.err) == (0, "")
        assert "not supported" in done.out
        assert "nothing to do" in done.out


def test_papyra_compact_does_not_create_a_missing_store(papyra: Command, store: Store) -> None:
    done = papyra("compact", store.name, "--max-age", "1d", "--yes")
    assert (done.code, done.out) == (1, "")
    assert "no store" in one_line(done)
    assert contents(store) == {}


def test_papyra_compact_refuses_damaged_files(papyra: Command, file_store: Store) -> None:
    store = file_store
    fill_by_the_hour(store)
    path = files_of(store)[-1]
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-9] = lines[-9].replace(b".0}", b".7}")
    path.write_bytes(b"".join(lines))
    before = contents(store)
    for options in (["--yes"], ["--yes", "--json"], ["--dry-run"]):
        done = papyra("compact", store.name, "--max-records", "2", *options)
        assert (done.code, done.out) == (1, "")
        assert "recover" in one_line(done)
        assert contents(store) == before
    assert papyra("recover", store.name, "--yes").code == 0
    assert papyra("compact", store.name, "--max-records", "2", "--yes").code == 0
    assert len(facts(store)) == 6


def test_papyra_compact_refuses_files_damaged_since_a_reader_saved_its_index(
    papyra: Command, file_store: Store
) -> None:
    store = file_store
    fill(store, 2000, 900)
    assert papyra("inspect", store.name).code == 0, "what there is, is kept in mind now"
    path = files_of(store)[-1]
    data = path.read_bytes()
    number = data.count(b"\n") // 2
    lines = data.splitlines(keepends=True)
    lines[number] = lines[number].replace(b".0}", b".7}")
    path.write_bytes(b"".join(lines))
    before = contents(store)
    done = papyra("compact", store.name, "--max-records", "20", "--yes")
    assert done.code == 1
    assert "recover" in done.err.splitlines()[-1]
    assert contents(store) == before


def test_papyra_compact_dry_run_of_damaged_streams_predicts_the_real_run(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = new_store("redis", tmp_path, redis_server)
    fill(store)
    damage(store)
    fill(store)  # the damage is in the middle now, where it is trimmed
    options = [store.name, "--max-records", "3", "--json"]
    planned = papyra("compact", *options, "--dry-run")
    done = papyra("compact", *options, "--yes")
    assert done.code == planned.code
    if done.code:
        assert "recover" in one_line(done)
    else:
        assert jq(FIGURES, done.out) == jq(FIGURES, planned.out)


def test_papyra_compact_names_the_process_that_has_a_file_store_open(
    papyra: Command, file_store: Store
) -> None:
    store = file_store
    fill(store)
    with a_live_system(store.url) as live:
        before = contents(store)
        assert papyra("compact", store.name, "--max-records", "3", "--dry-run").code == 0
        done = papyra("compact", store.name, "--max-records", "3", "--yes", "--json")
        assert (done.code, done.out) == (1, "")
        assert f"process {live.process.pid} " in one_line(done)
        assert contents(store) == before
    assert papyra("scan", store.name).code == 0


def test_papyra_compact_trims_a_redis_store_while_a_system_writes_it(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = new_store("redis", tmp_path, redis_server)
    with a_live_system(store.url, pace=0) as live:
        while live.written() < 1000:
            pass
        assert papyra("compact", store.name, "--max-records", "100", "--yes").code == 0
        assert facts(store)[0][0] > 800
        live.written()
        assert papyra("scan", store.name).code == 0
    found = [seq for seq, _ in facts(store)]
    assert found == list(range(found[0], found[-1] + 1))
