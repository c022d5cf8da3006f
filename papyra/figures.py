"""The figures of a system at one moment: what its actors, its store and its projections do.

They are kept by the class of the actors, never by their addresses: a thousand actors cost no more
to look at than one.
"""

from __future__ import annotations

import msgspec

from papyra._histogram import Distribution
from papyra.class_counters import ClassCounters
from papyra.durable_timers import TimerFigures
from papyra.events import ActorCrashed, ActorRestarted, ActorStarted, ActorStopped
from papyra.persistence.metrics import MetricsSnapshot
from papyra.projections.status import ProjectionStatus

__all__ = ("ClassFigures", "Distribution", "Figures", "SubscriptionFigures", "TimerFigures")


class ClassFigures(msgspec.Struct, frozen=True):
    """What the actors of one class do, and have done since the system started."""

    #: the name of the class with that of its module
    name: str
    #: how many live now; of these, how many are entities
    actors: int
    entities_awake: int
    started: int
    stopped: int
    crashed: int
    restarted: int
    dead_letters: int
    #: replies that came after their askers had given up
    unclaimed_replies: int
    #: histories that were read to the end, and those that could not be
    recoveries: int
    recovery_errors: int
    #: snapshots that were saved
    snapshots: int
    #: messages that wait in the mailboxes now, and that were handled; `None` unless the system
    #: measures, as the rest
    messages_waiting: int | None = None
    handled: int | None = None
    #: seconds from the mailbox, where there was room in it, to the actor
    mailbox_seconds: Distribution | None = None
    #: seconds that a message, or a batch of them, took to be handled, whatever came of it
    receive_seconds: Distribution | None = None


class SubscriptionFigures(msgspec.Struct, frozen=True):
    """Who follows the store in this process; projections do, too."""

    open: int
    #: positions by which the one that is furthest behind is behind the head
    longest_lag: int


class Figures(msgspec.Struct, frozen=True):
    """What there is to know of a system at one moment, without looking at each of its actors."""

    system_id: str
    #: Unix time
    timestamp: float
    #: Unix time at which it was started; `None` before
    started_at: float | None
    #: whether actors can be spawned
    is_running: bool
    #: by name; classes that no actor was made of yet are not among them
    classes: tuple[ClassFigures, ...]
    #: what the system's own store has counted
    persistence: MetricsSnapshot
    #: messages waiting for the system's persistence actor
    persistence_waiting: int
    #: the greatest position in the store that is known
    last_seq: int
    timers: TimerFigures
    subscriptions: SubscriptionFigures
    projections: tuple[ProjectionStatus, ...]
    #: seconds that commits took, and records in each; `None` unless the system measures
    commit_seconds: Distribution | None = None
    commit_records: Distribution | None = None


def figures_of_class(counters: ClassCounters) -> ClassFigures:
    """Return what the counters of a class say now."""
    steps, mailbox, receive = counters.steps, counters.mailbox_seconds, counters.receive_seconds
    is_measured = mailbox is not None
    return ClassFigures(
        name=counters.name,
        actors=counters.actors,
        entities_awake=counters.entities_awake,
        started=steps[ActorStarted],
        stopped=steps[ActorStopped],
        crashed=steps[ActorCrashed],
        restarted=steps[ActorRestarted],
        dead_letters=counters.dead_letters,
        unclaimed_replies=counters.unclaimed_replies,
        recoveries=counters.recoveries,
        recovery_errors=counters.recovery_errors,
        snapshots=counters.snapshots,
        messages_waiting=counters.messages_waiting if is_measured else None,
        handled=counters.handled if is_measured else None,
        mailbox_seconds=None if mailbox is None else mailbox.snapshot(),
        receive_seconds=None if receive is None else receive.snapshot(),
    )
