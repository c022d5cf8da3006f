"""The appender of one file: it writes lines behind the last that was acknowledged.

Here a promise is kept: **acknowledged means synced**, and what was refused is never seen again. An
append is three steps. `write` returns when the lines are in the file that has the store's name,
and, with `sync`, on the device; they are in doubt until then, and if it raises, they are truncated.
`commit` acknowledges them: it is called once the commit token is taken, and can't fail.
`roll_back` takes back a write that was not acknowledged after all.

Whatever follows the acknowledged end counts for nothing. It is truncated, and the shorter file
synced, before the next write: otherwise a crash could bring refused lines back, beside others that
were given the same positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from papyra.exceptions import StoreChanged
from papyra.persistence.backends._files.disk import write_all
from papyra.persistence.backends._files.durability import Durability
from papyra.persistence.backends._files.file_handle import FileHandle
from papyra.persistence.backends._files.line_format import make_lines
from papyra.persistence.backends._files.scan import Run
from papyra.persistence.records import Record


@dataclass(slots=True)
class Tail:
    """The acknowledged end of a file, which whoever reads it finds and whoever appends moves."""

    #: where the last acknowledged line ends; bytes
    end: int
    #: the greatest `seq` that was given
    last_seq: int
    #: the `seq` of the last line that can be read
    tail_seq: int
    #: where it ended for a writer that has read the file anew since; bytes
    former_end: int = 0


class _Write(NamedTuple):
    """A write, the tail once it is committed, and the tail before."""

    run: Run
    end: int
    last_seq: int
    before: tuple[int, int, int]


class Appender:
    """Writes to one file, and knows what is in doubt there."""

    def __init__(self, handle: FileHandle, tail: Tail) -> None:
        self.tail = tail
        self.durability = Durability(handle)
        self._handle = handle
        self._disk = handle.disk
        #: bytes of the file, if nobody else writes to it; `None` after a write that failed
        self._size: int | None = None
        #: the last acknowledged byte
        self._last_byte = b"\n"
        #: the write that is not committed yet
        self._written: _Write | None = None
        #: the tail before the last committed write, until another append begins
        self._committed: tuple[int, int, int] | None = None
        #: whether the file ends where the tail does
        self._is_truncated = True
        #: whether it does not since a write has failed, and not as it was found so
        self._has_failed_write = False

    def start(self) -> None:
        """Go on from the tail that was found in the file."""
        end = self.tail.end
        self._size = self._handle.stat().st_size
        self._is_truncated = end == self._size
        self._last_byte = self._disk.read(self._handle.fd, 1, end - 1) if end else b""

    # Appending

    def begin(self) -> None:
        """Begin an append: no earlier one can be rolled back any more."""
        self._committed = None

    def write(
        self,
        first_seq: int,
        records: Sequence[Record],
        encoded: Sequence[bytes],
        *,
        acknowledged: int | None = None,
        sync: bool,
    ) -> None:
        """Write the lines of these records with one write, and sync them.

        `acknowledged` is the last position that was, where that is not the one before them. Raises
        `OSError`; then the file ends where it did before, as soon as that can be had.
        """
        tail = self.tail
        lines = make_lines(first_seq, tail.tail_seq, encoded, acknowledged)
        data = b"".join(lines)
        # All that is needed later, as there may be no memory then.
        lengths, sizes = list(map(len, lines)), list(map(len, encoded))
        run = Run(tail.end, first_seq, records, lengths, sizes, data)
        before = tail.end, tail.last_seq, tail.tail_seq
        written = _Write(run, tail.end + len(data), first_seq + len(records) - 1, before)
        self.begin()
        self.durability.restore_trust(tail.end)
        self._check_size(self._size)
        try:
            self._write_and_sync(data, written.end, sync=sync)
        except BaseException:
            self.roll_back()
            raise
        self._written, self._size = written, written.end

    def _write_and_sync(self, data: bytes, end: int, *, sync: bool) -> None:
        self._truncate()
        self._is_truncated, self._size = False, None
        write_all(self._disk, self._handle.fd, data, self.tail.end)
        if sync:
            self.durability.sync(end)
        self._check_written(end)

    def commit(self) -> Run | None:
        """Acknowledge the last write, and return it. It can't fail: somebody is told of it now."""
        written = self._written
        if written is None:
            return None
        self._committed, self._written = written.before, None
        tail = self.tail
        tail.end, tail.last_seq, tail.tail_seq = written.end, written.last_seq, written.last_seq
        self._is_truncated, self._last_byte = True, b"\n"
        return written.run

    @property
    def has_committed(self) -> bool:
        """Whether there is a committed write that can be rolled back."""
        return self._committed is not None

    def roll_back(self, *, truncate: bool = True) -> None:
        """Take the last write back, also if it is committed, and `truncate` it if that works.

        Nobody must have been told of it.
        """
        tail = self.tail
        if self._committed is not None:
            tail.end, tail.last_seq, tail.tail_seq = self._committed
            self._committed = None
        elif self._size is not None and self._written is None:
            return  # and nothing was written
        self._written = self._size = None
        self._is_truncated, self._has_failed_write = False, True
        self.durability.distrust(tail.end)
        tail.former_end = min(tail.former_end, tail.end)
        if truncate:
            self._try_to_truncate()

    def _try_to_truncate(self) -> None:
        try:
            self._truncate()
        except OSError:
            # Once more, through another descriptor: what stays there is back if the process ends.
            with contextlib.suppress(OSError):
                self.truncate_uncommitted()

    # Syncing

    def sync(self) -> None:
        """Return when everything is on the device."""
        self.durability.restore_trust(self.tail.end)
        self.durability.sync(self.tail.end)
        self._handle.check_name()

    def ensure_synced(self) -> None:
        """Return when everything is on the device, where it may be already."""
        if not self.durability.is_synced(self.tail.end):
            self.sync()

    def sync_in_background(self) -> None:
        """Sync what was not yet, from a thread of its own, while others use the file."""
        self.durability.sync_in_background(self.tail.end)

    # Truncating

    def truncate_uncommitted(self) -> None:
        """Truncate what follows the acknowledged end, before another file follows this one."""
        self.durability.restore_trust(self.tail.end)
        self._truncate()

    def truncate_failed_write(self) -> None:
        """Truncate what a failed write has left, if that could not be done then; for the end."""
        if self._has_failed_write and self._handle.is_open:
            with contextlib.suppress(OSError):
                self.truncate_uncommitted()

    def truncate_torn_tail(self) -> None:
        """Truncate what a crash has left behind the last acknowledged line."""
        self._is_truncated = self._handle.stat().st_size == self.tail.end
        self._truncate()

    def _truncate(self) -> None:
        if self._is_truncated:
            return
        if self._handle.stat().st_size < self.tail.end:
            raise self._changed()
        self._disk.truncate(self._handle.fd, self.tail.end)
        # Not before this are its positions given again: or a crash could bring it back, beside or
        # in place of what was written since.
        self._disk.sync(self._handle.fd)
        self._is_truncated, self._has_failed_write, self._size = True, False, self.tail.end

    # Whether others have written

    def _check_size(self, size: int | None) -> None:
        """Raise `StoreMoved` or `StoreChanged` if somebody else has done something to the file.

        It should have this `size`, or, where that is not known, at least what was acknowledged.
        """
        found = self._handle.stat_by_name().st_size
        if found != size and (size is not None or found < self.tail.end):
            raise self._changed()

    def _check_written(self, size: int) -> None:
        """Raise as `_check_size` does, also if the file was cut off just before it was written."""
        self._check_size(size)
        # Then it has the right size, and a hole before what was written.
        end = self.tail.end
        if end and self._disk.read(self._handle.fd, 1, end - 1) != self._last_byte:
            raise self._changed()

    def _changed(self) -> StoreChanged:
        return StoreChanged(
            f"{self._handle.name} was cut off or written to by another program while it was open: "
            "scan it, recover it, or open the store anew"
        )

    # Replacing the file

    def was_replaced(self, end: int) -> None:
        """Go on with a file of `end` bytes that has replaced the one before."""
        self.tail.end, self.tail.tail_seq, self.tail.former_end = end, self.tail.last_seq, 0
        self._size, self._last_byte, self._is_truncated = end, b"\n", True
        self.durability.was_replaced(end)
