"""Stores, as URLs name them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, unquote

from papyra.exceptions import InvalidPolicy, InvalidStoreURL, MissingExtra
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence

__all__ = ("STORE_SCHEMES", "backend_from_url")


def _memory(rest: str) -> PersistenceBackend:
    if rest:
        raise InvalidStoreURL(f"'memory:' takes nothing after the colon, not {rest!r}")
    return InMemoryPersistence()


def _json(rest: str) -> PersistenceBackend:
    # When it is needed: it stands on what only POSIX has.
    from papyra.persistence.backends.json import JsonFilePersistence  # noqa: PLC0415

    return _files("json", rest, JsonFilePersistence, {"fsync": str})


def _rotating(rest: str) -> PersistenceBackend:
    from papyra.persistence.backends.rotating import RotatingFilePersistence  # noqa: PLC0415

    options: dict[str, Callable[[str], object]] = {
        "fsync": str,
        "max_segment_bytes": int,
        "max_segment_records": int,
        "max_segment_age": float,
    }
    return _files("rotating", rest, RotatingFilePersistence, options)


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
    except (InvalidPolicy, ValueError) as error:
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

_SCHEMES: Mapping[str, Callable[[str], PersistenceBackend]] = {
    "memory": _memory,
    "json": _json,
    "rotating": _rotating,
    # What comes after the colon is read together with the scheme.
    **{scheme: functools.partial(_redis, scheme) for scheme in _REDIS_SCHEMES},
}


#: What a store's URL may begin with.
STORE_SCHEMES = tuple(_SCHEMES)


def backend_from_url(url: str) -> PersistenceBackend:
    """Return a new backend, not opened yet, on the store that `url` names.

    Such as ``memory:``, ``json:///var/lib/app/events.ndjson?fsync=everysec``,
    ``rotating:///var/lib/app/journal`` or ``redis://localhost/0?system_id=orders``. Raises
    `InvalidStoreURL`, which repeats no part of it that may be secret.
    """
    scheme, colon, rest = url.partition(":")
    make = _SCHEMES.get(scheme) if colon else None
    if make is None:
        known = ", ".join(f"{name}:" for name in sorted(_SCHEMES))
        # The scheme only: the rest of a URL may hold a password.
        wrong = f"unknown scheme {scheme + ':'!r}" if colon else "a URL without a scheme"
        raise InvalidStoreURL(f"{wrong}; known: {known}")
    return make(rest)
