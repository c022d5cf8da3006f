"""Stored events, looked at with the classes of today, outside of any actor."""

from __future__ import annotations

from typing import Any

from papyra._safe_repr import text_of, type_and_text
from papyra.eventsourcing.actor import EventSourced
from papyra.eventsourcing.bases import BaseReader
from papyra.eventsourcing.definition import Definition
from papyra.eventsourcing.schema import Schema
from papyra.eventsourcing.timer_messages import TimerMessages
from papyra.exceptions import InvalidActor, InvalidEvent, InvalidTimer
from papyra.persistence.records import PersistedEvent


def schema_of(actor_class: type[EventSourced[Any]]) -> Schema:
    """Return the events that a class of actors knows, and the ways to them from older ones."""
    return _definition_of(actor_class).schema


def timer_messages_of(actor_class: type[EventSourced[Any]]) -> TimerMessages:
    """Return the messages that the timers of a class of actors may bring."""
    return _definition_of(actor_class).timer_messages


def _definition_of(actor_class: type[EventSourced[Any]]) -> Definition:
    if actor_class._definition is None:
        raise InvalidActor("EventSourced itself has no events: name a class made of it")
    return actor_class._definition


def decoding_fault(schema: Schema, record: PersistedEvent) -> str | None:
    """Return why a stored event can't be decoded into the events of `schema`; `None` if it can."""
    try:
        schema.decode(record)
    except Exception as error:  # noqa: BLE001 - as a recovery, which takes what upcasters raise
        return fault_text(error)
    return None


def base_state(actor_class: type[EventSourced[Any]], record: PersistedEvent) -> Any:
    """Return the state that a base holds, as a recovery would. Raises `InvalidEvent`."""
    reader: BaseReader[Any] = BaseReader(actor_class, actor_class.snapshots)
    return reader.state_in(record)


def base_fault(actor_class: type[EventSourced[Any]], record: PersistedEvent) -> str | None:
    """Return why the state in a base can't be decoded; `None` if it can."""
    try:
        base_state(actor_class, record)
    except Exception as error:  # noqa: BLE001 - as a recovery, which takes what upcasts raise
        return fault_text(error)
    return None


def fault_text(error: Exception) -> str:
    """Return what an error of a decoding says; with its type, unless it is Papyra's own."""
    if isinstance(error, InvalidEvent | InvalidTimer):
        return text_of(error)
    return type_and_text(error)
