"""Every command on an SQLite database."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import msgspec
import pytest

from papyra.persistence import outbox
from tests.cli.conftest import Command, Store, audit, dead_letter, event
from tests.cli.test_snapshots import TRIM, fill


@pytest.fixture
def store(tmp_path: Path) -> Store:
    path = tmp_path / "shop.sqlite"
    store = Store("sqlite", str(path), path)
    history = [
        msgspec.structs.replace(event(n), actor_address="shop/a", revision=n) for n in range(1, 21)
    ]
    store.append(*history, *map(event, range(21, 41)), audit(41), dead_letter(42))
    return store


def test_commands_that_look_at_a_database_change_nothing(
    papyra: Command, store: Store, tmp_path: Path
) -> None:
    assert store.path is not None
    before = store.path.read_bytes()
    facts = papyra("inspect", store.name).facts
    assert facts["backend"] == "SQLite"
    assert facts["records"].startswith("42: 40 events, 1 audit, 1 dead letter")
    assert len(papyra("events", store.name).rows) == 40
    assert len(papyra("audits", store.name).rows) == 1
    assert len(papyra("dead-letters", store.name).rows) == 1
    assert papyra("history", "shop/a", store.name).code == 0
    assert papyra("metrics", store.name).code == 0
    assert papyra("timeline", store.name).code == 0
    assert papyra("scan", store.name).code == papyra("doctor", store.name).code == 0
    assert papyra("compact", store.name, "--max-records", 3, "--dry-run").code == 0
    assert store.path.read_bytes() == before


def test_a_copy_to_a_database_and_back_is_the_same_byte_for_byte(
    papyra: Command, store: Store, tmp_path: Path
) -> None:
    first, second, database = (tmp_path / name for name in ("a.ndjson", "b.ndjson", "c.db"))
    for origin, target in ((store.name, first), (first, database), (database, second)):
        assert papyra("copy", origin, target).code == 0
    assert first.read_bytes() == second.read_bytes()
    with contextlib.closing(sqlite3.connect(database)) as copy:
        assert copy.execute("SELECT max(revision) FROM events").fetchall() == [(20,)]


def test_a_damaged_database_is_found_and_mended(papyra: Command, store: Store) -> None:
    assert store.path is not None
    with contextlib.closing(sqlite3.connect(store.path)) as database, database:
        database.execute("UPDATE events SET record = '{' WHERE seq = 30")
    assert papyra("scan", store.name).code == papyra("doctor", store.name).code == 3
    assert papyra("recover", store.name, "--mode", "quarantine", "--yes").code == 0
    assert store.path.with_name("shop.sqlite.damaged-1").exists()
    assert papyra("scan", store.name).code == 0
    assert len(papyra("events", store.name).rows) == 39


def test_a_database_is_compacted_but_for_histories(papyra: Command, store: Store) -> None:
    assert papyra("compact", store.name, "--max-records", 5, "--yes").code == 0
    seqs = [int(row[0]) for row in papyra("events", store.name).rows]
    assert seqs == [*range(1, 21), *range(36, 41)]


def test_what_is_not_there_is_named(papyra: Command, store: Store, tmp_path: Path) -> None:
    done = papyra("inspect", f"{store.url}?system_id=other")
    assert done.code == 1
    assert "no system 'other'; it holds 'papyra'" in done.err
    (tmp_path / "letter.sqlite").write_text("dear nobody" * 20)
    done = papyra("events", f"sqlite:{tmp_path / 'letter.sqlite'}")
    assert done.code == 1
    assert "no SQLite database" in done.err


def test_a_history_in_a_database_is_trimmed_as_its_dry_run_says(
    papyra: Command, tmp_path: Path
) -> None:
    path = tmp_path / "bank.sqlite"
    store = Store("sqlite", str(path), path)
    fill(store)
    told = papyra("compact", store.name, *TRIM, "--dry-run")
    assert "trimmed\t1\t2 events to remove: they begin with a snapshot" in told.out
    plan = json.loads(papyra("compact", store.name, *TRIM, "--dry-run", "--json").out)
    done = json.loads(papyra("compact", store.name, *TRIM, "--yes", "--json").out)
    assert done == plan | {"done": True}
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT revision, type FROM events WHERE revision IS NOT NULL")
        kept = [(3, "papyra.base"), *((number, "Counted") for number in (4, 5, 6))]
        assert rows.fetchall() == kept
    assert papyra("scan", store.name).code == papyra("doctor", store.name).code == 0
    copy = str(tmp_path / "copied.ndjson")
    assert papyra("copy", store.name, copy).code == 0
    shown = papyra("history", "shop/a", copy)
    assert "papyra.base" in shown.out
    assert shown.out == papyra("history", "shop/a", store.name).out


def test_inspect_says_how_many_events_wait_and_scan_what_is_wrong_with_them(
    papyra: Command, store: Store
) -> None:
    assert store.path is not None
    assert "outbox" not in papyra("inspect", store.name).facts
    with contextlib.closing(sqlite3.connect(store.path)) as database, database:
        database.execute("PRAGMA wal_autocheckpoint = 0")
        outbox.add(database, event(50), event(51))
        database.execute("INSERT INTO papyra_outbox (system_id, record) VALUES ('papyra', '{')")
    assert papyra("inspect", store.name).facts["outbox"] == "3 wait, 0 were set aside"
    assert '"outbox_waiting":3' in papyra("inspect", store.name, "--json").out
    done = papyra("scan", store.name)
    assert (done.code, done.rows[-1][0]) == (3, "outbox")
    # It keeps no system from starting, and a recovery leaves it to whoever has put it there.
    assert papyra("doctor", store.name).code == 0
    assert "papyra_outbox_refused" in papyra("recover", store.name, "--dry-run").out
