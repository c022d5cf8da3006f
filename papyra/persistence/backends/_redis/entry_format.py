"""The format of stream entries, and the records in them.

An entry has the id ``<ms>-<seq>``, where ``seq`` is the record's position in the store, and ``ms``
the time of the record in milliseconds, or that of an older one if that was later: ids never go
back. Its fields are

``record``
    the record, one JSON object
``n``
    which one of its kind it is, from 1
``total``
    how many bytes of ``record`` there are in the stream up to and with this one, whatever was
    trimmed: so how many records, or bytes of them, lie between two entries is known from the two
``crc``
    CRC-32 of ``record``, started with ``seq`` (modulo 2**32); 8 hex digits

Nothing can be written in the place of an entry, so the base of a history is kept beside its stream,
in a hash, by the id of the entry in place of which it is read: as its checksum, like ``crc``, a
space, and its record.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias
from zlib import crc32

import msgspec

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.records import Kind, PersistedEvent, Record, kind_of
from papyra.persistence.reports import AnomalyKind

__all__ = (
    "FIELDS",
    "LATEST_MS",
    "MOST_BYTES",
    "Entry",
    "RawEntry",
    "Rebased",
    "Wrong",
    "base_as_kept",
    "check",
    "checksums",
    "checksums_at",
    "following",
    "id_of",
    "millisecond",
    "milliseconds",
    "raw_entries",
    "read",
    "record_of",
    "whole",
)

#: What redis-py returns of an entry: its id, and its fields.
RawEntry: TypeAlias = tuple[bytes, Mapping[bytes, bytes]]

#: What is wrong with an entry, and in words.
Wrong: TypeAlias = tuple[AnomalyKind, str]

#: The greatest time of an id, and every other number; scripts write them with 14 digits.
LATEST_MS = 99_999_999_999_999

#: The most that a record can have: a server takes no longer strings.
MOST_BYTES = 2**29

#: of an entry, in their order
FIELDS = (b"record", b"n", b"total", b"crc")
_FIELDS = frozenset(FIELDS)
_MASK = 0xFFFFFFFF
_WHOLE = re.compile(rb"0|[1-9][0-9]{0,13}")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An entry that Papyra wrote, its record still encoded."""

    id: bytes
    seq: int
    #: 0, and `total`, too, where the numbers can't be right: n is at most seq
    n: int
    total: int
    #: the base that is read in place of it, if there is one
    record: bytes
    crc: bytes
    #: bytes of what it is read in place of, if it is a base that is kept beside the stream; else -1
    replaced: int = -1

    @property
    def size(self) -> int:
        """Bytes of the record in the stream."""
        return len(self.record) if self.replaced < 0 else self.replaced

    @property
    def total_before(self) -> int:
        """Bytes in the stream up to and without this one."""
        return self.total - self.size


class Rebased(dict[bytes, bytes]):
    """The fields of an entry in place of which a base is read."""

    def __init__(self, fields: Mapping[bytes, bytes], base: bytes) -> None:
        super().__init__(fields)
        #: as the hash has it
        self.base = base

    @property
    def record(self) -> bytes:
        """The base, encoded."""
        return self.base[9:]


def base_as_kept(seq: int, encoded: bytes) -> bytes:
    """Return a base as the hash has it."""
    return b"%b %b" % (checksums((encoded,), seq).encode(), encoded)


def raw_entries(entries: Sequence[Any], bases: Sequence[bytes | None] = ()) -> list[RawEntry]:
    """Return entries as a script returns them, with the bases in their places, if there are any."""
    raws: list[RawEntry] = []
    for identifier, fields in entries:
        words = iter(fields)
        raws.append((identifier, dict(zip(words, words, strict=True))))
    if not bases:
        return raws
    return [
        (identifier, fields if base is None else Rebased(fields, base))
        for (identifier, fields), base in zip(raws, bases, strict=True)
    ]


def id_of(identifier: bytes) -> tuple[int, int]:
    """Return the two numbers of an entry's id."""
    ms, _, seq = identifier.partition(b"-")
    return int(ms), int(seq)


def following(identifier: bytes) -> str:
    """Return the least id that comes after one."""
    ms, seq = id_of(identifier)
    return f"{ms}-{seq + 1}"


def checksums(encoded: Sequence[bytes], first_seq: int) -> str:
    """Return the checksums of records numbered from `first_seq`, one after the other."""
    return checksums_at(encoded, range(first_seq, first_seq + len(encoded)))


