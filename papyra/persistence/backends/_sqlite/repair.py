"""The repair: rows that can't be read are removed, and damaged pages left behind."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from papyra.exceptions import StoreDamaged
from papyra.persistence.backends._sql.scan_result import CheckedRow
from papyra.persistence.backends._sql.tables import TABLES, RecordTable, Row, checksum
from papyra.persistence.backends._sqlite import schema
from papyra.persistence.backends._sqlite.blocks import rebuild as count_blocks
from papyra.persistence.backends._sqlite.connection import transaction
from papyra.persistence.backends._sqlite.salvage import salvaged
from papyra.persistence.backends._sqlite.scan import checked_rows

__all__ = ("copy_to", "mend_rows", "rebuild")

#: No row has a smaller number, or a greater one.
_FIRST, _LAST = -(2**63), 2**63 - 1
#: The tables that are beside the records, whose rows have numbers, and their columns.
_BESIDE = {
    "snapshots": ("system_id", "actor", "revision", "data"),
    "papyra_positions": ("system_id", "name", "data"),
    "papyra_outbox": ("id", "system_id", "record"),
    "papyra_outbox_refused": ("id", "system_id", "record", "reason", "refused_at"),
}


def copy_to(connection: sqlite3.Connection, path: Path) -> None:
    """Copy a database, its log included, page by page, the damaged ones as they are."""
    with contextlib.closing(sqlite3.connect(path)) as target:
        connection.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # so that it is one file


def mend_rows(connection: sqlite3.Connection, system_id: str, last_seq: int) -> int:
    """Remove the rows that can't be read, and have columns say again what their records say.

    Those of a kind that is not known stay. Returns how many were removed.
    """
    removed = 0
    for table in TABLES.values():
        rows = checked_rows(connection, system_id, table, last_seq, _unheeded)
        for row in [row for row in rows if row.anomaly is not None]:
            removed += _mend_row(connection, system_id, table, row)
        count_blocks(connection, system_id, table.kind, last_seq)
    return removed


def _mend_row(
    connection: sqlite3.Connection, system_id: str, table: RecordTable, row: CheckedRow
) -> bool:
    """Mend a row; return True if it had to be removed."""
    if row.anomaly is None or row.anomaly.kind == "unknown_kind":
        return False
    if row.record is None:
        connection.execute(
            f"DELETE FROM {table.name} WHERE system_id = ? AND seq = ?",  # noqa: S608 - a constant
            (system_id, row.seq),
        )
        return True
    values = (
        *(system_id, row.seq, *table.values(row.record)),
        *(checksum(row.seq, row.data), row.data.decode()),
    )
    _insert(connection, table.name, table.columns, values)
    return False


def rebuild(connection: sqlite3.Connection, beside: Path) -> None:
    """Write the whole database anew, with all rows that can be read, in one transaction.

    It is put together in the file `beside`, which is removed. Raises `StoreDamaged` for a database
    in which there are tables of others: what of them could be lost is not ours to say.
    """
    _refuse_others(connection)
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    beside.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(beside, isolation_level=None)) as fresh:
            fresh.text_factory = bytes
            fresh.execute(f"PRAGMA page_size = {page_size}")
            fresh.execute("PRAGMA synchronous = OFF")  # it is but on the way
            schema.create(fresh)
            with transaction(fresh):
                _copy_rows(connection, fresh)
            fresh.backup(connection)
    finally:
        beside.unlink(missing_ok=True)


def _refuse_others(connection: sqlite3.Connection) -> None:
    others = schema.other_tables(connection)
    if others:
        raise StoreDamaged(
            "pages of the database are damaged, and other programs have tables in it "
            f"({', '.join(others)}): mend it with '.recover' of the sqlite3 program"
        )


def _copy_rows(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    systems = list(source.execute("SELECT * FROM systems"))
    for row in systems:
        _insert(target, "systems", ("system_id", "store_id", "inode", "epoch", "last_seq"), row)
        for table in TABLES.values():
            for found in _all_rows(source, table, row[0].decode(), row[-1]):
                _insert(target, table.name, table.columns, found)
            count_blocks(target, row[0].decode(), table.kind, row[-1])
    for name, columns in _BESIDE.items():
        for found in _all_beside(source, name, columns):
            _insert(target, name, columns, found)


def _all_rows(
    source: sqlite3.Connection, table: RecordTable, system_id: str, last_seq: int
) -> Iterator[Row]:
    columns = ", ".join(table.columns[2:])

    def select(first: int, last: int) -> Iterator[Row]:
        return source.execute(
            f"SELECT seq, {columns} FROM {table.name} NOT INDEXED "  # noqa: S608 - constants
            "WHERE system_id = ? AND seq BETWEEN ? AND ? ORDER BY seq",
            (system_id, first, last),
        )

    for row in salvaged(select, 1, last_seq, _unheeded):
        yield (system_id, *row)


def _all_beside(source: sqlite3.Connection, name: str, columns: tuple[str, ...]) -> Iterator[Row]:
    def select(first: int, last: int) -> Iterator[Row]:
        return source.execute(
            f"SELECT rowid, {', '.join(columns)} FROM {name} NOT INDEXED "  # noqa: S608
            "WHERE rowid BETWEEN ? AND ? ORDER BY rowid",
            (first, last),
        )

    for _, *values in salvaged(select, _FIRST, _LAST, _unheeded):
        yield tuple(values)


def _unheeded(first: int, last: int) -> None:
    """Heed no loss: the scan before has reported it."""
    del first, last


def _insert(
    connection: sqlite3.Connection, table: str, columns: tuple[str, ...], values: Row
) -> None:
    places = ", ".join("?" for _ in columns)
    connection.execute(
        f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({places})",  # noqa: S608
        tuple(map(_as_text, columns, values)),
    )


def _as_text(column: str, value: object) -> object:
    """Return what was read as bytes as the text that it was, but for what is bytes."""
    if isinstance(value, bytes) and column != "data":
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value
