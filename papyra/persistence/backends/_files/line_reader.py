"""Reading lines: pieces of a file that are cut where lines end, and the records in such a piece."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import monotonic, sleep

from papyra.persistence.backends._files.file_handle import FileHandle
from papyra.persistence.backends._files.line_format import (
    Line,
    are_whole,
    decode_run,
    decode_whole,
    parse_lines,
)
from papyra.persistence.backends._files.scan import decode
from papyra.persistence.records import Record

#: Bytes that are read at once.
_CHUNK = 256 * 1024
#: Lines that are decoded at first.
_DECODED = 16
#: Lines at known places that are decoded at a time, at most.
_MOST_DECODED = 256
#: Bytes that are read for one line: at first, and where the next one is not far.
_LINE, _NEAR = 4 * 1024, 64 * 1024
#: Bytes for each line up to which it pays to read all that is between some lines.
_DENSE = 1024
#: Seconds that a reader waits for the rest of a line that is being written.
_PATIENCE = 0.1


def chunks_of(handle: FileHandle, start: int) -> Iterator[tuple[bytes, int]]:
    """Yield what follows `start` in a file, cut where lines end, and where each piece begins."""
    begun: list[bytes] = []
    offset = position = start
    while chunk := handle.disk.read(handle.fd, _CHUNK, position):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            begun.append(chunk[:cut])
            yield b"".join(begun), offset
            begun, offset = [], position + cut
        begun.append(chunk[cut:])
        position += len(chunk)
        if handle.read_only and begun[-1]:
            _await_end_of_line(handle, position)
    if position > offset:
        yield b"".join(begun), offset


def _await_end_of_line(handle: FileHandle, position: int) -> None:
    """Give a writer that is in the middle of a line the time to end it."""
    give_up_at = monotonic() + _PATIENCE
    while handle.stat().st_size <= position and monotonic() < give_up_at:
        sleep(_PATIENCE / 20)


def records_in(
    data: bytes, start: int, first_seq: int, *, newest: bool
) -> Iterator[tuple[Record, int]]:
    """Yield the records that can be read in lines from byte `start`, with the bytes of their lines.

    The oldest come first, or the newest. They are decoded as they are taken: more and more at once,
    as whoever takes ten may well take them all.
    """
    lines = data.split(b"\n")
    last, step = lines.pop(), _DECODED
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
        special = b"".join(line + b"\n" for line in lines[rest.start : rest.stop])
        found = list(_one_by_one(data if last else special, start))
        yield from reversed(found) if newest else found


def _one_by_one(data: bytes, start: int) -> Iterator[tuple[Record, int]]:
    """Yield the records of lines about one of which something is special."""
    for line in parse_lines(data, start):
        record = decode(line)[0] if isinstance(line, Line) else None
        if record is not None:
            yield record, line.length


def records_at(
    handle: FileHandle, offsets: Sequence[int], end: int
) -> Iterator[tuple[Record, int]]:
    """Yield the records of the lines that begin at `offsets`, in this order, before byte `end`.

    Each comes with the bytes of its line. Where no line begins, or one that can't be read, it is
    passed over. They are decoded as they are taken, as in `records_in`.
    """
    reader, start, step = _LineReader(handle, end), 0, _DECODED
    while start < len(offsets):
        part = offsets[start : start + step]
        lines = [reader.line_at(offset, following) for offset, following in pairwise([*part, end])]
        records = decode_whole([line[:-1] for line in lines])
        if records is None:
            for line, offset in zip(lines, part, strict=True):
                yield from itertools.islice(_one_by_one(line, offset), 1)
        else:
            yield from zip(records, map(len, lines), strict=True)
        start, step = start + step, min(4 * step, _MOST_DECODED)


def whole_lines_at(
    handle: FileHandle, offsets: Sequence[int], end: int, most: int
) -> list[bytes] | None:
    """Return the lines that begin at `offsets`, which rise, before byte `end`; newlines taken off.

    These are the first of them, at least one, up to one that takes them to `most` bytes. Returns
    `None` if one is not whole, or there is none, or it is of a newer version.
    """
    first, last = offsets[0], offsets[-1]
    if last - first <= min(_DENSE * len(offsets), most):
        length = max(0, min(last - first + _LINE, end - first))
        data = handle.disk.read(handle.fd, length, first)
        stop = data.find(b"\n", last - first)
        lines = data[:stop].split(b"\n") if stop > 0 else []
        if len(lines) > len(offsets):  # there are others in between
            starts = [offset - first for offset in offsets]
            lines = [data[start : data.find(b"\n", start)] for start in starts]
        if lines:
            return lines if are_whole(lines) else None
    return _lines_apart(_LineReader(handle, end), offsets, end, most)


def _lines_apart(
    reader: _LineReader, offsets: Sequence[int], end: int, most: int
) -> list[bytes] | None:
    lines, size = [], 0
    for offset, following in pairwise([*offsets, end]):
        lines.append(reader.line_at(offset, following)[:-1])
        size += len(lines[-1])
        if size >= most:
            break
    return lines if are_whole(lines) else None


class _LineReader:
    """Reads single lines, and those that are near each other together."""

    def __init__(self, handle: FileHandle, end: int) -> None:
        self._handle = handle
        self._end = end
        self._data, self._start = b"", 0

    def line_at(self, offset: int, following: int) -> bytes:
        """Return the line that begins at `offset`; `following` is where the next one begins."""
        stop = self._stop(offset)
        if not stop:
            is_near = 0 < following - offset < _NEAR // 2
            self._data, self._start = self._read(offset, _NEAR if is_near else _LINE), offset
            stop = self._stop(offset) or len(self._data)
        return self._data[offset - self._start : stop]

    def _stop(self, offset: int) -> int:
        """Return where in the data the line at `offset` ends, or 0 if it is not all there."""
        return 0 if offset < self._start else self._data.find(b"\n", offset - self._start) + 1

    def _read(self, offset: int, length: int) -> bytes:
        """Return what begins at `offset`: about `length` bytes, but up to the end of its line."""
        data = b""
        while (room := self._end - offset - len(data)) > 0:
            more = min(max(length, len(data)), room)
            read = self._handle.disk.read(self._handle.fd, more, offset + len(data))
            data += read
            if b"\n" in read or not read:
                break
        return data
