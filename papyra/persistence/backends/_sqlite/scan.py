"""The scan: every page by SQLite's own check, every record by decoding it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from papyra.persistence.backends._sql.scan_result import CheckedRow, ScanResult, checked
from papyra.persistence.backends._sql.tables import TABLES, RecordTable, Row
from papyra.persistence.backends._sqlite.blocks import wrong_blocks
from papyra.persistence.backends._sqlite.errors import is_damage, suppressed_damage
from papyra.persistence.backends._sqlite.salvage import Lost, salvaged
from papyra.persistence.backends.history_check import HistoryCheck
from papyra.persistence.records import Record
from papyra.persistence.reports import PersistenceAnomaly, ReportProgress, ScanProgress

__all__ = ("checked_rows", "damaged_pages", "scan", "scan_histories")

#: Lines of SQLite's own check, at most.
_LINES = 100
#: Records from one report of the progress to the next.
_STEP = 1_000


def scan(
    connection: sqlite3.Connection,
    system_id: str,
    last_seq: int,
    total: int,
    report_progress: ReportProgress,
) -> ScanResult:
    """Check all of a system, and the pages of the whole database; change nothing."""
    found = ScanResult()
    found.anomalies += [PersistenceAnomaly("corrupt", line) for line in damaged_pages(connection)]
    for table in TABLES.values():
        _scan_table(connection, system_id, table, last_seq, total, report_progress, found)
    report_progress(ScanProgress(found.records, found.records))
    return found


def _scan_table(
    connection: sqlite3.Connection,
    system_id: str,
    table: RecordTable,
    last_seq: int,
    total: int,
    report_progress: ReportProgress,
    found: ScanResult,
) -> None:
    lost_positions = 0

    def lost(first: int, last: int) -> None:
        nonlocal lost_positions
        lost_positions += last - first + 1
        detail = f"positions {first} to {last} of {table.name} are on pages that can't be read"
        found.anomalies.append(PersistenceAnomaly("corrupt", detail))

    for row in checked_rows(connection, system_id, table, last_seq, lost):
        found.records += row.record is not None
        found.bytes += len(row.data)
        if row.anomaly is not None:
            found.anomalies.append(row.anomaly)
        if not found.records % _STEP:
            report_progress(ScanProgress(found.records, max(total, found.records)))
    # A position is that of one record, whatever table that was in.
    found.lost = max(found.lost, lost_positions)
    if not lost_positions:
        # Where the table of blocks is damaged itself, the check of pages says so.
        with suppressed_damage():
            found.anomalies += [
                PersistenceAnomaly("gap", detail)
                for detail in wrong_blocks(connection, system_id, table.kind)
            ]


def scan_histories(
    connection: sqlite3.Connection, system_id: str, last_seq: int
) -> list[PersistenceAnomaly]:
    """Return what is wrong with the revisions of each actor, in what can be read."""
    check, table = HistoryCheck(), TABLES["event"]
    rows = checked_rows(connection, system_id, table, last_seq, lambda *_: None)
    found = (check.take(row.record, table.name) for row in rows if row.record is not None)
    return [anomaly for anomaly in found if anomaly is not None]


def damaged_pages(connection: sqlite3.Connection) -> list[str]:
    """Return what SQLite's own check says, one line for each thing that is wrong."""
    try:
        lines = [
            line.decode(errors="replace")
            for (line,) in connection.execute(f"PRAGMA integrity_check({_LINES})")
        ]
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return [str(error)]
    return [] if lines == ["ok"] else lines


def checked_rows(
    connection: sqlite3.Connection, system_id: str, table: RecordTable, last_seq: int, lost: Lost
) -> Iterator[CheckedRow]:
    """Yield every row of a table that can be read, with what is wrong with it."""
    columns = ", ".join(("seq", "crc", "record", *table.columns[2:-2]))
    # Not by other indexes, which may be damaged.
    sql = (
        f"SELECT {columns} FROM {table.name} NOT INDEXED "  # noqa: S608 - constants
        "WHERE system_id = ? AND seq BETWEEN ? AND ? ORDER BY seq"
    )

    def select(first: int, last: int) -> Iterator[Row]:
        return connection.execute(sql, (system_id, first, last))

    for seq, crc, data, *values in salvaged(select, 1, last_seq, lost):
        yield checked(table, seq, crc, data, tuple(values), _columns_of)


def _columns_of(table: RecordTable, record: Record, data: bytes) -> Row:
    """Return what the columns between ``seq`` and ``crc`` say, whose text is read as bytes."""
    del data
    return tuple(each.encode() if isinstance(each, str) else each for each in table.values(record))
