"""The backend that users hold: one store with verbs, hosting, metrics, retention, watchers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, Self, TypeVar, assert_never, cast

import anyio
import msgspec

import papyra._logs  # noqa: F401 - has what stores log be a line each
from papyra._cancellation import raise_if_cancelled, shield_methods_from_interrupts
from papyra._safe_repr import shown
from papyra.exceptions import (
    BackendBusy,
    BackendInUse,
    InvalidPolicy,
    InvalidRequest,
    InvalidSetting,
    RevisionConflict,
    StoreError,
)
from papyra.persistence.backends._bounds import bounded_history, bounded_policy, bounded_read
from papyra.persistence.backends._session import StoreSession
from papyra.persistence.backends.all_kinds import read_all
from papyra.persistence.backends.group_commit import Committed, commit
from papyra.persistence.backends.inbox import InboxKeeper
from papyra.persistence.backends.outbox import OutboxKeeper, with_outbox
from papyra.persistence.backends.positions import PositionKeeper, counting_positions
from papyra.persistence.backends.rebasing import compact_and_trim
from papyra.persistence.backends.snapshot_check import (
    counting_snapshots,
    with_snapshots,
    without_bad_snapshots,
)
from papyra.persistence.backends.snapshots import SnapshotKeeper
from papyra.persistence.backends.store import (
    MAX_SEQ,
    Batch,
    Capabilities,
    HistoryScanning,
    Identified,
    Inbox,
    Migrating,
    Outbox,
    Store,
)
from papyra.persistence.backends.summary import summarize
from papyra.persistence.commit_counters import CommitCounters
from papyra.persistence.decisions import examine, record_of
from papyra.persistence.inbox import OperatorReply, OperatorRequest
from papyra.persistence.messages import (
    AllPage,
    AnyRequest,
    Append,
    Appended,
    AppendMany,
    Attend,
    Attended,
    CancelTimer,
    Compact,
    EncodedHistory,
    EventSkipped,
    FireTimer,
    Flush,
    Flushed,
    GetMetrics,
    HistoryPage,
    Identify,
    Identity,
    ListPositions,
    LoadedSnapshot,
    LoadPosition,
    LoadSnapshot,
    Migrate,
    Page,
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
from papyra.persistence.metrics import PersistenceMetricsMixin
from papyra.persistence.recent_commits import CommitFeed
from papyra.persistence.records import Kind, Record
from papyra.persistence.reports import (
    CompactionReport,
    MigrationReport,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    ScanProgress,
)
from papyra.persistence.retention import RetentionPolicy
from papyra.persistence.subscription import (
    POLL_INTERVAL,
    WRITER_POLL_INTERVAL,
    Decode,
    Selection,
    Subscription,
)
from papyra.persistence.timer_operations import change_for, change_record, find_timer
from papyra.persistence.verbs import PersistenceVerbs

__all__ = (
    "MAX_SEQ",
    "Batch",
    "Capabilities",
    "Host",
    "PersistenceBackend",
)

logger = logging.getLogger("papyra")

ReplyT = TypeVar("ReplyT")
ArgumentT = TypeVar("ArgumentT")

#: What makes an object a store.
_MEMBERS = (
    *("name", "location", "capabilities", "open", "last_seq", "claim", "append", "flush", "close"),
    *("read", "scan", "recover", "compact"),
)


class Host(Protocol):
    """The host of a backend, which carries out its requests one at a time."""

    @property
    def owner(self) -> str:
        """The host's address."""

    def ask(self, request: Request[ReplyT]) -> Awaitable[ReplyT]:
        """Send `request` through the host's mailbox and return the reply."""


