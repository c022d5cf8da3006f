"""The file of a database: where it is, and whether it is still the one that was opened."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from pathlib import Path

from papyra.exceptions import StoreError, StoreMoved, StoreWrongType
from papyra.persistence.backends._files.disk import identity
from papyra.persistence.backends._files.location import Place

__all__ = ("DatabaseFile", "is_database")

_MAGIC = b"SQLite format 3\0"

#: The files that this process has open as databases, by their identities.
_open: Counter[tuple[int, int]] = Counter()


class DatabaseFile:
    """The file of a database, which is the same as long as it is open, whatever it is called."""

    def __init__(self, place: Place) -> None:
        self.place = place
        #: as it was when it was opened
        self._path: Path | None = None
        self._identity: tuple[int, int] | None = None
        #: of the log, once it was written to
        self._log_identity: tuple[int, int] | None = None
        #: the names of the file and of the log as text, which is looked at with each commit: paths
        #: take more than twice as long
        self._names = ("", "")

    @property
    def path(self) -> Path:
        """The path without links: the log and the lock are beside the file itself."""
        return self._path or Path(os.path.realpath(self.place.path))

    def check(self, *, must_exist: bool) -> None:
        """Raise for what is there and can be no database, or for what is not there."""
        try:
            about = self.path.stat()
        except FileNotFoundError:
            if must_exist:
                raise
            return
        if not stat.S_ISREG(about.st_mode):
            what = "a directory" if stat.S_ISDIR(about.st_mode) else "no regular file"
            raise StoreWrongType(f"{self.path} is {what}, and no SQLite database")
        if about.st_nlink > 1:
            raise StoreError(
                f"{self.path} has {about.st_nlink} hard links: SQLite would keep a log for each, "
                "and damage the database"
            )

    def opened(self) -> None:
        """Note which file it is."""
        self._path = self.path
        self._names = str(self.place.path), str(self.log)
        self._identity = identity(self._path.stat())
        _open[self._identity] += 1

    def closed(self) -> None:
        """Note that it is not open any more."""
        if self._identity is not None:
            _open[self._identity] -= 1
            self._path = self._identity = self._log_identity = None

    def note_log(self) -> None:
        """Note which file the log is."""
        self._log_identity = identity(self.log.stat())

    def check_name(self) -> None:
        """Raise `StoreMoved` if the name of the file, or of its log, leads to another, or to none.

        The log stays where it is: whoever opens the file by another name would not see that.
        """
        name, log = self._names
        with contextlib.suppress(FileNotFoundError):
            if identity(os.stat(name)) == self._identity and (
                self._log_identity is None or self._log_identity == identity(os.stat(log))
            ):
                return
        raise StoreMoved(
            f"{self.path} was renamed, removed or replaced while it was open: nothing more is "
            "stored until it has its name again, and its log, or the backend is opened anew"
        )

    @property
    def inode(self) -> int:
        """The number of the file, which a copy of it does not share."""
        return self.path.stat().st_ino & (2**63 - 1)

    @property
    def log(self) -> Path:
        """The write-ahead log, which is beside the file."""
        path = self.path
        return path.with_name(path.name + "-wal")

    def size(self) -> int:
        """Return the bytes of the database and its log."""
        size = self.path.stat().st_size
        return size + (self.log.stat().st_size if self.log.exists() else 0)


def is_database(path: Path) -> bool:
    """Return whether there is a database at a path."""
    try:
        if not path.is_file():
            return False
        # Closing a file gives up every lock that this process has on it, those of SQLite included.
        if _open[identity(path.stat())] > 0:
            return True
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False
