"""Reading lines: pieces of a file that are cut where lines end, and the records in such a piece."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep

from papyra.persistence.backends._files.file_handle import FileHandle
from papyra.persistence.backends._files.line_format import Line, decode_run, parse_lines
from papyra.persistence.backends._files.scan import decode
from papyra.persistence.records import Record

__all__ = ("chunks_of", "records_in")

#: Bytes that are read at once.
_CHUNK = 256 * 1024
#: Lines that are decoded at first.
_DECODED = 16
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
