"""Views in PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from papyra._safe_repr import is_really, shown
from papyra.exceptions import InvalidSetting, MissingExtra, ViewUnavailable
from papyra.projections.database import ViewDatabase
from papyra.projections.view import View, checked_lease

try:
    import psycopg
    from psycopg import conninfo as conninfos
    from psycopg.pq import TransactionStatus
except ImportError as error:
    raise MissingExtra(
        f"views in PostgreSQL need psycopg 3 ({error}), which Papyra's extra 'postgres' brings: "
        "pip install '.[postgres]' in Papyra's checkout"
    ) from error

__all__ = ("PostgresView",)

#: How the SQLSTATEs of errors begin that are about the server, or about another transaction, and
#: not about what was asked of it.
_OUTAGES = ("08", "25006", "40", "53", "55P03", "57P", "58")
#: Seconds that a connection is tried, and that a lock is waited for.
_PATIENCE = 10
#: Seconds, and how often, to find out that a connection leads nowhere any more.
_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


class PostgresView(View[psycopg.Connection[tuple[Any, ...]]]):
    """A view in a PostgreSQL database; `conninfo` is a URL, or what else libpq takes.

    Tables are made in the first schema of the ``search_path``, which `conninfo` may set
    (``options=-csearch_path=views``). It may lead to a pool that gives out connections for each
    transaction, as PgBouncer does; set the ``search_path`` of the role then. `lease` is how many
    seconds after it was last heard of another runner takes over from one. Raises `InvalidSetting`
    for what libpq can't read, and `InvalidPolicy`.
    """

    def __init__(self, conninfo: str, *, lease: float = 10.0) -> None:
        if type(conninfo) is not str:
            raise InvalidSetting(f"conninfo is a URL or a libpq string, not {shown(conninfo)}")
        self.lease = checked_lease(lease)
        try:
            self._given = conninfos.conninfo_to_dict(conninfo)
        except psycopg.Error:
            # Without the message, in which there may be a password.
            raise InvalidSetting("conninfo is no URL and no string that libpq can read") from None
        self._given.setdefault("connect_timeout", str(_PATIENCE))
        for name, value in _KEEPALIVES.items():
            self._given.setdefault(name, str(value))

    @property
    def location(self) -> str:
        """The URL of the database, without its secrets."""
        given = self._given
        host = str(given.get("host") or given.get("hostaddr") or "")
        port = f":{given['port']}" if given.get("port") else ""
        return f"postgresql://{host}{port}/{given.get('dbname') or ''}"

    def database(self) -> PostgresDatabase:
        """Return a connection that is to be opened."""
        given: dict[str, Any] = self._given
        return PostgresDatabase(conninfos.make_conninfo(**given), self.location)


class PostgresDatabase(ViewDatabase[psycopg.Connection[tuple[Any, ...]]]):
    """One connection to a PostgreSQL database."""

    now = "extract(epoch FROM clock_timestamp())::float8"
    for_update = " FOR UPDATE"

    def __init__(self, conninfo: str, location: str) -> None:
        self._conninfo = conninfo
        self._location = location
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._prepared: dict[str, bytes] = {}
        #: whether a pool gives out another session for each transaction
        self._is_pooled = False

    @property
    def connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        """The connection. Raises `ViewUnavailable` if there is none."""
        if self._connection is None:
            raise ViewUnavailable(f"{self._location}: it is not open")
        return self._connection

    def open(self, *, to_read: bool = False) -> None:
        """Connect."""
        try:
            connection = psycopg.connect(
                self._conninfo, autocommit=True, fallback_application_name="papyra projections"
            )
        except psycopg.Error as error:
            raise ViewUnavailable(self._text(error)) from error
        try:
            self._set(connection, to_read=to_read)
        except psycopg.Error as error:
            connection.close()
            raise ViewUnavailable(self._text(error)) from error
        self._connection = connection

    def _set(self, connection: psycopg.Connection[tuple[Any, ...]], *, to_read: bool) -> None:
        """Set what holds for a session; behind a pool, whose sessions are others' too, nothing."""
        found = connection.execute("SELECT pg_backend_pid()").fetchone()
        # A pool makes one up.
        self._is_pooled = found != (connection.info.backend_pid,)
        connection.read_only = to_read
        if self._is_pooled:
            connection.prepare_threshold = None
            return
        connection.execute(f"SET lock_timeout = '{_PATIENCE}s'".encode())
        if to_read:
            connection.execute("SET default_transaction_read_only = on")

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def interrupt(self) -> None:
        """Have the server give up the statement that is being executed."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.cancel()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Hold a transaction within."""
        connection = self.connection
        if connection.info.transaction_status != TransactionStatus.IDLE:
            connection.rollback()
        with connection.transaction():
            if self._is_pooled:
                connection.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}s'".encode())
            yield connection

    def transaction_check(self) -> Callable[[], bool]:
        """Return what returns whether there is one, be it that it has failed."""
        pgconn = self.connection.pgconn
        return lambda: pgconn.transaction_status != TransactionStatus.IDLE

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        # Whatever users have set for theirs.
        with self.connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
            return cursor.execute(self._query(sql), _storable(parameters)).fetchall()

    def change(self, sql: str, *parameters: Any) -> int:
        """Execute a statement, and return how many rows it has changed."""
        return self.connection.execute(self._query(sql), _storable(parameters)).rowcount

    def has_tables(self) -> bool:
        """Return whether Papyra's own tables are there."""
        return self.rows("SELECT to_regclass('papyra_parked') IS NOT NULL") == [(True,)]

    def outage(self, error: BaseException) -> str | None:
        """Return what PostgreSQL says of itself, of the connection, or of other transactions."""
        if is_really(error, ViewUnavailable):
            return str(error)
        if not is_really(error, psycopg.Error):
            return None
        is_lost = self._connection is None or self._connection.closed
        if is_lost or (error.sqlstate or "").startswith(_OUTAGES):
            return self._text(error)
        return None

    def is_refused(self, error: BaseException) -> bool:
        """Return whether psycopg has refused to end the transaction."""
        return (
            is_really(error, psycopg.ProgrammingError)
            and error.sqlstate is None
            and ("within a Transaction context" in str(error))
        )

    def _query(self, sql: str) -> bytes:
        found = self._prepared.get(sql)
        if found is None:
            found = self._prepared[sql] = sql.replace("?", "%s").encode()
        return found

    def _text(self, error: psycopg.Error) -> str:
        message = " ".join((error.diag.message_primary or str(error)).split())
        state = f"{error.sqlstate}: " if error.sqlstate else ""
        return f"{self._location}: PostgreSQL can't be used now ({state}{message})"


def _storable(parameters: Sequence[Any]) -> list[Any]:
    """Return parameters as PostgreSQL takes them: its texts hold no NUL, as an error's may."""
    return [p.replace("\0", "\\x00") if isinstance(p, str) else p for p in parameters]
