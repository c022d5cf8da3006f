"""The `Store` of the file backends."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import (
    InvalidPolicy,
    PersistenceError,
    StoreAccessDenied,
    StoreError,
    StoreReadOnly,
    UnsupportedPlatform,
)
from papyra.persistence.backends._files.blocking_store import BlockingStore
from papyra.persistence.backends._files.disk import CAN_WRITE, whose
from papyra.persistence.backends._files.fsync_policy import Fsync, FsyncPolicy
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.location import printable
from papyra.persistence.backends._files.snapshot_directory import owner_of
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends._io.worker_thread import (
    WorkerThread,
    raise_if_cancelled,
)
from papyra.persistence.backends.store import Batch, Capabilities, NewBase, StoredSnapshot
from papyra.persistence.messages import EncodedHistory, HistoryPage, Page, Read, ReadHistory
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

__all__ = ("FileStore",)

ResultT = TypeVar("ResultT")


class FileStore:
    """A `Store` on a journal. Blocking calls are made in a thread of its own."""

    capabilities = Capabilities(
        durable=True, recovery=True, compaction=True, readable_when_closed=False
    )

    def __init__(
        self,
        name: str,
        journal: Journal,
        *,
        fsync: Fsync,
        call_timeout: float | None,
        opening: ReportProgress | None,
    ) -> None:
        if not journal.read_only and not CAN_WRITE:
            raise UnsupportedPlatform(
                f"a store of kind {name!r} needs the file locks of POSIX (fcntl) to write, as "
                "Linux and macOS have them: here it only reads, with read_only=True"
            )
        self._fsync = FsyncPolicy(fsync)
        if call_timeout is not None and not is_seconds(call_timeout, above=True, finite=True):
            raise InvalidPolicy(
                f"call_timeout is seconds, more than 0, or None, not {shown(call_timeout)}"
            )
        self.name = name
        self.journal = journal
        self.call_timeout = call_timeout
        #: for the thread of the store, once it is open
        self.blocking = BlockingStore(name, journal, self._fsync, opening)

    @property
    def location(self) -> str:
        """The path of the file, or of the directory."""
        return printable(self.journal.place.name)

    @property
    def is_damaged(self) -> bool:
        """Whether damage has been seen by now."""
        return self.journal.is_damaged()

    async def open(self) -> None:
        """Open the files, and take the lock that a writer has."""
        thread = WorkerThread(f"papyra {self.journal.path.name}")
        try:
            await thread.run(self.blocking.open)
        except BaseException as error:
            thread.stop()
            if isinstance(error, OSError):
                raise self._with_path(error, "open failed: ") from error
            raise
        self._thread = thread

    async def last_seq(self) -> int:
        """Return the greatest position that was given, for a reader as of now."""
        return await self._run(self.blocking.last_seq, timeout=self.call_timeout)

    async def close(self) -> None:
        """Close the files, and release the lock as soon as nothing can be written any more."""
        self._fsync.stop()
        try:
            await self._thread.run(self.blocking.close)
        except TimeoutError:
            # The lock is held until nothing can be written any more.
            self._thread.stop(self.blocking.close)
            raise
        self._thread.stop()

    async def claim(self) -> int:
        """Return the greatest position that was given: the journal knows what was written."""
        self._require_writable()
        return await self.last_seq()

    async def append(self, batch: Batch) -> None:
        """Write a batch in one piece, and sync it as configured."""
        token, timeout = CommitToken(), self.call_timeout
        await self._run(self.blocking.append, batch, token, timeout=timeout, token=token)

    async def flush(self) -> None:
        """Sync everything that was written."""
        if not self.journal.read_only:
            await self._thread.run(self.journal.sync, timeout=self.call_timeout)

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of what `policy` shows at Unix time `now`."""
        return await self._run(self.blocking.read, request, policy, now, timeout=self.call_timeout)

    async def read_history(self, request: ReadHistory) -> HistoryPage:
        """Return a page of one actor's history."""
        return await self._run(self.blocking.read_history, request, timeout=self.call_timeout)

    async def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        """Return a page of one actor's history, as it is stored."""
        timeout = self.call_timeout
        return await self._run(self.blocking.read_encoded_history, request, timeout=timeout)

    async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Return the last revision of each of `actors` that has a history."""
        return await self._run(self.blocking.last_revisions, actors, timeout=self.call_timeout)

    async def store_id(self) -> str:
        """Return the id of the store; for a reader, the empty string if there is none yet."""
        return await self._run(self.blocking.store_id, timeout=self.call_timeout)

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Save a snapshot in a file beside the records, in one step."""
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
        """Remove the file of a snapshot, if it is there."""
        self._require_writable()
        timeout = self.call_timeout
        await self._run(self.blocking.remove_snapshot, actor, revision, timeout=timeout)

    def snapshot_owner(self, actor: str) -> str:
        """Return the name of the directory that an actor's snapshots are in."""
        return owner_of(actor)

    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        """List snapshots by the names of their files."""
        timeout = self.call_timeout
        return await self._run(self.blocking.list_snapshots, after, limit, timeout=timeout)

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return await self._run(self.blocking.load_listed, stored, timeout=self.call_timeout)

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove the file of a snapshot, if it is there."""
        self._require_writable()
        await self._run(self.blocking.remove_listed, stored, timeout=self.call_timeout)

    async def post(self, request_id: str, data: bytes) -> None:
        """Leave a request in a file of its own, in a directory beside the records."""
        requests = self.blocking.requests
        await self._run(requests.post, request_id, data, timeout=self.call_timeout)

    async def posted(self) -> list[str]:
        """Return the ids of requests that wait."""
        return await self._run(self.blocking.requests.posted, timeout=self.call_timeout)

    async def take(self, request_id: str) -> bytes | None:
        """Take a request, by giving its file another name."""
        self._require_writable()
        requests = self.blocking.requests
        return await self._run(requests.take, request_id, timeout=self.call_timeout)

    async def answer(self, request_id: str, data: bytes) -> None:
        """Leave an answer in a file of its own."""
        requests = self.blocking.requests
        await self._run(requests.answer, request_id, data, timeout=self.call_timeout)

    async def answered(self, request_id: str) -> bytes | None:
        """Return the answer to a request, and remove its file."""
        requests = self.blocking.requests
        return await self._run(requests.answered, request_id, timeout=self.call_timeout)

    async def withdraw(self, request_id: str) -> bool:
        """Take a request back, by giving its file another name."""
        requests = self.blocking.requests
        return await self._run(requests.withdraw, request_id, timeout=self.call_timeout)

    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        """Move the file of a snapshot to the directory for damaged originals."""
        self._require_writable()
        config = PersistenceRecoveryConfig("quarantine", directory)
        return await self._run(self.blocking.quarantine_listed, stored, config)

    async def is_attended(self) -> bool:
        """Return whether somebody has the lock, as far as that can be told."""
        return await self._run(self.blocking.holder, timeout=self.call_timeout) is not None

    async def summarize(self) -> StoreSummary:
        """Sum the totals of the files."""
        return await self._run(self.blocking.summarize, timeout=self.call_timeout)

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every line, and report the bytes that are done."""
        return await self._run(self.blocking.scan, report_progress)

    async def scan_histories(self) -> Sequence[PersistenceAnomaly]:
        """Check the revisions of every actor, reading where there are some."""
        return await self._run(self.blocking.scan_histories)

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Rewrite damaged files without the lines that can't be read."""
        self._require_writable()
        return await self._run(self.blocking.recover, config)

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Drop or rewrite files without the records that `policy` hides at Unix time `now`."""
        return await self.compact_histories((), policy, now, dry_run=dry_run)

    async def compact_histories(
        self, bases: Sequence[NewBase], policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Rewrite files with bases in them, the newest first, and then as `compact` does."""
        if dry_run:
            return await self._run(self.blocking.count_hidden, policy, now, bases)
        self._require_writable()
        return await self._run(self.blocking.drop_hidden, policy, now, bases)

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
        except OSError as error:
            raise self._with_path(error) from error

    def _with_path(self, error: OSError, operation: str = "") -> Exception:
        """Return an error that names the file, and who may use it."""
        if isinstance(error, PersistenceError):
            return error
        place = str(self.journal.path)
        error.filename = file = os.fsdecode(error.filename or place)
        if isinstance(error, PermissionError):
            return StoreAccessDenied(f"{operation}{place}: {error!r}: {whose(file)}")
        if place in file:
            return error
        return StoreError(f"{operation}{place}: {error!r}: {file}")

    def _require_writable(self) -> None:
        if self.journal.read_only:
            raise StoreReadOnly(f"{self.journal.place.name} was opened to be read only")
