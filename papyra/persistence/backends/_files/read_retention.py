"""Reads within retention: the records of a journal that a policy and a read let through."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from papyra.persistence.backends._files.compaction import Hidden
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.messages import Read
from papyra.persistence.records import KINDS, Kind, Record, kind_of
from papyra.persistence.retention import RetentionPolicy

_FOREVER = float("inf")


def visible_records(
    journal: Journal, request: Read, policy: RetentionPolicy, now: float
) -> Iterator[tuple[Record, int]]:
    """Yield the records that a read may show, in its order, each with its bytes."""
    kind, before, newest = request.kind, request.before, request.newest
    after, since = hidden_of(journal, kind, policy, now)
    after = max(after, request.after)
    since = since if request.since is None else max(since, request.since)
    until = _FOREVER if request.until is None else request.until
    for file in _files_between(journal, kind, after, before, since, until, newest=newest):
        for record, size in _candidates(file, request, after, since, until):
            seq = record.seq or 0
            if (
                kind_of(record) == kind
                and seq > after
                and (before is None or seq < before)
                and since <= record.timestamp <= until
            ):
                yield record, size


def _candidates(
    file: JournalFile,
    request: Read,
    after: int,
    since: float,
    until: float,
) -> Iterator[tuple[Record, int]]:
    """Yield the records of a file that a read may be about, in its order."""
    kind, before, newest = request.kind, request.before, request.newest
    if request.actor is not None:
        offsets = file.offsets_of(request.actor)
        start, stop = file.index.between(after, before, file.end)
        inside = offsets[bisect_left(offsets, start) : bisect_left(offsets, stop)]
        yield from file.records_at(inside[::-1] if newest else inside)
        return
    for block in file.index.blocks(kind, after, before, since, until, newest):
        yield from file.records(block, newest=newest)


def _files_between(
    journal: Journal,
    kind: Kind,
    after: int,
    before: int | None,
    since: float,
    until: float,
    *,
    newest: bool,
) -> Iterator[JournalFile]:
    """Yield the files in which there may be records of a kind, within these limits."""
    for file in journal.files(newest=newest):
        if (before is not None and file.base >= before - 1) or (
            file.through is not None and file.through <= after
        ):
            continue
        totals = file.totals()
        if totals.counts[kind] and totals.newest >= since and totals.oldest <= until:
            yield file


def hidden_of(journal: Journal, kind: Kind, policy: RetentionPolicy, now: float) -> Hidden:
    """Return what retention hides of a kind."""
    limits, through = policy.of(kind), 0
    if limits.max_records is not None:
        through = _through_of_surplus(journal, kind, limits.max_records, in_bytes=False)
    if limits.max_total_bytes is not None:
        bytes_through = _through_of_surplus(journal, kind, limits.max_total_bytes, in_bytes=True)
        through = max(through, bytes_through)
    oldest = limits.oldest_time(now)
    return Hidden(through, -_FOREVER if oldest is None else oldest)


def _through_of_surplus(journal: Journal, kind: Kind, limit: int, *, in_bytes: bool) -> int:
    """Return up to where there are more records of a kind, or bytes of them, than allowed."""
    for file in journal.files(newest=True):
        totals = file.totals()
        surplus = (totals.sizes if in_bytes else totals.counts)[kind] - limit
        if surplus == 0:
            return file.base
        if surplus > 0:
            block, left = file.index.block_at(kind, surplus, in_bytes=in_bytes)
            through = file.index.first_seq(block) - 1
            for line in file.lines(block, kind):
                if left <= 0:
                    break
                through, left = line.seq, left - (len(line.record) if in_bytes else 1)
            return through
        limit = -surplus
    return 0


def count_stored(journal: Journal) -> dict[Kind, tuple[int, int]]:
    """Return how many records there are of each kind, and their encoded bytes."""
    totals = [file.totals() for file in journal.files(newest=False)]
    return {
        kind: (sum(each.counts[kind] for each in totals), sum(each.sizes[kind] for each in totals))
        for kind in KINDS
    }
