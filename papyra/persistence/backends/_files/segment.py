"""One segment of a journal: a file that is sealed when another follows it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from papyra.persistence.backends._files.block_index import Totals
from papyra.persistence.backends._files.disk import Disk, is_regular
from papyra.persistence.backends._files.index_cache import IndexCache
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import Line, parse_lines, tombstone
from papyra.persistence.backends._files.saved_index import (
    SavedIndex,
    read_saved_index,
    write_saved_index,
)
from papyra.persistence.backends._files.scan import Advance

__all__ = ("Segment",)

#: No tombstone is longer.
_TOMBSTONE_BYTES = 200


class Segment(JournalFile):
    """One of the files. Once it is sealed, only a recovery or a compaction changes it."""

    def __init__(
        self,
        path: Path,
        disk: Disk,
        base: int,
        *,
        read_only: bool,
        index_cache: IndexCache | None,
        name: Path,
    ) -> None:
        # A link is none of the segments.
        super().__init__(
            path,
            disk,
            base,
            read_only=read_only,
            index_cache=index_cache,
            name=name,
            follows_links=False,
        )
        self._saved: SavedIndex | None = None

    @property
    def index_path(self) -> Path:
        """The file that its index is saved in."""
        return self.path.with_suffix(".index")

    def totals(self) -> Totals:
        """Return its totals, without reading it if its index is saved."""
        saved = self._saved_index()
        return self.index if saved is None else saved.totals

    def _saved_index(self) -> SavedIndex | None:
        """Return its saved index, if there is one that matches it."""
        if self.through is None or self.is_loaded:
            return None
        if self._saved is None:
            self._saved = read_saved_index(self.disk, self.index_path)
        if self._saved is not None and not self._saved.matches(self.path.stat()):
            self._saved = None
        return self._saved

    def _read_through(self, advance: Advance | None = None) -> None:
        saved, through = self._saved_index(), self.through or 0
        blocks = None if saved is None else saved.index(self.disk, self.base, through)
        if saved is None or blocks is None:
            super()._read_through(advance)
            self.save_index()
            return
        self._index.start(blocks)
        tail = self._tail
        tail.end, tail.last_seq, tail.tail_seq = saved.size, through, through
        self._note_seen(self.handle.stat())

    def save_index(self) -> None:
        """Save its index beside it, if it is sealed and sound, and if that can be done."""
        if self.through is None or self.read_only or self.damaged:
            return
        with contextlib.suppress(OSError):
            stat = self.handle.stat()
            if stat.st_size == self.end:
                write_saved_index(self.disk, self.index_path, self.index, stat)

    def create_after(self, other: Segment) -> None:
        """Make it, and open it, after one that gives it owner and mode."""
        other.handle.check_name()
        # One that had this name may have been removed, and what was saved of it be left.
        self.disk.remove(self.index_path)
        self.handle.create(other.handle.stat())
        self._read_through()

    def unload(self) -> None:
        """Close it, and forget its index, which can be had again."""
        with contextlib.suppress(OSError):
            self.close()
        self._index.forget()
        self._saved = None

    def lost_lines(self) -> bool:
        """Return whether it is known to have been longer."""
        saved = read_saved_index(self.disk, self.index_path)
        return saved is not None and saved.size > self.path.stat().st_size

    # Tombstones

    def covers_through(self) -> int:
        """Return up to where it stands for others, as it holds nothing but a tombstone; or 0."""
        if self.path.stat().st_size <= _TOMBSTONE_BYTES:
            lines = list(parse_lines(self.path.read_bytes(), 0, is_end=True))
            if len(lines) == 1 and isinstance(lines[0], Line) and lines[0].is_tombstone:
                return lines[0].seq
        return 0

    def become_tombstone(self, through: int, other: Segment) -> None:
        """Hold nothing but a tombstone, which stands for all records up to `through`.

        If there is no such segment yet, it is made, and the `other` gives it owner and mode.
        """
        about = self.disk.stat(self.path if is_regular(self.path) else other.path)
        temporary, is_there = self.handle.temporary, is_regular(self.path)
        self.disk.remove(temporary)
        fd = self.disk.create(temporary, about, copy=is_there)
        try:
            self.disk.write(fd, tombstone(through, self.base), 0)
            self.disk.sync(fd)
        finally:
            self.disk.close(fd)
        self.disk.replace(temporary, self.path)
        self.disk.sync_directory(self.path.parent)
        self.seal(through)
