"""The operations of an SQLite store, which block: `SQLiteStore` makes them in its thread."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from papyra.exceptions import StoreDamaged, StoreError
from papyra.persistence.backends._files.disk import CAN_WRITE, Disk, write_all
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends._files.quarantine import quarantine_directory, quarantine_name
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends._sql import compaction
from papyra.persistence.backends._sql.decoding import decoded
from papyra.persistence.backends._sql.encoded import encoded_history
from papyra.persistence.backends._sql.scan_result import ScanResult
from papyra.persistence.backends._sql.tables import TABLES, parts_by_kind
from papyra.persistence.backends._sqlite import (
    migrating,
    outbox,
    positions,
    repair,
    schema,
    snapshots,
)
from papyra.persistence.backends._sqlite.blocks import seal, totals
from papyra.persistence.backends._sqlite.compaction import SystemTables
from papyra.persistence.backends._sqlite.connection import (
    Synchronous,
    connect,
    connect_to_read,
    is_cut_off,
    made_whole,
    snapshot,
    transaction,
)
from papyra.persistence.backends._sqlite.database_file import DatabaseFile
from papyra.persistence.backends._sqlite.errors import is_damage, suppressed_damage
from papyra.persistence.backends._sqlite.hazards import warn_of_network, warn_of_other_writers
from papyra.persistence.backends._sqlite.histories import history_rows, last_revisions
from papyra.persistence.backends._sqlite.insertion import insert
from papyra.persistence.backends._sqlite.reading import visible_rows
from papyra.persistence.backends._sqlite.scan import (
    damaged_pages,
    scan,
    scan_histories,
)
from papyra.persistence.backends._sqlite.system_lock import (
    DEFAULT_SYSTEM,
    system_inbox,
    system_lock,
)
from papyra.persistence.backends._sqlite.writer_row import WriterRow
from papyra.persistence.backends.store import (
    Batch,
    NewBase,
    StoredSnapshot,
    collect_history,
    collect_page,
)
from papyra.persistence.messages import EncodedHistory, HistoryPage, Page, Read, ReadHistory
from papyra.persistence.outbox import HandedOver, RefusedEvent
from papyra.persistence.reports import (
    CompactionReport,
    MigrationReport,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    ScanProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy

__all__ = ("DEFAULT_SYSTEM", "NAME", "BlockingStore")

NAME = "sqlite"
#: Characters of an address in the name of a file.
_OWNER = 100


class BlockingStore:
    """One system in a database. Everything raises `sqlite3.Error`, and is called in one thread."""

    def __init__(
        self,
        file: DatabaseFile,
        system_id: str,
        *,
        synchronous: Synchronous,
        busy_timeout: float,
        read_only: bool,
    ) -> None:
        self._file = file
        self._system_id = system_id
        self._lock = self._new_lock()
        self._synchronous: Synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._read_only = read_only
        self._row = WriterRow(system_id, str(file.place.name))
        self._connection: sqlite3.Connection
        #: whether the tables have them: a reader may look at those of an older version
        self._has_outbox = self._has_positions = True
        #: whether a record was seen that can't be read
        self.is_damaged = False

    # Opening and closing

    def open(self) -> None:
        """Open the database, making it if there is none, and keep other writers out."""
        self._file.check(must_exist=self._read_only)
        warn_of_network(self._file.path.parent, self._file.place.name)
        self._lock = self._new_lock()
        #: requests for the writer, which others have left
        self.requests = system_inbox(
            self._file.path, self._system_id, syncs=self._synchronous != "off"
        )
        if self._read_only:
            self._open_to_read()
            return
        if CAN_WRITE:
            self._lock.acquire()
        try:
            self._open_to_write()
        except BaseException:
            self._lock.release()
            raise

    def holder(self) -> str | None:
        """Return who seems to have the lock; `None` for nobody."""
        return self._lock.holder()

    def _new_lock(self) -> FileLock:
        """Return the lock that whoever writes this system has, wherever links lead to by now."""
        return system_lock(self._file.path, self._system_id)

    def _open_to_read(self) -> None:
        connection = connect_to_read(self._file.path, self._busy_timeout)
        try:
            if not schema.is_there(connection):
                raise StoreError(f"{self._file.place.name} holds no tables of Papyra's")
            schema.require_readable(connection)
            self._has_outbox = schema.has_outbox(connection)
            self._has_positions = schema.has_positions(connection)
            self._row.last_seq(connection)
            self._file.opened()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _open_to_write(self) -> None:
        connection = connect(self._file.path, self._synchronous, self._busy_timeout)
        try:
            schema.create(connection)
            with transaction(connection):
                self._row.ensure(connection, self._file.inode)
            self._row.forget()
            warn_of_other_writers(connection, self._file.place.name)
            self._file.opened()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def migrate(self, *, dry_run: bool) -> MigrationReport:
        """Bring the tables to the newest version; not while it is open, but on a dry run."""
        if dry_run:
            return migrating.plan(NAME, self._file, self._busy_timeout)
        return migrating.migrate(NAME, self._file, self._system_id, self._busy_timeout)

    def close(self) -> None:
        """Close the database, and let another writer have it."""
        try:
            self._connection.close()
        finally:
            self._file.closed()
            self._lock.release()

    # Writing

    def last_seq(self) -> int:
        """Return the last position given."""
        self._file.check_name()
        return self._row.last_seq(self._connection)

    def claim(self) -> int:
        """Begin an epoch, whose commit takes the place of one in doubt in the log."""
        if is_cut_off(self._connection):
            raise StoreDamaged(f"{self._file.place.name} was cut off: recover it to write to it")
        with transaction(self._connection):
            last_seq = self._row.claim(self._connection)
        self._row.claimed()
        self._last_seq = last_seq
        self._file.note_log()
        return last_seq

    def append(self, batch: Batch, token: CommitToken, handed: Sequence[HandedOver] = ()) -> None:
        """Store a batch in one transaction, and remove from the outbox what it was made of.

        The token is taken before the commit.
        """
        if not batch.more or self._synchronous == "off":
            self._append(batch, token, handed)
            return
        with self._syncing_later():
            self._append(batch, token, handed)

    def _append(self, batch: Batch, token: CommitToken, handed: Sequence[HandedOver]) -> None:
        last_seq = batch.first_seq + len(batch.records) - 1
        parts = parts_by_kind(batch)
        with transaction(self._connection):
            self._row.advance(self._connection, batch.first_seq, last_seq)
            outbox.remove(self._connection, self._system_id, handed)
            for kind, part in parts.items():
                insert(self._connection, self._system_id, kind, part)
            seal(self._connection, self._system_id, self._last_seq, batch)
            self._file.check_name()
            token.take_or_raise()
        self._last_seq = last_seq

    @contextlib.contextmanager
    def _syncing_later(self) -> Iterator[None]:
        """Commit with no sync, as that of a later commit is for both."""
        self._connection.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")

    def sync(self) -> None:
        """Have the device write down everything that was committed."""
        if self._read_only or self._synchronous in {"full", "extra"}:
            return
        if is_cut_off(self._connection):
            return  # nothing may be written before it is recovered
        self._connection.execute("PRAGMA synchronous = FULL")
        try:
            with transaction(self._connection):
                self._row.touch(self._connection)
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")

    # Reading

    def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of the records that `policy` shows at Unix time `now`."""
        limits = policy.of(request.kind)
        rows = visible_rows(self._connection, self._system_id, request, limits, now)
        with snapshot(self._connection), contextlib.closing(rows):
            return collect_page(request, decoded(rows, self._found_damage))

    def read_history(self, request: ReadHistory) -> HistoryPage:
        """Return a page of one actor's history."""
        with self._history_rows(request) as rows:
            return collect_history(request, decoded(rows, self._found_damage))

    def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        """Return a page of one actor's history, as it is stored."""
        with self._history_rows(request) as rows:
            page = encoded_history(request, rows)
        return self.read_history(request) if page is None else page

    @contextlib.contextmanager
    def _history_rows(self, request: ReadHistory) -> Iterator[sqlite3.Cursor]:
        with (
            snapshot(self._connection),
            contextlib.closing(history_rows(self._connection, self._system_id, request)) as rows,
        ):
            yield rows

    def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Return the last revision of each of `actors` that has a history."""
        return last_revisions(self._connection, self._system_id, actors)

    def _found_damage(self) -> None:
        self.is_damaged = True

    def summarize(self) -> StoreSummary:
        """Sum the totals of all blocks."""
        with snapshot(self._connection):
            found = {kind: totals(self._connection, self._system_id, kind) for kind in TABLES}
            last_seq = self.last_seq()
            waiting, refused = self._count_outbox()
        held = [each for each in found.values() if each is not None]
        return StoreSummary(
            backend=NAME,
            location=str(self._file.place.name),
            last_seq=last_seq,
            records={kind: each.records if each else 0 for kind, each in found.items()},
            record_bytes={kind: each.bytes if each else 0 for kind, each in found.items()},
            stored_bytes=self._file.size(),
            oldest=min((each.oldest for each in held), default=None),
            newest=max((each.newest for each in held), default=None),
            writer=self._lock.holder(),
            damaged=self.is_damaged,
            outbox_waiting=waiting,
            outbox_refused=refused,
        )

    def _count_outbox(self) -> tuple[int | None, int | None]:
        if self._has_outbox:
            with suppressed_damage():
                return outbox.count(self._connection, self._system_id)
        return None, None

    # Beside the records

    def store_id(self) -> str:
        """Return the id of the store."""
        return self._row.store_id(self._connection, self._file.inode)

    def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Save a snapshot."""
        with transaction(self._connection):
            snapshots.save(self._connection, self._system_id, actor, revision, data)
            self._file.check_name()

    def snapshot_revisions(self, actor: str) -> list[int]:
        """Return the revisions of an actor's snapshots."""
        return snapshots.revisions(self._connection, self._system_id, actor)

    def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None`."""
        return snapshots.load(self._connection, self._system_id, actor, revision)

    def remove_snapshot(self, actor: str, revision: int) -> None:
        """Remove a snapshot, if it is there."""
        with transaction(self._connection):
            snapshots.remove(self._connection, self._system_id, actor, revision)

    def list_snapshots(self, after: StoredSnapshot | None, limit: int) -> Sequence[StoredSnapshot]:
        """Return up to `limit` of all snapshots, by owner and revision."""
        return snapshots.list_snapshots(self._connection, self._system_id, after, limit)

    def quarantine_listed(self, stored: StoredSnapshot, config: PersistenceRecoveryConfig) -> str:
        """Write a snapshot to a file of its own, where damaged originals are kept; remove it."""
        path, disk = self._file.path, Disk()
        directory = quarantine_directory(config, path.parent)
        disk.make_directory(directory)
        owner = quote(stored.owner.encode(errors="surrogatepass"), safe="")[-_OWNER:]
        name = Path(f"{path.name}.snapshot-{owner}-{stored.revision}")
        target = quarantine_name(name, directory)
        fd = disk.create(target, path.stat())
        try:
            write_all(disk, fd, self.load_snapshot(stored.owner, stored.revision) or b"", 0)
            disk.sync(fd)
        finally:
            disk.close(fd)
        self.remove_snapshot(stored.owner, stored.revision)
        return str(target)

    def load_position(self, name: str) -> bytes | None:
        """Return a position, or `None`."""
        if not self._has_positions:
            return None
        return positions.load(self._connection, self._system_id, name)

    def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Set a position, if it is as expected."""
        where = self._connection, self._system_id
        return self._set_position(name, expected, lambda: positions.save(*where, name, data))

    def remove_position(self, name: str, expected: bytes) -> bool:
        """Remove a position, if it is as expected."""
        where = self._connection, self._system_id
        return self._set_position(name, expected, lambda: positions.remove(*where, name))

    def _set_position(self, name: str, expected: bytes | None, change: Callable[[], None]) -> bool:
        with transaction(self._connection):
            self._row.check(self._connection)
            if self.load_position(name) != expected:
                return False
            change()
            self._file.check_name()
        return True

    def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        """Return up to `limit` names of positions, in their order."""
        if not self._has_positions:
            return ()
        return positions.list_positions(self._connection, self._system_id, after, limit)

    def handed_over(self, after: int | None, size: int) -> Sequence[HandedOver]:
        """Return the first of what waits in the outbox, of so many bytes."""
        if not self._has_outbox:
            return ()
        return outbox.handed_over(self._connection, self._system_id, after, size)

    def set_aside(self, refused: Sequence[tuple[HandedOver, str]], now: float) -> None:
        """Move what can't be taken over out of the outbox, each with the reason."""
        with transaction(self._connection):
            for each, reason in refused:
                outbox.set_aside(self._connection, self._system_id, each, reason, now)
            self._file.check_name()

    def refused(self, after: int | None) -> Sequence[RefusedEvent]:
        """Return some of what was set aside."""
        if not self._has_outbox:
            return ()
        return outbox.refused(self._connection, self._system_id, after)

    # Scan, recovery, compaction

    def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every page of the database, and every record of the system."""
        return self._report(self._scan(report_progress))

    def _scan(self, report_progress: ReportProgress) -> ScanResult:
        with snapshot(self._connection):
            total, last_seq = self._stored() or 0, self._greatest_seq()
            found = scan(self._connection, self._system_id, last_seq, total, report_progress)
        self.is_damaged = bool(found.anomalies)
        return found

    def scan_histories(self) -> list[PersistenceAnomaly]:
        """Check the revisions of every actor."""
        with snapshot(self._connection):
            return scan_histories(self._connection, self._system_id, self._greatest_seq())

    def _stored(self) -> int | None:
        """Return how many records there are; `None` if damage keeps it from being told."""
        try:
            found = compaction.count_stored(self._tables())
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return None
        return sum(records for records, _ in found.values())

    def _greatest_seq(self) -> int:
        try:
            return self._row.greatest_seq(self._connection)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
        return self.last_seq()

    def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Keep every record that can be read; first, if asked to, copy the database as it is."""
        self._file.check_name()
        before, stored = self._scan(_tell_nobody), self._stored()
        quarantined: tuple[str, ...] = ()
        removed = 0
        if any(anomaly.kind != "unknown_kind" for anomaly in before.anomalies):
            if config.mode == "quarantine":
                quarantined = (self._quarantine(config),)
            removed = self._mend()
        after = self._scan(_tell_nobody)
        # Nobody can count what was on pages that can't be read; but most of it was noted before.
        lost = before.lost if stored is None else stored - after.records - len(after.anomalies)
        return PersistenceRecoveryReport(
            NAME,
            supported=True,
            scan=self._report(after),
            records_kept=after.records,
            records_removed=max(removed, lost),
            quarantined=quarantined,
        )

    def _quarantine(self, config: PersistenceRecoveryConfig) -> str:
        disk, path = Disk(), self._file.path
        directory = quarantine_directory(config, path.parent)
        disk.make_directory(directory)
        target = quarantine_name(path, directory)
        disk.close(disk.create(target, path.stat()))
        repair.copy_to(self._connection, target)
        return str(target)

    def _mend(self) -> int:
        """Mend what a scan has found, and return how many records were lost with it."""
        if damaged_pages(self._connection):
            path = self._file.path
            repair.rebuild(self._connection, path.with_name(path.name + ".new"))
            made_whole(self._connection)
        with transaction(self._connection):
            return repair.mend_rows(self._connection, self._system_id, self._greatest_seq())

    def drop_hidden(
        self, policy: RetentionPolicy, now: float, bases: Sequence[NewBase] = ()
    ) -> CompactionReport:
        """Delete what `policy` hides at Unix time `now`; of histories, what `bases` stand for."""
        self._file.check_name()
        with transaction(self._connection):
            done = compaction.compact(self._tables(), policy, now, bases)
        return CompactionReport.of_kinds(NAME, *done)

    def count_hidden(
        self, policy: RetentionPolicy, now: float, bases: Sequence[NewBase] = ()
    ) -> CompactionReport:
        """Report what `drop_hidden` would do."""
        with snapshot(self._connection):
            done = compaction.preview(self._tables(), policy, now, bases)
        return CompactionReport.of_kinds(NAME, *done)

    def _tables(self) -> SystemTables:
        return SystemTables(self._connection, self._system_id, self.last_seq())

    def _report(self, found: ScanResult) -> PersistenceScanReport:
        return PersistenceScanReport(NAME, found.records, found.bytes, tuple(found.anomalies))


def _tell_nobody(progress: ScanProgress) -> None:
    del progress
