"""A journal of many files, one after the other, in one directory."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from papyra.exceptions import StoreMoved
from papyra.persistence.backends._files.block_index import Totals
from papyra.persistence.backends._files.close_mark import Closed
from papyra.persistence.backends._files.compaction import Hidden, drop_hidden, is_hidden, is_visible
from papyra.persistence.backends._files.disk import Disk, identity, is_regular
from papyra.persistence.backends._files.index_cache import Recall
from papyra.persistence.backends._files.journal import Mended, Told
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import Line, head_length, parse_lines, tombstone
from papyra.persistence.backends._files.location import Place, printable
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends._files.quarantine import (
    quarantine,
    quarantine_directory,
    quarantine_name,
)
from papyra.persistence.backends._files.repair import repair
from papyra.persistence.backends._files.saved_index import Sidecar, read_sidecar, write_sidecar
from papyra.persistence.backends._files.scan import Advance, ScanResult
from papyra.persistence.backends.store import MAX_SEQ, Batch
from papyra.persistence.records import Kind, Record
from papyra.persistence.reports import PersistenceAnomaly, PersistenceRecoveryConfig

__all__ = ("SegmentLimits", "Segments")

# A position has 14 digits at most.
_NAME = re.compile(r"(?!0{20})(0{6}\d{14})\.(ndjson|ndjson\.new|index)", re.ASCII)
#: No tombstone is longer.
_TOMBSTONE_BYTES = 200
#: How many sealed segments are kept open, with their indexes.
_LOADED = 8


@dataclass(frozen=True)
class SegmentLimits:
    """When a segment is full. One record is taken by any."""

    max_bytes: int
    max_records: int | None
    #: seconds between the oldest record and the newest
    max_age: float | None


class Segment(JournalFile):
    """One of the files. It is sealed when another follows it, and does not change then."""

    _about: Sidecar | None = None

    def _find(self) -> Path:
        # What is a link is none of the segments.
        return self.path

    def _check_links(self) -> None:
        """Let others have the file: it is the directory that the store goes by."""

    @property
    def sidecar(self) -> Path:
        """The file that says what is in this one."""
        return self.path.with_suffix(".index")

    def totals(self) -> Totals:
        """Return what it holds, without reading it if that is written down."""
        about = self._known()
        return self.index if about is None else about.totals

    def _known(self) -> Sidecar | None:
        """Return what is written down about it, if that is true."""
        if self.through is None or self._index is not None:
            return None
        if self._about is None:
            self._about = read_sidecar(self.disk, self.sidecar)
        if self._about is not None and not self._about.matches(self.path.stat()):
            self._about = None
        return self._about

    def _read_through(self, advance: Advance | None = None) -> None:
        about = self._known()
        through = self.through or 0
        self._index = None if about is None else about.index(self.disk, self.base, through)
        if about is None or self._index is None:
            super()._read_through(advance)
            self.write_down()
        elif self.through is not None:
            self.end = self._synced_end = about.size
            self.last_seq = self._tail_seq = self.through
            self._clean = self._trusted = True
            self._note_seen(self.disk.stat(self.fd))

    def write_down(self) -> None:
        """Keep what it holds beside it, if it is sealed and sound, and if that can be done."""
        if self.through is None or self.read_only or self.damaged:
            return
        with contextlib.suppress(OSError):
            stat = self.disk.stat(self.fd)
            if stat.st_size == self.end:
                write_sidecar(self.disk, self.sidecar, self.index, stat)

    def begin(self, like: Segment) -> None:
        """Make it, and open it, after one that gives it owner and mode."""
        like.check_name()
        # One that had this name may have been removed, and what was saved of it be left.
        self.disk.remove(self.sidecar)
        self.create(self.disk.stat(like.fd))
        self._read_through()

    @property
    def is_loaded(self) -> bool:
        """Whether its index is in memory."""
        return self._index is not None

    def unload(self) -> None:
        """Close it, and forget what can be had again."""
        with contextlib.suppress(OSError):
            self.close()
        self._index = self._about = None
        self._unindexed, self._unindexed_records = [], 0

    def lost_lines(self) -> bool:
        """Return whether it is known to have been longer."""
        about = read_sidecar(self.disk, self.sidecar)
        return about is not None and about.size > self.path.stat().st_size


class Segments:
    """A journal in files that follow one another. The last of them is written to."""

    def __init__(
        self,
        path: Path | Place,
        limits: SegmentLimits,
        *,
        read_only: bool = False,
        index_directory: Path | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.place = Place(path)
        self.path = self.place.path
        self.disk = disk or Disk()
        self.read_only = read_only
        self.closed: Closed | None = None
        self._index_directory = index_directory if read_only else None
        self._limits = limits
        self._segments: list[Segment] = []
        #: sealed segments whose index is in memory, the one used last at the end
        self._loaded: list[Segment] = []
        #: files that count for nothing, and are removed before anything is written
        self._leftovers: list[Path] = []
        #: segments that a compaction had removed, and somebody has put there again
        self._put_back: list[Path] = []
        self._records_in_last = 0
        #: which directory it is, whatever its name leads to by now
        self._identity = (0, 0)
        self._told = Told()
        #: for a reader: which files the segments were when they were listed
        self._listed: list[tuple[int, ...]] = []
        #: whether a segment followed the last one, and is not there any more
        self._end_is_missing = False

    @property
    def last_seq(self) -> int:
        """The greatest `seq` that was given."""
        return self._segments[-1].last_seq if self._segments else 0

    def lock(self) -> FileLock:
        """Return the lock: a file in the directory."""
        return FileLock(self.path / ".lock", self.path, directory=self.path)

    # Opening and closing

    def prepare(self) -> None:
        """Make the directory, if there is none."""
        real = Path(os.path.realpath(self.path))  # where a link leads, which may be nowhere yet
        if self.disk.make_directory(real):
            self.disk.sync_directory(real.parent)

    def open(self, advance: Advance | None = None) -> None:
        """Look what there is, finish what was begun, and open the last segment."""
        self._leftovers, self._loaded = [], []
        self._identity = identity(self.disk.stat(self.path))
        self._segments = self._found_segments()
        if not self.read_only:
            for path in self._leftovers:
                self.disk.remove(path)
            self._leftovers = []
            if not self._segments:
                self._segments.append(self._segment(0))
        if self._segments:
            last = self._segments[-1]
            last.open(advance)
            self.closed = last.closed
            self._records_in_last = last.index.records
            self._end_is_missing = self._lacks_its_end()

    def _lacks_its_end(self) -> bool:
        """Return whether a segment followed the last one, and is not there any more."""
        last = self._segments[-1]
        if not is_regular(last.sidecar):
            return False
        # A writer may have sealed it since the directory was listed: then another one is there.
        return not any(
            base > last.base and kind == "ndjson"
            for base, kind in filter(None, map(self._parse, self.disk.list(self.path)))
        )

    def _parse(self, name: str) -> tuple[int, str] | None:
        """Return base and kind of one of the journal's files; `None` for what is foreign."""
        match = _NAME.fullmatch(name)
        if match is None or not 0 < int(match[1]) <= MAX_SEQ or not is_regular(self.path / name):
            return None
        return int(match[1]) - 1, match[2]

    def _segment(self, base: int) -> Segment:
        path = self.path / f"{base + 1:020}.ndjson"
        recall = None
        if self._index_directory is not None:
            recall = Recall(self.disk, self._index_directory, path)
        name = self.place.name / path.name
        disk, read_only = self.disk, self.read_only
        segment = Segment(path, disk, base, read_only=read_only, recall=recall, name=name)
        segment.closed = self.closed
        return segment

    def _found_segments(self) -> list[Segment]:
        bases = []
        for name in self.disk.list(self.path):
            base, kind = self._parse(name) or (0, "foreign")
            if kind == "ndjson":
                bases.append(base)
            elif kind == "ndjson.new":
                self._leftovers.append(self.path / name)
        found = [self._segment(base) for base in bases]
        # Before any of them is looked into: what is replaced later is another one.
        identities = self._identities(found) if self.read_only else []
        segments: list[Segment] = []
        buried, buried_at = 0, 0
        self._put_back = []
        for base, segment in zip(bases, found, strict=True):
            if base < buried:
                # What a tombstone stands for was to be removed, and maybe that did not come to its
                # end. But if somebody has put it there since, it is not ours to remove.
                if segment.path.stat().st_ctime_ns > buried_at:
                    self._put_back.append(segment.path)
                else:
                    self._leftovers += [segment.sidecar, segment.path]
                continue
            if segments:
                segments[-1].through = base
            segments.append(segment)
            # Another one follows those that it stands for; or it says what can't be.
            through = _buried_by(segment)
            if 0 < through <= bases[-1]:
                buried, buried_at = through, segment.path.stat().st_ctime_ns
        listed = dict(zip(bases, identities, strict=False))
        self._listed = [listed[segment.base] for segment in segments] if listed else []
        return segments

    def refresh(self) -> None:
        """Take in what another process has written since."""
        self._leftovers = []
        known = {segment.base: segment for segment in self._segments}
        self._segments = self._found_segments()
        for number, segment in enumerate(self._segments):
            old = known.pop(segment.base, None)
            # A sealed segment that has been read is what it was, unless it was rewritten.
            if old is not None and old.is_loaded and old.through == segment.through:
                old.refresh()
                self._segments[number] = old
            elif old is not None:
                old.unload()
        for gone in known.values():
            gone.unload()
        self._loaded = [segment for segment in self._segments[:-1] if segment.is_loaded]
        if self._segments and not self._segments[-1].is_loaded:
            self._segments[-1].open()
        self._end_is_missing = bool(self._segments) and self._lacks_its_end()

    def raise_if_rewritten(self) -> None:
        """Raise `FileNotFoundError` if segments were replaced or removed since they were listed.

        What was read then is of two states of the store. New segments may have followed.
        """
        if self._identities(self._segments) != self._listed:
            raise FileNotFoundError(
                errno.ENOENT, "segments are rewritten while they are read", str(self.path)
            )

    @staticmethod
    def _identities(segments: Sequence[Segment]) -> list[tuple[int, ...]]:
        """Return which files segments are, and when those that are sealed were changed."""
        stats = [segment.path.stat() for segment in segments]
        sealed = [(stat.st_ino, stat.st_mtime_ns) for stat in stats[:-1]]
        return [*sealed, *((stat.st_ino,) for stat in stats[-1:])]

    def vouch(self) -> Closed | None:
        """Return how far the last segment is acknowledged and on the device."""
        return self._segments[-1].vouch() if self._segments else None

    def close(self) -> None:
        """Close everything that is open."""
        for segment in self._segments:
            segment.leave()
            segment.close()

    # Writing

    def append(self, batch: Batch, take_token: Callable[[], None], *, sync: bool) -> None:
        """Write lines, into a new segment where one is full.

        A segment is synced before another one follows it.
        """
        first_seq, records, encoded = batch.first_seq, batch.records, batch.encoded
        self._remove_leftovers()
        told = self._told.before(batch, self.last_seq)
        segments = self._segments
        last = segment = segments[-1]
        last.keep()
        begun: list[Segment] = []
        in_last = self._records_in_last
        try:
            for start, stop, is_new in self._parts(records, encoded):
                if is_new:
                    if not start:
                        segment.tidy()
                    segment.settle()
                    # Nothing is missing where a batch begins later than the one before it ended.
                    like = segment
                    segment = self._segment(first_seq + start - 1 if start else self.last_seq)
                    begun.append(segment)
                    segment.begin(like)
                    in_last = 0
                more_follows = stop < len(records)
                segment.write(
                    first_seq + start,
                    records[start:stop],
                    encoded[start:stop],
                    told=told,
                    sync=sync or more_follows,
                )
                in_last += stop - start
            following = [*segments, *begun] if begun else segments
            take_token()
            for part in (last, *begun):
                part.accept()
            for before, after in zip((last, *begun), begun, strict=False):
                before.through = after.base
            self._records_in_last, self._segments = in_last, following
        except BaseException:
            self._segments, last.through = segments, None
            self._take_back(last, begun)
            raise
        if begun:
            self._end_is_missing = False
            with contextlib.suppress(MemoryError):  # it is stored, and the rest can be done later
                self._write_down(last, *begun[:-1])

    def _write_down(self, *sealed: Segment) -> None:
        for segment in sealed:
            segment.write_down()
            segment.unload()

    def _take_back(self, last: Segment, begun: Sequence[Segment]) -> None:
        """Let nothing be left of what an append has written, as far as that can be had."""
        for unused in begun:
            unused.unload()
        # The newest first: what is left of them always follows upon what was there before.
        self._leftovers = [unused.path for unused in reversed(begun) if unused.is_made]
        with contextlib.suppress(OSError):
            self._hide_leftovers()
            if begun:
                self.disk.sync_directory(self.path)
        last.discard(cut=all(path.suffix == ".new" for path in self._leftovers))

    def _parts(
        self, records: Sequence[Record], encoded: Sequence[bytes]
    ) -> Iterator[tuple[int, int, bool]]:
        """Yield what goes together: from where, to where, and whether into a new segment."""
        limits, last = self._limits, self._segments[-1]
        size, count = last.end, self._records_in_last
        head = head_length(self.last_seq + len(records), len(records) - 1)
        is_new = self._end_is_missing and not self._is_last_empty()
        if (
            limits.max_age is None
            and size + sum(map(len, encoded)) + head * len(records) <= limits.max_bytes
            and (limits.max_records is None or count + len(records) <= limits.max_records)
        ):
            yield 0, len(records), is_new
            return
        oldest, newest = last.index.oldest, last.index.newest
        start = 0
        for position, (record, data) in enumerate(zip(records, encoded, strict=True)):
            time = record.timestamp
            oldest, newest = min(oldest, time), max(newest, time)
            size += len(data) + head
            count += 1
            if size > len(data) + head and (
                size > limits.max_bytes
                or (limits.max_records is not None and count > limits.max_records)
                or (limits.max_age is not None and newest - oldest > limits.max_age)
            ):
                if position > start:
                    yield start, position, is_new
                start, is_new = position, True
                size, count, oldest, newest = len(data) + head, 1, time, time
        yield start, len(records), is_new

    def _hide_leftovers(self) -> None:
        """Remove what counts for nothing, or give it a name that says so."""
        left = []
        for path in self._leftovers:
            try:
                self.disk.remove(path)
            except OSError:
                if path.exists():  # or it had not been made yet
                    hidden = path.with_name(path.name + ".new")
                    self.disk.replace(path, hidden)
                    left.append(hidden)
        self._leftovers = left

    def _remove_leftovers(self) -> None:
        while self._leftovers:
            self.disk.remove(self._leftovers[0])
            del self._leftovers[0]

    def sync(self) -> None:
        """Return when everything is on the device; of the sealed segments it is."""
        self._segments[-1].sync()

    def sync_in_background(self) -> None:
        """Sync what was not yet."""
        self._segments[-1].sync_in_background()

    # Reading

    def files(self, *, newest: bool) -> Iterator[Segment]:
        """Yield the segments. Whoever looks into one opens it; some are kept open."""
        for segment in reversed(self._segments) if newest else list(self._segments):
            try:
                yield segment
            finally:
                self._was_used(segment)

    def _was_used(self, segment: Segment) -> None:
        if segment.through is None or not segment.is_loaded:
            return
        if segment in self._loaded:
            self._loaded.remove(segment)
        self._loaded.append(segment)
        while len(self._loaded) > _LOADED:
            self._loaded.pop(0).unload()

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self._segments)

    def is_damaged(self) -> bool:
        """Return whether damage has been seen by now."""
        return self._end_is_missing or any(segment.damaged for segment in self._segments)

    def size(self) -> int:
        """Return the bytes of all segments that are there."""
        size = 0
        for segment in self._segments:
            with contextlib.suppress(FileNotFoundError):
                size += segment.path.stat().st_size
        return size

    # Checking and mending

    def scan(self, advance: Advance | None = None) -> ScanResult:
        """Check every line of every segment, and what else is in the directory; change nothing."""
        found = ScanResult()
        before: Segment | None = None
        for segment in self._segments:
            is_sealed = segment.through is not None
            if is_sealed and not self.read_only and not is_regular(segment.path):
                continue  # somebody has removed it, as the next one will say
            if segment.base > found.last_seq:
                _note_missing(found, segment, before)
            found.tail_seq = found.last_seq = segment.base
            segment.scan(found, advance)
            if segment.through is not None and not segment.is_loaded:
                segment.unload()
            before = segment
        if self._end_is_missing and before is not None:
            detail = f"the segment after record {before.last_seq} is not there"
            place = printable(self.place.name)
            found.anomalies.append(PersistenceAnomaly("missing_segment", detail, place))
        for path in self._foreign_files():
            found.anomalies.append(
                PersistenceAnomaly("foreign_file", self._why_foreign(path), self._named(path))
            )
        return found

    def check_name(self) -> None:
        """Raise `StoreMoved` if name of directory or last segment lead elsewhere by now."""
        if self.read_only:
            return
        self._check_directory()
        self._segments[-1].check_name()

    def _check_directory(self) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if identity(self.disk.stat(self.path)) == self._identity:
                return
        raise StoreMoved(
            f"{self.place.name} was renamed, removed or replaced while it was open: "
            "put it back, or open the store anew"
        )

    def _foreign_files(self) -> list[Path]:
        names = self.disk.list(self.path)
        foreign = [self.path / name for name in names if name[0] != "." and not self._parse(name)]
        # But for those that were removed just now, as a compaction does it.
        return list(filter(os.path.lexists, foreign)) + self._put_back

    def _why_foreign(self, path: Path) -> str:
        if path in self._put_back:
            return "a compaction has removed the records of this segment"
        if _NAME.fullmatch(path.name) and not is_regular(path):
            return "this has the name of a segment, and is a link or no file at all"
        return "this is no file of a Papyra journal"

    def _named(self, path: Path) -> str:
        """Return how reports call something in the directory, whatever bytes its name is of."""
        return printable(self.place.name / path.name)

    def recover(self, config: PersistenceRecoveryConfig) -> Mended:
        """Rewrite the segments that are damaged, and stand tombstones for those that are gone.

        Foreign files stay where they are, unless there is a quarantine to move them to.
        """
        mended = Mended()
        found = self.scan()
        anomalies, mended_through = found.anomalies, set[int | None]()
        place = quarantine_directory(config, Path(os.path.realpath(self.path)).parent)
        aside = quarantine_name(self.path, place)
        by_place: dict[str | None, list[PersistenceAnomaly]] = {}
        for anomaly in anomalies:
            by_place.setdefault(anomaly.location, []).append(anomaly)
        for segment in self._segments:
            here = by_place.get(segment.location, [])
            # A line of another segment is not kept in this one, but it is not thrown away either.
            strays = any(a.seq is not None and not segment.belongs(a.seq) for a in here)
            if here and (strays or config.mode == "quarantine"):
                self._make_aside(aside, mended)
                mended.moved.append(quarantine(segment, aside / segment.path.name))
            if here:
                mended.removed += repair(segment)
                mended_through.add(segment.through)
                segment.unload()
        for after, through in found.missing:
            if through not in mended_through:
                self._write_tombstone(after, through)
        if self._end_is_missing and self._is_last_empty():
            self.disk.remove(self._segments[-1].sidecar)
        elif self._end_is_missing:
            next_one = self._segment(self.last_seq)
            next_one.begin(self._segments[-1])
            next_one.close()
        if config.mode == "quarantine":
            # Whatever is no file stays, as the `lost+found` of a file system does.
            for path in filter(is_regular, self._foreign_files()):
                self._make_aside(aside, mended)
                shutil.move(path, aside)
                mended.moved.append(str(aside / path.name))
        if anomalies:
            self.closed = self.vouch()
            self.close()
            self.open()
        return mended

    def _is_last_empty(self) -> bool:
        """Return whether the next segment would have the name of the last."""
        return self.last_seq == self._segments[-1].base

    def _make_aside(self, aside: Path, mended: Mended) -> None:
        if not mended.moved:
            self.disk.make_directory(aside, anew=True)

    def _write_tombstone(self, base: int, through: int) -> Segment:
        """Write a segment that stands for all between `base` and `through`."""
        segment, line = self._segment(base), tombstone(through, base)
        like = segment if is_regular(segment.path) else self._segments[-1]
        self._check_directory()
        self.disk.remove(segment.temporary)
        about = self.disk.stat(like.path)
        fd = self.disk.create(segment.temporary, about, copy=like is segment)
        try:
            self.disk.write(fd, line, 0)
            self.disk.sync(fd)
        finally:
            self.disk.close(fd)
        self.disk.replace(segment.temporary, segment.path)
        self.disk.sync_directory(self.path)
        segment.through = through
        return segment

    # Compaction

    def drop_hidden(self, hidden: Mapping[Kind, Hidden]) -> None:
        """Remove segments in which all is hidden, and rewrite those in which some is."""
        self._remove_leftovers()
        run: list[Segment] = []
        for segment in self.files(newest=False):
            if segment.through is not None and is_hidden(segment.totals(), segment.through, hidden):
                run.append(segment)
                continue
            self._bury(run)
            run = []
            if not is_visible(segment.totals(), segment.base, hidden):
                drop_hidden(segment, hidden)
                self._was_rewritten(segment)
        self._bury(run)

    def _was_rewritten(self, segment: Segment) -> None:
        if segment is self._segments[-1]:
            self._records_in_last = segment.index.records
        else:
            segment.write_down()
            segment.unload()

    def _bury(self, run: Sequence[Segment]) -> None:
        """Put a tombstone in the place of segments that follow one another."""
        if not run or (len(run) == 1 and not run[0].totals().records):
            return  # which is one already
        first, through = run[0], run[-1].through
        assert through is not None
        self._leftovers = [first.sidecar]
        self._remove_leftovers()
        for segment in run:
            segment.unload()
        stone = self._write_tombstone(first.base, through)
        # From here on the others count for nothing, whether they are still there or not.
        position = self._segments.index(first)
        self._segments[position : position + len(run)] = [stone]
        self._loaded = [segment for segment in self._loaded if segment not in run]
        self._leftovers = [path for each in run[1:] for path in (each.sidecar, each.path)]
        self._remove_leftovers()


def _buried_by(segment: Segment) -> int:
    """Return up to where a segment that holds a tombstone alone stands for others; or 0."""
    if segment.path.stat().st_size <= _TOMBSTONE_BYTES:
        lines = list(parse_lines(segment.path.read_bytes(), 0, is_end=True))
        if len(lines) == 1 and isinstance(lines[0], Line) and lines[0].is_tombstone:
            return lines[0].seq
    return 0


def _note_missing(found: ScanResult, segment: Segment, before: Segment | None) -> None:
    """Say what is wrong where records are missing before a segment."""
    after = found.last_seq
    missing = f"{after + 1} to {segment.base}" if segment.base > after + 1 else segment.base
    if before is not None and before.lost_lines():
        detail = f"missing before record {segment.base + 1}: {missing}"
        found.anomalies.append(PersistenceAnomaly("gap", detail, before.location))
    else:
        detail, place = f"there is no segment with the records {missing}", segment.name.parent
        found.anomalies.append(PersistenceAnomaly("missing_segment", detail, printable(place)))
        found.missing.append((after, segment.base))
