"""The scan of a file: its records, and the anomalies among its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.backends._files.line_format import (
    VERSION,
    BadLine,
    Line,
    decode_run,
    parse_lines,
    record_sizes,
)
from papyra.persistence.backends._files.torn_tail import TornTail
from papyra.persistence.backends.store import MAX_SEQ
from papyra.persistence.records import Record
from papyra.persistence.reports import AnomalyKind, PersistenceAnomaly

#: Positions that must be left for what is written after a bad line, if that is to be believed.
_ROOM = 10**12

#: Called with the number of bytes of each piece that was read.
Advance: TypeAlias = Callable[[int], None]


class Run(NamedTuple):
    """Lines about which nothing is special: all there, all right, numbered without a gap."""

    offset: int
    first_seq: int
    records: Sequence[Record]
    #: bytes of each line
    lengths: Sequence[int]
    #: bytes of each record
    sizes: Sequence[int]
    #: the lines themselves, as long as they are at hand
    data: bytes = b""

    @property
    def last_seq(self) -> int:
        """The position of the last record."""
        return self.first_seq + len(self.records) - 1

    @property
    def end(self) -> int:
        """Where the last line ends; bytes."""
        return self.offset + sum(self.lengths)


@dataclass
class ScanResult:
    """The result of a scan, or of as much of it as is done."""

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


def end_of(part: Part) -> int:
    """Return where a part ends; bytes."""
    return part.end if isinstance(part, Run) else part[0].offset + part[0].length


def is_torn(part: Part) -> bool:
    """Return whether a part is the torn tail, which was never acknowledged."""
    return not isinstance(part, Run) and isinstance(part[0], BadLine) and part[0].kind == "torn"


def scan_parts(
    chunks: Iterable[tuple[bytes, int]],
    found: ScanResult,
    location: str,
    belongs: Callable[[int], bool],
    advance: Advance | None = None,
    acknowledged: int = 0,
) -> Iterator[Part]:
    """Yield the parts of some pieces of a file, each of which comes with where it begins.

    Records and anomalies are noted in `found` on the way, going on from what is there already.
    `belongs` says whether a record should be in this file. What begins before byte `acknowledged`
    is not taken for a torn tail, but for the beginning of a line with which the file ends: somebody
    has cut it off.
    """
    state = _Scan(found, location, belongs, acknowledged)
    for data, offset in chunks:
        lines = data.split(b"\n")
        last = lines.pop()
        first_seq = state.before + 1
        records = None if last or not state.is_plain else decode_run(lines, first_seq)
        if records is not None and belongs(state.before + len(lines)):
            lengths = [len(line) + 1 for line in lines]
            sizes = record_sizes(lines, first_seq)
            yield state.pass_over(Run(offset, first_seq, records, lengths, sizes, data))
        else:
            end = offset + len(data) if last else -1
            for line in parse_lines(data, offset, is_end=bool(last)):
                yield from state.take(line, at_end=line.offset + line.length == end)
        if advance is not None:
            advance(len(data))
    yield from state.finish()


class _Scan:
    """The state of a scan."""

    def __init__(
        self, found: ScanResult, location: str, belongs: Callable[[int], bool], acknowledged: int
    ) -> None:
        self._found = found
        self._location = location
        self._belongs = belongs
        self._acknowledged = acknowledged
        #: the `seq` of the last line that can be read, and the positions lost since
        self.before, self._lost = found.tail_seq, found.last_seq - found.tail_seq
        #: the greatest `seq` that a bad line has said
        self._claimed = 0
        self._number = 1
        #: a possible torn tail, until it is clear whether it is one
        self._torn_tail: TornTail | None = None
        #: the ending that newlines were changed to, and how many of them
        self._ending, self._endings = b"\n", 0

    @property
    def is_plain(self) -> bool:
        """Whether nothing was special about what came last."""
        return not self._lost and self._torn_tail is None

    def pass_over(self, run: Run) -> Run:
        """Note a run of plain lines."""
        found, count = self._found, len(run.records)
        self.before += count
        self._number += count
        found.records += count
        found.bytes += sum(run.lengths)
        found.tail_seq = found.last_seq = self.before
        self._ending = b"\n"
        return run

    def take(self, line: Line | BadLine, *, at_end: bool) -> Iterator[Part]:
        """Take a line, and yield the parts that have become clear by it."""
        if self._torn_tail is not None and not self._torn_tail.take(line, at_end=at_end):
            yield from self._reject_torn_tail()
        elif self._torn_tail is not None:
            return
        is_cut_off = at_end and b"\0" not in line.data
        if isinstance(line, BadLine) and (line.offset >= self._acknowledged or is_cut_off):
            torn_tail = TornTail(self.before)
            if torn_tail.take(line, at_end=at_end):
                self._torn_tail = torn_tail
                return
        yield self._check(line)

    def finish(self) -> Iterator[Part]:
        """Yield the torn tail, if the file ends with one."""
        if self._torn_tail is not None:
            yield self._check(self._torn_tail.joined())

    def _reject_torn_tail(self) -> Iterator[Part]:
        assert self._torn_tail is not None
        parts, self._torn_tail = self._torn_tail.parts, None
        yield from map(self._check, parts)

    def _check(self, line: Line | BadLine) -> Part:
        """Note a line, and the anomaly that it is."""
        found = self._found
        record, wrong = _check(line, self.before, self._lost, self._belongs)
        if isinstance(line, BadLine):
            self._lose(line)
        else:
            if self._belongs(line.seq):
                self.before, self._lost = max(self.before, line.seq), 0
            if not line.is_tombstone:
                found.records += 1
                found.bytes += line.length
        # No number is given twice: better one too many is taken for given.
        found.tail_seq = self.before
        found.last_seq = max(self.before + self._lost, self._claimed)
        if wrong is not None:
            kind, detail = wrong
            self._note(kind, detail, line)
        self._note_ending(line)
        self._number += 1
        return line, record

    def _lose(self, line: BadLine) -> None:
        """Note the positions that are lost with a bad line."""
        if line.kind == "torn":
            return  # nobody was told that it was stored
        last_seq = self.before + self._lost
        self._lost += 1
        if not self._is_credible(line.claim):
            return
        if line.seq is not None and line.after == last_seq < line.seq:
            self._lost += line.seq - last_seq - 1  # those between had been taken out
        self._claimed = max(self._claimed, line.claim)

    def _is_credible(self, claim: int) -> bool:
        """Return whether the position of a bad line is credible, and would leave others."""
        return self._belongs(claim) and claim <= MAX_SEQ - _ROOM

    def _note(self, kind: AnomalyKind, detail: str, line: Line | BadLine) -> None:
        anomaly = PersistenceAnomaly(
            kind, detail, self._location, line.offset, self._number, line.seq
        )
        self._found.anomalies.append(anomaly)

    def _note_ending(self, line: Line | BadLine) -> None:
        """Note changed newlines as one anomaly, as many as follow one another."""
        ending = line.ending if isinstance(line, Line) else b"\n"
        anomalies = self._found.anomalies
        if ending != b"\n" and ending == self._ending and anomalies[-1].kind == "line_ending":
            self._endings += 1
            several = (
                f"the newlines of {self._endings:,} lines, from record {anomalies[-1].seq} on,"
            )
            detail = f"{several} {_describe_ending(ending)}"
            anomalies[-1] = replace(anomalies[-1], detail=detail)
        elif ending != b"\n":
            self._endings = 1
            self._note(
                "line_ending",
                f"the newline after record {line.seq} {_describe_ending(ending)}",
                line,
            )
        self._ending = ending


def _describe_ending(ending: bytes) -> str:
    """Describe what a newline has become."""
    if not ending:
        return "got lost: a recovery writes it again"
    what = "CRLF, as Windows has it" if ending == b"\r\n" else repr(ending)[1:]
    return f"became {what}: change it back, or let a recovery do it"


def _check(
    line: Line | BadLine, before: int, lost: int, belongs: Callable[[int], bool]
) -> tuple[Record | None, tuple[AnomalyKind, str] | None]:
    """Return the record of a line, and its anomaly after `before` and `lost` bad lines."""
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


def decode(line: Line) -> tuple[Record | None, tuple[AnomalyKind, str] | None]:
    """Return the record of a line, or why it can't be read; neither of a tombstone."""
    if line.version > VERSION:
        return None, ("unknown_kind", f"written in version {line.version}; this reads {VERSION}")
    if line.is_tombstone:
        return None, None
    try:
        return codec.decode(line.record, line.seq), None
    except StoreError as error:
        return None, ("unknown_kind", str(error))
