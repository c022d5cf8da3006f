"""The inbox of a store: a table with a row for each request or answer.

A row is a request until the writer takes it, and then what it has answered.
"""

from __future__ import annotations

from papyra.persistence.backends._postgres.connection import Row, transaction
from papyra.persistence.backends._postgres.session import Session
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.writer_row import WriterRow
from papyra.persistence.inbox import MAX_POSTED_BYTES

__all__ = ("RequestTable",)

_ONE = "system_id = %(system)s AND id = %(id)s"
#: Only the writer takes and sees requests, whoever was it before.
_IS_WRITER = (
    "EXISTS (SELECT FROM {schema}.systems AS s"
    " WHERE s.system_id = %(system)s AND s.writer = %(writer)s)"
)


class RequestTable:
    """Requests and answers, as `Inbox` has them. No call is tried again: nobody waits for that."""

    def __init__(self, session: Session, row: WriterRow) -> None:
        self._session = session
        self._row = row

    def post(self, request_id: str, data: bytes) -> None:
        """Leave a request. Whoever may write the store may."""
        self._run(
            "INSERT INTO {schema}.requests (system_id, id, state, data)"
            " VALUES (%(system)s, %(id)s, 'request', %(data)b) RETURNING id",
            id=request_id,
            data=data,
        )

    def posted(self) -> list[str]:
        """Return the ids of requests, and remove what nobody waits for any more."""
        if not self._row.is_claimed:
            return []

        def look(system: System) -> list[str]:
            rows = system.rows(
                "SELECT id, state, posted < now() - interval '1 hour'"  # noqa: S608 - a constant
                f" FROM {{schema}}.requests WHERE system_id = %(system)s AND {_IS_WRITER}",
                writer=self._row.writer,
            )
            if any(is_stale for _, _, is_stale in rows):
                with transaction(system.connection):
                    system.run(
                        "DELETE FROM {schema}.requests WHERE system_id = %(system)s"
                        " AND posted < now() - interval '1 hour'"
                    )
            return [each for each, state, is_stale in rows if state == "request" and not is_stale]

        return self._session.attempt(look)

    def take(self, request_id: str) -> bytes | None:
        """Take a request; `None` if it is not there, and nothing for one that is too long."""
        rows = self._run(
            f"UPDATE {{schema}}.requests SET state = 'taken' WHERE {_ONE}"  # noqa: S608
            f" AND state = 'request' AND {_IS_WRITER} RETURNING data",
            id=request_id,
            writer=self._row.writer,
        )
        if not rows:
            return None
        data = bytes(rows[0][0])
        return data if len(data) <= MAX_POSTED_BYTES else b""

    def answer(self, request_id: str, data: bytes) -> None:
        """Leave the answer to a request that was taken."""
        self._run(
            f"UPDATE {{schema}}.requests SET state = 'answer', data = %(data)b"  # noqa: S608
            f" WHERE {_ONE} AND state = 'taken' RETURNING id",
            id=request_id,
            data=data,
        )

    def answered(self, request_id: str) -> bytes | None:
        """Return an answer, and remove it; `None` if there is none yet."""
        rows = self._run(
            f"DELETE FROM {{schema}}.requests WHERE {_ONE}"  # noqa: S608 - a constant
            " AND state = 'answer' RETURNING data",
            id=request_id,
        )
        return bytes(rows[0][0]) if rows else None

    def withdraw(self, request_id: str) -> bool:
        """Take a request back; return whether it was still there."""
        return bool(
            self._run(
                f"DELETE FROM {{schema}}.requests WHERE {_ONE}"  # noqa: S608 - a constant
                " AND state = 'request' RETURNING id",
                id=request_id,
            )
        )

    def _run(self, statement: str, **values: object) -> list[Row]:
        def make(system: System) -> list[Row]:
            with transaction(system.connection):
                return system.rows(statement, **values)

        return self._session.attempt(make)
