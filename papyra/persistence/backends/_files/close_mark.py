"""The mark of a clean close, which the lock file keeps: up to where a file was acknowledged.

A write of which a power cut has left a part, and what is damaged later, may look alike. But what a
clean close has seen on the device was acknowledged, so it is never such remains. The mark stays
true as long as the file is the same, whoever is killed meanwhile; only a rewriting takes it away,
as another file could get the number of the one before. One that is lost vouches for nothing.
"""

from __future__ import annotations

import json
from typing import NamedTuple
from zlib import crc32

__all__ = ("Closed", "read_closed")


class Closed(NamedTuple):
    """The file that is written to, and how far it counts."""

    inode: int
    #: bytes
    end: int

    def note(self) -> list[int]:
        """Return what the lock file says of it."""
        return [*self, _checksum(self)]


def read_closed(note: bytes) -> Closed | None:
    """Return what a lock file says of the last clean close; `None` if it says nothing of it."""
    try:
        inode, end, checksum = json.loads(note)["closed"]
        closed = Closed(int(inode), int(end))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return closed if checksum == _checksum(closed) else None


def _checksum(closed: Closed) -> int:
    return crc32(b"%d %d" % closed)
