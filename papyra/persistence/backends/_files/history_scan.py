"""The scan of the histories in a journal: a revision may be missing where no line is."""

from __future__ import annotations

from collections.abc import Iterator

from papyra.persistence.backends._files.disk import is_regular
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends.history_check import HistoryCheck
from papyra.persistence.records import Record
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("scan_histories",)


def scan_histories(journal: Journal) -> Iterator[PersistenceAnomaly]:
    """Yield what is wrong with histories, reading only where there are some."""
    check = HistoryCheck()
    for file in journal.files(newest=False):
        if not journal.read_only and not is_regular(file.path):
            continue  # somebody has removed it, as the scan of the lines says
        for record in _records(file):
            anomaly = check.take(record, file.location)
            if anomaly is not None:
                yield anomaly


def _records(file: JournalFile) -> Iterator[Record]:
    """Yield the records of the blocks in which there is something of a history."""
    if not file.totals().counts["history"]:
        return
    for number in range(len(file.index)):
        if file.index.block(number).counts.get("history"):
            yield from (record for record, _ in file.records(number))
