"""The `Store` whose operations block: each is one call in a thread of the store's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from papyra._cancellation import raise_if_cancelled
from papyra.exceptions import PersistenceError, StoreReadOnly
from papyra.persistence.backends._io.blocking_operations import BlockingOperations
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends._io.worker_thread import WorkerThread
from papyra.persistence.backends.store import Batch, Capabilities, StoredSnapshot
from papyra.persistence.messages import HistoryPage, Page, Read, ReadHistory
from papyra.persistence.reports import (
    CompactionReport,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy

__all__ = ("ThreadedStore",)

ResultT = TypeVar("ResultT")


class ThreadedStore(ABC):
    """A `Store` that makes blocking calls in a thread of its own, one for each operation.

    `thread_name` is for whoever looks at the threads of a process, `shown_name` for messages.
    """

    capabilities = Capabilities(
        durable=True, recovery=True, compaction=True, readable_when_closed=False
    )
    #: what the operations raise that is to be named by `_named`
    _driver_errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(
        self,
        blocking: BlockingOperations,
        *,
        thread_name: str,
        shown_name: str,
        read_only: bool,
        call_timeout: float | None,
    ) -> None:
        #: for the thread of the store, once it is open
        self.blocking = blocking
        self.read_only = read_only
        #: seconds that an operation may take that is no scan, recovery or compaction
        self.call_timeout = call_timeout
        self._thread_name = thread_name
        self._shown_name = shown_name

    @abstractmethod
    def _named(self, error: Exception, operation: str = "") -> Exception:
        """Return what an error of the driver means for this store."""

    async def open(self) -> None:
        """Start the thread, and open the store in it."""
        thread = WorkerThread(self._thread_name)
        try:
            await thread.run(self.blocking.open)
        except BaseException as error:
            thread.stop()
            if isinstance(error, self._driver_errors):
                raise self._named(error, "open failed: ") from error
            raise
        self._thread = thread

    async def close(self) -> None:
        """Close the store, so that nobody else may write it before nothing is written any more."""
        try:
            await self._thread.run(self.blocking.close)
        except TimeoutError:
            self._thread.stop(self.blocking.close)
            raise
        except self._driver_errors as error:
            self._thread.stop()
            raise self._named(error) from error
        self._thread.stop()

    async def last_seq(self) -> int:
        """Return the greatest position that was given, for a reader as of now."""
        return await self._run(self.blocking.last_seq, timeout=self.call_timeout)

    async def claim(self) -> int:
        """Become the writer, and settle what is in doubt."""
        self._require_writable()
        return await self._run(self.blocking.claim, timeout=self.call_timeout)

    async def append(self, batch: Batch) -> None:
        """Store a batch; what takes too long, and has not begun to commit, is not stored."""
        token, timeout = CommitToken(), self.call_timeout
        await self._run(self.blocking.append, batch, token, timeout=timeout, token=token)

    async def flush(self) -> None:
        """Make everything that was appended as durable as the store can."""
        await self._run(self.blocking.sync, timeout=self.call_timeout)

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of what `policy` shows at Unix time `now`."""
        return await self._run(self.blocking.read, request, policy, now, timeout=self.call_timeout)

    async def read_history(self, request: ReadHistory) -> HistoryPage:
        """Return a page of one actor's history."""
        return await self._run(self.blocking.read_history, request, timeout=self.call_timeout)

    async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Return the last revision of each of `actors` that has a history."""
        return await self._run(self.blocking.last_revisions, actors, timeout=self.call_timeout)

    async def store_id(self) -> str:
        """Return the id of the store; for a reader, the empty string where there is none."""
        return await self._run(self.blocking.store_id, timeout=self.call_timeout)

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Save a snapshot in one step."""
        self._require_writable()
        timeout = self.call_timeout
        await self._run(self.blocking.save_snapshot, actor, revision, data, timeout=timeout)

    async def snapshot_revisions(self, actor: str) -> list[int]:
        """Return the revisions of an actor's snapshots."""
        return await self._run(self.blocking.snapshot_revisions, actor, timeout=self.call_timeout)

    async def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None`."""
        timeout = self.call_timeout
        return await self._run(self.blocking.load_snapshot, actor, revision, timeout=timeout)

    async def remove_snapshot(self, actor: str, revision: int) -> None:
        """Remove a snapshot, if it is there."""
        self._require_writable()
        timeout = self.call_timeout
        await self._run(self.blocking.remove_snapshot, actor, revision, timeout=timeout)

    def snapshot_owner(self, actor: str) -> str:
        """Return the address itself."""
        return actor

    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        """List snapshots by their owners."""
        timeout = self.call_timeout
        return await self._run(self.blocking.list_snapshots, after, limit, timeout=timeout)

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return await self.load_snapshot(stored.owner, stored.revision)

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove a snapshot, if it is there."""
        await self.remove_snapshot(stored.owner, stored.revision)

    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        """Move a snapshot to where damaged originals are kept."""
        self._require_writable()
        config = PersistenceRecoveryConfig("quarantine", directory)
        return await self._run(self.blocking.quarantine_listed, stored, config)

    async def summarize(self) -> StoreSummary:
        """Sum up what is noted of the records, reading few of them."""
        return await self._run(self.blocking.summarize, timeout=self.call_timeout)

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every record."""
        return await self._run(self.blocking.scan, report_progress)

    async def scan_histories(self) -> Sequence[PersistenceAnomaly]:
        """Check the revisions of every actor."""
        return await self._run(self.blocking.scan_histories)

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Remove what can't be read."""
        self._require_writable()
        return await self._run(self.blocking.recover, config)

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Remove the records that `policy` hides at Unix time `now`."""
        if dry_run:
            return await self._run(self.blocking.count_hidden, policy, now)
        self._require_writable()
        return await self._run(self.blocking.drop_hidden, policy, now)

    async def _run(
        self,
        function: Callable[..., ResultT],
        *args: object,
        timeout: float | None = None,
        token: CommitToken | None = None,
    ) -> ResultT:
        await raise_if_cancelled()
        try:
            return await self._thread.run(function, *args, timeout=timeout, token=token)
        except PersistenceError:
            raise
        except self._driver_errors as error:
            raise self._named(error) from error

    def _require_writable(self) -> None:
        if self.read_only:
            raise StoreReadOnly(f"{self._shown_name} was opened to be read only")
