"""The scan of the histories in a journal: a revision may be missing where no line is."""

from __future__ import annotations

from collections.abc import Iterator

from papyra.persistence.backends._files.disk import is_regular
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.scan import Run, ScanResult
from papyra.persistence.backends.history_check import HistoryCheck
from papyra.persistence.records import Record
from papyra.persistence.reports import PersistenceAnomaly


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
    """Yield the records of a file in which there may be something of a history."""
    totals = file.known_totals()
    if totals is not None and not totals.counts["history"]:
        return
    # Not by its index: that is made anew where it does not fit, and a scan changes nothing.
    for part in file.scan_parts(ScanResult(tail_seq=file.base, last_seq=file.base)):
        if isinstance(part, Run):
            yield from part.records
        elif part[1] is not None:
            yield part[1]
    if file.through is not None and not file.is_loaded:
        file.close()
