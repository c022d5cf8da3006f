"""The summary of a store, by the counters that the server keeps."""

from __future__ import annotations

from papyra.exceptions import StoreAccessDenied
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.entry_format import id_of
from papyra.persistence.backends._redis.store_state import read_state
from papyra.persistence.reports import StoreSummary

__all__ = ("summarize",)


async def summarize(client: RedisClient) -> StoreSummary:
    """Summarize a store by its counters, without reading it. Runs on asyncio."""
    state = await read_state(client)
    streams = [stream for stream in state.streams.values() if stream.length]
    return StoreSummary(
        backend="redis",
        location=f"{client.location} {client.keys.tag}",
        last_seq=state.last,
        records={kind: stream.length for kind, stream in state.streams.items()},
        record_bytes={kind: stream.held_bytes for kind, stream in state.streams.items()},
        stored_bytes=await _memory(client),
        oldest=min((id_of(stream.first_id)[0] / 1000 for stream in streams), default=None),
        newest=max((id_of(stream.last_id)[0] / 1000 for stream in streams), default=None),
        writer=state.writer or None,
        damaged=not state.known and bool(streams),
    )


async def _memory(client: RedisClient) -> int | None:
    """Return the bytes of the server's memory that all of it takes, if it tells."""

    async def ask(connected: AnyClient) -> int:
        return sum([await connected.memory_usage(key) or 0 for key in client.keys.all])

    try:
        return await client.call(ask)
    except StoreAccessDenied:
        return None
