"""Records in a PostgreSQL database."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, quote

import anyio
import msgspec

from papyra.exceptions import InvalidStoreURL
from papyra.persistence.backends._postgres.schema import forget_system
from papyra.persistence.backends._postgres.settings import (
    DEFAULT_SCHEMA,
    DEFAULT_SYSTEM,
    Acknowledge,
    Settings,
)
from papyra.persistence.backends._postgres.store import PostgresStore
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.reports import ReportProgress
from papyra.persistence.retention import RetentionPolicy

__all__ = ("PostgresPersistence",)


class PostgresPersistence(PersistenceBackend):
    """Keep facts in PostgreSQL, from 14 on: in tables that people may query, join and index.

    `dsn` is what libpq takes: ``postgresql://user@host/database?sslmode=verify-full``, or
    ``service=papyra``; passwords may come from a password file. Of several hosts, the one is used
    that takes writes. The tables are in the schema `schema` of that database, and are made if they
    are not there; one schema holds any number of systems, each by its `system_id`.

    A batch is one statement and one transaction. With ``acknowledge="on"``, an acknowledged record
    is on the server's disk, and on that of a synchronous standby if the server has such; with
    ``"local"`` on the server's; with ``"remote_apply"`` the standby shows it to readers, too, and
    without one this is refused. All of it as the server is configured: one with ``fsync = off``
    may lose everything.

    **A system has one writer.** With its first write a backend becomes the writer, and takes over
    from the one before, whose next write raises `StoreFenced`; opening and reading take nothing
    over. While the server can't be reached, or is not ready, calls are tried again for `retry_for`
    seconds. Where the connection is lost during a commit, or a standby has not confirmed it, what
    became of the batch is found out before anything else is written: an append that returns is
    stored once, and one that raises is not shown, and removed before anything else is written, or
    on closing. Where another writer has taken over, or the process ends before that, it may be
    stored all the same, which the log says.

    Errors of the server have names: `StoreUnreachable`, `StoreNotReady`, `StoreNotWritable`,
    `StoreFull`, `StoreAccessDenied`, `StoreMissing`, `StoreWrongType`, `StoreNotAcknowledged`. No
    message has anything secret of `dsn` in it. A connection through PgBouncer, or another pool that
    gives out connections by transaction, is recognized, and nothing is prepared or set on it.
    """

    store: PostgresStore

    def __init__(
        self,
        dsn: str,
        *,
        system_id: str = DEFAULT_SYSTEM,
        schema: str = DEFAULT_SCHEMA,
        acknowledge: Acknowledge = "on",
        connect_timeout: float = 10.0,
        statement_timeout: float = 30.0,
        lock_timeout: float = 10.0,
        retry_for: float = 10.0,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
    ) -> None:
        settings = Settings(
            dsn=dsn,
            system_id=system_id,
            schema=schema,
            acknowledge=acknowledge,
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            lock_timeout=lock_timeout,
            retry_for=retry_for,
            read_only=read_only,
        )
        super().__init__(PostgresStore(settings), retention_policy=retention_policy, clock=clock)

    def __repr__(self) -> str:
        return f"PostgresPersistence({self.store.location!r})"

    @property
    def is_damaged(self) -> bool:
        """Whether damage has been seen by now, which reads pass over; only a scan sees all."""
        return self.store.blocking.is_damaged

    def reader(
        self, *, index_directory: Path | None = None, opening: ReportProgress | None = None
    ) -> PostgresPersistence:
        """Return a backend that reads the same system, with `read_only`."""
        del index_directory, opening
        settings = msgspec.structs.replace(self.store.settings, read_only=True)
        return from_settings(settings, retention_policy=self.retention, clock=self.clock)


def from_settings(settings: Settings, **options: Any) -> PostgresPersistence:
    """Return the backend with these settings."""
    return PostgresPersistence(**msgspec.structs.asdict(settings), **options)


#: What is ours in the query of a URL; the rest is libpq's.
_OPTIONS: dict[str, Callable[[str], object]] = {
    "system_id": str,
    "schema": str,
    "acknowledge": str,
    "statement_timeout": float,
    "lock_timeout": float,
    "retry_for": float,
}


@contextlib.asynccontextmanager
async def beside(backend: PersistenceBackend) -> AsyncIterator[PostgresPersistence]:
    """Make a system of its own in the same schema, and remove it afterwards."""
    assert isinstance(backend, PostgresPersistence)
    settings = msgspec.structs.replace(
        backend.store.settings, system_id=f"bench-{uuid.uuid4().hex}", read_only=False
    )
    store = from_settings(settings)
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(forget_system, settings)


def from_url(url: str, *, read_only: bool) -> PostgresPersistence:
    """Return the backend that a URL means."""
    plain, _, query = url.partition("?")
    own: dict[str, object] = {}
    others: list[str] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in own:
            raise InvalidStoreURL(f"the URL has the option {name!r} twice")
        if name in _OPTIONS:
            try:
                own[name] = _OPTIONS[name](value)
            except ValueError:
                raise InvalidStoreURL(f"the option {name!r} of the URL is a number") from None
        else:
            others.append(f"{quote(name, safe='')}={quote(value, safe='')}")
    dsn = f"{plain}?{'&'.join(others)}" if others else plain
    return PostgresPersistence(dsn, read_only=read_only, **cast("dict[str, Any]", own))
