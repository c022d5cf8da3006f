"""Actors whose state is the sum of their events, and so comes back."""

from typing import TYPE_CHECKING

from papyra._lazy_imports import finder

if TYPE_CHECKING:
    from papyra.eventsourcing.actor import EventSourced
    from papyra.eventsourcing.occurrences import Occurrence
    from papyra.eventsourcing.schema import event, upcaster
    from papyra.eventsourcing.snapshots import SnapshotPolicy
    from papyra.eventsourcing.timer import Timer

__all__ = ("EventSourced", "Occurrence", "SnapshotPolicy", "Timer", "event", "upcaster")

#: Where these names are, from the ground up.
_MODULES = ("schema", "snapshots", "occurrences", "timer", "actor")

if not TYPE_CHECKING:
    __getattr__ = finder(__name__, __all__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
