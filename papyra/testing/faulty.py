"""A store that fails when it is told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, assert_never

import anyio

from papyra.clock import Clock, SystemClock
from papyra.exceptions import InvalidRecord, InvalidSetting, PersistenceError
from papyra.persistence.backends.base import Batch, PersistenceBackend
from papyra.persistence.backends.commit import Committed
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.messages import (
    Append,
    AppendMany,
    Compact,
    Flush,
    Page,
    Read,
    Recover,
    Request,
    Scan,
    Summarize,
)
from papyra.persistence.records import Kind, Record
from papyra.persistence.reports import (
    CompactionReport,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    StoreSummary,
)
from papyra.testing.faults import (
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

__all__ = ("FaultyPersistence",)

ReplyT = TypeVar("ReplyT")


class FaultyPersistence(PersistenceBackend):
    """Wraps any backend, and injects faults into what it is asked to do.

    Use it in place of the backend. Its own metrics count what callers saw; the wrapped backend's
    count what reached it. While this one is open, the other's verbs go through it.

    Without an `error` of the test's own, what is raised is an `InjectedFault`, which is a
    `StoreError`. Rules are tried in the order they were made: delays add up, and the first failure
    decides. ``fail_next`` and ``reject`` follow Pekko's ``PersistenceTestKit``.
    """

    def __init__(self, backend: PersistenceBackend, *, clock: Clock | None = None) -> None:
        """Wrap `backend`; `clock` is what delays go by."""
        if not isinstance(backend, PersistenceBackend):
            raise InvalidSetting(f"a FaultyPersistence wraps a PersistenceBackend, not {backend!r}")
        super().__init__()
        self.capabilities = backend.capabilities
        self._wrapped = backend
        self._waits_by = clock or SystemClock()
        self._policies: list[FaultPolicy] = []
        self._rejections: list[Rule[Reject]] = []
        self._injected: list[Injection] = []
        self._counts: Counter[OperationName] = Counter()
        self._released = anyio.Event()

    @property
    def wrapped(self) -> PersistenceBackend:
        """The backend below."""
        return self._wrapped

    @property
    def retention(self) -> RetentionPolicy:
        """The wrapped backend's."""
        return self._wrapped.retention

    # What the test says

    @property
    def injected(self) -> Sequence[Injection]:
        """What was injected, in order, and into which operation."""
        return tuple(self._injected)

    @property
    def pending(self) -> Sequence[Rule[Any]]:
        """Rules that have not acted as often as they were to."""
        rules = (*self._rejections, *self._policies)
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
        if self._released.is_set():
            self._released = anyio.Event()
        self.use(Rule(Hang(), operation, kind, times=times))

    def release(self) -> None:
        """Let go on what hangs."""
        self._released.set()

    def use(self, policy: FaultPolicy) -> None:
        """Ask `policy` about every operation, after those that were there before."""
        self._policies.append(policy)

    def clear(self) -> None:
        """Inject no more faults, and release what hangs. What was `injected` stays known."""
        self._policies.clear()
        self._rejections.clear()
        self.release()

    # What a backend does

    def ask(self, request: Request[ReplyT]) -> Awaitable[ReplyT]:
        """Carry out a request to the wrapped backend's own verbs, with the faults."""
        return self.perform(request)

    @property
    def owner(self) -> str:
        """Who hosts the wrapped backend."""
        return f"a FaultyPersistence ({self._host.owner if self._host else 'not hosted'})"

    def commit(self, requests: Sequence[Append | AppendMany]) -> Awaitable[Committed]:
        """Store what is not rejected; as the base class."""
        rejected: dict[int, PersistenceError] = {}
        for position, request in enumerate(requests) if self._rejections else ():
            records = (request.record,) if isinstance(request, Append) else request.records
            operation = Operation("append", self._counts["append"] + 1, records)
            for rule in self._rejections:
                if fault := rule.decide(operation):
                    self._injected.append(Injection(operation, fault))
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

    async def _open(self) -> int:
        return await self._attempt_faultily("open", self._open_wrapped)

    async def _open_wrapped(self) -> int:
        if self._wrapped._host is self:
            self._wrapped._host = None  # closing it failed
        self._wrapped.attach(self)
        try:
            return (await self._wrapped.carry_out(Flush())).last_seq
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._wrapped.detach()
            raise

    async def _close(self) -> None:
        await self._attempt_faultily("close", self._wrapped.detach)

    async def _append(self, batch: Batch) -> None:
        try:
            await self._attempt_faultily(
                "append", lambda: self._store(batch), records=batch.records
            )
        except BaseException:
            if self._wrapped.last_seq > self._last_seq:
                # Stored all the same. Whoever asked does not know it, and that is the point.
                self._last_seq = self._wrapped.last_seq
                self._publish(batch)
            raise

    async def _store(self, batch: Batch) -> None:
        size = sum(map(len, batch.encoded))
        await self._wrapped._make_ready("write")
        if not self._wrapped._prepared:
            await self._wrapped._prepare_to_write()
        await self._wrapped._store_batch(batch, size)

    async def _read(self, request: Read) -> Page:
        return await self._pass_on("read", request)

    async def _summarize(self, request: Summarize) -> StoreSummary:
        return await self._pass_on("read", request)

    async def _scan(self, request: Scan) -> PersistenceScanReport:
        return await self._pass_on("scan", request)

    async def _recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        return await self._pass_on("recover", Recover(config))

    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        return await self._pass_on("compact", Compact(policy, dry_run))

    async def _flush(self) -> None:
        await self._pass_on("flush", Flush())

    async def _pass_on(self, name: OperationName, request: Request[ReplyT]) -> ReplyT:
        return await self._attempt_faultily(
            name, lambda: self._wrapped.carry_out(request), request=request
        )

    async def _attempt_faultily(
        self,
        name: OperationName,
        action: Callable[[], Awaitable[ReplyT]],
        *,
        records: Sequence[Record] = (),
        request: Request[Any] | None = None,
    ) -> ReplyT:
        self._counts[name] += 1
        operation = Operation(name, self._counts[name], records, request)
        for policy in tuple(self._policies):
            fault = policy.decide(operation)
            if fault is None:
                continue
            self._injected.append(Injection(operation, fault))
            match fault:
                case Delay(seconds):
                    await self._waits_by.sleep(seconds)
                case Hang():
                    await self._released.wait()
                case Fail(error, after):
                    if after:
                        await action()
                    raise error.with_traceback(None)
                case _:
                    assert_never(fault)
        return await action()
