"""Bookkeeping: what Papyra knows of one actor beside its state, as part of the same sum of events.

It is made of the events' metadata, and of notes: events of Papyra's own in the same history, which
change no state. A snapshot holds it, and so does the base of a history whose beginning was removed.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, cast

import msgspec
from msgspec import structs

from papyra.eventsourcing.steps import Step
from papyra.persistence import codec
from papyra.persistence.bases import BASE_TYPE, read_base
from papyra.persistence.records import RESERVED, PersistedEvent
from papyra.persistence.timer_changes import (
    TIMER,
    TIMER_INDEX,
    Pending,
    Scheduled,
    begin,
    change_in,
    move_on,
)

#: The type of the note with the reply to a command that had an idempotency key.
REPLIED: Final = RESERVED + "replied"
#: The types of events that are notes.
NOTES: Final[frozenset[str]] = frozenset({REPLIED, TIMER, TIMER_INDEX})

#: The names in the metadata of an event by which its command had an idempotency key.
KEY, COMMAND = RESERVED + "idempotency_key", RESERVED + "command"
#: Those by which an event concerns the bookkeeping.
MARKS: Final = (KEY,)


#: A note that is to be stored, next to events: the type of its event, and the payload.
Note: TypeAlias = tuple[str, Any]


class KeptFailure(msgspec.Struct, frozen=True):
    """What is kept of the error in a `Failure`."""

    #: the name of its type
    type: str
    text: str


class KeptReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """A reply, as it is kept: one of these is set."""

    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    failure: KeptFailure | None = None
    #: why it is neither
    not_kept: str | None = None


class Replied(msgspec.Struct, frozen=True):
    """The payload of a note of that type."""

    idempotency_key: str
    reply: KeptReply


class KeyedCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """A command that had an idempotency key, and has stored something."""

    #: the name of the message's type
    type: str
    #: of its first event
    revision: int
    #: `None` if it has not replied, that is known of
    reply: KeptReply | None = None


class Bookkeeping(msgspec.Struct, omit_defaults=True):
    """What a snapshot holds beside the state. Each field is left out while there is nothing in it.

    A field that is added has a default: what was stored without it stays readable.
    """

    #: by their idempotency keys, the oldest first
    commands: dict[str, KeyedCommand] = {}
    #: the durable timers that are pending, by their names
    timers: dict[str, Pending] = {}


class Books:
    """The bookkeeping of one actor, up to the revision of its state."""

    def __init__(self, window: int) -> None:
        #: how many keys are kept, the newest ones
        self._window = window
        self.kept = Bookkeeping()

    def clear(self) -> None:
        """Begin before the first event."""
        self.kept = Bookkeeping()

    def take_in(self, record: Step) -> None:
        """Add one event of the history, the next one. Raises for a note that can't be read."""
        metadata = record.metadata
        if not metadata and type(change := record.payload) is Scheduled:
            # Most timers are scheduled by the actor itself just now.
            begin(self.kept.timers, change, record.revision or 0)
            return
        commands = self.kept.commands
        if metadata and (key := metadata.get(KEY)) is not None and key not in commands:
            commands[key] = KeyedCommand(metadata.get(COMMAND, ""), record.revision or 0)
            while len(commands) > self._window:
                del commands[next(iter(commands))]
        if record.event_type == REPLIED:
            replied = _read(record.payload, Replied)
            if (command := commands.get(replied.idempotency_key)) is not None:
                replaced = structs.replace(command, reply=replied.reply)
                commands[replied.idempotency_key] = replaced
        elif record.event_type == TIMER:
            move_on(self.kept.timers, change_in(record.payload), record.revision or 0)
        elif record.event_type == BASE_TYPE:
            base = read_base(cast("PersistedEvent", record))
            assert base is not None
            self.kept = decode_books(base.bookkeeping)


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


def _read(payload: Any, payload_type: Any) -> Any:
    """Return the payload of a note, which may be plain data, or as it was handed over."""
    if type(payload) is payload_type:
        return payload
    return msgspec.json.decode(codec.encode_payload(payload), type=payload_type)
