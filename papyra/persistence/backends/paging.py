"""The limits of a page of a read, so that no read holds the mailbox for long."""

from __future__ import annotations

from collections.abc import Iterable

from papyra.persistence.messages import HistoryPage, Page, Read, ReadHistory
from papyra.persistence.records import PersistedEvent, Record

#: A page examines at most this many records.
MAX_PAGE_RECORDS = 5_000
#: A page ends with the record that takes it to this many bytes.
MAX_PAGE_BYTES = 8 * 1024 * 1024

#: A run of a history that is given out encoded has at most this many records.
MAX_RUN_RECORDS = 256


def records_wanted(request: ReadHistory) -> int:
    """Return how many records a page of a history has, at most."""
    return MAX_PAGE_RECORDS if request.limit is None else min(request.limit, MAX_PAGE_RECORDS)


def collect_page(request: Read, candidates: Iterable[tuple[Record, int]]) -> Page:
    """Return the page of a read.

    `candidates` are the records of its kind that its positions, its times and retention let
    through, each with its bytes, in the direction of the read. They are taken one by one, and at
    most one more than the page examines.
    """
    wanted = MAX_PAGE_RECORDS if request.limit is None else request.limit
    selects = None if (request.event_type, request.actor) == (None, None) else request.selects
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
        if selects is None or selects(record):
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


def collect_history(request: ReadHistory, candidates: Iterable[tuple[Record, int]]) -> HistoryPage:
    """Return the page of a history.

    `candidates` are records from where the page begins, each with its bytes, in the order of their
    positions, among them all that are part of the history; others are passed over. They are taken
    one by one, and at most one of the history more than the page holds.
    """
    wanted = records_wanted(request)
    events: list[PersistedEvent] = []
    size, more = 0, False
    for record, length in candidates:
        if (
            type(record) is not PersistedEvent
            or record.actor_address != request.actor
            or (record.revision or 0) <= request.after_revision
        ):
            continue
        more = len(events) >= wanted or size >= MAX_PAGE_BYTES
        if more:
            break
        events.append(record)
        size += length
    after = max((event.revision or 0 for event in events), default=request.after_revision)
    return HistoryPage(tuple(events), after, more)
