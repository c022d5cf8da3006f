"""One file of lines: opened, read, checked and appended to. It blocks: use a thread."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from sys import maxsize
from time import time

from papyra.persistence import codec
from papyra.persistence.backends._files.actor_index import ActorIndex
from papyra.persistence.backends._files.appender import Appender, Tail
from papyra.persistence.backends._files.block_index import SparseIndex, Totals
from papyra.persistence.backends._files.checked_spans import Span
from papyra.persistence.backends._files.close_mark import CloseMark
from papyra.persistence.backends._files.disk import Disk, identity
from papyra.persistence.backends._files.file_handle import FileHandle
from papyra.persistence.backends._files.file_index import FileIndex
from papyra.persistence.backends._files.index_cache import IndexCache
from papyra.persistence.backends._files.line_format import (
    VERSION,
    BadLine,
    Line,
    parse_lines,
)
from papyra.persistence.backends._files.line_reader import (
    chunks_of,
    records_at,
    records_in,
    whole_lines_at,
)
from papyra.persistence.backends._files.location import printable
from papyra.persistence.backends._files.scan import (
    Advance,
    Part,
    ScanResult,
    end_of,
    is_torn,
    scan_parts,
)
from papyra.persistence.records import Kind, Record
from papyra.persistence.reports import PersistenceAnomaly

logger = logging.getLogger("papyra")

#: Seconds that must lie between the last change of a file and a look at it, so that the file's time
#: would tell of a later change. (Git calls what is younger "racily clean".)
_TIME_RESOLUTION = 0.02
#: Bytes at the end of what was read by which a reader knows that it is still the same.
_TAIL = 256
#: Bytes that are worth being cached once they have been read.
_WORTH_CACHING = 64 * 1024
#: Anomalies that no rewriting hides: a torn end is not taken over, the other is.
_HARMLESS = frozenset({"torn", "unknown_kind"})


class JournalFile:
    """Lines in one file, and the index to find them by. An `Appender` writes them."""

    def __init__(
        self,
        path: Path,
        disk: Disk,
        base: int = 0,
        *,
        read_only: bool = False,
        index_cache: IndexCache | None = None,
        name: Path | None = None,
        follows_links: bool = True,
    ) -> None:
        #: its name, from the root on
        self.path = path
        #: its name in reports
        self.name = name or path
        self.location = printable(self.name)
        self.disk = disk
        #: the `seq` before the file's first
        self.base = base
        #: the last `seq` that belongs in the file, once it is sealed
        self.through: int | None = None
        self.read_only = read_only
        #: of the last clean close: everything before it was acknowledged
        self.close_mark: CloseMark | None = None
        self.handle = FileHandle(
            path, disk, name=self.name, read_only=read_only, follows_links=follows_links
        )
        self._tail = Tail(0, base, base)
        self.appender = Appender(self.handle, self._tail)
        self._index = FileIndex()
        #: the lines of records that are part of no history, by their actors, and up to where
        self._others: tuple[ActorIndex, int] | None = None
        #: the index that another reader has left, for a reader
        self._index_cache = index_cache
        #: for a reader: the file's size and time before it was read, and the last bytes that were
        self._seen = (0, 0)
        self._seen_tail = b""
        #: whether opening has found what a rewriting would hide
        self.damaged = False
        #: the result of the opening, and the file that it is of, until something is changed
        self._found_opening: tuple[tuple[int, ...], ScanResult] | None = None

    @property
    def end(self) -> int:
        """Where the last acknowledged line ends; bytes."""
        return self._tail.end

    @property
    def last_seq(self) -> int:
        """The greatest `seq` that was given."""
        return self._tail.last_seq

    def seal(self, through: int) -> None:
        """Note that another file follows after record `through`, and this one is not written to."""
        self.through, self.handle.is_sealed = through, True

    def unseal(self) -> None:
        """Note that no other file follows, after all."""
        self.through, self.handle.is_sealed = None, False

    # Opening and closing

    def open(self, advance: Advance | None = None) -> None:
        """Open the file, making it if there is none, and read it through."""
        was_open = self.handle.is_open
        if not was_open:
            self.handle.open()
        try:
            self._read_through(advance)
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
            raise
        if not was_open:
            self.appender.durability.reset(self.end)

    def reopen(self) -> None:
        """Open the file anew, as it is not what it was."""
        self.close()
        self.open()

    def close(self) -> None:
        """Close the file."""
        self.handle.close()

    def _read_through(self, advance: Advance | None = None) -> None:
        """Read the whole file for its tail and its index."""
        before = self._signature()
        self._check_close_mark()
        tail = self._tail
        if not self.read_only:
            tail.former_end = max(tail.former_end, tail.end)
        self._index.start(SparseIndex(), ActorIndex())
        self._others = None
        tail.end, self.damaged = 0, False
        found = ScanResult(tail_seq=self.base, last_seq=self.base)
        cached_end = self._start_from_cache(found)
        self._read_on(found, advance)
        self._cache_index(cached_end)
        self.appender.start()
        after = self._signature()
        is_about_all = before == after and not cached_end
        self._found_opening = (after, found) if after is not None and is_about_all else None

    def _start_from_cache(self, found: ScanResult) -> int:
        """Start with the index that another reader has left; return up to where that is."""
        known = None if self._index_cache is None else self._index_cache.read(self.handle.fd)
        if known is not None:
            about, blocks = known
            self._index.start(blocks)
            self._tail.end, self.damaged = about.end, about.damaged
            found.tail_seq, found.last_seq = about.tail_seq, about.last_seq
        return self._tail.end

    def _cache_index(self, cached_end: int) -> None:
        tail = self._tail
        if self._index_cache is not None and tail.end - cached_end >= _WORTH_CACHING:
            self._index_cache.write(
                self.handle.fd,
                self.index,
                tail.end,
                tail.last_seq,
                tail.tail_seq,
                damaged=self.damaged,
            )

    def _read_on(self, found: ScanResult, advance: Advance | None = None) -> None:
        """Read what follows the tail, and move it."""
        tail, stat = self._tail, self.handle.stat()
        for part in self.scan_parts(found, advance, tail.end):
            if is_torn(part):
                break
            self._index.add(part, found.tail_seq)
            tail.end = end_of(part)
        tail.last_seq, tail.tail_seq = max(tail.last_seq, found.last_seq), found.tail_seq
        self.damaged |= any(a.kind not in _HARMLESS for a in found.anomalies)
        self._note_seen(stat)

    def refresh(self) -> None:
        """Read on from where the last reading ended; for a reader."""
        stat = self.handle.stat()
        try:
            same = identity(stat) == identity(self.path.stat())
        except FileNotFoundError:
            same = False
        if same and (stat.st_size, stat.st_mtime_ns) == self._seen:
            return
        # A line that was seen may have been taken back since, as it could not be synced.
        if not same or stat.st_size < self.end or self._last_bytes() != self._seen_tail:
            self.reopen()
        elif stat.st_size > self.end:
            self._read_on(ScanResult(tail_seq=self._tail.tail_seq, last_seq=self.last_seq))

    def _note_seen(self, stat: os.stat_result) -> None:
        """Note the size, the time and the last bytes of the file that was read."""
        if self.read_only:
            self._seen, self._seen_tail = (stat.st_size, stat.st_mtime_ns), self._last_bytes()

    def _last_bytes(self) -> bytes:
        """Return the last bytes that were read."""
        start = max(0, self.end - _TAIL)
        return self.disk.read(self.handle.fd, self.end - start, start)

    def _signature(self) -> tuple[int, ...] | None:
        """Return a value that changes when the file does; `None` if nothing would tell."""
        stat = self.handle.stat()
        if time() - stat.st_mtime < _TIME_RESOLUTION:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    # Clean closes

    def _check_close_mark(self) -> None:
        """Forget the mark of the last clean close, if the file is another or was cut off since."""
        stat, mark = self.handle.stat(), self.close_mark
        if mark is not None and (mark.inode != stat.st_ino or mark.end > stat.st_size):
            self.close_mark = None
            if mark.inode == stat.st_ino and not self.read_only:
                logger.info(
                    "%s had %s bytes when it was closed, and has %s: somebody has cut it off",
                    self.location,
                    mark.end,
                    stat.st_size,
                )

    def new_close_mark(self) -> CloseMark | None:
        """Return the mark that a clean close may leave; `None` if not everything is synced."""
        durability = self.appender.durability
        if not self.handle.is_open or self.read_only:
            return None
        if durability.sync_failed or not durability.is_synced(self.end):
            return None
        return CloseMark(self.handle.inode, self.end)

    # The index

    @property
    def index(self) -> SparseIndex:
        """The index of the file's blocks; the file is read for it if need be."""
        if not self._index.is_loaded:
            self.open()
        return self._index.blocks

    @property
    def is_loaded(self) -> bool:
        """Whether the index is in memory."""
        return self._index.is_loaded

    @property
    def is_open(self) -> bool:
        """Whether the file is open, or its index is in memory."""
        return self.handle.is_open or self._index.is_loaded

    def totals(self) -> Totals:
        """Return the totals of the file."""
        return self.index

    def known_totals(self) -> Totals | None:
        """Return its totals if they are known without reading it, and it is as it was then."""
        return self.index if self.is_loaded else None

    # Appending

    def commit(self) -> None:
        """Acknowledge what the appender wrote last. It does not fail: somebody is told of it."""
        run = self.appender.commit()
        if run is None:
            return
        self._found_opening = None
        try:
            self._index.note(run)
        except MemoryError:
            self._index.forget()

    def roll_back(self, *, truncate: bool = True) -> None:
        """Take back what was written last, also if it is committed. Nobody must know of it."""
        if self.appender.has_committed:
            self._index.forget()
            self._others = None
        self.appender.roll_back(truncate=truncate)

    # Reading

    def records(self, block: int, *, newest: bool = False) -> Iterator[tuple[Record, int]]:
        """Yield the records in a block that can be read, each with the bytes of its line.

        The oldest come first, or the newest.
        """
        data, start = self.read_block(block)
        return records_in(data, start, self.index.first_seq(block), newest=newest)

    def step_offsets(self, actor: str) -> Sequence[int]:
        """Return where lines begin that may be part of the history of an actor."""
        if not self._index.is_loaded:
            self.open()
        histories = self._index.histories
        if histories is None:
            histories = ActorIndex()
            for concerned, revision, offset in self._concerned(0):
                if revision is not None:
                    histories.add(concerned, offset)
            self._index.histories = histories
        return histories.offsets(actor)

    def offsets_of(self, actor: str) -> Sequence[int]:
        """Return where lines begin that may concern an actor, part of its history or not."""
        if not self._index.is_loaded:
            self.open()  # else it is not known where it ends
        steps = self.step_offsets(actor)
        others, end = self._others or (ActorIndex(), 0)
        if end < self.end:
            for concerned, revision, offset in self._concerned(end):
                if revision is None:
                    others.add(concerned, offset)
            self._others = others, self.end
        return sorted([*steps, *others.offsets(actor)])

    def records_at(self, offsets: Sequence[int]) -> Iterator[tuple[Record, int]]:
        """Yield the records of lines that begin there, as `records` does, in this order."""
        self._find_end()
        return records_at(self.handle, offsets, self.end)

    def whole_lines_at(self, offsets: Sequence[int], most: int) -> list[bytes] | None:
        """Return lines that begin there, of about `most` bytes, if each is whole."""
        self._find_end()
        return whole_lines_at(self.handle, offsets, self.end, most)

    def span_from(self, offset: int) -> Span | None:
        """Return the first span from there on whose lines are known to be whole."""
        return self._index.spans.from_on(offset)

    def read_span(self, span: Span) -> bytes | None:
        """Return the bytes of a span, if they are still what they were."""
        data = self.disk.read(self.handle.fd, span.end - span.start, span.start)
        return data if span.is_right(data) else None

    def _find_end(self) -> None:
        """Have the file open, and know where it ends."""
        if not self._index.is_loaded:
            self.open()

    def _concerned(self, start: int) -> Iterator[tuple[str, int | None, int]]:
        """Yield for each line from `start` on its actor, if any, its revision, and its place."""
        for data, offset in chunks_of(self.handle, start):
            for line in parse_lines(data, offset):
                if line.offset >= self.end:
                    return
                if isinstance(line, Line) and not line.is_tombstone:
                    actor, revision = codec.concerned(line.record)
                    if actor is not None:
                        yield actor, revision, line.offset

    def lines(self, block: int, kind: Kind) -> Iterator[Line]:
        """Yield the good lines of a kind in a block."""
        tag = b'"kind":"%b"' % kind.encode()
        for line in parse_lines(*self.read_block(block)):
            if (
                isinstance(line, Line)
                and line.version <= VERSION
                and line.data.startswith(tag, line.body)
            ):
                yield line

    def read_block(self, number: int) -> tuple[bytes, int]:
        """Return the bytes of a block, and where in the file it begins."""
        start, end = self.index.extent(number, self.end)
        return self.disk.read(self.handle.fd, end - start, start), start

    def all_lines(self) -> Iterator[Line | BadLine]:
        """Yield everything in the file, good and bad, up to its end."""
        for data, offset in chunks_of(self.handle, 0):
            yield from parse_lines(data, offset, is_end=not data.endswith(b"\n"))

    # Checking

    def scan_parts(
        self, found: ScanResult, advance: Advance | None = None, start: int = 0
    ) -> Iterator[Part]:
        """Yield everything that follows `start`, where a line begins; see `scan_parts`."""
        end = self._acknowledged_end()
        return scan_parts(
            chunks_of(self.handle, start), found, self.location, self.belongs, advance, end
        )

    def _acknowledged_end(self) -> int:
        """Return up to where everything was acknowledged, whatever the lines there look like."""
        if self.through is not None:
            return maxsize  # all of it was on the device before another file followed
        end = 0 if self.close_mark is None else self.close_mark.end
        return end if self.read_only else max(end, self._tail.end, self._tail.former_end)

    def belongs(self, seq: int) -> bool:
        """Return whether this is the file for a record."""
        return self.base < seq and (self.through is None or seq <= self.through)

    def scan(self, found: ScanResult, advance: Advance | None = None) -> None:
        """Check every line, going on from what was found before this file; change nothing."""
        for _ in self.scan_parts(found, advance):
            pass
        self._note_cut_off(found)

    def _note_cut_off(self, found: ScanResult) -> None:
        """Note what was acknowledged and is not there any more, at the end; for a writer."""
        if self.through is None and not self.read_only and found.last_seq < self.last_seq:
            first = found.last_seq + 1
            missing = f"{first} to {self.last_seq}" if first < self.last_seq else first
            detail = f"missing after record {found.last_seq}: {missing}"
            found.anomalies.append(PersistenceAnomaly("gap", detail, self.location))
            found.last_seq = self.last_seq

    def found_opening(self) -> ScanResult | None:
        """Return the result of the opening, once, if the file is still the same."""
        known, self._found_opening = self._found_opening, None
        return known[1] if known is not None and known[0] == self._signature() else None

    # Rewriting

    def replace_with(self, fd: int, blocks: SparseIndex, end: int) -> None:
        """Replace the file by the one that is open as `fd`, synced, under its temporary name.

        It has `end` bytes, and `blocks` is its index. Nothing is written to it before its name is
        on the device, too: a crash could bring back the one before.
        """
        self.handle.replace_with(fd)
        self._index.start(blocks)
        self._others = None
        self.appender.was_replaced(end)
        self.close_mark, self._found_opening, self.damaged = None, None, False
