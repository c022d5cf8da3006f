"""The index cache: the index that a reader has made of a file, kept for the next one.

A reader may not write beside the store. It keeps this in a directory of its own, as git keeps its
index of a work tree: a cache, which may be deleted at any time. It is about a file that grows, so
it holds for the beginning that was read: the same file, in which the last bytes of that beginning
are still the same. Whatever was done to the bytes before them, a scan finds, which reads them all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from sys import byteorder
from zlib import crc32

import msgspec

from papyra.persistence.backends._files.block_index import Extent, SparseIndex, Totals
from papyra.persistence.backends._files.disk import Disk, read_file
from papyra.persistence.backends.store import MAX_SEQ

#: Bytes before the end of what was read that must still be the same.
_TAIL = 4096

_VERSION = 1
#: Seconds for which what is not written again is kept.
_KEPT_FOR = 30 * 86400.0


class CachedIndex(msgspec.Struct):
    """The beginning of a file, as it was read."""

    device: int
    inode: int
    #: bytes that were read, up to the end of a line
    end: int
    tail_crc: int
    #: as in `JournalFile`
    last_seq: int
    tail_seq: int
    damaged: bool
    counts: dict[str, int]
    sizes: dict[str, int]
    oldest: float
    newest: float
    block_bytes: int
    blocks: bytes
    version: int = _VERSION
    order: str = byteorder

    def index(self) -> SparseIndex:
        """Return the index. Raises `ValueError` if that can't be."""
        if not 0 <= self.tail_seq <= self.last_seq <= MAX_SEQ:
            raise ValueError(f"positions can't be {self.tail_seq} and {self.last_seq}")
        totals = Totals()
        totals.counts.update({content: self.counts[content] for content in totals.counts})
        totals.sizes.update({content: self.sizes[content] for content in totals.sizes})
        totals.oldest, totals.newest = self.oldest, self.newest
        extent = Extent(0, self.last_seq, self.end)
        return SparseIndex.load(self.blocks, totals, self.block_bytes, extent)


class IndexCache:
    """The cache in `directory` of the index of the file at `path`."""

    def __init__(self, disk: Disk, directory: Path, path: Path) -> None:
        self._disk = disk
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        self._path = directory.absolute() / f"{name}.recall"

    def read(self, fd: int) -> tuple[CachedIndex, SparseIndex] | None:
        """Return the cached index of the file that is open as `fd`; `None` if there is none."""
        unusable = (OSError, msgspec.DecodeError, ValueError, KeyError, OverflowError)
        with contextlib.suppress(*unusable, RecursionError):
            data = read_file(self._disk, self._path)
            if data[:8] != b"%08x" % crc32(data[8:]):
                return None
            known = msgspec.msgpack.decode(data[8:], type=CachedIndex)
            stat = self._disk.stat(fd)
            if (
                (known.version, known.order) == (_VERSION, byteorder)
                and (known.device, known.inode) == (stat.st_dev, stat.st_ino)
                and 0 <= known.end <= stat.st_size
                and known.tail_crc == self._tail_crc(fd, known.end)
            ):
                return known, known.index()
        return None

    def write(
        self, fd: int, index: SparseIndex, end: int, last_seq: int, tail_seq: int, *, damaged: bool
    ) -> None:
        """Keep the index of a file, if that can be done."""
        with contextlib.suppress(OSError):
            stat = self._disk.stat(fd)
            known = CachedIndex(
                device=stat.st_dev,
                inode=stat.st_ino,
                end=end,
                tail_crc=self._tail_crc(fd, end),
                last_seq=last_seq,
                tail_seq=tail_seq,
                damaged=damaged,
                counts={str(content): count for content, count in index.counts.items()},
                sizes={str(content): size for content, size in index.sizes.items()},
                oldest=index.oldest,
                newest=index.newest,
                block_bytes=index.block_bytes,
                blocks=index.dump(),
            )
            data = msgspec.msgpack.encode(known)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another reader may be doing the same.
            temporary = self._path.with_suffix(f".{os.getpid()}")
            self._disk.remove(temporary)
            with open(self._disk.create(temporary), "wb") as file:
                file.write(b"%08x%b" % (crc32(data), data))
            temporary.replace(self._path)
            self._forget_old()

    def _forget_old(self) -> None:
        """Remove indexes that nobody has kept for long."""
        for path in self._path.parent.glob("*.recall"):
            if time.time() - path.stat().st_mtime > _KEPT_FOR:
                path.unlink()

    def _tail_crc(self, fd: int, end: int) -> int:
        start = max(0, end - _TAIL)
        return crc32(self._disk.read(fd, end - start, start))
