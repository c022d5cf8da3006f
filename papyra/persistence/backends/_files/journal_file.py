"""One file of lines: opened, appended to, read, checked and rewritten. It blocks: use a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from sys import maxsize
from time import monotonic, sleep, time
from typing import NamedTuple

from papyra.exceptions import StoreChanged, StoreError, StoreMoved
from papyra.persistence.backends._files.block_index import SparseIndex, Totals
from papyra.persistence.backends._files.close_mark import Closed
from papyra.persistence.backends._files.disk import Disk, identity
from papyra.persistence.backends._files.index_cache import Recall
from papyra.persistence.backends._files.line_format import (
    VERSION,
    BadLine,
    Line,
    decode_run,
    make_lines,
    parse_lines,
)
from papyra.persistence.backends._files.location import printable
from papyra.persistence.backends._files.lock import lock_file
from papyra.persistence.backends._files.scan import Advance, Part, Run, ScanResult, decode, walk
from papyra.persistence.records import Kind, Record, kind_of
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("JournalFile",)

logger = logging.getLogger("papyra")

#: Bytes that are read at once.
_CHUNK = 256 * 1024
#: Bytes that are written at once.
_WRITE_CHUNK = 1024 * 1024
#: Lines of a block that are decoded at first.
_DECODED = 16
#: Records that may be stored and not be in the index yet.
_UNINDEXED = 1000
#: Seconds that must lie between the last change of a file and a look at it, so that the file's time
#: would tell of a later change. (Git calls what is younger "racily clean".)
_TIME_RESOLUTION = 0.02
#: Seconds that a reader waits for the rest of a line that is being written.
_PATIENCE = 0.1
#: Bytes at the end of what was read by which a reader knows that it is still the same.
_TAIL = 256
#: Bytes that are worth being kept in mind once they have been read.
_WORTH_KEEPING = 64 * 1024
#: Anomalies that no rewriting hides: a torn end is not taken over, the other is.
_HARMLESS = frozenset({"torn", "unknown_kind"})


class _Written(NamedTuple):
    """What was written, how things are when it counts, and how they were before."""

    run: Run
    end: int
    last_seq: int
    before: tuple[int, int, int]


class JournalFile:
    """Lines in one file, and the index to find them by.

    What is between the acknowledged end and the end of the file is of no account: it is cut off
    before the next write.
    """

    def __init__(
        self,
        path: Path,
        disk: Disk,
        base: int = 0,
        *,
        read_only: bool = False,
        recall: Recall | None = None,
        name: Path | None = None,
    ) -> None:
        #: its name, from the root on
        self.path = path
        self._place = str(path)
        #: what reports call it
        self.name = name or path
        self.location = printable(self.name)
        #: the file itself, where its name is a link
        self.real = path
        self.disk = disk
        #: the `seq` before the file's first
        self.base = base
        #: the greatest `seq` that belongs in the file, once that is known
        self.through: int | None = None
        self.read_only = read_only
        #: what the last clean close vouches for
        self.closed: Closed | None = None
        #: up to where a writer had acknowledged everything when it read the file anew; bytes
        self._acknowledged = 0
        #: what other readers have found, for a reader
        self._recall = recall
        #: where the last acknowledged line ends; bytes
        self.end = 0
        #: for a reader: the file's size and time before it was read, and the last bytes that were
        self._seen = (0, 0)
        self._seen_tail = b""
        self.last_seq = base
        self._tail_seq = base
        self._index: SparseIndex | None = None
        self._fd: int | None = None
        self._fd_lock = threading.Lock()
        #: the descriptor that the file is locked through, for a writer
        self._lock_fd: int | None = None
        #: which file it is, whatever its name leads to by now
        self._identity = (0, 0)
        #: how many bytes it has, if nobody else writes to it; `None` after a write that failed
        self._size: int | None = None
        #: the last byte of what counts
        self._last_byte = b"\n"
        #: whether this file was made by this object, and was not there before
        self.is_made = False
        #: what was written, and does not count yet
        self._written: _Written | None = None
        #: what was written last, once it counts
        self._accepted: _Written | None = None
        #: what counts, and is not in the index yet
        self._unindexed: list[Run] = []
        self._unindexed_records = 0
        #: whether the file ends at `end`
        self._clean = True
        #: whether it does not since a write has failed, and not as it was found so
        self._left_behind = False
        #: whether the kernel can be trusted about what it wrote through this descriptor
        self._trusted = True
        #: up to where everything is on the device; bytes
        self._synced_end = 0
        self._sync_failed = False
        #: whether that is known of what was there when the file was opened
        self._was_synced = False
        #: whether the name is on the device, too
        self._named = True
        #: whether opening has found what a rewriting would hide
        self.damaged = False
        #: what opening found, and which file that was, until something is changed
        self._found_opening: tuple[tuple[int, ...], ScanResult] | None = None

    # Opening and closing

    def open(self, advance: Advance | None = None) -> None:
        """Open the file, making it if there is none, and read it through."""
        if self._fd is None:
            self._open()
        try:
            self._read_through(advance)
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
            raise

    def _open(self) -> None:
        self.real = self._find()
        if self.read_only:
            self._fd = self.disk.open(self.real, os.O_RDONLY)
            return
        # What a rewriting left behind that did not come to its end.
        self.disk.remove(self.temporary)
        if self.through is not None:
            # Nobody writes to it, and where it is gone it is not made anew.
            self._take(self.disk.open(self.real, os.O_RDWR), lock=False)
            return
        while self._fd is None:
            self._open_to_write()

    def _open_to_write(self) -> None:
        """Open the file and lock it, unless it was made or replaced just then."""
        self.real = self._find()
        try:
            fd = self.disk.open(self.real, os.O_RDWR)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                self.create()
                self._require_name()
            return
        self._take(fd)
        try:
            self._check_name()
        except StoreMoved:
            self.close()

    def _require_name(self) -> None:
        """Undo the making of a file that has not the name which led to it."""
        try:
            self._check_name()
        except StoreMoved:  # as behind a name in /proc of a file that was removed
            self.close()
            self.disk.remove(self.real)
            raise

    def create(self, like: os.stat_result | None = None) -> None:
        """Make the file, with the owner and the mode of the one that it is `like`, and open it.

        Raises `FileExistsError` if something has its name.
        """
        fd = self.disk.create(self.real, like)
        self.is_made = True
        try:
            self._take(fd)
            self.disk.sync_directory(self.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
                self.disk.remove(self.real)
            raise

    def _find(self) -> Path:
        """Return where the file is, whose name may be a link."""
        return Path(os.path.realpath(self.path))

    def _take(self, fd: int, *, lock: bool = True) -> None:
        """Use a descriptor from now on. Raises `BackendInUse` if somebody else has the file."""
        try:
            if lock:
                lock_file(self.disk, fd, self.name)
            self._identity = identity(self.disk.stat(fd))
        except BaseException:
            self.disk.close(fd)
            raise
        self._fd, self._lock_fd = fd, fd if lock else None

    def _read_through(self, advance: Advance | None = None) -> None:
        before = self._signature()
        self._check_closed()
        if not self.read_only:
            self._acknowledged = max(self._acknowledged, self.end)
        self._index, self.end, self.damaged = SparseIndex(), 0, False
        self._unindexed, self._unindexed_records = [], 0
        found = ScanResult(tail_seq=self.base, last_seq=self.base)
        known_end = self._remember(found)
        self._read_on(found, advance)
        self._keep_in_mind(known_end)
        self._size = self.disk.stat(self.fd).st_size
        self._clean = self.end == self._size
        self._last_byte = self.disk.read(self.fd, 1, self.end - 1) if self.end else b""
        self._trusted, self._sync_failed, self._synced_end = True, False, self.end
        after = self._signature()
        is_about_all = before == after and not known_end
        self._found_opening = (after, found) if after is not None and is_about_all else None

    def _remember(self, found: ScanResult) -> int:
        """Take in what another reader has found; return up to where that is."""
        known = None if self._recall is None else self._recall.read(self.fd)
        if known is not None:
            about, self._index = known
            self.end, self.damaged = about.end, about.damaged
            found.tail_seq, found.last_seq = about.tail_seq, about.last_seq
        return self.end

    def _keep_in_mind(self, known_end: int) -> None:
        if self._recall is not None and self.end - known_end >= _WORTH_KEEPING:
            self._recall.write(
                self.fd,
                self.index,
                self.end,
                self.last_seq,
                self._tail_seq,
                damaged=self.damaged,
            )

    def _read_on(self, found: ScanResult, advance: Advance | None = None) -> None:
        index, stat = self.index, self.disk.stat(self.fd)
        for part in self.walk(found, advance, self.end):
            match part:
                case Run(offset, first_seq, records, lengths, sizes):
                    index.extend(offset, first_seq, records, lengths, sizes)
                    self.end = offset + sum(lengths)
                    continue
                case BadLine(kind="torn"), _:
                    break  # nothing of it was acknowledged
                case Line() as line, record if record is not None:
                    size, time = len(line.record), record.timestamp
                    index.add(line.offset, found.tail_seq, kind_of(record), time, size)
                case line, _ if isinstance(line, BadLine) or not line.is_tombstone:
                    # No record that follows has a lower number, whatever this line says of itself.
                    index.add_other(line.offset, found.tail_seq + isinstance(line, BadLine))
            self.end = line.offset + line.length
        self.last_seq, self._tail_seq = max(self.last_seq, found.last_seq), found.tail_seq
        self.damaged |= any(a.kind not in _HARMLESS for a in found.anomalies)
        self._note_seen(stat)

    def refresh(self) -> None:
        """Take in what another process has written since; for a reader."""
        stat = self.disk.stat(self.fd)
        try:
            same = identity(stat) == identity(self.path.stat())
        except FileNotFoundError:
            same = False
        if same and (stat.st_size, stat.st_mtime_ns) == self._seen:
            return
        # A line that was seen may have been taken back since, as it could not be synced.
        if not same or stat.st_size < self.end or self._tail() != self._seen_tail:
            self.close()
            self.open()
        elif stat.st_size > self.end:
            self._read_on(ScanResult(tail_seq=self._tail_seq, last_seq=self.last_seq))

    def _note_seen(self, stat: os.stat_result) -> None:
        """Take note of how the file was when it was read."""
        if self.read_only:
            self._seen, self._seen_tail = (stat.st_size, stat.st_mtime_ns), self._tail()

    def _tail(self) -> bytes:
        """Return the last bytes that were read."""
        start = max(0, self.end - _TAIL)
        return self.disk.read(self.fd, self.end - start, start)

    def _signature(self) -> tuple[int, ...] | None:
        """Return what tells whether the file is the one it was; `None` if nothing would."""
        stat = self.disk.stat(self.fd)
        if time() - stat.st_mtime < _TIME_RESOLUTION:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def close(self) -> None:
        """Close the file."""
        with self._fd_lock:
            fds = {fd for fd in (self._fd, self._lock_fd) if fd is not None}
            lock_fd, self._fd, self._lock_fd = self._lock_fd, None, None
        with contextlib.ExitStack() as stack:
            for fd in fds:
                stack.callback(self.disk.close, fd)
            if lock_fd is not None:
                # It is held as long as there are copies of the descriptor.
                stack.callback(self.disk.unlock, lock_fd)

    @property
    def index(self) -> SparseIndex:
        """What is where in the file, which is opened for that if need be."""
        if self._index is None:
            self._index_anew()
        assert self._index is not None
        if self._unindexed:
            self._take_in(self._index)
        return self._index

    def _index_anew(self) -> None:
        """Read the file, which knows nothing of what is on the device."""
        is_open = self._fd is not None
        known = self._trusted, self._sync_failed, self._synced_end
        self.open()
        if is_open:
            self._trusted, self._sync_failed, self._synced_end = known

    def totals(self) -> Totals:
        """Return what the file holds."""
        return self.index

    def _take_in(self, index: SparseIndex) -> None:
        runs, self._unindexed = self._unindexed, []
        self._unindexed_records = 0
        first = runs[0]
        try:
            index.extend(
                first.offset,
                first.first_seq,
                [record for run in runs for record in run.records],
                [length for run in runs for length in run.lengths],
                [size for run in runs for size in run.sizes],
            )
        except BaseException:
            self._forget_index()  # some of it may be in there
            raise

    @property
    def fd(self) -> int:
        """The descriptor of the file, which is opened for that if need be."""
        if self._fd is None:
            self._open()
        assert self._fd is not None
        return self._fd

    # Writing

    def write(
        self,
        first_seq: int,
        records: Sequence[Record],
        encoded: Sequence[bytes],
        *,
        told: int | None = None,
        sync: bool,
    ) -> None:
        """Write the lines of these records with one write, and sync them.

        `told` is the last position that was acknowledged, where that is not the one before them.
        They count from the next `accept` on. Raises `OSError`; then the file ends where it did
        before, as soon as that can be had.
        """
        lines = make_lines(first_seq, self._tail_seq, encoded, told)
        data = b"".join(lines)
        # All that is needed later, as there may be no memory then.
        run = Run(self.end, first_seq, records, list(map(len, lines)), list(map(len, encoded)))
        before = self.end, self.last_seq, self._tail_seq
        written = _Written(run, self.end + len(data), first_seq + len(records) - 1, before)
        self.keep()
        self._require_trust()
        self._check(self._size)
        try:
            self._cut()
            self._clean, self._size = False, None
            self._write_all(self.fd, data, self.end)
            if sync:
                self._sync(written.end)
            self._check_written(written.end)
        except BaseException:
            self.discard()
            raise
        self._written, self._size = written, written.end

    def keep(self) -> None:
        """Let nothing of what counts by now be discarded any more: another append begins."""
        self._accepted = None

    def accept(self) -> None:
        """Let what was written last count. It does not fail: somebody is told of it now."""
        if self._written is None:
            return
        self._accepted = written = self._written
        self._written = None
        follows = written.run.first_seq == self.last_seq + 1
        self.end, self.last_seq = written.end, written.last_seq
        self._tail_seq = written.last_seq
        self._clean, self._found_opening, self._last_byte = True, None, b"\n"
        try:
            self._note(written.run, follows=follows)
        except MemoryError:
            self._forget_index()

    def _note(self, run: Run, *, follows: bool) -> None:
        """Take note of what was written, for the index."""
        if self._index is None:
            return  # the file is read for it
        if not follows and self._unindexed:
            self._take_in(self._index)  # a run without a gap ends here
        # It is looked into far less often than written to, and taking in many lines at once
        # costs a tenth of taking them in one by one.
        self._unindexed.append(run)
        self._unindexed_records += len(run.records)
        if self._unindexed_records >= _UNINDEXED:
            self._take_in(self._index)

    def _forget_index(self) -> None:
        """Let the file be read anew for the index, when that is needed next."""
        self._index = None
        self._unindexed.clear()
        self._unindexed_records = 0

    def discard(self, *, cut: bool = True) -> None:
        """Let what was written last not count, or no more; and `cut` it off, if that works.

        Nobody must have been told that it does.
        """
        if self._accepted is not None:
            self.end, self.last_seq, self._tail_seq = self._accepted.before
            self._accepted = None
            self._forget_index()
        elif self._size is not None and self._written is None:
            return  # and nothing was
        # The next write goes through a new descriptor.
        self._size = None
        self._written, self._trusted, self._clean = None, False, False
        self._left_behind = True
        self._synced_end = min(self._synced_end, self.end)
        self._acknowledged = min(self._acknowledged, self.end)
        if not cut:
            return
        try:
            self._cut()
        except OSError:
            # Once more, through another descriptor: what stays there is back if the process ends.
            with contextlib.suppress(OSError):
                self.tidy()

    def sync(self) -> None:
        """Return when everything is on the device."""
        self._require_trust()
        self._sync(self.end)
        self.check_name()

    def tidy(self) -> None:
        """Cut off what is of no account, before another file follows."""
        self._require_trust()
        self._cut()

    def leave(self) -> None:
        """Cut off what a failed write has left, if that could not be done at once; for the end."""
        if self._fd is not None and self._left_behind:
            with contextlib.suppress(OSError):
                self.tidy()

    def settle(self) -> None:
        """Return when everything is on the device, where it may be already."""
        if not self._trusted or not self._was_synced or self._synced_end < self.end:
            self.sync()

    def sync_in_background(self) -> None:
        """Sync what was not yet, from a thread of its own, while others use the file."""
        end = self.end
        with self._fd_lock:
            if self._fd is None or end <= self._synced_end or self._sync_failed:
                return
            fd = os.dup(self._fd)
        try:
            self.disk.sync(fd)
            self._synced_end = max(end, self._synced_end)
        except OSError as error:
            logger.warning("%s: what was not yet on the device may not be: %s", self.path, error)
            self._sync_failed, self._trusted = True, False
        finally:
            os.close(fd)

    def _sync(self, end: int) -> None:
        try:
            self.disk.sync(self.fd)
        except OSError:
            self._sync_failed, self._trusted = True, False
            raise
        self._synced_end, self._was_synced = end, True

    def _cut(self) -> None:
        """Let the file end where the last acknowledged line does, also after a crash."""
        if not self._clean:
            if self.disk.stat(self.fd).st_size < self.end:
                raise self._changed()
            self.disk.truncate(self.fd, self.end)
            # Not before this are its positions given again: or a crash could bring it back, beside
            # or in place of what was written since.
            self.disk.sync(self.fd)
            self._clean, self._left_behind, self._size = True, False, self.end

    # Whether it is still what was opened

    def _check(self, size: int | None) -> None:
        """Raise `StoreMoved` or `StoreChanged` if somebody else has done something to the file.

        It should have this `size`, or, where that is not known, at least what was acknowledged.
        """
        found = self._check_name().st_size
        if found != size and (size is not None or found < self.end):
            raise self._changed()

    def _check_written(self, size: int) -> None:
        """Raise what `_check` raises, also if the file was cut off just before it was written."""
        self._check(size)
        # Then it has the right size, and a hole before what was written.
        if self.end and self.disk.read(self.fd, 1, self.end - 1) != self._last_byte:
            raise self._changed()

    def check_name(self) -> None:
        """Raise `StoreMoved` if the name leads to another file by now, or to none."""
        if self._fd is not None and not self.read_only:
            self._check_name()

    def _check_name(self) -> os.stat_result:
        if self._fd is None:
            self._open()
        try:
            # As text, which takes a quarter less than a path: this happens twice a commit.
            about = self.disk.stat(self._place)
        except (FileNotFoundError, NotADirectoryError):
            raise self._moved("renamed or removed") from None
        if about.st_ino != self._identity[1] or about.st_dev != self._identity[0]:
            raise self._moved("replaced by another")
        return about

    def _check_links(self) -> None:
        links = self.disk.stat(self.fd).st_nlink
        if links > 1:
            raise StoreError(
                f"{self.name} has {links} names (hard links), and to write it anew would leave "
                "the others with what is old: remove them, or copy them"
            )

    def _moved(self, how: str) -> StoreMoved:
        return StoreMoved(
            f"{self.name} was {how} while it was open, and nothing more is stored in it: "
            "put it back, or open the store anew"
        )

    def _changed(self) -> StoreChanged:
        return StoreChanged(
            f"{self.name} was cut off or written to by another program while it was open: "
            "scan it, recover it, or open the store anew"
        )

    def _require_trust(self) -> None:
        """Open the file anew if a write through this descriptor has failed."""
        if not self._trusted:
            self._open_anew()

    def _open_anew(self) -> None:
        try:
            fd = self.disk.open(self.real, os.O_RDWR)
        except FileNotFoundError:
            raise self._moved("renamed or removed") from None
        if identity(self.disk.stat(fd)) != self._identity:
            self.disk.close(fd)
            raise self._moved("replaced by another")
        with self._fd_lock:
            old, self._fd = self._fd, fd
        if old is not None and old != self._lock_fd:
            with contextlib.suppress(OSError):
                self.disk.close(old)
        if self._sync_failed:
            # After a failed sync the kernel may take pages for clean that are not on the device
            # (PostgreSQL's fsync story), so syncing once more proves nothing. What the cache still
            # has is written again, and then synced.
            position = self._synced_end
            while position < self.end:
                data = self.disk.read(fd, min(_WRITE_CHUNK, self.end - position), position)
                self._write_all(fd, data, position)
                position += len(data)
            self.disk.sync(fd)
            self._synced_end, self._sync_failed = self.end, False
        if not self._named:
            self.disk.sync_directory(self.parent)
            self._named = True
        self._trusted = True

    def _write_all(self, fd: int, data: bytes, offset: int) -> None:
        written = self.disk.write(fd, data, offset)
        while written < len(data):  # the system says how much it took, and that need not be all
            rest = memoryview(data)[written:]
            written += self.disk.write(fd, rest, offset + written)

    # Reading

    def records(self, block: int, *, newest: bool = False) -> Iterator[tuple[Record, int]]:
        """Yield the records in a block that can be read, each with the bytes of its line.

        The oldest come first, or the newest. They are decoded as they are taken: more and more at
        once, as whoever takes ten may well take them all.
        """
        data, start = self.read_block(block)
        lines = data.split(b"\n")
        last = lines.pop()
        first_seq, step = self.index.first_seq(block), _DECODED
        rest = range(0) if last else range(len(lines))  # a changed newline may end the block
        while rest:
            part, others = (rest[-step:], rest[:-step]) if newest else (rest[:step], rest[step:])
            some = lines[part.start : part.stop]
            run = decode_run(some, first_seq + part.start)
            if run is None:
                break
            found = list(zip(run, [len(line) + 1 for line in some], strict=True))
            yield from reversed(found) if newest else found
            step, rest = step * 4, others
        if rest or last:
            # Something is special about one of them: they are looked at one by one.
            special = b"".join(line + b"\n" for line in lines[rest.start : rest.stop])
            found = [
                (record, line.length)
                for line in parse_lines(data if last else special, start)
                if isinstance(line, Line)
                for record in [decode(line)[0]]
                if record is not None
            ]
            yield from reversed(found) if newest else found

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

    def parsed(self) -> Iterator[Line | BadLine]:
        """Yield everything in the file, good and bad, up to its end."""
        for data, offset in self._chunks(0):
            yield from parse_lines(data, offset, is_end=not data.endswith(b"\n"))

    def _chunks(self, start: int) -> Iterator[tuple[bytes, int]]:
        """Yield what follows `start`, cut where lines end, and where each piece begins."""
        begun: list[bytes] = []
        offset = position = start
        while chunk := self.disk.read(self.fd, _CHUNK, position):
            cut = chunk.rfind(b"\n") + 1
            if cut:
                begun.append(chunk[:cut])
                yield b"".join(begun), offset
                begun, offset = [], position + cut
            begun.append(chunk[cut:])
            position += len(chunk)
            if self.read_only and begun[-1]:
                self._await_end_of_line(position)
        if position > offset:
            yield b"".join(begun), offset

    def _await_end_of_line(self, position: int) -> None:
        """Give a writer that is in the middle of a line the time to end it."""
        give_up_at = monotonic() + _PATIENCE
        while self.disk.stat(self.fd).st_size <= position and monotonic() < give_up_at:
            sleep(_PATIENCE / 20)

    # Checking

    def walk(
        self, found: ScanResult, advance: Advance | None = None, start: int = 0
    ) -> Iterator[Part]:
        """Yield everything that follows `start`, where a line begins; see `walk`."""
        end = self._acknowledged_end()
        return walk(self._chunks(start), found, self.location, self.belongs, advance, end)

    def _acknowledged_end(self) -> int:
        """Return up to where everything was acknowledged, whatever the lines there look like."""
        if self.through is not None:
            return maxsize  # all of it was on the device before another file followed
        end = 0 if self.closed is None else self.closed.end
        return end if self.read_only else max(end, self.end, self._acknowledged)

    def _check_closed(self) -> None:
        """Forget what a clean close vouches for, if the file is another or was cut off since."""
        stat, closed = self.disk.stat(self.fd), self.closed
        if closed is not None and (closed.inode != stat.st_ino or closed.end > stat.st_size):
            self.closed = None
            if closed.inode == stat.st_ino and not self.read_only:
                logger.info(
                    "%s had %s bytes when it was closed, and has %s: somebody has cut it off",
                    self.location,
                    closed.end,
                    stat.st_size,
                )

    def vouch(self) -> Closed | None:
        """Return up to where everything is acknowledged and on the device; `None` if it is not."""
        is_synced = self._trusted and self._was_synced and self._synced_end >= self.end
        if self._fd is None or self.read_only or self._sync_failed or not is_synced:
            return None
        return Closed(self._identity[1], self.end)

    def belongs(self, seq: int) -> bool:
        """Return whether this is the file for a record."""
        return self.base < seq and (self.through is None or seq <= self.through)

    def scan(self, found: ScanResult, advance: Advance | None = None) -> None:
        """Check every line, going on from what was found before this file; change nothing."""
        for _ in self.walk(found, advance):
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
        """Return what opening the file has found, once, if the file is still the same."""
        known, self._found_opening = self._found_opening, None
        return known[1] if known is not None and known[0] == self._signature() else None

    # For those who rewrite it

    @property
    def parent(self) -> Path:
        """The directory that the file is in."""
        return self.real.parent

    @property
    def temporary(self) -> Path:
        """The name of what is to take the file's place, until it does."""
        return self.real.with_name(self.real.name + ".new")

    def begin_anew(self) -> int:
        """Make the file that is to take this one's place, with its owner and mode."""
        self.check_name()
        self._check_links()
        self.disk.remove(self.temporary)
        return self.disk.create(self.temporary, self.disk.stat(self.fd), copy=True)

    def read_block(self, number: int) -> tuple[bytes, int]:
        """Return what is in a block, and where in the file it begins."""
        start, end = self.index.extent(number, self.end)
        return self.disk.read(self.fd, end - start, start), start

    def cut(self) -> None:
        """Let the file on the device end where the last acknowledged line does."""
        self._clean = self.disk.stat(self.fd).st_size == self.end
        self._cut()

    def take_over(self, fd: int, index: SparseIndex, end: int) -> None:
        """Go on with the file that is open as `fd`, synced, under the name `temporary`.

        Nothing is written to it until `sync_name` was successful: a crash of the machine could
        bring back the old one.
        """
        is_locked = self._lock_fd is not None
        self.check_name()
        self._check_links()
        new = identity(self.disk.stat(fd))
        if is_locked:
            lock_file(self.disk, fd, self.name)
        self.disk.replace(self.temporary, self.real)
        self._size, self._last_byte = end, b"\n"
        with contextlib.suppress(OSError):
            self.close()
        self._fd, self._lock_fd, self._identity = fd, fd if is_locked else None, new
        self._index, self.end = index, end
        self.closed, self._acknowledged = None, 0
        self._unindexed, self._unindexed_records = [], 0
        self._clean, self._sync_failed, self._synced_end = True, False, end
        self._tail_seq, self._found_opening, self.damaged = self.last_seq, None, False
        self._trusted = self._named = False

    def sync_name(self) -> None:
        """Return when the name of the file is on the device."""
        self.disk.sync_directory(self.parent)
        self._trusted = self._named = self._was_synced = True
