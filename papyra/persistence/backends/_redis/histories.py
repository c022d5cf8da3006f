"""Reading histories, and the records of one actor, by the index or, if that is no use, without."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeAlias, cast

from papyra._safe_repr import shown
from papyra.persistence import codec
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.actor_index import ActorIndex
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.entry_format import (
    FIELDS,
    RawEntry,
    checksums_at,
    id_of,
    read,
    record_of,
)
from papyra.persistence.backends._redis.store_state import read_state
from papyra.persistence.backends._redis.stream_scan import PAGE_BYTES, PAGE_ENTRIES
from papyra.persistence.backends.paging import (
    MAX_PAGE_BYTES,
    MAX_PAGE_RECORDS,
    MAX_RUN_RECORDS,
    collect_history,
    records_wanted,
)
from papyra.persistence.backends.store import MAX_SEQ
from papyra.persistence.messages import EncodedHistory, EncodedRun, HistoryPage, Read, ReadHistory
from papyra.persistence.records import KINDS, Kind, Record

__all__ = ("HistoryReader", "OwnEntries")

logger = logging.getLogger("papyra")

#: Events that are fetched first where a history is given out as it is stored, and then at once.
FIRST_RUN, LONGEST_RUNS = 256, 2048
#: Fewer entries than so many for each of a history are fetched with those that are between them.
DENSE = 1.5

#: Returns up to so many entries of a read's kind between two ids, in its direction.
Fetch: TypeAlias = Callable[[Read, str, str, int], Awaitable[Sequence[RawEntry]]]


class HistoryReader:
    """Reads the histories of actors. Runs on asyncio."""

    def __init__(self, client: RedisClient, index: ActorIndex) -> None:
        self._client = client
        self._keys = client.keys
        self._index = index
        #: an actor, its revision with which the last page has ended, and the seq of that
        self._bookmark: tuple[str, int, int] = ("", 0, 0)

    async def page(self, request: ReadHistory, in_doubt: range) -> HistoryPage:
        """Return a page of a history. Positions that are `in_doubt` are left out."""
        wanted = MAX_PAGE_RECORDS if request.limit is None else request.limit
        wanted = min(wanted, MAX_PAGE_RECORDS) + 1
        records: list[tuple[Record, int]] = []
        size = 0
        async for entries in self._entries(request, wanted):
            for raw in entries:
                record, length = self._readable(raw, request)
                if record is not None and record.seq not in in_doubt:
                    records.append((record, length))
                    size += length
            if len(records) >= wanted or size > MAX_PAGE_BYTES:
                break
        page = collect_history(request, records)
        if page.events:
            self._bookmark = (request.actor, page.next_after, page.events[-1].seq or 0)
        return page

    async def encoded_page(
        self, request: ReadHistory, in_doubt: range
    ) -> EncodedHistory | HistoryPage:
        """Return a page of a history as it is stored, if it can be given out so."""
        wanted, size, seq, is_end = records_wanted(request), 0, 0, False
        runs: list[EncodedRun] = []
        while wanted > 0 and size < MAX_PAGE_BYTES and not is_end:
            # Of records that are large there are few in a page.
            count = sum(run.count for run in runs)
            most = FIRST_RUN if not count else max(1, (MAX_PAGE_BYTES - size) * count // size)
            found = await self._runs(request, seq, min(wanted, most, LONGEST_RUNS))
            if found is None or (found[1] and in_doubt and found[1] >= in_doubt.start):
                return await self.page(request, in_doubt)
            more, seq, is_end = found
            runs += more
            wanted -= sum(run.count for run in more)
            size += sum(len(run.data) for run in more)
        return EncodedHistory(tuple(runs), False, seq, not is_end)

    async def _runs(
        self, request: ReadHistory, after: int, count: int
    ) -> tuple[list[EncodedRun], int, bool] | None:
        """Return up to `count` events of a history, the seq of the last, and whether it is the end.

        `None` says that they have to be looked at one by one.
        """
        found = await self._index.places(request.actor, request.after_revision, after, count)
        if found is None:
            return None
        places, is_end = found
        if not places:
            return [], after, is_end
        entries = await self._entries_at(places)
        runs: list[EncodedRun] = []
        for start in range(0, len(places), MAX_RUN_RECORDS):
            seqs = [seq for seq, _ in places[start : start + MAX_RUN_RECORDS]]
            run = _run(entries[start : start + MAX_RUN_RECORDS], seqs)
            if run is None:
                return None
            runs.append(run)
        return runs, places[-1][0], is_end

    async def _entries_at(
        self, places: Sequence[tuple[int, bytes]]
    ) -> list[Sequence[bytes] | None]:
        """Return the fields and values of the entries at some places; `None` for what is gone."""
        key = self._keys.streams["event"]
        first, last = places[0], places[-1]
        if last[0] - first[0] < DENSE * len(places):
            # Few others are between them.
            commands = [("XRANGE", key, first[1], last[1])]
        else:
            commands = [("XRANGE", key, identifier, identifier) for _, identifier in places]
        replies = await self._client.replies(*commands)
        found = {each[0]: each[1] for reply in replies for each in reply}
        return [found.get(identifier) for _, identifier in places]

    async def _entries(self, request: ReadHistory, count: int) -> AsyncIterator[Sequence[RawEntry]]:
        """Yield entries of the history, some at a time; from where the last page has ended."""
        actor, revision, seq = self._bookmark
        if (actor, revision) != (request.actor, request.after_revision):
            revision, seq = request.after_revision, 0
        is_end = False
        while not is_end:
            found = await self._index.history(request.actor, seq, 0 if seq else revision, count)
            if found is None:
                async for page in self._search(request.actor, seq):
                    yield page
                return
            yield found.entries
            seq, is_end = found.seq, found.is_end

    async def _search(self, actor: str, seq: int) -> AsyncIterator[Sequence[RawEntry]]:
        """Yield the events of an actor after a seq, for who can't rely on the index."""
        average = (await read_state(self._client)).streams["event"].average
        count = max(1, min(PAGE_ENTRIES, PAGE_BYTES // average))
        start = await first_after(self._client, "event", seq)
        while start:
            page = await self._client.entries(self._keys.streams["event"], start, "+", count)
            yield [raw for raw in page if _is_step_of(actor, raw)]
            start = f"({page[-1][0].decode()}" if len(page) == count else ""

    def _readable(self, raw: RawEntry, request: ReadHistory) -> tuple[Record | None, int]:
        record, length, wrong = record_of(raw, "event")
        if wrong is not None:
            logger.warning(
                "%s: entry %s, of the history of %s, can't be read, and is left out: %s",
                self._keys.streams["event"],
                raw[0].decode(),
                shown(request.actor),
                wrong,
            )
        return record, length


class OwnEntries:
    """The entries of a stream that concern one actor, and those that may do so. Runs on asyncio."""

    def __init__(self, client: RedisClient, index: ActorIndex, fetch: Fetch) -> None:
        self._client = client
        self._index = index
        self._fetch_all = fetch
        #: the seq up to which the index has all there is
        self._listed = 0
        #: the id from which on it has not; nothing, if there is none
        self._rest = "-"

    async def begin(self, request: Read) -> None:
        """Find out how far one can rely on the index."""
        self._listed, is_all = await self._index.listed(request.kind)
        self._rest = ""
        if not is_all:
            self._rest = await first_after(self._client, request.kind, self._listed)

    async def fetch(self, request: Read, start: str, stop: str, count: int) -> Sequence[RawEntry]:
        """Return up to `count` entries between two ids, in the direction of the read."""
        parts = (self._of_index, self._of_rest)
        entries: list[RawEntry] = []
        for part in reversed(parts) if request.newest else parts:
            if len(entries) < count:
                entries += await part(request, start, stop, count - len(entries))
        return entries

    async def _of_index(self, request: Read, start: str, stop: str, count: int) -> list[RawEntry]:
        after = await self._seq_before(request.kind, start)
        before = await self._seq_after(request.kind, stop)
        if after is None or before is None or not self._listed or request.actor is None:
            return []
        before = min(before, self._listed + 1)
        entries: list[RawEntry] = []
        while len(entries) < count and after + 1 < before:
            found = await self._index.own(
                request.kind, request.actor, after, before, request.newest, count - len(entries)
            )
            entries += found.entries
            if found.is_end:
                break
            if request.newest:
                before = found.seq
            else:
                after = found.seq
        return entries

    async def _of_rest(self, request: Read, start: str, stop: str, count: int) -> list[RawEntry]:
        if not self._rest:
            return []
        if start == "-" or id_of(start.lstrip("(").encode()) < id_of(self._rest.encode()):
            start = self._rest
        return list(await self._fetch_all(request, start, stop, count))

    async def _seq_before(self, kind: Kind, start: str) -> int | None:
        """Return the seq before those of a range; `None` if the range is empty."""
        if start == "-":
            return 0
        seq = id_of(start.lstrip("(").encode())[1]
        if seq:
            return seq if start.startswith("(") else seq - 1
        entries = await self._client.entries(self._client.keys.streams[kind], start, "+", 1)
        return id_of(entries[0][0])[1] - 1 if entries else None

    async def _seq_after(self, kind: Kind, stop: str) -> int | None:
        """Return the seq after those of a range; `None` if the range is empty."""
        if stop == "+":
            return MAX_SEQ + 1
        if stop.startswith("("):
            return id_of(stop[1:].encode())[1]
        key = self._client.keys.streams[kind]
        entries = await self._client.entries(key, "-", stop, 1, newest=True)
        return id_of(entries[0][0])[1] + 1 if entries else None


async def first_after(client: RedisClient, kind: Kind, seq: int) -> str:
    """Return the id of the first entry of a kind after a seq; nothing, if there is none."""
    number = KINDS.index(kind) + 1
    found: bytes = await client.run(scripts.FIND, client.keys.all, number, seq or "", "", "")
    return found.decode() if found != b"-" else "0-1"


def _run(entries: Sequence[Sequence[bytes] | None], seqs: Sequence[int]) -> EncodedRun | None:
    """Return a run of records whose checksums are right; `None` if it is anything else."""
    if any(fields is None or tuple(fields[::2]) != FIELDS for fields in entries):
        return None
    whole = cast("Sequence[Sequence[bytes]]", entries)
    records = [fields[1] for fields in whole]
    sums = b"".join([fields[7] for fields in whole])
    if checksums_at(records, seqs).encode() != sums:
        return None
    return EncodedRun(b"\n".join(records), len(records))


def _is_step_of(actor: str, raw: RawEntry) -> bool:
    entry, _ = read(raw)
    if entry is None:
        return False
    address, revision = codec.concerned(entry.record)
    return address == actor and revision is not None
