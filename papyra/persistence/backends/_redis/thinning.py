"""Compaction where there are histories, or an index: page by page, keeping events with a revision.

What is gone is noted as with ``XTRIM``, as all up to some record; and beside that, how many events
up to there are kept, and how large they are. So the note does not grow with the number of holes.
"""

from __future__ import annotations

import msgspec

from papyra.exceptions import StoreError
from papyra.persistence import codec
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.actor_index import member
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.entry_format import Entry, following, id_of, read
from papyra.persistence.backends._redis.store_state import (
    Kept,
    StoreState,
    StreamState,
    read_state,
)
from papyra.persistence.backends._redis.stream_scan import PAGE_BYTES, PAGE_ENTRIES
from papyra.persistence.records import KINDS, Kind

__all__ = ("Thinning", "is_thinned")


def is_thinned(kind: Kind, state: StoreState) -> bool:
    """Return whether records of a kind may be in the index, or have to be kept."""
    stream, index = state.streams[kind], state.index
    if kind != "event":
        return index.listed[kind][0] > 0
    return stream.kept.count > 0 or index.size != 0 or index.noted != 0 or index.indexed < stream.n


class _Page(msgspec.Struct):
    """Hidden entries, one after the other."""

    #: those that go
    going: list[Entry] = []
    kept: int = 0
    #: encoded
    kept_bytes: int = 0
    last: Entry | None = None

    def add(self, entry: Entry, kind: Kind, *, is_kept: bool) -> None:
        self.last = entry
        actor, revision = codec.concerned(entry.record)
        # What can't be read may have one.
        if is_kept or (kind == "event" and (actor is None or revision is not None)):
            self.kept += 1
            self.kept_bytes += len(entry.record)
        else:
            self.going.append(entry)


class Thinning:
    """Removes from a stream what a policy hides and has no revision. Runs on asyncio."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._keys = client.keys

    async def foresee(self, kind: Kind, state: StoreState, first: str | None) -> StreamState:
        """Return what a stream will be that is thinned up to the entry `first`, or to its end."""
        stream = state.streams[kind]
        length, kept, size = stream.length, stream.kept.count, stream.kept.size
        n, total = stream.trimmed_n, stream.trimmed_total
        position = await self._start(kind, n)
        while position and (page := await self._page(kind, state, position, first)) is not None:
            assert page.last is not None
            length -= len(page.going)
            kept, size = kept + page.kept, size + page.kept_bytes
            n, total = page.last.n, page.last.total
            position = f"({page.last.id.decode()}"
        return msgspec.structs.replace(
            stream,
            length=length,
            trimmed_n=n,
            trimmed_total=total,
            kept=msgspec.structs.replace(stream.kept, count=kept, size=size),
        )

    async def pass_over(self, identifier: bytes) -> None:
        """Count all events up to an entry among those that compactions have kept."""
        state = await read_state(self._client)
        await self.thin("event", state, following(identifier), keeps_all=True)

    async def thin(
        self, kind: Kind, state: StoreState, first: str | None, *, keeps_all: bool = False
    ) -> None:
        """Thin a stream up to the entry `first`, or to its end as it was in `state`."""
        end, position = state, ""
        while True:
            n = state.streams[kind].trimmed_n
            position = position or await self._start(kind, n)
            page = None
            if position:
                page = await self._page(kind, end, position, first, keeps_all=keeps_all)
            if page is None:
                return
            if await self._remove(kind, state, page):
                assert page.last is not None
                position = f"({page.last.id.decode()}"
            else:
                position = ""  # others have come in between
            state = await read_state(self._client)

    async def count_kept(self, kept: Kept, first: str | None) -> int:
        """Return how many of the events that are kept come before the entry `first`, or the end."""
        if first is None or id_of(first.encode()) > id_of(kept.upto):
            return kept.count
        count, start = 0, "-"
        while page := await self._client.entries(
            self._keys.streams["event"], start, f"({first}", PAGE_ENTRIES
        ):
            count, start = count + len(page), f"({page[-1][0].decode()}"
        return count

    async def _remove(self, kind: Kind, state: StoreState, page: _Page) -> bool:
        assert page.last is not None
        ids = [entry.id for entry in page.going]
        members = [found for entry in page.going if (found := member(entry, kind)) is not None]
        reply: int = await self._client.run(
            scripts.THIN,
            self._keys.all,
            KINDS.index(kind) + 1,
            state.mark,
            state.streams[kind].trimmed_n,
            page.last.n,
            page.last.total,
            page.last.id,
            page.kept,
            page.kept_bytes,
            len(ids),
            *ids,
            *(members if state.index.listed[kind][0] else ()),
        )
        return reply >= 0

    async def _start(self, kind: Kind, n: int) -> str:
        """Return the id of the first entry with a greater n; nothing, if there is none."""
        found = await self._client.run(scripts.SEEK, self._keys.all, KINDS.index(kind) + 1, n)
        return found[0].decode() if found else ""

    async def _page(
        self,
        kind: Kind,
        state: StoreState,
        start: str,
        first: str | None,
        *,
        keeps_all: bool = False,
    ) -> _Page | None:
        """Return the next entries that are hidden; `None` if there are no more."""
        stream = state.streams[kind]
        stop = stream.last_id.decode() if first is None else f"({first}"
        count = max(1, min(PAGE_ENTRIES, PAGE_BYTES // stream.average))
        raws = await self._client.entries(self._keys.streams[kind], start, stop, count)
        page = _Page()
        for raw in raws:
            entry, _ = read(raw)
            if entry is None or not entry.n:
                raise StoreError(
                    f"{self._client.location} is damaged: recover it before compacting it"
                )
            page.add(entry, kind, is_kept=keeps_all)
        return page if raws else None
