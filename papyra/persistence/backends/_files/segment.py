"""One segment of a journal: a file that is sealed when another follows it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from time import time

from papyra.persistence.backends._files.actor_index import ActorIndex
from papyra.persistence.backends._files.block_index import Extent, SparseIndex, Totals
from papyra.persistence.backends._files.disk import Disk, is_regular, write_whole
from papyra.persistence.backends._files.file_index import FileIndex
from papyra.persistence.backends._files.index_cache import IndexCache
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import Line, parse_lines, tombstone
from papyra.persistence.backends._files.location import printable
from papyra.persistence.backends._files.saved_index import (
    SavedIndex,
    is_without_histories,
    read_saved_index,
    write_saved_index,
)
from papyra.persistence.backends._files.scan import Advance, ScanResult
from papyra.persistence.reports import PersistenceAnomaly

#: No tombstone is longer.
_TOMBSTONE_BYTES = 200
#: Seconds in which a writer that has changed a segment has saved its index.
_WRITTEN_NOW = 2.0


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
        #: the lines of histories, once it is sealed and somebody has asked; 8 bytes for each. They
        #: stay when it is unloaded: who looks for a history looks into all segments
        self._sealed_histories: ActorIndex | None = None
        #: size and time of the file that they are of
        self._sealed_as = (0, 0)

    @property
    def index_path(self) -> Path:
        """The file that its index is saved in."""
        return self.path.with_suffix(".index")

    def totals(self) -> Totals:
        """Return its totals, without reading it if its index is saved."""
        saved = self._saved_index()
        return self.index if saved is None else saved.totals

    def known_totals(self) -> Totals | None:
        """Return its totals; as `JournalFile` does."""
        saved = self._saved_index()
        return super().known_totals() if saved is None else saved.totals

    def _saved_index(self) -> SavedIndex | None:
        """Return its saved index, if there is one that matches it."""
        if self.through is None or self.is_loaded:
            return None
        if self._saved is None:
            self._saved = read_saved_index(self.disk, self.index_path)
        if self._saved is not None and not self._saved.matches(self.path.stat()):
            self._saved = None
        return self._saved

    def step_offsets(self, actor: str) -> Sequence[int]:
        """Return where lines begin that may be part of the history of an actor."""
        if self.through is None:
            return super().step_offsets(actor)
        if self._sealed_histories is None:
            self._sealed_histories = self._saved_histories() or self._read_histories()
            self._sealed_as = _size_and_time(self.path.stat())
        return self._sealed_histories.offsets(actor)

    def _find_end(self) -> None:
        """Have the file open; its index is not needed to read lines that begin at known places."""
        if self._sealed_histories is None or self.is_loaded:
            super()._find_end()
            return
        stat = self.handle.stat()
        if _size_and_time(stat) == self._sealed_as:
            self._tail.end = stat.st_size
        else:
            self.close()
            super()._find_end()

    def scan(self, found: ScanResult, advance: Advance | None = None) -> None:
        """Check every line, and the index that is saved beside it, if there is one."""
        if self.through is None or not is_regular(self.index_path):
            super().scan(found, advance)
            return
        known, contents = len(found.anomalies), FileIndex()
        contents.start(SparseIndex(), ActorIndex())
        for part in self.scan_parts(found, advance):
            contents.add(part, found.tail_seq)
        # That of a damaged segment, or of one that was cut off, is of what it was before.
        is_sound = len(found.anomalies) == known and found.last_seq == self.through
        if is_sound and (fault := self._fault_of_index(contents)):
            detail = f"the index of this segment {fault}; nothing is lost with it but time"
            found.anomalies.append(PersistenceAnomaly("index", detail, self.index_location))

    def _fault_of_index(self, contents: FileIndex) -> str | None:
        """Return what is wrong with the saved index; a reader lets go what is being written now."""
        try:
            stat = self.path.stat()
            newest = max(stat.st_mtime, self.index_path.stat().st_mtime)
        except FileNotFoundError:
            return None  # removed just now
        if self.read_only and abs(time() - newest) < _WRITTEN_NOW:
            return None
        saved = read_saved_index(self.disk, self.index_path)
        if saved is None:
            is_older = is_without_histories(self.disk, self.index_path)
            return None if is_older else "can't be read"
        if not saved.matches(stat):
            return "is of a file of another size or time"
        histories = contents.histories
        assert histories is not None
        extent = Extent(self.base, self.through or 0, stat.st_size)
        return saved.fault(self.disk, contents.blocks, histories, extent)

    @property
    def index_location(self) -> str:
        """The path of its saved index, as reports name it."""
        return printable(self.name.with_suffix(".index"))

    def save_index_anew(self) -> None:
        """Remove the saved index, and make another from the lines."""
        self.unload()
        self._sealed_histories = None
        self.disk.remove(self.index_path)
        self.open()
        self.unload()

    def _saved_histories(self) -> ActorIndex | None:
        saved = self._saved or read_saved_index(self.disk, self.index_path)
        if saved is None or not saved.matches(self.path.stat()):
            return None
        return saved.histories(self.disk)

    def _read_histories(self) -> ActorIndex:
        super().step_offsets("")
        histories = self._index.histories
        assert histories is not None
        self.save_index()
        return histories

    def replace_with(self, fd: int, blocks: SparseIndex, end: int) -> None:
        """Replace the file; as `JournalFile` does."""
        self._sealed_histories = None
        self.disk.remove(self.index_path)  # which a crash would leave as a wrong one
        super().replace_with(fd, blocks, end)

    def reopen(self) -> None:
        """Open the file anew; as `JournalFile` does."""
        self._sealed_histories = None
        super().reopen()

    def unseal(self) -> None:
        """Note that no other file follows, after all."""
        self._sealed_histories = None
        super().unseal()

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
                index, histories = self.index, self._index.histories
                write_saved_index(self.disk, self.index_path, index, histories, stat)

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
        self.disk.remove(self.index_path)
        is_there, stone = is_regular(self.path), tombstone(through, self.base)
        about = self.disk.stat(self.path if is_there else other.path)
        write_whole(self.disk, self.path, stone, about, syncs=True, copy=is_there)
        self.seal(through)


def _size_and_time(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
