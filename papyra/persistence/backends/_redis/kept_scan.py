"""The scan of what compactions have kept: the events with a revision that begin the stream."""

from __future__ import annotations

from papyra.persistence.backends._redis.entry_format import (
    Entry,
    RawEntry,
    Wrong,
    check,
    id_of,
    read,
)
from papyra.persistence.backends._redis.store_state import Kept, StoreState
from papyra.persistence.backends._redis.stream_scan import Findings, Renumbering
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("KeptScan",)


class KeptScan:
    """The kept events, one after the other. Their numbers have holes, so they are summed up."""

    def __init__(self, key: str, state: StoreState, found: Findings) -> None:
        self._key = key
        self._found = found
        self._stream = state.streams["event"]
        self._is_over = False
        self._upto = self._stream.kept.upto
        self._count = self._size = self._seq = 0
        self._first = b""
        #: of the last one
        self._n = self._total = 0

    def takes(self, raw: RawEntry) -> bool:
        """Check an entry, and return `True`; `False` for one that comes after the kept ones."""
        if self._is_over:
            return False
        entry, wrong = read(raw)
        n = 0 if entry is None else entry.n
        if id_of(raw[0]) > id_of(self._stream.kept.upto) and not 0 < n <= self._stream.trimmed_n:
            self._is_over = True
            return False
        if entry is None:
            assert wrong is not None
            self._reject(raw[0], wrong, None)
            return True
        if entry.seq <= self._seq:
            wrong = ("duplicate", f"record {entry.seq} is there twice")
        else:
            _, wrong = check(entry, "event")
        if wrong is not None and wrong[0] != "unknown_kind":
            self._reject(raw[0], wrong, entry.seq)
            return True
        if wrong is not None:
            self._found.anomalies.append(self._anomaly(wrong, raw[0], entry.seq))
        self._count, self._size, self._seq = (
            self._count + 1,
            self._size + len(entry.record),
            entry.seq,
        )
        self._check_numbers(entry)
        self._upto = max(self._upto, raw[0], key=id_of)
        self._found.records += 1
        self._found.bytes_read += len(entry.record)
        return True

    def _check_numbers(self, entry: Entry) -> None:
        """Have everything counted anew, if what is searched by numbers is in disorder."""
        self._first = self._first or entry.id
        is_in_order = self._n < entry.n <= self._stream.trimmed_n
        if (is_in_order and self._total <= entry.total_before) or self._is_misnumbered:
            self._n, self._total = entry.n, entry.total
            return
        self._found.renumberings["event"] = Renumbering(self._first)
        detail = f"n or total of record {entry.seq} is not what it was"
        wrong: Wrong = ("wrong_fields", detail)
        self._found.anomalies.append(self._anomaly(wrong, entry.id, entry.seq))

    @property
    def _is_misnumbered(self) -> bool:
        return "event" in self._found.renumberings

    def finish(self, now: StoreState) -> None:
        """Compare with what is noted, if nobody has compacted the store meanwhile."""
        stream, kept = now.streams["event"], self._stream.kept
        renumbering = self._found.renumberings.get("event")
        if renumbering is not None and renumbering.id == self._first:
            self._found.kept = (now.meta.get("event:kept", b""), b"")
            return
        found = Kept(self._count, self._size, self._upto)
        if (stream.kept, stream.trimmed_n) != (kept, self._stream.trimmed_n) or (
            (found.count, found.size) == (kept.count, kept.size)
        ):
            return
        self._found.kept = (now.meta.get("event:kept", b""), found.written)
        if self._found.bad_bases and found.count == kept.count:
            return  # the events in the places of which they are read have other sizes
        if found.count < kept.count:
            detail = f"{kept.count - found.count} of the events that compactions kept are missing"
            self._found.anomalies.append(PersistenceAnomaly("gap", detail, self._key))
        else:
            detail = (
                f"compactions kept {found.count} events of {found.size} bytes, "
                f"not {kept.count} of {kept.size}, as is noted"
            )
            self._found.anomalies.append(PersistenceAnomaly("corrupt", detail, self._key))

    def _reject(self, identifier: bytes, wrong: Wrong, seq: int | None) -> None:
        self._found.bad["event"].append(identifier)
        self._found.anomalies.append(self._anomaly(wrong, identifier, seq))

    def _anomaly(self, wrong: Wrong, identifier: bytes, seq: int | None) -> PersistenceAnomaly:
        kind, detail = wrong
        return PersistenceAnomaly(kind, detail, self._key, seq=seq, entry=identifier.decode())
