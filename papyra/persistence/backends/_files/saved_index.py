"""The index of a sealed segment, kept beside it.

It is a cache: whatever is wrong with it, the segment itself says what is in it. So nothing is
synced here, and a file that does not match is as good as none.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from sys import byteorder
from zlib import crc32

import msgspec

from papyra.persistence.backends._files.actor_index import ENTRY_BYTES, ActorIndex
from papyra.persistence.backends._files.block_index import (
    MAX_INDEX_BYTES,
    Extent,
    SparseIndex,
    Totals,
)
from papyra.persistence.backends._files.disk import Disk, read_file, write_whole

#: Bytes of the line at the beginning, which says what the file holds, and is followed by the index.
_HEAD_BYTES = 1024


class _Head(msgspec.Struct):
    """The first line, behind its checksum."""

    #: the segment's
    size: int
    modified_ns: int
    counts: dict[str, int]
    sizes: dict[str, int]
    oldest: float | None
    newest: float | None
    block_bytes: int
    index_bytes: int
    index_crc: int
    #: of the lines of histories, behind the index; `None` if they are not there
    history_bytes: int | None = None
    history_crc: int = 0
    version: int = 1
    order: str = byteorder


@dataclass
class SavedIndex:
    """The totals of a sealed segment, and where its index is."""

    path: Path
    #: the segment's bytes, when this was written
    size: int
    #: when the segment was changed last, in nanoseconds
    modified_ns: int
    totals: Totals
    _head: _Head

    def matches(self, stat: os.stat_result) -> bool:
        """Return whether it is about the segment as it is now."""
        return (self.size, self.modified_ns) == (stat.st_size, stat.st_mtime_ns)

    def index(self, disk: Disk, base: int, last_seq: int) -> SparseIndex | None:
        """Return the index of records after `base`, or `None` if it can't be read."""
        head = self._head
        with contextlib.suppress(OSError, ValueError, OverflowError):
            data = read_file(disk, self.path, head.index_bytes, _HEAD_BYTES)
            if crc32(data) == head.index_crc:
                extent = Extent(base, last_seq, self.size)
                return SparseIndex.load(data, self.totals, head.block_bytes, extent)
        return None

    def fault(
        self, disk: Disk, found: SparseIndex, histories: ActorIndex, extent: Extent
    ) -> str | None:
        """Return what is wrong with it, by what was found in the segment; `None` for nothing."""
        if self.index(disk, extent.base, extent.last_seq) is None:
            return "is damaged"
        totals, read = self.totals, (found.oldest, found.newest)
        if (totals.counts, totals.sizes) != (found.counts, found.sizes) or (
            (totals.oldest, totals.newest) != read
        ):
            return "counts other records than there are"
        if self._head.history_bytes is None:
            return None  # it may leave that to whoever asks for a history
        known = self.histories(disk)
        if known is None:
            return "is damaged where it says what histories there are"
        return None if known.dump() == histories.dump() else "leads to other histories"

    def histories(self, disk: Disk) -> ActorIndex | None:
        """Return where the lines of histories are, or `None` if that is not known."""
        head = self._head
        length = head.history_bytes
        # A line takes more bytes than its entry, so no right number is greater.
        if length is None or not 0 <= length <= self.size or length % ENTRY_BYTES:
            return None
        with contextlib.suppress(OSError, ValueError, OverflowError):
            data = read_file(disk, self.path, length, _HEAD_BYTES + head.index_bytes)
            if len(data) == length and crc32(data) == head.history_crc:
                return ActorIndex.load(data)
        return None


def write_saved_index(
    disk: Disk,
    path: Path,
    index: SparseIndex,
    histories: ActorIndex | None,
    segment: os.stat_result,
) -> None:
    """Save the index of a segment, and its lines of histories if known. Raises `OSError`."""
    data = index.dump()
    lines = b"" if histories is None else histories.dump()
    empty = index.oldest > index.newest
    head = msgspec.json.encode(
        _Head(
            segment.st_size,
            segment.st_mtime_ns,
            {str(content): count for content, count in index.counts.items()},
            {str(content): size for content, size in index.sizes.items()},
            None if empty else index.oldest,
            None if empty else index.newest,
            index.block_bytes,
            len(data),
            crc32(data),
            None if histories is None else len(lines),
            crc32(lines),
        )
    )
    line = (b"%08x %b" % (crc32(head), head)).ljust(_HEAD_BYTES - 1) + b"\n"
    # Whoever looks meanwhile, or after a crash, finds the whole of it, or the one before.
    write_whole(disk, path, line + data + lines, segment, syncs=False)


def read_saved_index(disk: Disk, path: Path) -> SavedIndex | None:
    """Read the totals of a segment, and not its index yet; `None` if nothing is saved."""
    totals, head = Totals(), _read_head(disk, path)
    if head is None or not head.counts.keys() == head.sizes.keys() == totals.counts.keys():
        return None
    totals.counts.update({content: head.counts[content] for content in totals.counts})
    totals.sizes.update({content: head.sizes[content] for content in totals.sizes})
    numbers = (*totals.counts.values(), *totals.sizes.values())
    if not all(0 <= number <= head.size for number in numbers):
        return None
    if not 0 <= head.index_bytes <= MAX_INDEX_BYTES:
        return None
    if head.oldest is not None and head.newest is not None:
        totals.oldest, totals.newest = head.oldest, head.newest
    return SavedIndex(path, head.size, head.modified_ns, totals, head)


def is_without_histories(disk: Disk, path: Path) -> bool:
    """Return whether an index is one of before there were histories, which is as good as none."""
    head, contents = _read_head(disk, path), Totals().counts.keys() - {"history"}
    return head is not None and head.counts.keys() == head.sizes.keys() == contents


def _read_head(disk: Disk, path: Path) -> _Head | None:
    """Read the first line; `None` if there is none, or not of this version and machine."""
    try:
        line = read_file(disk, path, _HEAD_BYTES)
        checksum, _, rest = line.rstrip().partition(b" ")
        if checksum != b"%08x" % crc32(rest):
            return None
        head = msgspec.json.decode(rest, type=_Head)
    except (OSError, msgspec.DecodeError, ValueError, RecursionError):
        return None
    return head if (head.version, head.order) == (1, byteorder) else None
