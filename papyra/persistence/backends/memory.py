"""Records in the memory of the process. The smallest complete backend: read it first."""

from __future__ import annotations

import heapq
import time
import uuid
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
from anyio.lowlevel import checkpoint

from papyra._safe_repr import shown
from papyra.exceptions import InvalidStoreURL
from papyra.persistence import codec
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.paging import (
    MAX_PAGE_BYTES,
    MAX_RUN_RECORDS,
    records_wanted,
)
from papyra.persistence.backends.store import (
    Batch,
    Capabilities,
    StoredSnapshot,
    collect_history,
    collect_page,
)
from papyra.persistence.messages import (
    EncodedHistory,
    EncodedRun,
    HistoryPage,
    Page,
    Read,
    ReadHistory,
)
from papyra.persistence.records import (
    KINDS,
    Kind,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)
from papyra.persistence.reports import (
    CompactedKind,
    CompactionReport,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    StoreSummary,
)
from papyra.persistence.retention import Limits, RetentionPolicy

__all__ = ("InMemoryPersistence", "MemoryStore")

#: How many records share one entry in the index that unordered timestamps need.
_BLOCK = 1024
#: How many records are decoded together, at first and at most.
_DECODED, _MOST_DECODED = 16, 256
#: Bytes from which on they are decoded one by one.
_LARGE = 1024 * 1024
#: How many records are put into the index by actor before others get their turn.
_STEP = 10_000
#: And how many of those are looked at together.
_TOGETHER = 250

_FOREVER = float("inf")


