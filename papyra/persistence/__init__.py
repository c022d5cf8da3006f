"""Facts, the actor that keeps them, and the messages it understands."""

from papyra.persistence.breaker import CircuitBreakerPolicy
from papyra.persistence.messages import (
    Append,
    Appended,
    AppendMany,
    Compact,
    Flush,
    Flushed,
    GetMetrics,
    Page,
    Read,
    Recover,
    Request,
    ResetMetrics,
    Scan,
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
    CompactionReport,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ScanProgress,
)
from papyra.persistence.startup import PersistenceStartupConfig

# Last: it stands on everything above, and on papyra.actor.
from papyra.persistence.actor import PersistenceActor  # isort: skip

__all__ = (
    "Append",
    "AppendMany",
    "Appended",
    "CircuitBreakerPolicy",
    "Compact",
    "CompactionReport",
    "Flush",
    "Flushed",
    "GetMetrics",
    "Kind",
    "MetricsSnapshot",
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
    "Read",
    "Record",
    "Recover",
    "Request",
    "ResetMetrics",
    "Scan",
    "ScanProgress",
)
