"""A journal in segments: files that follow one another, in one directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from papyra.persistence.backends._files.close_mark import CloseMark
from papyra.persistence.backends._files.compaction import Hidden, drop_hidden, is_hidden, is_visible
from papyra.persistence.backends._files.disk import Disk, is_regular
from papyra.persistence.backends._files.journal import AcknowledgedSeq
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.location import Place, printable
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends._files.quarantine import (
    QuarantineDirectory,
    quarantine_directory,
    quarantine_name,
)
from papyra.persistence.backends._files.repair import RepairResult, repair
from papyra.persistence.backends._files.rotation import SegmentLimits, share_out
from papyra.persistence.backends._files.scan import Advance, ScanResult
from papyra.persistence.backends._files.segment import Segment
from papyra.persistence.backends._files.segment_list import SegmentList
from papyra.persistence.backends._files.trimming import Bases, trim
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import Kind
from papyra.persistence.reports import PersistenceAnomaly, PersistenceRecoveryConfig


class SegmentedJournal:
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
        self._limits = limits
        self._segments = SegmentList(
            self.place, self.disk, read_only=read_only, index_directory=index_directory
        )
        self._records_in_last = 0
        self._acknowledged = AcknowledgedSeq()

    @property
    def close_mark(self) -> CloseMark | None:
        """The mark of the last clean close, which opening forgets if it is not so any more."""
        return self._segments.close_mark

    @close_mark.setter
    def close_mark(self, mark: CloseMark | None) -> None:
        self._segments.close_mark = mark

    @property
    def last_seq(self) -> int:
        """The greatest `seq` that was given."""
        return self._segments.last.last_seq if self._segments else 0

    def lock(self) -> FileLock:
        """Return the lock: a file in the directory."""
        return FileLock(self.beside(".lock"), self.path, directory=self.path)

    def beside(self, suffix: str) -> Path:
        """Return the path of a hidden name in the directory."""
        return self.path / suffix

    # Opening and closing

    def prepare(self) -> None:
        """Make the directory, if there is none."""
        self._segments.directory.make()

    def open(self, advance: Advance | None = None) -> None:
        """List the segments, finish what was begun, and open the last of them."""
        self._segments.open(advance)
        if self._segments:
            self._records_in_last = self._segments.last.index.records

    def refresh(self) -> None:
        """Read on from where the last reading ended; for a reader."""
        self._segments.refresh()

    def raise_if_rewritten(self) -> None:
        """Raise `FileNotFoundError` if segments were replaced or removed since they were listed."""
        self._segments.raise_if_rewritten()

    def new_close_mark(self) -> CloseMark | None:
        """Return the mark that a clean close may leave, of the last segment."""
        return self._segments.last.new_close_mark() if self._segments else None

    def close(self) -> None:
        """Close everything that is open."""
        for segment in self._segments:
            segment.appender.truncate_failed_write()
            segment.close()

    # Appending

    def append(self, batch: Batch, take_token: Callable[[], None], *, sync: bool) -> None:
        """Write lines, into a new segment where one is full.

        A segment is synced before another one follows it.
        """
        self._segments.leftovers.remove()
        last, begun = self._segments.last, list[Segment]()
        last.appender.begin()
        try:
            in_last = self._write(batch, begun, sync=sync)
            take_token()
            for segment in (last, *begun):
                segment.commit()
            if begun:
                self._segments.append(begun)
            self._records_in_last = in_last
        except BaseException:
            last.unseal()
            self._roll_back(last, begun)
            raise
        if begun:
            self._segments.end_is_missing = False
            with contextlib.suppress(MemoryError):  # it is stored, and the rest can be done later
                self._save_indexes(last, *begun[:-1])

    def _write(self, batch: Batch, begun: list[Segment], *, sync: bool) -> int:
        """Write lines, noting the segments that are `begun`; return how many are in the last."""
        segment, in_last = self._segments.last, self._records_in_last
        acknowledged = self._acknowledged.before(batch, segment.last_seq)
        begins = self._segments.end_is_missing and not self._segments.is_last_empty
        for share in share_out(batch, self._limits, segment, in_last, begins=begins):
            start, stop = share.start, share.stop
            if share.begins:
                segment = self._begin_segment(segment, batch, start, begun)
                in_last = 0
            segment.appender.write(
                batch.first_seq + start,
                batch.records[start:stop],
                batch.encoded[start:stop],
                acknowledged=acknowledged,
                sync=sync or stop < len(batch.records),
            )
            in_last += stop - start
        return in_last

    def _begin_segment(
        self, last: Segment, batch: Batch, start: int, begun: list[Segment]
    ) -> Segment:
        """Begin a segment with a record of the batch, behind one that is on the device."""
        if not start:
            last.appender.truncate_uncommitted()
        last.appender.ensure_synced()
        # Nothing is missing where a batch begins later than the one before it ended.
        segment = self._segments.new(batch.first_seq + start - 1 if start else self.last_seq)
        begun.append(segment)
        segment.create_after(last)
        return segment

    def _save_indexes(self, *sealed: Segment) -> None:
        for segment in sealed:
            segment.save_index()
            segment.unload()

    def _roll_back(self, last: Segment, begun: Sequence[Segment]) -> None:
        """Let nothing be left of what an append has written, as far as that can be had."""
        for unused in begun:
            unused.unload()
        with contextlib.suppress(OSError):
            # The newest first: what is left of them always follows upon what was there before.
            made = [unused.path for unused in reversed(begun) if unused.handle.is_made]
            self._segments.leftovers.hide(made)
            if begun:
                self.disk.sync_directory(self.path)
        last.roll_back(truncate=self._segments.leftovers.are_hidden)

    def sync(self) -> None:
        """Return when everything is on the device; of the sealed segments it is."""
        self._segments.last.appender.sync()

    def sync_in_background(self) -> None:
        """Sync what was not yet."""
        self._segments.last.appender.sync_in_background()

    # Reading

    def files(self, *, newest: bool) -> Iterator[Segment]:
        """Yield the segments. Whoever looks into one opens it; some are kept open."""
        return self._segments.files(newest=newest)

    def was_read(self, file: JournalFile) -> None:
        """Close a segment that was read a while ago, if many are open."""
        if isinstance(file, Segment):
            self._segments.was_read(file)

    @property
    def segments(self) -> int:
        """The number of segments."""
        return len(self._segments)

    def is_damaged(self) -> bool:
        """Return whether damage has been seen by now."""
        return self._segments.end_is_missing or any(segment.damaged for segment in self._segments)

    def size(self) -> int:
        """Return the bytes of all segments that are there."""
        size = 0
        for segment in self._segments:
            with contextlib.suppress(FileNotFoundError):
                size += segment.path.stat().st_size
        return size

    def check_name(self) -> None:
        """Raise `StoreMoved` if name of directory or last segment lead elsewhere by now."""
        if not self.read_only:
            self._segments.directory.check_name()
            if self._segments:
                self._segments.last.handle.check_name()

    # Scanning and repair

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
            if is_sealed and not segment.is_loaded:
                segment.unload()
            before = segment
        if self._segments.end_is_missing and before is not None:
            detail = f"the segment after record {before.last_seq} is not there"
            place = printable(self.place.name)
            found.anomalies.append(PersistenceAnomaly("missing_segment", detail, place))
        found.anomalies += self._segments.directory.anomalies()
        return found

    def recover(self, config: PersistenceRecoveryConfig) -> RepairResult:
        """Rewrite the segments that are damaged, and stand tombstones for those that are gone.

        Foreign files stay where they are, unless there is a quarantine to move them to.
        """
        result, found = RepairResult(), self.scan()
        parent = quarantine_directory(config, Path(os.path.realpath(self.path)).parent)
        aside = QuarantineDirectory(self.disk, quarantine_name(self.path, parent), result)
        keeps_originals = config.mode == "quarantine"
        repaired = self._repair_segments(found, aside, result, keeps_originals=keeps_originals)
        for after, through in found.missing:
            if through not in repaired:
                self._write_tombstone(after, through)
        self._repair_end()
        wrong = {anomaly.location for anomaly in found.anomalies if anomaly.kind == "index"}
        for segment in self._segments:
            if segment.index_location in wrong or segment.through in repaired - {None}:
                segment.save_index_anew()
        if keeps_originals:
            # Whatever is no file stays, as the `lost+found` of a file system does.
            for path in filter(is_regular, self._segments.directory.foreign_files()):
                aside.move(path)
        if found.anomalies:
            self.close_mark = self.new_close_mark()
            self.close()
            self.open()
        return result

    def _repair_segments(
        self,
        found: ScanResult,
        aside: QuarantineDirectory,
        result: RepairResult,
        *,
        keeps_originals: bool,
    ) -> set[int | None]:
        """Repair the segments in which something was found; return their last positions."""
        by_place: dict[str | None, list[PersistenceAnomaly]] = {}
        for anomaly in found.anomalies:
            by_place.setdefault(anomaly.location, []).append(anomaly)
        damaged = [segment for segment in self._segments if segment.location in by_place]
        for segment in damaged:
            # A line of another segment is not kept in this one, but it is not thrown away either.
            seqs = [anomaly.seq for anomaly in by_place[segment.location]]
            if keeps_originals or not all(seq is None or segment.belongs(seq) for seq in seqs):
                aside.copy(segment)
            result.removed += repair(segment)
            segment.unload()
        return {segment.through for segment in damaged}

    def _repair_end(self) -> None:
        """Begin the segment again that followed the last one, if it is missing."""
        if self._segments.end_is_missing and self._segments.is_last_empty:
            self.disk.remove(self._segments.last.index_path)
        elif self._segments.end_is_missing:
            next_one = self._segments.new(self.last_seq)
            next_one.create_after(self._segments.last)
            next_one.close()

    def _write_tombstone(self, base: int, through: int) -> Segment:
        """Write a segment that stands for all between `base` and `through`."""
        segment = self._segments.new(base)
        self._segments.directory.check_name()
        segment.become_tombstone(through, self._segments.last)
        return segment

    # Compaction

    def drop_hidden(self, hidden: Mapping[Kind, Hidden]) -> int:
        """Drop segments in which all is hidden, and rewrite those in which some is."""
        self._segments.leftovers.remove()
        run: list[Segment] = []
        kept = 0
        for segment in self.files(newest=False):
            if segment.through is not None and is_hidden(segment.totals(), segment.through, hidden):
                run.append(segment)
                continue
            self._drop(run)
            run = []
            if not is_visible(segment.totals(), segment.base, hidden):
                kept += drop_hidden(segment, hidden)
                self._was_rewritten(segment)
        self._drop(run)
        return kept

    def trim(self, bases: Bases) -> None:
        """Rewrite segments with bases in them, the newest first.

        So a base is on the device before anything goes that only it stands for then.
        """
        self._segments.leftovers.remove()
        for segment in self.files(newest=True):
            if trim(segment, bases):
                self._was_rewritten(segment)

    def _was_rewritten(self, segment: Segment) -> None:
        if segment is self._segments.last:
            self._records_in_last = segment.index.records
        else:
            self._save_indexes(segment)

    def _drop(self, run: Sequence[Segment]) -> None:
        """Drop segments that follow one another, and put a tombstone in their place."""
        if not run or (len(run) == 1 and not run[0].totals().records):
            return  # which is one already
        first, through = run[0], run[-1].through
        assert through is not None
        self._segments.leftovers.add(first.index_path)
        self._segments.leftovers.remove()
        for segment in run:
            segment.unload()
        stone = self._write_tombstone(first.base, through)
        # From here on the others count for nothing, whether they are still there or not.
        self._segments.replace(run, stone)
        for segment in run[1:]:
            self._segments.leftovers.add(segment.index_path, segment.path)
        self._segments.leftovers.remove()


def _note_missing(found: ScanResult, segment: Segment, before: Segment | None) -> None:
    """Note which records are missing before a segment, and why."""
    after = found.last_seq
    missing = f"{after + 1} to {segment.base}" if segment.base > after + 1 else segment.base
    if before is not None and before.lost_lines():
        detail = f"missing before record {segment.base + 1}: {missing}"
        found.anomalies.append(PersistenceAnomaly("gap", detail, before.location))
    else:
        detail, place = f"there is no segment with the records {missing}", segment.name.parent
        found.anomalies.append(PersistenceAnomaly("missing_segment", detail, printable(place)))
        found.missing.append((after, segment.base))
