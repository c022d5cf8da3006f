"""Where in a file to look: one entry for each block of lines, not for each line."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, Literal, NamedTuple, TypeAlias

from papyra.persistence.records import KINDS, Kind, Record, kind_of

#: Bytes of a block, to begin with.
BLOCK_BYTES = 8 * 1024
#: When there are as many blocks as this, each two become one. A block takes 112 bytes here, so an
#: index never takes more than 1.8 MB, whatever the size of its file.
MAX_BLOCKS = 16 * 1024
#: No index takes more.
MAX_INDEX_BYTES = 112 * MAX_BLOCKS

#: The time of what has not happened.
_NEVER = float("inf")

#: The content of a line: a record, or anything else that is kept or reported. What is part of a
#: history is counted with its kind, and once more as that.
Content: TypeAlias = Kind | Literal["other", "history"]
_CONTENTS: tuple[Content, ...] = (*KINDS, "other", "history")


class Block(NamedTuple):
    """The contents of one block."""

    #: where it begins; bytes
    offset: int
    first_seq: int
    #: Unix times in seconds
    oldest: float
    newest: float
    #: lines of each content that is there
    counts: dict[Content, int]
    #: encoded bytes of the records of each kind that is there
    sizes: dict[Content, int]


class Extent(NamedTuple):
    """Between which numbers everything in a file must be."""

    #: the `seq` before its first
    base: int
    last_seq: int
    #: bytes
    size: int


class Totals:
    """The totals of a file: lines, bytes and times."""

    def __init__(self) -> None:
        #: lines of each content
        self.counts: dict[Content, int] = dict.fromkeys(_CONTENTS, 0)
        #: encoded bytes of the records of each kind
        self.sizes: dict[Content, int] = dict.fromkeys(_CONTENTS, 0)
        #: the time of the oldest record, and of the newest, in Unix seconds
        self.oldest, self.newest = _NEVER, -_NEVER

    @property
    def records(self) -> int:
        """The number of records."""
        return sum(self.counts[kind] for kind in KINDS)


class SparseIndex(Totals):
    """The blocks of one file: their positions, their times, and how much of each kind.

    A line belongs to the block that begins at or before it.
    """

    def __init__(self) -> None:
        super().__init__()
        #: bytes of a block
        self.block_bytes = BLOCK_BYTES
        self._offsets = array("Q")
        self._first_seqs = array("Q")
        self._oldest = array("d")
        self._newest = array("d")
        # What there is before each block, of each content: lines, and bytes of encoded records.
        self._counts = {content: array("Q") for content in _CONTENTS}
        self._sizes = {content: array("Q") for content in _CONTENTS}

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, offset: int, seq: int, record: Record, size: int) -> None:
        """Take in the next line: where it begins, and what its record is."""
        self._reach(offset, seq)
        self._take(kind_of(record), 1, size, record.timestamp, record.timestamp)
        if record.revision is not None:
            self._take("history", 1, 0, record.timestamp, record.timestamp)

    def add_other(self, offset: int, seq: int) -> None:
        """Take in a line that holds no record that can be read."""
        self._reach(offset, seq)
        self.counts["other"] += 1

    def extend(
        self,
        offset: int,
        first_seq: int,
        records: Sequence[Record],
        lengths: Sequence[int],
        sizes: Sequence[int],
    ) -> None:
        """Take in a run of lines, numbered without a gap.

        `lengths` are the bytes of the lines, `sizes` those of their records.
        """
        starts = list(accumulate(lengths, initial=offset))
        position, count = 0, len(records)
        while position < count:
            self._reach(starts[position], first_seq + position)
            limit = self._offsets[-1] + self.block_bytes
            stop = bisect_left(starts, limit, position + 1, count)
            part, sized = records[position:stop], sizes[position:stop]
            if len(set(map(type, part))) == 1:
                times = [record.timestamp for record in part]
                self._take(kind_of(part[0]), len(part), sum(sized), min(times), max(times))
            else:
                for record, size in zip(part, sized, strict=True):
                    self._take(kind_of(record), 1, size, record.timestamp, record.timestamp)
            if steps := [record.revision is not None for record in part].count(True):
                # Of their bytes nobody asks.
                self._take("history", steps, 0, self._oldest[-1], self._newest[-1])
            position = stop

    def add_block(self, block: Block) -> None:
        """Take in a whole block of another file's index, moved to where its lines are now."""
        if not self._offsets or block.offset - self._offsets[-1] >= self.block_bytes // 2:
            self._begin(block.offset, block.first_seq)
        for content, count in block.counts.items():
            size = block.sizes.get(content, 0)
            self._take(content, count, size, block.oldest, block.newest)

    def block(self, number: int) -> Block:
        """Return what block `number` holds."""
        following = number + 1
        counts, sizes = {}, {}
        for content in _CONTENTS:
            columns = self._counts[content], self._sizes[content]
            totals = self.counts[content], self.sizes[content]
            if following < len(self):
                totals = columns[0][following], columns[1][following]
            if count := totals[0] - columns[0][number]:
                counts[content] = count
                sizes[content] = totals[1] - columns[1][number]
        return Block(
            self._offsets[number],
            self._first_seqs[number],
            self._oldest[number],
            self._newest[number],
            counts,
            sizes,
        )

    def dump(self) -> bytes:
        """Return the blocks as bytes; `load` reads them, with the totals, on the same machine."""
        return b"".join(column.tobytes() for column in self._columns())

    @classmethod
    def load(cls, data: bytes, totals: Totals, block_bytes: int, extent: Extent) -> SparseIndex:
        """Return the index that `dump` wrote, of a file of that extent.

        Raises `ValueError` if that can't be.
        """
        index = cls()
        index.block_bytes = block_bytes
        index.counts, index.sizes = dict(totals.counts), dict(totals.sizes)
        index.oldest, index.newest = totals.oldest, totals.newest
        columns = list(index._columns())
        length, rest = divmod(len(data), len(columns))
        if rest:
            raise ValueError("an index is columns of the same length")
        for number, column in enumerate(columns):
            column.frombytes(data[number * length : (number + 1) * length])
        index._check(extent)
        return index

    def _check(self, extent: Extent) -> None:
        """Raise `ValueError` if a number can't be, whatever the checksum says."""
        if type(self.block_bytes) is not int or not BLOCK_BYTES <= self.block_bytes < 2**63:
            raise ValueError(f"a block has {self.block_bytes!r} bytes")
        seqs = [extent.base + 1, *self._first_seqs, extent.last_seq + 1]
        offsets = [*self._offsets, extent.size]
        rising = [(0, *self._offsets[:1]), offsets, seqs]
        for content in _CONTENTS:
            rising.append([0, *self._counts[content], self.counts[content]])
            rising.append([0, *self._sizes[content], self.sizes[content]])
            if self.counts[content] > extent.size or self.sizes[content] > extent.size:
                raise ValueError(f"there is more of {content} than fits into the file")
        if any(sorted(numbers) != list(numbers) for numbers in rising):
            raise ValueError("the numbers of an index don't rise")
        # Before the first block there may be what a compaction has left there: a tombstone.
        if bool(self._offsets) != any(self.counts.values()):
            raise ValueError("there are lines without a block, or the other way round")

    def _columns(self) -> Iterator[array[Any]]:
        yield from (self._offsets, self._first_seqs, self._oldest, self._newest)
        yield from chain(self._counts.values(), self._sizes.values())

    def first_seq(self, block: int) -> int:
        """Return the position of a block's first record."""
        return self._first_seqs[block]

    def extent(self, block: int, end: int) -> tuple[int, int]:
        """Return where a block begins and ends, in a file whose lines end at `end`."""
        stop = self._offsets[block + 1] if block + 1 < len(self._offsets) else end
        return self._offsets[block], stop

    def between(self, after: int, before: int | None, end: int) -> tuple[int, int]:
        """Return from where to where the lines within these limits are, in a file up to `end`."""
        if not self._offsets:
            return 0, end
        first = max(0, bisect_right(self._first_seqs, after + 1) - 1)
        last = len(self) if before is None else bisect_left(self._first_seqs, before)
        return self._offsets[first], self._offsets[last] if last < len(self) else end

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

    def block_at(self, kind: Kind, position: int, *, in_bytes: bool) -> tuple[int, int]:
        """Return the block of a kind's record, or byte, and how many are before it there.

        `position` is from 0, and less than there are.
        """
        column = (self._sizes if in_bytes else self._counts)[kind]
        block = bisect_right(column, position) - 1
        return block, position - column[block]

    def _count(self, kind: Kind, block: int) -> int:
        counts = self._counts[kind]
        return (counts[block + 1] if block + 1 < len(counts) else self.counts[kind]) - counts[block]

    def _reach(self, offset: int, seq: int) -> None:
        """See to it that a line that begins at `offset` belongs to the last block."""
        if not self._offsets or offset - self._offsets[-1] >= self.block_bytes:
            self._begin(offset, seq)

    def _begin(self, offset: int, seq: int) -> None:
        if len(self._offsets) >= MAX_BLOCKS:
            self._merge()
        self._offsets.append(offset)
        self._first_seqs.append(seq)
        self._oldest.append(_NEVER)
        self._newest.append(-_NEVER)
        for content in _CONTENTS:
            self._counts[content].append(self.counts[content])
            self._sizes[content].append(self.sizes[content])

    def _take(self, content: Content, count: int, size: int, oldest: float, newest: float) -> None:
        self.counts[content] += count
        self.sizes[content] += size
        if oldest < self._oldest[-1]:
            self._oldest[-1] = oldest
            self.oldest = min(self.oldest, oldest)
        if newest > self._newest[-1]:
            self._newest[-1] = newest
            self.newest = max(self.newest, newest)

    def _merge(self) -> None:
        self.block_bytes *= 2
        self._oldest = array("d", map(min, self._oldest[::2], self._oldest[1::2]))
        self._newest = array("d", map(max, self._newest[::2], self._newest[1::2]))
        for columns in (self._counts, self._sizes):
            for content in _CONTENTS:
                columns[content] = columns[content][::2]
        self._offsets, self._first_seqs = self._offsets[::2], self._first_seqs[::2]
