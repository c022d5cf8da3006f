"""Closing connections: all of them, in bounded time, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any, cast

import anyio
from redis.asyncio import RedisCluster

__all__ = ("close_all", "transport_of")

logger = logging.getLogger("papyra")


async def close_all(clients: Iterable[Any], seconds: float) -> None:
    """Close redis-py's clients; after so many seconds, cut what can't be closed.

    Whoever is cancelled meanwhile is so in the end: what redis-py closes within a task that is
    cancelled stays open, and nobody knows of it any more.
    """
    clients = [client for client in clients if client is not None]
    transports = [transport for client in clients for transport in _transports(client)]
    closing = asyncio.create_task(_close(clients))
    cancelled = await _outlast(closing, seconds)
    if not closing.done():
        closing.cancel()
        logger.warning("connections that can't be closed in %g seconds are cut", seconds)
    for transport in transports:
        transport.abort()
    if cancelled is not None:
        raise cancelled


async def _close(clients: Iterable[Any]) -> None:
    for client in clients:
        # What can't be closed is cut; there is nothing that a caller could do about it.
        with contextlib.suppress(Exception):
            await client.aclose()


async def _outlast(task: asyncio.Task[None], seconds: float) -> asyncio.CancelledError | None:
    """Wait for a task, so many seconds at most; return what has cancelled the caller, if any."""
    now = asyncio.get_running_loop().time
    give_up_at, cancelled = now() + seconds, None
    with anyio.CancelScope(shield=True):
        while not task.done() and (left := give_up_at - now()) > 0:
            try:
                await asyncio.wait({task}, timeout=left)
            except asyncio.CancelledError as error:  # of asyncio's own, which no scope keeps off
                cancelled = error
    return cancelled


def _transports(client: Any) -> Iterator[asyncio.Transport]:
    """Yield the transports of a client's connections, which redis-py lets nobody see."""
    if isinstance(client, RedisCluster):
        nodes = client.nodes_manager.nodes_cache.values()
        connections = [each for node in nodes for each in node._connections]
    else:
        pool = client.connection_pool
        connections = [*pool._available_connections, *pool._in_use_connections]
    yield from filter(None, map(transport_of, connections))


def transport_of(connection: Any) -> asyncio.Transport | None:
    """Return the transport of a connection, `None` if it is not connected."""
    writer = getattr(connection, "_writer", None)
    return None if writer is None else cast("asyncio.Transport", writer.transport)
