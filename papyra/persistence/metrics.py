"""Counters of what a backend did since it was made, or since they were reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

__all__ = ("MetricsSnapshot", "PersistenceMetrics", "PersistenceMetricsMixin")


class _Counters(msgspec.Struct):
    records_written: int = 0
    #: encoded bytes
    bytes_written: int = 0
    #: runs of appends that were written as one; group commit makes them fewer than the appends
    commits: int = 0
    #: pages read
    reads: int = 0
    scans: int = 0
    anomalies_detected: int = 0
    recoveries: int = 0
    compactions: int = 0
    #: records that were not offered to the store, as the circuit breaker was open
    records_dropped: int = 0
    #: append requests that failed, those refused for a bad record included; flushes that failed,
    #: and changes of positions
    write_errors: int = 0
    read_errors: int = 0
    scan_errors: int = 0
    recovery_errors: int = 0
    compaction_errors: int = 0
    snapshots_saved: int = 0
    #: snapshots that were found to be right, and given out
    snapshots_loaded: int = 0
    #: snapshots that were damaged, outdated, or of another past
    snapshots_passed_over: int = 0
    #: snapshots that could not be saved
    snapshot_errors: int = 0
    #: events of applications that were taken over; they are among the records written
    outbox_taken: int = 0
    #: what was in an outbox and was set aside, as it could not be appended
    outbox_refused: int = 0
    #: events that the projections of this system have handled; once more for each rebuild
    projection_handled: int = 0
    #: attempts of projections at an event after a first one that has failed
    projection_retries: int = 0
    #: events that were passed over, be it by a policy or by an operator
    projection_skipped: int = 0
    #: events that were parked, or held back behind those; what became of them later is not counted
    projection_parked: int = 0
    #: how often a projection has paused
    projection_pauses: int = 0


class MetricsSnapshot(_Counters, frozen=True, tag=True):  # type: ignore[misc] # of its fields
    """The counters at one moment. Reads as a mapping too: ``dict(snapshot)``."""

    def __getitem__(self, name: str) -> int:
        if name not in self.__struct_fields__:
            raise KeyError(name)
        value: int = getattr(self, name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.__struct_fields__)

    def __len__(self) -> int:
        return len(self.__struct_fields__)

    def __contains__(self, name: object) -> bool:
        return name in self.__struct_fields__

    def keys(self) -> tuple[str, ...]:
        """Return the counters' names."""
        return self.__struct_fields__

    def values(self) -> tuple[int, ...]:
        """Return the counts, in the order of `keys()`."""
        return msgspec.structs.astuple(self)

    def items(self) -> tuple[tuple[str, int], ...]:
        """Return pairs of name and count."""
        return tuple(zip(self.keys(), self.values(), strict=True))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the count called `name`, or `default` if there is none."""
        return getattr(self, name) if name in self else default


# Not a base class: structs and abstract classes have different metaclasses.
Mapping.register(MetricsSnapshot)


class PersistenceMetrics(_Counters):
    """The living counters. `snapshot()` is how to read them."""

    def snapshot(self) -> MetricsSnapshot:
        """Return the counters as they are now."""
        return MetricsSnapshot(*msgspec.structs.astuple(self))

    def reset(self) -> None:
        """Set every counter to zero."""
        for name in self.__struct_fields__:
            setattr(self, name, 0)


class PersistenceMetricsMixin:
    """Gives a class `metrics`, made on first use, so that no subclass has to set it up."""

    _metrics: PersistenceMetrics | None = None

    @property
    def metrics(self) -> PersistenceMetrics:
        """The counters of this object."""
        if self._metrics is None:
            self._metrics = PersistenceMetrics()
        return self._metrics
