"""Stores, as URLs name them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, unquote

from papyra.exceptions import InvalidPolicy, InvalidStoreURL, MissingExtra, UnsupportedPlatform
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence

__all__ = ("STORE_SCHEMES", "backend_from_url")


def _memory(rest: str) -> PersistenceBackend:
    if rest:
        raise InvalidStoreURL(f"'memory:' takes nothing after the colon, not {rest!r}")
    return InMemoryPersistence()


def _json(rest: str, *, read_only: bool) -> PersistenceBackend:
    # When it is needed, as it takes its time.
    from papyra.persistence.backends.json import JsonFilePersistence  # noqa: PLC0415

    make = functools.partial(JsonFilePersistence, read_only=read_only)
    return _files("json", rest, make, {"fsync": str})


def _rotating(rest: str, *, read_only: bool) -> PersistenceBackend:
    from papyra.persistence.backends.rotating import RotatingFilePersistence  # noqa: PLC0415

    options: dict[str, Callable[[str], object]] = {
        "fsync": str,
        "max_segment_bytes": int,
        "max_segment_records": int,
        "max_segment_age": float,
    }
    make = functools.partial(RotatingFilePersistence, read_only=read_only)
    return _files("rotating", rest, make, options)


def _files(
    scheme: str,
    rest: str,
    make: Callable[..., PersistenceBackend],
    options: Mapping[str, Callable[[str], object]],
) -> PersistenceBackend:
    """Return a backend on the path in a URL, with the options in its query."""
    path, _, query = rest.partition("?")
    if path.startswith("//") and not path.startswith("///"):
        raise InvalidStoreURL(
            f"a path is '{scheme}:///an/absolute/path' or '{scheme}:a/relative/one'"
        )
    given = dict(parse_qsl(query, keep_blank_values=True))
    path = unquote(path.removeprefix("//"))
    if not path or given.keys() - options.keys():
        known = ", ".join(options)
        raise InvalidStoreURL(f"'{scheme}:' takes a path, and ?{known}=..., not {rest!r}")
    try:
        return make(path, **{name: options[name](value) for name, value in given.items()})
    except (InvalidPolicy, UnsupportedPlatform, ValueError) as error:
        raise InvalidStoreURL(str(error)) from error


def _redis(scheme: str, rest: str) -> PersistenceBackend:
    try:
        # When it is needed, and not missed by those who have not installed it.
        from papyra.persistence.backends.redis import (  # noqa: PLC0415
            RedisStreamsConfig,
            RedisStreamsPersistence,
        )

        config = RedisStreamsConfig.from_url(f"{scheme}:{rest}")
        config.check_options()
        return RedisStreamsPersistence(config)
    except (InvalidPolicy, MissingExtra) as error:
        raise InvalidStoreURL(str(error)) from error


_REDIS_SCHEMES = tuple(
    f"redis{tls}{topology}" for tls in ("", "s") for topology in ("", "+sentinel", "+cluster")
)

_FILES = {"json": _json, "rotating": _rotating}
_SCHEMES: Mapping[str, Callable[[str], PersistenceBackend]] = {
    "memory": _memory,
    # What comes after the colon is read together with the scheme.
    **{scheme: functools.partial(_redis, scheme) for scheme in (*_REDIS_SCHEMES, "unix")},
}


#: What a store's URL may begin with.
STORE_SCHEMES = (*_SCHEMES, *_FILES)


def backend_from_url(url: str, *, read_only: bool = False) -> PersistenceBackend:
    """Return a new backend, not opened yet, on the store that `url` names.

    Such as ``memory:``, ``json:///var/lib/app/events.ndjson?fsync=everysec``,
    ``rotating:///var/lib/app/journal``, ``redis://localhost/0?system_id=orders`` or
    ``unix:///run/redis.sock?db=0``. Of files, one that is `read_only` takes no lock. Raises
    `InvalidStoreURL`, which repeats no part of it that may be secret.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme in _FILES:
        return _FILES[scheme](rest, read_only=read_only)
    make = _SCHEMES.get(scheme) if colon else None
    if make is None:
        known = ", ".join(f"{name}:" for name in sorted(STORE_SCHEMES))
        # The scheme only: the rest of a URL may hold a password.
        wrong = f"unknown scheme {scheme + ':'!r}" if colon else "a URL without a scheme"
        raise InvalidStoreURL(f"{wrong}; known: {known}")
    return make(rest)
