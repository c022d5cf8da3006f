"""The handle of a file: opened, locked, and the same file whatever its name leads to by now."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from papyra.exceptions import StoreError, StoreMoved
from papyra.persistence.backends._files.disk import Disk, identity, temporary_of
from papyra.persistence.backends._files.lock import lock_file


class FileHandle:
    """A file that is known by its identity, and not by its name. A writer has it locked.

    It is opened when its descriptor is needed first. Errors of the system are `OSError`.
    """

    def __init__(
        self, path: Path, disk: Disk, *, name: Path, read_only: bool, follows_links: bool = True
    ) -> None:
        #: its name, from the root on
        self.path = path
        self._place = str(path)
        #: its name in reports
        self.name = name
        #: the file itself, where its name is a link
        self.real = path
        self.disk = disk
        self.read_only = read_only
        self._follows_links = follows_links
        #: whether another file follows this one: then it is opened without a lock, and never made
        self.is_sealed = False
        #: whether this object has made the file, which was not there before
        self.is_made = False
        self._fd: int | None = None
        #: the descriptor that the file is locked through, for a writer
        self._lock_fd: int | None = None
        #: held while the descriptor is replaced, as another thread may be about to duplicate it
        self._fd_lock = threading.Lock()
        self._identity = (0, 0)

    @property
    def fd(self) -> int:
        """The descriptor of the file, which is opened for that if need be."""
        if self._fd is None:
            self.open()
        assert self._fd is not None
        return self._fd

    @property
    def is_open(self) -> bool:
        """Whether there is a descriptor."""
        return self._fd is not None

    @property
    def inode(self) -> int:
        """The number of the file, once it was opened."""
        return self._identity[1]

    @property
    def parent(self) -> Path:
        """The directory that the file is in."""
        return self.real.parent

    @property
    def temporary(self) -> Path:
        """The name of the file that is to replace this one, until it does."""
        return temporary_of(self.real)

    def stat(self) -> os.stat_result:
        """Return the status of the open file."""
        return self.disk.stat(self.fd)

    # Opening and closing

    def open(self) -> None:
        """Open the file; a writer locks it, and makes it if there is none.

        Raises `BackendInUse` if somebody else has it locked.
        """
        self.real = self._resolve()
        if self.read_only:
            self._fd = self.disk.open(self.real, os.O_RDONLY)
            return
        # An unfinished rewriting may have left it.
        self.disk.remove(self.temporary)
        if self.is_sealed:
            self._adopt(self.disk.open(self.real, os.O_RDWR), lock=False)
            return
        while self._fd is None:
            self._open_to_write()

    def _open_to_write(self) -> None:
        """Open the file and lock it, unless it was made or replaced just then."""
        self.real = self._resolve()
        try:
            fd = self.disk.open(self.real, os.O_RDWR)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                self.create()
                self._require_name()
            return
        self._adopt(fd)
        try:
            self.stat_by_name()
        except StoreMoved:
            self.close()

    def _require_name(self) -> None:
        """Remove a file again that has not the name which led to it."""
        try:
            self.stat_by_name()
        except StoreMoved:  # as behind a name in /proc of a file that was removed
            self.close()
            self.disk.remove(self.real)
            raise

    def create(self, like: os.stat_result | None = None) -> None:
        """Make the file, with the owner and the mode of the one that it is `like`, and open it.

        Raises `FileExistsError` if something has its name.
        """
        fd = self.disk.create(self.real, like)
        self.is_made = True
        try:
            self._adopt(fd)
            self.disk.sync_directory(self.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
                self.disk.remove(self.real)
            raise

    def _resolve(self) -> Path:
        return Path(os.path.realpath(self.path)) if self._follows_links else self.path

    def _adopt(self, fd: int, *, lock: bool = True) -> None:
        """Use a descriptor from now on. Raises `BackendInUse` if somebody else has the file."""
        try:
            if lock:
                lock_file(self.disk, fd, self.name)
            self._identity = identity(self.disk.stat(fd))
        except BaseException:
            self.disk.close(fd)
            raise
        self._fd, self._lock_fd = fd, fd if lock else None

    def reopen(self) -> int:
        """Return a new descriptor of the same file, which replaces the one so far; locks stay.

        Raises `StoreMoved` if the file is not there any more.
        """
        try:
            fd = self.disk.open(self.real, os.O_RDWR)
        except FileNotFoundError:
            raise self._moved("renamed or removed") from None
        if identity(self.disk.stat(fd)) != self._identity:
            self.disk.close(fd)
            raise self._moved("replaced by another")
        with self._fd_lock:
            old, self._fd = self._fd, fd
        if old is not None and old != self._lock_fd:
            with contextlib.suppress(OSError):
                self.disk.close(old)
        return fd

    def duplicate(self) -> int | None:
        """Return a duplicate of the descriptor, for another thread; `None` if it is closed."""
        with self._fd_lock:
            return None if self._fd is None else os.dup(self._fd)

    def close(self) -> None:
        """Close the file, and release its lock."""
        with self._fd_lock:
            fds = {fd for fd in (self._fd, self._lock_fd) if fd is not None}
            lock_fd, self._fd, self._lock_fd = self._lock_fd, None, None
        with contextlib.ExitStack() as stack:
            for fd in fds:
                stack.callback(self.disk.close, fd)
            if lock_fd is not None:
                # It is held as long as there are copies of the descriptor.
                stack.callback(self.disk.unlock, lock_fd)

    # Whether it is still the file that was opened

    def check_name(self) -> None:
        """Raise `StoreMoved` if the name leads to another file by now, or to none; for a writer."""
        if self._fd is not None and not self.read_only:
            self.stat_by_name()

    def stat_by_name(self) -> os.stat_result:
        """Return the status of the file under its name. Raises `StoreMoved` as `check_name`."""
        if self._fd is None:
            self.open()
        try:
            # As text, which takes a quarter less than a path: this happens twice a commit.
            about = self.disk.stat(self._place)
        except (FileNotFoundError, NotADirectoryError):
            raise self._moved("renamed or removed") from None
        if about.st_ino != self._identity[1] or about.st_dev != self._identity[0]:
            raise self._moved("replaced by another")
        return about

    def _moved(self, how: str) -> StoreMoved:
        return StoreMoved(
            f"{self.name} was {how} while it was open, and nothing more is stored in it: "
            "put it back, or open the store anew"
        )

    # Replacing it

    def create_replacement(self) -> int:
        """Make the file that is to replace this one, with its owner and mode."""
        self.check_name()
        self._require_one_link()
        self.disk.remove(self.temporary)
        return self.disk.create(self.temporary, self.stat(), copy=True)

    def replace_with(self, fd: int) -> None:
        """Replace the file by the one that is open as `fd`, under the name `temporary`.

        The new name is not on the device yet.
        """
        is_locked = self._lock_fd is not None
        self.check_name()
        self._require_one_link()
        new = identity(self.disk.stat(fd))
        if is_locked:
            lock_file(self.disk, fd, self.name)
        self.disk.replace(self.temporary, self.real)
        with contextlib.suppress(OSError):
            self.close()
        self._fd, self._lock_fd, self._identity = fd, fd if is_locked else None, new

    def _require_one_link(self) -> None:
        """Raise `StoreError` if the file has other names, which would keep what is replaced."""
        if not self._follows_links:
            return  # a segment: it is the directory that the store goes by
        links = self.stat().st_nlink
        if links > 1:
            raise StoreError(
                f"{self.name} has {links} names (hard links), and to write it anew would leave "
                "the others with what is old: remove them, or copy them"
            )
