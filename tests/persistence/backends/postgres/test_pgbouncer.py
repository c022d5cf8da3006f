"""A pool that gives out connections by transaction is between the store and its server."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from papyra.exceptions import StoreFenced
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.persistence.records import PersistedEvent
from papyra.testing._postgres_server import _user_options
from papyra.testing._servers import PATIENCE, free_port
from tests.extent import CI
from tests.postgres_server import PostgresServer, query

PGBOUNCER = shutil.which("pgbouncer")

#: In CI it is there, or these fail.
pytestmark = pytest.mark.skipif(not PGBOUNCER and not CI, reason="there is no pgbouncer here")


@pytest.fixture
def pool(own_server: PostgresServer) -> Iterator[str]:
    """Return the URL of a pool with two connections to a server."""
    assert PGBOUNCER is not None, "install the package pgbouncer"
    port = free_port()
    settings = f"""
[databases]
* = host=127.0.0.1 port={own_server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {own_server.directory}/users
pool_mode = transaction
default_pool_size = 2
"""
    (own_server.directory / "pool").write_text(settings)
    (own_server.directory / "users").write_text(f'"postgres" "{own_server.password}"\n')
    command = [PGBOUNCER, "-q", str(own_server.directory / "pool")]
    with subprocess.Popen(
        command, cwd="/", stderr=subprocess.DEVNULL, **_user_options()
    ) as process:
        give_up_at = time.monotonic() + PATIENCE
        while time.monotonic() < give_up_at:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield own_server.url.replace(str(urlsplit(own_server.url).port), str(port))
        process.terminate()


def event(number: int) -> PersistedEvent:
    return PersistedEvent("shop", "shop/ann", "opened", number, 1.5, revision=number)


async def test_a_store_works_through_a_pool_that_gives_out_transactions(
    pool: str, own_server: PostgresServer
) -> None:
    async with PostgresPersistence(pool) as store:
        for number in range(1, 20):
            # Others use the connections of the pool, and leave something there.
            with psycopg.connect(pool, autocommit=True, prepare_threshold=None) as other:
                other.execute("SET statement_timeout = 1")
                other.execute("RESET ALL")
            await store.append(event(number))
            assert len((await store.read_history("shop/ann")).events) == number
        await store.compact()
        assert (await store.scan()).is_clean
    assert own_server.query("SELECT count(*) FROM papyra.events") == [(19,)]


async def test_a_writer_behind_a_pool_is_fenced(pool: str, own_server: PostgresServer) -> None:
    async with PostgresPersistence(pool) as first, PostgresPersistence(own_server.url) as second:
        await first.append(event(1))
        await second.append(event(2))
        with pytest.raises(StoreFenced):
            await first.append(event(2))


async def test_each_transaction_through_a_pool_is_as_durable_as_was_asked_for(
    pool: str, own_server: PostgresServer
) -> None:
    own_server.query("ALTER ROLE postgres SET synchronous_commit = off")
    async with PostgresPersistence(pool, acknowledge="local") as store:
        await store.append(event(1))
        query(
            own_server.url,
            """
            CREATE TABLE said (level text);
            CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO said VALUES (current_setting('synchronous_commit')); RETURN NULL;
            END $$;
            CREATE TRIGGER say AFTER INSERT OR DELETE ON papyra.events EXECUTE FUNCTION say();
            CREATE TRIGGER say AFTER UPDATE ON papyra.systems EXECUTE FUNCTION say();
            """,
        )
        await store.append(event(2))
        await store.store.claim()
        await store.recover()
    assert query(own_server.url, "SHOW synchronous_commit") == [("off",)]
    assert set(own_server.query("SELECT level FROM said")) == {("local",)}
