"""Group commit: many append requests, as few writes as the limits allow, a reply for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, overload

from papyra.exceptions import InvalidRecord, PersistenceError
from papyra.persistence import codec
from papyra.persistence.messages import Append, Appended, AppendMany
from papyra.persistence.records import Record

__all__ = ("MAX_COMMIT_BYTES", "MAX_COMMIT_RECORDS", "Write", "commit")

#: A commit ends with the request that takes it to this many records.
MAX_COMMIT_RECORDS = 10_000
#: A commit ends with the request that takes it to this many encoded bytes.
MAX_COMMIT_BYTES = 8 * 1024 * 1024

#: Stores encoded records, all or none, and returns the first one's seq.
Write: TypeAlias = Callable[[Sequence[Record], Sequence[bytes]], Awaitable[int]]


async def commit(
    requests: Sequence[Append | AppendMany], write: Write
) -> Sequence[Appended | PersistenceError]:
    """Write the records of `requests` in order and return one reply for each request.

    A request is stored whole or not at all. A bad record fails its own request only; a failed
    write fails every request whose records were in it.
    """
    records, ends = _flatten(requests)
    try:
        encoded = codec.encode(records)
    except InvalidRecord:
        return await _commit_one_by_one(requests, write)
    if len(records) > MAX_COMMIT_RECORDS or sum(map(len, encoded)) > MAX_COMMIT_BYTES:
        return await _commit_one_by_one(requests, write)
    try:
        return _Replies(await write(records, encoded), ends)
    except PersistenceError as error:
        return [_copy(error) for _ in requests]


async def _commit_one_by_one(
    requests: Sequence[Append | AppendMany], write: Write
) -> list[Appended | PersistenceError]:
    """Commit with each request encoded by itself, in as many writes as the limits ask for."""
    replies: dict[int, Appended | PersistenceError] = {}
    waiting: dict[int, int] = {}  # which requests the next write is for, and how many records each
    records: list[Record] = []
    encoded: list[bytes] = []
    size = 0

    async def write_waiting() -> None:
        nonlocal size
        if waiting:
            try:
                seq = await write(tuple(records), tuple(encoded))
            except PersistenceError as error:
                replies.update((position, _copy(error)) for position in waiting)
            else:
                for position, count in waiting.items():
                    replies[position] = Appended(seq, seq + count - 1)
                    seq += count
        waiting.clear()
        records.clear()
        encoded.clear()
        size = 0

    for position, request in enumerate(requests):
        try:
            own, _ = _flatten([request])
            own_encoded = codec.encode(own)
        except InvalidRecord as error:
            replies[position] = error
            continue
        waiting[position] = len(own)
        records += own
        encoded += own_encoded
        size += sum(map(len, own_encoded))
        if len(records) >= MAX_COMMIT_RECORDS or size >= MAX_COMMIT_BYTES:
            await write_waiting()
    await write_waiting()
    return [replies[position] for position in range(len(requests))]


def _flatten(requests: Sequence[Append | AppendMany]) -> tuple[list[Record], Sequence[int]]:
    """Return all the records, and for each request how many there are up to its last one."""
    if all(type(request) is Append for request in requests):
        return [request.record for request in requests], range(1, len(requests) + 1)  # type: ignore[union-attr]
    records: list[Record] = []
    ends: list[int] = []
    for request in requests:
        if isinstance(request, Append):
            records.append(request.record)
        else:
            records.extend(request.records)
        ends.append(len(records))
    return records, ends


def _copy(error: PersistenceError) -> PersistenceError:
    """Return an error that one caller can raise without adding to another's traceback."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


class _Replies(Sequence[Appended | PersistenceError]):
    """The replies to a commit that was one write, each made when it is asked for.

    Most appends are told: nobody reads their replies, and a million need not be made.
    """

    def __init__(self, first_seq: int, ends: Sequence[int]) -> None:
        self._first_seq = first_seq
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, position: int) -> Appended: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Appended]: ...
    def __getitem__(self, position: int | slice) -> Appended | Sequence[Appended]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        position %= len(self)
        start = self._ends[position - 1] if position else 0
        return Appended(self._first_seq + start, self._first_seq + self._ends[position] - 1)
