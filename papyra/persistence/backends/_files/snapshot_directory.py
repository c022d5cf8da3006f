"""The snapshots of a store in files: a directory beside it, with one in it for each actor.

An actor's directory is named after a hash of its address, as addresses may be of any length and
have any characters; a snapshot is named after its revision. What is in it says whose it is.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from bisect import bisect_left
from hashlib import blake2b
from pathlib import Path

from papyra.persistence.backends._files.disk import Disk, read_file, write_whole
from papyra.persistence.snapshots import StoredSnapshot

_OWNER = re.compile(r"[0-9a-f]{40}", re.ASCII)
_NAME = re.compile(r"(?!0{14})(\d{14})\.json", re.ASCII)


class SnapshotDirectory:
    """Snapshots in the directory `path`. No link is followed. Everything raises `OSError`."""

    def __init__(self, disk: Disk, path: Path, *, syncs: bool) -> None:
        self._disk = disk
        self._path = path
        #: whether what is saved is on the device then
        self._syncs = syncs
        #: the owners in the directory, in order, while somebody goes through them page by page
        self._owners: list[str] | None = None

    def save(self, owner: str, revision: int, data: bytes, like: os.stat_result) -> None:
        """Save a snapshot in one step; it gets owner and mode of the file that it is `like`."""
        directory = self._path / owner
        for place in (self._path, directory):
            self._make_directory(place, like)
        path = directory / _name_of(revision)
        write_whole(self._disk, path, data, like, syncs=self._syncs)

    def revisions(self, owner: str) -> list[int]:
        """Return the revisions of an owner's snapshots."""
        directory = self._path / owner
        if not all(_is_directory(place) for place in (self._path, directory)):
            return []
        names = map(_NAME.fullmatch, self._disk.list(directory))
        return [int(name[1]) for name in names if name is not None]

    def page(self, after: StoredSnapshot | None, limit: int) -> list[StoredSnapshot]:
        """Return up to `limit` snapshots, by owner and revision.

        Owners whose first snapshot is saved while somebody goes through all of them may be missing.
        """
        if after is None or self._owners is None:
            names = self._disk.list(self._path) if _is_directory(self._path) else []
            self._owners = [name for name in names if _OWNER.fullmatch(name)]
        last = ("", 0) if after is None else (after.owner, after.revision)
        found: list[StoredSnapshot] = []
        for position in range(bisect_left(self._owners, last[0]), len(self._owners)):
            owner = self._owners[position]
            for revision in sorted(self.revisions(owner)):
                size = _size_of(self._path / owner / _name_of(revision))
                if (owner, revision) > last and size is not None:
                    found.append(StoredSnapshot(owner, revision, size))
            if len(found) >= limit:
                return found[:limit]
        self._owners = None
        return found

    def load(self, owner: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None` if there is none."""
        try:
            return read_file(self._disk, self._path / owner / _name_of(revision))
        except FileNotFoundError:
            return None

    def remove(self, owner: str, revision: int) -> None:
        """Remove a snapshot, if it is there."""
        self._disk.remove(self._path / owner / _name_of(revision))

    def move(self, owner: str, revision: int, target: Path) -> None:
        """Move a snapshot elsewhere, maybe to another device."""
        self._disk.make_directory(target.parent)
        shutil.move(self._path / owner / _name_of(revision), target)

    def _make_directory(self, path: Path, like: os.stat_result) -> None:
        if _is_directory(path):
            return
        if os.path.lexists(path):
            raise OSError(errno.ENOTDIR, "this is no directory, and no link is followed", str(path))
        self._disk.make_directory_like(path, like)
        if self._syncs:
            self._disk.sync_directory(path.parent)


def owner_of(actor: str) -> str:
    """Return the name of an actor's directory."""
    return blake2b(actor.encode(errors="surrogatepass"), digest_size=20).hexdigest()


def _name_of(revision: int) -> str:
    return f"{revision:014}.json"


def _is_directory(path: Path) -> bool:
    """Return whether this is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _size_of(path: Path) -> int | None:
    """Return the size of a file, or of a link; `None` for a directory, and for nothing."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None
    return None if stat.S_ISDIR(about.st_mode) else about.st_size
