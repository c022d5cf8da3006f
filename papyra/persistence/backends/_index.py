"""Where in a file to look: one entry for each block of lines, not for each line."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from papyra.persistence.records import KINDS, Kind

__all__ = ("SparseIndex",)

#: Bytes of a block, to begin with.
BLOCK_BYTES = 8 * 1024
#: When there are as many blocks as this, each two become one. A block takes 80 bytes here, so an
#: index never takes more than 1.3 MB, whatever the size of its file.
MAX_BLOCKS = 16 * 1024


class SparseIndex:
    """What the blocks of one file hold: positions, times, and how much of each kind.

    A line belongs to the block that begins at or before it.
    """

    def __init__(self) -> None:
        self._block_bytes = BLOCK_BYTES
        self._offsets = array("Q")
        self._first_seqs = array("Q")
        self._oldest = array("d")
        self._newest = array("d")
        # What there is before each block, of each kind: records, and their encoded bytes.
        self._counts = {kind: array("Q") for kind in KINDS}
        self._sizes = {kind: array("Q") for kind in KINDS}
        self.counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.sizes: dict[Kind, int] = dict.fromkeys(KINDS, 0)

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, offset: int, seq: int, kind: Kind, time: float, size: int) -> None:
        """Take in the next line: where it begins, and what its record is."""
        if not self._offsets or offset - self._offsets[-1] >= self._block_bytes:
            if len(self._offsets) >= MAX_BLOCKS:
                self._merge()
            self._offsets.append(offset)
            self._first_seqs.append(seq)
            self._oldest.append(time)
            self._newest.append(time)
            for each in KINDS:
                self._counts[each].append(self.counts[each])
                self._sizes[each].append(self.sizes[each])
        elif time < self._oldest[-1]:
            self._oldest[-1] = time
        elif time > self._newest[-1]:
            self._newest[-1] = time
        self.counts[kind] += 1
        self.sizes[kind] += size

    def first_seq(self, block: int) -> int:
        """Return the position of a block's first record."""
        return self._first_seqs[block]

    def extent(self, block: int, end: int) -> tuple[int, int]:
        """Return where a block begins and ends, in a file whose lines end at `end`."""
        stop = self._offsets[block + 1] if block + 1 < len(self._offsets) else end
        return self._offsets[block], stop

    def blocks(
        self, kind: Kind, after: int, before: int | None, since: float, until: float, newest: bool
    ) -> Iterator[int]:
        """Yield the blocks in which there may be records of a kind, within these limits."""
        start = max(0, bisect_right(self._first_seqs, after + 1) - 1)
        stop = len(self) if before is None else bisect_left(self._first_seqs, before)
        blocks = range(start, stop)
        for block in reversed(blocks) if newest else blocks:
            if (
                self._newest[block] >= since
                and self._oldest[block] <= until
                and self._count(kind, block)
            ):
                yield block

    def block_of_record(self, kind: Kind, number: int) -> tuple[int, int]:
        """Return the block of a kind's record `number`, from 0, and how many are before it there.

        The number must be less than the count.
        """
        block = bisect_right(self._counts[kind], number) - 1
        return block, number - self._counts[kind][block]

    def block_of_byte(self, kind: Kind, position: int) -> tuple[int, int]:
        """Return the block in which a kind's encoded byte is, and its position there."""
        block = bisect_right(self._sizes[kind], position) - 1
        return block, position - self._sizes[kind][block]

    def _count(self, kind: Kind, block: int) -> int:
        counts = self._counts[kind]
        return (counts[block + 1] if block + 1 < len(counts) else self.counts[kind]) - counts[block]

    def _merge(self) -> None:
        self._block_bytes *= 2
        self._oldest = array("d", map(min, self._oldest[::2], self._oldest[1::2]))
        self._newest = array("d", map(max, self._newest[::2], self._newest[1::2]))
        for columns in (self._counts, self._sizes):
            for kind in KINDS:
                columns[kind] = columns[kind][::2]
        self._offsets, self._first_seqs = self._offsets[::2], self._first_seqs[::2]
