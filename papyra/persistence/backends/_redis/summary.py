"""The summary of a store, by the counters that the server keeps."""

from __future__ import annotations

from papyra.exceptions import StoreAccessDenied
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.entry_format import id_of
from papyra.persistence.backends._redis.store_state import StoreState, read_state
from papyra.persistence.records import KINDS
from papyra.persistence.reports import StoreSummary

__all__ = ("StoreSummarizer",)


class StoreSummarizer:
    """Counts records and bytes without reading them. Runs on asyncio."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._keys = client.keys

    async def summarize(self, intervals: int) -> StoreSummary:
        """Summarize the store by its counters, without reading it."""
        state = await read_state(self._client)
        streams = [stream for stream in state.streams.values() if stream.length]
        first = min((id_of(stream.first_id)[0] for stream in streams), default=0)
        last = max((id_of(stream.last_id)[0] for stream in streams), default=0)
        counts = await self._counts(state, first, last, intervals) if streams else ()
        return StoreSummary(
            backend="redis",
            location=f"{self._client.location} {self._keys.tag}",
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
        reply = await self._client.run(scripts.COUNT, self._keys.all, *marks)
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
            return await self._client.call(ask)
        except StoreAccessDenied:
            return None
