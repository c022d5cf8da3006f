"""The operations of a PostgreSQL store, which block: `PostgresStore` makes them in its thread."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import psycopg

from papyra.exceptions import BackendInUse, PersistenceError, StoreFenced, StoreNotAcknowledged
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends._postgres import outbox, positions, repair, schema, snapshots
from papyra.persistence.backends._postgres.blocks import totals
from papyra.persistence.backends._postgres.compaction import SystemTables
from papyra.persistence.backends._postgres.connection import (
    application_name,
    snapshot,
    transaction,
)
from papyra.persistence.backends._postgres.errors import is_answer
from papyra.persistence.backends._postgres.histories import last_revisions
from papyra.persistence.backends._postgres.insertion import EncodedBatch
from papyra.persistence.backends._postgres.reading import history_rows, visible_rows
from papyra.persistence.backends._postgres.requests import RequestTable
from papyra.persistence.backends._postgres.scan import scan, scan_histories
from papyra.persistence.backends._postgres.session import Patience, Session
from papyra.persistence.backends._postgres.settings import Settings
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.text import column_text
from papyra.persistence.backends._postgres.writer_row import WriterRow
from papyra.persistence.backends._sql import compaction
from papyra.persistence.backends._sql.decoding import decoded
from papyra.persistence.backends._sql.encoded import encoded_history
from papyra.persistence.backends._sql.migrations import pending
from papyra.persistence.backends._sql.scan_result import ScanResult
from papyra.persistence.backends._sql.tables import TABLES
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
from papyra.persistence.retention import Limits, RetentionPolicy

__all__ = ("NAME", "BlockingStore")

logger = logging.getLogger("papyra")

NAME = "postgres"

ResultT = TypeVar("ResultT")


class BlockingStore:
    """One system in a database. Everything raises `PersistenceError`, and is called in one thread.

    A connection that is lost is made again, by whatever needs it next.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session = Session(settings)
        self._row = WriterRow()
        #: requests for the writer, which others have left
        self.requests = RequestTable(self._session, self._row)
        #: whether the tables have them: a reader may look at those of an older version
        self._has_positions = True
        #: whether the last change of one has raised, and may be committed yet
        self._is_position_in_doubt = False
        #: whether a record was seen that can't be read
        self.is_damaged = False

    # Opening and closing

    def open(self) -> None:
        """Connect, and make the tables and the row of the system if there are none."""
        self._row.forget()
        self._session.writer = self._row.writer
        try:
            self._session.call(self._look if self._settings.read_only else self._prepare)
        except BaseException:
            self._session.close()
            raise

    def _look(self, system: System) -> None:
        schema.require(system)
        self._has_positions = schema.version_of(system) >= schema.POSITIONS_SINCE
        self._row.greatest_seq(system)

    def _prepare(self, system: System) -> None:
        schema.create(system)
        with transaction(system.connection):
            self._row.ensure(system)

    def close(self) -> None:
        """Take back what is in doubt, if the server can be reached, and disconnect."""
        try:
            if self._row.in_doubt is not None:
                self._take_back_doubt()
        except PersistenceError as error:
            self._log_doubt(error)
        finally:
            self._session.close()

    def migrate(self, *, dry_run: bool) -> MigrationReport:
        """Bring the tables to the newest version, by a connection for that alone.

        Raises `BackendInUse` while a writer is connected, as far as the server tells.
        """
        session = Session(self._settings)

        def bring(system: System) -> MigrationReport:
            found = schema.version_of(system)
            steps = tuple(each.what for each in pending(schema.MIGRATIONS, found))
            if not dry_run:
                if steps and found:
                    _refuse_writers(system)
                schema.migrate(system)
                with transaction(system.connection):
                    self._row.ensure(system)
            return MigrationReport(
                NAME,
                supported=True,
                version_before=found,
                version_after=schema.VERSION,
                steps=steps,
            )

        try:
            return session.attempt(bring)
        finally:
            session.close()

    # Writing

    def last_seq(self) -> int:
        """Return the last position given."""
        return self._session.call(self._row.greatest_seq)

    def claim(self) -> int:
        """Begin an epoch: what was under way comes to its end, and what is in doubt is removed."""

        def begin(system: System) -> int:
            with transaction(system.connection):
                return self._row.claim(system)

        try:
            last_seq = self._session.call(begin)
        except StoreFenced as error:
            self._log_doubt(error)
            self._row.in_doubt = None
            raise
        self._row.is_claimed, self._row.in_doubt = True, None
        return last_seq

    def append(self, batch: Batch, token: CommitToken, handed: Sequence[HandedOver] = ()) -> None:
        """Store a batch in one statement; take the token before that.

        What it was made of is removed from the outbox in the same transaction.

        Where the connection is lost, or the commit not confirmed as it should be, what became of
        the batch is found out before anything else is done.
        """
        if batch.first_seq <= self._row.last_seq:
            raise StoreFenced(
                f"{self._settings.location}: position {batch.first_seq} was given already"
            )
        encoded = EncodedBatch(batch, handed)
        token.take_or_raise()
        patience = Patience(self._settings)
        while not self._try_to_append(encoded, patience):
            pass
        self._row.last_seq = encoded.last_seq

    def _try_to_append(self, encoded: EncodedBatch, patience: Patience) -> bool:
        """Return whether a batch is stored now; raise if there is no time for another try."""
        try:
            self._session.attempt(lambda system: self._insert(system, encoded))
        except PersistenceError as error:
            if self._row.in_doubt is None or not isinstance(error, StoreNotAcknowledged):
                patience.wait(error)
            if self._row.in_doubt is None:
                return False
        else:
            return True
        return self._settle(patience)

    def _insert(self, system: System, encoded: EncodedBatch) -> None:
        system.connection.is_local_only = False
        try:
            with transaction(system.connection) if encoded.handed else contextlib.nullcontext():
                outbox.remove(system, encoded.handed)
                if not encoded.insert(system, self._row):
                    raise self._row.fenced(system, "another one has taken over")
        except psycopg.Error as error:
            if not is_answer(error):
                self._row.in_doubt = encoded.in_doubt
            raise
        except StoreNotAcknowledged:
            self._row.in_doubt = encoded.in_doubt
            raise
        if system.connection.is_local_only:
            self._row.in_doubt = encoded.in_doubt
            raise StoreNotAcknowledged(
                f"{self._settings.location}: the commit is on the server's own disk, and no "
                "standby's"
            )

    def _settle(self, patience: Patience) -> bool:
        """Return whether the batch in doubt is stored, as soon as that can be told."""
        in_doubt = self._row.in_doubt
        assert in_doubt is not None

        def settle(system: System) -> bool:
            with transaction(system.connection):
                return self._row.settle(system, in_doubt)

        while True:
            try:
                is_stored = self._session.attempt(settle)
            except StoreFenced:
                self._row.in_doubt = None
                raise
            except PersistenceError as error:
                patience.wait(error, unless_acknowledged=True)
            else:
                self._row.in_doubt = None
                return is_stored

    def _take_back_doubt(self) -> None:
        """Remove what an append has left that has raised, before anybody is shown it."""
        if self._row.in_doubt is not None:
            with contextlib.suppress(StoreFenced):  # then it is another one's, and that is logged
                self.claim()

    def _log_doubt(self, error: PersistenceError) -> None:
        in_doubt = self._row.in_doubt
        if in_doubt is not None:
            logger.error(
                "%s: the append of the records %d to %d has failed; they may have been stored, "
                "and could not be taken back: %s",
                self._settings.location,
                in_doubt.first_seq,
                in_doubt.last_seq,
                error,
            )

    def sync(self) -> None:
        """Do nothing: what is committed is acknowledged."""

    # Reading

    def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of the records that `policy` shows at Unix time `now`."""
        limits = policy.of(request.kind)
        is_simple = limits == Limits() and request.since is None and request.until is None

        def look(system: System) -> Page:
            # What needs totals needs them as of the moment of the records.
            with contextlib.nullcontext() if is_simple else snapshot(system.connection):
                rows = visible_rows(system, request, limits, now)
                return collect_page(request, decoded(rows, self._found_damage))

        return self._look_at(look)

    def read_history(self, request: ReadHistory) -> HistoryPage:
        """Return a page of one actor's history."""

        def look(system: System) -> HistoryPage:
            rows = history_rows(system, request)
            return collect_history(request, decoded(rows, self._found_damage))

        return self._look_at(look)

    def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        """Return a page of one actor's history, as it is stored."""
        page = self._look_at(lambda system: encoded_history(request, history_rows(system, request)))
        return self.read_history(request) if page is None else page

    def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Return the last revision of each of `actors` that has a history."""
        return self._look_at(lambda system: last_revisions(system, actors))

    def _look_at(self, look: Callable[[System], ResultT]) -> ResultT:
        self._take_back_doubt()
        return self._session.call(look)

    def holder(self) -> str | None:
        """Return who writes, if that one is connected still, as far as the server tells."""

        def look(system: System) -> str | None:
            (writer,) = system.row(
                "SELECT writer FROM {schema}.systems WHERE system_id = %(system)s"
            )
            found = system.rows(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = %(name)s",
                name=application_name(writer),
            )
            return str(writer) if found else None

        return self._session.call(look)

    def _found_damage(self) -> None:
        self.is_damaged = True

    def summarize(self) -> StoreSummary:
        """Sum the totals of all blocks."""
        return self._look_at(self._summarize)

    def _summarize(self, system: System) -> StoreSummary:
        with snapshot(system.connection):
            found = {kind: totals(system, kind) for kind in TABLES}
            last_seq = self._row.greatest_seq(system)
            waiting, refused = outbox.count(system)
            (size,) = system.row(
                "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace ="
                " (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)",
                schema=self._settings.schema,
            )
            (writer,) = system.row(
                "SELECT writer FROM {schema}.systems WHERE system_id = %(system)s"
            )
        held = [each for each in found.values() if each is not None]
        return StoreSummary(
            backend=NAME,
            location=self._settings.location,
            last_seq=last_seq,
            records={kind: each.records if each else 0 for kind, each in found.items()},
            record_bytes={kind: each.bytes if each else 0 for kind, each in found.items()},
            stored_bytes=size,
            oldest=min((each.oldest for each in held), default=None),
            newest=max((each.newest for each in held), default=None),
            writer=writer or None,
            damaged=self.is_damaged,
            outbox_waiting=waiting,
            outbox_refused=refused,
        )

    # Beside the records

    def store_id(self) -> str:
        """Return the id of the store."""
        return self._session.call(self._row.store_id)

    def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Save a snapshot."""
        owner = column_text(actor)
        self._change(lambda system: snapshots.save(system, owner, revision, data))

    def snapshot_revisions(self, actor: str) -> list[int]:
        """Return the revisions of an actor's snapshots."""
        owner = column_text(actor)
        return self._session.call(lambda system: snapshots.revisions(system, owner))

    def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None`."""
        return self.load_listed(StoredSnapshot(column_text(actor), revision, 0))

    def remove_snapshot(self, actor: str, revision: int) -> None:
        """Remove a snapshot, if it is there."""
        self.remove_listed(StoredSnapshot(column_text(actor), revision, 0))

    def list_snapshots(self, after: StoredSnapshot | None, limit: int) -> Sequence[StoredSnapshot]:
        """Return up to `limit` of all snapshots, by owner and revision."""
        return self._session.call(lambda system: snapshots.list_snapshots(system, after, limit))

    def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return self._session.call(
            lambda system: snapshots.load(system, stored.owner, stored.revision)
        )

    def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove a snapshot, if it is there."""
        self._change(lambda system: snapshots.remove(system, stored.owner, stored.revision))

    def quarantine_listed(self, stored: StoredSnapshot, config: PersistenceRecoveryConfig) -> str:
        """Move a snapshot to the table for damaged originals."""
        del config
        self._change(lambda system: snapshots.quarantine(system, stored.owner, stored.revision))
        return self._quarantine

    def _change(self, change: Callable[[System], object], *, unlimited: bool = False) -> None:
        """Make a change, which may be made twice, in a transaction of its own."""

        def make(system: System) -> None:
            with transaction(system.connection, unlimited=unlimited):
                change(system)

        self._session.call(make)

    def load_position(self, name: str) -> bytes | None:
        """Return a position, or `None`."""
        if not self._has_positions:
            return None

        def look(system: System) -> bytes | None:
            if self._is_position_in_doubt:
                with transaction(system.connection), contextlib.suppress(StoreFenced):
                    self._row.lock(system)  # which waits for a commit that is under way
                self._is_position_in_doubt = False
            return positions.load(system, name)

        return self._session.call(look)

    def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Set a position, if it is as expected."""
        return self._set_position(
            name, data, expected, lambda system: positions.save(system, name, data)
        )

    def remove_position(self, name: str, expected: bytes) -> bool:
        """Remove a position, if it is as expected."""
        return self._set_position(
            name, None, expected, lambda system: positions.remove(system, name)
        )

    def _set_position(
        self,
        name: str,
        wanted: bytes | None,
        expected: bytes | None,
        change: Callable[[System], None],
    ) -> bool:
        """Make a change of a position, if it is as expected.

        Where the commit of an earlier try was not confirmed, and it was as expected then, what is
        there now is this one's: nobody else can have set it, as long as this is the writer.
        """
        was_expected = False

        def compare_and_set(system: System) -> bool:
            nonlocal was_expected
            with transaction(system.connection):
                self._row.lock(system)
                found = positions.load(system, name)
                if found != expected:
                    return was_expected and found == wanted
                was_expected = True
                change(system)
            return True

        self._is_position_in_doubt = True
        is_set = self._session.call(compare_and_set)
        self._is_position_in_doubt = False
        return is_set

    def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        """Return up to `limit` names of positions."""
        if not self._has_positions:
            return ()
        return self._session.call(lambda system: positions.list_positions(system, after, limit))

    def handed_over(self, after: int | None, size: int) -> Sequence[HandedOver]:
        """Return the first of what waits in the outbox, of so many bytes."""
        return self._look_at(lambda system: outbox.handed_over(system, after, size))

    def set_aside(self, refused: Sequence[tuple[HandedOver, str]], now: float) -> None:
        """Move what can't be taken over out of the outbox, each with the reason."""

        def move(system: System) -> None:
            for each, reason in refused:
                outbox.set_aside(system, each, reason, now)

        self._change(move)

    def refused(self, after: int | None) -> Sequence[RefusedEvent]:
        """Return some of what was set aside."""
        return self._session.call(lambda system: outbox.refused(system, after))

    # Scan, recovery, compaction

    def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every record of the system."""
        return _report(self._scan(report_progress))

    def _scan(self, report_progress: ReportProgress) -> ScanResult:
        def look(system: System) -> ScanResult:
            total = sum(
                records for records, _ in compaction.count_stored(SystemTables(system)).values()
            )
            return scan(system, total, report_progress)

        found = self._look_at(look)
        self.is_damaged = bool(found.anomalies)
        return found

    def scan_histories(self) -> list[PersistenceAnomaly]:
        """Check the revisions of every actor."""
        return self._look_at(scan_histories)

    def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Keep every record that can be read; move the others, if asked to."""
        quarantine = config.mode == "quarantine"
        removed = self._mend(quarantine=quarantine) if self._scan(_tell_nobody).anomalies else 0
        after = self._scan(_tell_nobody)
        return PersistenceRecoveryReport(
            NAME,
            supported=True,
            scan=_report(after),
            records_kept=after.records,
            records_removed=removed,
            quarantined=(self._quarantine,) if removed and quarantine else (),
        )

    def _mend(self, *, quarantine: bool) -> int:
        wrong = self._session.call(repair.wrong_rows)
        removed = 0

        def mend(system: System) -> None:
            nonlocal removed
            self._row.lock(system)
            self._row.note_last(system, self._row.greatest_seq(system))
            removed = repair.mend_rows(system, wrong, quarantine=quarantine)

        self._change(mend, unlimited=True)
        return removed

    @property
    def _quarantine(self) -> str:
        return f"{self._settings.schema}.quarantine"

    def drop_hidden(
        self, policy: RetentionPolicy, now: float, bases: Sequence[NewBase] = ()
    ) -> CompactionReport:
        """Delete what `policy` hides at Unix time `now`; of histories, what `bases` stand for."""
        self._take_back_doubt()

        def drop(system: System) -> CompactionReport:
            with transaction(system.connection, unlimited=True):
                self._row.lock(system)
                self._row.note_last(system, self._row.greatest_seq(system))
                done = compaction.compact(SystemTables(system), policy, now, bases)
            return CompactionReport.of_kinds(NAME, *done)

        return self._session.call(drop)

    def count_hidden(
        self, policy: RetentionPolicy, now: float, bases: Sequence[NewBase] = ()
    ) -> CompactionReport:
        """Report what `drop_hidden` would do."""

        def count(system: System) -> CompactionReport:
            with snapshot(system.connection, unlimited=True):
                done = compaction.preview(SystemTables(system), policy, now, bases)
            return CompactionReport.of_kinds(NAME, *done)

        return self._look_at(count)


def _report(found: ScanResult) -> PersistenceScanReport:
    return PersistenceScanReport(NAME, found.records, found.bytes, tuple(found.anomalies))


def _tell_nobody(progress: ScanProgress) -> None:
    del progress


def _refuse_writers(system: System) -> None:
    """Raise `BackendInUse` if the writer of any system in these tables is connected."""
    for name, writer in system.rows(
        "SELECT system_id, writer FROM {schema}.systems WHERE writer <> ''"
    ):
        if system.rows(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = %(name)s",
            name=application_name(writer),
        ):
            raise BackendInUse(
                f"{system.settings.location}: {writer} writes {name!r}: stop it first", owner=writer
            )
