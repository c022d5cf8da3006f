"""The mark of a clean close, which the lock file keeps: up to where a file was acknowledged.

A write of which a power cut has left a part, and what is damaged later, may look alike. But what a
clean close has seen on the device was acknowledged, so it is never a torn tail. The mark stays
true as long as the file is the same, whoever is killed meanwhile; only a rewriting takes it away,
as another file could get the number of the one before. Without it, nothing is known.
"""

from __future__ import annotations

import json
from typing import NamedTuple
from zlib import crc32


class CloseMark(NamedTuple):
    """The last file of a store, and up to where it was acknowledged and synced."""

    inode: int
    #: bytes
    end: int

    def dump(self) -> list[int]:
        """Return the numbers that the lock file keeps, with their checksum."""
        return [*self, _checksum(self)]


def read_close_mark(note: bytes) -> CloseMark | None:
    """Return the mark in the note of a lock file; `None` if there is none, or not a right one."""
    try:
        inode, end, checksum = json.loads(note)["closed"]
        mark = CloseMark(int(inode), int(end))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return mark if checksum == _checksum(mark) else None


def _checksum(mark: CloseMark) -> int:
    return crc32(b"%d %d" % mark)
