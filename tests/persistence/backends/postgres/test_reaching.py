"""How a server is reached: TLS, password files, services, several hosts."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import trustme
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from papyra.exceptions import StoreError, StoreFull, StoreMissing
from papyra.persistence.backends.postgres import PostgresPersistence, beside
from papyra.persistence.records import PersistedEvent
from papyra.testing._postgres_server import _give
from tests.mounting import mount_small_disk
from tests.persistence.backends.postgres.proxy import Proxy
from tests.postgres_server import PostgresServer

EVENT = PersistedEvent("shop", "shop/ann", "opened", 1, 1.5)


def without_password(url: str) -> dict[str, Any]:
    return {name: value for name, value in conninfo_to_dict(url).items() if name != "password"}


@pytest.fixture
def password_file(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"*:*:*:*:{urlsplit(database).password}\n")
    path.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(path))


@pytest.mark.usefixtures("password_file")
async def test_a_password_may_be_in_a_password_file(database: str, schema: str) -> None:
    dsn = make_conninfo(**without_password(database))
    async with PostgresPersistence(dsn, schema=schema) as store:
        await store.append(EVENT)


@pytest.mark.usefixtures("password_file")
async def test_a_server_may_be_named_by_a_service(
    database: str, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{name}={value}" for name, value in without_password(database).items()]
    (tmp_path / "services").write_text("\n".join(["[papyra]", *lines, ""]))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    async with PostgresPersistence("service=papyra", schema=schema) as store:
        await store.append(EVENT)
        assert "service=papyra" in store.location


async def test_of_several_hosts_one_that_takes_writes_is_used(
    own_server: PostgresServer, database: str
) -> None:
    own_server.query("ALTER SYSTEM SET default_transaction_read_only = on")
    own_server.query("SELECT pg_reload_conf()")
    with PostgresServer(own_server.installation) as writable:
        dsn = make_conninfo(
            dbname="postgres",
            user="postgres",
            password=own_server.password,
            host="127.0.0.1,127.0.0.1,127.0.0.1",
            port=f"1,{own_server.port},{writable.port}",
        )
        async with PostgresPersistence(dsn) as store:
            await store.append(EVENT)
            assert f"127.0.0.1:{own_server.port}," in store.location
        assert writable.query("SELECT count(*) FROM papyra.events") == [(1,)]
        with pytest.raises(StoreMissing):  # a reader takes the first one that answers
            async with PostgresPersistence(dsn).reader():
                pass


@pytest.fixture
def behind_tls(database: str, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a database behind a proxy that ends TLS, as not every server knows it.

    Who has signed its certificate is in ``authority`` in the test's directory.
    """
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "authority")
    with Proxy(urlsplit(database).port or 5432, tls=context) as proxy:
        yield proxy.url(database)


async def test_a_server_may_be_reached_by_tls(behind_tls: str, schema: str, tmp_path: Path) -> None:
    dsn = make_conninfo(behind_tls, sslmode="verify-full", sslrootcert=str(tmp_path / "authority"))
    async with PostgresPersistence(dsn, schema=schema) as store:
        await store.append(EVENT)
        assert len((await store.read("event")).records) == 1


async def test_a_server_with_another_certificate_is_refused(
    behind_tls: str, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "another")
    dsn = make_conninfo(behind_tls, sslmode="verify-full", sslrootcert=str(tmp_path / "another"))
    with pytest.raises(StoreError, match="certificate verify failed"):
        async with PostgresPersistence(dsn, retry_for=0):
            pass


async def test_a_server_without_tls_is_refused_where_that_is_asked_for(
    own_server: PostgresServer,
) -> None:
    dsn = make_conninfo(own_server.url, sslmode="require")
    with pytest.raises(StoreError, match="does not support SSL"):
        async with PostgresPersistence(dsn, retry_for=0):
            pass


async def test_a_store_beside_another_leaves_nothing_behind(database: str, schema: str) -> None:
    async with PostgresPersistence(database, schema=schema) as store:
        await store.append(EVENT)
        async with beside(store) as other, other:
            await other.append(EVENT)
    async with PostgresPersistence(database, schema=schema) as store:
        session = store.store.blocking._session
        assert session._connection is not None
        tables = ("events", "systems")
        found = [
            session._connection.rows(f'SELECT system_id FROM "{schema}".{table}'.encode())
            for table in tables
        ]
    assert found == [[("papyra",)], [("papyra",)]]


async def test_a_server_whose_disk_is_full_takes_nothing_and_goes_on_once_there_is_room(
    own_server: PostgresServer,
) -> None:
    disk = own_server.directory / "disk"
    disk.mkdir()
    mount_small_disk(disk, "1m")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 300_000)
        (disk / "tables").mkdir()
        _give(disk / "tables")
        create = sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(disk / "tables"))
        with psycopg.connect(own_server.url, autocommit=True) as connection:
            connection.execute(create)
        own_server.query("ALTER ROLE postgres SET default_tablespace = small")
        async with PostgresPersistence(own_server.url) as store:
            stored = refused = 0
            while refused < 3:
                try:
                    await store.append(*[EVENT] * 100)
                    stored += 100
                except StoreFull:
                    refused += 1
                    assert len((await store.read("event")).records) == stored
            ballast.unlink()
            await store.append(EVENT)
            assert (await store.summarize()).records["event"] == stored + 1
            assert stored
        own_server.stop()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
