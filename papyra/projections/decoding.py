"""What a projection is given for a record."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, cast

from papyra.exceptions import EventsCompacted
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.records import PersistedEvent, Record
from papyra.persistence.subscription import Received
from papyra.projections.projection import Wanted

__all__ = ("Decoder",)

#: As Received's own, in a call less.
_received = functools.partial(tuple.__new__, Received)


class Decoder:
    """Decodes records into what a projection is given."""

    def __init__(self, wanted: Wanted) -> None:
        self._decode = wanted.decode

    def __call__(self, record: Record) -> Sequence[Any]:
        """Return what is given for a record; raise what decoding does, and `EventsCompacted`."""
        if isinstance(record, PersistedEvent) and record.event_type == BASE_TYPE:
            raise EventsCompacted(
                f"the events of {record.actor_address} up to revision {record.revision}, which is "
                f"at position {record.seq}, were removed from the store"
            )
        if self._decode is None or not isinstance(record, PersistedEvent):
            return (record,)
        return [Received(event, record) for event in self._decode(record)]

    def each(self, records: Sequence[Record]) -> Iterable[Sequence[Any]]:
        """Yield what is given for each record. What decoding one raises is raised at its turn."""
        if self._decode is not None:
            # Who has classes gets no other kind.
            events = self._decode.decode_together(cast("Sequence[PersistedEvent]", records))
            if events is not None:
                return zip(map(_received, zip(events, records, strict=True)), strict=False)
        return map(self, records)
