"""Insertion: many rows by one statement, which costs less than a statement for each."""

from __future__ import annotations

import functools
import sqlite3
from typing import Any

from papyra.persistence.backends._sql.tables import TABLES, Part, Row, checksum, json_text
from papyra.persistence.records import Kind

__all__ = ("insert",)

#: Rows of one statement, at most; a power of two, so that there are few statements to prepare. Old
#: versions of SQLite take 999 values.
_ROWS = 128


def insert(connection: sqlite3.Connection, system_id: str, kind: Kind, part: Part) -> None:
    """Insert the rows of records of a kind."""
    if len(part.records) == 1:
        connection.execute(_statement(kind, 1), (system_id, *_row(kind, part)))
        return
    values, width = _values(kind, part)
    start, rows = 0, _ROWS
    while start < len(values):
        while start + rows * width > len(values):
            rows //= 2
        stop = start + rows * width
        connection.execute(_statement(kind, rows), (system_id, *values[start:stop]))
        start = stop


def _row(kind: Kind, part: Part) -> Row:
    """Return the values of the one row."""
    seq, encoded = part.seqs[0], part.encoded[0]
    values = TABLES[kind].values(part.records[0])
    return (seq, *values, checksum(seq, encoded), json_text(encoded))


def _values(kind: Kind, part: Part) -> tuple[list[Any], int]:
    """Return the values of the rows, one row after the other, and how many a row has.

    Column by column, they take half the time.
    """
    columns = (
        part.seqs,
        *part.own_columns(TABLES[kind]),
        part.timestamps(),
        part.checksums(),
        _texts(part),
    )
    width = len(columns)
    values: list[Any] = [None] * (width * len(part.records))
    for position, column in enumerate(columns):
        values[position::width] = column
    return values, width


def _texts(part: Part) -> list[str | bytes]:
    try:
        return list(map(bytes.decode, part.encoded))
    except UnicodeDecodeError:
        return list(map(json_text, part.encoded))


@functools.cache
def _statement(kind: Kind, rows: int) -> str:
    """Return the statement, whose first value is the id of the system, in every row."""
    table = TABLES[kind]
    row = f"({', '.join(['?1', *['?'] * (len(table.columns) - 1)])})"
    places = ", ".join([row] * rows)
    return f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES {places}"  # noqa: S608
