"""The inbox of a store in files: a directory beside it, with a file for each request or answer.

A request is ``ID.request`` until the writer takes it, which makes it ``ID.taken``; its answer is
``ID.answer``. Each is written under another name first, so what is there is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

from papyra.persistence.backends._files.disk import Disk, read_file, whose, write_whole
from papyra.persistence.inbox import MAX_POSTED_BYTES

_NAME = re.compile(r"([0-9a-f]{32})\.(request|taken|answer|withdrawn)(\.new)?", re.ASCII)

#: Seconds after which a file is one that nobody waits for any more.
STALE_AFTER = 3600.0


class RequestDirectory:
    """Requests and answers in the directory `path`. No link is followed. Raises `OSError`.

    Whoever can write there can have the store written. So a directory that more may write than the
    store, or that is somebody else's, is not looked at.
    """

    def __init__(
        self, disk: Disk, path: Path, like: Callable[[], os.stat_result], *, syncs: bool
    ) -> None:
        self._disk = disk
        self._path = path
        #: whether what is left here is on the device then
        self._syncs = syncs
        #: returns the status of the store, whose owner and mode the files here get
        self._like = like

    def post(self, request_id: str, data: bytes) -> None:
        """Leave a request, making the directory if there is none."""
        like = self._like()
        with contextlib.suppress(FileExistsError):  # of another one who posts
            if not os.path.lexists(self._path):
                self._disk.make_directory_like(self._path, like)
                self._sync_directory(self._path.parent)
        if not self._is_trusted(like):
            said = f"requests go to a directory like the store, and this is none: {whose(self._at)}"
            raise OSError(errno.EPERM, said, self._at)
        path = self._path_of(request_id, "request")
        write_whole(self._disk, path, data, like, syncs=self._syncs)

    def posted(self) -> list[str]:
        """Return the ids of requests, and remove files that nobody waits for any more."""
        if not os.path.lexists(self._path) or not self._is_trusted(self._like()):
            return []
        found = {name: match for name in self._disk.list(self._path) if (match := _parse(name))}
        for name in found:
            self._remove_if_stale(self._path / name)
        return [each[1] for each in found.values() if each[2] == "request" and not each[3]]

    def take(self, request_id: str) -> bytes | None:
        """Take a request; `None` if it is not there, and nothing for one that can't be read."""
        taken = self._path_of(request_id, "taken")
        try:
            self._disk.replace(self._path_of(request_id, "request"), taken)
        except FileNotFoundError:
            return None
        try:
            data = self._read(taken)
        except OSError:
            return b""  # a link, say, or a pipe, or a file that only its owner may read
        return data if len(data) <= MAX_POSTED_BYTES else b""

    def answer(self, request_id: str, data: bytes) -> None:
        """Leave the answer to a request that was taken."""
        path = self._path_of(request_id, "answer")
        write_whole(self._disk, path, data, self._like(), syncs=self._syncs)
        self._disk.remove(self._path_of(request_id, "taken"))

    def answered(self, request_id: str) -> bytes | None:
        """Return an answer, and remove it; `None` if there is none yet."""
        path = self._path_of(request_id, "answer")
        try:
            data = self._read(path)
        except FileNotFoundError:
            return None
        self._disk.remove(path)
        return data

    def withdraw(self, request_id: str) -> bool:
        """Take a request back; return whether it was still there."""
        withdrawn = self._path_of(request_id, "withdrawn")
        try:
            # A file has its name changed once: the writer's taking it is the other way.
            self._disk.replace(self._path_of(request_id, "request"), withdrawn)
        except FileNotFoundError:
            return False
        self._disk.remove(withdrawn)
        return True

    @property
    def _at(self) -> str:
        return str(self._path)

    def _path_of(self, request_id: str, kind: str) -> Path:
        return self._path / f"{request_id}.{kind}"

    def _is_trusted(self, like: os.stat_result) -> bool:
        """Return whether nobody can write the directory who could not write the store."""
        try:
            about = self._path.lstat()
        except FileNotFoundError:
            return False
        owners = {os.geteuid(), like.st_uid, 0}
        more = stat.S_IMODE(about.st_mode) & 0o022 & ~like.st_mode
        is_same_group = not about.st_mode & 0o020 or about.st_gid == like.st_gid
        return stat.S_ISDIR(about.st_mode) and about.st_uid in owners and not more and is_same_group

    def _sync_directory(self, path: Path) -> None:
        if self._syncs:
            self._disk.sync_directory(path)

    def _read(self, path: Path) -> bytes:
        """Return what is in a file; of one that is too long, a little more than it may have."""
        return read_file(self._disk, path, MAX_POSTED_BYTES + 1)

    def _remove_if_stale(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > STALE_AFTER:
                self._disk.remove(path)


def _parse(name: str) -> re.Match[str] | None:
    return _NAME.fullmatch(name)
