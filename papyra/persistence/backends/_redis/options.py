"""The options in the query of a Redis URL: which can work, and with which values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from papyra.exceptions import InvalidPolicy

__all__ = ("check_options", "check_tls", "once")

#: What redis-py takes for yes and for no; anything else it takes for yes.
_YES_OR_NO = {*"01tfyn", "true", "false", "yes", "no"}

_Check = Callable[[str], bool]


def _is_text(value: str) -> bool:
    return bool(value)


def _is_name(value: str) -> bool:
    """Return whether a server takes it: it refuses spaces, and what is not ASCII."""
    return bool(value) and all("!" <= each <= "~" for each in value)


def _is_yes_or_no(value: str) -> bool:
    return value.lower() in _YES_OR_NO


def _is_seconds(value: str) -> bool:
    try:
        return 0 < float(value) < math.inf
    except ValueError:
        return False


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdigit() and int(value[:9]) > 0


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) < 10


def _is(*words: str) -> _Check:
    return lambda value: value.lower() in words


_EVERYWHERE: Mapping[str, _Check] = {
    "client_name": _is_name,
    # Answers are read as they come, as bytes, and in the protocol's second version.
    "decode_responses": _is("false", "0", "no", "f", "n"),
    "encoding": _is("utf-8", "utf8"),
    "encoding_errors": _is("strict"),
    "health_check_interval": _is_number,
    "lib_name": _is_name,
    "lib_version": _is_name,
    "max_connections": _is_count,
    "password": _is_text,
    "protocol": _is("2"),
    "socket_connect_timeout": _is_seconds,
    "socket_read_size": _is_count,
    "socket_timeout": _is_seconds,
    "username": _is_text,
    "db": _is_number,
}
_TCP: Mapping[str, _Check] = {"socket_keepalive": _is_yes_or_no}
_TLS: Mapping[str, _Check] = {
    "ssl_ca_certs": _is_text,
    "ssl_ca_data": _is_text,
    "ssl_cert_reqs": _is("none", "optional", "required"),
    "ssl_certfile": _is_text,
    "ssl_check_hostname": _is_yes_or_no,
    "ssl_ciphers": _is_text,
    "ssl_keyfile": _is_text,
    "ssl_min_version": _is("771", "772"),
}
_TLS_BUT_IN_A_CLUSTER: Mapping[str, _Check] = {"ssl_ca_path": _is_text, "ssl_password": _is_text}
_SENTINEL: Mapping[str, _Check] = {
    "sentinel_username": _is_text,
    "sentinel_password": _is_text,
}

_WHY_NOT = {
    "decode_responses": "records are read as bytes",
    "protocol": "answers are read as RESP2",
    "encoding": "what is written is UTF-8",
    "client_name": "a server takes printable ASCII without spaces",
    "lib_name": "a server takes printable ASCII without spaces",
    "lib_version": "a server takes printable ASCII without spaces",
    "retry": "what is tried again, and how long, is retry_for",
    "retry_on_timeout": "what is tried again, and how long, is retry_for",
    "retry_on_error": "what is tried again, and how long, is retry_for",
    "socket_timeout": "it is shorter than what a call may wait: set timeout",
}


def once(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return options by name; raise `InvalidPolicy` for one that is there twice."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidPolicy(f"the URL has the option {name!r} twice")
        found[name] = value
    return found


def check_options(scheme: str, options: Mapping[str, str], longest: float) -> None:
    """Raise `InvalidPolicy` for an option that can't work with a URL of that scheme.

    A call may last `longest` seconds. No value is repeated: it may be a secret.
    """
    known = _known(scheme)
    for name, value in options.items():
        if name not in known:
            raise InvalidPolicy(_refusal("an unknown option", name))
        if not known[name](value):
            raise InvalidPolicy(_refusal("an option with a value that it can't have", name))
    if float(options.get("socket_timeout", math.inf)) < longest:
        raise InvalidPolicy(_refusal("an option with a value that it can't have", "socket_timeout"))


def check_tls(scheme: str, options: Mapping[str, str]) -> None:
    """Raise `InvalidPolicy` for an option of TLS where there is none."""
    for name in options:
        if name.startswith("ssl_") and not scheme.startswith("rediss"):
            raise InvalidPolicy(f"the URL has an option of TLS, {name!r}: begin it with rediss")


def _known(scheme: str) -> dict[str, _Check]:
    known = {**_EVERYWHERE, **_TLS}
    if scheme != "unix":
        known |= _TCP
    if not scheme.endswith("+cluster"):
        known |= _TLS_BUT_IN_A_CLUSTER
    if scheme.endswith("+sentinel"):
        known |= _SENTINEL
    return known


def _refusal(what: str, name: str) -> str:
    shown = repr(name) if name.isprintable() and len(name) < 50 else "one that is no name"
    why = f" ({_WHY_NOT[name]})" if name in _WHY_NOT else ""
    return f"the URL has {what}: {shown}{why}"
