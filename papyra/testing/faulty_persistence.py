"""A store that fails when it is told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Self, TypeVar, assert_never, cast

import anyio

from papyra._safe_repr import shown
from papyra.clock import Clock, SystemClock
from papyra.exceptions import InvalidRecord, InvalidSetting, PersistenceError
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.group_commit import Committed
from papyra.persistence.backends.revisions import histories_of
from papyra.persistence.backends.snapshots import snapshots_of
from papyra.persistence.backends.store import (
    OPTIONAL_PARTS,
    Batch,
    EncodedHistories,
    HistoryScanning,
    Inbox,
    Losing,
    Migrating,
    NewBase,
    Outbox,
    Positions,
    Rebasing,
    StoredSnapshot,
    Summarizing,
)
from papyra.persistence.messages import (
    Append,
    AppendMany,
    Compact,
    EncodedHistory,
    HistoryPage,
    Page,
    Read,
    ReadHistory,
    Recover,
    Request,
    Scan,
    Summarize,
)
from papyra.persistence.outbox import HandedOver, RefusedEvent
from papyra.persistence.records import Kind, Record
from papyra.persistence.reports import (
    CompactionReport,
    MigrationReport,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy
from papyra.testing.fault_rules import (
    Delay,
    Fail,
    FaultPolicy,
    Hang,
    InjectedFault,
    Injection,
    Operation,
    OperationName,
    Reject,
    Rule,
)

__all__ = ("FaultInjector", "FaultyPersistence", "FaultyStore")

ReplyT = TypeVar("ReplyT")


class FaultyPersistence(PersistenceBackend):
    """Wraps any backend, and injects faults into what its store is asked to do.

    Use it in place of the backend: it can do whatever that one can, and nothing else. Its own
    metrics count what callers saw. While this one is open, the other's verbs go through it, and
    who watches its commits sees what is stored.

    Without an `error` of the test's own, what is raised is an `InjectedFault`, which is a
    `StoreError`. Rules are tried in the order they were made: delays add up, and the first failure
    decides. ``fail_next`` and ``reject`` follow Pekko's ``PersistenceTestKit``.
    """

    def __init__(self, backend: PersistenceBackend, *, clock: Clock | None = None) -> None:
        """Wrap `backend`; `clock` is what delays go by."""
        if not isinstance(backend, PersistenceBackend):
            raise InvalidSetting(
                f"a FaultyPersistence wraps a PersistenceBackend, not {shown(backend)}"
            )
        self._wrapped = backend
        self._faults = FaultInjector(clock or SystemClock())
        self._rejections: list[Rule[Reject]] = []
        super().__init__(
            self._make_store(self._faults),
            retention_policy=backend.retention,
            clock=backend.clock,
        )
        self.watch_commits(backend.publish)
        self.watch_scans(backend.report_progress)

    def _make_store(self, faults: FaultInjector) -> FaultyStore:
        """Return the store that stands before that of the wrapped backend."""
        return FaultyStore(self, faults)

    @property
    def wrapped(self) -> PersistenceBackend:
        """The backend below."""
        return self._wrapped

    # What the test says

    @property
    def injected(self) -> Sequence[Injection]:
        """The faults that were injected, in order, each with its operation."""
        return tuple(self._faults.injected)

    @property
    def pending(self) -> Sequence[Rule[Any]]:
        """Rules that have not acted as often as they were to."""
        rules = (*self._rejections, *self._faults.policies)
        return tuple(rule for rule in rules if isinstance(rule, Rule) and rule.times)

    def fail_next(
        self,
        operation: OperationName = "append",
        error: Exception | None = None,
        *,
        kind: Kind | None = None,
        times: int = 1,
        after: bool = False,
    ) -> None:
        """Fail the next operation of this name, or the next `times` of them.

        With `kind`, only one that is about such records. With `after`, it is done all the same, but
        its callers are told that it failed: an answer that got lost.
        """
        fault = Fail(
            InjectedFault(f"{operation} failed on purpose") if error is None else error, after
        )
        self.use(Rule(fault, operation, kind, times=times))

    def fail_when(
        self, predicate: Callable[[Operation], object], error: Exception | None = None
    ) -> None:
        """Fail each operation for which `predicate` holds, until `clear`."""
        fault = Fail(InjectedFault("an operation failed on purpose") if error is None else error)
        self.use(Rule(fault, None, predicate=predicate))

    def fail_every(
        self,
        n: int,
        operation: OperationName = "append",
        error: Exception | None = None,
        *,
        kind: Kind | None = None,
    ) -> None:
        """Fail every `n`-th operation of this name, until `clear`."""
        injected = InjectedFault(f"every {n}. {operation} fails on purpose")
        fault = Fail(injected if error is None else error)
        self.use(Rule(fault, operation, kind, every=n))

    def reject(
        self,
        predicate: Callable[[Record], object] | None = None,
        error: PersistenceError | None = None,
        *,
        kind: Kind | None = None,
        times: int | None = 1,
    ) -> None:
        """Refuse the next append request that holds a record for which `predicate` holds.

        Others are not concerned, not even those of the same commit. The default error is an
        `InvalidRecord`. `times` is how many requests; `None` for all until `clear`.
        """

        def holds(operation: Operation) -> bool:
            return predicate is None or any(map(predicate, operation.records))

        fault = Reject(
            InvalidRecord("a record was rejected on purpose") if error is None else error
        )
        self._rejections.append(Rule(fault, "append", kind, predicate=holds, times=times))

    def delay(
        self,
        seconds: float,
        operation: OperationName | None = "append",
        *,
        kind: Kind | None = None,
        times: int | None = None,
    ) -> None:
        """Let operations of this name take `seconds` longer, until `clear` or `times` of them."""
        self.use(Rule(Delay(seconds), operation, kind, times=times))

    def hang(
        self,
        operation: OperationName = "append",
        *,
        kind: Kind | None = None,
        times: int | None = 1,
    ) -> None:
        """Let the next operation of this name wait until `release`, which may be for ever."""
        self._faults.hold()
        self.use(Rule(Hang(), operation, kind, times=times))

    def release(self) -> None:
        """Let go on what hangs."""
        self._faults.release()

    def use(self, policy: FaultPolicy) -> None:
        """Ask `policy` about every operation, after those that were there before."""
        self._faults.policies.append(policy)

    def clear(self) -> None:
        """Inject no more faults, and release what hangs. What was `injected` stays known."""
        self._faults.policies.clear()
        self._rejections.clear()
        self.release()

    # What hosts the wrapped backend

    def ask(self, request: Request[ReplyT]) -> Awaitable[ReplyT]:
        """Carry out a request to the wrapped backend's own verbs, with the faults."""
        return self.execute(request)

    @property
    def owner(self) -> str:
        """The host of the wrapped backend."""
        return f"a FaultyPersistence ({self._host.owner if self._host else 'not hosted'})"

    def commit(self, requests: Sequence[Append | AppendMany]) -> Awaitable[Committed]:
        """Store what is not rejected; as the base class."""
        rejected: dict[int, PersistenceError] = {}
        for position, request in enumerate(requests) if self._rejections else ():
            records = (request.record,) if isinstance(request, Append) else request.records
            operation = Operation("append", self._faults.count("append") + 1, records)
            for rule in self._rejections:
                if fault := rule.decide(operation):
                    self._faults.injected.append(Injection(operation, fault))
                    rejected[position] = fault.error
                    break
        if not rejected:
            return super().commit(requests)
        return self._commit_others(requests, rejected)

    async def _commit_others(
        self, requests: Sequence[Append | AppendMany], rejected: dict[int, PersistenceError]
    ) -> Committed:
        others = [r for position, r in enumerate(requests) if position not in rejected]
        replies, errors = await super().commit(others) if others else ((), ())
        self.metrics.write_errors += len(rejected)
        left = iter(replies)
        merged = [
            rejected[position] if position in rejected else next(left)
            for position in range(len(requests))
        ]
        return merged, [*errors, *rejected.values()]


