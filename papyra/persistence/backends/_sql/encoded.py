"""Histories given out as they are stored: rows to runs, for `EncodedHistories`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from zlib import crc32

from papyra.persistence.backends._sql.decoding import StoredRow
from papyra.persistence.backends.paging import MAX_PAGE_BYTES, MAX_RUN_RECORDS, records_wanted
from papyra.persistence.messages import EncodedHistory, EncodedRun, ReadHistory

__all__ = ("encoded_history",)


def encoded_history(request: ReadHistory, rows: Iterable[StoredRow]) -> EncodedHistory | None:
    """Return a page of a history; `None` where a row is not what was stored.

    Rows are taken as they are needed, and at most some more. Whose they are is not looked at.
    """
    remaining, wanted = iter(rows), records_wanted(request)
    runs: list[EncodedRun] = []
    last_seq = size = 0
    while part := list(islice(remaining, min(wanted, MAX_RUN_RECORDS) or 1)):
        if not wanted or size >= MAX_PAGE_BYTES:
            return EncodedHistory(tuple(runs), False, last_seq, True)
        seqs, checksums, encoded = zip(*part, strict=True)
        try:
            if list(checksums) != list(map(crc32, encoded, seqs)):
                return None
        except TypeError:  # it may be no bytes at all
            return None
        count = _fitting(encoded, MAX_PAGE_BYTES - size)
        run = EncodedRun(b"\n".join(encoded[:count]), count)
        runs.append(run)
        last_seq, size, wanted = seqs[count - 1], size + len(run.data), wanted - count
        if count < len(part):
            return EncodedHistory(tuple(runs), False, last_seq, True)
    return EncodedHistory(tuple(runs), False, last_seq, False)


def _fitting(encoded: Sequence[bytes], room: int) -> int:
    """Return how many records, from the first on, it takes to fill `room` bytes."""
    if sum(map(len, encoded)) <= room:
        return len(encoded)
    return 1 + sum(size < room for size in accumulate(map(len, encoded)))
