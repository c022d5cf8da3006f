"""Which backend the tests of a project run on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence

__all__ = ("STORE_VARIABLE", "UnknownStore", "new_store")

#: The name of one of the stores below.
STORE_VARIABLE = "PAPYRA_TEST_STORE"


class UnknownStore(Exception):
    """The variable names no store that there is."""


def _memory(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    del directory
    return InMemoryPersistence(**options)


_STORES: Mapping[str, Callable[[Callable[[], Path], Mapping[str, Any]], PersistenceBackend]] = {
    "memory": _memory,
}


def new_store(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    """Return a store made with `options`; `directory` makes one, for stores that need it."""
    name = os.environ.get(STORE_VARIABLE) or "memory"
    make = _STORES.get(name)
    if make is None:
        raise UnknownStore(f"{STORE_VARIABLE} is one of {', '.join(_STORES)}, not {name!r}")
    return make(directory, options)