class InMemoryPersistence(PersistenceBackend):
    """Keep facts as long as the process lives: for tests, and for systems without a past.

    Nothing is written to disk, so nothing can be damaged: a scan is always clean, and `recover`
    and `compact` succeed without doing anything. Retention hides records from reads and frees no
    memory. A million records take about their own encoded bytes, and 24 more each.

    Reads cost O(log n + records examined). Those of one actor examine its own records only: the
    first of them makes an index, of some 8 bytes a record and 500 an actor, and later ones put into
    it what was appended since. Where timestamps came out of order, `since`, `until`
    and retention by age cost O(n / 1024) more.
    """

    store: MemoryStore

    def __init__(
        self,
        *,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(MemoryStore(), retention_policy=retention_policy, clock=clock)

    @property
    def events(self) -> Sequence[PersistedEvent]:
        """Every event held, oldest first, those that retention hides from reads included."""
        return cast("Sequence[PersistedEvent]", self.store.all("event"))

    @property
    def audits(self) -> Sequence[PersistedAudit]:
        """Every audit held; as `events`."""
        return cast("Sequence[PersistedAudit]", self.store.all("audit"))

    @property
    def dead_letters(self) -> Sequence[PersistedDeadLetter]:
        """Every dead letter held; as `events`."""
        return cast("Sequence[PersistedDeadLetter]", self.store.all("dead_letter"))

    def clear(self) -> None:
        """Forget all that is kept, and free the memory. Positions of records go on counting."""
        self.store.clear()


class MemoryStore:
    """The smallest complete `Store`."""

    name = "memory"
    location = ""
    capabilities = Capabilities(
        durable=False, recovery=False, compaction=False, readable_when_closed=True
    )

    def __init__(self) -> None:
        self._last_seq = 0
        self._id = uuid.uuid4().hex
        self.clear()

    def clear(self) -> None:
        """Forget all that is kept, but not which positions were given to records."""
        self._snapshots: dict[str, dict[int, bytes]] = {}
        #: of those who follow the store
        self._positions: dict[str, bytes] = {}
        self._collections: dict[Kind, _Collection] = {kind: _Collection() for kind in KINDS}
        self._collection_of = {
            PersistedEvent: self._collections["event"],
            PersistedAudit: self._collections["audit"],
            PersistedDeadLetter: self._collections["dead_letter"],
        }

    def all(self, kind: Kind) -> tuple[Record, ...]:
        """Return every record of a kind, oldest first."""
        return self._collections[kind].all()

    async def open(self) -> None:
        """Do nothing: what was kept is there."""

    async def last_seq(self) -> int:
        """Return the greatest position that was ever given."""
        return self._last_seq

    async def claim(self) -> int:
        """Return the greatest position that was ever given: nothing is ever in doubt."""
        return self._last_seq

    async def append(self, batch: Batch) -> None:
        """Store a batch, all or none."""
        first_seq, records, encoded = batch.first_seq, batch.records, batch.encoded
        try:
            if len(records) == 1:
                (record,) = records
                self._collection_of[type(record)].add(first_seq, record.timestamp, encoded[0])
            # Most runs are events all through.
            elif len(records) > 8 and set(map(type, records)) == {PersistedEvent}:
                self._collections["event"].extend(first_seq, records, encoded)
            else:
                for position, record in enumerate(records):
                    self._collection_of[type(record)].add(
                        first_seq + position, record.timestamp, encoded[position]
                    )
        except BaseException:
            # Out of memory, most likely. All or nothing it is, even so.
            for collection in self._collections.values():
                collection.truncate(collection.first_after(batch.first_seq - 1))
            raise
        self._last_seq = first_seq + len(records) - 1

    async def flush(self) -> None:
        """Do nothing: nothing is more durable than it is already."""

    async def close(self) -> None:
        """Keep everything: it stays readable, and can be hosted again."""

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of what `policy` shows at Unix time `now`."""
        collection = self._collections[request.kind]
        if request.actor is not None:
            await collection.put_in_index()
        start, since = _visible(collection, policy.of(request.kind), now)
        start = max(start, collection.first_after(request.after))
        stop = len(collection)
        if request.before is not None:
            stop = collection.first_after(request.before - 1)
        if request.since is not None:
            since = max(since, request.since)
        until = _FOREVER if request.until is None else request.until
        if request.actor is None:
            positions = collection.between(start, stop, since, until, request.newest)
        else:
            positions = collection.of_actor(
                request.actor, start, stop, since, until, request.newest
            )
        return collect_page(request, collection.records(positions))

    async def read_history(self, request: ReadHistory) -> HistoryPage:
        """Return a page of one actor's history."""
        events = self._collections["event"]
        await events.put_in_index()
        most = records_wanted(request) + 1
        positions = events.history(request.actor, request.after_revision, most)
        return collect_history(request, events.records(positions))

    async def read_encoded_history(self, request: ReadHistory) -> EncodedHistory:
        """Return a page of one actor's history, as it is stored."""
        events = self._collections["event"]
        await events.put_in_index()
        wanted = records_wanted(request)
        positions = events.history(request.actor, request.after_revision, wanted + 1)
        return events.encoded(positions, wanted)

    async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Return the greatest revision of each of `actors`."""
        events = self._collections["event"]
        await events.put_in_index()
        return {actor: events.last_revision(actor) for actor in actors}

    async def store_id(self) -> str:
        """Return the id of this store."""
        return self._id

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Keep a snapshot, in place of what was there."""
        self._snapshots.setdefault(actor, {})[revision] = data

    async def snapshot_revisions(self, actor: str) -> list[int]:
        """Return the revisions of an actor's snapshots."""
        return list(self._snapshots.get(actor, ()))

    async def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None`."""
        return self._snapshots.get(actor, {}).get(revision)

    async def remove_snapshot(self, actor: str, revision: int) -> None:
        """Forget a snapshot."""
        self._snapshots.get(actor, {}).pop(revision, None)

    def snapshot_owner(self, actor: str) -> str:
        """Return the address itself."""
        return actor

    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        """List snapshots by owner and revision."""
        last = ("", 0) if after is None else (after.owner, after.revision)
        places = ((owner, each) for owner, held in self._snapshots.items() for each in held)
        first = heapq.nsmallest(limit, (place for place in places if place > last))
        return [StoredSnapshot(*place, len(self._snapshots[place[0]][place[1]])) for place in first]

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return await self.load_snapshot(stored.owner, stored.revision)

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Forget a snapshot."""
        await self.remove_snapshot(stored.owner, stored.revision)

    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        """Forget a snapshot."""
        del directory
        await self.remove_listed(stored)
        return None

    async def load_position(self, name: str) -> bytes | None:
        """Return what was saved last, or `None`."""
        return self._positions.get(name)

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Keep a position, if what is there is as expected."""
        if self._positions.get(name) != expected:
            return False
        self._positions[name] = data
        return True

    async def remove_position(self, name: str, expected: bytes) -> bool:
        """Forget a position, if it is as expected."""
        if self._positions.get(name) != expected:
            return False
        del self._positions[name]
        return True

    async def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        """List names in the order of their characters."""
        behind = (name for name in self._positions if after is None or name > after)
        return heapq.nsmallest(limit, behind)

    async def summarize(self) -> StoreSummary:
        """Return what is held."""
        held = self._collections.values()
        times = [time for collection in held for time in collection.times]
        return StoreSummary(
            backend=self.name,
            location=self.location,
            last_seq=self._last_seq,
            records={kind: len(each) for kind, each in self._collections.items()},
            record_bytes={kind: each.size for kind, each in self._collections.items()},
            stored_bytes=self._held_bytes(),
            oldest=min(times, default=None),
            newest=max(times, default=None),
        )

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:  # noqa: ARG002
        """Return how much there is: nothing can be wrong with it."""
        return PersistenceScanReport(self.name, self._held(), self._held_bytes())

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:  # noqa: ARG002
        """Do nothing."""
        held = self._held()
        scan = PersistenceScanReport(self.name, held, self._held_bytes())
        return PersistenceRecoveryReport(self.name, supported=False, scan=scan, records_kept=held)

    async def compact(
        self,
        policy: RetentionPolicy,  # noqa: ARG002
        now: float,  # noqa: ARG002
        *,
        dry_run: bool,  # noqa: ARG002
    ) -> CompactionReport:
        """Do nothing."""
        report = CompactionReport.of_kinds(
            self.name,
            {
                kind: CompactedKind(len(each), len(each), each.size, each.size)
                for kind, each in self._collections.items()
            },
        )
        return msgspec.structs.replace(report, supported=False)

    def _held(self) -> int:
        return sum(len(collection) for collection in self._collections.values())

    def _held_bytes(self) -> int:
        return sum(collection.size for collection in self._collections.values())


def _visible(collection: _Collection, limits: Limits, now: float) -> tuple[int, float]:
    """Return the first position, and the oldest time, that retention lets reads see."""
    start = 0
    if limits.max_records is not None:
        start = max(start, len(collection) - limits.max_records)
    if limits.max_total_bytes is not None:
        start = max(start, collection.first_within(limits.max_total_bytes))
    oldest = limits.oldest_time(now)
    return start, -_FOREVER if oldest is None else oldest


class _Collection:
    """The records of one kind in append order: one buffer, and columns of numbers beside it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q")
        self._seqs = array("Q")
        self._times = array("d")
        self._in_order = True
        #: the oldest and newest time in each full block; kept once timestamps are out of order
        self._spans: list[tuple[float, float]] = []
        #: the positions of each actor's records, up to the one that is next to be put in
        self._of_actors: defaultdict[str, array[int]] = defaultdict(_no_positions)
        #: those of them that have a revision, and the greatest one
        self._histories: defaultdict[str, array[int]] = defaultdict(_no_positions)
        self._last_revisions: dict[str, int] = {}
        self._next_in_index = 0

    def __len__(self) -> int:
        return len(self._seqs)

    @property
    def size(self) -> int:
        """Encoded bytes."""
        return len(self._data)

    @property
    def times(self) -> Sequence[float]:
        """Unix times in seconds, in append order."""
        return self._times

    def add(self, seq: int, time: float, encoded: bytes) -> None:
        if self._in_order and self._times and time < self._times[-1]:
            self._in_order = False
        self._data += encoded
        self._ends.append(len(self._data))
        self._times.append(time)
        self._seqs.append(seq)

    def extend(self, first_seq: int, records: Sequence[Record], encoded: Sequence[bytes]) -> None:
        """Add many at once, at a third of the cost."""
        times = [record.timestamp for record in records]
        newest = self._times[-1] if self._times else -_FOREVER
        self._in_order = self._in_order and newest <= times[0] and times == sorted(times)
        _, *ends = accumulate(map(len, encoded), initial=len(self._data))
        self._data += b"".join(encoded)
        self._ends.fromlist(ends)
        self._times.fromlist(times)
        self._seqs.fromlist(list(range(first_seq, first_seq + len(records))))

    def truncate(self, length: int) -> None:
        del self._seqs[length:], self._times[length:], self._ends[length:]
        del self._data[self._ends[-1] if self._ends else 0 :]

    def records(self, positions: Iterable[int]) -> Iterator[tuple[Record, int]]:
        """Yield records, each with its bytes: more and more decoded at once, as they are taken."""
        positions, step = iter(positions), _DECODED
        while part := list(islice(positions, step)):
            extents = self._extents(part)
            seqs = [self._seqs[position] for position in part]
            # Of large ones a page may hold no more than the first.
            is_large = sum([end - start for start, end in extents]) > _LARGE
            runs = [slice(i, i + 1) for i in range(len(part))] if is_large else [slice(None)]
            for run in runs:
                encoded = self._cut(extents[run])
                yield from zip(
                    codec.decode_many(encoded, seqs[run]), map(len, encoded), strict=True
                )
            step = min(4 * step, _MOST_DECODED)

    def encoded(self, positions: Sequence[int], wanted: int) -> EncodedHistory:
        """Return the page of so many records at most, as they are."""
        runs: list[EncodedRun] = []
        start = size = 0
        while start < min(wanted, len(positions)) and size < MAX_PAGE_BYTES:
            part = positions[start : min(start + MAX_RUN_RECORDS, wanted)]
            data = self._joined(part, MAX_PAGE_BYTES - size)
            if data is None:
                part = part[:1]
                data = self._encoded(part[0])
            runs.append(EncodedRun(data, len(part)))
            start, size = start + len(part), size + len(data)
        last_seq = self._seqs[positions[start - 1]] if start else 0
        return EncodedHistory(tuple(runs), True, last_seq, start < len(positions))

    def _joined(self, positions: Sequence[int], most: int) -> bytes | None:
        """Return what is at these positions, which rise; `None` if that is over `most` bytes."""
        ends, first, last = self._ends, positions[0], positions[-1]
        extents = [(ends[first - 1] if first else 0, ends[last])]
        if last - first + 1 > len(positions):
            extents = [(ends[place - 1] if place else 0, ends[place]) for place in positions]
        if sum([end - start for start, end in extents]) > most:
            return None
        with memoryview(self._data) as view:
            return b"".join([view[start:end] for start, end in extents])

    def all(self) -> tuple[Record, ...]:
        return tuple(record for record, _ in self.records(range(len(self))))

    async def put_in_index(self) -> None:
        """Put into the index by actor what was added since it was needed last."""
        while (start := self._next_in_index) < len(self):
            if start:
                await checkpoint()
            stop = min(start + _STEP, len(self))
            for first in range(start, stop, _TOGETHER):
                self._put_run_in_index(range(first, min(first + _TOGETHER, stop)))

    def _put_run_in_index(self, positions: range) -> None:
        extents = self._extents(positions)
        concerned: Iterable[tuple[str | None, int | None]]
        if sum([end - start for start, end in extents]) > _LARGE:
            concerned = map(codec.concerned, map(self._encoded, positions))
        else:
            with memoryview(self._data) as view:
                concerned = codec.concerned_many([view[start:end] for start, end in extents])
        of_actors, histories, last = self._of_actors, self._histories, self._last_revisions
        for position, (actor, revision) in zip(positions, concerned, strict=True):
            if actor is not None:
                of_actors[actor].append(position)
                if revision is not None:
                    histories[actor].append(position)
                    if revision > last.get(actor, 0):
                        last[actor] = revision
            self._next_in_index = position + 1

    def of_actor(
        self,
        actor: str,
        start: int,
        stop: int,
        since: float,
        until: float,
        newest_first: bool,
    ) -> Iterator[int]:
        """Return what `between` does, of one actor's records that are in the index."""
        positions = self._of_actors.get(actor, ())
        own = range(bisect_left(positions, start), bisect_left(positions, stop))
        for number in reversed(own) if newest_first else own:
            if since <= self._times[positions[number]] <= until:
                yield positions[number]

    def history(self, actor: str, after_revision: int, most: int) -> Sequence[int]:
        """Return the positions of the first few of an actor's events with a greater revision."""
        positions = self._histories.get(actor, array("Q"))
        start = bisect_right(positions, after_revision, key=self._revision)
        return positions[start : start + most]

    def last_revision(self, actor: str) -> int:
        """Return the greatest revision of an actor, or 0."""
        return self._last_revisions.get(actor, 0)

    def _revision(self, position: int) -> int:
        return codec.concerned(self._encoded(position))[1] or 0

    def _encoded(self, position: int) -> bytes:
        start = self._ends[position - 1] if position else 0
        return bytes(self._data[start : self._ends[position]])

    def _extents(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """Return where the records at some positions begin and end."""
        ends, first, last = self._ends, positions[0], positions[-1]
        if last - first + 1 == len(positions):
            start = ends[first - 1] if first else 0
            return list(pairwise((start, *ends[first : last + 1])))
        return [(ends[position - 1] if position else 0, ends[position]) for position in positions]

    def _cut(self, extents: Iterable[tuple[int, int]]) -> list[bytes]:
        with memoryview(self._data) as view:
            return [bytes(view[start:end]) for start, end in extents]

    def first_after(self, seq: int) -> int:
        """Return the first position whose record has a greater seq."""
        return bisect_right(self._seqs, seq)

    def first_within(self, max_bytes: int) -> int:
        """Return the first position from which on all records fit into `max_bytes`."""
        surplus = self.size - max_bytes
        return bisect_left(self._ends, surplus) + 1 if surplus > 0 else 0

    def between(
        self, start: int, stop: int, since: float, until: float, newest_first: bool
    ) -> Iterable[int]:
        """Return the positions in a range whose times are in a range, both ends of it included."""
        if self._in_order:
            start = bisect_left(self._times, since, start, max(start, stop))
            stop = bisect_right(self._times, until, start, max(start, stop))
        elif (since, until) != (-_FOREVER, _FOREVER):
            return self._search(start, stop, since, until, newest_first)
        positions = range(start, stop)
        return reversed(positions) if newest_first else positions

    def _search(
        self, start: int, stop: int, since: float, until: float, newest_first: bool
    ) -> Iterator[int]:
        times = self._times
        for block in range(len(self._spans), len(times) // _BLOCK):
            part = times[block * _BLOCK : (block + 1) * _BLOCK]
            self._spans.append((min(part), max(part)))
        blocks = range(start // _BLOCK, -(-stop // _BLOCK))
        for block in reversed(blocks) if newest_first else blocks:
            if block < len(self._spans):
                oldest, newest = self._spans[block]
                if newest < since or oldest > until:
                    continue
            inside = range(max(start, block * _BLOCK), min(stop, (block + 1) * _BLOCK))
            for position in reversed(inside) if newest_first else inside:
                if since <= times[position] <= until:
                    yield position


def _no_positions() -> array[int]:
    return array("Q")


def from_url(url: str, *, read_only: bool) -> InMemoryPersistence:
    """Return a new store of one's own."""
    del read_only  # nobody else can write it
    if rest := url.partition(":")[2]:
        raise InvalidStoreURL(f"'memory:' takes nothing after the colon, not {shown(rest)}")
    return InMemoryPersistence()


def for_test(directory: Callable[[], Path], options: Mapping[str, Any]) -> InMemoryPersistence:
    """Return a store for a test."""
    del directory
    return InMemoryPersistence(**options)
