"""Connections: how a server is reached, what is asked of it, and the transactions there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.abc import Params, PQGen
from psycopg.types.string import ByteaBinaryLoader

from papyra.exceptions import (
    StoreError,
    StoreNotAcknowledged,
    StoreNotWritable,
    StoreWrongType,
)
from papyra.persistence.backends._postgres.arrays import register
from papyra.persistence.backends._postgres.settings import Settings

__all__ = ("Connection", "Row", "application_name", "connect", "snapshot", "transaction")

ResultT = TypeVar("ResultT")
Row = tuple[Any, ...]

_OLDEST = 140_000
#: Seconds that a server gets on top of its own time limit, and again to give up.
_GRACE = 2.0
#: Executions of a statement until it is prepared.
_PREPARED_FROM = 2
#: Statements follow the indexes that are made for them, also where the server knows little yet of
#: what is in its tables: of a new system it thinks that there are no rows, which any way leads to.
#: So their plans are the same for all values, and are made once.
_PLANS = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "plan_cache_mode": "force_generic_plan",
}
#: Where the server says that a commit is on its own disk alone; its words depend on its language.
_LOCAL_COMMIT = "SyncRepWaitForLSN"


class Connection(psycopg.Connection[Row]):
    """A connection that no answer is waited for longer than `time_limit` seconds on."""

    time_limit: float | None = None
    #: whether a pool is between this and the server, so that nothing of a session stays
    is_pooled = False
    #: whether the server has said that the last commit is on its own disk alone
    is_local_only = False
    acknowledge = "on"
    #: for one row at a time: it knows how to write the types of values it has met before
    _one: psycopg.Cursor[Row] | None = None

    def wait(self, gen: PQGen[ResultT], *args: Any, **kwargs: Any) -> ResultT:
        """Wait for an answer; when the time is over, have the server give up, and wait for that.

        Raises `psycopg.OperationalError` if it does not even do that. A commit that waits for a
        standby is over when that is given up, but on the server's own disk alone.
        """
        if self.time_limit is not None:
            gen = self._limited(gen, self.time_limit)
        return super().wait(gen, *args, **kwargs)

    def _limited(self, gen: PQGen[ResultT], seconds: float) -> Generator[Any, Any, ResultT]:
        give_up_at, was_cancelled = time.monotonic() + seconds, False
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > give_up_at:
                    if was_cancelled:
                        raise psycopg.OperationalError(f"no answer in {seconds:g} seconds")
                    was_cancelled = True
                    with contextlib.suppress(psycopg.Error):
                        self.cancel_safe(timeout=_GRACE)
                    give_up_at = time.monotonic() + _GRACE
                wanted = gen.send(ready)
        except StopIteration as stop:
            result: ResultT = stop.value
            return result

    def rows(self, query: LiteralString | bytes, params: Params | None = None) -> list[Row]:
        """Return all rows that a statement returns; JSON as bytes."""
        return self.execute(query, params, binary=True).fetchall()

    def row(self, query: LiteralString | bytes, params: Params | None = None) -> Row:
        """Return the one row that a statement always returns; JSON as bytes."""
        if self._one is None:
            self._one = self.cursor(binary=True)
        (found,) = self._one.execute(query, params).fetchall()
        return found


def application_name(writer: str) -> str:
    """Return what connections of a writer are called, unless its user says otherwise."""
    return f"papyra {writer}"


def connect(settings: Settings, writer: str) -> Connection:
    """Return a connection on which what `settings` ask for holds."""
    connection = Connection.connect(
        settings.conninfo,
        autocommit=True,
        prepare_threshold=_PREPARED_FROM,
        fallback_application_name=application_name(writer),
    )
    try:
        _prepare(connection, settings)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: Connection, settings: Settings) -> None:
    connection.time_limit = settings.statement_timeout + _GRACE
    connection.acknowledge = settings.acknowledge
    connection.adapters.register_loader("json", ByteaBinaryLoader)
    register(connection)
    connection.add_notice_handler(lambda said: _heed(connection, said))
    _check_server(connection, settings.location)
    pid, is_standby, standbys = connection.row(
        "SELECT pg_backend_pid(), pg_is_in_recovery(),"
        " current_setting('synchronous_standby_names', true)"
    )
    # A pool makes one up.
    connection.is_pooled = pid != connection.info.backend_pid
    if connection.is_pooled:
        connection.prepare_threshold = None
    if not settings.read_only:
        if is_standby:
            raise StoreNotWritable(f"{settings.location}: it takes no writes: this is a standby")
        if settings.acknowledge == "remote_apply" and not standbys:
            raise StoreNotAcknowledged(
                f"{settings.location}: acknowledge='remote_apply' waits for a standby, and the "
                "server has none in synchronous_standby_names"
            )
    if not connection.is_pooled:
        _set(connection, settings)


def _set(connection: Connection, settings: Settings) -> None:
    """Set what holds for a session."""
    values = {
        "statement_timeout": f"{1000 * settings.statement_timeout:.0f}ms",
        "lock_timeout": f"{1000 * settings.lock_timeout:.0f}ms",
        "synchronous_commit": settings.acknowledge,
        **_PLANS,
    }
    calls = ", ".join("set_config(%s, %s, false)" for _ in values)
    connection.execute(
        f"SELECT {calls}".encode(), [each for pair in values.items() for each in pair]
    )


def _check_server(connection: Connection, location: str) -> None:
    if connection.info.server_version < _OLDEST:
        major = connection.info.server_version // 10_000
        raise StoreError(f"{location}: this is PostgreSQL {major}, and 14 is the oldest that does")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreWrongType(
            f"{location}: the encoding of the database is {encoding}: make one with ENCODING 'UTF8'"
        )


def _heed(connection: Connection, said: psycopg.errors.Diagnostic) -> None:
    if said.source_function == _LOCAL_COMMIT:
        connection.is_local_only = True


@contextlib.contextmanager
def transaction(connection: Connection, *, unlimited: bool = False) -> Iterator[None]:
    """Commit what is written within, or, where that raises, none of it.

    Raises `StoreNotAcknowledged` where the commit is on the server's own disk, and more was asked
    for. What takes long may be `unlimited`.
    """
    connection.is_local_only = False
    with _unlimited(connection) if unlimited else contextlib.nullcontext():
        with connection.transaction():
            if connection.is_pooled:
                connection.execute(
                    "SELECT set_config('synchronous_commit', %s, true)", (connection.acknowledge,)
                )
            if unlimited:
                connection.execute("SET LOCAL statement_timeout = 0")
            yield
        if connection.is_local_only:
            raise StoreNotAcknowledged("the commit is on the server's own disk, and no standby's")


@contextlib.contextmanager
def snapshot(connection: Connection, *, unlimited: bool = False) -> Iterator[None]:
    """Read within as of one moment."""
    with _unlimited(connection) if unlimited else contextlib.nullcontext():
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            if unlimited:
                connection.execute("SET LOCAL statement_timeout = 0")
            yield
        finally:
            # One that is lost has none any more.
            with contextlib.suppress(psycopg.Error):
                connection.execute("ROLLBACK")


@contextlib.contextmanager
def _unlimited(connection: Connection) -> Iterator[None]:
    limit, connection.time_limit = connection.time_limit, None
    try:
        yield
    finally:
        connection.time_limit = limit
