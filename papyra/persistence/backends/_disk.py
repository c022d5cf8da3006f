"""The calls that file backends make to the system: all of them, in one place that tests replace."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
from pathlib import Path

from papyra.exceptions import BackendInUse

__all__ = ("Disk", "FileLock")

#: Bytes of what a lock says of its holder, at most.
_NOTE_BYTES = 1000

#: macOS has only this.
_fdatasync = getattr(os, "fdatasync", os.fsync)


class Disk:
    """What the operating system does with files. Everything raises `OSError`."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file, and nothing else that has a name; other programs do not inherit it."""
        with contextlib.suppress(FileNotFoundError):
            # Opening a pipe would wait for who writes it.
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError(errno.EINVAL, "this is no regular file", str(path))
        return os.open(path, flags | os.O_CLOEXEC, 0o644)

    def close(self, fd: int) -> None:
        """Close a file."""
        os.close(fd)

    def make_directory(self, path: Path) -> bool:
        """Make a directory, with those above it; return False if it was there already."""
        existed = path.is_dir()
        path.mkdir(parents=True, exist_ok=True)
        return not existed

    def list(self, path: Path) -> list[str]:
        """Return the names in a directory, in order."""
        return sorted(os.listdir(path))

    def stat(self, fd: int) -> os.stat_result:
        """Return what is known of a file."""
        return os.fstat(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Return at most `length` bytes from `offset` on, none at the end of the file."""
        return os.pread(fd, length, offset)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at `offset`, and return how many bytes were written: maybe not all."""
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, length: int) -> None:
        """Cut a file off."""
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """Return when the data of a file is on the device."""
        _fdatasync(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Give a file the name of another, which is gone then, in one step."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are on the device."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class FileLock:
    """A lock file beside a store, held as long as its process lives. Readers don't need it."""

    def __init__(self, path: Path, store: Path) -> None:
        self._path = path
        self._store = store
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `BackendInUse`, naming the holder, if somebody else has it."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _text(os.pread(fd, _NOTE_BYTES, 0))
            os.close(fd)
            raise BackendInUse(
                f"{holder} has {self._store} open: one process at a time writes to a store",
                owner=holder,
            ) from None
        except BaseException:
            os.close(fd)
            raise
        note = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(fd, 0)
        os.pwrite(fd, note.encode(), 0)
        self._fd = fd

    def holder(self) -> str | None:
        """Return who seems to have the lock, without trying to take it; `None` for nobody.

        A process of this machine that has not given it back, but is no more, does not have it.
        """
        try:
            note = self._path.read_bytes()[:_NOTE_BYTES]
            said = json.loads(note)
            is_here, process = said["host"] == socket.gethostname(), int(said["pid"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if is_here:
            try:
                os.kill(process, 0)
            except PermissionError:
                pass  # somebody else's process: it is there
            except (OSError, OverflowError):
                return None
        return _text(note)

    def release(self) -> None:
        """Let others have it."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)


def _text(note: bytes) -> str:
    try:
        holder = json.loads(note)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"  # which had no time yet to say who it is
