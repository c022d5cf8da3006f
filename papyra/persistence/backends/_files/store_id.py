"""The id of a store in files: one line in a file beside it, which nobody changes.

It is made when somebody asks for it first, so that who needs none finds no file more. If it is
lost or damaged there is a new one, and whatever named the old one counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from pathlib import Path

from papyra.persistence.backends._files.disk import Disk, read_file, write_whole

_ID = re.compile(rb"[0-9a-f]{32}\n")


class StoreId:
    """The id that is kept at `path`. Everything raises `OSError`."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        self._known: str | None = None

    def read(self) -> str:
        """Return the id, or the empty string if there is none."""
        with contextlib.suppress(FileNotFoundError):
            data = read_file(self._disk, self._path, 100)
            if _ID.fullmatch(data):
                return data[:-1].decode()
        return ""

    def ensure(self, like: os.stat_result) -> str:
        """Return the id, making one if need be; its file gets owner and mode of what it is `like`.

        On return it is on the device.
        """
        if self._known is None:
            self._known = self.read() or self._make(like)
        return self._known

    def forget(self) -> None:
        """Remove the id of a store that is no more."""
        self._known = None
        self._disk.remove(self._path)

    def _make(self, like: os.stat_result) -> str:
        made = uuid.uuid4().hex
        write_whole(self._disk, self._path, made.encode() + b"\n", like, syncs=True)
        return made
