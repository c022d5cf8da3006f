"""What the scan of a database has found: in a row, and in all of it."""

from __future__ import annotations

from typing import NamedTuple

from papyra.persistence.records import Record
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("CheckedRow", "ScanResult")


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
