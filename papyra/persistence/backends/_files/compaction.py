"""One file of lines, written anew: as a whole, or, if that fails, not at all."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from sys import maxsize
from typing import NamedTuple, Self

from papyra.exceptions import StoreError
from papyra.persistence.backends._files.block_index import Block, SparseIndex, Totals
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line import (
    BadLine,
    Line,
    last_seq_in,
    parse_lines,
    tombstone,
)
from papyra.persistence.backends._files.location import Place
from papyra.persistence.backends._files.scan import Run, ScanResult, decode
from papyra.persistence.records import Kind, Record, kind_of
from papyra.persistence.reports import PersistenceRecoveryConfig

__all__ = (
    "Hidden",
    "aside_of",
    "count_hidden",
    "drop_hidden",
    "is_hidden",
    "is_visible",
    "name_aside",
    "put_aside",
    "repair",
)

#: Bytes that are written at once.
_CHUNK = 1024 * 1024


class Hidden(NamedTuple):
    """What retention hides of a kind."""

    #: records up to this `seq`
    through: int
    #: and those before this time; Unix seconds
    before: float

    def hides(self, record: Record, seq: int) -> bool:
        """Say whether a record is hidden."""
        return seq <= self.through or record.timestamp < self.before


def drop_hidden(journal: JournalFile, hidden: Mapping[Kind, Hidden]) -> None:
    """Rewrite a file without the records that are hidden, if there are any.

    Lines that no record can be read from stay. Raises `StoreError` if there is damage, which would
    be lost from sight.
    """
    if is_visible(journal.index, journal.base, hidden):
        return
    if journal.damaged:
        raise _damaged(journal)
    with _Copy(journal) as copy:
        index = journal.index
        for number in range(len(index)):
            block = index.block(number)
            base = block.first_seq - 1
            is_last = number + 1 == len(index)
            through = journal.last_seq if is_last else index.first_seq(number + 1) - 1
            if is_hidden(block, through, hidden):
                continue
            data, start = journal.read_block(number)
            if len(data) != sum(index.extent(number, journal.end)) - 2 * start:
                raise _damaged(journal)
            if is_visible(block, base, hidden) and copy.after == base:
                # As it is, with whatever may have happened to it since it was looked at: a scan
                # will tell.
                last_seq = last_seq_in(data)
                if last_seq is not None:
                    copy.add_block(data, block, last_seq)
                    continue
            for line in parse_lines(data, start):
                if isinstance(line, BadLine):
                    raise _damaged(journal)
                record, _ = decode(line)
                if line.is_tombstone:
                    continue
                if record is None or not hidden[kind_of(record)].hides(record, line.seq):
                    copy.add(line, record)
        copy.finish(journal.last_seq)


def count_hidden(journal: JournalFile, hidden: Mapping[Kind, Hidden]) -> tuple[int, int]:
    """Return how many records `drop_hidden` would leave out, and how many encoded bytes.

    Raises `StoreError` if there is damage, as that does.
    """
    totals = journal.totals()
    if is_visible(totals, journal.base, hidden):
        return 0, 0
    if journal.through is not None and is_hidden(totals, journal.through, hidden):
        return totals.records, totals.record_bytes
    index, records, size = journal.index, 0, 0
    if journal.damaged:
        raise _damaged(journal)
    for number in range(len(index)):
        block = index.block(number)
        is_last = number + 1 == len(index)
        through = journal.last_seq if is_last else index.first_seq(number + 1) - 1
        if is_visible(block, block.first_seq - 1, hidden):
            continue
        if is_hidden(block, through, hidden):
            records += sum(block.counts.values())
            size += sum(block.sizes.values())
            continue
        for line in parse_lines(*journal.read_block(number)):
            if isinstance(line, BadLine):
                raise _damaged(journal)
            record, _ = decode(line)
            if record is not None and hidden[kind_of(record)].hides(record, line.seq):
                records += 1
                size += len(line.record)
    return records, size


def repair(journal: JournalFile) -> int:
    """Rewrite a file with every line that can be read and belongs there, each once, in order.

    Lines of a newer version, and records of an unknown kind, are kept as they are. Returns how many
    lines, or what should have been lines, were left out.
    """
    found = ScanResult(tail_seq=journal.base, last_seq=journal.base)
    strays: dict[int, Line] = {}
    before, removed = journal.base, 0
    for part in journal.walk(found):
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
        journal.cut()
        return removed
    end = min((a.offset or 0 for a in found.anomalies if a.kind == "torn"), default=maxsize)
    doubled: set[int] = set()
    if strays:
        doubled = {line.seq for line in _ascending(journal, end) if line.seq in strays}
    only = (strays[seq] for seq in sorted(strays.keys() - doubled))
    with _Copy(journal) as copy:
        for line in heapq.merge(_ascending(journal, end), only, key=lambda line: line.seq):
            record, _ = decode(line)
            copy.add(line, record)
        copy.finish(last_seq)
    return removed + len(doubled)


def aside_of(config: PersistenceRecoveryConfig, parent: Path) -> Path:
    """Return the directory for damaged originals: the one that was asked for, or `parent`."""
    return parent if not config.quarantine_dir else Place(config.quarantine_dir).name


def name_aside(path: Path, place: Path) -> Path:
    """Return a name in a directory under which the damaged original of `path` can be kept."""
    names = (place / f"{path.name}.damaged-{number}" for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def put_aside(journal: JournalFile, target: Path) -> str:
    """Keep a copy of a file as it is, under another name, and return that.

    It can be put back by renaming it.
    """
    disk, source = journal.disk, journal.fd
    journal.check_name()
    disk.make_directory(target.parent)
    about, position = disk.stat(source), 0
    fd = disk.create(target, about)
    try:
        while data := disk.read(source, _CHUNK, position):
            written = 0
            while written < len(data):
                written += disk.write(fd, data[written:], position + written)
            position += len(data)
        disk.sync(fd)
    finally:
        disk.close(fd)
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))
    disk.sync_directory(target.parent)
    return str(target)


class _Copy:
    """What is to take a file's place; entered, it is written, and in the end it does."""

    def __init__(self, journal: JournalFile) -> None:
        self._journal = journal
        self._disk = journal.disk
        self._index = SparseIndex()
        self._end = 0
        self._unwritten = bytearray()
        #: the `seq` of the last line
        self.after = journal.base

    def __enter__(self) -> Self:
        self._handed_over = False
        self._fd = self._journal.begin_anew()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None and not self._handed_over:
            with contextlib.suppress(OSError):
                self._disk.close(self._fd)
            with contextlib.suppress(OSError):
                self._disk.remove(self._journal.temporary)

    def add(self, line: Line, record: Record | None) -> None:
        """Take over a line, as it must be in its new place."""
        if record is None:
            if not line.is_tombstone:
                self._index.add_other(self._end, line.seq)
        else:
            kind, size = kind_of(record), len(line.record)
            self._index.add(self._end, line.seq, kind, record.timestamp, size)
        self._put(line.moved_after(self.after), line.seq)

    def add_block(self, data: bytes, block: Block, last_seq: int) -> None:
        """Take over a block as it is."""
        self._index.add_block(block._replace(offset=self._end))
        self._put(data, last_seq)

    def finish(self, last_seq: int) -> None:
        """Say up to where the numbers were given, and put the copy in the file's place."""
        if self.after != last_seq:
            self._put(tombstone(last_seq, self.after), last_seq)
        self._write()
        self._disk.sync(self._fd)
        self._journal.take_over(self._fd, self._index, self._end)
        self._handed_over = True
        self._journal.sync_name()

    def _put(self, data: bytes, last_seq: int) -> None:
        self._unwritten += data
        self._end += len(data)
        self.after = last_seq
        if len(self._unwritten) >= _CHUNK:
            self._write()

    def _write(self) -> None:
        position = self._end - len(self._unwritten)
        while self._unwritten:
            written = self._disk.write(self._fd, bytes(self._unwritten), position)
            del self._unwritten[:written]
            position += written


def _ascending(journal: JournalFile, end: int) -> Iterator[Line]:
    """Yield the good lines before byte `end`, each of which comes after the one before."""
    before = journal.base
    for line in itertools.takewhile(lambda line: line.offset < end, journal.parsed()):
        if isinstance(line, Line) and line.seq > before and journal.belongs(line.seq):
            before = line.seq
            yield line


def is_visible(totals: Totals | Block, base: int, hidden: Mapping[Kind, Hidden]) -> bool:
    """Return whether no record is hidden of those that follow record `base`."""
    return all(
        not totals.counts.get(kind) or (base >= limit.through and totals.oldest >= limit.before)
        for kind, limit in hidden.items()
    )


def is_hidden(totals: Totals | Block, last_seq: int, hidden: Mapping[Kind, Hidden]) -> bool:
    """Return whether everything is hidden, up to `last_seq`."""
    return not totals.counts.get("other") and all(
        not totals.counts.get(kind) or last_seq <= limit.through or totals.newest < limit.before
        for kind, limit in hidden.items()
    )


def _damaged(journal: JournalFile) -> StoreError:
    return StoreError(f"{journal.name} is damaged: recover it before compacting it")
