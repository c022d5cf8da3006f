"""What a store holds, summed up."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import accumulate, pairwise

import msgspec

from papyra.persistence import codec
from papyra.persistence.backends.store import Store, Summarizing
from papyra.persistence.messages import Read
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import StoreSummary
from papyra.persistence.retention import RetentionPolicy

__all__ = ("Span", "spread", "summarize")

#: From when to when (Unix time in seconds) there are how many records.
Span = tuple[float, float, int]

_EVERYTHING = RetentionPolicy()


def spread(spans: Iterable[Span], oldest: float, newest: float, intervals: int) -> tuple[int, ...]:
    """Return how many records there are in each of so many parts of a time, about.

    Those of one span are taken to be spread evenly over it. None is lost: the sum is theirs.
    """
    if not intervals:
        return ()
    shares = [0.0] * intervals
    last = intervals - 1
    # In halves, as the whole of it may be more than a float holds.
    width = (newest / 2 - oldest / 2) / intervals or 1.0

    def part_of(time: float) -> int:
        return min(last, max(0, int((time / 2 - oldest / 2) / width)))

    for start, end, count in spans:
        first_part, last_part = part_of(start), part_of(end)
        share = count / (last_part - first_part + 1)
        for part in range(first_part, last_part + 1):
            shares[part] += share
    upto = [round(total) for total in accumulate(shares)]
    return tuple(after - before for before, after in pairwise([0, *upto]))


async def summarize(store: Store, intervals: int) -> StoreSummary:
    """Sum up a store, what retention hides included; by reading all of it if it can't itself."""
    if isinstance(store, Summarizing):
        return await store.summarize(intervals)
    records: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    sizes: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    times = array("d")
    for kind in KINDS:
        request, more = Read(kind), True
        while more:
            page = await store.read(request, _EVERYTHING, 0.0)
            records[kind] += len(page.records)
            sizes[kind] += sum(map(codec.stored_size, page.records))
            times.extend(record.timestamp for record in page.records)
            request, more = msgspec.structs.replace(request, after=page.next_after), page.more
    oldest, newest = (min(times), max(times)) if times else (None, None)
    return StoreSummary(
        backend=store.name,
        location=store.location,
        last_seq=await store.last_seq(),
        records=records,
        record_bytes=sizes,
        stored_bytes=None,
        oldest=oldest,
        newest=newest,
        intervals=spread(((t, t, 1) for t in times), oldest or 0.0, newest or 0.0, intervals),
    )
