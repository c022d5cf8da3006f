"""Records in one file of lines of JSON."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar, get_args

from anyio import CancelScope, CapacityLimiter, to_thread

from papyra.exceptions import InvalidPolicy
from papyra.persistence import codec
from papyra.persistence.backends._disk import FileLock
from papyra.persistence.backends._journal import JournalFile, ScanResult
from papyra.persistence.backends._line import Line
from papyra.persistence.backends.base import Batch, Capabilities, PersistenceBackend
from papyra.persistence.backends.page import collect_page
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.messages import Page, Read
from papyra.persistence.records import KINDS, Kind, Record, kind_of
from papyra.persistence.reports import (
    CompactionReport,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
)

__all__ = ("JsonFilePersistence",)

ResultT = TypeVar("ResultT")

Fsync = Literal["always", "everysec", "no"]

#: Seconds between two syncs with ``fsync="everysec"``.
SYNC_INTERVAL = 1.0

_FOREVER = float("inf")


class JsonFilePersistence(PersistenceBackend):
    """Keep facts in one file of lines of JSON, readable with ``less`` and ``jq``.

    With ``fsync="always"``, an acknowledged record is on the device: each commit is one write and
    one ``fdatasync``. ``"everysec"`` syncs once a second, in a thread of its own; ``"no"`` leaves
    it to the system, but for a `flush` and the closing. With these, what was acknowledged survives
    the process, but not always the machine.

    One backend at a time has the file open: another one, in this process or in any other, gets
    `BackendInUse`, which names the process. Blocking calls run in a worker thread. Reads go by an
    index of blocks, of 1.3 MB at most, that is built when the file is opened; they pass over
    damaged lines, which a scan reports.
    """

    capabilities = Capabilities(
        durable=True, recovery=True, compaction=True, readable_when_closed=False
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: Fsync = "always",
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(retention_policy=retention_policy, clock=clock)
        if fsync not in get_args(Fsync):
            raise InvalidPolicy(f"fsync is one of {', '.join(get_args(Fsync))}, not {fsync!r}")
        self._journal = JournalFile(Path(path))
        self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        self._fsync: Fsync = fsync
        self._closing: threading.Event | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self._journal.path

    async def _open(self) -> int:
        # A limiter of its own: an application that keeps all other threads busy does not stop it.
        self._limiter = CapacityLimiter(1)
        await self._in_thread(self._open_journal)
        return self._journal.last_seq

    async def _close(self) -> None:
        with CancelScope(shield=True):
            if self._closing is not None:
                self._closing.set()
            try:
                await self._in_thread(self._journal.close)
            finally:
                self._lock.release()

    async def _append(self, batch: Batch) -> None:
        await self._in_thread(self._write_batch, batch)

    def _write_batch(self, batch: Batch) -> None:
        sync = self._fsync == "always"
        self._journal.append(batch.first_seq, batch.records, batch.encoded, sync=sync)

    async def _flush(self) -> None:
        await self._in_thread(self._journal.sync)

    async def _read(self, request: Read) -> Page:
        return await self._in_thread(self._read_page, request)

    async def _scan(self) -> PersistenceScanReport:
        return _report(await self._in_thread(self._journal.scan))

    async def _recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        return await self._in_thread(self._repair, config)

    async def _compact(self) -> CompactionReport:
        return await self._in_thread(self._drop_hidden)

    async def _in_thread(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        return await to_thread.run_sync(function, *args, limiter=self._limiter)

    # In the thread

    def _open_journal(self) -> None:
        self._lock.acquire()
        try:
            self._journal.open()
        except BaseException:
            self._journal.close()
            self._lock.release()
            raise
        if self._fsync == "everysec":
            self._closing = threading.Event()
            syncing = threading.Thread(
                target=self._sync_every_second,
                args=(self._closing,),
                name=f"papyra sync {self.path.name}",
                daemon=True,
            )
            syncing.start()

    def _sync_every_second(self, closing: threading.Event) -> None:
        while not closing.wait(SYNC_INTERVAL):
            self._journal.sync_in_background()

    def _read_page(self, request: Read) -> Page:
        after, since = self._hidden(request.kind)
        if request.since is not None:
            since = max(since, request.since)
        until = _FOREVER if request.until is None else request.until
        after = max(after, request.after)
        return collect_page(request, self._candidates(request, after, since, until))

    def _candidates(
        self, request: Read, after: int, since: float, until: float
    ) -> Iterator[tuple[Record, int]]:
        """Yield the records of a kind within these limits, in the order of the read."""
        kind, before = request.kind, request.before
        index = self._journal.index
        for block in index.blocks(kind, after, before, since, until, request.newest):
            lines = list(self._lines_of(kind, block))
            for line in reversed(lines) if request.newest else lines:
                if line.seq > after and (before is None or line.seq < before):
                    record = codec.decode(line.record, line.seq)
                    if since <= record.timestamp <= until:
                        yield record, len(line.data)

    def _lines_of(self, kind: Kind, block: int) -> Iterator[Line]:
        tag = b'"kind":"%b"' % kind.encode()
        start, end = self._journal.index.extent(block, self._journal.end)
        for line in self._journal.lines(start, end):
            if line.data.startswith(tag, line.body):
                yield line

    def _hidden(self, kind: Kind) -> tuple[int, float]:
        """Return up to which `seq`, and to which time, retention hides the records of a kind."""
        policy, index = self.retention, self._journal.index
        hidden = 0
        if policy.max_records is not None:
            surplus = index.counts[kind] - policy.max_records
            if surplus > 0:
                block, left = index.block_of_record(kind, surplus)
                hidden = index.first_seq(block) - 1
                for line in self._lines_of(kind, block):
                    if left == 0:
                        break
                    hidden, left = line.seq, left - 1
        if policy.max_total_bytes is not None:
            surplus = index.sizes[kind] - policy.max_total_bytes
            if surplus > 0:
                block, left = index.block_of_byte(kind, surplus)
                hidden = max(hidden, index.first_seq(block) - 1)
                for line in self._lines_of(kind, block):
                    if left <= 0:
                        break
                    hidden, left = max(hidden, line.seq), left - len(line.record)
        oldest = policy.oldest_time(self._clock())
        return hidden, -_FOREVER if oldest is None else oldest

    def _repair(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        journal = self._journal
        damage = journal.scan()
        removed, moved = 0, tuple[str, ...]()
        if damage.anomalies:
            if config.mode == "quarantine":
                moved = (journal.put_aside(config.quarantine_dir),)
            removed = journal.repair()
        after = journal.scan()
        return PersistenceRecoveryReport(
            "json",
            supported=True,
            scan=_report(after),
            records_kept=after.records,
            records_removed=removed,
            quarantined=moved,
        )

    def _drop_hidden(self) -> CompactionReport:
        journal, index = self._journal, self._journal.index
        records, size = sum(index.counts.values()), sum(index.sizes.values())
        limits = {kind: self._hidden(kind) for kind in KINDS}

        def visible(line: Line, record: Record) -> bool:
            hidden, since = limits[kind_of(record)]
            return line.seq > hidden and record.timestamp >= since

        journal.keep(visible)
        index = journal.index
        return CompactionReport(
            "json",
            True,
            records_before=records,
            records_after=sum(index.counts.values()),
            bytes_before=size,
            bytes_after=sum(index.sizes.values()),
        )


def _report(found: ScanResult) -> PersistenceScanReport:
    return PersistenceScanReport("json", found.records, found.bytes, tuple(found.anomalies))
