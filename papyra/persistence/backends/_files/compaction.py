"""The compaction of a file: it is rewritten without what retention hides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from papyra.persistence.backends._files.block_index import Block, SparseIndex, Totals
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import Line
from papyra.persistence.backends._files.rewrite import Rewrite, damaged, good_lines
from papyra.persistence.backends._files.scan import decode
from papyra.persistence.records import KINDS, Kind, Record, kind_of


class Hidden(NamedTuple):
    """The limits of retention for a kind."""

    #: hides records up to this `seq`
    through: int
    #: and those before this time; Unix seconds
    before: float

    def hides(self, record: Record, seq: int) -> bool:
        """Return whether a record is hidden, and not part of a history."""
        return record.revision is None and self._covers(record, seq)

    def keeps(self, record: Record, seq: int) -> bool:
        """Return whether a record is hidden, and kept as part of a history."""
        return record.revision is not None and self._covers(record, seq)

    def _covers(self, record: Record, seq: int) -> bool:
        return seq <= self.through or record.timestamp < self.before


class Removal:
    """The records that a compaction removes, and how many it keeps for histories."""

    def __init__(self) -> None:
        #: records of each kind that go
        self.counts = dict.fromkeys(KINDS, 0)
        #: their encoded bytes
        self.sizes = dict.fromkeys(KINDS, 0)
        #: records that are hidden, and stay
        self.kept = 0

    def add(self, totals: Totals | Block) -> None:
        """Take in records that all go."""
        for kind in KINDS:
            self.counts[kind] += totals.counts.get(kind, 0)
            self.sizes[kind] += totals.sizes.get(kind, 0)

    def judge(self, record: Record, line: Line, hidden: Mapping[Kind, Hidden]) -> None:
        """Take in a record, if it goes, or is kept for a history."""
        kind = kind_of(record)
        self.kept += hidden[kind].keeps(record, line.seq)
        if hidden[kind].hides(record, line.seq):
            self.counts[kind] += 1
            self.sizes[kind] += len(line.record)


def drop_hidden(journal: JournalFile, hidden: Mapping[Kind, Hidden]) -> int:
    """Rewrite a file without the records that are hidden, if there are any.

    Returns how many are hidden, and kept even so, as part of histories.

    Lines that no record can be read from stay. Raises `StoreError` if there is damage, which would
    be lost from sight.
    """
    if is_visible(journal.index, journal.base, hidden):
        return 0
    if journal.damaged:
        raise damaged(journal)
    kept = 0
    with Rewrite(journal) as copy:
        for number, block, through in _blocks(journal.index, journal.last_seq):
            if not is_hidden(block, through, hidden):
                kept += _copy_visible(number, block, hidden, copy)
        copy.finish(journal.last_seq)
    return kept


def _copy_visible(number: int, block: Block, hidden: Mapping[Kind, Hidden], copy: Rewrite) -> int:
    """Copy a block without the records that are hidden; return how many of it histories keep."""
    whole, kept = is_visible(block, block.first_seq - 1, hidden), 0
    for line in copy.take_block(number, block, whole=whole):
        record = decode(line)[0]
        if record is None or not hidden[kind_of(record)].hides(record, line.seq):
            copy.add(line, record)
            kept += record is not None and hidden[kind_of(record)].keeps(record, line.seq)
    return kept


def count_hidden(journal: JournalFile, hidden: Mapping[Kind, Hidden], removal: Removal) -> None:
    """Note in `removal` what `drop_hidden` would leave out, and keep for histories.

    Raises `StoreError` if there is damage, as that does.
    """
    totals = journal.totals()
    if is_visible(totals, journal.base, hidden):
        return
    if journal.through is not None and is_hidden(totals, journal.through, hidden):
        removal.add(totals)
        return
    blocks = _blocks(journal.index, journal.last_seq)
    if journal.damaged:
        raise damaged(journal)
    for number, block, through in blocks:
        if is_visible(block, block.first_seq - 1, hidden):
            continue
        if is_hidden(block, through, hidden):
            removal.add(block)
            continue
        for line in good_lines(journal, *journal.read_block(number)):
            if (record := decode(line)[0]) is not None:
                removal.judge(record, line, hidden)


def _blocks(index: SparseIndex, last_seq: int) -> Iterator[tuple[int, Block, int]]:
    """Yield the number of each block, its contents, and the last position in it."""
    for number in range(len(index)):
        is_last = number + 1 == len(index)
        through = last_seq if is_last else index.first_seq(number + 1) - 1
        yield number, index.block(number), through


def is_visible(totals: Totals | Block, base: int, hidden: Mapping[Kind, Hidden]) -> bool:
    """Return whether no record is hidden of those that follow record `base`."""
    return all(
        not totals.counts.get(kind) or (base >= limit.through and totals.oldest >= limit.before)
        for kind, limit in hidden.items()
    )


def is_hidden(totals: Totals | Block, last_seq: int, hidden: Mapping[Kind, Hidden]) -> bool:
    """Return whether everything is hidden, up to `last_seq`, and none of it part of a history."""
    if totals.counts.get("other") or totals.counts.get("history"):
        return False
    return all(
        not totals.counts.get(kind) or last_seq <= limit.through or totals.newest < limit.before
        for kind, limit in hidden.items()
    )
