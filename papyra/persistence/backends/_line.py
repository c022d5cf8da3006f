"""One record, one line of JSON that knows its place and can tell whether it is whole.

::

    {"v":1,"seq":17,"crc":"8d4a1f03","kind":"event","system_id":"shop",...}

``v`` is the version of the format. ``crc`` is the CRC-32, in hexadecimal, of all the line's other
bytes: of the line with ``"crc":"...",`` and the newline taken out. Where the line before it is not
``seq - 1``, since compaction or a recovery took that out, ``"after":9`` follows ``seq`` and says
which one it is. So a line that was torn, changed, lost or doubled can be told from its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from zlib import crc32

import msgspec

from papyra.persistence.reports import AnomalyKind

__all__ = ("VERSION", "BadLine", "Line", "make_lines", "parse_lines")

#: What this program writes, and the newest that it can read.
VERSION = 1

_HEAD = re.compile(rb'\{"v":(\d+),"seq":(\d+),(?:"after":(\d+),)?"crc":"([0-9a-f]{8})",')
_CRC_LENGTH = len(b'"crc":"01234567",')


class Line(msgspec.Struct, frozen=True, gc=False):
    """A line whose checksum is right."""

    version: int
    seq: int
    #: the `seq` of the line before it, 0 for none
    after: int
    #: bytes from the start of the file
    offset: int
    #: the whole line, with its newline
    data: bytes
    #: where the record's own bytes begin, but for the brace
    body: int

    @property
    def record(self) -> bytes:
        """The encoded record, as the codec wrote it."""
        return b"{" + self.data[self.body : -1]

    def moved_after(self, after: int) -> bytes:
        """Return the line as it must be to follow line `after`."""
        if after == self.after:
            return self.data
        return _make_line(self.seq, after, b"{" + self.data[self.body : -1], self.version)


class BadLine(msgspec.Struct, frozen=True):
    """Bytes that are no line, or not the line they were."""

    kind: AnomalyKind
    detail: str
    offset: int
    data: bytes
    #: what it says its position is, if it says so
    seq: int | None = None


def make_lines(first_seq: int, after: int, records: Iterable[bytes]) -> list[bytes]:
    """Return a line for each encoded record; the first of them follows line `after`."""
    lines: list[bytes] = []
    for seq, record in enumerate(records, first_seq):
        if after == seq - 1:
            head = b'{"v":1,"seq":%d,' % seq
            body = record[1:]
            lines.append(b'%b"crc":"%08x",%b\n' % (head, crc32(body, crc32(head)), body))
        else:
            lines.append(_make_line(seq, after, record, VERSION))
        after = seq
    return lines


def _make_line(seq: int, after: int, record: bytes, version: int) -> bytes:
    head = b'{"v":%d,"seq":%d,' % (version, seq)
    if after != seq - 1:
        head += b'"after":%d,' % after
    body = record[1:]
    return b'%b"crc":"%08x",%b\n' % (head, crc32(body, crc32(head)), body)


def parse_lines(data: bytes, offset: int) -> Iterator[Line | BadLine]:
    """Yield the lines in `data`, which begins `offset` bytes into its file.

    Only the last may be without its newline: it was torn when it was written. Bytes that are no
    line reach to where the next line begins, be there a newline between them or not.
    """
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1
        if not end:
            yield from _parse_rest(data, start, offset)
            return
        line = _parse(data[start:end], offset + start)
        if isinstance(line, BadLine):
            # Its newline may be what was changed: then there is another line in it.
            head = _HEAD.search(data, start + 1, end)
            while head is not None:
                inner = _parse(data[head.start() : end], offset + head.start())
                if isinstance(inner, Line):
                    yield _parse_bad(data[start : head.start()], offset + start)
                    line = inner
                    break
                head = _HEAD.search(data, head.start() + 1, end)
        yield line
        start = end


def _parse_rest(data: bytes, start: int, offset: int) -> Iterator[BadLine]:
    rest = data[start:]
    head = _HEAD.match(rest)
    seq = int(head[2]) if head else None
    yield BadLine("torn", "the file ends in the middle of a line", offset + start, rest, seq)


def _parse(data: bytes, offset: int) -> Line | BadLine:
    head = _HEAD.match(data)
    if head is not None:
        version, seq, after, crc = head.groups()
        body = head.end()
        checksum = crc32(data[body:-1], crc32(data[: body - _CRC_LENGTH]))
        if checksum == int(crc, 16):
            number = int(seq)
            before = number - 1 if after is None else int(after)
            return Line(int(version), number, before, offset, data, body)
    return _parse_bad(data, offset)


def _parse_bad(data: bytes, offset: int) -> BadLine:
    head = _HEAD.match(data)
    if head is None:
        return BadLine("corrupt", "this is no line of a Papyra journal", offset, data)
    seq = int(head[2])
    return BadLine("checksum", f"the line of record {seq} was changed", offset, data, seq)
