"""Which database, which of its systems, and how long to wait for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy, InvalidSetting, InvalidStoreURL

__all__ = ("DEFAULT_SCHEMA", "DEFAULT_SYSTEM", "Acknowledge", "Settings")

#: When a commit is acknowledged: it is on the server's disk, or on that of a synchronous standby,
#: or that standby shows it to readers.
Acknowledge: TypeAlias = Literal["local", "on", "remote_apply"]

DEFAULT_SYSTEM = "papyra"
DEFAULT_SCHEMA = "papyra"
#: Characters of the id of a system; bytes of a name in PostgreSQL.
_LONGEST, _LONGEST_NAME = 50, 63
#: Seconds: the server counts milliseconds in 31 bits.
_LONGEST_TIME = 2_000_000
_PORT = re.compile(r"\d{1,5}")
#: Seconds, and how often, to find out that an idle connection leads nowhere any more.
_KEEPALIVES = {"keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3}
_TIMES = ("connect_timeout", "statement_timeout", "lock_timeout")


class Settings(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The settings of a store. Raises `InvalidPolicy` and the like for what makes no sense."""

    #: as libpq takes it: a URL, or ``host=... dbname=...``
    dsn: str
    system_id: str
    schema: str
    acknowledge: Acknowledge
    #: seconds
    connect_timeout: float
    statement_timeout: float
    lock_timeout: float
    #: seconds for which a server is tried again that can't be reached, or is not ready
    retry_for: float
    read_only: bool

    def __post_init__(self) -> None:
        if type(self.dsn) is not str:
            raise InvalidSetting(f"dsn is a URL or a libpq string, not a {type(self.dsn).__name__}")
        _check_url(self.dsn)
        _check_name("system_id", self.system_id, _LONGEST)
        _check_name("schema", self.schema, _LONGEST_NAME)
        if len(self.schema.encode()) > _LONGEST_NAME or self.schema.startswith("pg_"):
            raise InvalidSetting(
                f"schema has up to {_LONGEST_NAME} bytes, and does not begin with 'pg_'"
            )
        if self.acknowledge not in get_args(Acknowledge):
            known = ", ".join(get_args(Acknowledge))
            raise InvalidPolicy(f"acknowledge is one of {known}, not {shown(self.acknowledge)}")
        for name in _TIMES:
            self._check_seconds(name, above=True)
        self._check_seconds("retry_for", above=False)
        self.parameters()

    def _check_seconds(self, name: str, *, above: bool) -> None:
        seconds = getattr(self, name)
        if not is_seconds(seconds, above=above, finite=True) or seconds > _LONGEST_TIME:
            least = "more than 0" if above else "from 0 on"
            raise InvalidPolicy(
                f"{name} is seconds, {least}, up to {_LONGEST_TIME:,}, not {shown(seconds)}"
            )

    def parameters(self) -> dict[str, Any]:
        """Return what libpq is told. Raises `InvalidStoreURL`, which repeats no secret."""
        given = _parsed(self.dsn)
        if self.has_several_hosts and not self.read_only:
            given.setdefault("target_session_attrs", "read-write")
        given.setdefault("connect_timeout", max(2, round(self.connect_timeout)))
        for name, value in _KEEPALIVES.items():
            given.setdefault(name, value)
        given.setdefault("tcp_user_timeout", round(1000 * self.statement_timeout))
        return {**given, "client_encoding": "utf8"}

    @cached_property
    def location(self) -> str:
        """The URL without anything that may be secret."""
        given = conninfo_to_dict(self.dsn)
        hosts = str(given.get("host") or given.get("hostaddr") or "").split(",")
        ports = str(given.get("port") or "").split(",")
        ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
        where = ",".join(
            f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=True)
        )
        service = f"service={given['service']}&" if given.get("service") else ""
        return (
            f"postgresql://{where}/{given.get('dbname', '')}?{service}"
            f"schema={self.schema}&system_id={self.system_id}"
        )

    @cached_property
    def has_several_hosts(self) -> bool:
        """Whether another server may take the place of one that is gone."""
        given = conninfo_to_dict(self.dsn)
        return "," in f"{given.get('host', '')}{given.get('hostaddr', '')}{given.get('port', '')}"

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat."""
        given: Mapping[str, Any] = conninfo_to_dict(self.dsn)
        found = (given.get(name) for name in ("password", "sslpassword", "oauth_client_secret"))
        return tuple(str(each) for each in found if each and len(str(each)) > 2)

    @property
    def conninfo(self) -> str:
        """Everything that libpq is told, as one string."""
        return make_conninfo(**self.parameters())

    def __rich_repr__(self) -> Any:
        yield "location", self.location

    def __repr__(self) -> str:
        return f"Settings({self.location!r})"


def _parsed(dsn: str) -> dict[str, Any]:
    """Return what libpq reads in a string. Raises `InvalidStoreURL`, which repeats none of it."""
    try:
        given: dict[str, Any] = conninfo_to_dict(dsn)
        # A whole string of parameters may be put there, passwords included.
        database = str(given.get("dbname", ""))
        is_readable = "://" not in database and "=" not in database and "\0" not in dsn
    except (psycopg.Error, ValueError):
        is_readable = False
    if not is_readable:
        raise InvalidStoreURL(
            "this is no URL, and no string of parameters, that libpq can read: it is "
            "postgresql://user:password@host:port/database?parameter=value, where what is "
            "special in a user or password is written with %, as %40 for @"
        )
    return given


def _check_url(dsn: str) -> None:
    """Refuse a URL of whose password libpq would take a part for a host, and show it."""
    scheme, separator, rest = dsn.partition("://")
    if not separator or scheme not in {"postgresql", "postgres"}:
        return
    before_query = rest.partition("?")[0]
    authority, _, path = before_query.partition("/")
    hosts = authority.rpartition("@")[2]
    ports = [host.rpartition(":")[2] for host in re.sub(r"\[[^]]*\]", "", hosts).split(",")]
    has_wrong_port = ":" in re.sub(r"\[[^]]*\]", "", hosts) and not all(
        _PORT.fullmatch(port) or ":" not in host
        for host, port in zip(re.sub(r"\[[^]]*\]", "", hosts).split(","), ports, strict=True)
    )
    if authority.count("@") > 1 or "@" in path or has_wrong_port or "#" in dsn:
        raise InvalidStoreURL(
            "this URL can't be read: what is special in a user or a password is written with %, "
            "as %40 for @, %2F for /, %3F for ?, %23 for # and %3A for a colon"
        )


def _check_name(setting: str, name: object, longest: int) -> None:
    if type(name) is not str or not 0 < len(name) <= longest:
        raise InvalidSetting(f"{setting} is a string of up to {longest} characters")
    if not name.isprintable():
        raise InvalidSetting(f"{setting} is printable, which {shown(name)} is not")
