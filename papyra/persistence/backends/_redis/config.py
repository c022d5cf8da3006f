"""The configuration of a store on Redis: its URL, its keys, its time-outs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import msgspec

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy
from papyra.persistence.backends._redis.options import check_options, check_tls, once
from papyra.persistence.records import KINDS, Kind

__all__ = ("Keys", "RedisStreamsConfig", "Target", "Topology", "is_redis_url")

Topology: TypeAlias = Literal["server", "sentinel", "cluster"]

#: The schemes of URLs, each with what it leads to.
_SCHEMES: dict[str, Topology] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_DATABASE = re.compile("[0-9]{1,9}")
_DEFAULT_PORTS: dict[Topology, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}

_STREAMS: dict[Kind, str] = {"event": "events", "audit": "audits", "dead_letter": "dead_letters"}

#: Thirty years, which clocks and servers can count in milliseconds.
MOST_SECONDS = 10**9

_ACKNOWLEDGE = re.compile(r"memory|aof|replicas:[1-9][0-9]{0,3}")


class RedisStreamsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The URL of a store, its name there, and how calls to it behave.

    The URL leads to a server (``redis://``, ``rediss://`` with TLS, ``unix://``), to the master of
    a service (``redis+sentinel://host:port,host:port/service``) or to a cluster
    (``redis+cluster://host:port,host:port``). Its query takes the options of redis-py's
    ``from_url`` that can work, such as ``ssl_ca_certs``, and for Sentinels with passwords of their
    own ``sentinel_username`` and ``sentinel_password``. Secrets in it are shown nowhere.

    **What an acknowledgement means.** With ``memory``, that the server has the record in its
    memory: how durable that is, its own settings say. ``aof`` waits until it is synced to the
    server's disk (``WAITAOF``; servers before Redis 7.2 must have ``appendfsync always``), and
    ``replicas:2`` until two replicas have it (``WAIT``). A write that is not confirmed in time
    raises `StoreNotAcknowledged`, and is taken back.

    Raises `InvalidPolicy` for what makes no sense.
    """

    url: str = "redis://127.0.0.1:6379/0"
    #: the beginning of every key, in front of a colon and `system_id`
    prefix: str = "papyra"
    #: whose store it is; a store has one writer at a time
    system_id: str = "papyra"
    #: ``memory``, ``aof``, or ``replicas:N``
    acknowledge: str = "memory"
    #: seconds to wait for the disk or the replicas
    acknowledge_timeout: float = 5.0
    #: seconds to wait for a connection
    connect_timeout: float = 5.0
    #: seconds to wait for the answer to one call; one more for each MiB of records, or of a
    #: snapshot, that it carries
    timeout: float = 5.0
    #: seconds for which a call is tried again while the server can't be reached, or is not ready
    retry_for: float = 10.0
    #: seconds before the second try, at most; it doubles with each one, and a random part is used
    backoff: float = 0.05
    #: seconds between two tries, at most
    max_backoff: float = 1.0
    #: connections at a time; each `follow` and each `consume` holds one
    max_connections: int = 100
    #: how `compact` trims where there are no histories: to the record, or (faster) as it fits the
    #: stream's own blocks
    trim: Literal["exact", "approximate"] = "exact"
    #: refuse to write, recover and compact
    read_only: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.url, str) or not is_redis_url(self.url):
            # No word of the URL itself: there may be a password in it.
            raise InvalidPolicy(f"url begins with one of {', '.join(f'{s}://' for s in _SCHEMES)}")
        for name in ("prefix", "system_id"):
            value = getattr(self, name)
            if (
                not isinstance(value, str)
                or not value
                or not value.isprintable()
                or set(value) & {"{", "}"}
            ):
                raise InvalidPolicy(
                    f"{name} is a printable string without braces, which mark what decides where "
                    f"in a cluster a key is, not {shown(value)}"
                )
        if not isinstance(self.acknowledge, str) or not _ACKNOWLEDGE.fullmatch(self.acknowledge):
            raise InvalidPolicy(
                f"acknowledge is 'memory', 'aof' or 'replicas:N', not {shown(self.acknowledge)}"
            )
        for name in ("acknowledge_timeout", "connect_timeout", "timeout", "backoff", "max_backoff"):
            self._check_seconds(name, least=0.001)
        self._check_seconds("retry_for", least=0)
        if type(self.max_connections) is not int or self.max_connections < 1:
            raise InvalidPolicy(
                f"max_connections is a whole number above 0, not {shown(self.max_connections)}"
            )
        if self.trim not in ("exact", "approximate"):
            raise InvalidPolicy(f"trim is 'exact' or 'approximate', not {shown(self.trim)}")
        if type(self.read_only) is not bool:
            raise InvalidPolicy(f"read_only is True or False, not {shown(self.read_only)}")
        longest = self.timeout
        if self.acknowledge != "memory":
            longest += self.acknowledge_timeout
        target = Target.of(self.url)
        check_options(self.url.partition("://")[0], target.options, longest)

    def _check_seconds(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not is_seconds(value, least) or value > MOST_SECONDS:
            raise InvalidPolicy(f"{name} is seconds, up to {MOST_SECONDS}, not {shown(value)}")

    @classmethod
    def from_url(cls, url: str) -> RedisStreamsConfig:
        """Return the configuration that a URL with the options of this class in its query means.

        ``redis://localhost/0?prefix=papyra&system_id=orders&acknowledge=aof``. What is no option
        of this class stays in the URL. Raises `InvalidPolicy`.
        """
        base, _, query = url.partition("?")
        options = once(parse_qsl(query, keep_blank_values=True))
        own = set(cls.__struct_fields__) - {"url"}
        ours = {name: value for name, value in options.items() if name in own}
        theirs = {name: value for name, value in options.items() if name not in own}
        rest = f"{base}?{urlencode(theirs)}" if theirs else base
        try:
            return msgspec.convert({**ours, "url": rest}, cls, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidPolicy(f"an option of a Redis URL makes no sense: {error}") from None

    def check_options(self) -> None:
        """Raise `InvalidPolicy` for an option that redis-py does not know, or none of this URL."""
        target = Target.of(self.url)
        check_tls(self.url.partition("://")[0], target.options)
        if target.topology != "server":
            return
        from redis.asyncio import ConnectionPool  # noqa: PLC0415 - which takes its time

        try:
            ConnectionPool.from_url(target.plain_url).make_connection()  # type: ignore[no-untyped-call]
        except (TypeError, ValueError) as error:
            # Their words may repeat a value.
            name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            what = f"{name[1]!r}" if name else "one with a value that it can't have"
            raise InvalidPolicy(f"the URL has an unknown option: {what}") from None

    @property
    def replicas(self) -> int:
        """The number of replicas that must have a record before it is acknowledged."""
        _, _, count = self.acknowledge.partition(":")
        return int(count or 0)

    @property
    def keys(self) -> Keys:
        """The names of everything that the store keeps."""
        return Keys(self.prefix, self.system_id)

    @property
    def location(self) -> str:
        """The URL without anything that may be secret."""
        return Target.of(self.url).location

    def __rich_repr__(self) -> Any:
        yield "location", self.location
        yield "prefix", self.prefix
        yield "system_id", self.system_id

    def __repr__(self) -> str:
        shown = [f"url={self.location!r}"]
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            if field.name != "url" and value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"RedisStreamsConfig({', '.join(shown)})"


def is_redis_url(url: str) -> bool:
    """Return whether a URL has one of the schemes that lead to Redis."""
    scheme, colon, _ = url.partition("://")
    return bool(colon) and scheme in _SCHEMES


class Keys:
    """The names of what one store keeps: all in one slot of a cluster, thanks to the braces.

    Where a prefix has colons in it, they say how long it is: ``a:b`` and ``c`` is no other way to
    write ``a`` and ``b:c``. Versions before did not say that, so either of the two may be what is
    there without it: the one that writes it first.
    """

    def __init__(self, prefix: str, system_id: str) -> None:
        self.prefix = prefix
        self._plain = f"{{{prefix}:{system_id}}}"
        self._unmistakable = f"{self._plain}/{len(prefix)}"
        #: whether another prefix and system id look the same
        self.is_ambiguous = self._plain.count(":") > 1
        self.tag = self.meta = self.index = self.bases = ""
        self.snapshots = self.snapshot_names = self.positions = ""
        self.streams: dict[Kind, str] = {}
        #: what scripts about records are given
        self.all: list[str] = []
        self.use(plain=":" not in prefix)

    @property
    def hashes(self) -> tuple[str, str]:
        """The plain name of the hash, and the unmistakable one."""
        return f"{self._plain}:meta", f"{self._unmistakable}:meta"

    def use(self, *, plain: bool) -> None:
        """Use the plain names, or those that say how long the prefix is."""
        self.tag = self._plain if plain else self._unmistakable
        #: a hash: who writes, and what was given and removed so far
        self.meta = f"{self.tag}:meta"
        self.streams |= {kind: f"{self.tag}:{_STREAMS[kind]}" for kind in KINDS}
        #: a sorted set: where the records of each actor are
        self.index = f"{self.tag}:actors"
        #: a hash: the bases of histories, by the ids of the entries that they are read in place of
        self.bases = f"{self.tag}:bases"
        self.all[:] = [self.meta, *self.streams.values(), self.index, self.bases]
        #: a hash: the snapshots, by their names; and a sorted set: these names
        self.snapshots = f"{self.tag}:snapshots"
        self.snapshot_names = f"{self.tag}:snapshot_names"
        #: a hash: the positions of those who follow the store, by their names
        self.positions = f"{self.tag}:positions"

    @property
    def beside(self) -> list[str]:
        """What scripts about snapshots are given."""
        return [self.meta, self.snapshots, self.snapshot_names]

    @property
    def everything(self) -> list[str]:
        """All that there may be of the store, to remove it."""
        quarantines = map(self.quarantine, KINDS)
        beside = (self.snapshots, self.snapshot_names, self.snapshot_quarantine, self.positions)
        return [*self.all, *beside, *quarantines]

    @property
    def snapshot_quarantine(self) -> str:
        """The hash to which a recovery moves damaged snapshots."""
        return f"{self.tag}:quarantine:snapshots"

    @property
    def mark(self) -> str:
        """The prefix that a writer notes where the plain names could be another store's."""
        return self.prefix if self.is_ambiguous and self.tag == self._plain else ""

    def quarantine(self, kind: Kind) -> str:
        """Return the stream to which a recovery moves what is damaged."""
        return f"{self.tag}:quarantine:{kind}"


class Target(msgspec.Struct, frozen=True):
    """The target of a URL: a server, a Sentinel service or a cluster."""

    topology: Topology
    #: host and port of servers, Sentinels or nodes; none for a socket
    nodes: tuple[tuple[str, int], ...]
    #: the service whose master the Sentinels know
    service: str
    #: the URL of one server, with user, password, database and options, as redis-py reads it
    plain_url: str
    location: str
    #: of the query
    options: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Target({self.location!r})"

    @classmethod
    def of(cls, url: str) -> Target:
        """Return the target of `url`; raises `InvalidPolicy`, without repeating its secrets."""
        scheme, _, rest = url.partition("://")
        topology = _SCHEMES[scheme]
        rest, _, query = rest.partition("?")
        options = once(parse_qsl(query, keep_blank_values=True))
        if "#" in rest + query:
            raise InvalidPolicy("url has a '#', which is written %23")
        if not url.isprintable():
            raise InvalidPolicy("url has characters that can't be printed: write them as %0A")
        if scheme == "unix":
            return cls._socket(rest, options)
        authority, slash, tail = rest.partition("/")
        user, at, hosts = authority.rpartition("@")
        _check_user(user, options)
        try:
            nodes = _nodes(hosts, _DEFAULT_PORTS[topology])
            parts = urlsplit(f"redis://{hosts.partition(',')[0]}{slash}{tail}")
        except ValueError:
            raise InvalidPolicy("url has hosts that can't be read: it is host:port,...") from None
        path = [unquote(part) for part in parts.path.split("/") if part]
        service = ""
        if topology == "sentinel":
            if not path:
                raise InvalidPolicy(
                    "the url of a Sentinel names a service: redis+sentinel://host:port/service"
                )
            service = path.pop(0)
        elif topology == "server" and len(nodes) > 1:
            raise InvalidPolicy(
                "url has more than one host: begin it with redis+sentinel:// or redis+cluster://"
            )
        if len(path) > 1 or any(not _DATABASE.fullmatch(part) for part in path):
            raise InvalidPolicy("url ends with the number of a database, or with none")
        if path and options.get("db", path[0]) != path[0]:
            raise InvalidPolicy("url names two databases: one in the path, one as the option 'db'")
        if topology == "cluster" and {*path, options.get("db", "0")} - {"0"}:
            raise InvalidPolicy("a cluster has database 0 only, also as the option 'db'")
        database = f"/{path[0]}" if path else ""
        shown = database or (f"/{options['db']}" if "db" in options else "")
        host, port = nodes[0]
        query = f"?{query}" if query else ""
        first = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        plain = f"{scheme.partition('+')[0]}://{user}{at}{first}{database}{query}"
        where = f"/{service}" if service else ""
        shown = f"{scheme}://{hosts}{where}{shown}"
        return cls(topology, nodes, service, plain, shown, options)

    @classmethod
    def _socket(cls, rest: str, options: dict[str, str]) -> Target:
        authority, slash, path = rest.partition("/")
        user, _, host = authority.rpartition("@")
        _check_user(user, options)
        if host or not path:
            raise InvalidPolicy("a socket has an absolute path: unix:///run/redis.sock?db=0")
        shown = f"unix://{slash}{path}{'?db=' + options['db'] if 'db' in options else ''}"
        query = f"?{urlencode(options)}" if options else ""
        return cls("server", (), "", f"unix://{rest}{query}", shown, options)


def _check_user(user: str, options: Mapping[str, str]) -> None:
    """Raise `InvalidPolicy` if a user or a password is there twice, and not the same."""
    names = ("username", "password")
    for name, value in zip(names, map(unquote, user.split(":", 1)), strict=False):
        if value and options.get(name, value) != value:
            raise InvalidPolicy(f"url has the {name} twice, once as an option")


def _nodes(hosts: str, default_port: int) -> tuple[tuple[str, int], ...]:
    """Return hosts and ports; a comma too many is no way to say localhost."""
    if "," in hosts and not all(hosts.split(",")):
        raise ValueError("no host between two commas")
    return tuple(_node(host, default_port) for host in hosts.split(","))


def _node(host: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if parts.path or parts.username is not None or parts.port == 0:
        raise ValueError("no host")
    return parts.hostname or "localhost", parts.port or default_port
