"""The torn tail: what a crash of the machine leaves of the last write; all else is damage.

A write goes to the end of the file. A crash may keep any blocks of it and lose any others; where
the file has become long enough all the same, there are zeros in their place. No line has a zero
byte in it, so a hole is where the zeros are: it begins where the write did or where a block does,
and ends where a block does; or it reaches to the end of the file. What is left besides are a
beginning of a line, pieces of lines next to holes, and whole lines that say that they were written
together with what is missing.

Nothing else is cut off. Where a line was changed, or its newline, somebody was told of it.
"""

from __future__ import annotations

import codecs
import re

from papyra.persistence.backends._files.checksum import OPENING
from papyra.persistence.backends._files.line_format import (
    HEAD,
    START,
    BadLine,
    Line,
    parse_whole,
    place_of,
    tombstone,
)

#: Bytes of the smallest block that a device writes.
_SECTOR = 512
#: Fewer bytes than this are no whole line, whatever was done to them.
_SHORTEST = len(tombstone(1, 0))

_HOLE = re.compile(rb"\0+")
#: JSON escapes them.
_CONTROL = re.compile(rb"[\x00-\x1f]")
#: Strings, the last of which may not have come to its end, and braces outside of them.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}]')
#: After which bytes a string may begin, or an object within another.
_BEFORE = {
    b'"': frozenset({b"{", b"[", b":", b",", b" "}),
    b"{": frozenset({b"[", b":", b",", b" "}),
}


class TornTail:
    """The parts at the end of a file that may be all that is left of its last write."""

    def __init__(self, last_seq: int) -> None:
        self._last_seq = last_seq
        self.parts: list[Line | BadLine] = []

    def take(self, part: Line | BadLine, *, at_end: bool) -> bool:
        """Take the next part, if it can be of the write that follows `last_seq`.

        `at_end` says that the file ends with it, in the middle of a line. If it can't be of that
        write, nor are those that were taken before.
        """
        if isinstance(part, Line):
            fits = self._is_of_it(part)
        else:
            start = self.parts[0].offset if self.parts else part.offset
            fits = self._has_only_holes(part, start, at_end=at_end)
        if fits:
            self.parts.append(part)
        return fits

    def joined(self) -> BadLine:
        """Return all of it as one torn line, when nothing follows."""
        first, *others = self.parts
        assert isinstance(first, BadLine)
        detail = "the file ends in the middle of a line"
        if others or b"\0" in first.data:
            detail = "the file ends in a write of which a part is missing"
        data = b"".join(part.data for part in self.parts)
        return BadLine("torn", detail, first.offset, data, first.seq)

    def _is_of_it(self, line: Line) -> bool:
        return line.acknowledged <= self._last_seq < line.seq and line.ending == b"\n"

    def _has_only_holes(self, part: BadLine, start: int, *, at_end: bool) -> bool:
        """Return whether zeros explain why these bytes are no line."""
        data, position = part.data, 0
        if at_end and len(data) < _SHORTEST and data.startswith(OPENING[: len(data)]):
            return True  # too short for any line, whatever was done to it
        for hole in _HOLE.finditer(data):
            begin, end = part.offset + hole.start(), part.offset + hole.end()
            to_the_end = at_end and hole.end() == len(data)
            is_cut = (begin == start or not begin % _SECTOR) and not end % _SECTOR
            if not (to_the_end or is_cut) or not self._is_piece(data, position, hole.start()):
                return False
            position = hole.end()
        if at_end:
            return self._is_piece(data, position, len(data))
        if not position:
            return False
        if data[position:] in (b"", b"\n"):  # a whole line follows, or the end of one is left
            return True
        return data.endswith(b"}\n") and self._is_piece(data, position, -1)

    def _is_piece(self, data: bytes, start: int, stop: int) -> bool:
        """Return whether a piece between holes can be a part of a line."""
        piece = data[start:stop]
        if not piece:
            return True
        if not start or HEAD.match(piece):
            return self._is_beginning(piece)
        return not _CONTROL.search(piece) and not _has_start(piece)

    def _is_beginning(self, piece: bytes) -> bool:
        """Return whether a line that was being written can begin like this."""
        if not piece.startswith(OPENING[: len(piece)]):
            return False
        if len(piece) < _SHORTEST:
            return True
        head = HEAD.match(piece)
        if head is None or not self._can_follow(head):
            return False
        end = _end_of_object(piece)
        if end is None:
            return _can_go_on(piece)
        return end == len(piece) and parse_whole(piece + b"\n") is not None

    def _can_follow(self, head: re.Match[bytes]) -> bool:
        seq, after, together = place_of(head)
        acknowledged = seq - together - 1
        return seq > self._last_seq and (after == self._last_seq or acknowledged <= self._last_seq)


def _has_start(data: bytes, position: int = 0) -> bool:
    """Return whether a line seems to begin somewhere, from `position` on."""
    return data.find(OPENING, position) >= 0 and START.search(data, position) is not None


def _can_go_on(data: bytes) -> bool:
    """Return whether an object that does not end may be one that was being written."""
    if _CONTROL.search(data) or _has_start(data, 1) or not _is_text(data):
        return False
    return all(
        data[token.start() - 1 : token.start()] in _BEFORE[token[0][:1]]
        for token in _TOKEN.finditer(data, 1)
        if token[0] != b"}"
    )


def _is_text(data: bytes) -> bool:
    """Return whether it is UTF-8; the last character need not be there to its end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _end_of_object(data: bytes) -> int | None:
    """Return where the object ends with which `data` begins, or `None` if it does not."""
    depth = 0
    for token in _TOKEN.finditer(data):
        if token[0] == b"{":
            depth += 1
        elif token[0] == b"}":
            depth -= 1
            if not depth:
                return token.end()
    return None
