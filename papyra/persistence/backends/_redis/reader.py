"""Reading pages of records, and trimming what reads do not show."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import msgspec

from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.actor_index import ActorIndex
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.entry_format import (
    LATEST_MS,
    Entry,
    RawEntry,
    following,
    id_of,
    millisecond,
    read,
    record_of,
    whole,
)
from papyra.persistence.backends._redis.histories import OwnEntries
from papyra.persistence.backends._redis.kept import KeptEvents
from papyra.persistence.backends._redis.stream_scan import PAGE_BYTES, PAGE_ENTRIES
from papyra.persistence.backends.paging import MAX_PAGE_BYTES, MAX_PAGE_RECORDS, collect_page
from papyra.persistence.messages import Page, Read
from papyra.persistence.records import KINDS, Kind, Record
from papyra.persistence.retention import Limits, RetentionPolicy

__all__ = ("Reader",)

logger = logging.getLogger("papyra")

#: A read fetches at most this many entries, even if few of them are what it looks for.
MAX_FETCHED = 4 * MAX_PAGE_RECORDS
#: How many entries are fetched first when nobody knows how many it takes.
FIRST_FETCH = 200


class Reader:
    """Finds in a stream what a read asks for.

    Ids grow with the time of the records, and with their seq, so a read begins where it has to, and
    the number of records before that does not matter.
    """

    def __init__(self, client: RedisClient, index: ActorIndex) -> None:
        self._client = client
        self._keys = client.keys
        self._index = index
        self._kept = KeptEvents(client)
        #: the ids at the ends of the last page of each kind, by seq: where the next one begins
        self._bookmarks: dict[Kind, dict[int, bytes]] = {kind: {} for kind in KINDS}

    async def page(
        self, request: Read, policy: RetentionPolicy, now: float, in_doubt: range
    ) -> Page:
        """Return a page of what `policy` lets reads see at Unix time `now`.

        Positions that are `in_doubt` are left out.
        """
        limits = policy.of(request.kind)
        oldest = limits.oldest_time(now)
        since = max(
            -math.inf if oldest is None else oldest,
            -math.inf if request.since is None else request.since,
        )
        until = math.inf if request.until is None else request.until
        if request.before is not None and request.before <= 1:
            return _empty(request)
        start = await self._start(request.kind, request.after, since, limits)
        if start is None:
            return _empty(request)
        stop = await self._stop(request)
        fetch = self._fetch
        if request.actor is not None:
            own = OwnEntries(self._client, self._index, self._fetch)
            await own.begin(request)
            fetch = own.fetch

        key = self._keys.streams[request.kind]
        wanted = MAX_PAGE_RECORDS if request.limit is None else request.limit
        found = _Candidates(request)
        fetched = 0
        is_filtered = request.event_type is not None or request.actor is not None
        count = FIRST_FETCH if request.limit is None or is_filtered else wanted + 1
        edge, is_end = b"", False
        while not (
            is_end
            or found.matches > wanted
            or len(found.records) > MAX_PAGE_RECORDS
            or fetched >= MAX_FETCHED
            or (found.records and found.size - found.records[-1][1] >= MAX_PAGE_BYTES)
        ):
            count = min(count, PAGE_ENTRIES)
            raws = await fetch(request, start, stop, count)
            is_end = len(raws) < count
            fetched += len(raws)
            fetched_bytes = 1
            for raw in raws:
                edge = raw[0]
                record, length, wrong = record_of(raw, request.kind)
                fetched_bytes += length
                if wrong is not None or record is None:
                    logger.warning(
                        "%s: entry %s can't be read, and is left out: %s",
                        key,
                        raw[0].decode(),
                        wrong,
                    )
                    continue
                seq = record.seq or 0
                if (
                    seq > request.after
                    and (request.before is None or seq < request.before)
                    and since <= record.timestamp <= until
                    and seq not in in_doubt
                ):
                    found.add(seq, record, length)
            if raws:
                if request.newest:
                    stop = f"({edge.decode()}"
                else:
                    start = f"({edge.decode()}"
                average = fetched_bytes // len(raws) + 1
                count = min(2 * count, max(1, PAGE_BYTES // average))
        page = collect_page(request, found.records)
        if not page.more and not is_end and edge:
            # Much was looked at, and little of it was what is looked for.
            seq = id_of(edge)[1]
            page = msgspec.structs.replace(page, more=True, next_after=seq, next_before=seq)
            self._bookmarks[request.kind] = {seq: edge}
        return page

    async def first_visible(self, kind: Kind, limits: Limits, now: float) -> str | None:
        """Return the id from which on `limits` let reads see records; `None` if they see none."""
        oldest = limits.oldest_time(now)
        start = await self._start(kind, 0, -math.inf if oldest is None else oldest, limits)
        # Compactions end before it, and no range ends before an id that it would leave out.
        return following(start[1:].encode()) if start and start.startswith("(") else start

    async def read_at(self, kind: Kind, start: str) -> Entry | None:
        """Return the first entry that Papyra wrote, from an id on; `None` if there is none."""
        key = self._keys.streams[kind]
        while raws := await self._client.entries(key, start, "+", FIRST_FETCH):
            for raw in raws:
                entry, _ = read(raw)
                if entry is not None and entry.n:
                    return entry
            start = f"({raws[-1][0].decode()}"
        return None

    async def _start(self, kind: Kind, after: int, since: float, limits: Limits) -> str | None:
        start = "-"
        bookmark = self._bookmarks[kind].get(after)
        if after and bookmark is not None:
            start, after = f"({bookmark.decode()}", 0
        if after or limits.max_records is not None or limits.max_total_bytes is not None:
            found = await self._find(kind, after, limits.max_records, limits.max_total_bytes)
            if not found:
                return None
            start = _later(start, found)
        if since > -math.inf:
            start = _later(start, f"{millisecond(since)}-0")
        return start

    async def _stop(self, request: Read) -> str:
        stop = "+"
        if request.before is not None:
            bookmark = self._bookmarks[request.kind].get(request.before)
            if bookmark is not None:
                stop = f"({bookmark.decode()}"
            else:
                found = await self._find(request.kind, request.before - 1, None, None)
                stop = f"({found}" if found else "+"
        if request.until is not None:
            last = f"{millisecond(request.until) + await self._late()}"
            if stop == "+" or int(last) < id_of(stop.lstrip("(").encode())[0]:
                stop = last
        return stop

    async def _find(
        self, kind: Kind, after: int, max_records: int | None, max_bytes: int | None
    ) -> str:
        found: bytes = await self._client.run(
            scripts.FIND,
            self._keys.all,
            KINDS.index(kind) + 1,
            after or "",
            "" if max_records is None else max_records,
            "" if max_bytes is None else max_bytes,
        )
        return await self._kept.start(found.decode()) if b" " in found else found.decode()

    async def _fetch(self, request: Read, start: str, stop: str, count: int) -> Sequence[RawEntry]:
        key = self._keys.streams[request.kind]
        return await self._client.entries(key, start, stop, count, newest=request.newest)

    async def _late(self) -> int:
        """Return how much later than the record's own time an id may be, in milliseconds."""

        async def look(client: AnyClient) -> int:
            # What it can't be may have been anything.
            late = whole(await client.hget(self._keys.meta, "late") or b"0")
            return LATEST_MS if late is None else late

        return await self._client.call(look)


class _Candidates:
    """The candidates for a page, and the bytes of each record.

    A position that is there twice is shown as the last of the two that were read has it.
    """

    def __init__(self, request: Read) -> None:
        self._request = request
        self.records: list[tuple[Record, int]] = []
        #: of the records, in bytes
        self.size = 0
        #: how many of them the request selects
        self.matches = 0
        self._places: dict[int, int] = {}

    def add(self, seq: int, record: Record, length: int) -> None:
        """Take a record, in the order in which they are read."""
        place = self._places.setdefault(seq, len(self.records))
        if place == len(self.records):
            self.records.append((record, length))
        elif self._request.newest:
            return
        else:
            replaced, replaced_length = self.records[place]
            self.records[place] = (record, length)
            self.size -= replaced_length
            self.matches -= self._request.selects(replaced)
        self.size += length
        self.matches += self._request.selects(record)


def _later(one: str, other: str) -> str:
    """Return the later of two ids at which a range may start."""
    if one == "-" or other == "-":
        return other if one == "-" else one
    ids = [id_of(each.lstrip("(").encode()) for each in (one, other)]
    return other if ids[1] > ids[0] else one


def _empty(request: Read) -> Page:
    return Page((), request.after, more=False, next_before=request.before or 0)
