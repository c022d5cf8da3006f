"""A walk through lines, which finds out what there is, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.backends._line import VERSION, BadLine, Line, decode_run, parse_lines
from papyra.persistence.records import Record
from papyra.persistence.reports import AnomalyKind, PersistenceAnomaly

__all__ = ("Advance", "Part", "Run", "ScanResult", "decode", "walk")

#: Is told of each number of bytes that was read.
Advance: TypeAlias = Callable[[int], None]


class Run(NamedTuple):
    """Lines about which nothing is special: all there, all right, numbered without a gap."""

    offset: int
    first_seq: int
    records: Sequence[Record]
    #: bytes of each line
    lengths: list[int]
    #: bytes of the first that say which line it follows
    extra: int = 0


@dataclass
class ScanResult:
    """What a walk through a file found."""

    records: int = 0
    bytes: int = 0
    #: the `seq` of the last line that can be read
    tail_seq: int = 0
    #: the greatest `seq` that was given: `tail_seq`, and one for each bad line behind it
    last_seq: int = 0
    anomalies: list[PersistenceAnomaly] = field(default_factory=list)
    #: where whole segments are missing: the `seq` before, and their last
    missing: list[tuple[int, int]] = field(default_factory=list)


#: A run of plain lines; or another one, with its record if it can be read.
Part: TypeAlias = Run | tuple[Line | BadLine, Record | None]


def walk(
    chunks: Iterable[tuple[bytes, int]],
    found: ScanResult,
    location: str,
    belongs: Callable[[int], bool],
    advance: Advance | None = None,
) -> Iterator[Part]:
    """Yield everything in some pieces of a file, each of which comes with where it begins.

    What is there, and what is wrong with it, is noted in `found` on the way, going on from what is
    there already. `belongs` says whether a record should be in this file.
    """
    before, lost = found.tail_seq, found.last_seq - found.tail_seq
    claimed, number = 0, 1
    for data, offset in chunks:
        lines = data.split(b"\n")
        last = lines.pop()
        records = None if lost or last else decode_run(lines, before + 1)
        if records is not None and belongs(before + len(records)):
            run = Run(offset, before + 1, records, [len(line) + 1 for line in lines])
            before += len(records)
            number += len(records)
            found.records += len(records)
            found.bytes += len(data)
            found.tail_seq = found.last_seq = before
            yield run
        else:
            for line in parse_lines(data, offset):
                record, wrong = _judge(line, before, lost, belongs)
                if isinstance(line, BadLine):
                    lost += _lost_with(line, before + lost)
                    if line.seq is not None and line.kind != "torn" and belongs(line.seq):
                        claimed = max(claimed, line.seq)
                else:
                    if belongs(line.seq):
                        before, lost = max(before, line.seq), 0
                    if not line.is_tombstone:
                        found.records += 1
                        found.bytes += len(line.data)
                # No number is given twice: better one too many is taken for given.
                found.tail_seq, found.last_seq = before, max(before + lost, claimed)
                if wrong is not None:
                    kind, detail = wrong
                    anomaly = PersistenceAnomaly(
                        kind, detail, location, line.offset, number, line.seq
                    )
                    found.anomalies.append(anomaly)
                number += 1
                yield line, record
        if advance is not None:
            advance(len(data))


def _judge(
    line: Line | BadLine, before: int, lost: int, belongs: Callable[[int], bool]
) -> tuple[Record | None, tuple[AnomalyKind, str] | None]:
    """Return a line's record, and what is wrong with it after `before` and `lost` bad lines."""
    if isinstance(line, BadLine):
        return None, (line.kind, line.detail)
    record, unreadable = decode(line)
    if unreadable is not None:
        return None, unreadable
    if line.seq <= before:
        return record, ("duplicate", f"record {line.seq} comes after record {before}")
    if not belongs(line.seq):
        return record, ("duplicate", f"record {line.seq} belongs into another segment")
    # The records of bad lines are not missing besides.
    if line.after > before + lost:
        missing = f"{before + 1} to {line.after}" if line.after > before + 1 else line.after
        return record, ("gap", f"missing before record {line.seq}: {missing}")
    return record, None


def _lost_with(line: BadLine, last_seq: int) -> int:
    """Return how many positions after `last_seq` go with a bad line."""
    if line.kind == "torn":
        return 0  # nobody was told that it was stored
    if line.seq is not None and line.after == last_seq < line.seq:
        return line.seq - last_seq  # those between had been taken out
    return 1


def decode(line: Line) -> tuple[Record | None, tuple[AnomalyKind, str] | None]:
    """Return the record of a line, or what keeps it from being read; neither of a tombstone."""
    if line.version > VERSION:
        return None, ("unknown_kind", f"written in version {line.version}; this reads {VERSION}")
    if line.is_tombstone:
        return None, None
    try:
        return codec.decode(line.record, line.seq), None
    except StoreError as error:
        return None, ("unknown_kind", str(error))
