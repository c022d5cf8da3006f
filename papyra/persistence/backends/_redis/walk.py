"""One look at each entry of a stream, in order: what of it is good, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from papyra.persistence.backends._redis.entries import Entry, RawEntry, Wrong, check, read
from papyra.persistence.backends._redis.state import Range, StoreState
from papyra.persistence.backends.commit import MAX_COMMIT_RECORDS
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("PAGE_BYTES", "PAGE_ENTRIES", "Findings", "Seen", "Walk")

#: Bytes of records in a page, about; and the most entries.
PAGE_BYTES = 4 * 1024 * 1024
PAGE_ENTRIES = 1000


class Findings(msgspec.Struct):
    """What a walk has found."""

    records: int = 0
    #: of the records, encoded
    bytes_read: int = 0
    anomalies: list[PersistenceAnomaly] = []
    #: the ids of entries that a recovery removes
    bad: dict[Kind, list[bytes]] = msgspec.field(
        default_factory=lambda: {kind: [] for kind in KINDS}
    )
    #: what a recovery notes as gone: what is missing, and what it removes
    gone: dict[Kind, list[Range]] = msgspec.field(
        default_factory=lambda: {kind: [] for kind in KINDS}
    )
    #: whether the counters are missing, or behind what there is
    wrong_counters: bool = False


class Seen(msgspec.Struct, frozen=True):
    """What tells a good entry from another, without its record, which may be large."""

    id: bytes
    seq: int
    n: int
    total: int
    size: int
    crc: bytes

    @classmethod
    def of(cls, entry: Entry, crc: bytes) -> Seen:
        """Return it for an entry that is good."""
        return cls(entry.id, entry.seq, entry.n, entry.total, len(entry.record), crc)

    @classmethod
    def read(cls, raw: RawEntry, kind: Kind) -> Seen | None:
        """Return it; `None` for an entry that is bad."""
        entry, _ = read(raw)
        if entry is None:
            return None
        crc = raw[1][b"crc"]
        record, wrong = check(entry, crc, kind)
        is_good = record is not None or (wrong is not None and wrong[0] == "unknown_kind")
        return cls.of(entry, crc) if is_good else None

    def is_like(self, other: Seen) -> bool:
        """Return whether both hold the same record at the same position."""
        return (self.seq, self.size, self.crc) == (other.seq, other.size, other.crc)


class Walk:
    """One stream's entries, one after the other."""

    def __init__(self, kind: Kind, key: str, state: StoreState, found: Findings) -> None:
        self.kind = kind
        self._key = key
        self._found = found
        self._stream = state.streams[kind]
        #: how many entries to read at once
        self.page_entries = max(1, min(PAGE_ENTRIES, PAGE_BYTES // self._stream.average))
        #: the n, the total and the seq of the last entry in order
        self.n = self._stream.trimmed_n
        self._total = self._stream.trimmed_total
        self._seq = 0
        #: the ids of what is there twice; n and total of a copy that came last
        self.doubles: set[bytes] = set()
        self._copied: tuple[int, int] | None = None
        #: what is there beyond the counters: all of it, or more than a commit has
        self.uncounted: list[Seen] = []
        #: what seems to be missing, and the seq of the record after it
        self.suspects: list[tuple[Range, int | None]] = []

    def visit(self, raw: RawEntry) -> Seen | None:
        """Check an entry; return it if its place was given before.

        It may be a copy then (`discard_copy`), or be what is there instead of others (`replace`).
        """
        found = self._found
        entry, wrong = read(raw)
        if entry is None:
            assert wrong is not None
            self._reject(raw[0], wrong, None)
            return None
        found.records += 1
        found.bytes_read += len(entry.record)
        record, wrong = check(entry, raw[1][b"crc"], self.kind)
        follows = entry.n == self.n + 1 and entry.total_before == self._total
        if record is None and (wrong is None or wrong[0] != "unknown_kind"):
            assert wrong is not None
            found.records -= 1
            found.bytes_read -= len(entry.record)
            self._reject(raw[0], wrong, entry.seq)
            if not follows:
                return None
            found.gone[self.kind].append((entry.n, entry.n, self._total, entry.total))
        elif entry.n <= self.n or entry.seq <= self._seq:
            seen = Seen.of(entry, raw[1][b"crc"])
            if (entry.n - 1, entry.total_before) != self._copied:
                return seen
            self.discard_copy(seen)  # it goes on where the last one ended
            return None
        else:
            if wrong is not None:
                found.anomalies.append(self._anomaly(wrong, raw[0], entry.seq))
            if not follows:
                self._miss(entry.n - 1, entry.total_before, entry.seq)
            if entry.n > self._stream.n and len(self.uncounted) <= MAX_COMMIT_RECORDS:
                self.uncounted.append(Seen.of(entry, raw[1][b"crc"]))
        self._copied = None
        self.n, self._total, self._seq = entry.n, entry.total, entry.seq
        return None

    def replace(self, given_up: Sequence[Seen], by: Seen) -> None:
        """Take an entry instead of others that came before it, newest first."""
        for seen in reversed(given_up):
            self.discard(seen)
        self.uncounted = [seen for seen in self.uncounted if seen.id not in self.doubles]
        if by.n > self._stream.n:
            self.uncounted.append(by)
        self._copied = None
        self.n, self._total, self._seq = by.n, by.total, by.seq

    def give_up(self, remains: Sequence[Seen]) -> None:
        """Reject the first of what is beyond the counters; the rest of it, if any, is good."""
        for seen in remains:
            self.discard(seen)
        if remains and len(remains) == len(self.uncounted):
            self.n = self._stream.n

    @property
    def is_beyond(self) -> bool:
        """Whether there is more than was counted."""
        return self.n > self._stream.n

    def discard_copy(self, seen: Seen) -> None:
        """Reject an entry that is there already."""
        self._copied = (seen.n, seen.total)
        self.discard(seen)

    def discard(self, seen: Seen) -> None:
        """Reject an entry that is good, but whose position another one has."""
        self.doubles.add(seen.id)
        self._found.records -= 1
        self._found.bytes_read -= seen.size
        self._reject(seen.id, ("duplicate", f"record {seen.seq} is there twice"), seen.seq)

    def finish(self) -> None:
        """Look whether records are missing at the end."""
        if self.n < self._stream.n:
            self._miss(self._stream.n, self._stream.total, None)

    def report_suspects(self, trimmed_n: int, lost: Sequence[Range]) -> None:
        """Report what is missing still: not trimmed since, and not known to be gone."""
        suspects, self.suspects = self.suspects, []
        for (first, last, before, after), seq in suspects:
            if last <= trimmed_n or _is_covered(first, last, lost):
                continue
            where = f"before record {seq}" if seq is not None else "at the end"
            detail = f"{max(last - first + 1, 1)} of kind {self.kind} are missing {where}"
            self._found.gone[self.kind].append((first, last, before, after))
            self._found.anomalies.append(PersistenceAnomaly("gap", detail, self._key, seq=seq))

    def _miss(self, last: int, total: int, seq: int | None) -> None:
        self.suspects.append(((self.n + 1, last, self._total, total), seq))

    def _reject(self, identifier: bytes, wrong: Wrong, seq: int | None) -> None:
        self._found.bad[self.kind].append(identifier)
        self._found.anomalies.append(self._anomaly(wrong, identifier, seq))

    def _anomaly(self, wrong: Wrong, identifier: bytes, seq: int | None) -> PersistenceAnomaly:
        kind, detail = wrong
        return PersistenceAnomaly(kind, detail, self._key, seq=seq, entry=identifier.decode())


def _is_covered(first: int, last: int, lost: Sequence[Range]) -> bool:
    for begin, end, *_ in sorted(lost):
        if begin <= first <= end:
            first = end + 1
    return first > last
