"""The quarantine: copies of damaged files, as they were before a recovery."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from papyra.persistence.backends._files.disk import Disk, write_all
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.location import Place
from papyra.persistence.backends._files.repair import RepairResult
from papyra.persistence.reports import PersistenceRecoveryConfig

#: Bytes that are copied at once.
_CHUNK = 1024 * 1024


def quarantine_directory(config: PersistenceRecoveryConfig, parent: Path) -> Path:
    """Return the directory for damaged originals: the one that was asked for, or `parent`."""
    return parent if not config.quarantine_dir else Place(config.quarantine_dir).name


def quarantine_name(path: Path, place: Path) -> Path:
    """Return a name in a directory under which the damaged original of `path` can be kept."""
    names = (place / f"{path.name}.damaged-{number}" for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def quarantine(journal: JournalFile, target: Path) -> str:
    """Keep a copy of a file as it is, under another name, and return that.

    It can be put back by renaming it.
    """
    disk, source = journal.disk, journal.handle.fd
    journal.handle.check_name()
    disk.make_directory(target.parent)
    about, position = disk.stat(source), 0
    fd = disk.create(target, about)
    try:
        while data := disk.read(source, _CHUNK, position):
            write_all(disk, fd, data, position)
            position += len(data)
        disk.sync(fd)
    finally:
        disk.close(fd)
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))
    disk.sync_directory(target.parent)
    return str(target)


class QuarantineDirectory:
    """A directory for the originals of one recovery, which is made when it gets the first."""

    def __init__(self, disk: Disk, path: Path, result: RepairResult) -> None:
        self._disk = disk
        self._path = path
        self._result = result

    def copy(self, journal: JournalFile) -> None:
        """Keep a copy of a damaged file."""
        self._make()
        copied = quarantine(journal, self._path / journal.path.name)
        self._result.quarantined.append(copied)

    def move(self, path: Path) -> None:
        """Move a foreign file here."""
        self._make()
        shutil.move(path, self._path)
        self._result.quarantined.append(str(self._path / path.name))

    def _make(self) -> None:
        if not self._result.quarantined:
            self._disk.make_directory(self._path, anew=True)
