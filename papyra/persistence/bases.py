"""The base of a history: an event that stands for all of them up to its own revision.

A history whose beginning was removed begins with it. It is a record like any other, at the position
of the last event that it stands for, so it is scanned, copied and recovered with the others.
"""

from __future__ import annotations

import msgspec

from papyra.persistence import codec
from papyra.persistence.records import RESERVED, PersistedEvent
from papyra.persistence.snapshots import Snapshot, checksum

#: The type of the event that is a base.
BASE_TYPE = RESERVED + "base"


class Base(msgspec.Struct, frozen=True):
    """The payload of a base: a snapshot, without what its record says already."""

    #: the state after the event that it stands in for, as plain data
    state: msgspec.Raw
    #: of the state's meaning, as the actor's `SnapshotPolicy` said it
    version: int
    #: of the state's type, so that a field more or less is noticed
    shape: str
    #: Unix time in seconds, when the snapshot was taken
    timestamp: float
    #: of the event that it stands in for: snapshots that name it stay good
    checksum: str
    #: what else the events add up to, as in `Snapshot`
    bookkeeping: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class InvalidBase(ValueError):
    """A base that can't be read, or a snapshot that no base can be made of."""


def base_of(event: PersistedEvent, snapshot: Snapshot) -> PersistedEvent:
    """Return the base that takes the place of `event`, which `snapshot` was taken after."""
    payload = Base(
        *(snapshot.state, snapshot.version, snapshot.shape, snapshot.timestamp),
        *(event_checksum(event), snapshot.bookkeeping),
    )
    return PersistedEvent(
        *(event.system_id, event.actor_address, BASE_TYPE, payload, event.timestamp),
        *(event.seq, event.revision),
    )


def read_base(record: PersistedEvent) -> Base | None:
    """Return what a base says, or `None` for any other event. Raises `InvalidBase`."""
    if record.event_type != BASE_TYPE:
        return None
    try:
        encoded = codec.encode_payload(record.payload)
        return msgspec.json.decode(encoded, type=Base)
    except Exception as error:
        raise InvalidBase(f"the base of a history can't be read: {error}") from error


def event_checksum(event: PersistedEvent) -> str:
    """Return the checksum of an event as it is read, for who names it from outside its record.

    That of a base is the one of the event that it stands in for.
    """
    base = read_base(event)
    if base is not None:
        return base.checksum
    return checksum(codec.to_json(msgspec.structs.replace(event, seq=None)))
