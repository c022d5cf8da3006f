"""Every command on a PostgreSQL database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.cli.conftest import Command, Store, audit, dead_letter, event
from tests.cli.test_projections import ask, running, until
from tests.cli.test_snapshots import TRIM, fill
from tests.persistence.backends.postgres.conftest import URL
from tests.postgres_server import any_installation, own_database, query, shared_server
from tests.projections.postgres.conftest import in_schema

SCHEMA = "papyra_cli"


@pytest.fixture(scope="module")
def database() -> str:
    """Return the URL of a database, of which no schema is used by others."""
    return URL or own_database(shared_server(any_installation()))


@pytest.fixture
def empty(database: str) -> Iterator[Store]:
    yield Store("postgres", f"{database}?schema={SCHEMA}")
    query(database, "DROP SCHEMA IF EXISTS papyra_cli CASCADE")


@pytest.fixture
def store(empty: Store) -> Store:
    history = [
        msgspec.structs.replace(event(n), actor_address="shop/a", revision=n) for n in range(1, 21)
    ]
    empty.append(*history, *map(event, range(21, 41)), audit(41), dead_letter(42))
    return empty


def test_commands_that_look_at_a_postgres_store_say_what_is_in_it(
    papyra: Command, store: Store, database: str
) -> None:
    before = query(database, "SELECT epoch, writer, last_seq FROM papyra_cli.systems")
    facts = papyra("inspect", store.name).facts
    assert facts["backend"] == "PostgreSQL"
    assert facts["records"].startswith("42: 40 events, 1 audit, 1 dead letter")
    assert len(papyra("events", store.name).rows) == 40
    assert len(papyra("audits", store.name).rows) == 1
    assert len(papyra("dead-letters", store.name).rows) == 1
    assert papyra("history", "shop/a", store.name).code == 0
    assert papyra("metrics", store.name).code == 0
    assert papyra("timeline", store.name).code == 0
    assert papyra("scan", store.name).code == papyra("doctor", store.name).code == 0
    assert papyra("compact", store.name, "--max-records", 3, "--dry-run").code == 0
    assert query(database, "SELECT epoch, writer, last_seq FROM papyra_cli.systems") == before


def test_no_command_prints_the_password(papyra: Command, store: Store, database: str) -> None:
    password = database.partition("postgres:")[2].partition("@")[0]
    assert password
    for command in (["inspect"], ["events"], ["scan"], ["doctor"], ["compact", "--dry-run"]):
        done = papyra(command[0], store.name, *command[1:])
        wrong = papyra(command[0], store.name.replace("127.0.0.1:", "127.0.0.1:1"), *command[1:])
        assert wrong.code != 0
        assert password not in done.out + done.err + wrong.out + wrong.err


def test_projections_of_a_postgres_store_into_a_postgres_view_are_listed_and_asked(
    papyra: Command, store: Store, database: str
) -> None:
    view = in_schema(database, SCHEMA)
    where = (store.name, "--view", view, "--over", "0s")
    with running(store, view) as runner:
        head = runner.add("one", "two")
        until(papyra, store, view, "lines", position=head, state="running")
        for name in ("lines", "mails"):
            asked = ask(papyra, "pause", name, store, view, "--reason", "a move")
            assert (asked["done"], asked["state"], asked["is_run"]) == (True, "paused", True)
        assert query(
            database, "SELECT error FROM papyra_cli.papyra_projections WHERE is_paused = 1"
        ) == [("a move",)]
        assert query(database, "SELECT name FROM papyra_cli.papyra_positions ORDER BY name") == [
            ("projections/mails",)
        ]
        assert ask(papyra, "resume", "lines", store, view)["done"]
    told = papyra("projections", *where)
    assert (told.code, [row[0] for row in told.rows]) == (0, ["lines", "mails", "parking"])
    password = database.partition("postgres:")[2].partition("@")[0]
    assert password
    wrong = papyra("projections", store.name, "--view", view.replace("127.0.0.1:", "127.0.0.1:1"))
    assert wrong.code == 1
    assert password not in told.out + told.err + wrong.out + wrong.err


def test_a_copy_through_every_kind_of_store_is_the_same_byte_for_byte(
    papyra: Command, store: Store, tmp_path: Path, database: str
) -> None:
    first, second, sqlite = (str(tmp_path / name) for name in ("a.ndjson", "b.ndjson", "c.db"))
    other = f"{store.name}&system_id=copied"
    for origin, target in ((store.name, first), (first, sqlite), (sqlite, other), (other, second)):
        assert papyra("copy", origin, target).code == 0
    assert Path(first).read_bytes() == Path(second).read_bytes()
    assert query(
        database, "SELECT max(revision) FROM papyra_cli.events WHERE system_id = 'copied'"
    ) == [(20,)]


def test_a_damaged_postgres_store_is_found_and_mended(
    papyra: Command, store: Store, database: str
) -> None:
    query(database, """UPDATE papyra_cli.events SET record = '{"a": 1}' WHERE seq = 30""")
    query(database, "UPDATE papyra_cli.events SET actor = 'other' WHERE seq = 31")
    assert papyra("scan", store.name).code == papyra("doctor", store.name).code == 3
    assert papyra("recover", store.name, "--mode", "quarantine", "--yes").code == 0
    assert query(database, "SELECT origin, data FROM papyra_cli.quarantine") == [
        ("events/30", b'{"a": 1}')
    ]
    assert papyra("scan", store.name).code == 0
    assert len(papyra("events", store.name).rows) == 39


def test_a_postgres_store_is_compacted_but_for_histories(papyra: Command, store: Store) -> None:
    assert papyra("compact", store.name, "--max-records", 5, "--yes").code == 0
    seqs = [int(row[0]) for row in papyra("events", store.name).rows]
    assert seqs == [*range(1, 21), *range(36, 41)]


def test_a_postgres_store_that_is_not_there_is_named(papyra: Command, store: Store) -> None:
    done = papyra("inspect", f"{store.name}&system_id=other")
    assert done.code == 1
    assert "no system 'other'; there is 'papyra'" in done.err
    done = papyra("inspect", store.name.replace(SCHEMA, "papyra_none"))
    assert done.code == 1
    assert "no schema 'papyra_none'" in done.err


def test_a_history_in_a_postgres_store_is_trimmed_as_its_dry_run_says(
    papyra: Command, empty: Store, database: str
) -> None:
    fill(empty)
    told = papyra("compact", empty.name, *TRIM, "--dry-run")
    assert "trimmed\t1\t2 events to remove: they begin with a snapshot" in told.out
    plan = json.loads(papyra("compact", empty.name, *TRIM, "--dry-run", "--json").out)
    done = json.loads(papyra("compact", empty.name, *TRIM, "--yes", "--json").out)
    assert done == plan | {"done": True}
    assert query(
        database,
        "SELECT revision, type FROM papyra_cli.events WHERE revision IS NOT NULL ORDER BY seq",
    ) == [(3, "papyra.base"), *((number, "Counted") for number in (4, 5, 6))]
    assert papyra("scan", empty.name).code == papyra("doctor", empty.name).code == 0
