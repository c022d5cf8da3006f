"""Rows to records: many at once, and without those that can't be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.records import Record

__all__ = ("decoded",)

#: How many rows are decoded together, at first and at most.
_DECODED, _MOST_DECODED = 16, 256


def decoded(
    rows: Iterable[tuple[int, bytes]], found_damage: Callable[[], None]
) -> Iterator[tuple[Record, int]]:
    """Yield the record in each row of a position and its bytes, and how many these are.

    Rows are taken as they are needed, and some more. Those that can't be read are passed over, and
    `found_damage` is called.
    """
    remaining, step = iter(rows), _DECODED
    while part := list(islice(remaining, step)):
        yield from zip(*_decoded_part(part, found_damage), strict=True)
        step = min(4 * step, _MOST_DECODED)


def _decoded_part(
    rows: Sequence[tuple[int, bytes]], found_damage: Callable[[], None]
) -> tuple[Sequence[Record], Sequence[int]]:
    if all(type(data) is bytes for _, data in rows):
        seqs, encoded = zip(*rows, strict=True)
        try:
            return codec.decode_many(encoded, seqs), list(map(len, encoded))
        except StoreError:
            pass  # then it is found out which
    records: list[Record] = []
    sizes: list[int] = []
    for seq, data in rows:
        try:
            if type(data) is not bytes:
                raise StoreError(f"record {seq} has no bytes")
            records.append(codec.decode(data, seq))
            sizes.append(len(data))
        except StoreError:
            found_damage()
    return records, sizes
