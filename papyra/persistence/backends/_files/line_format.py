"""One record, one line of JSON that knows its place and can tell whether it is whole.

::

    {"crc":"8d4a1f03","v":1,"seq":17,"kind":"event","system_id":"shop",...}

``crc`` is the CRC-32, in hexadecimal, of everything between the comma behind it and the newline.
``v`` is the version of the format. Where the line before it is not ``seq - 1``, since compaction or
a recovery took that out, ``"after":9`` follows ``seq`` and says which one it is. So a line that was
torn, changed, lost or doubled can be told from its neighbours. A line with ``"kind":"tombstone"``
holds no record: it stands for those up to its ``seq``, which were taken out.

An ``after`` that is not before ``seq`` says how many positions before it were written together with
it: three in line 17 that has ``"after":20``. Nobody had been told of them then. A crash of the
machine may keep any blocks of an append, and lose any others; this tells what it kept from what was
acknowledged, and damaged later.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import msgspec

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.backends._files.checksum import (
    CHECKED,
    OPENING,
    are_right,
    is_right,
    with_checksums,
)
from papyra.persistence.records import Record
from papyra.persistence.reports import AnomalyKind

#: What this program writes, and the newest that it can read.
VERSION = 1

# A position has 14 digits at most (`MAX_SEQ`): what claims another one is no line of ours.
_SEQ = rb"[1-9][0-9]{0,13}"
_PLACE = re.compile(rb'"seq":(?P<seq>%b),(?:"after":(?P<after>0|%b),)?' % (_SEQ, _SEQ))
#: Bytes within which the place of a record is said.
_PLACE_END = 80
#: What comes before the record's own fields.
HEAD = re.compile(
    rb'\{"crc":"(?P<crc>[0-9a-f]{8})","v":(?P<version>[1-9][0-9]{0,3}),' + _PLACE.pattern
)
#: Where a line may begin when the newline before it is not what it was. A line within a payload
#: comes after one of these bytes.
START = re.compile(rb"(?<![:,\[])" + HEAD.pattern)
#: What editors and transfers make of newlines.
_ENDING = re.compile(rb"[\r \t]*\n?|\0")
#: The bytes behind the checksum of a line of this version.
_VERSION = b'","v":%d,' % VERSION

#: How often the bytes of what should be one line are looked at for lines with others in them.
_LOOKED_AT = 3

#: How a record's own fields begin.
_KIND = b'"kind"'

#: How a file begins that was written anew in UTF-16.
_UTF_16 = (b"\xff\xfe", b"\xfe\xff", b'{\0"\0', b'\0{\0"')

_TOMBSTONE = b'{"kind":"tombstone"}'


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
    #: how many positions before it had not been acknowledged when it was written
    together: int = 0
    #: the bytes in the file in place of the newline
    ending: bytes = b"\n"

    @property
    def length(self) -> int:
        """Bytes that it takes in the file."""
        return len(self.data) - 1 + len(self.ending)

    @property
    def acknowledged(self) -> int:
        """The last position that had been acknowledged when it was written."""
        return self.seq - self.together - 1

    @property
    def record(self) -> bytes:
        """The encoded record, as the codec wrote it."""
        return b"{" + self.data[self.body : -1]

    @property
    def is_tombstone(self) -> bool:
        """Whether it holds no record, but stands for some that were taken out."""
        return self.data.startswith(b'"kind":"tombstone"', self.body)

    def moved_after(self, after: int) -> bytes:
        """Return the line as it must be to follow line `after`."""
        if after == self.after:
            return self.data
        return _make_line(self.seq, after, self.record, self.version)

    def holding(self, record: bytes) -> Line:
        """Return the line as it is with another record in it."""
        line = parse_whole(_make_line(self.seq, self.after, record, VERSION), self.offset)
        assert line is not None
        return line


class BadLine(msgspec.Struct, frozen=True):
    """Bytes that are no line, or not the line they were."""

    kind: AnomalyKind
    detail: str
    offset: int
    data: bytes
    #: its own position and that of the line before, if it says so
    seq: int | None = None
    after: int | None = None
    #: the greatest position that is said in it
    claim: int = 0

    @property
    def length(self) -> int:
        """Bytes that it takes in the file."""
        return len(self.data)


def make_lines(
    first_seq: int, after: int, records: Sequence[bytes], acknowledged: int | None = None
) -> list[bytes]:
    """Return a line for each encoded record; the first of them follows line `after`.

    `acknowledged` is the last position that was; without it, they don't say that they are
    written together.
    """
    together = 0 if acknowledged is None else first_seq - acknowledged - 1
    if acknowledged is not None and not _has_room(first_seq, len(records), together):
        acknowledged, together = None, 0
    seqs = range(first_seq, first_seq + len(records))
    if acknowledged is None or (len(records) == 1 and not together):
        checked = [
            b'"v":1,"seq":%d,%b' % (seq, record[1:])
            for seq, record in zip(seqs, records, strict=True)
        ]
    else:
        marks = itertools.count(first_seq + together, 2)
        checked = [
            b'"v":1,"seq":%d,"after":%d,%b' % (seq, mark, record[1:])
            for mark, seq, record in zip(marks, seqs, records, strict=False)
        ]
    lines = with_checksums(checked)
    if len(lines) > 1 or after != first_seq - 1:
        lines[0] = _make_line(first_seq, after, records[0], VERSION, together)
    return lines


def _has_room(first_seq: int, count: int, together: int) -> bool:
    """Return whether numbers are long enough to say what was written together."""
    return first_seq + together + 2 * count < 10**14


def tombstone(seq: int, after: int) -> bytes:
    """Return the line that stands for what was between `after` and `seq`, and for `seq` itself."""
    return _make_line(seq, after, _TOMBSTONE, VERSION)


def _make_line(seq: int, after: int, record: bytes, version: int, together: int = 0) -> bytes:
    place = b'"v":%d,"seq":%d,' % (version, seq)
    if after != seq - 1:
        place += b'"after":%d,' % after
    elif together:
        place += b'"after":%d,' % (seq + together)
    (line,) = with_checksums([place + record[1:]])
    return line


def head_length(seq: int, together: int = 0) -> int:
    """Return how much longer than its record a line of this version is that follows ``seq - 1``."""
    place = b'"v":1,"seq":%d,' % seq
    if together:
        place += b'"after":%d,' % (seq + together)
    return CHECKED + len(place)  # and a newline, but for the brace


def last_seq_in(data: bytes) -> int | None:
    """Return the position of the last line, if that is whole."""
    line = parse_whole(data[data.rfind(b"\n", 0, -1) + 1 :])
    return None if line is None else line.seq


def seq_of(line: bytes) -> int:
    """Return the position that a whole line says; 0 if it says none."""
    head = HEAD.match(line)
    return 0 if head is None else int(head["seq"])


def are_whole(lines: Sequence[bytes]) -> bool:
    """Return whether these are lines of this version, newlines taken off, with right checksums."""
    return are_right(lines, _VERSION)


def decode_run(lines: Sequence[bytes], first_seq: int) -> list[Record] | None:
    """Return the records of lines, newlines taken off, if nothing at all is special about them.

    They are numbered from `first_seq` on without a gap, and each of them is whole and can be read.
    Otherwise return `None`: `parse_lines` knows what is wrong, or what is special, and where.
    """
    records = decode_whole(lines)
    if records is None:
        return None
    seqs = [record.seq for record in records]
    return records if seqs == list(range(first_seq, first_seq + len(lines))) else None


def decode_whole(lines: Sequence[bytes]) -> list[Record] | None:
    """Return the records of lines as `decode_run` does, whatever their numbers are."""
    try:
        records = codec.decode_numbered(lines)
    except StoreError:
        return None
    return records if are_whole(lines) else None


def record_sizes(lines: Sequence[bytes], first_seq: int) -> list[int]:
    """Return the bytes of each record, in lines that `decode_run` has decoded."""
    start = head_length(first_seq)  # or a little further
    return [len(line) - line.find(_KIND, start) + 1 for line in lines]


def parse_lines(data: bytes, offset: int, *, is_end: bool = False) -> Iterator[Line | BadLine]:
    """Yield the lines in `data`, which begins `offset` bytes into its file.

    Bytes that are no line reach to where the next line begins, be there a newline between them or
    not. With `is_end`, the file ends where `data` does, and a last line without a newline may not
    have been written to its end.
    """
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        part = data[start:end]
        line = parse_whole(part, offset + start)
        if line is not None:
            yield line
        else:
            yield from _parse_odd(part, offset + start, is_end=is_end and end == len(data))
        start = end


def _parse_odd(data: bytes, offset: int, *, is_end: bool) -> Iterator[Line | BadLine]:
    """Yield the lines in what should have been one, and what is between them."""
    bad, found = 0, False
    for start, stop in _extents(data):
        if start < bad:
            continue
        end = data.rfind(b"}", start, stop) + 1
        ending = data[end:stop]
        if not end or _ENDING.fullmatch(ending) is None:
            continue
        if is_end and stop == len(data) and not found and not ending.strip(b"\0"):
            continue  # the newline was not written yet
        line = parse_whole(data[start:end] + b"\n", offset + start, ending)
        if line is not None:
            if bad < start:
                yield _parse_bad(data[bad:start], offset + bad)
            yield line
            bad, found = stop, True
    if bad < len(data):
        yield _parse_bad(data[bad:], offset + bad)


def _extents(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where lines may begin and end that are not parted by newlines.

    One ends where the next begins, or, as there may be lines within a payload, a few further. In
    all, each byte is in a few of these extents at most, however many lines seem to begin.
    """
    if OPENING not in data:
        return
    heads = [head.start() for head in HEAD.finditer(data)]
    outer = [head.start() for head in START.finditer(data)]
    heads.append(len(data))
    outer.append(len(data))
    left = _LOOKED_AT * len(data)
    for start, stop in itertools.pairwise(heads):
        yield start, stop
        further = outer[bisect_right(outer, start)]
        if further > stop and left > 0:
            left -= further - start
            yield start, further


