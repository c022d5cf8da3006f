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

    new = tuple.__new__  # as Received's own does, in a call less

    def decode_event(record: Record) -> Sequence[Any]:
        events = decode(record)  # type: ignore[arg-type] # who has classes gets no other kind
        if type(events) is tuple and events:  # as nearly all are
            return (new(Received, (events[0], record)),)
        return _decoded(wanted, record)

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
