"""The lock that keeps a second writer out: a lock file beside a store, and one on its files.

The lock file says who has the store, and up to where it was closed cleanly.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from pathlib import Path

from papyra.exceptions import BackendInUse
from papyra.persistence.backends._files.close_mark import CloseMark, read_close_mark
from papyra.persistence.backends._files.disk import CAN_WRITE, Disk, identity, read_file

logger = logging.getLogger("papyra")

#: Bytes of a lock file that say who holds it.
_NOTE = 1000
#: Who holds a lock, where nothing says that.
_SOMEBODY = "another process"
#: What file systems say on which a directory can't be locked.
_NO_DIRECTORY_LOCKS = {errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOTSUP, errno.ENOLCK}


class FileLock:
    """A lock file beside a store, held as long as its process lives. Readers don't need it.

    It says who has the store, and how far the store was acknowledged when it was closed last. A
    lock on a `directory` itself holds even if somebody removes that.
    """

    def __init__(
        self,
        path: Path,
        store: Path,
        *,
        directory: Path | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._path = path
        self._store = store
        self._directory = directory
        self._disk = disk or Disk()
        self._fd: int | None = None
        self._directory_fd: int | None = None
        self._is_writable = True
        #: of the last clean close
        self.close_mark: CloseMark | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `BackendInUse`, naming the holder, if somebody else has it."""
        self._is_writable = True
        try:
            self._fd = self._lock_file()
            if self._directory is not None:
                self._lock_directory(self._directory)
            if self._is_writable:  # or it could not be taken away before a rewriting
                self.close_mark = read_close_mark(os.pread(self._fd, _NOTE, 0))
                self._write_holder(self._fd)
        except BaseException:
            self.release()
            raise

    def _lock_file(self) -> int:
        """Open the lock file, and return its descriptor once that is locked."""
        while True:
            fd = self._open()
            try:
                self._lock(fd)
                _require_own(fd, self._path)
                # Somebody may have removed it, and somebody else made a new one.
                with contextlib.suppress(FileNotFoundError):
                    if identity(self._path.lstat()) == identity(os.fstat(fd)):
                        return fd
            except BaseException:
                self._close(fd)
                raise
            self._close(fd)

    def _open(self) -> int:
        while True:
            try:
                return self._disk.open(self._path, os.O_RDWR)
            except PermissionError:
                # Another user has made it. It can be locked all the same.
                self._is_writable = False
                return self._disk.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    return self._disk.create(self._path, self._owner())

    def _owner(self) -> os.stat_result | None:
        """Return the status of the store, whose owner must be able to use a lock file of root."""
        try:
            about = self._store.stat()
        except FileNotFoundError:
            return None
        # Of a directory's mode, what makes sense for a file.
        return os.stat_result((about.st_mode & ~0o111, *about[1:]))

    def _lock_directory(self, directory: Path) -> None:
        self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._disk.lock(self._directory_fd)
        except BlockingIOError:
            raise _in_use(_who_locked(self._directory_fd), self._store) from None
        except OSError as error:
            # Not every file system can do that: NFS does not.
            if error.errno not in _NO_DIRECTORY_LOCKS:
                raise

    def _lock(self, fd: int) -> None:
        try:
            self._disk.lock(fd)
        except BlockingIOError:
            raise _in_use(_text(os.pread(fd, _NOTE, 0)), self._store) from None

    def _write_holder(self, fd: int) -> None:
        """Write the holder of the lock into it, where that can be done."""
        try:
            self._write_note(fd, {"pid": os.getpid(), "host": socket.gethostname()})
        except OSError as error:
            # It is locked, and that is what counts.
            logger.warning("%s: it can't be written down who has it: %s", self._path, error)

    def _write_note(self, fd: int, note: dict[str, object]) -> None:
        if self.close_mark is not None:
            note["closed"] = self.close_mark.dump()
        os.ftruncate(fd, 0)
        if note:
            os.pwrite(fd, json.dumps({"pid": 0, **note}).encode(), 0)

    def write_close_mark(self, mark: CloseMark | None) -> None:
        """Write the mark of how far the store is acknowledged; none before it is rewritten."""
        if self._fd is not None and self._is_writable and self.close_mark != mark:
            self.close_mark = mark
            self._write_holder(self._fd)
            if mark is None:
                # Otherwise a power cut could bring it back, beside what is rewritten now.
                with contextlib.suppress(OSError):
                    self._disk.sync(self._fd)

    def read_close_mark(self) -> None:
        """Read the mark of the last clean close, without the lock; for a reader."""
        self.close_mark = None
        with contextlib.suppress(OSError):
            self.close_mark = read_close_mark(read_file(self._disk, self._path, _NOTE))

    def holder(self) -> str | None:
        """Return who seems to have the lock, without trying to take it; `None` for nobody.

        The note may be what a crash has left: a process of this machine that is no more, or that
        has the number by now but not the file, does not have the lock.
        """
        try:
            fd = self._disk.open(self._path, os.O_RDONLY)
        except OSError:
            return None
        try:
            note, file = self._disk.read(fd, _NOTE, 0), identity(os.fstat(fd))
            said = json.loads(note)
            is_here, process = said["host"] == socket.gethostname(), int(said["pid"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        finally:
            os.close(fd)
        if is_here and not (_is_alive(process) and _has_open(process, file)):
            return None
        return _text(note)

    def release(self) -> None:
        """Release the lock."""
        fd, self._fd = self._fd, None
        directory_fd, self._directory_fd = self._directory_fd, None
        if directory_fd is not None:
            self._close(directory_fd)
        if fd is not None:
            if self._is_writable:
                with contextlib.suppress(OSError):
                    self._write_note(fd, {})
            self._close(fd)

    def _close(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._disk.unlock(fd)
        with contextlib.suppress(OSError):
            os.close(fd)


def lock_file(disk: Disk, fd: int, store: Path) -> None:
    """Lock the file of a store itself. Raises `BackendInUse` if it is open under another name."""
    try:
        disk.lock(fd)
    except BlockingIOError:
        raise _in_use(_who_locked(fd), store) from None


def _in_use(holder: str, store: Path) -> BackendInUse:
    return BackendInUse(
        f"{holder} has {store} open: one process at a time writes to a store", owner=holder
    )


def _text(note: bytes) -> str:
    try:
        holder = json.loads(note)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return _SOMEBODY  # which had no time yet to say who it is


def _who_locked(fd: int) -> str:
    """Return who has locked a file, as far as the system says that: Linux does."""
    about = os.fstat(fd)
    file = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == file and int(fields[4]) > 0:
                return f"process {fields[4]} on {socket.gethostname()}"
    return _SOMEBODY


def _is_alive(process: int) -> bool:
    if not CAN_WRITE:
        return True  # on Windows, asking would end it
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # somebody else's process: it is there
    except (OSError, OverflowError):
        return False
    return True


def _has_open(process: int, file: tuple[int, int]) -> bool:
    """Return whether a process has a file open; True where the system does not say: Linux does."""
    try:
        links = list(Path(f"/proc/{process}/fd").iterdir())
    except OSError:  # it is another user's, or there is no such list
        return True
    for link in links:
        with contextlib.suppress(OSError):
            if identity(link.stat()) == file:
                return True
    return False


def _require_own(fd: int, path: Path) -> None:
    """Raise `OSError` for a file that Papyra has not made to be a lock: that is not emptied."""
    note = os.pread(fd, _NOTE, 0).strip(b"\0")  # which a power cut may leave of it
    begin = b'{"pid":'
    if os.fstat(fd).st_nlink > 1 or note[: len(begin)] != begin[: len(note)]:
        raise FileExistsError(
            errno.EEXIST, "this is no lock file of Papyra's, which would have this name", str(path)
        )
