"""The contract of a journal: the files of one store. It blocks: use a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from papyra.persistence.backends._files.close_mark import CloseMark
from papyra.persistence.backends._files.compaction import Hidden
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.location import Place
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends._files.repair import RepairResult
from papyra.persistence.backends._files.scan import Advance, ScanResult
from papyra.persistence.backends._files.trimming import Bases
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import Kind
from papyra.persistence.reports import PersistenceRecoveryConfig


class Journal(Protocol):
    """Lines in one file after the other. Everything raises `OSError`."""

    disk: Disk
    read_only: bool

    place: Place
    #: of the last clean close; opening forgets it if that is not so any more
    close_mark: CloseMark | None

    @property
    def path(self) -> Path:
        """The file, or the directory, from the root on."""

    @property
    def last_seq(self) -> int:
        """The greatest `seq` that was given."""

    def lock(self) -> FileLock:
        """Return the lock that whoever writes must have."""

    def beside(self, suffix: str) -> Path:
        """Return the path of what is kept beside the records, by a suffix that begins with a dot.

        It is where the lock is: beside a file, wherever links lead to, or in a directory.
        """

    def prepare(self) -> None:
        """Make what the lock needs."""

    def open(self, advance: Advance | None = None) -> None:
        """Open it, making it if it is not there."""

    def refresh(self) -> None:
        """Take in what another process has written since; for a reader."""

    def raise_if_rewritten(self) -> None:
        """Raise `FileNotFoundError` if files were replaced or removed since; for a reader."""

    def new_close_mark(self) -> CloseMark | None:
        """Return the mark that a clean close may leave; `None` if not everything is synced."""

    def close(self) -> None:
        """Close everything that is open."""

    def append(self, batch: Batch, take_token: Callable[[], None], *, sync: bool) -> None:
        """Write lines for these records, and sync them; all, or, raising, none of them.

        `take_token` is called before they count. It may raise `OSError`: then they don't.
        """

    def check_name(self) -> None:
        """Raise `StoreMoved` if the name leads to something else by now, for a writer."""

    def sync(self) -> None:
        """Return when everything is on the device."""

    def sync_in_background(self) -> None:
        """Sync what was not yet, from a thread of its own, while others use the journal."""

    def files(self, *, newest: bool) -> Iterator[JournalFile]:
        """Yield the files, the oldest first, or the newest."""

    def was_read(self, file: JournalFile) -> None:
        """Note that a file was read out of this order: of many, a few stay open."""

    @property
    def segments(self) -> int | None:
        """The number of segments; `None` for a journal that has none."""

    def is_damaged(self) -> bool:
        """Return whether damage has been seen by now."""

    def size(self) -> int:
        """Return the bytes that a scan reads."""

    def scan(self, advance: Advance | None = None) -> ScanResult:
        """Check every line; change nothing."""

    def recover(self, config: PersistenceRecoveryConfig) -> RepairResult:
        """Keep what can be read; see `PersistenceRecoveryConfig`."""

    def drop_hidden(self, hidden: Mapping[Kind, Hidden]) -> int:
        """Free what is hidden; return how many records are hidden, and kept for histories.

        Raises `StoreError` if there is damage.
        """

    def trim(self, bases: Bases) -> None:
        """Have histories begin with bases. Raises `StoreError` if there is damage.

        A base is on the device before anything is freed that it stands for.
        """


class AcknowledgedSeq:
    """The last acknowledged position, when several batches are one request."""

    def __init__(self) -> None:
        self._last_seq: int | None = None

    def before(self, batch: Batch, last_seq: int) -> int:
        """Return the last position that was acknowledged before `batch` is written."""
        acknowledged = last_seq if self._last_seq is None else self._last_seq
        self._last_seq = acknowledged if batch.more else None
        return acknowledged
