"""The contract of a backend: what its author writes, and what may be relied on."""

from __future__ import annotations

import abc
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, ParamSpec, Protocol, Self, TypeVar, assert_never, cast

import anyio
import msgspec

from papyra._text import shown
from papyra.exceptions import (
    BackendBusy,
    BackendClosed,
    BackendInUse,
    InvalidPolicy,
    InvalidRecord,
    InvalidRequest,
    PersistenceError,
    PositionsExhausted,
    StoreError,
)
from papyra.persistence import codec
from papyra.persistence.backends.commit import Committed, commit
from papyra.persistence.backends.summary import summarize_pages
from papyra.persistence.backends.verbs import PersistenceVerbs
from papyra.persistence.messages import (
    AnyRequest,
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
    Restore,
    Scan,
    Summarize,
)
from papyra.persistence.metrics import PersistenceMetricsMixin
from papyra.persistence.records import Record
from papyra.persistence.reports import (
    CompactionReport,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy

__all__ = (
    "Batch",
    "Capabilities",
    "Host",
    "PersistenceBackend",
)

logger = logging.getLogger("papyra")

_RECORDS = (tuple, list)
#: Characters of what a store raises that are passed on.
_ERROR_LENGTH = 4000

#: The greatest position, which every store can write down, 14 digits long.
MAX_SEQ = 10**14 - 1

ReplyT = TypeVar("ReplyT")
ResultT = TypeVar("ResultT")
Parameters = ParamSpec("Parameters")


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do. A verb that it can't do succeeds and does nothing."""

    #: records outlive the process
    durable: bool
    #: a scan can find something, and `recover` can mend it
    recovery: bool
    #: `compact` frees what retention hides
    compaction: bool
    #: what was recorded can be read after `aclose`
    readable_when_closed: bool


class Batch(msgspec.Struct, frozen=True):
    """What `_append` stores: records numbered from `first_seq`, and each of them encoded.

    `first_seq` is mostly the one after the last that was given. It is a greater one where records
    are restored from a store that has gaps.
    """

    first_seq: int
    records: Sequence[Record]
    encoded: Sequence[bytes]
    #: whether the records had these positions in another store, and so may get them again if this
    #: fails
    restored: bool = False
    #: whether more of the same request follows at once: what makes it durable may wait for that
    more: bool = False


class Host(Protocol):
    """Who carries out a hosted backend's requests, one at a time."""

    @property
    def owner(self) -> str:
        """The host's address."""
        ...

    def ask(self, request: Request[ReplyT]) -> Awaitable[ReplyT]:
        """Send `request` through the host's mailbox and return the reply."""
        ...


class PersistenceBackend(PersistenceVerbs, PersistenceMetricsMixin, abc.ABC):
    """An append-only store of facts.

    The verbs (`append`, `read`, `scan`, ...) work the same whether a persistence actor hosts the
    backend or not. Hosted, they go through that actor's mailbox. On its own, the backend carries
    them out on the spot, for one task at a time: it raises `BackendBusy` when two tasks meet. It
    opens itself on first use.

    Its author writes the underscored methods at the end. They are never called concurrently, never
    before `_open`, and never after `_close`, but for `_read` and `_scan` where `capabilities` says
    `readable_when_closed`. What they raise that is no `PersistenceError` reaches the caller as the
    cause of a `StoreError`. Records arrive checked and encoded, and everything is counted here.
    """

    capabilities: Capabilities
    #: how many append requests a host takes at once, at most; what they hold is one commit
    batch_limit: ClassVar[int] = 10_000

    def __init__(
        self,
        *,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if retention_policy is not None and not isinstance(retention_policy, RetentionPolicy):
            raise InvalidPolicy(f"retention_policy is a RetentionPolicy, not {retention_policy!r}")
        self._retention = retention_policy or RetentionPolicy()
        #: Unix time in seconds, to judge the age of records by
        self._clock = clock
        self._last_seq = 0
        #: whether a write may follow without a call of `_prepare`
        self._prepared = True
        self._state: Literal["new", "open", "closed"] = "new"
        self._host: Host | None = None
        self._subscribers: list[Callable[[Batch], None]] = []
        self._guard = anyio.ResourceGuard("using")

    @property
    def retention(self) -> RetentionPolicy:
        """The limits that reads apply; all of them `None` if no policy was given."""
        return self._retention

    @property
    def location(self) -> str:
        """Where the records are: a path, or a URL without its secrets; empty if that is nowhere."""
        return ""

    @property
    def last_seq(self) -> int:
        """The `seq` of the last record that was stored; 0 before the store was opened."""
        return self._last_seq

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

    async def perform(self, request: Request[ReplyT]) -> ReplyT:
        """Have `request` carried out, by the host if there is one, and return the reply."""
        if self._host is not None:
            return await self._host.ask(request)
        with self._alone():
            return await self.carry_out(request)

    async def carry_out(self, request: Request[ReplyT]) -> ReplyT:
        """Carry out `request` on the spot. For the host; everybody else calls `perform`."""
        # By its type, as users' objects may raise when they are asked what they are.
        if not issubclass(type(request), AnyRequest):
            raise InvalidRequest(f"{shown(request)} is no request to a persistence backend")
        return cast("ReplyT", await self._carry_out(cast("AnyRequest", request)))

    def commit(self, requests: Sequence[Append | AppendMany]) -> Awaitable[Committed]:
        """Store what `requests` hold, in order; return the replies, and which of them are errors.

        Adjacent requests share a write. For the host; everybody else calls `append`.
        """
        return commit(requests, self._write, self.metrics)

    def subscribe(self, subscriber: Callable[[Batch], None]) -> Callable[[], None]:
        """Call `subscriber` with each batch that was stored, and return what ends that.

        It is called before those who asked get their replies. It must not wait, and the batch is
        not its own to change. What it raises is logged.
        """
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

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
        if self._state == "closed":
            self._state = "new"

    async def detach(self) -> None:
        """Close the backend and let go of its host."""
        try:
            await self._shut()
        finally:
            self._host = None

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
        with self._alone():
            await self._shut()

    async def __aenter__(self) -> Self:
        if self._state == "closed":
            self._state = "new"
        await self.flush()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with self._guard:
                yield
        except anyio.BusyResourceError:
            raise BackendBusy(
                f"another task is using this {type(self).__name__}: "
                "host it in a PersistenceActor to share it"
            ) from None

    async def _carry_out(self, request: AnyRequest) -> object:
        metrics = self.metrics
        match request:
            case Append() | AppendMany():
                replies, errors = await self.commit([request])
                for error in errors:
                    raise error
                return replies[0]
            case Restore(records):
                return await self._restore(records)
            case Summarize():
                return await self._attempt("read", self._summarize, request)
            case Read():
                page = await self._attempt("read", self._read, request)
                metrics.reads += 1
                return page
            case GetMetrics():
                return metrics.snapshot()
            case ResetMetrics():
                snapshot = metrics.snapshot()
                metrics.reset()
                return snapshot
            case Scan():
                report = await self._attempt("scan", self._scan, request)
                metrics.scans += 1
                metrics.anomalies_detected += len(report.anomalies)
                return report
            case Recover(config):
                config = config or PersistenceRecoveryConfig()
                recovery = await self._attempt("recovery", self._recover, config)
                metrics.recoveries += recovery.supported
                return recovery
            case Compact(policy, dry_run):
                compaction = await self._attempt(
                    "compaction", self._compact, policy or self.retention, dry_run=dry_run
                )
                metrics.compactions += compaction.supported and not dry_run
                return compaction
            case Flush():
                await self._attempt("write", self._flush)
                return Flushed(self._last_seq)
            case _:
                assert_never(request)

    async def _restore(self, records: Sequence[Record]) -> Appended:
        try:
            return await self._write_runs(records)
        except PersistenceError:
            self.metrics.write_errors += 1
            raise

    async def _write_runs(self, records: Sequence[Record]) -> Appended:
        """Store records at their own positions, run by run of those without a gap."""
        if type(records) not in _RECORDS:
            raise InvalidRecord(f"Restore takes a tuple of records, not {shown(records)}")
        encoded = codec.encode(records, restored=True)
        await self._make_ready("write")
        if records and not self._prepared:
            await self._prepare_to_write()
        seqs = [record.seq for record in records]
        last = self._last_seq
        for seq in seqs:
            if type(seq) is not int or not last < seq <= MAX_SEQ:
                raise InvalidRequest(
                    f"record {shown(seq)} can't be restored after record {last}: "
                    f"positions only rise, up to {MAX_SEQ}"
                )
            last = seq
        first = seqs[0] or 0 if seqs else last + 1
        start = 0
        for stop in range(1, len(seqs) + 1):
            more = stop < len(seqs)
            if more and seqs[stop] == cast("int", seqs[stop - 1]) + 1:
                continue
            part, first_seq = encoded[start:stop], cast("int", seqs[start])
            batch = Batch(first_seq, records[start:stop], part, restored=True, more=more)
            await self._store_batch(batch, sum(map(len, part)))
            start = stop
        return Appended(first, last)

    async def _write(self, records: Sequence[Record], encoded: Sequence[bytes], size: int) -> int:
        if self._state != "open":
            await self._make_ready("write")
        if records and not self._prepared:
            await self._prepare_to_write()
        first_seq = self._last_seq + 1
        if records:
            if self._last_seq + len(records) > MAX_SEQ:
                raise self._exhausted(len(records))
            await self._store_batch(Batch(first_seq, records, encoded), size)
        return first_seq

    def _exhausted(self, count: int) -> PositionsExhausted:
        return PositionsExhausted(
            f"there are no positions for {count} records after {self._last_seq}: the greatest is "
            f"{MAX_SEQ}. Copy the store into a new one, with new positions, to go on"
        )

    async def _store_batch(self, batch: Batch, size: int) -> None:
        count = len(batch.records)
        last_seq = batch.first_seq + count - 1
        try:
            await self._append(batch)
        except PersistenceError:
            raise
        except Exception as error:
            raise _store_error("write", error) from error
        self._last_seq = last_seq
        metrics = self.metrics
        metrics.commits += 1
        metrics.records_written += count
        metrics.bytes_written += size
        if self._subscribers:
            self._publish(batch)

    async def _prepare_to_write(self) -> None:
        with _store_errors("write"):
            self._last_seq = await self._prepare()
        self._prepared = True

    def _publish(self, batch: Batch) -> None:
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(batch)
            except Exception:
                # The records are stored: whoever appended them has nothing to do with this.
                logger.exception("a subscriber of this %s raised", type(self).__name__)

    async def _attempt(
        self,
        operation: Literal["write", "read", "scan", "recovery", "compaction"],
        method: Callable[Parameters, Awaitable[ResultT]],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> ResultT:
        try:
            await self._make_ready(operation)
            with _store_errors(operation):
                return await method(*args, **kwargs)
        except PersistenceError:
            counter = f"{operation}_errors"
            setattr(self.metrics, counter, getattr(self.metrics, counter) + 1)
            raise

    async def _make_ready(self, operation: str) -> None:
        if self._state == "new":
            with _store_errors("open"):
                self._last_seq = await self._open()
            self._state = "open"
        elif self._state == "closed" and (
            operation == "write" or not self.capabilities.readable_when_closed
        ):
            raise BackendClosed(
                f"this {type(self).__name__} is closed: "
                "host it again, or enter it with 'async with', to go on"
            )

    async def _shut(self) -> None:
        was_open = self._state == "open"
        self._state = "closed"
        if was_open:
            try:
                with _store_errors("flush"):
                    await self._flush()
            finally:
                with _store_errors("close"):
                    await self._close()

    # What authors write

    @abc.abstractmethod
    async def _open(self) -> int:
        """Make the store ready, and return the greatest seq it ever gave, or 0."""

    @abc.abstractmethod
    async def _close(self) -> None:
        """Let go of what `_open` took. The backend may be opened again."""

    async def _prepare(self) -> int:
        """Make the store ready to be written, and return the greatest seq it ever gave.

        Called before a write while `_prepared` is False. For a backend that becomes the writer of
        its store with the first write, or has to find out what became of the last one.
        """
        return self._last_seq

    @abc.abstractmethod
    async def _append(self, batch: Batch) -> None:
        """Store the whole batch or, raising, none of it; the same if it is cancelled."""

    @abc.abstractmethod
    async def _flush(self) -> None:
        """Make what was appended as durable as the store can."""

    @abc.abstractmethod
    async def _read(self, request: Read) -> Page:
        """Return a page, bounded as `collect_page` does it."""

    async def _summarize(self, request: Summarize) -> StoreSummary:
        """Say what there is. Without this, everything is read for it."""
        name = type(self).__name__
        return await summarize_pages(name, self._read, self._last_seq, request.intervals)

    @abc.abstractmethod
    async def _scan(self, request: Scan) -> PersistenceScanReport:
        """Check every record; change nothing. Report the progress where it takes its time."""

    @abc.abstractmethod
    async def _recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Mend what a scan finds. Where there is nothing to mend, say ``supported=False``."""

    @abc.abstractmethod
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        """Free what `policy` hides, or report what that would leave.

        Where that can't be, say ``supported=False``.
        """


@contextlib.contextmanager
def _store_errors(operation: str) -> Iterator[None]:
    """Turn what a store raises into a `StoreError` that says during which operation."""
    try:
        yield
    except PersistenceError:
        raise
    except Exception as error:
        raise _store_error(operation, error) from error


def _store_error(operation: str, error: Exception) -> StoreError:
    path = getattr(error, "filename", None)
    text = shown(error, length=_ERROR_LENGTH)
    place = "" if path is None or str(path) in text else f": {path}"
    return StoreError(f"{operation} failed: {text}{place}")
