"""Records in lines of JSON, in files that follow one another."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.fsync_policy import Fsync
from papyra.persistence.backends._files.location import Place
from papyra.persistence.backends._files.rotation import SegmentLimits
from papyra.persistence.backends._files.segmented_journal import SegmentedJournal
from papyra.persistence.backends._files.store import FileStore
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.urls import path_and_options
from papyra.persistence.reports import ReportProgress
from papyra.persistence.retention import RetentionPolicy

__all__ = ("RotatingFilePersistence",)


class RotatingFilePersistence(PersistenceBackend):
    """Keep facts in files of lines of JSON, in a directory of their own.

    The directory is made if it is not there. Its files, the segments, have the `seq` of their first
    record for a name. A new one is begun with the record that would make the last one larger than
    `max_segment_bytes`, give it more than `max_segment_records`, or make it span more than
    `max_segment_age` seconds from its oldest record to its newest (by their own times, as Kafka's
    ``log.roll.ms`` does it). Those before it are sealed: on the device, whatever `fsync` says, and
    not changed but by a recovery or a compaction. A compaction removes segments in which everything
    is hidden, and rewrites those in which some is.

    Opening reads the last segment, and a read those in which something can be that it looks for.
    What is in a sealed segment is kept beside it in a file ``.index``, which may be deleted at any
    time. In memory are the indexes of at most nine segments, 1.6 MB each at most, and a kilobyte
    for each of the others.

    Everything else is as in `JsonFilePersistence`: `fsync`, `call_timeout`, one process that
    writes, `read_only` for the others, and what a scan finds, with two things more: what does not
    belong in the directory, but for hidden files, and segments that are missing. A link is none.
    """

    store: FileStore

    def __init__(
        self,
        directory: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        max_segment_bytes: int = 64 * 1024 * 1024,
        max_segment_records: int | None = None,
        max_segment_age: float | None = None,
        fsync: Fsync = "always",
        call_timeout: float | None = 30.0,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        index_directory: Path | None = None,
        opening: ReportProgress | None = None,
        _disk: Disk | None = None,
    ) -> None:
        if type(max_segment_bytes) is not int or max_segment_bytes < 1:
            raise InvalidPolicy(f"max_segment_bytes is at least 1, not {shown(max_segment_bytes)}")
        records, age = max_segment_records, max_segment_age
        if records is not None and (type(records) is not int or records < 1):
            raise InvalidPolicy(f"max_segment_records is at least 1, or None, not {shown(records)}")
        if age is not None and (type(age) not in (int, float) or not 0 < age < math.inf):
            raise InvalidPolicy(
                f"max_segment_age is seconds, more than 0, or None, not {shown(age)}"
            )
        journal = SegmentedJournal(
            Place(directory),
            SegmentLimits(max_segment_bytes, records, age),
            read_only=read_only,
            index_directory=index_directory,
            disk=_disk,
        )
        store = FileStore(
            "rotating", journal, fsync=fsync, call_timeout=call_timeout, opening=opening
        )
        super().__init__(store, retention_policy=retention_policy, clock=clock)

    @property
    def directory(self) -> Path:
        """The directory, as it was named."""
        return self.store.journal.place.name

    @property
    def is_damaged(self) -> bool:
        """Whether damage has been seen by now, which reads pass over; only a scan sees all."""
        return self.store.is_damaged

    def reader(
        self, *, index_directory: Path | None = None, opening: ReportProgress | None = None
    ) -> RotatingFilePersistence:
        """Return a backend that reads the same files, with `read_only`."""
        return RotatingFilePersistence(
            self.store.journal.place,
            read_only=True,
            index_directory=index_directory,
            opening=opening,
            call_timeout=self.store.call_timeout,
            retention_policy=self.retention,
            clock=self.clock,
        )


def from_url(url: str, *, read_only: bool) -> RotatingFilePersistence:
    """Return the backend on the directory that a URL names."""
    path, options = path_and_options(
        url,
        {
            "fsync": str,
            "max_segment_bytes": int,
            "max_segment_records": int,
            "max_segment_age": float,
        },
    )
    return RotatingFilePersistence(path, read_only=read_only, **cast("dict[str, Any]", options))


def is_path(name: str) -> bool:
    """Return whether a path is a directory, or may become one."""
    path = Path(os.path.expanduser(name))
    return path.is_dir() or name.endswith("/") or (not path.exists() and not path.suffix)


def for_test(directory: Callable[[], Path], options: Mapping[str, Any]) -> RotatingFilePersistence:
    """Return a backend for a test. Nobody pulls the plug of a test."""
    return RotatingFilePersistence(directory() / "journal", fsync="no", **options)
