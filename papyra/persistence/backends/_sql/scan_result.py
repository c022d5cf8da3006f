"""What the scan of a database has found: in a row, and in all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.backends._sql.tables import RecordTable, Row, checksum
from papyra.persistence.records import Record
from papyra.persistence.reports import AnomalyKind, PersistenceAnomaly

__all__ = ("CheckedRow", "ScanResult", "checked")


class CheckedRow(NamedTuple):
    """A row, and what is wrong with it, if anything is."""

    seq: int
    data: bytes
    #: `None` if it can't be decoded
    record: Record | None
    anomaly: PersistenceAnomaly | None = None


class ScanResult:
    """What a scan has found by now."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        #: positions at which there may have been records, on pages that can't be read
        self.lost = 0
        self.anomalies: list[PersistenceAnomaly] = []


def checked(
    table: RecordTable,
    seq: int,
    crc: object,
    data: object,
    values: Row,
    columns_of: Callable[[RecordTable, Record, bytes], Row],
) -> CheckedRow:
    """Check a row: its `data` by decoding it, and its other `values` by what the record says."""
    if not isinstance(data, bytes):
        return CheckedRow(seq, b"", None, _anomaly(table, seq, "corrupt", "it is no text"))
    try:
        record = codec.decode(data, seq)
    except StoreError as error:
        is_newer = crc == checksum(seq, data) and codec.may_be_a_record(data)
        kind: AnomalyKind = "unknown_kind" if is_newer else "corrupt"
        return CheckedRow(seq, data, None, _anomaly(table, seq, kind, str(error)))
    if crc != checksum(seq, data):
        detail = "it is not what was stored: its checksum is another"
        return CheckedRow(seq, data, None, _anomaly(table, seq, "checksum", detail))
    if type(record) is not table.record_type:
        detail = "it is a record of another kind"
        return CheckedRow(seq, data, None, _anomaly(table, seq, "corrupt", detail))
    if values != columns_of(table, record, data):
        detail = "its columns say something else than the record"
        return CheckedRow(seq, data, record, _anomaly(table, seq, "wrong_fields", detail))
    return CheckedRow(seq, data, record)


def _anomaly(table: RecordTable, seq: int, kind: AnomalyKind, detail: str) -> PersistenceAnomaly:
    return PersistenceAnomaly(kind, f"record {seq} of {table.name}: {detail}", table.name, seq=seq)
