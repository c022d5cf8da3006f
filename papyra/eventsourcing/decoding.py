"""Stored events as objects of the classes that a subscription asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeAlias

import msgspec

from papyra._safe_repr import shown
from papyra.actor import Actor
from papyra.eventsourcing.actor import EventSourced
from papyra.eventsourcing.schema import Schema
from papyra.exceptions import InvalidRequest
from papyra.persistence.records import RESERVED, PersistedEvent
from papyra.persistence.subscription import Decode

__all__ = ("Wanted", "wanted_events")

#: The names of events, `None` for all of them; and what decodes these, if anything does.
Wanted: TypeAlias = tuple[Collection[str] | None, Decode | None]


def wanted_events(types: Iterable[str | type] | None, entity: type[Actor] | None) -> Wanted:
    """Return which events somebody wants, and how: by names as they are stored, or by classes.

    Events of an event-sourced class come as its own, through its upcasters; `types` may be some of
    those. Others come as the classes themselves. Raises `InvalidRequest`, and `InvalidSchema` for
    classes that are no events.
    """
    definition = entity._definition if entity and issubclass(entity, EventSourced) else None
    schema = None if definition is None else definition.schema
    if types is None:
        return None, None if schema is None else _decoder(schema, (object,))
    if isinstance(types, (str, bytes)):
        raise InvalidRequest(f"types is several names or classes, not {shown(types)}")
    wanted = list(types)
    names = [each for each in wanted if isinstance(each, str)]
    classes = [each for each in wanted if isinstance(each, type)]
    if len(names) == len(wanted):
        return frozenset(names), None
    if len(classes) < len(wanted):
        raise InvalidRequest("types are names of events, or their classes, and not some of each")
    if schema is not None:
        # An upcaster may make them of events with other names.
        return None, _decoder(schema, tuple(classes))
    schema = Schema("the subscription", classes, [])
    return frozenset(name for name, _ in schema.newest), _decoder(schema, (object,))


def _decoder(schema: Schema, classes: tuple[type, ...]) -> Decode:
    decode_step: Callable[[PersistedEvent], list[object]] = schema.decode
    # Nearly all events are of these, and take the shortest way.
    newest = {
        name: (version, event_class)
        for (name, version), event_class in schema.newest.items()
        if issubclass(event_class, classes)
    }
    other, convert = (0, object), msgspec.convert

    def decode(event: PersistedEvent) -> Iterable[Any]:
        # The runtime writes events, too, of lives and of histories.
        if event.revision is None:
            return ()
        version, event_class = newest.get(event.event_type, other)
        if version == event.event_version:
            try:
                return (convert(event.payload, event_class, str_keys=True),)
            except Exception:  # noqa: BLE001 - what it is comes out below
                return decode_slowly(event)
        return decode_slowly(event)

    def decode_slowly(event: PersistedEvent) -> Iterable[Any]:
        if event.event_type.startswith(RESERVED):
            return ()
        return [each for each in decode_step(event) if isinstance(each, classes)]

    return decode