def parse_whole(data: bytes, offset: int = 0, ending: bytes = b"\n") -> Line | None:
    """Return the line that `data` is, if it is one, with its newline."""
    head = HEAD.match(data)
    if head is None or not data.endswith(b"\n"):
        return None
    if not is_right(data, head["crc"]):
        return None
    seq, after, together = place_of(head)
    if together >= seq:
        return None
    return Line(int(head["version"]), seq, after, offset, data, head.end(), together, ending)


def place_of(head: re.Match[bytes]) -> tuple[int, int, int]:
    """Return the position that is said, the one of the line before, and how many go with it."""
    seq, said = int(head["seq"]), head["after"]
    after = seq - 1 if said is None else int(said)
    return (seq, seq - 1, after - seq) if after >= seq else (seq, after, 0)


def _parse_bad(data: bytes, offset: int) -> BadLine:
    head = HEAD.match(data)
    place = head or _PLACE.search(data, 0, _PLACE_END)
    seq = after = None
    claim = 0
    if OPENING in data:
        claim = max([int(start["seq"]) for start in START.finditer(data)], default=0)
    if place is not None:
        seq, after, _ = place_of(place)
        claim = max(claim, seq)
    if head is None:
        return BadLine("corrupt", _describe(data), offset, data, seq, after, claim)
    detail = f"the line of record {seq} was changed"
    return BadLine("checksum", detail, offset, data, seq, after, claim)


def _describe(data: bytes) -> str:
    """Describe bytes that are no line."""
    if data.startswith(_UTF_16):
        return "this is UTF-16: convert the file back to UTF-8, which it was"
    if data.startswith(b"\xef\xbb\xbf"):
        return "there is a byte order mark here, which an editor may have written"
    return "this is no line of a Papyra journal"
