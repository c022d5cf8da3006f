"""Insertion: many rows by one statement, which costs less than a statement for each."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Sequence
from typing import Any

from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.records import Kind

__all__ = ("insert",)

#: Rows of one statement, at most; a power of two, so that there are few statements to prepare.
_ROWS = 64


def insert(connection: sqlite3.Connection, kind: Kind, values: Sequence[Any]) -> None:
    """Insert rows of a kind, whose values are given one row after the other."""
    width, start, rows = len(TABLES[kind].columns), 0, _ROWS
    while start < len(values):
        while start + rows * width > len(values):
            rows //= 2
        stop = start + rows * width
        connection.execute(_statement(kind, rows), values[start:stop])
        start = stop


@functools.cache
def _statement(kind: Kind, rows: int) -> str:
    table = TABLES[kind]
    row = f"({', '.join('?' for _ in table.columns)})"
    places = ", ".join([row] * rows)
    return f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES {places}"  # noqa: S608
