"""The `Store` of the file backends."""

from __future__ import annotations

import os

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import (
    InvalidPolicy,
    PersistenceError,
    StoreAccessDenied,
    StoreError,
    UnsupportedPlatform,
)
from papyra.persistence.backends._files.blocking_store import BlockingStore
from papyra.persistence.backends._files.disk import CAN_WRITE, whose
from papyra.persistence.backends._files.fsync_policy import Fsync, FsyncPolicy
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.location import printable
from papyra.persistence.backends._files.snapshot_directory import owner_of
from papyra.persistence.backends._io.threaded_parts import (
    ThreadedEncodedHistories,
    ThreadedInbox,
    ThreadedPositions,
    ThreadedRebasing,
)
from papyra.persistence.backends.store import StoredSnapshot
from papyra.persistence.reports import ReportProgress

__all__ = ("FileStore",)


class FileStore(ThreadedEncodedHistories, ThreadedRebasing, ThreadedPositions, ThreadedInbox):
    """A `Store` on a journal."""

    blocking: BlockingStore

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
        super().__init__(
            BlockingStore(name, journal, self._fsync, opening),
            thread_name=f"papyra {journal.path.name}",
            shown_name=str(journal.place.name),
            read_only=journal.read_only,
            call_timeout=call_timeout,
        )

    @property
    def location(self) -> str:
        """The path of the file, or of the directory."""
        return printable(self.journal.place.name)

    @property
    def is_damaged(self) -> bool:
        """Whether damage has been seen by now."""
        return self.journal.is_damaged()

    async def close(self) -> None:
        """Close the files, and release the lock as soon as nothing can be written any more."""
        self._fsync.stop()
        await super().close()

    async def flush(self) -> None:
        """Sync everything that was written, also for whoever is cancelled."""
        if not self.read_only:
            await self._thread.run(self.blocking.sync, timeout=self.call_timeout)

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return await self._run(self.blocking.load_listed, stored, timeout=self.call_timeout)

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove the file of a snapshot, if it is there."""
        self._require_writable()
        await self._run(self.blocking.remove_listed, stored, timeout=self.call_timeout)

    def snapshot_owner(self, actor: str) -> str:
        """Return the name of the directory that an actor's snapshots are in."""
        return owner_of(actor)

    def _named(self, error: Exception, operation: str = "") -> Exception:
        """Return an error that names the file, and who may use it."""
        if isinstance(error, PersistenceError) or not isinstance(error, OSError):
            return error
        place = str(self.journal.path)
        error.filename = file = os.fsdecode(error.filename or place)
        if isinstance(error, PermissionError):
            return StoreAccessDenied(f"{operation}{place}: {error!r}: {whose(file)}")
        if place in file:
            return error
        return StoreError(f"{operation}{place}: {error!r}: {file}")
