"""Reading records of several kinds in the order of their positions, for those who follow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Protocol

import msgspec

from papyra.exceptions import StoreReplaced
from papyra.persistence.anchors import record_checksum
from papyra.persistence.backends._bounds import bounded_read
from papyra.persistence.backends.store import Identified
from papyra.persistence.messages import AllPage, Anchor, Page, Read, ReadAll
from papyra.persistence.records import Record
from papyra.persistence.retention import RetentionPolicy

__all__ = ("Readable", "read_all")

#: Reads with it show everything that is stored.
_ALL = RetentionPolicy()
_seq: Callable[[Record], Any] = attrgetter("seq")


class Readable(Protocol):
    """The part of a `Store` that is read."""

    async def read(self, request: Read, policy: RetentionPolicy, now: float, /) -> Page:
        """Return a page of what `policy` shows at Unix time `now`."""
        ...


async def read_all(store: Readable, request: ReadAll, head: int, *, is_writer: bool) -> AllPage:
    """Return a page of a store that is known to be read up to `head`.

    That was asked for before this reads: what is behind it may be in one kind already, and not yet
    in another. Unless this process `is_writer`, it is checked that the store is still the same.
    """
    if request.after > head:
        raise StoreReplaced(f"the store ends at {head}, before position {request.after}")
    if request.after == head and (is_writer or not request.afresh):
        return AllPage((), head, head)
    store_id = None if is_writer else await _check(store, request.anchor)
    if request.after == head:
        return AllPage((), head, head, store_id)
    parts: list[Sequence[Record]] = []
    covered = head
    for read in request.reads():
        part = await store.read(
            bounded_read(msgspec.structs.replace(read, before=covered + 1)), _ALL, 0.0
        )
        if part.more:
            covered = min(covered, part.next_after)
        parts.append(part.records)
    # Each is in order, and may go on behind what the last one covers.
    parts = [part[: bisect_right(part, covered, key=_seq)] for part in parts]
    filled = [part for part in parts if part]
    records = filled[0] if len(filled) == 1 else sorted(chain.from_iterable(filled), key=_seq)
    return AllPage(tuple(records), covered, head, store_id)


async def _check(store: Readable, anchor: Anchor | None) -> str | None:
    """Return the id of the store. Raises `StoreReplaced` if the anchor is not in it."""
    store_id = await store.store_id() or None if isinstance(store, Identified) else None
    if anchor is None:
        return store_id
    if anchor.store_id is not None and store_id != anchor.store_id:
        raise StoreReplaced(
            f"this is store {store_id or 'without an id'}, and position {anchor.seq} "
            f"is one of store {anchor.store_id}"
        )
    read = Read(anchor.kind, anchor.seq - 1, limit=1, before=anchor.seq + 1)
    found = (await store.read(bounded_read(read), _ALL, 0.0)).records
    # It may have been compacted.
    if found and record_checksum(found[0]) != anchor.checksum:
        raise StoreReplaced(f"another record is at position {anchor.seq} than the one before")
    return store_id
