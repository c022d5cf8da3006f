"""One file of lines: opened, appended to, read, checked and rewritten. It blocks: use a thread."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.backends._index import SparseIndex
from papyra.persistence.backends._line import VERSION, BadLine, Line, make_lines, parse_lines
from papyra.persistence.records import Record, kind_of
from papyra.persistence.reports import AnomalyKind, PersistenceAnomaly

__all__ = ("JournalFile", "ScanResult", "sync_directory")

#: Bytes that are read at once.
_CHUNK = 1024 * 1024


@dataclass
class ScanResult:
    """What a walk through a file found."""

    records: int = 0
    bytes: int = 0
    #: the `seq` of the last line that can be read
    tail_seq: int = 0
    #: the greatest `seq` that was given: `tail_seq`, and one for each bad line behind it
    last_seq: int = 0
    anomalies: list[PersistenceAnomaly] = field(default_factory=list)


class JournalFile:
    """Lines in one file, and the index to find them by.

    What is between the acknowledged end and the end of the file is of no account: it is cut off
    before the next write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = SparseIndex()
        #: where the last acknowledged line ends; bytes
        self.end = 0
        self.last_seq = 0
        self._tail_seq = 0
        self._fd: int | None = None
        self._clean = True

    def open(self) -> ScanResult:
        """Open the file, making it if there is none, read it through, and cut off a torn end."""
        existed = self.path.exists()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not existed:
            os.fsync(self._fd)
            sync_directory(self.path.parent)
        self.index = SparseIndex()
        found = ScanResult()
        self.end = 0
        for line, record in self.checked(found):
            if isinstance(line, BadLine) and line.kind == "torn":
                break  # nothing of it was acknowledged
            self.end = line.offset + len(line.data)
            if isinstance(line, Line) and record is not None:
                size = len(line.record)
                self.index.add(line.offset, line.seq, kind_of(record), record.timestamp, size)
        self.last_seq, self._tail_seq = found.last_seq, found.tail_seq
        self._clean = self.end == os.fstat(self._fd).st_size
        return found

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def append(
        self, first_seq: int, records: Sequence[Record], encoded: Sequence[bytes], *, sync: bool
    ) -> None:
        """Write the lines of these records with one write, and sync them.

        Raises `OSError`; then the file ends where it did before, as soon as that can be had.
        """
        lines = make_lines(first_seq, self._tail_seq, encoded)
        data = b"".join(lines)
        try:
            self._cut()
            self._clean = False
            _write_all(self.fd, data, self.end)
            if sync:
                os.fdatasync(self.fd)
        except OSError:
            # After a failed sync the kernel may say that pages are clean which are not on the
            # disk. So nothing that was written is trusted, and the file is opened anew.
            with contextlib.suppress(OSError):
                self._cut()
                self._reopen()
            raise
        self._clean = True
        offset = self.end
        for record, line, size in zip(records, lines, map(len, encoded), strict=True):
            self.index.add(offset, first_seq, kind_of(record), record.timestamp, size)
            offset += len(line)
            first_seq += 1
        self.end = offset
        self.last_seq = self._tail_seq = first_seq - 1

    def sync(self) -> None:
        """Have everything on the disk."""
        os.fdatasync(self.fd)

    def lines(self, start: int, end: int) -> Iterator[Line]:
        """Yield the good lines between two places in the file where lines begin."""
        data = os.pread(self.fd, end - start, start)
        for line in parse_lines(data, start):
            if isinstance(line, Line) and line.version <= VERSION:
                yield line

    def scan(self) -> ScanResult:
        """Check every line; change nothing."""
        found = ScanResult()
        for _ in self.checked(found):
            pass
        return found

    def put_aside(self, directory: str | None) -> str:
        """Keep the file as it is under another name, and return that.

        In `directory`, or beside the file. It can be put back by renaming it.
        """
        place = self.path.parent if directory is None else Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            copy = place / f"{self.path.name}.damaged-{number}"
            if not copy.exists():
                break
        shutil.copy2(self.path, copy)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        sync_directory(place)
        return str(copy)

    def repair(self) -> int:
        """Rewrite the file with every line that can be read, each once, in order.

        Lines of a newer version, and records of an unknown kind, are kept as they are. Returns how
        many lines, or what should have been lines, were left out.
        """
        good: dict[int, tuple[int, int]] = {}
        removed = 0
        for line in self.parsed():
            if isinstance(line, Line) and line.seq not in good:
                good[line.seq] = line.offset, len(line.data)
            else:
                removed += 1
        self._rewrite(self._line_at(*good[seq]) for seq in sorted(good))
        return removed

    def keep(self, visible: Callable[[Line, Record], bool]) -> None:
        """Rewrite the file without the records that are not visible.

        The last line stays whatever it is, since it says which number comes next. Raises
        `StoreError` if there is damage, which would be lost from sight.
        """
        found = ScanResult()

        def kept() -> Iterator[Line]:
            for line, record in self.checked(found):
                if isinstance(line, BadLine):
                    raise StoreError(f"{self.path} is damaged: recover it before compacting it")
                if record is None or line.seq == self.last_seq or visible(line, record):
                    yield line

        self._rewrite(kept())

    def _line_at(self, offset: int, length: int) -> Line:
        (line,) = parse_lines(os.pread(self.fd, length, offset), offset)
        assert isinstance(line, Line)
        return line

    def _rewrite(self, lines: Iterable[Line]) -> None:
        """Put these lines in place of all: as a whole, or, if it raises, not at all."""
        temporary = self.path.with_name(self.path.name + ".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            after, end, batch = 0, 0, bytearray()
            for line in lines:
                batch += line.moved_after(after)
                after = line.seq
                if len(batch) >= _CHUNK:
                    _write_all(fd, bytes(batch), end)
                    end += len(batch)
                    batch.clear()
            _write_all(fd, bytes(batch), end)
            os.fsync(fd)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        temporary.replace(self.path)
        sync_directory(self.path.parent)
        last_seq = self.last_seq
        self.close()
        self.open()
        self.last_seq = max(self.last_seq, last_seq)

    def parsed(self) -> Iterator[Line | BadLine]:
        """Yield everything in the file, good and bad, up to its end."""
        rest, offset, position = b"", 0, 0
        while chunk := os.pread(self.fd, _CHUNK, position):
            position += len(chunk)
            data = rest + chunk
            cut = data.rfind(b"\n") + 1
            yield from parse_lines(data[:cut], offset)
            rest = data[cut:]
            offset += cut
        if rest:
            yield from parse_lines(rest, offset)

    @property
    def fd(self) -> int:
        """The descriptor of the open file."""
        if self._fd is None:
            raise StoreError(f"{self.path} is not open")
        return self._fd

    def checked(self, found: ScanResult) -> Iterator[tuple[Line | BadLine, Record | None]]:
        """Yield everything, each line with its record if it can be read.

        What is there, and what is wrong with it, is noted in `found` on the way.
        """
        before, lost = 0, 0
        for number, line in enumerate(self.parsed(), 1):
            record: Record | None = None
            wrong: tuple[AnomalyKind, str] | None = None
            if isinstance(line, BadLine):
                wrong = line.kind, line.detail
                lost += line.kind != "torn"  # which nobody was told was stored
            else:
                record, unreadable = _decode(line)
                # The records of bad lines are not missing besides.
                wrong = unreadable or _misplaced(line, before, lost)
                before, lost = max(before, line.seq), 0
                found.records += 1
                found.bytes += len(line.data)
            found.tail_seq, found.last_seq = before, before + lost
            if wrong is not None:
                kind, detail = wrong
                found.anomalies.append(
                    PersistenceAnomaly(kind, detail, str(self.path), line.offset, number, line.seq)
                )
            yield line, record

    def _cut(self) -> None:
        """Let the file end where the last acknowledged line does."""
        if not self._clean:
            os.ftruncate(self.fd, self.end)
            self._clean = True

    def _reopen(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self.close()
        self._fd = fd


def _decode(line: Line) -> tuple[Record | None, tuple[AnomalyKind, str] | None]:
    """Return the record of a line, or what keeps it from being read."""
    if line.version > VERSION:
        return None, ("unknown_kind", f"written in version {line.version}; this reads {VERSION}")
    try:
        return codec.decode(line.record, line.seq), None
    except StoreError as error:
        return None, ("unknown_kind", str(error))


def _misplaced(line: Line, before: int, lost: int) -> tuple[AnomalyKind, str] | None:
    """Return what is wrong with the place of a line after line `before` and `lost` bad ones."""
    if line.seq <= before:
        return "duplicate", f"record {line.seq} comes after record {before}"
    if line.after > before + lost:
        missing = f"{before + 1} to {line.after}" if line.after > before + 1 else line.after
        return "gap", f"missing before record {line.seq}: {missing}"
    return None


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