class FaultInjector:
    """Decides about operations, and makes happen to them what was decided."""

    def __init__(self, clock: Clock) -> None:
        self.policies: list[FaultPolicy] = []
        #: in order
        self.injected: list[Injection] = []
        self._clock = clock
        self._counts: Counter[OperationName] = Counter()
        self._released = anyio.Event()

    def count(self, name: OperationName) -> int:
        """Return how many operations of this name there were."""
        return self._counts[name]

    def hold(self) -> None:
        """Let what hangs from now on wait for the next `release`."""
        if self._released.is_set():
            self._released = anyio.Event()

    def release(self) -> None:
        """Let go on what hangs."""
        self._released.set()

    async def attempt(
        self,
        name: OperationName,
        action: Callable[[], Awaitable[ReplyT]],
        *,
        records: Sequence[Record] = (),
        request: Request[Any] | None = None,
    ) -> ReplyT:
        """Return what `action` returns, unless and after faults are injected."""
        self._counts[name] += 1
        operation = Operation(name, self._counts[name], records, request)
        for policy in tuple(self.policies):
            fault = policy.decide(operation)
            if fault is None:
                continue
            self.injected.append(Injection(operation, fault))
            match fault:
                case Delay(seconds):
                    await self._clock.sleep(seconds)
                case Hang():
                    await self._released.wait()
                case Fail(error, after):
                    if after:
                        await action()
                    raise error.with_traceback(None)
                case _:
                    assert_never(fault)
        return await action()


