"""A walk through every entry of a store: what is wrong, and what a recovery does about it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from papyra.exceptions import StoreAccessDenied
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.entries import (
    RawEntry,
    Wrong,
    check,
    id_of,
    read,
)
from papyra.persistence.backends._redis.link import AnyClient, RedisLink
from papyra.persistence.backends._redis.state import Range, StoreState, StreamState
from papyra.persistence.backends.commit import MAX_COMMIT_RECORDS
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import PersistenceAnomaly, StoreSummary

__all__ = ("Findings", "Survey")

#: Bytes of records in a page, about; and the most entries.
PAGE_BYTES = 4 * 1024 * 1024
PAGE_ENTRIES = 1000
#: How many entries one call removes.
REMOVED_AT_ONCE = 500


class Findings(msgspec.Struct):
    """What a walk has found."""

    records: int = 0
    #: of the records, encoded
    bytes_read: int = 0
    anomalies: list[PersistenceAnomaly] = []
    #: the ids of entries that a recovery removes
    bad: dict[Kind, list[bytes]] = msgspec.field(
        default_factory=lambda: {kind: [] for kind in KINDS}
    )
    #: what a recovery notes as gone: what is missing, and what it removes
    gone: dict[Kind, list[Range]] = msgspec.field(
        default_factory=lambda: {kind: [] for kind in KINDS}
    )
    #: whether the counters are missing, or behind what there is
    wrong_counters: bool = False


class Survey:
    """Reads the streams from end to end, up to where they end when it begins."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._keys = link.config.keys

    async def state(self) -> StoreState:
        """Return what the server keeps about the store."""
        return StoreState.of(await self._link.run(scripts.STATE, self._keys.all))

    async def summarize(self, intervals: int) -> StoreSummary:
        """Say what there is, by what the server keeps about it."""
        state = await self.state()
        streams = [stream for stream in state.streams.values() if stream.length]
        first = min((id_of(stream.first_id)[0] for stream in streams), default=0)
        last = max((id_of(stream.last_id)[0] for stream in streams), default=0)
        counts = await self._counts(state, first, last, intervals) if streams else ()
        return StoreSummary(
            backend="redis",
            location=self._link.config.store_location,
            last_seq=state.last,
            records={kind: stream.length for kind, stream in state.streams.items()},
            record_bytes={kind: stream.held_bytes for kind, stream in state.streams.items()},
            stored_bytes=await self._memory(),
            oldest=first / 1000 if streams else None,
            newest=last / 1000 if streams else None,
            intervals=counts or (0,) * intervals,
            writer=state.writer or None,
            damaged=not state.known and bool(streams),
        )

    async def _counts(
        self, state: StoreState, first: int, last: int, intervals: int
    ) -> tuple[int, ...]:
        """Return about how many records there are in each part of the time from `first` on."""
        if not intervals:
            return ()
        marks = [first + (last + 1 - first) * i // intervals for i in range(intervals)]
        reply = await self._link.run(scripts.COUNT, self._keys.all, *marks)
        counts = [0] * intervals
        for number, kind in enumerate(KINDS):
            begins = reply[number * intervals : (number + 1) * intervals]
            # Where there is nothing from then on, everything comes before it.
            upto = state.streams[kind].n + 1
            for part in reversed(range(intervals)):
                begin = min(begins[part] or upto, upto)
                counts[part] += upto - begin
                upto = begin
        return tuple(counts)

    async def _memory(self) -> int | None:
        """Return the bytes of the server's memory that all of it takes, if it tells."""

        async def ask(client: AnyClient) -> int:
            return sum([await client.memory_usage(key) or 0 for key in self._keys.all])

        try:
            return await self._link.call(ask)
        except StoreAccessDenied:
            return None

    async def scan(self, advance: Callable[[int, int], None] | None = None) -> Findings:
        """Check every entry. `advance` is told how many are done, of how many, page by page."""
        state, found, done = await self.state(), Findings(), 0
        if not state.known and state.entries:
            self._note_wrong_counters(found, "what is known about the streams is missing")
        walks = [_Walk(kind, self._keys.streams[kind], state, found) for kind in KINDS]
        for walk in walks:
            async for page in self._pages(walk, state.streams[walk.kind]):
                for raw in page:
                    if not walk.visit(raw):
                        await self._decide(walk, raw)
                if walk.suspects:
                    await self._settle(walk)
                done += len(page)
                if advance is not None:
                    advance(done, max(done, state.entries))
            walk.finish()
            if walk.suspects:
                await self._settle(walk)
        if state.known:
            for walk in walks:
                await self._discard_remains(walk)
                if walk.is_beyond:
                    detail = f"there are more {walk.kind} records than counted"
                    self._note_wrong_counters(found, detail)
        if advance is not None:
            advance(done, done)
        return found

    async def repair(self, found: Findings, *, quarantine: bool) -> tuple[int, list[str]]:
        """Remove what is bad; return how many entries that were, and where their copies are."""
        removed, copies = 0, []
        for number, kind in enumerate(KINDS, start=1):
            keys, bad = self._keys.all, found.bad[kind]
            if quarantine and bad:
                keys = [*keys, self._keys.quarantine(kind)]
                copies.append(keys[-1])
            for start in range(0, len(bad), REMOVED_AT_ONCE):
                ids = bad[start : start + REMOVED_AT_ONCE]
                await self._link.run(scripts.REMOVE, keys, number, *ids)
                removed += len(ids)
            if found.gone[kind]:
                ranges = json.dumps(found.gone[kind])
                await self._link.run(scripts.FORGET, self._keys.all, number, ranges)
        return removed, copies

    async def _settle(self, walk: _Walk) -> None:
        """Report what is missing, but for what somebody has trimmed meanwhile."""
        state = (await self.state()).streams[walk.kind]
        walk.report_suspects(state.trimmed_n, state.lost)

    async def _decide(self, walk: _Walk, raw: RawEntry) -> None:
        """Find out whether an entry is a copy, or has come where others were given up.

        A server that was killed while it wrote a batch may bring a part of it back later, in front
        of what was stored in its place since. That part goes.
        """
        seen = _Seen.of(raw, walk.kind)
        assert seen is not None
        original = await self._first_at(walk.kind, seen.seq)
        # Among what is in disorder, a search may have found a later one.
        is_earlier = original is not None and id_of(original.id) < id_of(seen.id)
        if original is not None and is_earlier and original.is_like(seen):
            walk.discard_copy(seen)
            return
        given_up, before = await self._since(walk, seen)
        first = given_up[-1] if given_up else seen
        is_in_place = (first.n, first.total - first.size) == (seen.n, seen.total - seen.size)
        if first.is_like(seen) or not is_in_place or before >= seen.seq:
            walk.discard_copy(seen)
        else:
            walk.replace(given_up, seen)

    async def _since(self, walk: _Walk, seen: _Seen) -> tuple[list[_Seen], int]:
        """Return the good entries before one, back to one of lower n, and the seq of that."""
        key, stop, found = self._keys.streams[walk.kind], f"({seen.id.decode()}", list[_Seen]()
        count = walk.page_entries

        async def read_page(client: AnyClient) -> Sequence[RawEntry]:
            page: Sequence[RawEntry] = await client.xrevrange(key, stop, "-", count)
            return page

        while page := await self._link.call(read_page):
            for raw in page:
                earlier = None if raw[0] in walk.doubles else _Seen.of(raw, walk.kind)
                if earlier is not None:
                    if earlier.n < seen.n:
                        return found, earlier.seq
                    found.append(earlier)
            stop = f"({page[-1][0].decode()}"
        return found, 0

    async def _first_at(self, kind: Kind, seq: int) -> _Seen | None:
        """Return the first entry of a kind at a seq, or after it."""
        after, number = seq - 1 or "", KINDS.index(kind) + 1
        start = await self._link.run(scripts.FIND, self._keys.all, number, after, "", "")

        async def fetch(client: AnyClient) -> Sequence[RawEntry]:
            entries: Sequence[RawEntry] = await client.xrange(
                self._keys.streams[kind], start, "+", 1
            )
            return entries

        entries = await self._link.call(fetch) if start else ()
        return _Seen.of(entries[0], kind) if entries else None

    async def _discard_remains(self, walk: _Walk) -> None:
        """Discard what nobody has counted, if a record of another kind has its position.

        That, too, is a part of a batch that a server has brought back.
        """
        remains = []
        for seen in walk.uncounted:
            if not await self._is_taken(seen, walk.kind):
                break
            remains.append(seen)
        walk.give_up(remains)

    async def _is_taken(self, seen: _Seen, kind: Kind) -> bool:
        for other in KINDS:
            if other != kind:
                found = await self._first_at(other, seen.seq)
                if found is not None and found.seq == seen.seq:
                    return True
        return False

    async def _pages(self, walk: _Walk, stream: StreamState) -> AsyncIterator[Sequence[RawEntry]]:
        key, start, count = self._keys.streams[walk.kind], "-", walk.page_entries
        if not stream.length:
            return

        async def read_page(client: AnyClient) -> Sequence[RawEntry]:
            page: Sequence[RawEntry] = await client.xrange(key, start, stream.last_id, count)
            return page

        while page := await self._link.call(read_page):
            yield page
            if len(page) < count:
                return
            start = f"({page[-1][0].decode()}"

    def _note_wrong_counters(self, found: Findings, detail: str) -> None:
        found.wrong_counters = True
        found.anomalies.append(PersistenceAnomaly("corrupt", detail, self._keys.meta))


class _Seen(msgspec.Struct, frozen=True):
    """What tells a good entry from another, without its record, which may be large."""

    id: bytes
    seq: int
    n: int
    total: int
    size: int
    crc: bytes

    @classmethod
    def of(cls, raw: RawEntry, kind: Kind) -> _Seen | None:
        """Return it; `None` for an entry that is bad."""
        entry, _ = read(raw)
        if entry is None:
            return None
        crc = raw[1][b"crc"]
        record, wrong = check(entry, crc, kind)
        if record is None and (wrong is None or wrong[0] != "unknown_kind"):
            return None
        return cls(entry.id, entry.seq, entry.n, entry.total, len(entry.record), crc)

    def is_like(self, other: _Seen) -> bool:
        """Return whether both hold the same record at the same position."""
        return (self.seq, self.size, self.crc) == (other.seq, other.size, other.crc)


class _Walk:
    """One stream's entries, one after the other."""

    def __init__(self, kind: Kind, key: str, state: StoreState, found: Findings) -> None:
        self.kind = kind
        self._key = key
        self._found = found
        self._stream = state.streams[kind]
        #: how many entries to read at once
        self.page_entries = max(1, min(PAGE_ENTRIES, PAGE_BYTES // self._stream.average))
        #: the n, the total and the seq of the last entry in order
        self.n = self._stream.trimmed_n
        self._total = self._stream.trimmed_total
        self._seq = 0
        #: the ids of what is there twice; n and total of a copy that came last
        self.doubles: set[bytes] = set()
        self._copied: tuple[int, int] | None = None
        #: what is there beyond the counters: all of it, or more than a commit has
        self.uncounted: list[_Seen] = []
        #: what seems to be missing, and the seq of the record after it
        self.suspects: list[tuple[Range, int | None]] = []

    def visit(self, raw: RawEntry) -> bool:
        """Check an entry; return False for one whose place was given before: see `decide`."""
        found = self._found
        entry, wrong = read(raw)
        if entry is None:
            assert wrong is not None
            self._reject(raw[0], wrong, None)
            return True
        found.records += 1
        found.bytes_read += len(entry.record)
        record, wrong = check(entry, raw[1][b"crc"], self.kind)
        follows = entry.n == self.n + 1 and entry.total_before == self._total
        if record is None and (wrong is None or wrong[0] != "unknown_kind"):
            assert wrong is not None
            found.records -= 1
            found.bytes_read -= len(entry.record)
            self._reject(raw[0], wrong, entry.seq)
            if not follows:
                return True
            found.gone[self.kind].append((entry.n, entry.n, self._total, entry.total))
        elif entry.n <= self.n or entry.seq <= self._seq:
            seen = _Seen.of(raw, self.kind)
            if seen is None or (entry.n - 1, entry.total_before) != self._copied:
                return False
            self.discard_copy(seen)  # it goes on where the last one ended
            return True
        else:
            if wrong is not None:
                found.anomalies.append(self._anomaly(wrong, raw[0], entry.seq))
            if not follows:
                self._miss(entry.n - 1, entry.total_before, entry.seq)
            if entry.n > self._stream.n and len(self.uncounted) <= MAX_COMMIT_RECORDS:
                seen = _Seen.of(raw, self.kind)
                assert seen is not None
                self.uncounted.append(seen)
        self._copied = None
        self.n, self._total, self._seq = entry.n, entry.total, entry.seq
        return True

    def replace(self, given_up: Sequence[_Seen], by: _Seen) -> None:
        """Take an entry instead of others that came before it, newest first."""
        for seen in reversed(given_up):
            self.discard(seen)
        self.uncounted = [seen for seen in self.uncounted if seen.id not in self.doubles]
        if by.n > self._stream.n:
            self.uncounted.append(by)
        self._copied = None
        self.n, self._total, self._seq = by.n, by.total, by.seq

    def give_up(self, remains: Sequence[_Seen]) -> None:
        """Reject the first of what is beyond the counters; the rest of it, if any, is good."""
        for seen in remains:
            self.discard(seen)
        if remains and len(remains) == len(self.uncounted):
            self.n = self._stream.n

    @property
    def is_beyond(self) -> bool:
        """Whether there is more than was counted."""
        return self.n > self._stream.n

    def discard_copy(self, seen: _Seen) -> None:
        """Reject an entry that is there already."""
        self._copied = (seen.n, seen.total)
        self.discard(seen)

    def discard(self, seen: _Seen) -> None:
        """Reject an entry that is good, but whose position another one has."""
        self.doubles.add(seen.id)
        self._found.records -= 1
        self._found.bytes_read -= seen.size
        self._reject(seen.id, ("duplicate", f"record {seen.seq} is there twice"), seen.seq)

    def finish(self) -> None:
        """Look whether records are missing at the end."""
        if self.n < self._stream.n:
            self._miss(self._stream.n, self._stream.total, None)

    def report_suspects(self, trimmed_n: int, lost: Sequence[Range]) -> None:
        """Report what is missing still: not trimmed since, and not known to be gone."""
        suspects, self.suspects = self.suspects, []
        for (first, last, before, after), seq in suspects:
            if last <= trimmed_n or _is_covered(first, last, lost):
                continue
            where = f"before record {seq}" if seq is not None else "at the end"
            detail = f"{max(last - first + 1, 1)} of kind {self.kind} are missing {where}"
            self._found.gone[self.kind].append((first, last, before, after))
            self._found.anomalies.append(PersistenceAnomaly("gap", detail, self._key, seq=seq))

    def _miss(self, last: int, total: int, seq: int | None) -> None:
        self.suspects.append(((self.n + 1, last, self._total, total), seq))

    def _reject(self, identifier: bytes, wrong: Wrong, seq: int | None) -> None:
        self._found.bad[self.kind].append(identifier)
        self._found.anomalies.append(self._anomaly(wrong, identifier, seq))

    def _anomaly(self, wrong: Wrong, identifier: bytes, seq: int | None) -> PersistenceAnomaly:
        kind, detail = wrong
        return PersistenceAnomaly(kind, detail, self._key, seq=seq, entry=identifier.decode())


def _is_covered(first: int, last: int, lost: Sequence[Range]) -> bool:
    for begin, end, *_ in sorted(lost):
        if begin <= first <= end:
            first = end + 1
    return first > last
