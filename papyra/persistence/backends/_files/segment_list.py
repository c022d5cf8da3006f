"""The list of segments: those in a directory that count, and the few that are kept open."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from papyra.persistence.backends._files.close_mark import CloseMark
from papyra.persistence.backends._files.disk import Disk, is_regular
from papyra.persistence.backends._files.index_cache import IndexCache
from papyra.persistence.backends._files.location import Place
from papyra.persistence.backends._files.scan import Advance
from papyra.persistence.backends._files.segment import Segment
from papyra.persistence.backends._files.segment_directory import Leftovers, SegmentDirectory

#: How many sealed segments are kept open, with their indexes.
_LOADED = 8


class SegmentList:
    """The segments of a journal, in order. The last of them is written to."""

    def __init__(
        self, place: Place, disk: Disk, *, read_only: bool, index_directory: Path | None
    ) -> None:
        self.directory = SegmentDirectory(place, disk)
        self.leftovers = Leftovers(disk)
        #: of the last clean close, which new objects for segments are given
        self.close_mark: CloseMark | None = None
        #: whether a segment followed the last one, and is not there any more
        self.end_is_missing = False
        self._name = place.name
        self._disk = disk
        self._read_only = read_only
        self._index_directory = index_directory if read_only else None
        self._segments: list[Segment] = []
        #: sealed segments that are open, or whose index is in memory, the one used last at the end
        self._loaded: list[Segment] = []
        #: for a reader: which files the segments were when they were listed
        self._listed: list[tuple[int, ...]] = []

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def last(self) -> Segment:
        """The segment that is written to. There is one in every journal that was written."""
        return self._segments[-1]

    @property
    def is_last_empty(self) -> bool:
        """Whether the next segment would have the name of the last."""
        return self.last.last_seq == self.last.base

    def new(self, base: int) -> Segment:
        """Return a segment that follows record `base`, which is not opened yet."""
        path, index_cache = self.directory.path_of(base), None
        if self._index_directory is not None:
            index_cache = IndexCache(self._disk, self._index_directory, path)
        segment = Segment(
            path,
            self._disk,
            base,
            read_only=self._read_only,
            index_cache=index_cache,
            name=self._name / path.name,
        )
        segment.close_mark = self.close_mark
        return segment

    def append(self, begun: Sequence[Segment]) -> None:
        """Append segments, each of which seals the one before."""
        for segment, next_one in zip((self.last, *begun), begun, strict=False):
            segment.seal(next_one.base)
        self._segments = [*self._segments, *begun]

    def replace(self, run: Sequence[Segment], stone: Segment) -> None:
        """Replace segments that follow one another by the tombstone that stands for them."""
        position = self._segments.index(run[0])
        self._segments[position : position + len(run)] = [stone]
        self._loaded = [segment for segment in self._loaded if segment not in run]

    # Listing

    def open(self, advance: Advance | None = None) -> None:
        """List the segments, remove what is left over, and open the last one.

        For a writer, there is one then.
        """
        self.leftovers.clear()
        self._loaded = []
        self.directory.open()
        self._segments = self._list()
        if not self._read_only:
            self.leftovers.remove()
            if not self._segments:
                self._segments.append(self.new(0))
        if self._segments:
            self.last.open(advance)
            self.close_mark = self.last.close_mark
            self.end_is_missing = self._lacks_its_end()

    def refresh(self) -> None:
        """List the segments again, as another process may have written since."""
        self.leftovers.clear()
        known = {segment.base: segment for segment in self._segments}
        listed = dict(zip(known, self._listed, strict=False))
        self._segments = self._list()
        for number, (segment, now) in enumerate(zip(self._segments, self._listed, strict=True)):
            old = known.pop(segment.base, None)
            # A sealed segment that has been read is what it was, unless it was rewritten.
            is_same = segment.through is not None and now == listed.get(segment.base)
            if old is not None and old.through == segment.through and (old.is_loaded or is_same):
                if old.is_loaded:
                    old.refresh()
                self._segments[number] = old
            elif old is not None:
                old.unload()
        for gone in known.values():
            gone.unload()
        self._loaded = [segment for segment in self._segments[:-1] if segment.is_open]
        if self._segments and not self.last.is_loaded:
            self.last.open()
        self.end_is_missing = bool(self._segments) and self._lacks_its_end()

    def _lacks_its_end(self) -> bool:
        # A writer may have sealed it since the directory was listed: then another one is there.
        is_sealed = is_regular(self.last.index_path)
        return is_sealed and not self.directory.has_segment_after(self.last.base)

    def _list(self) -> list[Segment]:
        """Return the segments that are there; what a tombstone stands for is left over."""
        bases, unfinished = self.directory.bases()
        self.leftovers.add(*unfinished)
        found = [self.new(base) for base in bases]
        # Before any of them is looked into: what is replaced later is another one.
        identities = self._identities(found) if self._read_only else []
        segments = self._without_covered(found)
        listed = dict(zip(bases, identities, strict=False))
        self._listed = [listed[segment.base] for segment in segments] if listed else []
        return segments

    def _without_covered(self, found: Sequence[Segment]) -> list[Segment]:
        """Return the segments for which no tombstone stands, each sealed by the next."""
        segments: list[Segment] = []
        covered, covered_at = 0, 0
        self.directory.put_back = []
        for segment in found:
            if segment.base < covered:
                # What a tombstone stands for was to be removed, and maybe that did not come to its
                # end. But if somebody has put it there since, it is not ours to remove.
                if segment.path.stat().st_ctime_ns > covered_at:
                    self.directory.put_back.append(segment.path)
                else:
                    self.leftovers.add(segment.index_path, segment.path)
                continue
            if segments:
                segments[-1].seal(segment.base)
            segments.append(segment)
            # Another one follows those that it stands for; or it says what can't be.
            through = segment.covers_through()
            if 0 < through <= found[-1].base:
                covered, covered_at = through, segment.path.stat().st_ctime_ns
        return segments

    def raise_if_rewritten(self) -> None:
        """Raise `FileNotFoundError` if segments were replaced or removed since they were listed.

        What was read then is of two states of the store. New segments may have followed.
        """
        if self._identities(self._segments) != self._listed:
            path = str(self.directory.path)
            raise FileNotFoundError(
                errno.ENOENT, "segments are rewritten while they are read", path
            )

    @staticmethod
    def _identities(segments: Sequence[Segment]) -> list[tuple[int, ...]]:
        """Return which files segments are, and when those that are sealed were changed."""
        stats = [segment.path.stat() for segment in segments]
        sealed = [(stat.st_ino, stat.st_mtime_ns) for stat in stats[:-1]]
        return [*sealed, *((stat.st_ino,) for stat in stats[-1:])]

    # Reading

    def files(self, *, newest: bool) -> Iterator[Segment]:
        """Yield the segments. Whoever looks into one opens it; some are kept open."""
        for segment in reversed(self._segments) if newest else list(self._segments):
            try:
                yield segment
            finally:
                self.was_read(segment)

    def was_read(self, segment: Segment) -> None:
        """Unload the sealed segment that was read longest ago, if many are open."""
        if segment.through is None or not segment.is_open:
            return
        if segment in self._loaded:
            self._loaded.remove(segment)
        self._loaded.append(segment)
        while len(self._loaded) > _LOADED:
            self._loaded.pop(0).unload()
