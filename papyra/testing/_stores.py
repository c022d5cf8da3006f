"""The stores that the tests of a project run on."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from papyra._safe_repr import shown
from papyra.exceptions import MissingExtra, SettingsError
from papyra.persistence.backends import registry
from papyra.persistence.backends.base import PersistenceBackend

#: The name of a backend in the registry; or, as ``module:callable``, a function that makes one.
STORE_VARIABLE = "PAPYRA_TEST_STORE"


class UnknownStore(Exception):
    """The variable names no store that there is."""


def new_store(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    """Return a store made with `options`; `directory` makes one, for stores that need it."""
    name = os.environ.get(STORE_VARIABLE) or "memory"
    if ":" in name:
        store = _callable(name)(**options)
        if not isinstance(store, PersistenceBackend):
            raise UnknownStore(
                f"{STORE_VARIABLE} is {name!r}, which made {shown(store)}: no backend"
            )
        return store
    try:
        registration = registry.find(name)
        if registration is not None and registration.for_test is not None:
            return registration.for_test(directory, options)
    except (SettingsError, MissingExtra) as error:
        raise UnknownStore(f"{STORE_VARIABLE} is {name!r}: {error}") from error
    if registration is not None:
        raise UnknownStore(f"{STORE_VARIABLE} is {name!r}, which does not make stores for tests")
    known = ", ".join(registry.names())
    raise UnknownStore(
        f"{STORE_VARIABLE} is one of {known}, or 'module:callable', not {shown(name)}"
    )


def forget(store: PersistenceBackend) -> None:
    """Remove what a store made by `new_store` has left outside its directory."""
    registration = registry.find(store.store.name)
    if registration is not None and registration.forget is not None:
        registration.forget(store)


def _callable(name: str) -> Callable[..., object]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., object] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownStore(f"{STORE_VARIABLE} is {name!r}, which is not there: {error}") from error
    return found
