"""The positions of a store in files: a directory beside it, with a file for each name.

A file is named after a hash of the name, as names have any characters. What is in it says whose it
is: a checksum of all that follows it, a space, the name as JSON, a newline, and the data.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from bisect import bisect_right
from hashlib import blake2b
from pathlib import Path

import msgspec

from papyra.exceptions import StoreDamaged
from papyra.persistence.backends._files.disk import Disk, read_file, whose, write_whole
from papyra.persistence.snapshots import checksum

logger = logging.getLogger("papyra")

_FILE = re.compile(r"[0-9a-f]{40}", re.ASCII)
_CONTENT = re.compile(rb"([0-9a-f]{32}) (.+)\n", re.ASCII)


class PositionDirectory:
    """Positions in the directory `path`. No link is followed. Everything raises `OSError`."""

    def __init__(self, disk: Disk, path: Path, *, syncs: bool) -> None:
        self._disk = disk
        self._path = path
        #: whether what is changed is on the device then
        self._syncs = syncs
        #: the names, in order, while somebody goes through them page by page
        self._names: list[str] | None = None

    def load(self, name: str) -> bytes | None:
        """Return the data of a name, or `None`. Raises `StoreDamaged`."""
        path = self._path_of(name)
        content = self._read(path)
        if content is None:
            return None
        found, data = _decode(content, path)
        if found != name:
            raise _damaged(path, f"it is that of the name {found!r}")
        return data

    def save(self, name: str, data: bytes, expected: bytes | None, like: os.stat_result) -> bool:
        """Set what a name has, if that is as expected, in one step.

        The file gets owner and mode of the file that it is `like`.
        """
        if self.load(name) != expected:
            return False
        if not self._is_there():
            self._disk.make_directory_like(self._path, like)
            if self._syncs:
                self._disk.sync_directory(self._path.parent)
        content = _encode(name, data)
        write_whole(self._disk, self._path_of(name), content, like, syncs=self._syncs)
        return True

    def remove(self, name: str, expected: bytes) -> bool:
        """Remove what a name has, if that is as expected."""
        if self.load(name) != expected:
            return False
        self._disk.remove(self._path_of(name))
        if self._syncs:
            self._disk.sync_directory(self._path)
        return True

    def page(self, after: str | None, limit: int) -> list[str]:
        """Return up to `limit` names, in their order. What can't be read is logged.

        Names that get a position while somebody goes through all of them may be missing.
        """
        if after is None or self._names is None:
            self._names = self._find_names()
        start = 0 if after is None else bisect_right(self._names, after)
        page = self._names[start : start + limit]
        if len(page) < limit:
            self._names = None
        return page

    def _find_names(self) -> list[str]:
        if not self._is_there():
            return []
        names: list[str] = []
        for file in filter(_FILE.fullmatch, self._disk.list(self._path)):
            path = self._path / file
            try:
                content = self._read(path)
                if content is not None:
                    names.append(_decode(content, path)[0])
            except (OSError, StoreDamaged) as error:
                logger.warning("a position is not listed: %s", error)
        return sorted(names)

    def _read(self, path: Path) -> bytes | None:
        if not self._is_there():
            return None
        try:
            return read_file(self._disk, path)
        except FileNotFoundError:
            return None

    def _is_there(self) -> bool:
        """Return whether there is a directory. Raises `OSError` for anything else of that name."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(mode):
            said = f"this is no directory, and no link is followed: {whose(str(self._path))}"
            raise OSError(errno.ENOTDIR, said, str(self._path))
        return True

    def _path_of(self, name: str) -> Path:
        return self._path / blake2b(name.encode(), digest_size=20).hexdigest()


def _encode(name: str, data: bytes) -> bytes:
    body = b"%b\n%b" % (msgspec.json.encode(name), data)
    return b"%b %b" % (checksum(body).encode(), body)


def _decode(content: bytes, path: Path) -> tuple[str, bytes]:
    """Return name and data. Raises `StoreDamaged`."""
    match = _CONTENT.match(content)
    if match is None or match[1] != checksum(content[match.start(2) :]).encode():
        raise _damaged(path, "it is not what was saved")
    return msgspec.json.decode(match[2], type=str), content[match.end() :]


def _damaged(path: Path, why: str) -> StoreDamaged:
    return StoreDamaged(
        f"{path}: this position is damaged: {why}. Restore the file, or remove it to have whoever "
        "keeps it begin anew"
    )
