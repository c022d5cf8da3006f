"""What environment variables say."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from urllib.parse import parse_qsl, unquote

from papyra.exceptions import InvalidEnvironment, InvalidPolicy
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence

__all__ = ("PERSISTENCE_VARIABLE", "SETTINGS_MODULE_VARIABLE", "backend_from_url", "load_module")

#: A store's URL, such as ``memory:`` or ``json:///var/lib/app/events.ndjson?fsync=everysec``.
PERSISTENCE_VARIABLE = "PAPYRA_PERSISTENCE"
#: The dotted name of a module with settings as its attributes.
SETTINGS_MODULE_VARIABLE = "PAPYRA_SETTINGS_MODULE"


def _memory(rest: str) -> PersistenceBackend:
    if rest:
        raise InvalidEnvironment(f"'memory:' takes nothing after the colon, not {rest!r}")
    return InMemoryPersistence()


def _json(rest: str) -> PersistenceBackend:
    # When it is needed: it stands on what only POSIX has.
    from papyra.persistence.backends.json import JsonFilePersistence  # noqa: PLC0415

    path, _, query = rest.partition("?")
    if path.startswith("//") and not path.startswith("///"):
        raise InvalidEnvironment("a file is 'json:///an/absolute/path' or 'json:a/relative/one'")
    options = dict(parse_qsl(query, keep_blank_values=True))
    path = unquote(path.removeprefix("//"))
    if not path or options.keys() - {"fsync"}:
        raise InvalidEnvironment(f"'json:' takes a path, and ?fsync=..., not {rest!r}")
    try:
        return JsonFilePersistence(path, **options)  # type: ignore[arg-type]
    except InvalidPolicy as error:
        raise InvalidEnvironment(f"{PERSISTENCE_VARIABLE}: {error}") from error


_SCHEMES: Mapping[str, Callable[[str], PersistenceBackend]] = {"memory": _memory, "json": _json}


def backend_from_url(url: str) -> PersistenceBackend:
    """Return a new backend for `url`; raises `InvalidEnvironment` if the scheme is unknown."""
    scheme, colon, rest = url.partition(":")
    make = _SCHEMES.get(scheme) if colon else None
    if make is None:
        known = ", ".join(f"{name}:" for name in sorted(_SCHEMES))
        # The scheme only: the rest of a URL may hold a password.
        wrong = f"an unknown scheme {scheme + ':'!r}" if colon else "a value without a scheme"
        raise InvalidEnvironment(f"{PERSISTENCE_VARIABLE} has {wrong}; known: {known}")
    return make(rest)


def load_module(name: str) -> ModuleType:
    """Import the settings module; raises `InvalidEnvironment` if that fails."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InvalidEnvironment(
            f"{SETTINGS_MODULE_VARIABLE} names {name!r}, which can't be imported: {error}"
        ) from error
