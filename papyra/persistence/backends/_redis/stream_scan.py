"""The scan of one stream, entry by entry, in order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from papyra.persistence.backends._redis.entry_format import (
    LATEST_MS,
    MOST_BYTES,
    Entry,
    RawEntry,
    Wrong,
    check,
    read,
    whole,
)
from papyra.persistence.backends._redis.store_state import Range, StoreState, StreamState
from papyra.persistence.backends.group_commit import MAX_COMMIT_RECORDS
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("PAGE_BYTES", "PAGE_ENTRIES", "Findings", "Renumbering", "Seen", "StreamScan")

#: Bytes of records in a page, about; and the most entries.
PAGE_BYTES = 4 * 1024 * 1024
PAGE_ENTRIES = 1000


class Renumbering(msgspec.Struct, frozen=True):
    """The entry from which on a stream is renumbered, and the numbers before it."""

    id: bytes
    n: int = 0
    total: int = 0


class Findings(msgspec.Struct):
    """What a scan has found, and what a recovery does about it."""

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
    #: the fields of the store's hash that can't be right, and their values
    wrong: dict[str, bytes] = {}
    #: from where on the entries of a stream have to be counted anew
    renumberings: dict[Kind, Renumbering] = {}
    #: with which mark of the store this was found
    mark: bytes = b""
    #: what is noted of the events that compactions have kept, and what is right, if it is not that
    kept: tuple[bytes, bytes] | None = None
    #: whether the index by actor lacks something, or has too much
    index_is_wrong: bool = False
    #: the ids of entries in place of which a recovery lets no base be read any more
    bad_bases: list[bytes] = []
    #: the id of the last entry with a base of those that compactions have not looked at, if any
    stray_base: bytes = b""

    @property
    def needs_repair(self) -> bool:
        """Whether a recovery would change anything."""
        bad = any(self.bad.values()) or any(self.gone.values())
        bad = bad or self.kept is not None or self.index_is_wrong
        bad = bad or bool(self.bad_bases or self.stray_base)
        return bad or self.wrong_counters or bool(self.renumberings)


class Seen(msgspec.Struct, frozen=True):
    """The identity of a good entry, without its record, which may be large."""

    id: bytes
    seq: int
    n: int
    total: int
    size: int
    crc: bytes

    @classmethod
    def of(cls, entry: Entry) -> Seen:
        """Return it for an entry that is good."""
        return cls(entry.id, entry.seq, entry.n, entry.total, entry.size, entry.crc)

    @classmethod
    def read(cls, raw: RawEntry, kind: Kind) -> Seen | None:
        """Return it; `None` for an entry that is bad, or has lost its numbers."""
        entry, _ = read(raw)
        if entry is None or not entry.n:
            return None
        record, wrong = check(entry, kind)
        is_good = record is not None or (wrong is not None and wrong[0] == "unknown_kind")
        return cls.of(entry) if is_good else None

    def is_like(self, other: Seen) -> bool:
        """Return whether both hold the same record at the same position."""
        return (self.seq, self.size, self.crc) == (other.seq, other.size, other.crc)


class StreamScan:
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
        self.duplicates: set[bytes] = set()
        self._copied: tuple[int, int] | None = None
        #: what is there beyond the counters: all of it, or more than a commit has
        self.uncounted: list[Seen] = []
        #: what seems to be missing, and the seq of the record after it
        self.suspects: list[tuple[Range, int | None]] = []
        #: whether the counters of this kind can be right
        self._is_counted = not {f"{kind}:n", f"{kind}:total"} & state.wrong.keys()
        self._last = state.last if "last" not in state.wrong else LATEST_MS
        self._state = state
        #: what is noted as lost, and was not passed yet; the first of it comes last
        self._lost = sorted(self._stream.lost, reverse=True)
        #: the last entry, if others seem to be missing before it, and what came before those
        self._claims_gap: tuple[Seen, int, int, int] | None = None

    @property
    def seq(self) -> int:
        """The seq of the last entry in order."""
        return self._seq

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
        seen = Seen.of(entry)
        record, wrong = check(entry, self.kind)
        follows = entry.n == self.n + 1 and entry.total_before == self._total
        if record is None and (wrong is None or wrong[0] != "unknown_kind"):
            assert wrong is not None
            found.records -= 1
            found.bytes_read -= len(entry.record)
            has_numbers = None not in (whole(raw[1][b"n"]), whole(raw[1][b"total"]))
            no_number: Wrong = ("wrong_fields", "n or total is no number")
            self._reject(raw[0], wrong if has_numbers else no_number, entry.seq)
            if not follows or self._is_misnumbered:
                return None
            found.gone[self.kind].append((entry.n, entry.n, self._total, entry.total))
            self._advance(seen)
            return None
        if not self._is_misnumbered and self._belies_gap(seen):
            self._count_anew_from_gap()
        if self._is_misnumbered:
            self._visit_uncounted(seen)
        elif seen.seq <= self._seq or 0 < seen.n <= self.n:
            if seen.n and (seen.n - 1, seen.total - seen.size) != self._copied:
                return seen
            self.discard_copy(seen)  # it goes on where the last one ended
            return None
        elif not seen.n or not (follows or self._may_be_missing(seen)):
            self.count_anew(seen)
        else:
            claim = None if follows else (seen, self.n, self._total, self._seq)
            if not follows:
                self._miss(entry.n - 1, entry.total_before, entry.seq)
            if self._is_counted and self._is_beyond_counters(seen):
                self.uncounted.append(seen)
            self._advance(seen)
            self._claims_gap = claim
            self._check_not_lost(seen)
        if wrong is not None and seen.id not in self.duplicates:
            found.anomalies.append(self._anomaly(wrong, raw[0], entry.seq))
        return None

    def _advance(self, seen: Seen) -> None:
        self._copied = self._claims_gap = None
        self.n, self._total, self._seq = seen.n, seen.total, seen.seq

    def _check_not_lost(self, seen: Seen) -> None:
        """Look whether what is there is noted as lost."""
        while self._lost and self._lost[-1][1] < seen.n:
            self._lost.pop()
        if self._lost and self._lost[-1][0] <= seen.n:
            name = f"{self.kind}:lost"
            self._found.wrong[name] = self._state.meta[name]
            self._lost = []

    def _is_beyond_counters(self, seen: Seen) -> bool:
        return seen.n > self._stream.n and len(self.uncounted) <= MAX_COMMIT_RECORDS

    # Numbers that others have changed

    @property
    def _is_misnumbered(self) -> bool:
        return self.kind in self._found.renumberings

    def count_anew(self, seen: Seen) -> None:
        """Note that the numbers of an entry are wrong, and those of what follows may be, too."""
        self._claims_gap = None
        n, total = self.n, self._total
        if not n < seen.seq or total > n * MOST_BYTES:
            # It begins the stream, and what is known of what came before is wrong.
            n, total = max(seen.n - 1, 0), max(seen.total - seen.size, 0)
        self._found.renumberings[self.kind] = Renumbering(seen.id, n, total)
        detail = f"n or total of record {seen.seq} is not what it was: it is number {n + 1}"
        self._found.anomalies.append(self._anomaly(("wrong_fields", detail), seen.id, seen.seq))
        self._seq = seen.seq

    def _visit_uncounted(self, seen: Seen) -> None:
        if seen.seq <= self._seq:
            self.discard(seen)
        else:
            self._seq = seen.seq

    def _belies_gap(self, seen: Seen) -> bool:
        """Return whether an entry shows that nothing was missing before the last one."""
        if self._claims_gap is None:
            return False
        last, n, total, _ = self._claims_gap
        return seen.seq > last.seq and (seen.n, seen.total - seen.size) == (
            n + 2,
            total + last.size,
        )

    def _count_anew_from_gap(self) -> None:
        assert self._claims_gap is not None
        last, self.n, self._total, self._seq = self._claims_gap
        self.suspects.pop()
        self.uncounted = [seen for seen in self.uncounted if seen.id != last.id]
        self.count_anew(last)

    def _may_be_missing(self, seen: Seen) -> bool:
        """Return whether there may have been others before an entry: each has had a position."""
        count, size = seen.n - self.n - 1, seen.total - seen.size - self._total
        return _is_possible(count, size, seen.seq - self._seq - 1)

    def replace(self, given_up: Sequence[Seen], by: Seen) -> None:
        """Take an entry instead of others that came before it, newest first."""
        for seen in reversed(given_up):
            self.discard(seen)
        self.uncounted = [seen for seen in self.uncounted if seen.id not in self.duplicates]
        if by.n > self._stream.n:
            self.uncounted.append(by)
        self._advance(by)

    def give_up(self, orphans: Sequence[Seen]) -> None:
        """Reject orphaned entries, the first beyond the counters; the rest, if any, is good."""
        for seen in orphans:
            self.discard(seen)
        if orphans and len(orphans) == len(self.uncounted):
            self.n = self._stream.n

    @property
    def is_beyond(self) -> bool:
        """Whether there is more than was counted."""
        return self._is_counted and not self._is_misnumbered and self.n > self._stream.n

    def discard_copy(self, seen: Seen) -> None:
        """Reject an entry that is there already."""
        self._copied = (seen.n, seen.total) if seen.n else self._copied
        self.discard(seen)

    def discard(self, seen: Seen) -> None:
        """Reject an entry that is good, but whose position another one has."""
        self.duplicates.add(seen.id)
        self._found.records -= 1
        self._found.bytes_read -= seen.size
        self._reject(seen.id, ("duplicate", f"record {seen.seq} is there twice"), seen.seq)

    def finish(self) -> None:
        """Look whether records are missing at the end."""
        self._claims_gap = None
        if self._is_misnumbered or not self._is_counted or self.n > self._stream.n:
            return
        count, size = self._stream.n - self.n, self._stream.total - self._total
        if not _is_possible(count, size, self._last - self._seq):
            meta = self._state.meta
            names = (f"{self.kind}:n", f"{self.kind}:total")
            self._found.wrong |= {name: meta[name] for name in names if name in meta}
        elif count:
            self._miss(self._stream.n, self._stream.total, None)

    def report_suspects(self, now: StreamState) -> None:
        """Report what is missing still: not trimmed since, nor taken back, nor known to be gone."""
        suspects, self.suspects = self.suspects, []
        if self._claims_gap is not None:
            self.suspects.append(suspects.pop())  # the next entry may say otherwise
        for (first, last, before, after), seq in suspects:
            if last <= now.trimmed_n or _is_covered(first, last, now.lost):
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


def _is_possible(count: int, size: int, positions: int) -> bool:
    """Return whether so many records may have had so many bytes, and so many positions at most."""
    return 0 <= count <= positions and count <= size <= count * MOST_BYTES


def _is_covered(first: int, last: int, lost: Sequence[Range]) -> bool:
    for begin, end, *_ in sorted(lost):
        if begin <= first <= end:
            first = end + 1
    return first > last
