"""The limits of a page of a read, so that no read holds the mailbox for long."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

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
    is_narrow, event_type, size = request.actor is not None, request.event_type, 0
    records: list[Record] = []
    left = iter(candidates)
    first: Record | None = None
    for record, length in islice(left, MAX_PAGE_RECORDS):
        if len(records) >= wanted or size >= MAX_PAGE_BYTES:
            more = True
            break
        if first is None:
            first = record
        last = record
        size += length
        # Most reads are of a type, or of all: a call for each record would take as long again.
        is_of_type = event_type is None or (
            type(record) is PersistedEvent and record.event_type == event_type
        )
        if is_of_type and (not is_narrow or request.selects(record)):
            records.append(record)
    else:
        more = first is not None and next(left, None) is not None
    if first is None:
        return Page((), request.after, more, request.before or 0)
    ends = first.seq or 0, last.seq or 0
    if request.newest:
        records.reverse()
    return Page(tuple(records), max(ends), more, min(ends))


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
