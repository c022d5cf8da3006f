"""Checksums of records, for those who keep a position in a store outside of it."""

from __future__ import annotations

import msgspec

from papyra.persistence import codec
from papyra.persistence.bases import event_checksum
from papyra.persistence.messages import Anchor
from papyra.persistence.records import PersistedEvent, Record, kind_of
from papyra.persistence.snapshots import checksum

__all__ = ("anchor_of", "record_checksum")


def record_checksum(record: Record) -> str:
    """Return the checksum of a record as it is read; of a base, that of the event it stands for."""
    if isinstance(record, PersistedEvent):
        return event_checksum(record)
    return checksum(codec.to_json(msgspec.structs.replace(record, seq=None)))


def anchor_of(record: Record, store_id: str | None) -> Anchor:
    """Return what holds on to a record of a store."""
    return Anchor(kind_of(record), record.seq or 0, record_checksum(record), store_id)
