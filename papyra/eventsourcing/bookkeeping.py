"""Bookkeeping: what Papyra knows of one actor beside its state, as part of the same sum of events.

It is made of the events' metadata, and of notes: events of Papyra's own in the same history, which
change no state. A snapshot holds it, and so does the base of a history whose beginning was removed.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from papyra.eventsourcing.steps import Step
from papyra.persistence.bases import BASE_TYPE, read_base

#: The types of events that are notes.
NOTES: Final[frozenset[str]] = frozenset()


class Note(NamedTuple):
    """A note that is to be stored, next to events."""

    event_type: str
    payload: Any


class Bookkeeping(msgspec.Struct, omit_defaults=True):
    """What a snapshot holds beside the state. Each field is left out while there is nothing in it.

    A field that is added has a default: what was stored without it stays readable.
    """


class Books:
    """The bookkeeping of one actor, up to the revision of its state."""

    def __init__(self) -> None:
        self.kept = Bookkeeping()

    def clear(self) -> None:
        """Begin before the first event."""
        self.kept = Bookkeeping()

    def take_in(self, record: Step) -> None:
        """Add one event of the history, the next one. Raises for a note that can't be read."""
        if record.event_type == BASE_TYPE:
            self.kept = decode_books(_base_books(record))


def encode_books(kept: Bookkeeping) -> msgspec.Raw | msgspec.UnsetType:
    """Return the bookkeeping as JSON; what is unset if there is nothing in it."""
    if kept == Bookkeeping():
        return msgspec.UNSET
    return msgspec.Raw(msgspec.json.encode(kept))


def decode_books(encoded: msgspec.Raw | msgspec.UnsetType) -> Bookkeeping:
    """Return the bookkeeping in a snapshot, or a base. Raises `msgspec.DecodeError`."""
    if isinstance(encoded, msgspec.UnsetType):
        return Bookkeeping()
    return msgspec.json.decode(encoded, type=Bookkeeping)


def _base_books(record: Any) -> msgspec.Raw | msgspec.UnsetType:
    base = read_base(record)
    return msgspec.UNSET if base is None else base.bookkeeping
