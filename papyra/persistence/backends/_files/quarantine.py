"""The quarantine: copies of damaged files, as they were before a recovery."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.location import Place
from papyra.persistence.reports import PersistenceRecoveryConfig

__all__ = ("quarantine", "quarantine_directory", "quarantine_name")

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
    disk, source = journal.disk, journal.fd
    journal.check_name()
    disk.make_directory(target.parent)
    about, position = disk.stat(source), 0
    fd = disk.create(target, about)
    try:
        while data := disk.read(source, _CHUNK, position):
            written = 0
            while written < len(data):
                written += disk.write(fd, data[written:], position + written)
            position += len(data)
        disk.sync(fd)
    finally:
        disk.close(fd)
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))
    disk.sync_directory(target.parent)
    return str(target)
