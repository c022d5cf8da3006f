"""The records of a store: facts, each appended once and never changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import msgspec

from papyra._safe_repr import shown, type_name
from papyra.exceptions import InvalidRecord

Kind: TypeAlias = Literal["event", "audit", "dead_letter"]

KINDS: tuple[Kind, ...] = get_args(Kind)

#: The greatest `revision` and `event_version`, as the greatest `seq`.
MAX_VERSION = 10**14 - 1

#: How the types of events begin that are part of a history, and that only Papyra writes.
RESERVED = "papyra."


# gc=False: records are made by the million, hold plain data only and live in no cycles, so the
# collector need not visit them. omit_defaults keeps `seq` out of what is encoded.


class PersistedEvent(
    msgspec.Struct, frozen=True, tag_field="kind", tag="event", omit_defaults=True, gc=False
):
    """Something that happened to an actor: a domain event, or a step of its life.

    A payload is what msgspec can write as JSON, and comes back as plain data: dicts, lists, text,
    numbers, booleans and `None`, as `msgspec.to_builtins` makes them of it. What would come back as
    something else is refused with `UnencodablePayload`, which names the path to it: NaN and the
    infinities, whatever holds them; keys that are one as strings (``1`` and ``"1"``); fields that
    are not set; private fields of attrs classes; times whose offset from UTC has seconds; integers
    of more than 4,300 digits, where a minus counts as one; more than 100 levels; and a
    `msgspec.Raw` that is not one JSON value on one line, or has a name twice. `RecordTooLarge` is
    raised for a record of over 64 MiB of JSON.
    """

    system_id: str
    #: ``str()`` of the actor's address
    actor_address: str
    event_type: str
    #: plain data, once it is read back
    payload: Any
    #: Unix time in seconds
    timestamp: float
    #: the record's position in its store; set on what is read back, ignored on what is appended
    seq: int | None = None
    #: position in the history of its actor: 1, 2, 3, ...; `None` for what is no part of one. One
    #: that does not follow the one before is refused with `RevisionConflict`.
    revision: int | None = None
    #: version of the event's schema
    event_version: int = 1
    #: correlation and causation ids, trace context, and the like: up to 64 names, with up to
    #: 16,384 characters in all
    metadata: dict[str, str] = {}


class PersistedAudit(
    msgspec.Struct, frozen=True, tag_field="kind", tag="audit", omit_defaults=True, gc=False
):
    """A snapshot of a system's health. The runtime's own have an `AuditReport` as payload."""

    system_id: str
    #: as in `PersistedEvent`
    payload: Any
    #: Unix time in seconds
    timestamp: float
    #: as in `PersistedEvent`
    seq: int | None = None
    #: only events have one
    revision: ClassVar[None] = None


class PersistedDeadLetter(
    msgspec.Struct, frozen=True, tag_field="kind", tag="dead_letter", omit_defaults=True, gc=False
):
    """A message that could not be delivered, or that its actor left unhandled."""

    system_id: str
    #: ``str()`` of the address of the actor it was meant for
    target: str
    #: the name of the message's type
    message_type: str
    #: the message as it was then; ``{"repr": ...}`` where that would not come back, or is larger
    #: than some MiB
    payload: Any
    #: whether the sender waited for a reply; it got `ActorStopped`
    expects_reply: bool
    #: Unix time in seconds
    timestamp: float
    #: as in `PersistedEvent`
    seq: int | None = None
    #: only events have one
    revision: ClassVar[None] = None


Record: TypeAlias = PersistedEvent | PersistedAudit | PersistedDeadLetter


_KINDS_BY_TYPE: dict[type, Kind] = {
    PersistedEvent: "event",
    PersistedAudit: "audit",
    PersistedDeadLetter: "dead_letter",
}


def kind_of(record: Record) -> Kind:
    """Return the kind of `record`."""
    return _KINDS_BY_TYPE[type(record)]


def event_record(
    system_id: str, actor_address: str, event: object, timestamp: float
) -> PersistedEvent:
    """Return `event` as a record.

    `event` is a msgspec Struct or a dataclass, whose class gives the event type, or a pair of type
    name and mapping. Raises `InvalidRecord` for anything else.
    """
    # By their types, as users' objects may raise when they are asked what they are.
    kind = type(event)
    if issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
        return PersistedEvent(system_id, actor_address, type_name(event), event, timestamp)
    pair: list[Any] = []
    for exact in (tuple, list):
        if issubclass(kind, exact):
            pair = list(exact.__iter__(event))  # type: ignore[arg-type]
    if list(map(type, pair[:1])) == [str] and len(pair) == 2 and _is_mapping(pair[1]):
        event_type, payload = pair
        return PersistedEvent(system_id, actor_address, event_type, payload, timestamp)
    raise InvalidRecord(
        "an event is a msgspec Struct, a dataclass, or a pair of type name and mapping, "
        f"not {shown(event)}"
    )


def _is_mapping(value: object) -> bool:
    return issubclass(type(value), Mapping)
