"""Rotation: when a segment is full, and which records of a batch go into the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from papyra.persistence.backends._files.line_format import head_length
from papyra.persistence.backends._files.segment import Segment
from papyra.persistence.backends.store import Batch


@dataclass(frozen=True)
class SegmentLimits:
    """When a segment is full. One record is taken by any."""

    max_bytes: int
    max_records: int | None
    #: seconds between the oldest record and the newest
    max_age: float | None

    def are_exceeded(self, size: int, records: int, age: float = 0.0) -> bool:
        """Return whether a segment with as much as this holds too much."""
        return (
            size > self.max_bytes
            or (self.max_records is not None and records > self.max_records)
            or (self.max_age is not None and age > self.max_age)
        )


class Share(NamedTuple):
    """The records of a batch that go into one segment."""

    start: int
    stop: int
    #: whether they begin a segment
    begins: bool


def share_out(
    batch: Batch, limits: SegmentLimits, last: Segment, in_last: int, *, begins: bool
) -> Iterator[Share]:
    """Share a batch out between the `last` segment, with `in_last` records, and new ones.

    `begins` says that the last segment takes nothing, whatever room it has.
    """
    records, encoded = batch.records, batch.encoded
    size, count = last.end, in_last
    head = head_length(last.last_seq + len(records), len(records) - 1)
    total = size + sum(map(len, encoded)) + head * len(records)
    if limits.max_age is None and not limits.are_exceeded(total, count + len(records)):
        yield Share(0, len(records), begins)
        return
    oldest, newest, start = last.index.oldest, last.index.newest, 0
    for position, (record, data) in enumerate(zip(records, encoded, strict=True)):
        time, length = record.timestamp, len(data) + head
        oldest, newest = min(oldest, time), max(newest, time)
        size += length
        count += 1
        if size > length and limits.are_exceeded(size, count, newest - oldest):
            if position > start:
                yield Share(start, position, begins)
            start, begins = position, True
            size, count, oldest, newest = length, 1, time, time
    yield Share(start, len(records), begins)
