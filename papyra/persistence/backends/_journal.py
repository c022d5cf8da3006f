"""One file of lines: opened, appended to, read, checked and rewritten. It blocks: use a thread."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.backends._disk import Disk
from papyra.persistence.backends._index import SparseIndex
from papyra.persistence.backends._line import VERSION, BadLine, Line, make_lines, parse_lines
from papyra.persistence.records import Record, kind_of
from papyra.persistence.reports import AnomalyKind, PersistenceAnomaly

__all__ = ("JournalFile", "ScanResult")

logger = logging.getLogger("papyra")

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

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = disk or Disk()
        self.index = SparseIndex()
        #: where the last acknowledged line ends; bytes
        self.end = 0
        self.last_seq = 0
        self._tail_seq = 0
        self._fd: int | None = None
        self._fd_lock = threading.Lock()
        #: whether the file ends at `end`
        self._clean = True
        #: whether the kernel can be trusted about what it wrote through this descriptor
        self._trusted = True
        #: up to where everything is on the device; bytes
        self._synced_end = 0
        self._sync_failed = False

    def open(self) -> ScanResult:
        """Open the file, making it if there is none, and read it through."""
        disk = self._disk
        # What a rewriting left behind that did not come to its end.
        disk.remove(self._temporary)
        existed = self.path.exists()
        self._fd = disk.open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            if not existed:
                disk.sync_directory(self.path.parent)
            found = self._read_through()
            self._clean = self.end == disk.size(self._fd)
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
            raise
        self.last_seq, self._tail_seq = max(self.last_seq, found.last_seq), found.tail_seq
        self._trusted, self._sync_failed, self._synced_end = True, False, self.end
        return found

    def _read_through(self) -> ScanResult:
        self.index, self.end = SparseIndex(), 0
        found = ScanResult()
        for line, record in self.checked(found):
            if isinstance(line, BadLine) and line.kind == "torn":
                break  # nothing of it was acknowledged
            self.end = line.offset + len(line.data)
            if isinstance(line, Line) and record is not None:
                size = len(line.record)
                self.index.add(line.offset, line.seq, kind_of(record), record.timestamp, size)
        return found

    def close(self) -> None:
        """Close the file."""
        with self._fd_lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            self._disk.close(fd)

    def append(
        self, first_seq: int, records: Sequence[Record], encoded: Sequence[bytes], *, sync: bool
    ) -> None:
        """Write the lines of these records with one write, and sync them.

        Raises `OSError`; then the file ends where it did before, as soon as that can be had.
        """
        lines = make_lines(first_seq, self._tail_seq, encoded)
        data = b"".join(lines)
        try:
            if not self._trusted:
                self._open_anew()
            self._cut()
            self._clean = False
            self._write_all(self.fd, data, self.end)
            if sync:
                self._sync(self.end + len(data))
        except OSError:
            # Nothing that was written counts; the next write goes through a new descriptor.
            self._trusted = False
            with contextlib.suppress(OSError):
                self._cut()
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
        """Return when everything is on the device."""
        if not self._trusted:
            self._open_anew()
        self._sync(self.end)

    def sync_in_background(self) -> None:
        """Sync what was not yet, from a thread of its own, while others use the file."""
        end = self.end
        with self._fd_lock:
            if self._fd is None or end <= self._synced_end or self._sync_failed:
                return
            fd = os.dup(self._fd)
        try:
            self._disk.sync(fd)
            self._synced_end = max(end, self._synced_end)
        except OSError as error:
            logger.warning("%s: what was not yet on the device may not be: %s", self.path, error)
            self._sync_failed, self._trusted = True, False
        finally:
            os.close(fd)

    def _sync(self, end: int) -> None:
        try:
            self._disk.sync(self.fd)
        except OSError:
            self._sync_failed, self._trusted = True, False
            raise
        self._synced_end = end

    def lines(self, start: int, end: int) -> Iterator[Line]:
        """Yield the good lines between two places in the file where lines begin."""
        data = self._disk.read(self.fd, end - start, start)
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
            self._disk.sync(file.fileno())
        self._disk.sync_directory(place)
        return str(copy)

    def repair(self) -> int:
        """Rewrite the file with every line that can be read, each once, in order.

        Lines of a newer version, and records of an unknown kind, are kept as they are. Returns how
        many lines, or what should have been lines, were left out.
        """
        anomalies = self.scan().anomalies
        if all(anomaly.kind == "torn" for anomaly in anomalies):
            self._cut()
            self._disk.sync(self.fd)
            return len(anomalies)
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
        (line,) = parse_lines(self._disk.read(self.fd, length, offset), offset)
        assert isinstance(line, Line)
        return line

    def _rewrite(self, lines: Iterable[Line]) -> None:
        """Put these lines in place of all: as a whole, or, if it raises, not at all."""
        disk, temporary = self._disk, self._temporary
        fd = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            after, end, batch = 0, 0, bytearray()
            for line in lines:
                batch += line.moved_after(after)
                after = line.seq
                if len(batch) >= _CHUNK:
                    self._write_all(fd, bytes(batch), end)
                    end += len(batch)
                    batch.clear()
            self._write_all(fd, bytes(batch), end)
            disk.sync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove(temporary)
            raise
        finally:
            disk.close(fd)
        disk.replace(temporary, self.path)
        try:
            disk.sync_directory(self.path.parent)
        finally:
            # The file that is open is nobody's any more.
            self.close()
            self.open()

    def parsed(self) -> Iterator[Line | BadLine]:
        """Yield everything in the file, good and bad, up to its end."""
        rest, offset, position = b"", 0, 0
        while chunk := self._disk.read(self.fd, _CHUNK, position):
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
        """The descriptor of the file, which is opened again if that failed before."""
        if self._fd is None:
            self.open()
        assert self._fd is not None
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
            self._disk.truncate(self.fd, self.end)
            self._clean = True

    def _open_anew(self) -> None:
        fd = self._disk.open(self.path, os.O_RDWR)
        with contextlib.suppress(OSError):
            self.close()
        self._fd = fd
        if self._sync_failed:
            # After a failed sync the kernel may take pages for clean that are not on the device
            # (PostgreSQL's fsync story), so syncing once more proves nothing. What the cache still
            # has is written again, and then synced.
            position = self._synced_end
            while position < self.end:
                data = self._disk.read(fd, min(_CHUNK, self.end - position), position)
                self._write_all(fd, data, position)
                position += len(data)
            self._disk.sync(fd)
            self._synced_end, self._sync_failed = self.end, False
        self._trusted = True

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def _write_all(self, fd: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = self._disk.write(fd, view, offset)
            view = view[written:]
            offset += written


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
