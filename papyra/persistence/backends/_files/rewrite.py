"""The rewriting of a file: a new one takes its place as a whole, or not at all."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Self

from papyra.exceptions import StoreError
from papyra.persistence.backends._files.block_index import Block, SparseIndex
from papyra.persistence.backends._files.disk import write_all
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import (
    Line,
    parse_whole,
    tombstone,
)
from papyra.persistence.records import Record

__all__ = ("Rewrite", "ascending")

#: Bytes that are written at once.
_CHUNK = 1024 * 1024


class Rewrite:
    """The replacement of a file: a context in which it is written, and at last takes its place."""

    def __init__(self, journal: JournalFile) -> None:
        self._journal = journal
        self._disk = journal.disk
        self._index = SparseIndex()
        self._end = 0
        self._unwritten = bytearray()
        #: lines that are to be read back before the file counts: where they begin, and their length
        self._to_read_back: list[tuple[int, int]] = []
        #: the `seq` of the last line
        self.after = journal.base

    def __enter__(self) -> Self:
        self._handed_over = False
        self._fd = self._journal.handle.create_replacement()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None and not self._handed_over:
            with contextlib.suppress(OSError):
                self._disk.close(self._fd)
            with contextlib.suppress(OSError):
                self._disk.remove(self._journal.handle.temporary)

    def add(self, line: Line, record: Record | None, *, read_back: bool = False) -> None:
        """Add a line, as it must be in its new place; `read_back` before anything relies on it."""
        if record is None:
            if not line.is_tombstone:
                self._index.add_other(self._end, line.seq)
        else:
            self._index.add(self._end, line.seq, record, len(line.record))
        data = line.moved_after(self.after)
        if read_back:
            self._to_read_back.append((self._end, len(data)))
        self._put(data, line.seq)

    def add_block(self, data: bytes, block: Block, last_seq: int) -> None:
        """Add a block as it is."""
        self._index.add_block(block._replace(offset=self._end))
        self._put(data, last_seq)

    def finish(self, last_seq: int) -> None:
        """Note the last position that was given, sync the copy, and replace the file by it."""
        if self.after != last_seq:
            self._put(tombstone(last_seq, self.after), last_seq)
        self._write()
        self._disk.sync(self._fd)
        self._read_back()
        self._journal.replace_with(self._fd, self._index, self._end)
        self._handed_over = True
        self._journal.appender.durability.sync_name()

    def _read_back(self) -> None:
        for offset, length in self._to_read_back:
            if parse_whole(self._disk.read(self._fd, length, offset)) is None:
                raise StoreError(
                    f"{self._journal.handle.temporary}: what was written at byte {offset} is not "
                    "there; nothing was changed"
                )

    def _put(self, data: bytes, last_seq: int) -> None:
        self._unwritten += data
        self._end += len(data)
        self.after = last_seq
        if len(self._unwritten) >= _CHUNK:
            self._write()

    def _write(self) -> None:
        data = bytes(self._unwritten)
        if data:
            write_all(self._disk, self._fd, data, self._end - len(data))
        self._unwritten.clear()


def ascending(journal: JournalFile, end: int) -> Iterator[Line]:
    """Yield the good lines before byte `end`, each of which comes after the one before."""
    before = journal.base
    for line in itertools.takewhile(lambda line: line.offset < end, journal.all_lines()):
        if isinstance(line, Line) and line.seq > before and journal.belongs(line.seq):
            before = line.seq
            yield line
