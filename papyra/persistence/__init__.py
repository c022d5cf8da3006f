"""Facts, the actor that keeps them, and the messages it understands."""

from typing import TYPE_CHECKING

from papyra._lazy_imports import finder

if TYPE_CHECKING:
    from papyra.persistence.actor import PersistenceActor
    from papyra.persistence.breaker import CircuitBreakerPolicy
    from papyra.persistence.messages import (
        AllPage,
        Append,
        Appended,
        AppendMany,
        Attend,
        Attended,
        CancelTimer,
        Compact,
        EventSkipped,
        FireTimer,
        Flush,
        Flushed,
        GetMetrics,
        HistoryPage,
        Identify,
        Identity,
        ListPositions,
        LoadedPosition,
        LoadedSnapshot,
        LoadPosition,
        LoadSnapshot,
        Migrate,
        OutboxTaken,
        Page,
        PositionNames,
        PositionRemoved,
        PositionSaved,
        Read,
        ReadAll,
        ReadHistory,
        Recover,
        RemovePosition,
        Request,
        ResetMetrics,
        Restore,
        SavePosition,
        SaveSnapshot,
        Scan,
        SkipEvent,
        SnapshotSaved,
        Summarize,
        TakeOutbox,
        TimerChanged,
    )
    from papyra.persistence.metrics import MetricsSnapshot
    from papyra.persistence.records import (
        Kind,
        PersistedAudit,
        PersistedDeadLetter,
        PersistedEvent,
        Record,
    )
    from papyra.persistence.reports import (
        CompactedKind,
        CompactionReport,
        HistoriesReport,
        MigrationReport,
        PersistenceAnomaly,
        PersistenceRecoveryConfig,
        PersistenceRecoveryReport,
        PersistenceScanReport,
        ScanProgress,
        StoreSummary,
    )
    from papyra.persistence.snapshots import Snapshot
    from papyra.persistence.startup import PersistenceStartupConfig
    from papyra.persistence.subscribing import (
        Subscribe,
        Subscribed,
        SubscriptionEnded,
        Unsubscribe,
    )
    from papyra.persistence.subscription import CaughtUp, FellBehind, Received, Subscription

__all__ = (
    "AllPage",
    "Append",
    "AppendMany",
    "Appended",
    "Attend",
    "Attended",
    "CancelTimer",
    "CaughtUp",
    "CircuitBreakerPolicy",
    "Compact",
    "CompactedKind",
    "CompactionReport",
    "EventSkipped",
    "FellBehind",
    "FireTimer",
    "Flush",
    "Flushed",
    "GetMetrics",
    "HistoriesReport",
    "HistoryPage",
    "Identify",
    "Identity",
    "Kind",
    "ListPositions",
    "LoadPosition",
    "LoadSnapshot",
    "LoadedPosition",
    "LoadedSnapshot",
    "MetricsSnapshot",
    "Migrate",
    "MigrationReport",
    "OutboxTaken",
    "Page",
    "PersistedAudit",
    "PersistedDeadLetter",
    "PersistedEvent",
    "PersistenceActor",
    "PersistenceAnomaly",
    "PersistenceRecoveryConfig",
    "PersistenceRecoveryReport",
    "PersistenceScanReport",
    "PersistenceStartupConfig",
    "PositionNames",
    "PositionRemoved",
    "PositionSaved",
    "Read",
    "ReadAll",
    "ReadHistory",
    "Received",
    "Record",
    "Recover",
    "RemovePosition",
    "Request",
    "ResetMetrics",
    "Restore",
    "SavePosition",
    "SaveSnapshot",
    "Scan",
    "ScanProgress",
    "SkipEvent",
    "Snapshot",
    "SnapshotSaved",
    "StoreSummary",
    "Subscribe",
    "Subscribed",
    "Subscription",
    "SubscriptionEnded",
    "Summarize",
    "TakeOutbox",
    "TimerChanged",
    "Unsubscribe",
)

#: Where these names are, from the ground up.
_MODULES = (
    *("records", "snapshots", "reports", "metrics", "breaker", "messages", "subscription"),
    *("subscribing", "startup", "actor"),
)

if not TYPE_CHECKING:
    __getattr__ = finder(__name__, __all__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
