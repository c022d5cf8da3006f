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
    BadLine,
    Line,
    last_seq_in,
    parse_lines,
    parse_whole,
    tombstone,
)
from papyra.persistence.records import Record

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

    def take_block(self, number: int, block: Block, *, whole: bool) -> Iterator[Line]:
        """Add a block of the file as it is if it may be taken `whole`, or yield its lines.

        Raises `StoreError` if there is damage, which would be lost from sight.
        """
        data, start = self._journal.read_block(number)
        if len(data) != sum(self._journal.index.extent(number, self._journal.end)) - 2 * start:
            raise damaged(self._journal)
        if whole and self.after == block.first_seq - 1:
            # With whatever may have happened to it since it was looked at: a scan will tell.
            last_seq = last_seq_in(data)
            if last_seq is not None:
                self._index.add_block(block._replace(offset=self._end))
                self._put(data, last_seq)
                return
        yield from good_lines(self._journal, data, start)

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


def good_lines(journal: JournalFile, data: bytes, start: int) -> Iterator[Line]:
    """Yield the lines of a block, but for tombstones. Raises `StoreError` if there is damage."""
    for line in parse_lines(data, start):
        if isinstance(line, BadLine):
            raise damaged(journal)
        if not line.is_tombstone:
            yield line


def damaged(journal: JournalFile) -> StoreError:
    """Return the error for a file that is to be rewritten, and would lose its damage from sight."""
    return StoreError(f"{journal.name} is damaged: recover it before compacting it")


def ascending(journal: JournalFile, end: int) -> Iterator[Line]:
    """Yield the good lines before byte `end`, each of which comes after the one before."""
    before = journal.base
    for line in itertools.takewhile(lambda line: line.offset < end, journal.all_lines()):
        if isinstance(line, Line) and line.seq > before and journal.belongs(line.seq):
            before = line.seq
            yield line
