"""A schema for views, on the server that tests share. One event loop is enough outside CI."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from papyra.testing._postgres_server import URL_VARIABLE
from tests.conftest import event_loops
from tests.extent import CI
from tests.postgres_server import any_installation, own_database, shared_server

anyio_backend = event_loops("asyncio")

#: What starts servers of its own to lose them; it runs if it is named, too.
collect_ignore = [] if CI else ["test_servers.py"]


@pytest.fixture(scope="session")
def database() -> str:
    """Return the URL of a database on a server that tests share, with its superuser."""
    return os.environ.get(URL_VARIABLE) or own_database(shared_server(any_installation()))


@pytest.fixture
def schema(database: str) -> Iterator[str]:
    """Return the name of a schema of this test's."""
    name = f"papyra_test_{uuid.uuid4().hex}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


def in_schema(url: str, schema: str) -> str:
    """Return the URL with which tables are made in a schema."""
    sign = "&" if "?" in url else "?"
    return f"{url}{sign}options={quote(f'-csearch_path={schema}')}"


@pytest.fixture
def url(database: str, schema: str) -> str:
    """Return the URL of the view's database."""
    return in_schema(database, schema)
