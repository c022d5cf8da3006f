"""The trimming of histories in a file: it is rewritten with bases in place of what they sum up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from papyra.persistence import codec
from papyra.persistence.backends._files.block_index import Block
from papyra.persistence.backends._files.compaction import Removal
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import Line
from papyra.persistence.backends._files.rewrite import Rewrite, damaged, good_lines
from papyra.persistence.backends._files.scan import decode
from papyra.persistence.backends.store import NewBase


class Bases:
    """The bases that histories are to begin with."""

    def __init__(self, bases: Sequence[NewBase]) -> None:
        self._of_actors = {base.actor: base for base in bases}
        #: the position of the last of them
        self._through = max((base.seq for base in bases), default=0)

    def concern(self, block: Block) -> bool:
        """Return whether there may be something in a block that goes, or becomes a base."""
        return block.first_seq <= self._through and bool(block.counts.get("history"))

    def place_of(self, line: Line) -> Line | None:
        """Return what is left of a line: itself, or with a base in it, or nothing."""
        actor, revision = codec.concerned(line.record)
        base = None if actor is None else self._of_actors.get(actor)
        if base is None or revision is None or revision > base.revision:
            return line
        if line.seq != base.seq:
            return None if revision < base.revision else line
        return line if line.record == base.encoded else line.holding(base.encoded)


def trim(journal: JournalFile, bases: Bases) -> bool:
    """Rewrite a file with bases in it, and without what they sum up; return whether it had to be.

    A base is on the device, and was read back, when this returns. Raises `StoreError` if there is
    damage.
    """
    if not any(left is not line for line, left in _judged(journal, bases)):
        return False
    if journal.damaged:
        raise damaged(journal)
    with Rewrite(journal) as copy:
        for number in range(len(journal.index)):
            block = journal.index.block(number)
            for line in copy.take_block(number, block, whole=not bases.concern(block)):
                if (left := bases.place_of(line)) is not None:
                    copy.add(left, decode(left)[0], read_back=left is not line)
        copy.finish(journal.last_seq)
    return True


def count_trimmed(journal: JournalFile, bases: Bases, removal: Removal) -> None:
    """Note in `removal` what `trim` leaves out, of what was noted to be kept for histories."""
    for line, left in _judged(journal, bases):
        removal.counts["event"] += left is None
        removal.kept -= left is None
        removal.sizes["event"] += len(line.record) - (0 if left is None else len(left.record))


def _judged(journal: JournalFile, bases: Bases) -> Iterator[tuple[Line, Line | None]]:
    """Yield the lines that bases may concern, each with what is left of it."""
    if not journal.totals().counts["history"]:
        return
    for number in range(len(journal.index)):
        if bases.concern(journal.index.block(number)):
            for line in good_lines(journal, *journal.read_block(number)):
                yield line, bases.place_of(line)
