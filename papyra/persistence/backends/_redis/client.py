"""The client: connections to a server, a Sentinel service or a cluster, and retries."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import socket
import ssl
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import anyio
import redis.exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from papyra.exceptions import (
    BackendClosed,
    InvalidPolicy,
    StoreError,
    StoreNotReady,
    StoreNotWritable,
    StoreUnreachable,
)
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.closing import close_all, transport_of
from papyra.persistence.backends._redis.config import RedisStreamsConfig, Target
from papyra.persistence.backends._redis.entry_format import RawEntry, id_of, raw_entries
from papyra.persistence.backends._redis.errors import store_error
from papyra.persistence.backends._redis.options import check_tls
from papyra.persistence.backends._redis.scripts import Script

try:
    hiredis: Any = importlib.import_module("hiredis")
except ImportError:  # the extra has it; redis-py does without
    hiredis = None

__all__ = ("AnyClient", "RedisClient", "ServerInfo", "connection_name")

#: redis-py's types of what commands return say little; replies are checked where they are used.
AnyClient: TypeAlias = Any

ResultT = TypeVar("ResultT")

#: Bytes a second of the slowest way to a server that much is carried on.
SLOWEST = 1024 * 1024

#: Options whose one value that can work is redis-py's own; some it would take the words of for yes.
_AS_IT_IS = ("decode_responses", "encoding", "encoding_errors")

#: What passes by itself, or with another connection: a replica is promoted, say.
_PASSING = (StoreUnreachable, StoreNotReady)


def connection_name(name: str) -> str:
    """Return what the connections of a client of this name are called: printable ASCII."""
    return f"papyra:{re.sub('[^!-~]', '?', name)}"


class ServerInfo:
    """The reply of a server to ``INFO``."""

    def __init__(self, info: dict[str, Any]) -> None:
        version = str(info.get("redis_version", "0"))
        self.version = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        self.is_cluster = info.get("cluster_enabled") == 1
        #: whether it keeps an append-only file; `None` if it does not say
        self.has_aof = bool(info["aof_enabled"]) if "aof_enabled" in info else None
        is_limited = info.get("maxmemory", 0) != 0
        #: what it removes when its memory is full; nothing if it never does
        self.eviction_policy = str(info.get("maxmemory_policy", "")) if is_limited else ""

    @property
    def can_wait_for_aof(self) -> bool:
        """Whether it knows ``WAITAOF``, and there is an AOF to wait for."""
        return self.version >= (7, 2) and self.has_aof is True


class RedisClient:
    """A client for whatever a URL leads to, and how it is used. Runs on asyncio alone.

    It belongs to the event loop in which it is used first; used in another, it connects anew.
    """

    def __init__(self, config: RedisStreamsConfig) -> None:
        self.config = config
        #: who this is, for other processes
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        #: of the store; where they could be another's, known for good once it is connected
        self.keys = config.keys
        self.target = Target.of(config.url)
        self.location = self.target.location
        self._backoff = ExponentialWithJitterBackoff(base=config.backoff, cap=config.max_backoff)
        self._client: AnyClient = None
        self._sentinels: list[AnyClient] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._info: ServerInfo | None = None
        self._connecting: asyncio.Lock
        #: whether somebody has closed it: nobody connects it again who is late
        self._is_closed = False
        #: the connection that `exchange` keeps, while nobody uses it
        self._connection: AnyClient = None

    async def call(
        self,
        operation: Callable[[AnyClient], Awaitable[ResultT]],
        *,
        retry: bool = True,
        tries: int = 1,
        shield: bool = False,
        timeout: float | None = None,
        size: int = 0,
    ) -> ResultT:
        """Return what `operation` does with the client, trying again while the trouble may pass.

        There are as many `tries` at least, however short the time is. Each has `timeout` seconds,
        by default the configured ones, and those that it takes to carry `size` bytes. With `shield`
        it is waited for even if the caller is cancelled meanwhile; the time between two tries is
        not.

        Between two tries it waits with exponential backoff and full jitter, as in "Exponential
        Backoff And Jitter" of the AWS Architecture Blog. Raises a `StoreError`, with redis-py's
        own as its cause.
        """
        seconds = (timeout or self.config.timeout) + size // SLOWEST
        now = asyncio.get_running_loop().time
        started, failures = now(), 0
        while True:
            try:
                # `anyio.fail_after`, at half its price.
                with anyio.CancelScope(deadline=now() + seconds, shield=shield):
                    return await operation(await self.client())
                raise TimeoutError(f"no answer in {seconds:g} seconds")
            except Exception as raised:
                error = store_error(raised, self.location)
                if error is None:
                    raise
                delay = self._backoff.compute(failures)
                failures += 1
                out_of_time = failures >= tries and (
                    not retry or now() + delay > started + self.config.retry_for
                )
                if isinstance(error, (*_PASSING, StoreNotWritable)):
                    await self.reconnect()
                if out_of_time or not self._may_pass(error):
                    if error is raised:
                        raise
                    raise error from raised
            await anyio.sleep(delay)

    def _may_pass(self, error: StoreError) -> bool:
        # Behind a Sentinel, or in a cluster, a server that has become a replica is replaced.
        is_failover = isinstance(error, StoreNotWritable) and self.target.topology != "server"
        return isinstance(error, _PASSING) or is_failover

    async def run(self, script: Script, keys: Sequence[str], *args: Any, tries: int = 1) -> Any:
        """Return what a script returns; tried again like any call, so it must not mind that."""

        async def attempt(client: AnyClient) -> Any:
            return await _run_once(client, script, keys, args)

        return await self.call(attempt, tries=tries)

    async def client(self) -> AnyClient:
        """Return the client of this event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._client, self._loop, self._info, self._connection = None, loop, None, None
            self._connecting = asyncio.Lock()
        if self._client is None:
            async with self._connecting:
                if self._client is None and not self._is_closed:
                    self._client = await self._connect()
        if self._is_closed:
            await self.close()  # it was connected meanwhile
            raise BackendClosed(f"{self.location} is closed")
        return self._client

    async def _connect(self) -> AnyClient:
        try:
            check_tls(self.config.url.partition("://")[0], self.target.options)
        except InvalidPolicy as error:
            raise StoreError(f"{self.location}: {error}") from None
        client = self._new_client(self.target.topology)
        try:
            self._info = await _info_of(client)
            if self._info.is_cluster and not self.target.nodes:
                raise StoreError(
                    f"{self.location}: this is a node of a cluster, whose others no socket leads "
                    "to: name some of them, as redis+cluster://host:port,host:port"
                )
            if self._info.is_cluster and self.target.topology == "server":
                await client.aclose()
                client = self._new_client("cluster")
                await client.initialize()
            if self.keys.is_ambiguous:
                await self._find_names(client)
        except BaseException:
            await close_all([client], self.config.connect_timeout)
            raise
        return client

    async def _find_names(self, client: AnyClient) -> None:
        """Find out which names the store has: those of versions before, if they are its own."""
        keys = self.keys
        plain, unmistakable = keys.hashes
        owner = await client.hget(plain, "prefix")
        is_mine = owner is None or owner.decode(errors="replace") == keys.prefix
        if is_mine and ":" in keys.prefix:
            is_mine = await client.exists(plain) and not await client.exists(unmistakable)
        keys.use(plain=bool(is_mine))

    async def entries(
        self, key: str, first: str, last: str, count: int, *, newest: bool = False
    ) -> Sequence[RawEntry]:
        """Return up to `count` entries between two ids: the oldest, or the `newest` first.

        Of events, bases are read in place of some.
        """
        bounds = ("XREVRANGE", last, first) if newest else ("XRANGE", first, last)
        command, *ends = bounds
        look = (command, key, *ends, "COUNT", count)

        async def fetch(client: AnyClient) -> tuple[Sequence[RawEntry], bool]:
            if key != self.keys.streams["event"]:
                [entries] = await self._replies(client, look)
                return _parsed(entries), False
            # There were bases before it, or there are some since: they are asked for.
            ask = ("HLEN", self.keys.bases)
            before, entries, after, noted = await self._replies(
                client, ask, look, ask, self._note_of_kept
            )
            raws = _parsed(entries)
            return raws, bool(before or after) and bool(_among_kept(raws, noted))

        raws, has_bases = await self.call(fetch)
        if not has_bases:
            return raws
        return raw_entries(*await self.run(scripts.PAGE, self.keys.all, *bounds, count))

    async def with_bases(self, key: str, raws: Sequence[RawEntry]) -> Sequence[RawEntry]:
        """Return entries of a stream as they are now: with bases, and those gone without fields."""
        if not raws or key != self.keys.streams["event"]:
            return raws

        async def look(client: AnyClient) -> list[Any]:
            return await self._replies(client, ("HLEN", self.keys.bases), self._note_of_kept)

        count, noted = await self.call(look)
        ids = _among_kept(raws, noted) if count else ()
        if not ids:
            return raws
        found = raw_entries(*await self.run(scripts.PAGE, self.keys.all, "ids", *ids))
        now = {each: dict[bytes, bytes]() for each in ids} | dict(found)
        return [(each, now.get(each, fields)) for each, fields in raws]

    @property
    def _note_of_kept(self) -> tuple[str, ...]:
        return ("HGET", self.keys.meta, "event:kept")

    async def replies(self, *commands: tuple[Any, ...], size: int = 0) -> list[Any]:
        """Send commands that change nothing in one piece, and return their replies as they come.

        Entries are lists of their id and a list of fields and values. Of replies that may be large,
        `size` says how many bytes they have.
        """

        async def fetch(client: AnyClient) -> list[Any]:
            replies = await self._replies(client, *commands)
            return list(map(_unparsed, replies)) if isinstance(client, RedisCluster) else replies

        return await self.call(fetch, size=size)

    async def _replies(self, client: AnyClient, *commands: tuple[Any, ...]) -> list[Any]:
        """Return the replies to commands; raise the first that is an error."""
        replies = await self.exchange(client, *commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def info(self) -> ServerInfo:
        """Return what the server said when it was connected."""

        async def look(client: AnyClient) -> ServerInfo:
            del client
            assert self._info is not None
            return self._info

        return await self.call(look)

    async def reconnect(self) -> None:
        """Let go of the idle connections: the next ones may lead elsewhere."""
        client = self._client
        if client is None:
            return
        await self._release_connection(client)
        if isinstance(client, RedisCluster):
            self._client = None
            await client.aclose()
        else:
            await client.connection_pool.disconnect(inuse_connections=False)

    async def exchange(self, client: AnyClient, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands in one piece over one connection, and return their replies.

        A reply may be an error; what is raised leaves open what has become of the commands. But for
        a cluster, the connection is kept for the next time: what redis-py does to fetch one from
        its pool and put it back takes half as long as the way to a server on the same machine.
        """
        if isinstance(client, RedisCluster):
            pipeline = client.pipeline(transaction=False)
            node = client.get_node_from_key(self.keys.meta)
            for command in commands:
                pipeline.execute_command(*command, target_nodes=node)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies
        connection, self._connection = self._connection, None
        if connection is None:
            connection = await client.connection_pool.get_connection()
        transport = transport_of(connection)
        try:
            await connection.send_packed_command(_pack(connection, commands))
            replies = [await _reply(connection) for _ in commands]
        except BaseException:
            if transport is not None:
                transport.abort()  # which would wait until what was written is sent
            with anyio.CancelScope(shield=True):
                await _discard(client, connection)
            raise
        if client.connection_pool.max_connections > 1 and self._connection is None:
            self._connection = connection
        else:  # others need it, too; or somebody else has put back another one meanwhile
            await client.connection_pool.release(connection)
        return replies

    async def _release_connection(self, client: AnyClient) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await _discard(client, connection)

    async def close(self) -> None:
        """Close every connection, in bounded time, and make no more until `reopen`."""
        self._is_closed = True
        client, self._client, self._connection = self._client, None, None
        sentinels, self._sentinels = self._sentinels, []
        if self._loop is asyncio.get_running_loop():
            await close_all((client, *sentinels), self.config.connect_timeout)

    def reopen(self) -> None:
        """Allow connections again."""
        self._is_closed = False

    def _new_client(self, topology: str) -> AnyClient:
        config, target = self.config, self.target
        # The options in the URL come last: whoever writes them there means it.
        options: dict[str, Any] = {
            "socket_connect_timeout": config.connect_timeout,
            # A call is given up as a whole: redis-py would make a task of each send.
            "socket_timeout": None,
            "max_connections": config.max_connections,
            "protocol": 2,
            "client_name": connection_name(self.name),
            # What is tried again, and when, is decided in `call`.
            "retry": Retry(NoBackoff(), 0),
            **parse_url(target.plain_url),
        }
        sentinel_options = {
            name.removeprefix("sentinel_"): options.pop(name)
            for name in ("sentinel_username", "sentinel_password")
            if name in options
        }
        for name in _AS_IT_IS:
            options.pop(name, None)
        if "ssl_min_version" in options:
            options["ssl_min_version"] = ssl.TLSVersion(int(options["ssl_min_version"]))
        if topology == "server":
            return Redis.from_pool(ConnectionPool(**options))
        is_tls = options.pop("connection_class", Connection) is SSLConnection
        options.pop("host", None)
        options.pop("port", None)
        if is_tls:
            options["ssl"] = True
        if topology == "cluster":
            nodes = [ClusterNode(host, port) for host, port in target.nodes]
            return RedisCluster(startup_nodes=nodes, **options)
        shared = {
            name: value
            for name, value in options.items()
            if name in ("retry", "socket_connect_timeout") or name.startswith("ssl")
        }
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(target.nodes),
            sentinel_kwargs={**shared, "socket_timeout": config.timeout, **sentinel_options},
            **options,
        )
        self._sentinels = list(sentinel.sentinels)
        return sentinel.master_for(target.service)


def _parsed(entries: Sequence[Any]) -> Sequence[RawEntry]:
    """Return entries as the server replied, or as redis-py has parsed them, as for a cluster."""
    is_parsed = bool(entries) and isinstance(entries[0][1], dict)
    return entries if is_parsed else raw_entries(entries)


def _unparsed(entries: Any) -> Any:
    """Return entries that redis-py has parsed as the server replied."""
    if not isinstance(entries, list):
        return entries
    return [
        [identifier, [word for field in fields.items() for word in field]]
        for identifier, fields in entries
    ]


def _among_kept(raws: Sequence[RawEntry], noted: bytes | None) -> list[bytes]:
    """Return the ids up to which compactions have looked: where bases are.

    All of them, where what is noted of that can't be read.
    """
    _, _, upto = (noted or b"").rpartition(b" ")
    if not re.fullmatch(rb"[0-9]{1,14}-[0-9]{1,14}", upto):
        return [identifier for identifier, _ in raws]
    limit = id_of(upto)
    return [identifier for identifier, fields in raws if fields and id_of(identifier) <= limit]


async def _discard(client: AnyClient, connection: Any) -> None:
    """Disconnect a connection, and let its pool have it back."""
    await connection.disconnect(nowait=True)
    await client.connection_pool.release(connection)


async def _run_once(
    client: AnyClient, script: Script, keys: Sequence[str], args: Sequence[Any]
) -> Any:
    """Return what a script returns, and teach it to a server that does not know it."""
    try:
        return await client.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
    except redis.exceptions.NoScriptError:
        return await client.execute_command("EVAL", script.source, len(keys), *keys, *args)


def _pack(connection: AnyClient, commands: Sequence[tuple[Any, ...]]) -> Any:
    if hiredis is None:
        return connection.pack_commands(commands)
    # In C; redis-py's asyncio client does not use it.
    return b"".join(map(hiredis.pack_command, commands))


async def _reply(connection: AnyClient) -> Any:
    try:
        return await connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error


async def _info_of(client: AnyClient) -> ServerInfo:
    try:
        if isinstance(client, RedisCluster):
            await client.initialize()
            return ServerInfo(await client.info(target_nodes=RedisCluster.RANDOM))
        return ServerInfo(await client.info())
    except redis.exceptions.NoPermissionError:
        return ServerInfo({})
