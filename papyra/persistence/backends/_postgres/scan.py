"""The scan: every record is decoded, and compared with its checksum and its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg

from papyra.persistence.backends._postgres.blocks import wrong_blocks
from papyra.persistence.backends._postgres.connection import snapshot
from papyra.persistence.backends._postgres.errors import is_damage, message_of
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.text import column_text
from papyra.persistence.backends._sql.scan_result import CheckedRow, ScanResult, checked
from papyra.persistence.backends._sql.tables import TABLES, RecordTable, Row
from papyra.persistence.backends.history_check import HistoryCheck
from papyra.persistence.backends.store import MAX_SEQ
from papyra.persistence.records import Record
from papyra.persistence.reports import PersistenceAnomaly, ReportProgress, ScanProgress

__all__ = ("checked_rows", "column_values", "scan", "scan_histories")

#: Rows that are fetched together, until some can't be read: they may be large.
_FETCHED = 500


def scan(system: System, total: int, report_progress: ReportProgress) -> ScanResult:
    """Check all of a system; change nothing."""
    found = ScanResult()
    for table in TABLES.values():
        lost = 0

        def lose(first: int, last: int, why: str, table: RecordTable = table) -> None:
            nonlocal lost
            lost += last - first + 1
            detail = f"positions {first} to {last} of {table.name} can't be read: {why}"
            found.anomalies.append(PersistenceAnomaly("corrupt", detail, table.name))

        for row in checked_rows(system, table, lose):
            found.records += row.record is not None
            found.bytes += len(row.data)
            if row.anomaly is not None:
                found.anomalies.append(row.anomaly)
            if not found.records % _FETCHED:
                report_progress(ScanProgress(found.records, max(total, found.records)))
        if not lost:
            with snapshot(system.connection, unlimited=True):
                found.anomalies += [
                    PersistenceAnomaly("gap", detail, table.name)
                    for detail in wrong_blocks(system, table.kind)
                ]
    report_progress(ScanProgress(found.records, found.records))
    return found


def scan_histories(system: System) -> list[PersistenceAnomaly]:
    """Return what is wrong with the revisions of each actor, in what can be read."""
    check, table = HistoryCheck(), TABLES["event"]
    rows = checked_rows(system, table, lambda *_: None)
    found = (check.take(row.record, table.name) for row in rows if row.record is not None)
    return [anomaly for anomaly in found if anomaly is not None]


def checked_rows(
    system: System, table: RecordTable, lost: Callable[[int, int, str], None]
) -> Iterator[CheckedRow]:
    """Yield every row of a table that can be read, with what is wrong with it.

    Those that can't are told to `lost`, from which position to which, and why.
    """
    columns = ", ".join(("seq", "crc", "record", *table.columns[2:-2], "bytes"))
    sql = (
        f"SELECT {columns} FROM {{schema}}.{table.name}"  # noqa: S608 - constants
        " WHERE system_id = %(system)s AND seq > %(after)s ORDER BY seq LIMIT %(fetched)s"
    )
    after, fetched = 0, _FETCHED
    while True:
        try:
            rows = system.rows(sql, after=after, fetched=fetched)
        except psycopg.Error as error:
            if not is_damage(error):
                raise
            if fetched > 1:
                fetched = 1
                continue
            following = _following(system, table, after)
            lost(after + 1, following, message_of(error))
            after, fetched = following, _FETCHED
            if following >= MAX_SEQ:
                return
            continue
        for seq, crc, data, *values in rows:
            yield checked(table, seq, crc, data, tuple(values), column_values)
        if len(rows) < fetched:
            return
        after, fetched = rows[-1][0], min(_FETCHED, 2 * fetched)


def _following(system: System, table: RecordTable, after: int) -> int:
    """Return up to where rows after a position can't be read: to the next that the index has."""
    last = after
    for _ in range(_FETCHED):
        try:
            (seq,) = system.row(
                f"SELECT min(seq) FROM {{schema}}.{table.name}"  # noqa: S608 - a constant
                " WHERE system_id = %(system)s AND seq > %(after)s",
                after=last,
            )
            return MAX_SEQ if seq is None else int(seq)
        except psycopg.Error as error:
            if not is_damage(error):
                raise
            last += 1
    return MAX_SEQ


def column_values(table: RecordTable, record: Record, data: bytes) -> Row:
    """Return what the columns between ``seq`` and ``crc`` say, and ``bytes``."""
    own = tuple(
        column_text(value) if isinstance(value, str) else value
        for value in table.own_values(record)
    )
    return (*own, float(record.timestamp), len(data))
