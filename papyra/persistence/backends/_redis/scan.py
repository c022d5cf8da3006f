"""The scan of a store: it checks every entry of every stream, and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from papyra.exceptions import StoreError
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.base_scan import BaseScan
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.entry_format import RawEntry, Rebased, id_of, record_of
from papyra.persistence.backends._redis.index_scan import IndexScan
from papyra.persistence.backends._redis.kept_scan import KeptScan
from papyra.persistence.backends._redis.store_state import StoreState, StreamState, read_state
from papyra.persistence.backends._redis.stream_scan import Findings, Seen, StreamScan
from papyra.persistence.backends.history_check import HistoryCheck
from papyra.persistence.records import KINDS, Kind, Record
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("StoreScan",)

#: How often a scan begins anew while writers take over from each other.
SCANS = 10


class StoreScan:
    """Reads the streams from end to end, up to where they end when it begins."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._keys = client.keys

    async def scan(self, advance: Callable[[int, int], None] | None = None) -> Findings:
        """Check every entry. `advance` is told how many are done, of how many, page by page.

        What was taken back meanwhile may have been read before, and what was written instead after
        that: then it begins anew.
        """
        for _ in range(SCANS):
            found = await self._scan(advance)
            if found.mark == (await read_state(self._client)).mark:
                return found
        raise self._disturbed()

    async def scan_histories(self) -> list[PersistenceAnomaly]:
        """Check the revisions of every actor; begin anew as `scan` does."""
        for _ in range(SCANS):
            mark = (await read_state(self._client)).mark
            anomalies = [each async for each in self._history_anomalies()]
            if mark == (await read_state(self._client)).mark:
                return anomalies
        raise self._disturbed()

    async def _history_anomalies(self) -> AsyncIterator[PersistenceAnomaly]:
        key, history = self._keys.streams["event"], HistoryCheck()
        state = await read_state(self._client)
        if state.has_no_histories:
            return  # if the index says so and is wrong, the scan of the records tells
        scanned = StreamScan("event", key, state, Findings())
        async for page in self._pages(scanned, state.streams["event"]):
            for raw in page:
                if (record := _step_of(raw)) is not None:
                    anomaly = history.take(record, key, raw[0].decode())
                    if anomaly is not None:
                        yield anomaly

    def _disturbed(self) -> StoreError:
        return StoreError(
            f"{self._client.location}: writers have taken over {self._keys.tag} from each other "
            f"{SCANS} times while it was scanned: stop them first"
        )

    async def _scan(self, advance: Callable[[int, int], None] | None) -> Findings:
        state, done = await read_state(self._client), 0
        found = Findings(mark=state.mark, wrong=dict(state.wrong))
        self._note_wrong(found, state)
        index = IndexScan(self._client, state, found)
        kept, bases = (
            KeptScan(self._keys.streams["event"], state, found),
            BaseScan(self._client, found),
        )
        stream_scans = [StreamScan(kind, self._keys.streams[kind], state, found) for kind in KINDS]
        for stream_scan in stream_scans:
            async for page in self._pages(stream_scan, state.streams[stream_scan.kind]):
                await self._visit(stream_scan, kept, bases, page)
                if stream_scan.suspects:
                    await self._settle(stream_scan)
                await index.check(stream_scan.kind, page)
                done += len(page)
                if advance is not None:
                    advance(done, max(done, state.entries))
            stream_scan.finish()
            if stream_scan.suspects:
                await self._settle(stream_scan)
        kept.finish(await read_state(self._client))
        for name in found.wrong.keys() - state.wrong.keys():
            self._note_wrong_counters(found, f"{name} does not fit what is in the streams")
        if state.known:
            for stream_scan in stream_scans:
                await self._discard_orphans(stream_scan)
                if stream_scan.is_beyond:
                    detail = f"there are more {stream_scan.kind} records than counted"
                    self._note_wrong_counters(found, detail)
        await bases.finish()
        await index.finish()
        if advance is not None:
            advance(done, done)
        return found

    async def _visit(
        self, stream_scan: StreamScan, kept: KeptScan, bases: BaseScan, page: Sequence[RawEntry]
    ) -> None:
        """Check the entries of a page."""
        for raw in page:
            believed = bases.checked(raw) if type(raw[1]) is Rebased else raw
            if stream_scan.kind == "event" and kept.takes(believed):
                continue
            is_stray = type(believed[1]) is Rebased
            unclear = stream_scan.visit(bases.note_stray(believed) if is_stray else believed)
            if unclear is not None:
                await self._decide(stream_scan, unclear)

    def _note_wrong(self, found: Findings, state: StoreState) -> None:
        """Note what is wrong already with what is known about the streams."""
        for detail in state.wrong_in_words:
            self._note_wrong_counters(found, detail)
        for kind, stream in state.streams.items():
            if stream.is_blocked:
                end = stream.generated_id.decode()
                detail = f"nothing can be added behind the id {end}, which somebody has used"
                self._note_wrong_counters(found, detail, self._keys.streams[kind])

    async def _settle(self, stream_scan: StreamScan) -> None:
        """Report what is missing, but for what somebody has trimmed meanwhile."""
        stream_scan.report_suspects((await read_state(self._client)).streams[stream_scan.kind])

    async def _decide(self, stream_scan: StreamScan, seen: Seen) -> None:
        """Find out whether an entry is a copy, or has come where others were given up.

        A server that was killed while it wrote a batch may bring a part of it back later, in front
        of what was stored in its place since. That part goes.
        """
        original = await self._first_at(stream_scan.kind, seen.seq)
        # Among what is in disorder, a search may have found a later one.
        is_earlier = original is not None and id_of(original.id) < id_of(seen.id)
        if original is not None and is_earlier and original.is_like(seen):
            stream_scan.discard_copy(seen)
            return
        given_up, before = await self._since(stream_scan, seen)
        first = given_up[-1] if given_up else seen
        is_in_place = (first.n, first.total - first.size) == (seen.n, seen.total - seen.size)
        if first.is_like(seen) or not is_in_place or before >= seen.seq:
            if seen.seq > stream_scan.seq:
                stream_scan.count_anew(seen)  # nobody else has its position
            else:
                stream_scan.discard_copy(seen)
        else:
            stream_scan.replace(given_up, seen)

    async def _since(self, stream_scan: StreamScan, seen: Seen) -> tuple[list[Seen], int]:
        """Return the good entries before one, back to one of lower n, and the seq of that."""
        key, stop = self._keys.streams[stream_scan.kind], f"({seen.id.decode()}"
        found: list[Seen] = []
        count = stream_scan.page_entries
        while page := await self._client.entries(key, "-", stop, count, newest=True):
            for raw in page:
                if raw[0] in stream_scan.duplicates:
                    continue
                earlier = Seen.read(raw, stream_scan.kind)
                if earlier is not None:
                    if earlier.n < seen.n:
                        return found, earlier.seq
                    found.append(earlier)
            stop = f"({page[-1][0].decode()}"
        return found, 0

    async def _first_at(self, kind: Kind, seq: int) -> Seen | None:
        """Return the first entry of a kind at a seq, or after it."""
        after, number = seq - 1 or "", KINDS.index(kind) + 1
        start = await self._client.run(scripts.FIND, self._keys.all, number, after, "", "")
        key = self._keys.streams[kind]
        entries = await self._client.entries(key, start, "+", 1) if start else ()
        return Seen.read(entries[0], kind) if entries else None

    async def _discard_orphans(self, stream_scan: StreamScan) -> None:
        """Discard orphaned entries: uncounted ones at the position of a record of another kind.

        They, too, are a part of a batch that a server has brought back.
        """
        orphans = []
        for seen in stream_scan.uncounted:
            if not await self._is_taken(seen, stream_scan.kind):
                break
            orphans.append(seen)
        stream_scan.give_up(orphans)

    async def _is_taken(self, seen: Seen, kind: Kind) -> bool:
        for other in KINDS:
            if other != kind:
                found = await self._first_at(other, seen.seq)
                if found is not None and found.seq == seen.seq:
                    return True
        return False

    async def _pages(
        self, stream_scan: StreamScan, stream: StreamState
    ) -> AsyncIterator[Sequence[RawEntry]]:
        key, start, count = self._keys.streams[stream_scan.kind], "-", stream_scan.page_entries
        if not stream.length:
            return
        while page := await self._client.entries(key, start, stream.last_id.decode(), count):
            yield page
            if len(page) < count:
                return
            start = f"({page[-1][0].decode()}"

    def _note_wrong_counters(self, found: Findings, detail: str, key: str = "") -> None:
        found.wrong_counters = True
        found.anomalies.append(PersistenceAnomaly("corrupt", detail, key or self._keys.meta))


def _step_of(raw: RawEntry) -> Record | None:
    """Return the record of an entry, if that can be read and may be part of a history."""
    if isinstance(raw[1], Rebased) or b'"revision":' in raw[1].get(b"record", b""):
        return record_of(raw, "event")[0]
    return None
