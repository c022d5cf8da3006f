"""The index of one file: where its records are, of what was read and what was committed since.

Every record passes by here once, with where its line is: `add` takes what is read from the file,
and `note` what is committed to it. Whatever records are to be found by has its place here.
"""

from __future__ import annotations

from itertools import accumulate

from papyra.persistence.backends._files.actor_index import ActorIndex
from papyra.persistence.backends._files.block_index import SparseIndex
from papyra.persistence.backends._files.checked_spans import CheckedSpans
from papyra.persistence.backends._files.line_format import BadLine, Line
from papyra.persistence.backends._files.scan import Part, Run
from papyra.persistence.records import PersistedEvent, Record

#: Committed records that may be missing in the index, to be taken in together.
_PENDING = 1000


class FileIndex:
    """The index of a file in memory, which can be forgotten and made again at any time."""

    def __init__(self) -> None:
        self._blocks: SparseIndex | None = None
        #: the lines of histories; `None` where they are not known and have to be read for
        self._histories: ActorIndex | None = None
        #: lines that were read or written since it began
        self.spans = CheckedSpans()
        #: runs that were committed, and are not in the index yet
        self._pending: list[Run] = []
        self._pending_records = 0

    @property
    def is_loaded(self) -> bool:
        """Whether it is in memory."""
        return self._blocks is not None

    @property
    def blocks(self) -> SparseIndex:
        """The index of blocks, of everything that is committed. It must be loaded."""
        assert self._blocks is not None
        if self._pending:
            self._take_in(self._blocks)
        return self._blocks

    @property
    def histories(self) -> ActorIndex | None:
        """The lines of histories, of everything that is committed; `None` if they are not known."""
        if self._pending and self._blocks is not None:
            self._take_in(self._blocks)
        return self._histories

    @histories.setter
    def histories(self, histories: ActorIndex | None) -> None:
        self._histories = histories

    def start(self, blocks: SparseIndex, histories: ActorIndex | None = None) -> None:
        """Begin with what is known of the file, or with an empty index."""
        self.forget()
        self._blocks, self._histories = blocks, histories

    def forget(self) -> None:
        """Forget the index: the file is read for it when it is needed next."""
        self._blocks = self._histories = None
        self.spans.clear()
        self._pending.clear()
        self._pending_records = 0

    def add(self, part: Part, last_seq: int) -> None:
        """Add a part that was read from the file; `last_seq` is that of the last good line."""
        blocks = self.blocks
        match part:
            case Run(offset, first_seq, records, lengths, sizes, data):
                blocks.extend(offset, first_seq, records, lengths, sizes)
                self.spans.add(offset, data)
                self._add_steps(part)
            case Line() as line, record if record is not None:
                blocks.add(line.offset, last_seq, record, len(line.record))
                self._add_step(record, line.offset)
            case line, _ if isinstance(line, BadLine) or not line.is_tombstone:
                # No record that follows has a lower number, whatever this line says of itself.
                blocks.add_other(line.offset, last_seq + isinstance(line, BadLine))

    def note(self, run: Run) -> None:
        """Note what was committed.

        It is looked into far less often than written to, and taking in many lines at once costs a
        tenth of taking them in one by one.
        """
        if self._blocks is None:
            return  # the file is read for it
        if self._pending and self._pending[-1].last_seq + 1 != run.first_seq:
            self._take_in(self._blocks)  # a run without a gap ends here
        self.spans.add(run.offset, run.data)
        self._pending.append(Run(*run[:-1]))
        self._pending_records += len(run.records)
        if self._pending_records >= _PENDING:
            self._take_in(self._blocks)

    def _take_in(self, blocks: SparseIndex) -> None:
        runs, self._pending = self._pending, []
        self._pending_records = 0
        first = runs[0]
        try:
            blocks.extend(
                first.offset,
                first.first_seq,
                [record for run in runs for record in run.records],
                [length for run in runs for length in run.lengths],
                [size for run in runs for size in run.sizes],
            )
            for run in runs:
                self._add_steps(run)
        except BaseException:
            self.forget()  # some of it may be in there
            raise

    def _add_steps(self, run: Run) -> None:
        """Add the lines of a run that are part of histories."""
        if self._histories is None:
            return
        steps = [n for n, record in enumerate(run.records) if record.revision is not None]
        if not steps:
            return
        starts = list(accumulate(run.lengths, initial=run.offset))
        for number in steps:
            self._add_step(run.records[number], starts[number])

    def _add_step(self, record: Record, offset: int) -> None:
        if self._histories is None or not isinstance(record, PersistedEvent):
            return
        if record.revision is not None:
            self._histories.add(record.actor_address, offset)