class FaultyStore:
    """Stands before the store of a backend that a `FaultyPersistence` wraps, and hosts it.

    It has the optional parts which that one has.
    """

    def __new__(cls, host: FaultyPersistence, *_: object) -> Self:
        """Make one that has no other parts."""
        store = host.wrapped.store
        missing = [part for part in OPTIONAL_PARTS if not isinstance(store, part)]
        names = [name for part in missing for name in vars(part) if not name.startswith("_")]
        # A method that is `None` is none to a protocol.
        return super().__new__(type(cls.__name__, (cls,), dict.fromkeys(names)))

    def __init__(self, host: FaultyPersistence, faults: FaultInjector) -> None:
        self._host = host
        self._backend = host.wrapped
        self._store = host.wrapped.store
        self.name, self.capabilities = self._store.name, self._store.capabilities
        self._faults = faults
        self._is_open = False
        #: the batch that is being appended, once it is stored
        self._stored: Batch | None = None

    @property
    def location(self) -> str:
        """The wrapped store's."""
        return self._store.location

    async def open(self) -> None:
        """Host the wrapped backend, and open its store."""
        await self._faults.attempt("open", self._open)

    async def close(self) -> None:
        """Close the store, and let go of the wrapped backend."""
        await self._faults.attempt("close", self._close)

    async def last_seq(self) -> int:
        """Ask the wrapped store; no fault is injected."""
        return await self._store.last_seq()

    async def stored_seq(self) -> int:
        """Ask the wrapped store; no fault is injected."""
        return await cast("Losing", self._store).stored_seq()

    async def claim(self) -> int:
        """Ask the wrapped store; no fault is injected."""
        return await self._store.claim()

    async def append(self, batch: Batch) -> None:
        """Store a batch; it may be stored though this raises: an answer that got lost."""
        await self._append(batch, lambda: self.store(batch))

    async def _append(self, batch: Batch, store: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._faults.attempt("append", store, records=batch.records)
        except BaseException:
            if self._stored is batch:
                # Whoever asked does not know it, and that is the point.
                self._host.publish(batch)
            raise
        finally:
            self._stored = None

    async def store(self, batch: Batch) -> None:
        """Store a batch in the wrapped store."""
        await self._store.append(batch)
        self._stored = batch

    async def flush(self) -> None:
        """Flush the store."""
        await self._faults.attempt("flush", self._store.flush)

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Read a page."""
        return await self._faults.attempt(
            "read", lambda: self._store.read(request, policy, now), request=request
        )

    async def read_history(self, request: ReadHistory) -> HistoryPage:
        """Read a page of a history; for faults, that is a read of events."""
        histories = histories_of(self._store)
        return await self._faults.attempt(
            "read", lambda: histories.read_history(request), request=request
        )

    async def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        """Read a page of a history as it is stored, which is a read, too."""
        histories = cast("EncodedHistories", self._store)
        return await self._faults.attempt(
            "read", lambda: histories.read_encoded_history(request), request=request
        )

    async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Ask the wrapped store; no fault is injected."""
        return await histories_of(self._store).last_revisions(actors)

    async def store_id(self) -> str:
        """Ask the wrapped store; no fault is injected."""
        return await snapshots_of(self._store).store_id()

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Save a snapshot."""
        store = snapshots_of(self._store)
        await self._faults.attempt(
            "save_snapshot", lambda: store.save_snapshot(actor, revision, data)
        )

    async def snapshot_revisions(self, actor: str) -> list[int]:
        """Ask the wrapped store; no fault is injected."""
        return await snapshots_of(self._store).snapshot_revisions(actor)

    async def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        """Load a snapshot."""
        store = snapshots_of(self._store)
        return await self._faults.attempt(
            "load_snapshot", lambda: store.load_snapshot(actor, revision)
        )

    async def remove_snapshot(self, actor: str, revision: int) -> None:
        """Ask the wrapped store; no fault is injected."""
        await snapshots_of(self._store).remove_snapshot(actor, revision)

    def snapshot_owner(self, actor: str) -> str:
        """Ask the wrapped store."""
        return snapshots_of(self._store).snapshot_owner(actor)

    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        """Ask the wrapped store; no fault is injected."""
        return await snapshots_of(self._store).list_snapshots(after, limit)

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Load a snapshot, as `load_snapshot` does."""
        store = snapshots_of(self._store)
        return await self._faults.attempt("load_snapshot", lambda: store.load_listed(stored))

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Ask the wrapped store; no fault is injected."""
        await snapshots_of(self._store).remove_listed(stored)

    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        """Ask the wrapped store; no fault is injected."""
        return await snapshots_of(self._store).quarantine_listed(stored, directory)

    async def load_position(self, name: str) -> bytes | None:
        """Load a position."""
        return await self._at_positions("load_position", lambda store: store.load_position(name))

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Set a position; it may be set though this raises: an answer that got lost."""
        return await self._at_positions(
            "save_position", lambda store: store.save_position(name, data, expected)
        )

    async def remove_position(self, name: str, expected: bytes) -> bool:
        """Remove a position; for faults, as `save_position`."""
        return await self._at_positions(
            "save_position", lambda store: store.remove_position(name, expected)
        )

    async def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        """Ask the wrapped store; no fault is injected."""
        return await cast("Positions", self._store).list_positions(after, limit)

    async def _at_positions(
        self, name: OperationName, action: Callable[[Positions], Awaitable[ReplyT]]
    ) -> ReplyT:
        return await self._faults.attempt(name, lambda: action(cast("Positions", self._store)))

    async def summarize(self) -> StoreSummary:
        """Sum up the store; for faults, that is one read."""
        store = cast("Summarizing", self._store)
        return await self._faults.attempt("read", store.summarize, request=Summarize())

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Scan the store."""
        return await self._faults.attempt(
            "scan", lambda: self._store.scan(report_progress), request=Scan()
        )

    async def scan_histories(self) -> Sequence[PersistenceAnomaly]:
        """Ask the wrapped store; no fault is injected."""
        return await cast("HistoryScanning", self._store).scan_histories()

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Recover the store."""
        return await self._faults.attempt(
            "recover", lambda: self._store.recover(config), request=Recover(config)
        )

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Compact the store."""
        return await self._faults.attempt(
            "compact",
            lambda: self._store.compact(policy, now, dry_run=dry_run),
            request=Compact(policy, dry_run),
        )

    async def compact_histories(
        self, bases: Sequence[NewBase], policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Compact the store, and trim its histories."""
        store = cast("Rebasing", self._store)
        return await self._faults.attempt(
            "compact",
            lambda: store.compact_histories(bases, policy, now, dry_run=dry_run),
            request=Compact(policy, dry_run),
        )

    async def post(self, request_id: str, data: bytes) -> None:
        """Leave a request for the writer."""
        await self._at_inbox(lambda inbox: inbox.post(request_id, data))

    async def posted(self) -> list[str]:
        """Return the ids of requests that wait."""
        return await self._at_inbox(lambda inbox: inbox.posted())

    async def take(self, request_id: str) -> bytes | None:
        """Take a request."""
        return await self._at_inbox(lambda inbox: inbox.take(request_id))

    async def answer(self, request_id: str, data: bytes) -> None:
        """Leave an answer."""
        await self._at_inbox(lambda inbox: inbox.answer(request_id, data))

    async def answered(self, request_id: str) -> bytes | None:
        """Return an answer."""
        return await self._at_inbox(lambda inbox: inbox.answered(request_id))

    async def withdraw(self, request_id: str) -> bool:
        """Take a request back."""
        return await self._at_inbox(lambda inbox: inbox.withdraw(request_id))

    async def handed_over(self, after: int | None, size: int) -> Sequence[HandedOver]:
        """Look into the outbox."""
        return await self._at_outbox(lambda outbox: outbox.handed_over(after, size))

    async def take_over(self, handed: Sequence[HandedOver], batch: Batch) -> None:
        """Store a batch that was handed over; for faults, as `append`."""

        async def store() -> None:
            await cast("Outbox", self._store).take_over(handed, batch)
            self._stored = batch

        await self._append(batch, store)

    async def set_aside(self, refused: Sequence[tuple[HandedOver, str]], now: float) -> None:
        """Set aside what can't be taken over."""
        await self._at_outbox(lambda outbox: outbox.set_aside(refused, now))

    async def refused(self, after: int | None) -> Sequence[RefusedEvent]:
        """Return what was set aside."""
        return await self._at_outbox(lambda outbox: outbox.refused(after))

    async def _at_outbox(self, action: Callable[[Outbox], Awaitable[ReplyT]]) -> ReplyT:
        return await self._faults.attempt("outbox", lambda: action(cast("Outbox", self._store)))

    async def migrate(self, *, dry_run: bool) -> MigrationReport:
        """Ask the wrapped store; no fault is injected."""
        return await cast("Migrating", self._store).migrate(dry_run=dry_run)

    async def is_attended(self) -> bool:
        """Ask the wrapped store; no fault is injected."""
        return await cast("Inbox", self._store).is_attended()

    async def _at_inbox(self, action: Callable[[Inbox], Awaitable[ReplyT]]) -> ReplyT:
        inbox = cast("Inbox", self._store)
        return await self._faults.attempt("inbox", lambda: action(inbox))

    async def _open(self) -> None:
        if self._is_open:
            return  # closing it failed
        self._backend.attach(self._host)
        try:
            if self._backend.is_open:
                await self._backend.detach()
                self._backend.attach(self._host)
            await self._store.open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._backend.detach()
            raise
        self._is_open = True

    async def _close(self) -> None:
        self._is_open = False
        try:
            await self._store.close()
        finally:
            await self._backend.detach()
