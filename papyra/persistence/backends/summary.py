"""The summary of a store: how much it holds, from when to when."""

from __future__ import annotations

from array import array

import msgspec

from papyra.persistence import codec
from papyra.persistence.backends.store import Store, Summarizing
from papyra.persistence.messages import Read
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import StoreSummary
from papyra.persistence.retention import RetentionPolicy

_EVERYTHING = RetentionPolicy()


async def summarize(store: Store) -> StoreSummary:
    """Sum up a store, what retention hides included; by reading all of it if it can't itself."""
    if isinstance(store, Summarizing):
        return await store.summarize()
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
    return StoreSummary(
        backend=store.name,
        location=store.location,
        last_seq=await store.last_seq(),
        records=records,
        record_bytes=sizes,
        stored_bytes=None,
        oldest=min(times, default=None),
        newest=max(times, default=None),
    )
