"""The operations of a file store, which block: `FileStore` makes them in its thread."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from papyra.persistence.backends._files.compaction import Removal, count_hidden
from papyra.persistence.backends._files.fsync_policy import FsyncPolicy
from papyra.persistence.backends._files.histories import (
    last_revisions,
    read_encoded_history,
    read_history,
)
from papyra.persistence.backends._files.history_scan import scan_histories
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.location import printable
from papyra.persistence.backends._files.position_directory import PositionDirectory
from papyra.persistence.backends._files.quarantine import quarantine_directory, quarantine_name
from papyra.persistence.backends._files.read_retention import (
    count_stored,
    hidden_of,
    visible_records,
)
from papyra.persistence.backends._files.request_directory import RequestDirectory
from papyra.persistence.backends._files.scan import ScanResult
from papyra.persistence.backends._files.snapshot_directory import SnapshotDirectory, owner_of
from papyra.persistence.backends._files.store_id import StoreId
from papyra.persistence.backends._files.trimming import Bases, count_trimmed
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends.store import (
    Batch,
    NewBase,
    StoredSnapshot,
    collect_page,
)
from papyra.persistence.messages import EncodedHistory, HistoryPage, Page, Read, ReadHistory
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import (
    CompactedKind,
    CompactionReport,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    ScanProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy

#: How often a reader looks for files that are removed under its hands.
_LOOKS = 5
#: Seconds from one of these looks to the next.
_LOOK_AGAIN_AFTER = 0.01

_FOREVER = float("inf")

ResultT = TypeVar("ResultT")


class BlockingStore:
    """A journal and its lock. Everything raises `OSError`, and is called by one thread at a time.

    What a reader does, it does to the files as they are then.
    """

    def __init__(
        self, name: str, journal: Journal, fsync: FsyncPolicy, opening: ReportProgress | None
    ) -> None:
        self._name = name
        self._journal = journal
        self._fsync = fsync
        self._opening = opening
        self._lock = journal.lock()
        self._open_beside()

    def open(self) -> None:
        """Open the files, and take the lock that a writer has."""
        if self._journal.read_only:
            self._open_to_read()
            return
        self._journal.prepare()
        self._lock = self._journal.lock()
        self._lock.acquire()
        self._journal.close_mark = self._lock.close_mark
        try:
            self._journal.open()
            self._open_beside()
            files = list(self._journal.files(newest=True))
            if len(files) == 1 and files[0].handle.is_made:
                self._id.forget()  # it is left of a store that is no more
            self._lock.write_close_mark(self._journal.close_mark)
        except BaseException:
            with contextlib.suppress(OSError):
                self._journal.close()
            self._lock.release()
            raise
        self._fsync.start(
            f"papyra sync {self._journal.path.name}", self._journal.sync_in_background
        )

    def _open_beside(self) -> None:
        """Say where what is kept beside the records is."""
        self._id = StoreId(self._journal.disk, self._journal.beside(".id"))
        self._snapshots = SnapshotDirectory(
            self._journal.disk, self._journal.beside(".snapshots"), syncs=self._fsync.syncs_at_all
        )
        self._positions = PositionDirectory(
            self._journal.disk, self._journal.beside(".positions"), syncs=self._fsync.syncs_at_all
        )
        #: requests for the writer, which others have left
        self.requests = RequestDirectory(
            self._journal.disk,
            self._journal.beside(".requests"),
            self._like,
            syncs=self._fsync.syncs_at_all,
        )

    def _open_to_read(self) -> None:
        self._open_beside()
        self._lock = self._journal.lock()
        self._lock.read_close_mark()
        self._journal.close_mark = self._lock.close_mark
        path = self._journal.path
        if self._opening is None or not path.is_file():
            _retry_while_rewritten(self._journal.open)
            return
        advance = _Progress(self._opening, path.stat().st_size)
        self._journal.open(advance)
        advance.finish()

    def close(self) -> None:
        """Close the files, and release the lock."""
        try:
            self._write_close_mark()
            self._journal.close()
        finally:
            self._lock.release()

    def _write_close_mark(self) -> None:
        """Write the mark of a clean close, if everything is synced."""
        mark = self._journal.new_close_mark()
        if mark is not None:
            self._lock.write_close_mark(mark)

    def append(self, batch: Batch, token: CommitToken) -> None:
        """Write a batch, sync it as configured, and take the token."""
        self._journal.append(batch, token.take_or_raise, sync=self._fsync.syncs(batch))

    def _look(self, look: Callable[[], ResultT]) -> ResultT:
        """Return the result of `look`; a reader reads on before, what others have written."""
        if not self._journal.read_only:
            return look()

        def look_afresh() -> ResultT:
            self._journal.refresh()
            result = look()
            self._journal.raise_if_rewritten()
            return result

        return _retry_while_rewritten(look_afresh)

    def last_seq(self) -> int:
        """Return the greatest position that was given. Raises `StoreMoved` for a writer."""
        self._journal.check_name()
        return self._look(lambda: self._journal.last_seq)

    def claim(self) -> int:
        """Return the greatest position that was given: the journal knows what was written."""
        return self._look(lambda: self._journal.last_seq)

    def sync(self) -> None:
        """Sync everything that was written."""
        self._journal.sync()

    def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of the records that `policy` shows at Unix time `now`."""
        return self._look(
            lambda: collect_page(request, visible_records(self._journal, request, policy, now))
        )

    def read_history(self, request: ReadHistory) -> HistoryPage:
        """Return a page of one actor's history."""
        return self._look(lambda: read_history(self._journal, request))

    def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        """Return a page of one actor's history, as it is stored."""
        return self._look(lambda: read_encoded_history(self._journal, request))

    def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Return the last revision of each of `actors` that has a history."""
        return self._look(lambda: last_revisions(self._journal, actors))

    def store_id(self) -> str:
        """Return the id of the store. A writer makes one if there is none."""
        if self._journal.read_only:
            return self._id.read()
        self._journal.check_name()
        return self._id.ensure(self._like())

    def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Save a snapshot beside the records."""
        self._journal.check_name()
        self._snapshots.save(owner_of(actor), revision, data, self._like())

    def snapshot_revisions(self, actor: str) -> list[int]:
        """Return the revisions of an actor's snapshots."""
        return self._snapshots.revisions(owner_of(actor))

    def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None`."""
        return self._snapshots.load(owner_of(actor), revision)

    def remove_snapshot(self, actor: str, revision: int) -> None:
        """Remove a snapshot, if it is there."""
        self._journal.check_name()
        self._snapshots.remove(owner_of(actor), revision)

    def list_snapshots(self, after: StoredSnapshot | None, limit: int) -> list[StoredSnapshot]:
        """List snapshots by the names of their files."""
        return self._snapshots.page(after, limit)

    def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return self._snapshots.load(stored.owner, stored.revision)

    def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove a snapshot, if it is there."""
        self._journal.check_name()
        self._snapshots.remove(stored.owner, stored.revision)

    def quarantine_listed(self, stored: StoredSnapshot, config: PersistenceRecoveryConfig) -> str:
        """Move a snapshot to the directory for damaged originals, by default beside the store."""
        self._journal.check_name()
        place = Path(os.path.realpath(self._journal.path))
        name = f"{place.name}.snapshot-{stored.owner}-{stored.revision}"
        target = quarantine_name(Path(name), quarantine_directory(config, place.parent))
        self._snapshots.move(stored.owner, stored.revision, target)
        return str(target)

    def load_position(self, name: str) -> bytes | None:
        """Return a position, or `None`."""
        return self._positions.load(name)

    def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Set a position beside the records, if it is as expected."""
        self._journal.check_name()
        return self._positions.save(name, data, expected, self._like())

    def remove_position(self, name: str, expected: bytes) -> bool:
        """Remove a position, if it is as expected."""
        self._journal.check_name()
        return self._positions.remove(name, expected)

    def list_positions(self, after: str | None, limit: int) -> list[str]:
        """Return a page of the names of positions."""
        return self._positions.page(after, limit)

    def _like(self) -> os.stat_result:
        """Return the status of the newest file, whose owner and mode others beside it get."""
        return next(self._journal.files(newest=True)).handle.stat()

    def holder(self) -> str | None:
        """Return who seems to have the lock; `None` for nobody."""
        return self._lock.holder()

    def summarize(self) -> StoreSummary:
        """Sum the totals of the files."""
        return self._look(self._summarize)

    def _summarize(self) -> StoreSummary:
        journal = self._journal
        totals = [file.totals() for file in journal.files(newest=False)]
        oldest = min((each.oldest for each in totals), default=_FOREVER)
        newest = max((each.newest for each in totals), default=-_FOREVER)
        is_empty = oldest > newest
        return StoreSummary(
            backend=self._name,
            location=printable(self._journal.place.name),
            last_seq=journal.last_seq,
            records={kind: sum(each.counts[kind] for each in totals) for kind in KINDS},
            record_bytes={kind: sum(each.sizes[kind] for each in totals) for kind in KINDS},
            stored_bytes=journal.size(),
            oldest=None if is_empty else oldest,
            newest=None if is_empty else newest,
            segments=journal.segments,
            writer=self._lock.holder(),
            damaged=journal.is_damaged(),
        )

    def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every line, and report the bytes that are done."""
        self._journal.check_name()
        return self._report(self._look(lambda: self._scan(report_progress)))

    def _scan(self, report_progress: ReportProgress) -> ScanResult:
        advance = _Progress(report_progress, self._journal.size())
        found = self._journal.scan(advance)
        advance.finish()
        return found

    def scan_histories(self) -> list[PersistenceAnomaly]:
        """Check the revisions of every actor."""
        self._journal.check_name()
        return self._look(lambda: list(scan_histories(self._journal)))

    def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Rewrite damaged files without the lines that can't be read, and scan again."""
        self._journal.check_name()
        self._lock.write_close_mark(None)
        result = self._journal.recover(config)
        self._write_close_mark()
        found = self._journal.scan()
        return PersistenceRecoveryReport(
            self._name,
            supported=True,
            scan=self._report(found),
            records_kept=found.records,
            records_removed=result.removed,
            quarantined=tuple(result.quarantined),
        )

    def drop_hidden(
        self, policy: RetentionPolicy, now: float, bases: Sequence[NewBase] = ()
    ) -> CompactionReport:
        """Drop or rewrite files without the records that `policy` hides at Unix time `now`.

        Histories are kept whole, but for what `bases` stand for.
        """
        self._journal.check_name()
        before = count_stored(self._journal)
        hidden = {kind: hidden_of(self._journal, kind, policy, now) for kind in KINDS}
        self._lock.write_close_mark(None)
        if bases:
            self._journal.trim(Bases(bases))
        kept = self._journal.drop_hidden(hidden)
        self._write_close_mark()
        return self._compacted(before, count_stored(self._journal), kept)

    def count_hidden(
        self, policy: RetentionPolicy, now: float, bases: Sequence[NewBase] = ()
    ) -> CompactionReport:
        """Report what `drop_hidden` would do."""
        return self._look(lambda: self._count_hidden(policy, now, Bases(bases)))

    def _count_hidden(self, policy: RetentionPolicy, now: float, bases: Bases) -> CompactionReport:
        hidden = {kind: hidden_of(self._journal, kind, policy, now) for kind in KINDS}
        before, removal = count_stored(self._journal), Removal()
        for file in self._journal.files(newest=False):
            count_hidden(file, hidden, removal)
            count_trimmed(file, bases, removal)
        after = {
            kind: (count - removal.counts[kind], size - removal.sizes[kind])
            for kind, (count, size) in before.items()
        }
        return self._compacted(before, after, removal.kept)

    def _compacted(
        self,
        before: Mapping[Kind, tuple[int, int]],
        after: Mapping[Kind, tuple[int, int]],
        kept: int,
    ) -> CompactionReport:
        kinds = {
            kind: CompactedKind(before[kind][0], after[kind][0], before[kind][1], after[kind][1])
            for kind in KINDS
        }
        return CompactionReport.of_kinds(self._name, kinds, kept)

    def _report(self, found: ScanResult) -> PersistenceScanReport:
        return PersistenceScanReport(self._name, found.records, found.bytes, tuple(found.anomalies))


def _retry_while_rewritten(look: Callable[[], ResultT]) -> ResultT:
    """Return the result of `look` from a time when no compaction was replacing files."""
    for _ in range(_LOOKS - 1):
        with contextlib.suppress(FileNotFoundError):
            return look()
        time.sleep(_LOOK_AGAIN_AFTER)
    return look()


class _Progress:
    """Reports the progress of reading so many bytes."""

    def __init__(self, tell: ReportProgress, total: int) -> None:
        self._tell = tell
        self._done, self._total = 0, total

    def __call__(self, length: int) -> None:
        self._done += length
        self._total = max(self._done, self._total)
        self._tell(ScanProgress(self._done, self._total))

    def finish(self) -> None:
        """Report that everything is read."""
        self(self._total - self._done)
