"""The reports of scans, recoveries and compactions, and the summary of a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from papyra.persistence.records import Kind

AnomalyKind: TypeAlias = Literal[
    "torn",
    "corrupt",
    "checksum",
    "line_ending",
    "wrong_fields",
    "unknown_kind",
    "gap",
    "duplicate",
    "foreign_file",
    "missing_segment",
    "history",
    "snapshot",
    "index",
    "outbox",
]

#: Anomalies of what is kept beside the records: nothing is lost with it but time.
BESIDE: frozenset[AnomalyKind] = frozenset({"snapshot", "index", "outbox"})


class PersistenceAnomaly(msgspec.Struct, frozen=True):
    """One thing that is wrong with a store."""

    kind: AnomalyKind
    #: what was found, in words
    detail: str
    #: where: a file's path, or a stream's key
    location: str | None = None
    #: bytes from the start of the file
    offset: int | None = None
    #: line in the file, from 1
    line: int | None = None
    #: position in the store
    seq: int | None = None
    #: the id of a stream's entry
    entry: str | None = None


class PersistenceScanReport(msgspec.Struct, frozen=True, tag=True):
    """The report of a scan, which changes nothing."""

    backend: str
    records_scanned: int
    #: encoded bytes
    bytes_scanned: int
    anomalies: tuple[PersistenceAnomaly, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.anomalies


class ScanProgress(msgspec.Struct, frozen=True):
    """The progress of a scan: bytes in files, records in other stores."""

    done: int
    total: int


#: Takes the progress of a scan, now and then; from whichever thread scans, so it must not wait.
ReportProgress: TypeAlias = Callable[[ScanProgress], None]


class StoreSummary(msgspec.Struct, frozen=True, tag=True):
    """The contents of a store in numbers, what retention hides included."""

    backend: str
    #: a file's path, a directory's, or a URL without its secrets; empty for a store in memory
    location: str
    #: the greatest `seq` that was given; there may be no such record any more
    last_seq: int
    #: records of each kind
    records: dict[Kind, int]
    #: their encoded bytes
    record_bytes: dict[Kind, int]
    #: bytes that all of it takes where it is stored; `None` where that can't be told
    stored_bytes: int | None
    #: the time of the oldest record, and of the newest; Unix time in seconds
    oldest: float | None = None
    newest: float | None = None
    #: segments, where there are such
    segments: int | None = None
    #: who has it open to write, as far as that can be told
    writer: str | None = None
    #: whether damage is known of; only a scan looks at everything
    damaged: bool = False
    #: snapshots, and their bytes; `None` where there can be none, or where they can't be listed
    snapshots: int | None = None
    snapshot_bytes: int | None = None
    #: names that have a position of those who follow the store; `None` as for snapshots
    positions: int | None = None
    #: events of applications that wait in the outbox, and those that were set aside; `None` where
    #: there is no outbox
    outbox_waiting: int | None = None
    outbox_refused: int | None = None

    @property
    def total_records(self) -> int:
        """Records of all kinds."""
        return sum(self.records.values())

    @property
    def total_bytes(self) -> int:
        """Their encoded bytes."""
        return sum(self.record_bytes.values())


class PersistenceRecoveryConfig(msgspec.Struct, frozen=True):
    """The options of a recovery.

    ``repair`` keeps every record that can still be read, in place. ``quarantine`` first moves what
    is damaged to `quarantine_dir`, from where it can be put back.
    """

    mode: Literal["repair", "quarantine"] = "repair"
    quarantine_dir: str | None = None


class PersistenceRecoveryReport(msgspec.Struct, frozen=True, tag=True):
    """The report of a recovery, and of the scan that followed it."""

    backend: str
    #: False where the backend has nothing to recover from, and so did nothing
    supported: bool
    scan: PersistenceScanReport
    records_kept: int = 0
    records_removed: int = 0
    #: where the removed originals are
    quarantined: tuple[str, ...] = ()


class CompactedKind(msgspec.Struct, frozen=True):
    """The records of one kind, before a compaction and after it."""

    records_before: int
    records_after: int
    #: encoded bytes
    bytes_before: int
    bytes_after: int


class HistoriesReport(msgspec.Struct, frozen=True):
    """What a compaction does to the histories whose beginning retention hides, if it may trim them.

    Each of them is in one of these counts, but for those that begin with a base already.
    """

    #: False where the store can't, and so keeps all of them whole
    supported: bool
    #: histories that begin with a base now, and the events that are gone from them
    trimmed: int = 0
    events_removed: int = 0
    #: those that are kept whole as their actor has fewer than two good snapshots of one version
    without_snapshots: int = 0
    #: those that are kept whole as retention still shows an event that the oldest snapshot sums up
    still_shown: int = 0


class CompactionReport(msgspec.Struct, frozen=True, tag=True):
    """The report of a compaction: sizes before and after."""

    backend: str
    #: False where the backend can't compact, and so did nothing
    supported: bool
    records_before: int
    records_after: int
    #: encoded bytes
    bytes_before: int
    bytes_after: int
    #: the same for each kind; empty where a store, or an older version, does not say
    kinds: dict[Kind, CompactedKind] = {}
    #: events that the policy hides, and that stay because they are part of histories
    kept_for_histories: int = 0
    #: `None` where the policy does not trim histories: none of their events is removed then
    histories: HistoriesReport | None = None

    @classmethod
    def of_kinds(
        cls, backend: str, kinds: dict[Kind, CompactedKind], kept_for_histories: int = 0
    ) -> CompactionReport:
        """Return the report of a compaction that there are these numbers of."""
        each = kinds.values()
        return cls(
            backend,
            supported=True,
            records_before=sum(kind.records_before for kind in each),
            records_after=sum(kind.records_after for kind in each),
            bytes_before=sum(kind.bytes_before for kind in each),
            bytes_after=sum(kind.bytes_after for kind in each),
            kinds=kinds,
            kept_for_histories=kept_for_histories,
        )


class MigrationReport(msgspec.Struct, frozen=True, tag=True):
    """The report of a migration of a store's tables: where they were, and where they are."""

    backend: str
    #: False where there are no tables, whose versions could differ
    supported: bool
    #: 0 for a database in which there were none yet
    version_before: int = 0
    #: on a dry run, the version that it would be
    version_after: int = 0
    #: in words, what each step has done, or would do; empty if there was nothing to do
    steps: tuple[str, ...] = ()
