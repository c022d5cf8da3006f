"""A walk through every entry of a store: what is wrong, and what a recovery does about it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from papyra.exceptions import StoreAccessDenied
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.entries import (
    Entry,
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
#: Entries that one call looks back.
LOOKED_BACK = 100
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
        for kind in KINDS:
            walk = _Walk(kind, self._keys.streams[kind], state, found)
            async for page in self._pages(kind, state.streams[kind]):
                for raw in page:
                    if not walk.visit(raw):
                        walk.decide(raw, await self._before(walk, raw))
                if walk.suspects:
                    await self._settle(walk)
                done += len(page)
                if advance is not None:
                    advance(done, max(done, state.entries))
            walk.finish()
            if walk.suspects:
                await self._settle(walk)
            if walk.n > state.streams[kind].n and state.known:
                self._note_wrong_counters(found, f"there are more {kind} records than counted")
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

    async def _before(self, walk: _Walk, raw: RawEntry) -> list[_Seen]:
        """Return the good entries before one, newest first, back to the first of lower n."""
        entry, _ = read(raw)
        assert entry is not None
        key, stop, found = self._keys.streams[walk.kind], f"({raw[0].decode()}", list[_Seen]()

        async def read_page(client: AnyClient) -> Sequence[RawEntry]:
            page: Sequence[RawEntry] = await client.xrevrange(key, stop, "-", LOOKED_BACK)
            return page

        while page := await self._link.call(read_page):
            for each in page:
                earlier, _ = (None, None) if each[0] in walk.doubles else read(each)
                crc = each[1].get(b"crc", b"")
                if earlier is not None and check(earlier, crc, walk.kind)[0] is not None:
                    found.append(_Seen(each[0], earlier.seq, earlier.n, earlier.total, crc))
                    if earlier.n < entry.n or len(found) > MAX_COMMIT_RECORDS:
                        return found
            stop = f"({page[-1][0].decode()}"
        return [*found, walk.start]

    async def _pages(self, kind: Kind, stream: StreamState) -> AsyncIterator[Sequence[RawEntry]]:
        key, start = self._keys.streams[kind], "-"
        count = max(1, min(PAGE_ENTRIES, PAGE_BYTES // stream.average))
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
    crc: bytes


class _Walk:
    """One stream's entries, one after the other."""

    def __init__(self, kind: Kind, key: str, state: StoreState, found: Findings) -> None:
        self.kind = kind
        self._key = key
        self._found = found
        self._stream = state.streams[kind]
        #: what stands for all that was trimmed
        self.start = _Seen(b"", 0, self._stream.trimmed_n, self._stream.trimmed_total, b"")
        #: the n, the total and the seq of the last entry in order
        self.n, self._total, self._seq = self.start.n, self.start.total, self.start.seq
        #: the ids of what is there twice, and n and total of the last copy
        self.doubles: set[bytes] = set()
        self._copied = (0, 0)
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
            # What goes on after a copy is one, too; so is what no batch reaches back to.
            goes_on = (entry.n - 1, entry.total_before) == self._copied
            if not goes_on and self.n - entry.n < MAX_COMMIT_RECORDS:
                return False
            self._discard_copy(entry)
            return True
        else:
            if wrong is not None:
                found.anomalies.append(self._anomaly(wrong, raw[0], entry.seq))
            if not follows:
                self._miss(entry.n - 1, entry.total_before, entry.seq)
        self.n, self._total, self._seq = entry.n, entry.total, entry.seq
        return True

    def decide(self, raw: RawEntry, earlier: Sequence[_Seen]) -> None:
        """Say whether an entry is a copy, or has come where `earlier` ones were given up.

        A server that was killed while it wrote a batch may bring a part of it back later, in front
        of what was stored in its place since. That part goes.
        """
        entry, _ = read(raw)
        assert entry is not None
        *given_up, before = earlier
        if (
            not given_up
            or (given_up[-1].seq, given_up[-1].crc) == (entry.seq, raw[1][b"crc"])
            or (before.n, before.total) != (entry.n - 1, entry.total_before)
            or before.seq >= entry.seq
        ):
            self._discard_copy(entry)
            return
        for each in reversed(given_up):
            self._discard(each.id, each.seq, each.total - before.total)
            before = each
        self.n, self._total, self._seq = entry.n, entry.total, entry.seq

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

    def _discard_copy(self, entry: Entry) -> None:
        self._copied = (entry.n, entry.total)
        self._discard(entry.id, entry.seq, len(entry.record))

    def _discard(self, identifier: bytes, seq: int, size: int) -> None:
        self.doubles.add(identifier)
        self._found.records -= 1
        self._found.bytes_read -= size
        self._reject(identifier, ("duplicate", f"record {seq} is there twice"), seq)

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
