"""One system in a database: its statements, with the schema and the system filled in."""

from __future__ import annotations

import functools
from typing import Any

from psycopg.types.numeric import Int8

from papyra.persistence.backends._postgres.connection import Connection, Row
from papyra.persistence.backends._postgres.settings import Settings

__all__ = ("System",)


class System:
    """One system, over a connection.

    In its statements ``{schema}`` is the schema, and ``%(system)s`` the id of the system.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        self.system_id = settings.system_id

    def rows(self, statement: str, **values: object) -> list[Row]:
        """Return all rows that a statement returns; JSON as bytes."""
        return self.connection.rows(self._filled(statement), self._values(values))

    def row(self, statement: str, **values: object) -> Row:
        """Return the one row that a statement always returns."""
        return self.connection.row(self._filled(statement), self._values(values))

    def run(self, statement: str, **values: object) -> int:
        """Execute a statement, and return how many rows it has changed."""
        return self.connection.execute(self._filled(statement), self._values(values)).rowcount

    def _filled(self, statement: str) -> bytes:
        return _filled(statement, self.settings.schema)

    def _values(self, values: dict[str, Any]) -> dict[str, Any]:
        # Of one type, whatever they are, so that there is one statement to prepare.
        found = {
            name: Int8(value) if type(value) is int else value for name, value in values.items()
        }
        found["system"] = self.system_id
        return found


@functools.lru_cache(1024)
def _filled(statement: str, schema: str) -> bytes:
    quoted = '"' + schema.replace('"', '""').replace("%", "%%") + '"'
    return statement.replace("{schema}", quoted).encode()
