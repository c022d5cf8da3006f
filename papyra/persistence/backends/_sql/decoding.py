"""Rows to records: many at once, and without those that can't be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias
from zlib import crc32

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.records import Record

__all__ = ("StoredRow", "decoded")

#: Position, checksum and bytes of a record.
StoredRow: TypeAlias = tuple[int, int, bytes]

#: How many rows are decoded together, at first and at most.
_DECODED, _MOST_DECODED = 16, 256


def decoded(
    rows: Iterable[StoredRow], found_damage: Callable[[], None]
) -> Iterator[tuple[Record, int]]:
    """Yield the record in each row, and how many bytes it takes.

    Rows are taken as they are needed, and some more. Those that can't be read, or have another
    checksum, are passed over, and `found_damage` is called.
    """
    remaining, step = iter(rows), _DECODED
    while part := list(islice(remaining, step)):
        yield from _decoded_together(part) or _decoded_one_by_one(part, found_damage)
        step = min(4 * step, _MOST_DECODED)


def _decoded_together(rows: Sequence[StoredRow]) -> Iterable[tuple[Record, int]] | None:
    """Return the records of some rows; `None` if there is anything wrong with one."""
    seqs, checksums, encoded = zip(*rows, strict=True)
    try:
        if list(checksums) == list(map(crc32, encoded, seqs)):
            return zip(codec.decode_many(encoded, seqs), map(len, encoded), strict=True)
    except (StoreError, TypeError):  # it may be no bytes at all
        pass
    return None


def _decoded_one_by_one(
    rows: Sequence[StoredRow], found_damage: Callable[[], None]
) -> Iterator[tuple[Record, int]]:
    for row in rows:
        found = _decoded_together([row])
        if found is None:
            found_damage()
        else:
            yield from found
