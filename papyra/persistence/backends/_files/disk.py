"""The calls that file backends make to the system: all of them, in one place that tests replace."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import threading
from pathlib import Path

from papyra.exceptions import BackendInUse
from papyra.persistence.backends._files.close_mark import Closed, read_closed

try:
    import fcntl
except ImportError:  # as on Windows, where files are read only
    fcntl = None  # type: ignore[assignment]

__all__ = ("CAN_WRITE", "Disk", "FileLock", "identity", "is_regular", "lock_file", "whose")

logger = logging.getLogger("papyra")

#: Whether this system has what it takes to write a store.
CAN_WRITE = fcntl is not None

#: macOS has only this.
_fdatasync = getattr(os, "fdatasync", os.fsync)
#: And there it leaves the data in the cache of the device, unless it is asked otherwise.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
#: What file systems say that can't be asked that.
_NO_FULL_SYNC = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY}

#: Other programs do not inherit a file, no link is followed, and nobody waits for a pipe.
_FLAGS = (
    getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)

#: Bytes of a lock file that say who holds it.
_NOTE = 1000
#: Who holds a lock, where nothing says that.
_SOMEBODY = "another process"
#: What file systems say on which a directory can't be locked.
_NO_DIRECTORY_LOCKS = {errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOTSUP, errno.ENOLCK}

#: The descriptors through which this process holds locks.
_locked: set[int] = set()


class Disk:
    """What the operating system does with files. Everything raises `OSError`."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file that is there, and nothing else that has a name; no link is followed."""
        # Opening a device may do something, whatever comes of it.
        _require_regular(path.lstat(), path)
        fd = os.open(path, flags | _FLAGS)
        try:
            _require_regular(os.fstat(fd), path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def create(self, path: Path, like: os.stat_result | None = None, *, copy: bool = False) -> int:
        """Make a file, where nothing has that name yet, and open it.

        It gets owner and mode of the file that it is `like`, as far as this process may give them;
        a `copy`, which takes its place, just those. Without one, the umask says.
        """
        mode = 0o666 if like is None else 0o600
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, mode)
        try:
            if like is not None:
                _give(fd, like, path, must=copy)
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
        return fd

    def close(self, fd: int) -> None:
        """Close a file."""
        _locked.discard(fd)
        os.close(fd)

    def lock(self, fd: int) -> None:
        """Lock a file, by whatever name it was opened. Raises `BlockingIOError` if it is locked.

        The lock does not go on to a process that is forked.
        """
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _locked.add(fd)

    def unlock(self, fd: int) -> None:
        """Let others lock a file."""
        _locked.discard(fd)
        fcntl.flock(fd, fcntl.LOCK_UN)

    def make_directory(self, path: Path, *, anew: bool = False) -> bool:
        """Make a directory, with those above it; return False if it was there already.

        One that is made `anew` may not be there, not even as a link to another.
        """
        existed = path.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=not anew)
        return not existed

    def list(self, path: Path) -> list[str]:
        """Return the names in a directory, in order."""
        return sorted(os.listdir(path))

    def stat(self, file: int | str | Path) -> os.stat_result:
        """Return what is known of a file, of which this is the descriptor or the name."""
        return os.stat(file)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Return at most `length` bytes from `offset` on, none at the end of the file."""
        return _pread(fd, length, offset)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at `offset`, and return how many bytes were written: maybe not all."""
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, length: int) -> None:
        """Cut a file off."""
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """Return when the data of a file is on the device."""
        if not _sync_fully(fd):
            _fdatasync(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Give a file the name of another, which is gone then, in one step."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file, or a link, if it is there; a directory of that name is none of ours."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(path.lstat().st_mode):
                path.unlink()

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are on the device."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _sync_fully(fd):
                os.fsync(fd)
        finally:
            os.close(fd)


def identity(about: os.stat_result) -> tuple[int, int]:
    """Return what makes a file this file, whatever it is called."""
    return about.st_dev, about.st_ino


def whose(path: str | bytes) -> str:
    """Return the part of a message that says to whom a file belongs, or what it is in."""
    file = Path(os.fsdecode(path))
    for place in (file, *file.parents):
        with contextlib.suppress(OSError):
            about = place.lstat()
            return (
                f"{place} belongs to user {about.st_uid}, group {about.st_gid}, and has mode "
                f"{stat.S_IMODE(about.st_mode):04o}; this process is user {_user()}"
            )
    return f"{path!r} is nowhere to be seen"


def _user() -> object:
    # Windows has no numbers for users.
    return os.geteuid() if hasattr(os, "geteuid") else os.environ.get("USERNAME", "unknown")


def is_regular(path: Path) -> bool:
    """Return whether this is a file, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _require_regular(about: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(about.st_mode):
        raise OSError(errno.ELOOP, "this is a symbolic link, and it is not followed", str(path))
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "this is no regular file", str(path))


def _give(fd: int, like: os.stat_result, path: Path, *, must: bool) -> None:
    """Give a new file the owner and the mode of another."""
    about, mode = os.fstat(fd), stat.S_IMODE(like.st_mode) & 0o777
    if about.st_uid != like.st_uid:
        try:
            os.fchown(fd, like.st_uid, -1)
        except OSError as error:
            if must:
                said = f"only user {like.st_uid}, to whom the file belongs, can have it rewritten"
                raise OSError(error.errno, said, str(path)) from error
    if about.st_gid != like.st_gid:
        try:
            os.fchown(fd, -1, like.st_gid)
        except OSError:
            # Another group may not do more with it than everybody.
            mode = mode & ~0o070 | (mode & 0o007) << 3
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def _sync_fully(fd: int) -> bool:
    """Have the device write down what is in its own cache; return False where that can't be."""
    if _FULL_SYNC is None:
        return False
    try:
        fcntl.fcntl(fd, _FULL_SYNC)
    except OSError as error:
        if error.errno not in _NO_FULL_SYNC:
            raise
        return False
    return True


_seeking = threading.Lock()


def _seek_and_read(fd: int, length: int, offset: int) -> bytes:
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


#: Windows has no such call.
_pread = getattr(os, "pread", _seek_and_read)


def _leave_locks_to_the_parent() -> None:
    # A lock is held as long as anybody has the descriptor: the parent may end before this process.
    while _locked:
        with contextlib.suppress(OSError):
            os.close(_locked.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


class FileLock:
    """A lock file beside a store, held as long as its process lives. Readers don't need it.

    It says who has the store, and how far the store was acknowledged when it was closed last. A
    lock on a `directory` itself holds even if somebody removes that.
    """

    def __init__(self, path: Path, store: Path, *, directory: Path | None = None) -> None:
        self._path = path
        self._store = store
        self._directory = directory
        self._disk = Disk()
        self._fd: int | None = None
        self._directory_fd: int | None = None
        self._may_sign = True
        #: what the last clean close vouches for
        self.closed: Closed | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `BackendInUse`, naming the holder, if somebody else has it."""
        self._may_sign = True
        try:
            self._fd = self._lock_file()
            if self._directory is not None:
                self._lock_directory(self._directory)
            if self._may_sign:  # or it could not be taken away before a rewriting
                self.closed = read_closed(os.pread(self._fd, _NOTE, 0))
                self._sign(self._fd)
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
                self._may_sign = False
                return self._disk.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    return self._disk.create(self._path, self._owner())

    def _owner(self) -> os.stat_result | None:
        """Return whose the store is, so that a lock file which root makes is no bar to them."""
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

    def _sign(self, fd: int) -> None:
        """Write down who has the lock, where that can be done."""
        try:
            self._note(fd, {"pid": os.getpid(), "host": socket.gethostname()})
        except OSError as error:
            # It is locked, and that is what counts.
            logger.warning("%s: it can't be written down who has it: %s", self._path, error)

    def _note(self, fd: int, note: dict[str, object]) -> None:
        if self.closed is not None:
            note["closed"] = self.closed.note()
        os.ftruncate(fd, 0)
        if note:
            os.pwrite(fd, json.dumps({"pid": 0, **note}).encode(), 0)

    def vouch(self, closed: Closed | None) -> None:
        """Say how far the store is acknowledged, or, before it is rewritten, nothing of it."""
        if self._fd is not None and self._may_sign and self.closed != closed:
            self.closed = closed
            self._sign(self._fd)
            if closed is None:
                # Otherwise a power cut could bring it back, beside what is rewritten now.
                with contextlib.suppress(OSError):
                    self._disk.sync(self._fd)

    def look(self) -> None:
        """Take in what the last clean close vouches for, without the lock; for a reader."""
        self.closed = None
        with contextlib.suppress(OSError):
            fd = self._disk.open(self._path, os.O_RDONLY)
            try:
                self.closed = read_closed(self._disk.read(fd, _NOTE, 0))
            finally:
                self._disk.close(fd)

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
        """Let others have it."""
        fd, self._fd = self._fd, None
        directory_fd, self._directory_fd = self._directory_fd, None
        if directory_fd is not None:
            self._close(directory_fd)
        if fd is not None:
            if self._may_sign:
                with contextlib.suppress(OSError):
                    self._note(fd, {})
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
