"""Which backend the tests of a project run on."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from papyra.exceptions import InvalidPolicy, MissingExtra
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.records import KINDS
from papyra.testing import _redis_server

__all__ = ("STORE_VARIABLE", "URL_VARIABLE", "UnknownStore", "forget", "new_store")

#: The name of one of the stores below; or, as ``module:callable``, what makes one.
STORE_VARIABLE = "PAPYRA_TEST_STORE"
#: Where the server is for the stores on Redis; without it, one is started.
URL_VARIABLE = "REDIS_URL"


class UnknownStore(Exception):
    """The variable names no store that there is."""


def _memory(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    del directory
    return InMemoryPersistence(**options)


def _json(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    # When it is needed: it stands on what only POSIX has. Nobody pulls the plug of a test.
    from papyra.persistence.backends.json import JsonFilePersistence  # noqa: PLC0415

    return JsonFilePersistence(directory() / "events.ndjson", fsync="no", **options)


def _rotating(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    from papyra.persistence.backends.rotating import RotatingFilePersistence  # noqa: PLC0415

    return RotatingFilePersistence(directory() / "journal", fsync="no", **options)


def _redis(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    del directory
    try:
        from papyra.persistence.backends.redis import (  # noqa: PLC0415
            RedisStreamsConfig,
            RedisStreamsPersistence,
        )
    except MissingExtra as error:
        raise UnknownStore(f"{STORE_VARIABLE} is 'redis': {error}") from error

    try:
        url = os.environ.get(URL_VARIABLE) or _redis_server.shared_server().url
    except _redis_server.NoServer as error:
        raise UnknownStore(f"{STORE_VARIABLE} is 'redis', but {error}") from error
    try:
        config = RedisStreamsConfig.from_url(url)
        config.check_options()
    except InvalidPolicy as error:
        raise UnknownStore(f"{URL_VARIABLE}: {error}") from error
    own = {"prefix": "papyra-test", "system_id": uuid.uuid4().hex}
    return RedisStreamsPersistence(msgspec.structs.replace(config, **own), **options)


_STORES: Mapping[str, Callable[[Callable[[], Path], Mapping[str, Any]], PersistenceBackend]] = {
    "memory": _memory,
    "json": _json,
    "rotating": _rotating,
    "redis": _redis,
}


def new_store(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    """Return a store made with `options`; `directory` makes one, for stores that need it."""
    name = os.environ.get(STORE_VARIABLE) or "memory"
    if ":" in name:
        store = _callable(name)(**options)
        if not isinstance(store, PersistenceBackend):
            raise UnknownStore(f"{STORE_VARIABLE} is {name!r}, which made {store!r}: no backend")
        return store
    make = _STORES.get(name)
    if make is None:
        known = ", ".join(_STORES)
        raise UnknownStore(
            f"{STORE_VARIABLE} is one of {known}, or 'module:callable', not {name!r}"
        )
    return make(directory, options)


def forget(store: PersistenceBackend) -> None:
    """Remove what a store made by `new_store` has left on a server that is not ours."""
    config = getattr(store, "config", None)
    url = os.environ.get(URL_VARIABLE)
    if url and config is not None and getattr(config, "prefix", None) == "papyra-test":
        import redis  # noqa: PLC0415

        with redis.Redis.from_url(config.url) as client:
            client.delete(*config.keys.all, *map(config.keys.quarantine, KINDS))


def _callable(name: str) -> Callable[..., object]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., object] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownStore(f"{STORE_VARIABLE} is {name!r}, which is not there: {error}") from error
    return found
