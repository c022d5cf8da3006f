"""The snapshots of a store in files: a directory beside it, with one in it for each actor.

An actor's directory is named after a hash of its address, as addresses may be of any length and
have any characters; a snapshot is named after its revision. What is in it says whose it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from hashlib import blake2b
from pathlib import Path

from papyra.persistence.backends._files.disk import Disk, write_all

__all__ = ("SnapshotDirectory",)

_NAME = re.compile(r"(?!0{14})(\d{14})\.json", re.ASCII)


class SnapshotDirectory:
    """Snapshots in the directory `path`. No link is followed. Everything raises `OSError`."""

    def __init__(self, disk: Disk, path: Path, *, syncs: bool) -> None:
        self._disk = disk
        self._path = path
        #: whether what is saved is on the device then
        self._syncs = syncs

    def save(self, actor: str, revision: int, data: bytes, like: os.stat_result) -> None:
        """Save a snapshot in one step; it gets owner and mode of the file that it is `like`."""
        directory = self._directory_of(actor)
        for place in (self._path, directory):
            self._make_directory(place, like)
        path = directory / _name_of(revision)
        temporary = path.with_name(path.name + ".new")
        self._disk.remove(temporary)  # which a crash has left
        fd = self._disk.create(temporary, like)
        try:
            write_all(self._disk, fd, data, 0)
            if self._syncs:
                self._disk.sync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                self._disk.remove(temporary)
            raise
        finally:
            self._disk.close(fd)
        self._disk.replace(temporary, path)
        if self._syncs:
            self._disk.sync_directory(directory)

    def revisions(self, actor: str) -> list[int]:
        """Return the revisions of an actor's snapshots."""
        directory = self._directory_of(actor)
        if not all(_is_directory(place) for place in (self._path, directory)):
            return []
        names = map(_NAME.fullmatch, self._disk.list(directory))
        return [int(name[1]) for name in names if name is not None]

    def load(self, actor: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None` if there is none."""
        try:
            fd = self._disk.open(self._directory_of(actor) / _name_of(revision), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            length = self._disk.stat(fd).st_size
            data = b""
            while part := self._disk.read(fd, length - len(data), len(data)):
                data += part
            return data
        finally:
            self._disk.close(fd)

    def remove(self, actor: str, revision: int) -> None:
        """Remove a snapshot, if it is there."""
        self._disk.remove(self._directory_of(actor) / _name_of(revision))

    def _directory_of(self, actor: str) -> Path:
        address = actor.encode(errors="surrogatepass")
        return self._path / blake2b(address, digest_size=20).hexdigest()

    def _make_directory(self, path: Path, like: os.stat_result) -> None:
        if _is_directory(path):
            return
        if os.path.lexists(path):
            raise OSError(errno.ENOTDIR, "this is no directory, and no link is followed", str(path))
        self._disk.make_directory_like(path, like)
        if self._syncs:
            self._disk.sync_directory(path.parent)


def _name_of(revision: int) -> str:
    return f"{revision:014}.json"


def _is_directory(path: Path) -> bool:
    """Return whether this is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False
