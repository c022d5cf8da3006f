"""Histories: the events of one actor in a journal, in the order of their revisions."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from papyra.persistence.backends._files.checked_spans import Span
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import seq_of
from papyra.persistence.backends.paging import (
    MAX_PAGE_BYTES,
    MAX_RUN_RECORDS,
    collect_history,
    records_wanted,
)
from papyra.persistence.messages import EncodedHistory, EncodedRun, HistoryPage, ReadHistory
from papyra.persistence.records import PersistedEvent, Record

#: A revision that no event has: greater than all.
_NONE = 2**63
#: Files that are read one after the other, from the last one backwards, before others are searched.
_LAST = 4
#: Lines that are looked up together.
_TOGETHER = 1024
#: Bytes for each line up to which there are likely no others in between.
_DENSE = 512


def read_history(journal: Journal, request: ReadHistory) -> HistoryPage:
    """Return a page of one actor's history."""
    return collect_history(request, _steps(journal, request.actor, request.after_revision))


def read_encoded_history(journal: Journal, request: ReadHistory) -> EncodedHistory | HistoryPage:
    """Return a page of one actor's history, as it is stored; see `EncodedHistories`."""
    wanted, last_seq, size = records_wanted(request), 0, 0
    runs: list[EncodedRun] = []
    for file, offsets, first in _lines_after(journal, request.actor, request.after_revision):
        start = first
        while start < len(offsets):
            is_full = not wanted or size >= MAX_PAGE_BYTES
            if is_full or (runs and _is_longer(file, offsets, start, wanted)):
                return EncodedHistory(tuple(runs), False, last_seq, True)
            run = _run_at(file, offsets, start, min(MAX_RUN_RECORDS, wanted), MAX_PAGE_BYTES - size)
            if run is None:
                return read_history(journal, request)
            runs.append(run)
            last_seq, size = seq_of(run.data[run.data.rfind(b"\n") + 1 :]), size + len(run.data)
            wanted, start = wanted - run.count, start + run.count
    return EncodedHistory(tuple(runs), False, last_seq, False)


def _run_at(
    file: JournalFile, offsets: Sequence[int], start: int, wanted: int, room: int
) -> EncodedRun | None:
    """Return the next lines of an actor, up to so many, or one that takes them to `room` bytes.

    Return `None` if one is not whole.
    """
    first = offsets[start]
    span = file.span_from(first)
    if span is not None and span.start == first and span.end - first <= room:
        is_own = span.lines <= wanted and _are_all(span, offsets, start)
        if is_own and (data := file.read_span(span)) is not None:
            return EncodedRun(data[:-1], span.lines)
    lines = file.whole_lines_at(_up_to(span, offsets[start : start + wanted]), room)
    return None if lines is None else EncodedRun(b"\n".join(lines), len(lines))


def _is_longer(file: JournalFile, offsets: Sequence[int], start: int, wanted: int) -> bool:
    """Return whether a span of the actor's comes next that is longer than what is wanted.

    The next page begins with it then: a part of it would be looked at line by line.
    """
    if wanted >= MAX_RUN_RECORDS:
        return False
    span = file.span_from(offsets[start])
    return (
        span is not None
        and span.start == offsets[start]
        and wanted < span.lines <= MAX_RUN_RECORDS
        and _are_all(span, offsets, start)
    )


def _are_all(span: Span, offsets: Sequence[int], start: int) -> bool:
    """Return whether all lines of a span are the actor's, from that one on."""
    after = start + span.lines
    return after <= len(offsets) and offsets[after - 1] < span.end


def _up_to(span: Span | None, part: Sequence[int]) -> Sequence[int]:
    """Return the lines before a span, if nearly all are the actor's: so it may go on with that."""
    if span is None or not part[0] < span.start <= part[-1]:
        return part
    ahead = part[: bisect_left(part, span.start)]
    is_dense = span.start - part[0] <= _DENSE * len(ahead)
    return ahead if is_dense and part[len(ahead)] == span.start else part


def last_revisions(journal: Journal, actors: Collection[str]) -> Mapping[str, int]:
    """Return the last revision of each of `actors` that has a history."""
    return {
        actor: revision
        for actor in actors
        if (revision := _last_revision(journal, actor)) is not None
    }


def _last_revision(journal: Journal, actor: str) -> int | None:
    for file in journal.files(newest=True):
        for offset in reversed(file.step_offsets(actor)):
            for record, _ in file.records_at((offset,)):
                if _is_step(record, actor):
                    return record.revision
    return None


def _steps(journal: Journal, actor: str, after: int) -> Iterator[tuple[Record, int]]:
    """Yield the records among which are the events of an actor with a greater revision."""
    for file, offsets, first in _lines_after(journal, actor, after):
        for start in range(first, len(offsets), _TOGETHER):
            yield from file.records_at(offsets[start : start + _TOGETHER])


class _Lines(NamedTuple):
    """The lines of one file that may be part of the history of an actor."""

    file: JournalFile
    offsets: Sequence[int]
    actor: str

    def revision_from(self, number: int) -> int:
        """Return the revision of the actor's first line from this one on."""
        for following in range(number, len(self.offsets)):
            for record, _ in self.file.records_at((self.offsets[following],)):
                if _is_step(record, self.actor):
                    return record.revision or 0
        return _NONE

    def first_after(self, after: int) -> int:
        """Return how many lines there are before those with a greater revision."""
        # Mostly there is a line for each revision, and one look tells.
        guess = after - self.revision_from(0) + 1
        if 0 <= guess < len(self.offsets) and self.revision_from(guess) == after + 1:
            return guess
        return bisect_right(range(len(self.offsets)), after, key=self.revision_from)


def _lines_after(
    journal: Journal, actor: str, after: int
) -> Iterator[tuple[JournalFile, Sequence[int], int]]:
    """Yield the files in which an actor's history goes on after a revision.

    With each come its lines there, and how many of them are before that.
    """
    if not after:
        for lines in _having(journal, actor, newest=False):
            yield lines.file, lines.offsets, 0
        return
    for lines in _last_having(journal, actor, after):
        try:
            yield lines.file, lines.offsets, lines.first_after(after)
        finally:
            journal.was_read(lines.file)


def _having(journal: Journal, actor: str, *, newest: bool) -> Iterator[_Lines]:
    for file in journal.files(newest=newest):
        if offsets := file.step_offsets(actor):
            yield _Lines(file, offsets, actor)


def _last_having(journal: Journal, actor: str, after: int) -> Sequence[_Lines]:
    """Return an actor's lines from the file on in which a greater revision may be, oldest first.

    Few of many files are read for that. Mostly it is one of the last: who asks has a snapshot, or
    has read what comes before.
    """
    found: list[_Lines] = []
    having = _having(journal, actor, newest=True)
    for lines in having:
        found.append(lines)
        if lines.revision_from(0) <= after:
            break
        if len(found) == _LAST:
            others = list(having)
            found += others[: _place(journal, others, after) + 1]
    return found[::-1]


def _place(journal: Journal, newest_first: Sequence[_Lines], after: int) -> int:
    """Return the place of the newest that begin with a revision up to this, or their number."""

    def begin_before(number: int) -> bool:
        for lines in reversed(newest_first[: number + 1]):
            revision = lines.revision_from(0)
            journal.was_read(lines.file)
            if revision != _NONE:  # else they are another's
                return revision <= after
        return False

    return bisect_left(range(len(newest_first)), True, key=begin_before)


def _is_step(record: Record, actor: str) -> bool:
    return (
        isinstance(record, PersistedEvent)
        and record.actor_address == actor
        and record.revision is not None
    )
