"""The limits of a page of a read, so that no read holds the mailbox for long."""

from __future__ import annotations

from collections.abc import Iterable

from papyra.persistence.messages import Page, Read
from papyra.persistence.records import Record

__all__ = ("MAX_PAGE_BYTES", "MAX_PAGE_RECORDS", "collect_page")

#: A page examines at most this many records.
MAX_PAGE_RECORDS = 5_000
#: A page ends with the record that takes it to this many bytes.
MAX_PAGE_BYTES = 8 * 1024 * 1024


def collect_page(request: Read, candidates: Iterable[tuple[Record, int]]) -> Page:
    """Return the page of a read.

    `candidates` are the records of its kind that its positions, its times and retention let
    through, each with its bytes, in the direction of the read. They are taken one by one, and at
    most one more than the page examines.
    """
    wanted = MAX_PAGE_RECORDS if request.limit is None else request.limit
    records: list[Record] = []
    first = last = examined = size = 0
    more = False
    for record, length in candidates:
        more = len(records) >= wanted or examined >= MAX_PAGE_RECORDS or size >= MAX_PAGE_BYTES
        if more:
            break
        last = record.seq or 0
        first = first or last
        examined += 1
        size += length
        if request.selects(record):
            records.append(record)
    if request.newest:
        records.reverse()
        first, last = last, first
    return Page(
        records=tuple(records),
        next_after=last if examined else request.after,
        more=more,
        next_before=first if examined else request.before or 0,
    )
