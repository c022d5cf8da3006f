"""The store of the file backends: a journal, and the thread that its blocking calls are made in."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from typing import TypeVar

from papyra._seconds import is_seconds, shown
from papyra.exceptions import (
    InvalidPolicy,
    PersistenceError,
    StoreAccessDenied,
    StoreError,
    StoreReadOnly,
    UnsupportedPlatform,
)
from papyra.persistence.backends._files.compaction import count_hidden
from papyra.persistence.backends._files.disk import CAN_WRITE, whose
from papyra.persistence.backends._files.fsync_policy import Fsync, FsyncPolicy
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.location import printable
from papyra.persistence.backends._files.read_retention import (
    count_stored,
    hidden_of,
    spans_of,
    visible_records,
)
from papyra.persistence.backends._files.scan import ScanResult
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends._io.worker_thread import (
    WorkerThread,
    raise_if_cancelled,
)
from papyra.persistence.backends.store import Batch, Capabilities, collect_page
from papyra.persistence.backends.summary import spread
from papyra.persistence.messages import Page, Read
from papyra.persistence.records import KINDS
from papyra.persistence.reports import (
    CompactionReport,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    ScanProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy

__all__ = ("FileStore",)

#: How often a reader looks for files that are removed under its hands.
_LOOKS = 5
#: Seconds from one of these looks to the next.
_LOOK_AGAIN_AFTER = 0.01

_FOREVER = float("inf")

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
        self._lock = journal.lock()
        self._opening = opening

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
            await thread.run(self._open_journal)
        except BaseException as error:
            thread.stop()
            if isinstance(error, OSError):
                raise self._with_path(error, "open failed: ") from error
            raise
        self._thread = thread

    async def last_seq(self) -> int:
        """Return the greatest position that was given, for a reader as of now."""
        return await self._run(self._look, lambda: self.journal.last_seq, timeout=self.call_timeout)

    async def close(self) -> None:
        """Close the files, and release the lock as soon as nothing can be written any more."""
        self._fsync.stop()
        try:
            await self._thread.run(self._close_journal)
        except TimeoutError:
            # The lock is held until nothing can be written any more.
            self._thread.stop(self._close_journal)
            raise
        self._thread.stop()

    async def claim(self) -> int:
        """Return the greatest position that was given: the journal knows what was written."""
        self._require_writable()
        return await self.last_seq()

    async def append(self, batch: Batch) -> None:
        """Write a batch in one piece, and sync it as configured."""
        token, timeout = CommitToken(), self.call_timeout
        await self._run(self._write_batch, batch, token, timeout=timeout, token=token)

    async def flush(self) -> None:
        """Sync everything that was written."""
        if not self.journal.read_only:
            await self._thread.run(self.journal.sync, timeout=self.call_timeout)

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of what `policy` shows at Unix time `now`."""
        return await self._run(self._read_page, request, policy, now, timeout=self.call_timeout)

    async def summarize(self, intervals: int) -> StoreSummary:
        """Sum the totals of the files."""
        look = functools.partial(self._look, functools.partial(self._summarize, intervals))
        return await self._run(look, timeout=self.call_timeout)

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every line, and report the bytes that are done."""
        return self._report(await self._run(self._scan_journal, report_progress))

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Rewrite damaged files without the lines that can't be read."""
        self._require_writable()
        return await self._run(self._recover_journal, config)

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Drop or rewrite files without the records that `policy` hides at Unix time `now`."""
        if dry_run:
            return await self._run(self._look, functools.partial(self._count, policy, now))
        self._require_writable()
        return await self._run(self._drop_hidden, policy, now)

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

    # In the thread

    def _open_journal(self) -> None:
        if self.journal.read_only:
            self._open_to_read()
            return
        self.journal.prepare()
        self._lock = self.journal.lock()
        self._lock.acquire()
        self.journal.close_mark = self._lock.close_mark
        try:
            self.journal.open()
            self._lock.write_close_mark(self.journal.close_mark)
        except BaseException:
            with contextlib.suppress(OSError):
                self.journal.close()
            self._lock.release()
            raise
        self._fsync.start(f"papyra sync {self.journal.path.name}", self.journal.sync_in_background)

    def _open_to_read(self) -> None:
        self._lock = self.journal.lock()
        self._lock.read_close_mark()
        self.journal.close_mark = self._lock.close_mark
        path = self.journal.path
        if self._opening is None or not path.is_file():
            _retry_while_rewritten(self.journal.open)
            return
        advance = _Progress(self._opening, path.stat().st_size)
        self.journal.open(advance)
        advance.finish()

    def _close_journal(self) -> None:
        try:
            self._write_close_mark()
            self.journal.close()
        finally:
            self._lock.release()

    def _write_close_mark(self) -> None:
        """Write the mark of a clean close, if everything is synced."""
        mark = self.journal.new_close_mark()
        if mark is not None:
            self._lock.write_close_mark(mark)

    def _write_batch(self, batch: Batch, token: CommitToken) -> None:
        self.journal.append(batch, token.take_or_raise, sync=self._fsync.syncs(batch))

    def _look(self, look: Callable[[], ResultT]) -> ResultT:
        """Return the result of `look`; a reader reads on before, what others have written."""
        if not self.journal.read_only:
            return look()

        def look_afresh() -> ResultT:
            self.journal.refresh()
            result = look()
            self.journal.raise_if_rewritten()
            return result

        return _retry_while_rewritten(look_afresh)

    def _read_page(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        return self._look(
            lambda: collect_page(request, visible_records(self.journal, request, policy, now))
        )

    def _summarize(self, intervals: int) -> StoreSummary:
        journal = self.journal
        totals = [file.totals() for file in journal.files(newest=False)]
        oldest = min((each.oldest for each in totals), default=_FOREVER)
        newest = max((each.newest for each in totals), default=-_FOREVER)
        is_empty = oldest > newest
        spans = spans_of(self.journal, sum(each.records for each in totals)) if intervals else ()
        return StoreSummary(
            backend=self.name,
            location=self.location,
            last_seq=journal.last_seq,
            records={kind: sum(each.counts[kind] for each in totals) for kind in KINDS},
            record_bytes={kind: sum(each.sizes[kind] for each in totals) for kind in KINDS},
            stored_bytes=journal.size(),
            oldest=None if is_empty else oldest,
            newest=None if is_empty else newest,
            intervals=(0,) * intervals if is_empty else spread(spans, oldest, newest, intervals),
            segments=journal.segments,
            writer=self._lock.holder(),
            damaged=journal.is_damaged(),
        )

    def _scan_journal(self, report: ReportProgress) -> ScanResult:
        self.journal.check_name()
        return self._look(lambda: self._scan_with_progress(report))

    def _scan_with_progress(self, tell: ReportProgress) -> ScanResult:
        advance = _Progress(tell, self.journal.size())
        found = self.journal.scan(advance)
        advance.finish()
        return found

    def _recover_journal(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        self.journal.check_name()
        self._lock.write_close_mark(None)
        result = self.journal.recover(config)
        self._write_close_mark()
        found = self.journal.scan()
        return PersistenceRecoveryReport(
            self.name,
            supported=True,
            scan=self._report(found),
            records_kept=found.records,
            records_removed=result.removed,
            quarantined=tuple(result.quarantined),
        )

    def _drop_hidden(self, policy: RetentionPolicy, now: float) -> CompactionReport:
        self.journal.check_name()
        before = count_stored(self.journal)
        self._lock.write_close_mark(None)
        self.journal.drop_hidden(
            {kind: hidden_of(self.journal, kind, policy, now) for kind in KINDS}
        )
        self._write_close_mark()
        return self._compacted(before, count_stored(self.journal))

    def _count(self, policy: RetentionPolicy, now: float) -> CompactionReport:
        """Report what `_drop_hidden` would do."""
        hidden = {kind: hidden_of(self.journal, kind, policy, now) for kind in KINDS}
        records, size = count_stored(self.journal)
        counts = [count_hidden(file, hidden) for file in self.journal.files(newest=False)]
        left = records - sum(count for count, _ in counts), size - sum(size for _, size in counts)
        return self._compacted((records, size), left)

    def _compacted(self, before: tuple[int, int], after: tuple[int, int]) -> CompactionReport:
        return CompactionReport(self.name, True, before[0], after[0], before[1], after[1])

    def _report(self, found: ScanResult) -> PersistenceScanReport:
        return PersistenceScanReport(self.name, found.records, found.bytes, tuple(found.anomalies))


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
