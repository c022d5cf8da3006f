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
    it to the system, but for a `flush` and the closing: what was acknowledged then survives the
    process, but not always the machine. Of a commit that nobody was told about, a crash may leave a
    beginning, which is cut off before the next write; anything else stays as it is until a
    recovery. What a clean close has noted as acknowledged, in the lock file, is never cut off; of a
    last commit after that, what lost blocks counts as torn.

    An append, a read or a flush that takes longer than `call_timeout` seconds fails with a
    `StoreError`; until the disk answers, everything else fails at once.

    One backend at a time has the file open, by whatever name: another one gets `BackendInUse`. A
    relative path is one in the directory that was current when the backend was made, ``~`` a home,
    and a link is followed. What would be acknowledged into a file that is not there any more raises
    `StoreMoved`; into one that others have written to, `StoreChanged`; in a forked child,
    `StoreForked`. Without the file locks of POSIX there are readers only. With `read_only` it takes
    no lock, changes nothing, sees what was written whenever it reads, and raises `StoreReadOnly`
    when it should write. Opening builds an index of at most 1.6 MB, which a reader with an
    `index_directory` keeps there for the next one. Reads pass over damaged lines, which a scan
    reports.
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
