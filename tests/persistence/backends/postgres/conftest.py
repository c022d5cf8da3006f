"""Servers to test with: one of each major version that can be started here, or the first of them.

In CI, tests run on one after another, and on every event loop; elsewhere on asyncio, without those
that start servers of their own to lose them. ``POSTGRES_URL`` names one that is there already.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from papyra.testing._postgres_server import URL_VARIABLE
from tests.conftest import event_loops
from tests.extent import CI
from tests.postgres_server import (
    PostgresServer,
    any_installation,
    installations,
    own_database,
    shared_server,
)
from tests.server_versions import leave_to_other_versions

anyio_backend = event_loops("asyncio")

#: What takes longer than a newcomer likes to wait. It runs if it is named, too.
_LONG = ("failover", "full_disk", "kill", "pgbouncer", "proxy", "server")
collect_ignore = [] if CI else [f"test_{name}.py" for name in _LONG]

#: Where stores are that need no server of their own, if it is set.
URL = os.environ.get(URL_VARIABLE)
_FOUND = sorted(installations()) if CI else list(installations())[:1]
_MAJORS: Sequence[int | None] = _FOUND or [None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have a test run on one major version after another."""
    versions = {"installation": len(_MAJORS), "database": 1 if URL else len(_MAJORS)}
    leave_to_other_versions(config, items, Path(__file__).parent, versions)


def _installation(major: int | None) -> Path:
    return any_installation() if major is None else installations()[major]  # or what to install


@pytest.fixture(scope="session", params=_MAJORS, ids=lambda major: f"postgres-{major}")
def installation(request: pytest.FixtureRequest) -> Path:
    """Return where the programs of one major version are; there is one test for each."""
    return _installation(request.param)


@pytest.fixture(
    scope="session",
    params=[URL_VARIABLE] if URL else _MAJORS,
    ids=lambda which: which if which == URL_VARIABLE else f"postgres-{which}",
)
def database(request: pytest.FixtureRequest) -> str:
    """Return the URL of a database on a server that tests share, with its superuser.

    No other process has the database, if it is not at ``POSTGRES_URL``. The server does not sync.
    """
    return URL or own_database(shared_server(_installation(request.param)))


@pytest.fixture
def schema(database: str) -> Iterator[str]:
    """Return the name of a schema of this test's in `database`, which is not made yet."""
    name = f"papyra_test_{uuid.uuid4().hex}"
    yield name
    _drop(database, name)


@pytest.fixture(scope="session")
def shared_schema(database: str) -> Iterator[str]:
    """Return the name of a schema for tests that have a system each: making tables takes longer."""
    name = f"papyra_test_{uuid.uuid4().hex}"
    yield name
    _drop(database, name)


def _drop(database: str, schema: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
        connection.execute(drop)


@pytest.fixture
def own_server(installation: Path) -> Iterator[PostgresServer]:
    """Return a server that the test may do with as it likes. What it commits, it syncs."""
    with PostgresServer(installation) as server:
        yield server
