"""Stored events as objects of the classes that a subscription asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter
from types import GenericAlias
from typing import Any, TypeAlias, cast

import msgspec

from papyra._safe_repr import shown
from papyra.actor import Actor
from papyra.eventsourcing.actor import EventSourced
from papyra.eventsourcing.schema import Schema
from papyra.exceptions import InvalidRequest
from papyra.persistence.records import RESERVED, PersistedEvent

__all__ = ("EventDecoder", "Wanted", "wanted_events")

_event_type, _event_version, _revision, _payload = map(
    attrgetter, ("event_type", "event_version", "revision", "payload")
)
#: The version and the class of an event that there is no class for.
_NONE = (0, object)


class EventDecoder:
    """Decodes stored events into the classes that somebody wants."""

    def __init__(self, schema: Schema, classes: tuple[type, ...]) -> None:
        self._decode_step: Callable[[PersistedEvent], list[object]] = schema.decode
        self._classes = classes
        # Nearly all events are of these, and take the shortest way.
        self._newest = {
            name: (version, event_class)
            for (name, version), event_class in schema.newest.items()
            if issubclass(event_class, classes)
        }
        self._lists = {
            name: GenericAlias(list, (event_class,))
            for name, (_, event_class) in self._newest.items()
        }

    def __call__(self, event: PersistedEvent) -> Iterable[Any]:
        """Return the events of today that a stored one stands for."""
        # The runtime writes events, too, of lives and of histories.
        if event.revision is None:
            return ()
        version, event_class = self._newest.get(event.event_type, _NONE)
        if version == event.event_version:
            try:
                return (msgspec.convert(event.payload, event_class, str_keys=True),)
            except Exception:  # noqa: BLE001 - what it is comes out below
                return self._decode_slowly(event)
        return self._decode_slowly(event)

    def decode_together(self, events: Sequence[PersistedEvent]) -> Sequence[Any] | None:
        """Return the one event that each stored one stands for, at a third of the cost.

        Returns `None` unless all are of the newest versions: then each is decoded by itself.
        """
        names = set(map(_event_type, events))
        if len(names) == 1:
            return self._decode_alike(names.pop(), events)
        payloads: dict[str, list[Any]] = {}
        for event in events:
            name, (version, _) = event.event_type, self._newest.get(event.event_type, _NONE)
            if version != event.event_version or event.revision is None:
                return None
            payloads.setdefault(name, []).append(event.payload)
        try:
            made = {
                name: iter(msgspec.convert(found, self._lists[name], str_keys=True))
                for name, found in payloads.items()
            }
        except Exception:  # noqa: BLE001 - decoded by itself, the one that is wrong says so
            return None
        return [next(made[event.event_type]) for event in events]

    def _decode_alike(self, name: str, events: Sequence[PersistedEvent]) -> Sequence[Any] | None:
        """Do as `decode_together` for events of one type, without a look at each."""
        version, _ = self._newest.get(name, _NONE)
        if {version} != set(map(_event_version, events)) or None in map(_revision, events):
            return None
        try:
            payloads = list(map(_payload, events))
            return cast("list[Any]", msgspec.convert(payloads, self._lists[name], str_keys=True))
        except Exception:  # noqa: BLE001 - decoded by itself, the one that is wrong says so
            return None

    def _decode_slowly(self, event: PersistedEvent) -> Iterable[Any]:
        if event.event_type.startswith(RESERVED):
            return ()
        return [each for each in self._decode_step(event) if isinstance(each, self._classes)]


#: The names of events, `None` for all of them; and what decodes these, if anything does.
Wanted: TypeAlias = tuple[Collection[str] | None, EventDecoder | None]


def wanted_events(types: Iterable[str | type] | None, entity: type[Actor] | None) -> Wanted:
    """Return which events somebody wants, and how: by names as they are stored, or by classes.

    Events of an event-sourced class come as its own, through its upcasters; `types` may be some of
    those. Others come as the classes themselves. Raises `InvalidRequest`, and `InvalidSchema` for
    classes that are no events.
    """
    definition = entity._definition if entity and issubclass(entity, EventSourced) else None
    schema = None if definition is None else definition.schema
    if types is None:
        return None, None if schema is None else EventDecoder(schema, (object,))
    if isinstance(types, (str, bytes)) or not isinstance(types, Iterable):
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
        return None, EventDecoder(schema, tuple(classes))
    schema = Schema("the subscription", classes, [])
    return frozenset(name for name, _ in schema.newest), EventDecoder(schema, (object,))
