"""Records in one file of lines of JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.fsync_policy import Fsync
from papyra.persistence.backends._files.location import Place
from papyra.persistence.backends._files.single_file_journal import SingleFileJournal
from papyra.persistence.backends._files.store import FileStore
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.urls import path_and_options
from papyra.persistence.reports import ReportProgress
from papyra.persistence.retention import RetentionPolicy

__all__ = ("JsonFilePersistence",)


class JsonFilePersistence(PersistenceBackend):
    """Keep facts in one file of lines of JSON, readable with ``less`` and ``jq``.

    With ``fsync="always"``, an acknowledged record is on the device: each commit is one write and
    one ``fdatasync``. ``"everysec"`` syncs once a second, in a thread of its own; ``"no"`` leaves
    it to the system, but for a `flush` and the closing. With these, what was acknowledged survives
    the process, but not always the machine. Of a commit that nobody was told about, a crash may
    leave a beginning. What is cut off before the next write is what such a commit can have left,
    and nothing else: what others have changed stays as it is, until a recovery is asked for. The
    lock file notes how far the file was acknowledged and on the device when it was closed, and no
    record before that is ever cut off. Only of a last commit that no clean close has followed can
    it not be told whether it was acknowledged: what lost blocks of it later, without a further
    commit behind it, counts as torn.

    An append, a read or a flush that takes longer than `call_timeout` seconds, as on a network disk
    that is gone, fails with a `StoreError`; what such an append may still write does not count.
    Until the disk answers, everything else fails at once.

    One backend at a time has the file open: another one, in this process or in any other, by this
    name or by another, gets `BackendInUse`, which names the process. A relative path is one in the
    directory that was current when the backend was made, ``~`` a home, and a link is followed. If
    the file is renamed, removed or replaced while it is open, or the directory, what would be
    acknowledged raises `StoreMoved`; if it is cut off or written to by others, `StoreChanged`; in a
    child that was forked, `StoreForked`. Without the file locks of POSIX there are readers only,
    and others raise `UnsupportedPlatform`. With `read_only` there is no such limit: it takes no
    lock, changes nothing, sees what was written whenever it reads, and raises `StoreReadOnly` when
    it should write. Reads go by an index of blocks, of 1.6 MB at most, that is built when the file
    is opened; they pass over damaged lines, which a scan reports. A reader with an
    `index_directory` keeps it there for the next one, which then reads only what is new. The scan
    that follows the opening reports what that has read, if that was everything and the file is
    still the same.
    """

    store: FileStore

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        fsync: Fsync = "always",
        call_timeout: float | None = 30.0,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        index_directory: Path | None = None,
        opening: ReportProgress | None = None,
        _disk: Disk | None = None,
    ) -> None:
        journal = SingleFileJournal(
            Place(path), read_only=read_only, index_directory=index_directory, disk=_disk
        )
        store = FileStore("json", journal, fsync=fsync, call_timeout=call_timeout, opening=opening)
        super().__init__(store, retention_policy=retention_policy, clock=clock)

    @property
    def path(self) -> Path:
        """The file, as it was named."""
        return self.store.journal.place.name

    @property
    def is_damaged(self) -> bool:
        """Whether damage has been seen by now, which reads pass over; only a scan sees all."""
        return self.store.is_damaged

    def reader(
        self, *, index_directory: Path | None = None, opening: ReportProgress | None = None
    ) -> JsonFilePersistence:
        """Return a backend that reads the same file, with `read_only`."""
        return JsonFilePersistence(
            self.store.journal.place,
            read_only=True,
            index_directory=index_directory,
            opening=opening,
            call_timeout=self.store.call_timeout,
            retention_policy=self.retention,
            clock=self.clock,
        )


def from_url(url: str, *, read_only: bool) -> JsonFilePersistence:
    """Return the backend on the file that a URL names."""
    path, options = path_and_options(url, {"fsync": str})
    return JsonFilePersistence(path, read_only=read_only, **cast("dict[str, Any]", options))


def for_test(directory: Callable[[], Path], options: Mapping[str, Any]) -> JsonFilePersistence:
    """Return a backend for a test. Nobody pulls the plug of a test."""
    return JsonFilePersistence(directory() / "events.ndjson", fsync="no", **options)
