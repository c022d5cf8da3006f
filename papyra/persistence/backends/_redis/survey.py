"""A walk through every entry of a store: what is wrong, and what a recovery does about it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence

from papyra.exceptions import StoreAccessDenied, StoreError
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.entries import (
    RawEntry,
    id_of,
)
from papyra.persistence.backends._redis.link import AnyClient, RedisLink
from papyra.persistence.backends._redis.state import StoreState, StreamState
from papyra.persistence.backends._redis.walk import Findings, Renumbering, Seen, Walk
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import PersistenceAnomaly, StoreSummary

__all__ = ("Survey",)

#: How many entries one call removes.
REMOVED_AT_ONCE = 500
#: How often a scan begins anew while writers take over from each other.
SCANS = 10


class Survey:
    """Reads the streams from end to end, up to where they end when it begins."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._keys = link.keys

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
            location=f"{self._link.location} {self._keys.tag}",
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
        """Check every entry. `advance` is told how many are done, of how many, page by page.

        What was taken back meanwhile may have been read before, and what was written instead after
        that: then it begins anew.
        """
        for _ in range(SCANS):
            found = await self._scan(advance)
            if found.mark == (await self.state()).mark:
                return found
        raise StoreError(
            f"{self._link.location}: writers have taken over {self._keys.tag} from each other "
            f"{SCANS} times while it was scanned: stop them first"
        )

    async def _scan(self, advance: Callable[[int, int], None] | None) -> Findings:
        state, done = await self.state(), 0
        found = Findings(mark=state.mark, wrong=dict(state.wrong))
        self._note_wrong(found, state)
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
        for name in found.wrong.keys() - state.wrong.keys():
            self._note_wrong_counters(found, f"{name} does not fit what is in the streams")
        if state.known:
            for walk in walks:
                await self._discard_remains(walk)
                if walk.is_beyond:
                    detail = f"there are more {walk.kind} records than counted"
                    self._note_wrong_counters(found, detail)
        if advance is not None:
            advance(done, done)
        return found

    def _note_wrong(self, found: Findings, state: StoreState) -> None:
        """Note what is wrong already with what is known about the streams."""
        for detail in state.wrong_in_words:
            self._note_wrong_counters(found, detail)
        for kind, stream in state.streams.items():
            if stream.is_blocked:
                end = stream.generated_id.decode()
                detail = f"nothing can be added behind the id {end}, which somebody has used"
                self._note_wrong_counters(found, detail, self._keys.streams[kind])

    async def repair(self, found: Findings, *, quarantine: bool) -> tuple[int, list[str]] | None:
        """Remove what is bad; return how many entries that were, and where their copies are.

        `None` says that the store has been taken over meanwhile: it has to be scanned once more.
        """
        wrong = [word for field in found.wrong.items() for word in field]
        if wrong and await self._link.run(scripts.DROP, self._keys.all, found.mark, *wrong) < 0:
            return None
        removed, copies = 0, []
        for number, kind in enumerate(KINDS, start=1):
            keys, bad = self._keys.all, found.bad[kind]
            if quarantine and bad:
                keys = [*keys, self._keys.quarantine(kind)]
                copies.append(keys[-1])
            for start in range(0, len(bad), REMOVED_AT_ONCE):
                ids = bad[start : start + REMOVED_AT_ONCE]
                if await self._link.run(scripts.REMOVE, keys, number, found.mark, *ids) < 0:
                    return None
                removed += len(ids)
            if found.gone[kind]:
                args = number, found.mark, json.dumps(found.gone[kind])
                if await self._link.run(scripts.FORGET, self._keys.all, *args) < 0:
                    return None
        return removed, copies

    async def renumber(self, found: Findings, epoch: int) -> None:
        """Count anew what has wrong numbers, and let go of ids that nothing can follow.

        For the writer, whose epoch it is: nobody else appends meanwhile.
        """
        for number, (kind, stream) in enumerate((await self.state()).streams.items(), start=1):
            anew = found.renumberings.get(kind)
            if anew is None and stream.is_blocked:
                anew = Renumbering(b"+")
            if anew is not None:
                args = number, epoch, anew.id, anew.n, anew.total, int(stream.is_blocked)
                await self._link.run(scripts.RENUMBER, self._keys.all, *args)

    async def _settle(self, walk: Walk) -> None:
        """Report what is missing, but for what somebody has trimmed meanwhile."""
        walk.report_suspects((await self.state()).streams[walk.kind])

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
            if seen.seq > walk.seq:
                walk.count_anew(seen)  # nobody else has its position
            else:
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

    def _note_wrong_counters(self, found: Findings, detail: str, key: str = "") -> None:
        found.wrong_counters = True
        found.anomalies.append(PersistenceAnomaly("corrupt", detail, key or self._keys.meta))
