"""The audit: the health of a system at one moment."""

from __future__ import annotations

import msgspec

from papyra.persistence.metrics import MetricsSnapshot


class AuditReport(msgspec.Struct, frozen=True):
    """The health of a system. The runtime records one as the payload of a `PersistedAudit`."""

    #: actors alive now, the system's own persistence actor not counted
    actors: int
    #: messages waiting in their mailboxes
    messages_waiting: int
    #: messages in the fullest mailbox, and the address of its actor
    deepest_mailbox: int
    deepest_actor: str | None
    #: messages waiting for the system's persistence actor
    persistence_waiting: int
    #: since the system started
    started: int
    stopped: int
    crashed: int
    restarted: int
    dead_letters: int
    #: replies that came after their askers had given up: a sign of time limits that are too short
    unclaimed_replies: int
    #: what the system's own store has counted
    persistence: MetricsSnapshot
    #: durable timers that are pending now
    timers_pending: int = 0
    #: occurrences that were handled since the system started; tries that failed
    timers_fired: int = 0
    timers_failed: int = 0
    #: seconds by which one was late when it was done, at most, since the system started
    timers_longest_late: float = 0.0
    #: projections that the system runs; of these, how many are paused
    projections: int = 0
    projections_paused: int = 0
    #: positions by which the one that is furthest behind is behind the head
    projections_longest_lag: int = 0
