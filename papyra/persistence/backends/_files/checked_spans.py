"""Spans of a file whose lines are known to be whole, so that reading them again takes less time.

Every line has a checksum of its own, and to look at one line after the other takes as long as all
else that is done to read a long history. Whoever has read a file through, or written to it, knows
that its lines are whole, and takes note of one checksum for many of them. Nothing of it is stored.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import NamedTuple
from zlib import crc32

__all__ = ("CheckedSpans", "Span")

#: Bytes of a span, but for the rest of its last line. One takes 32 bytes here.
SPAN_BYTES = 32 * 1024


class Span(NamedTuple):
    """Whole lines that follow one another."""

    #: where it begins, and where it ends; bytes
    start: int
    end: int
    lines: int
    checksum: int

    def is_right(self, data: bytes) -> bool:
        """Return whether these bytes, read from its place, are what was there."""
        return len(data) == self.end - self.start and crc32(data) == self.checksum


class CheckedSpans:
    """The spans of one file, in order; there may be other lines between two of them."""

    def __init__(self) -> None:
        self._starts, self._ends = array("Q"), array("Q")
        self._lines, self._checksums = array("Q"), array("Q")
        #: where the last one ends, and the bytes that it still takes
        self._end = self._room = 0

    def clear(self) -> None:
        """Forget all of them."""
        self._room = 0
        del self._starts[:], self._ends[:], self._lines[:], self._checksums[:]

    def add(self, offset: int, data: bytes) -> None:
        """Add whole lines of this version that begin at `offset`, behind all others."""
        if offset != self._end:
            self._room = 0
        position = 0
        while position < len(data):
            if not self._room:
                self._begin(offset + position)
            stop = len(data)
            if stop - position > self._room:
                stop = data.find(b"\n", position + self._room - 1) + 1
            self._extend(data[position:stop])
            position = stop

    def _begin(self, start: int) -> None:
        self._starts.append(start)
        self._ends.append(start)
        self._lines.append(0)
        self._checksums.append(0)
        self._end, self._room = start, SPAN_BYTES

    def _extend(self, lines: bytes) -> None:
        self._end += len(lines)
        self._room = max(self._room - len(lines), 0)
        self._ends[-1] = self._end
        self._lines[-1] += lines.count(b"\n")
        self._checksums[-1] = crc32(lines, self._checksums[-1])

    def from_on(self, offset: int) -> Span | None:
        """Return the first span that begins at `offset` or behind it."""
        number = bisect_left(self._starts, offset)
        if number == len(self._starts):
            return None
        return Span(
            self._starts[number], self._ends[number], self._lines[number], self._checksums[number]
        )
