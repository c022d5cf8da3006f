"""A journal in a single file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from papyra.persistence.backends._files.close_mark import CloseMark
from papyra.persistence.backends._files.compaction import Hidden, drop_hidden
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.index_cache import IndexCache
from papyra.persistence.backends._files.journal import AcknowledgedSeq
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.location import Place
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends._files.quarantine import (
    quarantine,
    quarantine_directory,
    quarantine_name,
)
from papyra.persistence.backends._files.repair import RepairResult, repair
from papyra.persistence.backends._files.scan import Advance, ScanResult
from papyra.persistence.backends._files.trimming import Bases, trim
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import Kind
from papyra.persistence.reports import PersistenceRecoveryConfig


class SingleFileJournal:
    """A journal that is one file."""

    segments: int | None = None

    def __init__(
        self,
        path: Path | Place,
        *,
        read_only: bool = False,
        index_directory: Path | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.place = Place(path)
        self.path = path = self.place.path
        self.disk = disk or Disk()
        self.read_only = read_only
        self.close_mark: CloseMark | None = None
        self._acknowledged = AcknowledgedSeq()
        self._index_cache = None
        if read_only and index_directory is not None:
            self._index_cache = IndexCache(self.disk, index_directory, path)
        self._file = self._new_file()

    def _new_file(self) -> JournalFile:
        file = JournalFile(
            self.path,
            self.disk,
            read_only=self.read_only,
            index_cache=self._index_cache,
            name=self.place.name,
        )
        file.close_mark = self.close_mark
        return file

    @property
    def last_seq(self) -> int:
        """The greatest `seq` that was given."""
        return self._file.last_seq

    def lock(self) -> FileLock:
        """Return the lock: a file beside this one, wherever links lead to."""
        return FileLock(self.beside(".lock"), self.path)

    def beside(self, suffix: str) -> Path:
        """Return the path of what is kept beside the file, wherever links lead to."""
        real = Path(os.path.realpath(self.path))
        return real.with_name(real.name + suffix)

    def prepare(self) -> None:
        """Make nothing: the lock is beside the file."""

    def open(self, advance: Advance | None = None) -> None:
        """Open the file, making it if there is none, and read it through."""
        self._file = self._new_file()
        self._file.open(advance)
        self.close_mark = self._file.close_mark

    def refresh(self) -> None:
        """Take in what another process has written since."""
        self._file.refresh()

    def raise_if_rewritten(self) -> None:
        """Do nothing: a file that was replaced can be read to its end."""

    def new_close_mark(self) -> CloseMark | None:
        """Return the mark that a clean close may leave; `None` if not everything is synced."""
        return self._file.new_close_mark()

    def close(self) -> None:
        """Close the file."""
        self._file.appender.truncate_failed_write()
        self._file.close()

    def append(self, batch: Batch, take_token: Callable[[], None], *, sync: bool) -> None:
        """Write lines with one write, and sync them with one sync."""
        file = self._file
        acknowledged = self._acknowledged.before(batch, file.last_seq)
        file.appender.write(
            batch.first_seq, batch.records, batch.encoded, acknowledged=acknowledged, sync=sync
        )
        try:
            take_token()
            file.commit()
        except BaseException:
            file.roll_back()
            raise

    def check_name(self) -> None:
        """Raise `StoreMoved` if the name leads to another file by now, or to none."""
        self._file.handle.check_name()

    def sync(self) -> None:
        """Return when everything is on the device."""
        self._file.appender.sync()

    def sync_in_background(self) -> None:
        """Sync what was not yet."""
        self._file.appender.sync_in_background()

    def files(self, *, newest: bool) -> Iterator[JournalFile]:
        """Yield the file."""
        del newest  # of one, it is both
        yield self._file

    def was_read(self, file: JournalFile) -> None:
        """Leave the file open."""

    def is_damaged(self) -> bool:
        """Return whether damage has been seen by now."""
        return self._file.damaged

    def size(self) -> int:
        """Return the bytes of the file."""
        return self._file.handle.stat().st_size

    def scan(self, advance: Advance | None = None) -> ScanResult:
        """Check every line; change nothing.

        The first scan after the opening is the one that the opening made, if the file has not
        changed since.
        """
        found = self._file.found_opening()
        if found is None:
            found = ScanResult()
            self._file.scan(found, advance)
        return found

    def recover(self, config: PersistenceRecoveryConfig) -> RepairResult:
        """Rewrite the file if anything is wrong with it."""
        result = RepairResult()
        if self.scan().anomalies:
            if config.mode == "quarantine":
                place = quarantine_directory(config, self._file.handle.parent)
                original = quarantine(self._file, quarantine_name(self.path, place))
                result.quarantined.append(original)
            result.removed = repair(self._file)
        return result

    def drop_hidden(self, hidden: Mapping[Kind, Hidden]) -> int:
        """Rewrite the file without what is hidden."""
        return drop_hidden(self._file, hidden)

    def trim(self, bases: Bases) -> None:
        """Rewrite the file with bases in it."""
        trim(self._file, bases)
