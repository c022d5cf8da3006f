"""Durability: which bytes of one file are on the device."""

from __future__ import annotations

import logging
import os

from papyra.persistence.backends._files.disk import write_all
from papyra.persistence.backends._files.file_handle import FileHandle

logger = logging.getLogger("papyra")

#: Bytes that are written at once.
_WRITE_CHUNK = 1024 * 1024


class Durability:
    """Up to where a file is synced, and whether its descriptor can be trusted.

    After a failed sync the kernel may take pages for clean that are not on the device (PostgreSQL's
    fsync story), so a second sync would prove nothing. What is not known to be on the device is
    written again then, through a new descriptor, before anything else is.
    """

    def __init__(self, handle: FileHandle) -> None:
        self._handle = handle
        self._disk = handle.disk
        #: whether no write or sync through this descriptor has failed
        self._is_trusted = True
        #: up to where everything is on the device that was there or written since; bytes
        self._synced_end = 0
        self.sync_failed = False
        #: whether what was in the file when it was opened is known to be on the device, too
        self._was_synced = False
        self._is_name_synced = True

    def reset(self, end: int) -> None:
        """Start anew with a file that was opened just now, and read up to byte `end`."""
        self._is_trusted, self.sync_failed, self._synced_end = True, False, end

    def is_synced(self, end: int) -> bool:
        """Return whether everything before byte `end` is known to be on the device."""
        return self._is_trusted and self._was_synced and self._synced_end >= end

    def sync(self, end: int) -> None:
        """Sync the file, which has been written up to byte `end`. Raises `OSError`."""
        try:
            self._disk.sync(self._handle.fd)
        except OSError:
            self.sync_failed, self._is_trusted = True, False
            raise
        self._synced_end, self._was_synced = end, True

    def sync_in_background(self, end: int) -> None:
        """Sync the file up to byte `end`, from a thread of its own, while others use it."""
        if end <= self._synced_end or self.sync_failed:
            return
        fd = self._handle.duplicate()
        if fd is None:
            return
        try:
            self._disk.sync(fd)
            self._synced_end = max(end, self._synced_end)
        except OSError as error:
            path = self._handle.path
            logger.warning("%s: what was not yet on the device may not be: %s", path, error)
            self.sync_failed, self._is_trusted = True, False
        finally:
            os.close(fd)

    def distrust(self, end: int) -> None:
        """Note that a write failed behind byte `end`: the next uses a new descriptor."""
        self._is_trusted = False
        self._synced_end = min(self._synced_end, end)

    def restore_trust(self, end: int) -> None:
        """Make good what has failed before: everything before byte `end` is in the file again.

        After a failed sync, it is on the device then. Raises `OSError`, or `StoreMoved`.
        """
        if self._is_trusted:
            return
        fd = self._handle.reopen()
        if self.sync_failed:
            self._write_again(fd, end)
            self._disk.sync(fd)
            self._synced_end, self.sync_failed = end, False
        if not self._is_name_synced:
            self._disk.sync_directory(self._handle.parent)
            self._is_name_synced = True
        self._is_trusted = True

    def _write_again(self, fd: int, end: int) -> None:
        """Write from the kernel's cache to the file whatever is not known to be synced."""
        position = self._synced_end
        while position < end:
            data = self._disk.read(fd, min(_WRITE_CHUNK, end - position), position)
            write_all(self._disk, fd, data, position)
            position += len(data)

    def was_replaced(self, end: int) -> None:
        """Start anew with a file of `end` bytes that is synced, and whose name is not yet.

        Nothing is written to it before the name is: a crash could bring back the one before.
        """
        self.sync_failed, self._synced_end = False, end
        self._is_trusted = self._is_name_synced = False

    def sync_name(self) -> None:
        """Return when the name of the file is on the device."""
        self._disk.sync_directory(self._handle.parent)
        self._is_trusted = self._is_name_synced = self._was_synced = True
