"""The series that the figures of systems make, whatever shows them: names, units, labels, values.

Names are as OpenTelemetry has them, with dots; the unit is apart. Prometheus's are made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from papyra.figures import ClassFigures, Distribution, Figures
from papyra.persistence.metrics import MetricsSnapshot
from papyra.projections.status import ProjectionState, ProjectionStatus

__all__ = ("Described", "Family", "Kind", "Series", "described", "families_of")

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]


class Series(NamedTuple):
    """One value."""

    labels: Mapping[str, str]
    value: float | Distribution


class Described(NamedTuple):
    """What there is to know of a family before there is a value."""

    name: str
    kind: Kind
    unit: str
    documentation: str


class Family(NamedTuple):
    """Values of one name and one meaning. Those of a histogram are distributions."""

    name: str
    kind: Kind
    #: ``s`` for seconds, or what is counted, as ``{message}``
    unit: str
    documentation: str
    series: Sequence[Series]


class _Figure(NamedTuple):
    """How one figure is read."""

    name: str
    kind: Kind
    unit: str
    documentation: str
    value: Callable[[Any], float | Distribution | None]


_OF_CLASSES: tuple[_Figure, ...] = (
    _Figure(
        *("papyra.actors", "gauge", "{actor}"),
        *("Actors that live now.", lambda each: each.actors),
    ),
    _Figure(
        *("papyra.entities.awake", "gauge", "{actor}"),
        *("Entities that are awake now; they are among the actors.", lambda e: e.entities_awake),
    ),
    _Figure(
        *("papyra.mailbox.messages", "gauge", "{message}"),
        *("Messages that wait in mailboxes now.", lambda each: each.messages_waiting),
    ),
    _Figure(
        *("papyra.messages.handled", "counter", "{message}"),
        *("Messages that were handled.", lambda each: each.handled),
    ),
    _Figure(
        *("papyra.mailbox.wait", "histogram", "s"),
        *("Time from the mailbox to the actor.", lambda each: each.mailbox_seconds),
    ),
    _Figure(
        *("papyra.receive", "histogram", "s"),
        "Time that a message, or a batch of them, took to be handled.",
        lambda each: each.receive_seconds,
    ),
    _Figure(
        *("papyra.actor.starts", "counter", "{actor}"),
        *("Actors that have started.", lambda each: each.started),
    ),
    _Figure(
        *("papyra.actor.stops", "counter", "{actor}"),
        *("Actors that have stopped.", lambda each: each.stopped),
    ),
    _Figure(
        *("papyra.actor.crashes", "counter", "{crash}"),
        *("Errors of actors that supervision dealt with.", lambda each: each.crashed),
    ),
    _Figure(
        *("papyra.actor.restarts", "counter", "{restart}"),
        *("Restarts of actors.", lambda each: each.restarted),
    ),
    _Figure(
        *("papyra.dead_letters", "counter", "{message}"),
        *("Messages that became dead letters.", lambda each: each.dead_letters),
    ),
    _Figure(
        *("papyra.unclaimed_replies", "counter", "{reply}"),
        *("Replies whose askers had given up.", lambda each: each.unclaimed_replies),
    ),
    _Figure(
        *("papyra.recoveries", "counter", "{recovery}"),
        *("Histories that were read to the end.", lambda each: each.recoveries),
    ),
    _Figure(
        *("papyra.recovery.errors", "counter", "{recovery}"),
        *("Histories that could not be read.", lambda each: each.recovery_errors),
    ),
    _Figure(
        *("papyra.snapshots", "counter", "{snapshot}"),
        *("Snapshots of actors that were saved.", lambda each: each.snapshots),
    ),
)

_OF_SYSTEMS: tuple[_Figure, ...] = (
    _Figure(
        *("papyra.system.running", "gauge", ""),
        *("Whether actors can be spawned.", lambda each: int(each.is_running)),
    ),
    _Figure(
        *("papyra.system.start_timestamp", "gauge", "s"),
        *("Unix time at which the system was started.", lambda each: each.started_at),
    ),
    _Figure(
        *("papyra.persistence.mailbox.messages", "gauge", "{message}"),
        "Messages that wait for the system's persistence actor now.",
        lambda each: each.persistence_waiting,
    ),
    _Figure(
        *("papyra.store.last_seq", "gauge", ""),
        *("The greatest position in the store that is known.", lambda each: each.last_seq),
    ),
    _Figure(
        *("papyra.commit", "histogram", "s"),
        *("Time that a commit took.", lambda each: each.commit_seconds),
    ),
    _Figure(
        *("papyra.commit.records", "histogram", "{record}"),
        *("Records in a commit.", lambda each: each.commit_records),
    ),
    _Figure(
        *("papyra.timers.pending", "gauge", "{timer}"),
        *("Durable timers that are pending now.", lambda each: each.timers.pending),
    ),
    _Figure(
        *("papyra.timers.fired", "counter", "{timer}"),
        *("Occurrences of timers that were handled.", lambda each: each.timers.fired),
    ),
    _Figure(
        *("papyra.timers.failed", "counter", "{timer}"),
        *("Tries to handle an occurrence that failed.", lambda each: each.timers.failed),
    ),
    _Figure(
        *("papyra.timers.given_up", "counter", "{timer}"),
        *("Occurrences of timers that were given up.", lambda each: each.timers.given_up),
    ),
    _Figure(
        *("papyra.timers.skipped", "counter", "{timer}"),
        *("Occurrences that were skipped, as they were missed.", lambda each: each.timers.skipped),
    ),
    _Figure(
        *("papyra.timers.last_late", "gauge", "s"),
        "By how much the timer that was handled last was late.",
        lambda each: each.timers.last_late,
    ),
    _Figure(
        *("papyra.timers.longest_late", "gauge", "s"),
        "By how much any timer was late, at most, since the system started.",
        lambda each: each.timers.longest_late,
    ),
    _Figure(
        *("papyra.subscriptions", "gauge", "{subscription}"),
        *("Subscriptions to the store that are open.", lambda each: each.subscriptions.open),
    ),
    _Figure(
        *("papyra.subscription.longest_lag", "gauge", "{record}"),
        "Positions by which the subscription that is furthest behind is behind the head.",
        lambda each: each.subscriptions.longest_lag,
    ),
)

_OF_PROJECTIONS: tuple[_Figure, ...] = (
    _Figure(
        *("papyra.projection.lag", "gauge", "{record}"),
        *("Positions by which a projection is behind the head.", lambda each: each.lag),
    ),
    _Figure(
        *("papyra.projection.lag_time", "gauge", "s"),
        "How old the last event handled is, while there are others behind it.",
        lambda each: each.lag_seconds,
    ),
    _Figure(
        *("papyra.projection.position", "gauge", ""),
        *("The position up to which everything is handled.", lambda each: each.position),
    ),
    _Figure(
        *("papyra.projection.handled", "counter", "{event}"),
        *("Events that a projection has handled.", lambda each: each.handled),
    ),
    _Figure(
        *("papyra.projection.retries", "counter", "{retry}"),
        *("Attempts after a first one that has failed.", lambda each: each.retries),
    ),
    _Figure(
        *("papyra.projection.skipped", "counter", "{event}"),
        *("Events that were passed over.", lambda each: each.skipped),
    ),
    _Figure(
        *("papyra.projection.pauses", "counter", "{pause}"),
        *("How often a projection has paused.", lambda each: each.pauses),
    ),
    _Figure(
        *("papyra.projection.parked", "gauge", "{event}"),
        *("Events that are parked, or held back behind those.", lambda each: each.parked),
    ),
)


_STATES = Described(
    *("papyra.projection.state", "gauge", ""), "Whether a projection is in this state."
)


def described() -> Iterator[Described]:
    """Yield each family that systems can have."""
    for each in (*_OF_SYSTEMS, *_OF_CLASSES, *_OF_PROJECTIONS):
        yield Described(*each[:4])
    yield _STATES
    for name in MetricsSnapshot.__struct_fields__:
        yield _of_store(name)


def families_of(systems: Sequence[Figures]) -> Iterator[Family]:
    """Yield each family of these systems, which have different names. Empty ones are left out."""
    classes = [
        (_labels(system, actor_class=c.name), c) for system in systems for c in system.classes
    ]
    projections = [
        (_labels(system, projection=each.name), each)
        for system in systems
        for each in system.projections
    ]
    yield from _families(_OF_SYSTEMS, [(_labels(system), system) for system in systems])
    yield from _families(_OF_CLASSES, classes)
    yield from _families(_OF_PROJECTIONS, projections)
    if projections:
        yield _states(projections)
    for name in MetricsSnapshot.__struct_fields__:
        series = [Series(_labels(system), system.persistence[name]) for system in systems]
        yield Family(*_of_store(name), series)


def _of_store(name: str) -> Described:
    documentation = f"Counted by the system's own store: {name.replace('_', ' ')}."
    return Described(f"papyra.persistence.{name}", "counter", "", documentation)


def _labels(system: Figures, **more: str) -> dict[str, str]:
    return {"system_id": system.system_id, **more}


def _families(
    figures: Sequence[_Figure],
    owners: Sequence[tuple[dict[str, str], Figures | ClassFigures | ProjectionStatus]],
) -> Iterator[Family]:
    for each in figures:
        series = [
            Series(labels, value)
            for labels, owner in owners
            if (value := each.value(owner)) is not None
        ]
        if series:
            yield Family(each.name, each.kind, each.unit, each.documentation, series)


def _states(projections: Sequence[tuple[dict[str, str], ProjectionStatus]]) -> Family:
    """Return a family that has 1 for the state that a projection is in, and 0 for the others."""
    return Family(
        *_STATES,
        [
            Series({**labels, "state": state}, int(each.state == state))
            for labels, each in projections
            for state in get_args(ProjectionState)
        ],
    )
