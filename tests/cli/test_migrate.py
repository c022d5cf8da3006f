"""``papyra migrate``: what it says, asks and does, and when it does nothing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.persistence.backends.sqlite.older_versions import make_version, schema_of
from tests.persistence.backends.sqlite.test_migrations import OLDER_WRITER, ROOT


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "bank.sqlite"
    make_version(1, path)
    return path


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        (version,) = database.execute("SELECT version FROM papyra_schema").fetchone()
        return int(version)


def test_papyra_migrate_shows_the_steps_and_takes_them(papyra: Command, old: Path) -> None:
    before = old.read_bytes()
    planned = papyra("migrate", old, "--dry-run")
    assert planned.code == 0
    assert planned.rows[-2:] == [
        ["2", "add the tables of the outbox, which are empty"],
        ["3", "add the table of positions, which is empty"],
    ]
    assert "the tables are of version 1" in planned.err
    assert old.read_bytes() == before

    done = papyra("migrate", old, "--yes", "--json")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)
    assert (said["done"], said["version_before"], said["version_after"]) == (True, 1, 3)
    assert version_of(old) == 3
    assert papyra("scan", old).code == 0
    assert len(papyra("events", old).rows) == 4


def test_papyra_migrate_asks_and_a_no_changes_nothing(papyra: Command, old: Path) -> None:
    refused = papyra.on_terminal("migrate", old, answers=["n"])
    assert refused.code == 1
    assert "nothing was changed" in refused.text
    assert version_of(old) == 1
    agreed = papyra.on_terminal("migrate", old, answers=["y"])
    assert agreed.code == 0
    assert "migrated from version 1 to version 3" in agreed.text
    assert version_of(old) == 3


def test_papyra_migrate_without_anybody_to_ask_changes_nothing(papyra: Command, old: Path) -> None:
    done = papyra("migrate", old)
    assert done.code != 0
    assert "--yes" in done.err
    assert version_of(old) == 1


def test_what_needs_no_migration_has_succeeded(papyra: Command, old: Path, tmp_path: Path) -> None:
    assert papyra("migrate", old, "--yes").code == 0
    again = papyra("migrate", old, "--yes")
    assert (again.code, again.out) == (0, "")
    assert "of version 3: nothing to do" in again.err
    assert papyra("copy", old, tmp_path / "copy.ndjson").code == 0
    of_a_file = papyra("migrate", tmp_path / "copy.ndjson", "--json")
    assert (of_a_file.code, json.loads(of_a_file.out)["supported"]) == (0, False)
    assert papyra("migrate", "memory:").code == 0


def test_a_live_writer_keeps_the_migration_out(papyra: Command, old: Path) -> None:
    command = [sys.executable, "-c", OLDER_WRITER, str(old), "shop"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert papyra("migrate", old, "--dry-run").code == 0
        done = papyra("migrate", old, "--yes")
        writer.communicate()
    assert done.code == 1
    assert f"process {writer.pid}" in done.err
    assert version_of(old) == 1


def test_commands_that_look_need_no_migration_and_those_that_write_name_it(
    papyra: Command, old: Path
) -> None:
    for command in (["inspect"], ["events"], ["history", "bank/ann"], ["scan"], ["metrics"]):
        assert papyra(*command, old).code == 0, command
    done = papyra("skip-event", "bank/ann", 2, old, "--reason", "paid twice", "--yes")
    assert done.code == 1
    assert "papyra migrate" in done.err


def test_doctor_says_that_a_system_would_not_start(papyra: Command, old: Path) -> None:
    done = papyra("doctor", old)
    assert done.code == 1
    assert "would not start: the tables" in done.err
    assert "papyra migrate" in done.err
    assert papyra("migrate", old, "--yes").code == 0
    assert papyra("doctor", old).code == 0


def test_a_database_of_others_gets_the_tables_and_a_new_one_is_not_made(
    papyra: Command, tmp_path: Path, old: Path
) -> None:
    path = tmp_path / "app.sqlite"
    assert "no store at" in papyra("migrate", path, "--yes").err
    assert not path.exists()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE orders (id INTEGER)")
    assert len(papyra("migrate", path, "--dry-run").rows) >= 2
    assert papyra("migrate", path, "--yes").code == 0
    assert papyra("migrate", old, "--yes").code == 0
    assert [each for each in schema_of(path) if each[1] != "orders"] == schema_of(old)


def test_a_newer_version_is_refused(papyra: Command, old: Path) -> None:
    with closing(sqlite3.connect(old)) as database, database:
        database.execute("UPDATE papyra_schema SET version = 4")
    done = papyra("migrate", old, "--yes")
    assert done.code == 1
    assert "of version 4" in done.err
