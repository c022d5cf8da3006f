"""A walk through every entry of a store: what is wrong, and what a recovery does about it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence

from papyra.exceptions import StoreAccessDenied
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.entries import (
    RawEntry,
    id_of,
)
from papyra.persistence.backends._redis.link import AnyClient, RedisLink
from papyra.persistence.backends._redis.state import StoreState, StreamState
from papyra.persistence.backends._redis.walk import Findings, Seen, Walk
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import PersistenceAnomaly, StoreSummary

__all__ = ("Survey",)

#: How many entries one call removes.
REMOVED_AT_ONCE = 500


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
        walks = [Walk(kind, self._keys.streams[kind], state, found) for kind in KINDS]
        for walk in walks:
            async for page in self._pages(walk, state.streams[walk.kind]):
                for raw in page:
                    unclear = walk.visit(raw)
                    if unclear is not None:
                        await self._decide(walk, unclear)
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

    async def _settle(self, walk: Walk) -> None:
        """Report what is missing, but for what somebody has trimmed meanwhile."""
        state = (await self.state()).streams[walk.kind]
        walk.report_suspects(state.trimmed_n, state.lost)

    async def _decide(self, walk: Walk, seen: Seen) -> None:
        """Find out whether an entry is a copy, or has come where others were given up.

        A server that was killed while it wrote a batch may bring a part of it back later, in front
        of what was stored in its place since. That part goes.
        """
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

    async def _since(self, walk: Walk, seen: Seen) -> tuple[list[Seen], int]:
        """Return the good entries before one, back to one of lower n, and the seq of that."""
        key, stop, found = self._keys.streams[walk.kind], f"({seen.id.decode()}", list[Seen]()
        count = walk.page_entries

        async def read_page(client: AnyClient) -> Sequence[RawEntry]:
            page: Sequence[RawEntry] = await client.xrevrange(key, stop, "-", count)
            return page

        while page := await self._link.call(read_page):
            for raw in page:
                earlier = None if raw[0] in walk.doubles else Seen.read(raw, walk.kind)
                if earlier is not None:
                    if earlier.n < seen.n:
                        return found, earlier.seq
                    found.append(earlier)
            stop = f"({page[-1][0].decode()}"
        return found, 0

    async def _first_at(self, kind: Kind, seq: int) -> Seen | None:
        """Return the first entry of a kind at a seq, or after it."""
        after, number = seq - 1 or "", KINDS.index(kind) + 1
        start = await self._link.run(scripts.FIND, self._keys.all, number, after, "", "")

        async def fetch(client: AnyClient) -> Sequence[RawEntry]:
            entries: Sequence[RawEntry] = await client.xrange(
                self._keys.streams[kind], start, "+", 1
            )
            return entries

        entries = await self._link.call(fetch) if start else ()
        return Seen.read(entries[0], kind) if entries else None

    async def _discard_remains(self, walk: Walk) -> None:
        """Discard what nobody has counted, if a record of another kind has its position.

        That, too, is a part of a batch that a server has brought back.
        """
        remains = []
        for seen in walk.uncounted:
            if not await self._is_taken(seen, walk.kind):
                break
            remains.append(seen)
        walk.give_up(remains)

    async def _is_taken(self, seen: Seen, kind: Kind) -> bool:
        for other in KINDS:
            if other != kind:
                found = await self._first_at(other, seen.seq)
                if found is not None and found.seq == seen.seq:
                    return True
        return False

    async def _pages(self, walk: Walk, stream: StreamState) -> AsyncIterator[Sequence[RawEntry]]:
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
