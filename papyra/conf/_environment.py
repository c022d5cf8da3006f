"""What environment variables say."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

from papyra.exceptions import InvalidEnvironment
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence

__all__ = ("PERSISTENCE_VARIABLE", "SETTINGS_MODULE_VARIABLE", "backend_from_url", "load_module")

#: A store's URL, such as ``memory:``.
PERSISTENCE_VARIABLE = "PAPYRA_PERSISTENCE"
#: The dotted name of a module with settings as its attributes.
SETTINGS_MODULE_VARIABLE = "PAPYRA_SETTINGS_MODULE"


def _memory(rest: str) -> PersistenceBackend:
    if rest:
        raise InvalidEnvironment(f"'memory:' takes nothing after the colon, not {rest!r}")
    return InMemoryPersistence()


_SCHEMES: Mapping[str, Callable[[str], PersistenceBackend]] = {"memory": _memory}


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
