"""Durable timers of a system: what is pending, what has come of them, and how they are brought.

An index of the system knows which timer of which actor is due when. It brings each that is due to
its actor as a `TimerDue`, which the actor makes the scheduled message of, or refuses as stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, TypeAlias

from papyra.ref import ActorRef

#: What an actor replies to a timer that is brought: ``"stale"`` is one that is not pending there.
Brought: TypeAlias = Literal["handled", "skipped", "stale", "noted"]


class TimerDue(NamedTuple):
    """A timer that is brought to its actor. Only the runtime sees these."""

    name: str
    #: the revision with which it was scheduled
    generation: int
    #: Unix time in seconds of the occurrence
    due: float
    #: Unix time in seconds at which it was first seen to be due
    seen: float


class TimerFailed(NamedTuple):
    """The notice to an actor that it has failed with a timer. Only the runtime sees these."""

    name: str
    generation: int
    due: float
    #: what handling it has raised
    error: Exception


class TimersChanged(NamedTuple):
    """The notice to an actor that an operator has changed its timers. Only the runtime sees it."""


def is_of_timers(message: object) -> bool:
    """Return whether a message is what the runtime tells an actor of its timers."""
    # One after the other: the type of a message may raise when it is hashed or compared.
    kind = type(message)
    return kind is TimerDue or kind is TimerFailed or kind is TimersChanged


class ScheduledTimer(NamedTuple):
    """A durable timer that is pending."""

    #: the address
    actor: str
    name: str
    #: Unix time in seconds of the occurrence that comes next
    due: float
    #: how often handling that has failed
    attempts: int


class TimerMetrics(NamedTuple):
    """What has come of the durable timers of a system since it started."""

    #: how many are pending now
    pending: int
    #: of these, how many are due, be it that their actors are busy, or that nobody is there
    due: int
    #: occurrences that were handled
    fired: int
    #: tries to handle one that failed
    failed: int
    #: occurrences that were given up, each with a dead letter
    given_up: int
    #: occurrences that were skipped, as they were missed
    skipped: int
    #: seconds by which the one that was handled last was late, when it was done
    last_late: float
    #: seconds by which any was late, at most
    longest_late: float


class TimerFigures(NamedTuple):
    """The same, but for what each of those that are pending would have to be looked at for."""

    #: how many are pending now
    pending: int
    #: occurrences that were handled
    fired: int
    #: tries to handle one that failed
    failed: int
    #: occurrences that were given up, each with a dead letter
    given_up: int
    #: occurrences that were skipped, as they were missed
    skipped: int
    #: seconds by which the one that was handled last was late, when it was done
    last_late: float
    #: seconds by which any was late, at most
    longest_late: float


class DurableTimers(Protocol):
    """The durable timers of a system that are pending."""

    def __len__(self) -> int:
        """Return how many are pending. Costs nothing."""

    def __iter__(self) -> Iterator[ScheduledTimer]:
        """Iterate over those that are pending now, in no order."""

    def metrics(self) -> TimerMetrics:
        """Return what has come of them."""

    def attend(self, ref: ActorRef) -> None:
        """Look after timers, as this actor has some, or is about to. Does not wait.

        Those of an actor that was spawned are brought to `ref`, as long as that lives.
        """

    def is_current(self, actor: str, name: str, generation: int, due: float) -> bool:
        """Return whether this is what comes next of a timer, as far as is known here."""

    def suspect(self) -> None:
        """Look into the store, as nobody knows what has become of an append there."""
