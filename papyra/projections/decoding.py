"""What a projection is given for a record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from papyra.exceptions import EventsCompacted
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.records import PersistedEvent, Record
from papyra.persistence.subscription import Received
from papyra.projections.projection import Wanted

__all__ = ("decoder",)


def decoder(wanted: Wanted) -> Callable[[Record], Sequence[Any]]:
    """Return what returns what a projection is given for a record; it raises what decoding does."""
    decode = wanted.decode
    if decode is None:
        return functools.partial(_decoded, wanted)

    def decode_event(record: Record) -> Sequence[Any]:
        if not isinstance(record, PersistedEvent) or record.event_type == BASE_TYPE:
            return _decoded(wanted, record)
        events = decode(record)
        if type(events) is tuple and len(events) == 1:  # as nearly all are
            return (Received(events[0], record),)
        return [Received(event, record) for event in events]

    return decode_event


def _decoded(wanted: Wanted, record: Record) -> Sequence[Any]:
    if isinstance(record, PersistedEvent) and record.event_type == BASE_TYPE:
        raise EventsCompacted(
            f"the events of {record.actor_address} up to revision {record.revision}, which is at "
            f"position {record.seq}, were removed from the store"
        )
    if wanted.decode is None or not isinstance(record, PersistedEvent):
        return (record,)
    return [Received(event, record) for event in wanted.decode(record)]
