"""The repair of a file: a recovery keeps every line that can be read."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from sys import maxsize

from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import (
    BadLine,
    Line,
)
from papyra.persistence.backends._files.rewrite import Rewrite, ascending
from papyra.persistence.backends._files.scan import Run, ScanResult, decode


@dataclass
class RepairResult:
    """The result of a recovery."""

    #: lines, or what should have been lines, that were left out
    removed: int = 0
    #: where the originals are
    quarantined: list[str] = field(default_factory=list)


def repair(journal: JournalFile) -> int:
    """Rewrite a file with every line that can be read and belongs there, each once, in order.

    Lines of a newer version, and records of an unknown kind, are kept as they are. Returns how many
    lines, or what should have been lines, were left out.
    """
    found = ScanResult(tail_seq=journal.base, last_seq=journal.base)
    strays: dict[int, Line] = {}
    before, removed = journal.base, 0
    for part in journal.scan_parts(found):
        match part:
            case Run(_, first_seq, records, _, _):
                before = first_seq + len(records) - 1
            case BadLine(), _:
                removed += 1
            case Line() as line, _ if not journal.belongs(line.seq):
                removed += 1
            case Line() as line, _ if line.seq > before:
                before = line.seq
            case Line() as line, _:
                # Out of its place: a second time, or the only one there is?
                removed += line.seq in strays
                strays.setdefault(line.seq, line)
    last_seq = max(journal.last_seq, found.last_seq)
    if journal.through is not None:
        last_seq = journal.through
    elif found.last_seq >= journal.last_seq and all(a.kind == "torn" for a in found.anomalies):
        journal.appender.truncate_torn_tail()
        return removed
    end = min((a.offset or 0 for a in found.anomalies if a.kind == "torn"), default=maxsize)
    duplicates: set[int] = set()
    if strays:
        duplicates = {line.seq for line in ascending(journal, end) if line.seq in strays}
    only = (strays[seq] for seq in sorted(strays.keys() - duplicates))
    with Rewrite(journal) as copy:
        for line in heapq.merge(ascending(journal, end), only, key=lambda line: line.seq):
            record, _ = decode(line)
            copy.add(line, record)
        copy.finish(last_seq)
    return removed + len(duplicates)
