"""The place of a projection in a store: whether it is still the same one, and what is gone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from papyra.exceptions import EventsCompacted, StoreReplaced
from papyra.message import ReplyT
from papyra.persistence.anchors import record_checksum
from papyra.persistence.messages import AllPage, Anchor, Identify, ReadAll, Request
from papyra.persistence.records import KINDS, Kind, Record, kind_of

__all__ = ("check_place", "find_record", "store_id_of")


class Reading(Protocol):
    """The part of a backend that reads."""

    async def execute(self, request: Request[ReplyT]) -> ReplyT:
        """Execute `request` and return the reply."""
        ...


async def store_id_of(backend: Reading) -> str | None:
    """Return the id of the store; `None` if it has none."""
    return (await backend.execute(Identify())).store_id


async def check_place(
    backend: Reading,
    position: int,
    anchor: Anchor | None,
    store_id: str | None,
    kinds: Collection[Kind],
) -> None:
    """Check that a store goes on after a position as it did, for who follows these kinds.

    Raises `StoreReplaced` if it is another one, or ends before, or has another record there;
    `EventsCompacted` if what was there is removed, and what follows it as well.
    """
    await backend.execute(ReadAll(position, KINDS))  # which knows where it ends
    if anchor is None:
        return
    if anchor.store_id is not None and anchor.store_id != store_id:
        raise StoreReplaced(
            f"this is store {store_id or 'without an id'}, and position {anchor.seq} "
            f"is one of store {anchor.store_id}"
        )
    found = await find_record(backend, anchor.seq)
    if found is None:
        await _check_gaps(backend, position, kinds)
    elif record_checksum(found) != anchor.checksum:
        raise StoreReplaced(f"another record is at position {anchor.seq} than the one before")


async def _check_gaps(backend: Reading, position: int, kinds: Collection[Kind]) -> None:
    """Raise `EventsCompacted` for a gap before the first record of some kinds: the oldest goes."""
    while True:
        page: AllPage = await backend.execute(ReadAll(position, KINDS))
        for record in page.records:
            first = record.seq or 0
            if first > position + 1:
                raise EventsCompacted(
                    f"the positions from {position + 1} to {first - 1} were removed from the "
                    "store, and are not handled: skip() goes on without them"
                )
            if kind_of(record) in kinds:
                return
            position = first
        if page.next_after == page.head:
            return
        position = page.next_after


async def find_record(backend: Reading, seq: int) -> Record | None:
    """Return the record at a position, whatever retention hides; `None` if there is none."""
    page: AllPage = await backend.execute(ReadAll(seq - 1, KINDS))
    found = page.records[0] if page.records else None
    return found if found is not None and found.seq == seq else None
