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
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias
from zlib import crc32

import msgspec

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.records import Kind, Record, kind_of
from papyra.persistence.reports import AnomalyKind

__all__ = (
    "LATEST_MS",
    "MOST_BYTES",
    "Entry",
    "RawEntry",
    "Wrong",
    "check",
    "checksums",
    "following",
    "id_of",
    "millisecond",
    "milliseconds",
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

_FIELDS = frozenset({b"record", b"n", b"total", b"crc"})
_MASK = 0xFFFFFFFF
_WHOLE = re.compile(rb"0|[1-9][0-9]{0,13}")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An entry that Papyra wrote, its record still encoded."""

    id: bytes
    seq: int
    #: 0, and `total`, too, where the numbers can't be right: n is at most seq
    n: int
    total: int
    record: bytes

    @property
    def total_before(self) -> int:
        """Bytes in the stream up to and without this one."""
        return self.total - len(self.record)


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
    last = first_seq + len(encoded)
    if last <= _MASK:
        sums = array("I", map(crc32, encoded, range(first_seq, last)))
    else:
        sums = array("I", [crc32(e, (first_seq + i) & _MASK) for i, e in enumerate(encoded)])
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
    if fields.keys() != _FIELDS:
        names = ", ".join(sorted(field.decode(errors="replace") for field in fields))
        return None, ("wrong_fields", f"the fields are {names[:200]}")
    ms, seq = id_of(identifier)
    if ms > LATEST_MS or not 0 < seq <= LATEST_MS:
        return None, ("wrong_fields", "the id is none that Papyra gives")
    n, total, record = whole(fields[b"n"]), whole(fields[b"total"]), fields[b"record"]
    if n is None or total is None or not 0 < n <= seq or not len(record) <= total <= n * MOST_BYTES:
        n = total = 0
    return Entry(identifier, seq, n, total, record), None


def check(entry: Entry, crc: bytes, kind: Kind) -> tuple[Record | None, Wrong | None]:
    """Return an entry's record, or what is wrong with it."""
    seq = entry.seq
    if b"%08x" % crc32(entry.record, seq & _MASK) != crc:
        return None, ("checksum", f"the checksum of record {seq} is another one")
    try:
        record = codec.decode(entry.record, seq)
    except StoreError as error:
        is_kept = codec.may_be_a_record(entry.record)
        return None, ("unknown_kind" if is_kept else "corrupt", str(error))
    if kind_of(record) != kind:
        return None, ("corrupt", f"record {seq} is of the kind {kind_of(record)}, not {kind}")
    return record, None


def record_of(raw: RawEntry, kind: Kind) -> tuple[Record | None, int, Wrong | None]:
    """Return an entry's record, its bytes, and what is wrong with it."""
    entry, wrong = read(raw)
    if entry is None:
        return None, 0, wrong
    record, wrong = check(entry, raw[1][b"crc"], kind)
    return record, len(entry.record), wrong
