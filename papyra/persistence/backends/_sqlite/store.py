"""The `Store` of the SQLite backend."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar, get_args

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import (
    InvalidPolicy,
    InvalidSetting,
    PersistenceError,
    StoreAccessDenied,
    StoreNotWritable,
    StoreReadOnly,
)
from papyra.persistence.backends._files.disk import whose
from papyra.persistence.backends._files.location import Place, printable
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends._io.worker_thread import WorkerThread, raise_if_cancelled
from papyra.persistence.backends._sqlite.blocking_store import DEFAULT_SYSTEM, NAME, BlockingStore
from papyra.persistence.backends._sqlite.connection import Synchronous
from papyra.persistence.backends._sqlite.database_file import DatabaseFile
from papyra.persistence.backends._sqlite.errors import store_error
from papyra.persistence.backends._sqlite.schema import require_sqlite
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

__all__ = ("DEFAULT_SYSTEM", "SQLiteStore")

#: Characters of the id of a system: it is part of a file's name.
_LONGEST = 50

ResultT = TypeVar("ResultT")


class SQLiteStore:
    """A `Store` in an SQLite database. Blocking calls are made in a thread of its own."""

    name = NAME
    capabilities = Capabilities(
        durable=True, recovery=True, compaction=True, readable_when_closed=False
    )

    def __init__(
        self,
        place: Place,
        *,
        system_id: str,
        synchronous: Synchronous,
        busy_timeout: float,
        call_timeout: float | None,
        read_only: bool,
    ) -> None:
        require_sqlite()
        _check(system_id, synchronous, busy_timeout, call_timeout)
        self.place = place
        self.system_id = system_id
        self.synchronous: Synchronous = synchronous
        self.busy_timeout = busy_timeout
        self.call_timeout = call_timeout
        self.read_only = read_only
        #: for the thread of the store, once it is open
        self.blocking = BlockingStore(
            DatabaseFile(place),
            system_id,
            synchronous=synchronous,
            busy_timeout=float(busy_timeout),
            read_only=read_only,
        )

    @property
    def location(self) -> str:
        """The path of the database."""
        return printable(self.place.name)

    async def open(self) -> None:
        """Open the database, and take the lock that a writer has."""
        thread = WorkerThread(f"papyra {self.place.name.name}")
        try:
            await thread.run(self.blocking.open)
        except BaseException as error:
            thread.stop()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise self._named(error) from error
            raise
        self._thread = thread

    async def last_seq(self) -> int:
        """Return the greatest position that was given."""
        return await self._run(self.blocking.last_seq, timeout=self.call_timeout)

    async def claim(self) -> int:
        """Begin an epoch, which no writer of an earlier one survives; nor what it has in doubt."""
        self._require_writable()
        return await self._run(self.blocking.claim, timeout=self.call_timeout)

    async def append(self, batch: Batch) -> None:
        """Store a batch in one transaction."""
        token, timeout = CommitToken(), self.call_timeout
        await self._run(self.blocking.append, batch, token, timeout=timeout, token=token)

    async def flush(self) -> None:
        """Have the device write down everything that was committed."""
        await self._run(self.blocking.sync, timeout=self.call_timeout)

    async def close(self) -> None:
        """Close the database, and let another writer have it once nothing is written any more."""
        try:
            await self._thread.run(self.blocking.close)
        except TimeoutError:
            self._thread.stop(self.blocking.close)
            raise
        except sqlite3.Error as error:
            self._thread.stop()
            raise self._named(error) from error
        self._thread.stop()

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
        """Return the id of the store; for a reader of a copy, the empty string."""
        return await self._run(self.blocking.store_id, timeout=self.call_timeout)

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Save a snapshot in one transaction."""
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
        """List snapshots by the addresses of their actors."""
        timeout = self.call_timeout
        return await self._run(self.blocking.list_snapshots, after, limit, timeout=timeout)

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return await self.load_snapshot(stored.owner, stored.revision)

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove a snapshot, if it is there."""
        await self.remove_snapshot(stored.owner, stored.revision)

    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        """Move a snapshot to a file in the directory for damaged originals."""
        self._require_writable()
        config = PersistenceRecoveryConfig("quarantine", directory)
        return await self._run(self.blocking.quarantine_listed, stored, config)

    async def summarize(self) -> StoreSummary:
        """Sum the totals of all blocks."""
        return await self._run(self.blocking.summarize, timeout=self.call_timeout)

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every page and every record, and report the records that are done."""
        return await self._run(self.blocking.scan, report_progress)

    async def scan_histories(self) -> Sequence[PersistenceAnomaly]:
        """Check the revisions of every actor."""
        return await self._run(self.blocking.scan_histories)

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Remove the records that can't be read, and leave damaged pages behind."""
        self._require_writable()
        return await self._run(self.blocking.recover, config)

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Delete the records that `policy` hides at Unix time `now`."""
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
        except (sqlite3.Error, OSError) as error:
            raise self._named(error) from error

    def _named(self, error: sqlite3.Error | OSError) -> Exception:
        """Return what an error means for this database."""
        if isinstance(error, PersistenceError):
            return error
        path = str(self.place.path)
        meant: Exception = error
        if isinstance(error, sqlite3.Error):
            meant = store_error(error, path)
        elif isinstance(error, PermissionError):
            meant = StoreAccessDenied(f"{error!r}")
        if isinstance(meant, (StoreAccessDenied, StoreNotWritable)):
            return type(meant)(f"{meant}: {whose(path)}")
        return meant

    def _require_writable(self) -> None:
        if self.read_only:
            raise StoreReadOnly(f"{self.place.name} was opened to be read only")


def _check(
    system_id: str, synchronous: str, busy_timeout: float, call_timeout: float | None
) -> None:
    if type(system_id) is not str or not 0 < len(system_id) <= _LONGEST:
        raise InvalidSetting(
            f"system_id is a string of up to {_LONGEST} characters, not {shown(system_id)}"
        )
    if not system_id.isprintable():
        raise InvalidSetting(f"system_id is printable, which {shown(system_id)} is not")
    if synchronous not in get_args(Synchronous):
        known = ", ".join(get_args(Synchronous))
        raise InvalidPolicy(f"synchronous is one of {known}, not {shown(synchronous)}")
    for name, seconds in (("busy_timeout", busy_timeout), ("call_timeout", call_timeout)):
        if name == "call_timeout" and seconds is None:
            continue
        if not is_seconds(seconds, above=True, finite=True):
            raise InvalidPolicy(f"{name} is seconds, more than 0, not {shown(seconds)}")
