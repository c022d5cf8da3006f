"""The compaction of a store: streams are trimmed, thinned where there are histories."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from papyra.exceptions import StoreError
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.actor_index import ActorIndex
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.entry_format import following
from papyra.persistence.backends._redis.fenced_writer import Writer
from papyra.persistence.backends._redis.reader import Reader
from papyra.persistence.backends._redis.store_state import StoreState, StreamState, read_state
from papyra.persistence.backends._redis.thinning import Thinning, is_thinned
from papyra.persistence.backends._redis.trimming import Trimming
from papyra.persistence.backends.store import NewBase
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import CompactedKind, CompactionReport
from papyra.persistence.retention import Limits, RetentionPolicy

__all__ = ("Compaction",)


class Compaction:
    """Removes what a policy hides, and what bases stand for. Runs on asyncio."""

    def __init__(
        self, client: RedisClient, writer: Writer, reader: Reader, index: ActorIndex
    ) -> None:
        self._client = client
        self._reader = reader
        self.thinning = Thinning(client)
        self._trimming = Trimming(client, writer, index, self.thinning)
        self._operator = "=" if client.config.trim == "exact" else "~"

    async def compact(
        self, name: str, policy: RetentionPolicy, now: float, bases: Sequence[NewBase]
    ) -> CompactionReport:
        """Compact the store by what `policy` hides at Unix time `now`."""
        before = await self._look()
        firsts = {kind: await self._first(kind, before, policy, now) for kind in KINDS}
        for kind, first in firsts.items():
            if first == "-":
                continue
            if is_thinned(kind, before):
                await self.thinning.thin(kind, before, first)
            else:
                # Where nothing is shown any more, what came since it was looked for is.
                start = first or following(before.streams[kind].last_id)
                number = KINDS.index(kind) + 1
                keys = self._client.keys.all
                await self._client.run(scripts.TRIM, keys, number, start, self._operator)
        if bases:
            await self._trimming.trim(bases, firsts["event"])
        after = await read_state(self._client)
        kept = await self._count_kept(before, after, firsts["event"])
        return _report(name, before, after, kept)

    async def foresee(
        self, name: str, policy: RetentionPolicy, now: float, bases: Sequence[NewBase]
    ) -> CompactionReport:
        """Return the report that `compact` would return, and change nothing."""
        before = after = await self._look()
        firsts = {kind: await self._first(kind, before, policy, now) for kind in KINDS}
        for kind, first in firsts.items():
            if first != "-":
                foresee = self.thinning.foresee if is_thinned(kind, before) else self._trimmed
                after = after.with_stream(kind, await foresee(kind, before, first))
        kept = await self._count_kept(before, after, firsts["event"])
        if bases:
            removed = await self._trimming.foresee(bases, firsts["event"])
            stream, kept = after.streams["event"], kept - removed.hidden
            grown = sum(len(base.encoded) for base in bases) - removed.replaced - removed.size
            noted = msgspec.structs.replace(stream.kept, size=stream.kept.size + grown)
            left = stream.length - removed.count
            stream = msgspec.structs.replace(stream, length=left, kept=noted)
            after = after.with_stream("event", stream)
        return _report(name, before, after, kept)

    async def _look(self) -> StoreState:
        state = await read_state(self._client)
        if state.wrong or not all(stream.agrees for stream in state.streams.values()):
            raise StoreError(f"{self._client.location} is damaged: recover it before compacting it")
        return state

    async def _first(
        self, kind: Kind, state: StoreState, policy: RetentionPolicy, now: float
    ) -> str | None:
        """Return the id of the first entry that is shown, ``-`` for all, and `None` for none."""
        limits = policy.of(kind)
        if limits == Limits() or not state.streams[kind].length:
            return "-"
        return await self._reader.first_visible(kind, limits, now)

    async def _count_kept(self, before: StoreState, after: StoreState, first: str | None) -> int:
        """Return how many hidden events are kept for histories."""
        if first == "-" or not is_thinned("event", before):
            return 0
        return await self.thinning.count_kept(after.streams["event"].kept, first)

    async def _trimmed(self, kind: Kind, state: StoreState, first: str | None) -> StreamState:
        """Return what a stream would be that begins with the entry `first`, or is empty."""
        stream = state.streams[kind]
        entry = None if first is None else await self._reader.read_at(kind, first)
        if entry is None:
            return stream.trimmed_to(stream.n, stream.total)
        return stream.trimmed_to(entry.n - 1, entry.total_before)


def _report(name: str, before: StoreState, after: StoreState, kept: int) -> CompactionReport:
    kinds = {
        kind: _compacted(stream, after.streams[kind]) for kind, stream in before.streams.items()
    }
    return CompactionReport.of_kinds(name, kinds, kept)


def _compacted(before: StreamState, after: StreamState) -> CompactedKind:
    return CompactedKind(before.length, after.length, before.held_bytes, after.held_bytes)
