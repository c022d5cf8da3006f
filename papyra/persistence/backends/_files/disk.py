"""The calls that file backends make to the system: all of them, in one place that tests replace."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # as on Windows, where files are read only
    fcntl = None  # type: ignore[assignment]

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


#: The descriptors through which this process holds locks.
_locked: set[int] = set()


class Disk:
    """The operating system's calls for files. Everything raises `OSError`."""

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

    def make_directory_like(self, path: Path, like: os.stat_result) -> None:
        """Make a directory for those who may use the file, or directory, that it is `like`."""
        path.mkdir(mode=0o700)
        mode = like.st_mode & 0o777
        # Who may read a file may enter its directory.
        searchable = os.stat_result((mode | (mode & 0o444) >> 2, *like[1:]))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _give(fd, searchable, path, must=False)
        finally:
            os.close(fd)

    def list(self, path: Path) -> list[str]:
        """Return the names in a directory, in order."""
        return sorted(os.listdir(path))

    def stat(self, file: int | str | Path) -> os.stat_result:
        """Return the status of a file, of which this is the descriptor or the name."""
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


def write_all(disk: Disk, fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`, as often as the system takes only a part of it."""
    written = disk.write(fd, data, offset)
    while written < len(data):
        rest = memoryview(data)[written:]
        written += disk.write(fd, rest, offset + written)


def read_file(disk: Disk, path: Path, most: int | None = None, offset: int = 0) -> bytes:
    """Return what is in a file, from `offset` on; of a long one, `most` bytes of it."""
    fd = disk.open(path, os.O_RDONLY)
    try:
        wanted, data = disk.stat(fd).st_size if most is None else most, b""
        while len(data) < wanted:
            part = disk.read(fd, wanted - len(data), offset + len(data))
            if not part:
                break
            data += part
        return data
    finally:
        disk.close(fd)


def temporary_of(path: Path) -> Path:
    """Return the path at which a file is made that is to have this one."""
    return path.with_name(path.name + ".new")


def write_whole(
    disk: Disk, path: Path, data: bytes, like: os.stat_result, *, syncs: bool, copy: bool = False
) -> None:
    """Make a file with `data` in one step, or replace it: nobody sees a part of it.

    It gets owner and mode of the file that it is `like`, as `Disk.create` says. If it `syncs`, it
    is on the device then.
    """
    temporary = temporary_of(path)
    disk.remove(temporary)  # which a crash has left
    fd = disk.create(temporary, like, copy=copy)
    try:
        write_all(disk, fd, data, 0)
        if syncs:
            disk.sync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise
    finally:
        disk.close(fd)
    disk.replace(temporary, path)
    if syncs:
        disk.sync_directory(path.parent)


def identity(about: os.stat_result) -> tuple[int, int]:
    """Return the identity of a file: device and inode, whatever it is called."""
    return about.st_dev, about.st_ino


def whose(path: str | bytes) -> str:
    """Describe the owner and the mode of a file, or of the directory that it is in."""
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