class PersistenceBackend(PersistenceVerbs, PersistenceMetricsMixin):
    """An append-only store of facts, as its users hold it.

    The verbs (`append`, `read`, `scan`, ...) work the same whether a persistence actor hosts the
    backend or not. Hosted, they go through that actor's mailbox. On its own, the backend carries
    them out on the spot, for one task at a time: it raises `BackendBusy` when two tasks meet, but
    for those that follow, which are waited for. It opens itself on first use.

    Where the records are is up to its `Store`. What that raises that is no `PersistenceError`
    reaches the caller as the cause of a `StoreError`.
    """

    def __init__(
        self,
        store: Store,
        *,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if missing := [name for name in _MEMBERS if not hasattr(store, name)]:
            raise InvalidSetting(f"{shown(store)} is no Store: it has no {', '.join(missing)}")
        if retention_policy is not None and not isinstance(retention_policy, RetentionPolicy):
            raise InvalidPolicy(
                f"retention_policy is a RetentionPolicy, not {shown(retention_policy)}"
            )
        #: where the records are. Only for verbs of its own kind: nobody else may use it meanwhile
        self.store: Store = store
        #: returns Unix time in seconds, to judge the age of records by
        self.clock = clock
        self._retention = retention_policy or RetentionPolicy()
        self._host: Host | None = None
        self._commit_watchers: tuple[Callable[[Batch], None], ...] = ()
        self._scan_watchers: tuple[ReportProgress, ...] = ()
        self._guard = anyio.ResourceGuard("using")
        #: set when the look at the store is over of somebody who follows, while there is one
        self._looking: anyio.Event | None = None
        #: what tells those who follow of the commits of this process
        self.commits = CommitFeed(self.watch_commits)
        self._session = StoreSession(
            store,
            self.metrics,
            self.publish,
            self.commits.overtaken,
            backend=type(self).__name__,
        )
        #: seconds to the next look of those who follow, while this writes the store
        self._writer_interval = self._longest_writer_interval()
        self._snapshots = SnapshotKeeper(store)
        self._positions = PositionKeeper(store, self._session)
        self._inbox = InboxKeeper(store, self._session, self._carry_out, clock)
        self._outbox = OutboxKeeper(store, self._session, self.metrics, clock)

    @property
    def retention(self) -> RetentionPolicy:
        """The limits that reads apply; all of them `None` if no policy was given."""
        return self._retention

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the store."""
        return self.store.capabilities

    @property
    def batch_limit(self) -> int:
        """The most append requests that a host takes at once."""
        return self.store.capabilities.batch_limit

    @property
    def location(self) -> str:
        """The location of the records: a path, or a URL without its secrets; empty for memory."""
        return self.store.location

    @property
    def last_seq(self) -> int:
        """The greatest `seq` known to be given; 0 before the store was opened.

        Where others write the store, it is as of the opening, the last flush, or the last read.
        """
        return self._session.last_seq

    @property
    def is_writer(self) -> bool:
        """Whether this is the one that writes the store, since its first append.

        Where another one can take over, that is known once a write was refused, or at a look.
        """
        return self._session.is_writer

    @property
    def poll_interval(self) -> float | None:
        """Seconds to the next look at the store for who follows it; `None` to wait for a commit."""
        return self._writer_interval if self._session.is_writer else POLL_INTERVAL

    def _longest_writer_interval(self) -> float | None:
        # Without a system nobody else finds out that another one has taken over.
        return WRITER_POLL_INTERVAL if self.capabilities.durable else None

    @property
    def has_inbox(self) -> bool:
        """Whether other processes can leave requests for the writer of the store."""
        return isinstance(self.store, Inbox)

    @property
    def has_outbox(self) -> bool:
        """Whether applications can hand over events in transactions of their own."""
        return isinstance(self.store, Outbox)

    @property
    def is_open(self) -> bool:
        """Whether the store is open."""
        return self._session.state == "open"

    @property
    def is_closed(self) -> bool:
        """Whether the store was closed, and not opened again."""
        return self._session.state == "closed"

    def reader(
        self, *, index_directory: Path | None = None, opening: ReportProgress | None = None
    ) -> PersistenceBackend:
        """Return a backend that looks at the same store and changes nothing; it may be this one.

        Where a store has one writer, looking at it needs no leave of that. Where opening has to
        read much, `opening` is told how far that is, and what it has found out is kept in
        `index_directory`, if there is one, for the next reader.
        """
        del index_directory, opening
        return self

    async def execute(self, request: Request[ReplyT]) -> ReplyT:
        """Execute `request`, through the host's mailbox if there is one, and return the reply."""
        if self._host is not None:
            return await self._host.ask(request)
        await self._look_is_over()
        with self._alone():
            if not isinstance(request, ReadAll):
                return await self.handle(request)
            self._looking = anyio.Event()
            try:
                return cast("ReplyT", await self.handle(request))
            finally:
                self._looking.set()
                self._looking = None

    async def handle(self, request: Request[ReplyT]) -> ReplyT:
        """Handle `request` on the spot. For the host; everybody else calls `execute`."""
        # By its type, as users' objects may raise when they are asked what they are.
        if not issubclass(type(request), AnyRequest):
            raise InvalidRequest(f"{shown(request)} is no request to a persistence backend")
        return cast("ReplyT", await self._handle(cast("AnyRequest", request)))

    def commit(self, requests: Sequence[Append | AppendMany]) -> Awaitable[Committed]:
        """Store what `requests` hold, in order; return the replies, and which of them are errors.

        Adjacent requests share a write. For the host; everybody else calls `append`.
        """
        return commit(requests, self._session)

    def watch_commits(self, watcher: Callable[[Batch], None]) -> Callable[[], None]:
        """Call `watcher` with each batch that was stored, and return what ends that.

        It is called before those who asked get their replies. It must not wait, and the batch is
        not its own to change. What it raises is logged.
        """
        self._commit_watchers += (watcher,)

        def unwatch() -> None:
            self._commit_watchers = _without(self._commit_watchers, watcher)

        return unwatch

    def subscribe(
        self,
        *,
        after: int = 0,
        kinds: Sequence[Kind] = ("event",),
        types: Iterable[str] | None = None,
        actor: str | None = None,
        entity: str | None = None,
        decode: Decode | None = None,
        waiting: Callable[[StoreError], None] | None = None,
    ) -> Subscription:
        """Return the records after a position, and those to come, in the order of their positions.

        It is entered with ``async with``, and iterated over by one task. Of events, `types` selects
        those of these types, `actor` those of an address, `entity` those of all entities of a type;
        `decode` makes one or more of each stored event, or none, which come as `Received`.
        `waiting` is called when the store fails, and is tried again; without it that is logged. See
        `Subscription`. Raises `InvalidRequest`.
        """
        selection = Selection.of(kinds, types, actor, entity, decode)
        return Subscription(self, selection, after, waiting=waiting)

    def measure_commits(self, counters: CommitCounters | None) -> None:
        """Have commits counted by size and time from now on, or no more. For the system."""
        self._session.commit_counters = counters

    def publish(self, batch: Batch) -> None:
        """Tell who watches commits of a batch that was stored. For what stores it in its place."""
        if self._commit_watchers:
            _tell_all(self._commit_watchers, batch, self)

    def watch_scans(self, watcher: ReportProgress) -> Callable[[], None]:
        """Call `watcher` with the progress of every scan, whoever asks for it; return what ends it.

        It is called from whichever thread scans, so it must not wait. What it raises is logged.
        """
        self._scan_watchers += (watcher,)

        def unwatch() -> None:
            self._scan_watchers = _without(self._scan_watchers, watcher)

        return unwatch

    def report_progress(self, progress: ScanProgress) -> None:
        """Tell those who watch scans how far one is. For what scans in its place."""
        _tell_all(self._scan_watchers, progress, self)

    def attach(self, host: Host) -> None:
        """Let `host` carry out every request from now on, reopening the backend if it was closed.

        Raises `BackendInUse`, naming the owner, if there is a host already, and `BackendBusy` if
        some task is using the backend without one.
        """
        if self._host is not None:
            raise BackendInUse(
                f"this {type(self).__name__} is hosted by {self._host.owner} already: "
                "stop that actor first, or give each system a backend of its own",
                owner=self._host.owner,
            )
        with self._alone():
            self._host = host
        self._session.reopen()

    async def detach(self) -> None:
        """Close the backend and let go of its host."""
        try:
            await self._session.shut()
        finally:
            self._host, self._writer_interval = None, self._longest_writer_interval()
            self.commits.end()

    async def aclose(self) -> None:
        """Flush and close. Closing twice is allowed.

        Raises `BackendInUse` while an actor hosts the backend: stopping that actor closes it.
        """
        if self._host is not None:
            raise BackendInUse(
                f"this {type(self).__name__} is hosted by {self._host.owner}, "
                "which closes it when it stops",
                owner=self._host.owner,
            )
        await self._look_is_over()
        with self._alone():
            try:
                await self._session.shut()
            finally:
                self.commits.end()
        await raise_if_cancelled()  # whatever has struck meanwhile

    async def __aenter__(self) -> Self:
        self._session.reopen()
        await self.flush()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _look_is_over(self) -> None:
        """Wait for who follows, who looks by itself: no other task knows when."""
        while self._looking is not None:
            await self._looking.wait()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # A Ctrl-C of trio's must not leave it open, or in somebody's hands.
        shield_methods_from_interrupts(type(self))
        try:
            with self._guard:
                yield
        except anyio.BusyResourceError:
            raise BackendBusy(
                f"another task is using this {type(self).__name__}: "
                "host it in a PersistenceActor to share it"
            ) from None

    async def _handle(self, request: AnyRequest) -> object:  # noqa: PLR0912 - one for each
        match request:
            case Append() | AppendMany():
                replies, errors = await self.commit([request])
                for error in errors:
                    raise error
                return replies[0]
            case Restore(records):
                return await self._session.restore(records)
            case Summarize():
                summary = await self._session.attempt("read", summarize, self.store)
                for counting in (counting_snapshots, counting_positions):
                    summary = await self._session.attempt("read", counting, self.store, summary)
                return summary
            case Read() | ReadHistory():
                return await self._read(request)
            case ReadAll():
                return await self._read_all(request)
            case SaveSnapshot():
                return await self._save_snapshot(request)
            case LoadSnapshot():
                return await self._load_snapshot(request)
            case LoadPosition() | SavePosition() | RemovePosition() | ListPositions():
                return await self._positions.handle(request)
            case SkipEvent():
                return await self._skip_event(request)
            case CancelTimer() | FireTimer():
                return await self._change_timer(request)
            case Attend():
                return await self._attend()
            case TakeOutbox():
                return await self._outbox.take()
            case Identify():
                return await self._identify()
            case GetMetrics():
                return self.metrics.snapshot()
            case ResetMetrics():
                snapshot = self.metrics.snapshot()
                self.metrics.reset()
                return snapshot
            case Scan(records_only):
                return await self._scan(records_only=records_only)
            case Recover(config, records_only):
                return await self._recover(
                    config or PersistenceRecoveryConfig(), records_only=records_only
                )
            case Compact(policy, dry_run):
                return await self._compact(policy or self._retention, dry_run=dry_run)
            case Migrate(dry_run):
                return await self._migrate(dry_run=dry_run)
            case Flush():
                return Flushed(await self._session.attempt("write", self._session.flush))
            case _:
                assert_never(request)

    async def _read(self, request: Read | ReadHistory) -> Page | HistoryPage | EncodedHistory:
        page: Page | HistoryPage | EncodedHistory
        if isinstance(request, ReadHistory):
            page = await self._session.read_history(bounded_history(request))
        else:
            policy = bounded_policy(self._retention)
            page = await self._session.attempt(
                "read", self.store.read, bounded_read(request), policy, self.clock()
            )
            self._session.saw(page.records)
        self.metrics.reads += 1
        return page

    async def _read_all(self, request: ReadAll) -> AllPage:
        session = self._session
        if request.afresh:
            await session.look_for_successor()
        head = await session.head()
        page = await session.attempt(
            "read", read_all, self.store, request, head, is_writer=session.is_writer
        )
        self.metrics.reads += 1
        return page

    async def _attend(self) -> Attended:
        if self._host is not None:
            self._writer_interval = None  # it goes on with that
        if self.commits.is_followed:
            # Who follows gets to know of a store that fails when it has become another one's.
            with contextlib.suppress(StoreError):
                await self._session.look_for_successor()
        return Attended(await self._inbox.attend(), await self._outbox.look())

    async def _save_snapshot(self, request: SaveSnapshot) -> SnapshotSaved:
        saved = await self._session.attempt("snapshot", self._snapshots.save, request)
        self.metrics.snapshots_saved += 1
        return saved

    async def _load_snapshot(self, request: LoadSnapshot) -> LoadedSnapshot:
        loaded = await self._session.attempt("read", self._snapshots.load, request)
        self.metrics.snapshots_passed_over += len(loaded.passed_over)
        if request.before_revision is not None:
            # The one before this was loaded, and turned out to be of no use.
            self.metrics.snapshots_passed_over += 1
        self.metrics.snapshots_loaded += loaded.snapshot is not None
        return loaded

    async def _carry_out(self, request: OperatorRequest) -> OperatorReply:
        return cast("OperatorReply", await self._handle(request))

    async def _change_timer(self, request: CancelTimer | FireTimer) -> TimerChanged:
        found = await find_timer(request.actor, request.name, self.handle)
        change = change_for(request, found, self.clock())
        if change is None:
            return TimerChanged(found.last.revision or 0, is_new=False)
        revision = (found.last.revision or 0) + 1
        try:
            await self._append(change_record(found, change, revision, self.clock()))
        except RevisionConflict as conflict:
            # The last events can't be read, but they count.
            revision = conflict.expected
            await self._append(change_record(found, change, revision, self.clock()))
        return TimerChanged(revision, is_new=True)

    async def _skip_event(self, request: SkipEvent) -> EventSkipped:
        examined = await examine(request, self.handle)
        if examined.decided is not None:
            return examined.decided
        revision = examined.last_revision + 1
        try:
            await self._append(record_of(request, examined, revision, self.clock()))
        except RevisionConflict as conflict:
            # The last events can't be read, but they count.
            revision = conflict.expected
            await self._append(record_of(request, examined, revision, self.clock()))
        return EventSkipped(revision, request.reason, is_new=True)

    async def _append(self, record: Record) -> Appended:
        replies, errors = await self.commit([Append(record)])
        for error in errors:
            raise error
        return cast("Appended", replies[0])

    async def _identify(self) -> Identity:
        if not isinstance(self.store, Identified):
            return Identity(None)
        return Identity(await self._session.attempt("read", self.store.store_id) or None)

    async def _scan(self, *, records_only: bool) -> PersistenceScanReport:
        report = await self._session.attempt("scan", self.store.scan, self.report_progress)
        if not records_only:
            report = await self._with_histories(report)
            report = await self._session.attempt("scan", with_snapshots, self.store, report)
            report = await self._session.attempt("scan", with_outbox, self.store, report)
        self.metrics.scans += 1
        self.metrics.anomalies_detected += len(report.anomalies)
        return report

    async def _with_histories(self, report: PersistenceScanReport) -> PersistenceScanReport:
        """Return the report of a scan with what is wrong with histories, if that is not in it."""
        if not isinstance(self.store, HistoryScanning):
            return report
        found = await self._session.attempt("scan", self.store.scan_histories)
        return msgspec.structs.replace(report, anomalies=(*report.anomalies, *found))

    async def _recover(
        self, config: PersistenceRecoveryConfig, *, records_only: bool
    ) -> PersistenceRecoveryReport:
        self._session.unclaim()
        try:
            report = await self._session.attempt("recovery", self.store.recover, config)
        finally:
            self.commits.overtaken()  # some of them may be gone
        if not records_only:
            scan = await self._with_histories(report.scan)
            report = msgspec.structs.replace(report, scan=scan)
            report = await self._session.attempt(
                "recovery", without_bad_snapshots, self.store, config, report
            )
            scan = await self._session.attempt("scan", with_outbox, self.store, report.scan)
            report = msgspec.structs.replace(report, scan=scan)
        self.metrics.recoveries += report.supported
        return report

    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        trims, now = policy.trim_histories, self.clock()
        compact = self.store.compact
        if trims:
            compact = partial(compact_and_trim, self.store, self._snapshots)
        try:
            report = await self._session.attempt(
                "compaction", compact, bounded_policy(policy), now, dry_run=dry_run
            )
        finally:
            self.commits.overtaken()  # some of them may be gone
        self.metrics.compactions += report.supported and not dry_run
        return report

    async def _migrate(self, *, dry_run: bool) -> MigrationReport:
        store = self.store
        if not isinstance(store, Migrating):
            return MigrationReport(store.name, supported=False)
        report = await self._session.attempt_closed("migration", store.migrate, dry_run=True)
        if dry_run or not report.steps:
            return report
        # It is not open: tables that have anything to be done to them are not opened to be written.
        return await self._session.attempt_closed("migration", store.migrate, dry_run=False)


def _without(
    listeners: tuple[Callable[[ArgumentT], None], ...], listener: Callable[[ArgumentT], None]
) -> tuple[Callable[[ArgumentT], None], ...]:
    position = listeners.index(listener)
    return listeners[:position] + listeners[position + 1 :]


def _tell_all(
    listeners: Sequence[Callable[[ArgumentT], None]], argument: ArgumentT, backend: object
) -> None:
    for listener in listeners:
        try:
            listener(argument)
        except Exception:
            # Whoever appended, or scans, has nothing to do with this.
            logger.exception("a watcher of this %s raised", type(backend).__name__)
