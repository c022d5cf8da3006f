"""Group commit: many append requests, as few writes as the limits allow, a reply for each."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeAlias, cast, overload

from papyra._error_copy import copy_of
from papyra._safe_repr import MEANT, shown, text_of
from papyra.exceptions import (
    HistoriesUnsupported,
    InvalidRecord,
    PersistenceError,
    RevisionConflict,
)
from papyra.persistence import codec
from papyra.persistence.backends.revisions import Revisions, part_of_histories
from papyra.persistence.messages import Append, Appended, AppendEncoded, AppendMany
from papyra.persistence.metrics import PersistenceMetrics
from papyra.persistence.records import Record

#: A commit ends with the request that takes it to this many records.
MAX_COMMIT_RECORDS = 10_000
#: A commit ends with the request that takes it to this many encoded bytes.
MAX_COMMIT_BYTES = 8 * 1024 * 1024


class Writer(Protocol):
    """The store that is written to, in between its opening and its closing."""

    @property
    def revisions(self) -> Revisions:
        """The last revisions of actors."""
        ...

    @property
    def metrics(self) -> PersistenceMetrics:
        """The counters."""
        ...

    def write(
        self, records: Sequence[Record], encoded: Sequence[bytes], size: int
    ) -> Awaitable[int]:
        """Store encoded records, of so many bytes in all; all or none. Returns the first's seq."""
        ...


_APPENDS, _ENCODED = frozenset({Append, AppendEncoded}), frozenset({AppendEncoded})
_BYTES = frozenset({bytes})


#: What became of a run of append requests: a reply for each of them, in order; and those of the
#: replies that are errors.
Committed: TypeAlias = tuple[Sequence[Appended | PersistenceError], Sequence[PersistenceError]]


async def commit(requests: Sequence[Append | AppendMany], writer: Writer) -> Committed:
    """Write the records of `requests` in order, and count the requests that fail.

    A request is stored whole or not at all. A bad record, or a revision that does not follow, fails
    its own request only; a failed write fails every request whose records were in it.
    """
    try:
        records, ends = _flatten(requests)
        is_encoded = type(requests[0]) is AppendEncoded
        encoded = _encode(records, requests) if is_encoded else codec.encode(records)
    except InvalidRecord:
        return await _commit_one_by_one(requests, writer)
    size = len(encoded[0]) if len(encoded) == 1 else sum(map(len, encoded))
    if len(records) > MAX_COMMIT_RECORDS or size > MAX_COMMIT_BYTES:
        return await _commit_one_by_one(requests, writer)
    try:
        # Most are alone, or have no revision, and each call takes its time.
        if len(records) != 1 or (
            records[0].revision is not None and not writer.revisions.advance_alone(records[0])
        ):
            await _check_revisions(records, writer.revisions)
        first_seq = await writer.write(records, encoded, size)
    except (RevisionConflict, HistoriesUnsupported):
        return await _commit_one_by_one(requests, writer)
    except PersistenceError as error:
        errors = [copy_of(error) for _ in requests]
        writer.metrics.write_errors += len(errors)
        return errors, errors
    if len(requests) == 1:
        return (Appended(first_seq, first_seq + len(records) - 1),), ()
    return _Replies(first_seq, ends), ()


async def _check_revisions(records: Sequence[Record], revisions: Revisions) -> None:
    """Take the revisions of records for the last ones. Raises `RevisionConflict`."""
    if events := part_of_histories(records):
        await revisions.learn(events)
        revisions.advance(events)


async def _commit_one_by_one(requests: Sequence[Append | AppendMany], writer: Writer) -> Committed:
    """Commit with each request checked by itself, in as many writes as the limits ask for."""
    replies: dict[int, Appended | PersistenceError] = {}
    part = _Part()
    for position, request in enumerate(requests):
        try:
            records, _ = _flatten([request])
            encoded = codec.encode(records)
            if events := part_of_histories(records):
                await writer.revisions.learn(events)
                writer.revisions.advance(events)
            part.add(position, records, encoded)
        except PersistenceError as error:
            replies[position] = error
        if len(part.records) >= MAX_COMMIT_RECORDS or part.size >= MAX_COMMIT_BYTES:
            replies |= await part.write(writer)
            part = _Part()
    replies |= await part.write(writer)
    in_order = [replies[position] for position in range(len(requests))]
    errors = [reply for reply in in_order if isinstance(reply, PersistenceError)]
    writer.metrics.write_errors += len(errors)
    return in_order, errors


class _Part:
    """Requests that share a write."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.size = 0
        self._encoded: list[bytes] = []
        self._counts: dict[int, int] = {}  # records of each request, by its position in the run

    def add(self, position: int, records: Sequence[Record], encoded: Sequence[bytes]) -> None:
        self._counts[position] = len(records)
        self.records += records
        self._encoded += encoded
        self.size += sum(map(len, encoded))

    async def write(self, writer: Writer) -> dict[int, Appended | PersistenceError]:
        """Write it, and return the replies by the requests' positions."""
        if not self._counts:
            return {}
        try:
            seq = await writer.write(self.records, self._encoded, self.size)
        except PersistenceError as error:
            return {position: copy_of(error) for position in self._counts}
        replies: dict[int, Appended | PersistenceError] = {}
        for position, count in self._counts.items():
            replies[position] = Appended(seq, seq + count - 1)
            seq += count
        return replies


def _flatten(requests: Sequence[Append | AppendMany]) -> tuple[list[Record], Sequence[int]]:
    """Return all the records, and for each request how many there are up to its last one.

    Raises `InvalidRecord` for a request without them, whatever that raises itself.
    """
    try:
        if len(requests) == 1 and isinstance(request := requests[0], Append):
            return [request.record], (1,)
        if _APPENDS.issuperset(map(type, requests)):
            appends = cast("Sequence[Append]", requests)
            return [append.record for append in appends], range(1, len(requests) + 1)
        records: list[Record] = []
        ends: list[int] = []
        for request in requests:
            records += _records_of(request)
            ends.append(len(records))
    except (InvalidRecord, *MEANT):
        raise
    except BaseException as error:
        raise InvalidRecord(f"a request whose records can't be had: {text_of(error)}") from error
    return records, ends


def _encode(records: Sequence[Record], requests: Sequence[Append | AppendMany]) -> Sequence[bytes]:
    """Return the records of requests as they are stored; the first was encoded already."""
    first = requests[0]
    if len(requests) == 1 and type(first) is AppendEncoded and type(first.encoded) is bytes:
        return (first.encoded,)
    if _ENCODED.issuperset(map(type, requests)):
        encoded = [each.encoded for each in cast("Sequence[AppendEncoded]", requests)]
        if _BYTES.issuperset(map(type, encoded)):
            return encoded
    return codec.encode(records)


def _records_of(request: Append | AppendMany) -> Sequence[Record]:
    if isinstance(request, Append):
        return (request.record,)
    if not issubclass(type(request.records), (tuple, list)):
        raise InvalidRecord(f"AppendMany takes a tuple of records, not {shown(request.records)}")
    # Past what a class of the user's has made of iteration.
    exact = tuple if issubclass(type(request.records), tuple) else list
    return list(exact.__iter__(request.records))  # type: ignore[arg-type]


class _Replies(Sequence[Appended]):
    """The replies to requests that shared one write, each made when it is asked for.

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
    def __getitem__(self, position: slice) -> list[Appended]: ...
    def __getitem__(self, position: int | slice) -> Appended | list[Appended]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        last = self._ends[position]
        position %= len(self._ends)
        before = self._ends[position - 1] if position else 0
        return Appended(self._first_seq + before, self._first_seq + last - 1)