def checksums_at(encoded: Sequence[bytes], seqs: Sequence[int]) -> str:
    """Return the checksums of records at rising positions, one after the other."""
    if seqs[-1] <= _MASK:
        sums = array("I", map(crc32, encoded, seqs))
    else:
        sums = array("I", [crc32(e, seq & _MASK) for e, seq in zip(encoded, seqs, strict=True)])
    if sys.byteorder == "little":
        sums.byteswap()
    return sums.tobytes().hex()


def milliseconds(timestamps: Sequence[float], least: int) -> tuple[list[int], int]:
    """Return the times of records as ids have them, and how much later than the records they are.

    `least` is the greatest so far. The second is the greatest difference there is.
    """
    times = _clamped(timestamps)
    rising = list(accumulate(times, max, initial=least))
    del rising[0]
    if rising == times:
        return rising, 0
    return rising, max(map(int.__sub__, rising, times))


def millisecond(timestamp: float) -> int:
    """Return a time as ids have it. What is later than another is not earlier here."""
    return _clamped([timestamp])[0]


def _clamped(timestamps: Sequence[float]) -> list[int]:
    try:
        times = [int(time * 1000) for time in timestamps]
    except OverflowError:
        pass
    else:
        if min(times) >= 0 and max(times) <= LATEST_MS:
            return times
    return [int(min(max(time, 0.0) * 1000, LATEST_MS)) for time in timestamps]


def whole(text: bytes) -> int | None:
    """Return a whole number as scripts write it; `None` for anything else."""
    return int(text) if _WHOLE.fullmatch(text) else None


def read(raw: RawEntry) -> tuple[Entry | None, Wrong | None]:
    """Return what an entry says, or why it is none of ours."""
    identifier, fields = raw
    if type(fields) is Rebased:
        return _read_rebased(identifier, fields)
    if fields.keys() != _FIELDS:
        names = ", ".join(sorted(field.decode(errors="replace") for field in fields))
        return None, ("wrong_fields", f"the fields are {names[:200]}")
    ms, seq = id_of(identifier)
    if ms > LATEST_MS or not 0 < seq <= LATEST_MS:
        return None, ("wrong_fields", "the id is none that Papyra gives")
    n, total, record = whole(fields[b"n"]), whole(fields[b"total"]), fields[b"record"]
    if n is None or total is None or not 0 < n <= seq or not len(record) <= total <= n * MOST_BYTES:
        n = total = 0
    return Entry(identifier, seq, n, total, record, fields[b"crc"]), None


def _read_rebased(identifier: bytes, fields: Rebased) -> tuple[Entry | None, Wrong | None]:
    """Return what `read` does of an entry in place of which a base is read.

    Nobody needs what the entry says itself, but for its numbers.
    """
    own = {name: fields.get(name, b"") for name in FIELDS}
    entry, wrong = read((identifier, own))
    if entry is None:
        return None, wrong
    return msgspec.structs.replace(
        entry, record=fields.record, crc=fields.base[:8], replaced=len(own[b"record"])
    ), None


def check(entry: Entry, kind: Kind) -> tuple[Record | None, Wrong | None]:
    """Return an entry's record, or what is wrong with it."""
    seq = entry.seq
    if b"%08x" % crc32(entry.record, seq & _MASK) != entry.crc:
        return None, ("checksum", f"the checksum of record {seq} is another one")
    try:
        record = codec.decode(entry.record, seq)
    except StoreError as error:
        is_kept = codec.may_be_a_record(entry.record)
        return None, ("unknown_kind" if is_kept else "corrupt", str(error))
    if kind_of(record) != kind:
        return None, ("corrupt", f"record {seq} is of the kind {kind_of(record)}, not {kind}")
    if entry.replaced >= 0 and not is_base(record):
        return None, ("corrupt", f"what is kept as a base in place of record {seq} is none")
    return record, None


def is_base(record: Record) -> bool:
    """Return whether a record is the base of a history."""
    return isinstance(record, PersistedEvent) and record.event_type == BASE_TYPE


def record_of(raw: RawEntry, kind: Kind) -> tuple[Record | None, int, Wrong | None]:
    """Return an entry's record, its bytes, and what is wrong with it."""
    entry, wrong = read(raw)
    if entry is None:
        return None, 0, wrong
    record, wrong = check(entry, kind)
    return record, len(entry.record), wrong
