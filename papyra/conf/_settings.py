"""The settings of a process."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from papyra._safe_repr import shown
from papyra.conf._store_urls import backend_from_url
from papyra.exceptions import InvalidEnvironment, InvalidSetting, InvalidStoreURL, UnknownSetting
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence

#: A store's URL, as `backend_from_url` takes it.
PERSISTENCE_VARIABLE = "PAPYRA_PERSISTENCE"
#: The dotted name of a module with settings as its attributes.
SETTINGS_MODULE_VARIABLE = "PAPYRA_SETTINGS_MODULE"


class Settings:
    """What systems use that were not given it explicitly. The only global state there is.

    Assigning a wrong name raises `UnknownSetting`, a value of the wrong type `InvalidSetting`.
    """

    #: the backend of the next system that starts; `None` to look at the environment
    persistence: PersistenceBackend | None

    def __init__(self) -> None:
        self.persistence = None

    def __setattr__(self, name: str, value: object) -> None:
        self._check(name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        setattr(self, name, None)

    @contextlib.contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Set `values` until the ``with`` block is left. For tests."""
        for name, value in values.items():
            self._check(name, value)
        before = {name: getattr(self, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def resolve_persistence(self) -> PersistenceBackend:
        """Return the backend for a system that was given none.

        That is what `configured_persistence` returns, or else a new `InMemoryPersistence`.
        """
        configured = self.configured_persistence()
        return InMemoryPersistence() if configured is None else configured

    def configured_persistence(self, *, read_only: bool = False) -> PersistenceBackend | None:
        """Return the backend that somebody has set, or `None`.

        That is, in this order: `persistence`; what ``PAPYRA_PERSISTENCE`` says; the attribute
        ``persistence`` of the module that ``PAPYRA_SETTINGS_MODULE`` names. For whoever only looks,
        files that the variable names can be `read_only`. Raises `InvalidEnvironment` for variables
        that can't be followed.
        """
        if self.persistence is not None:
            return self.persistence
        if url := os.environ.get(PERSISTENCE_VARIABLE):
            try:
                return backend_from_url(url, read_only=read_only)
            except InvalidStoreURL as error:
                raise InvalidEnvironment(f"{PERSISTENCE_VARIABLE}: {error}") from error
        if module := os.environ.get(SETTINGS_MODULE_VARIABLE):
            backend: PersistenceBackend | None = getattr(_load_module(module), "persistence", None)
            self._check("persistence", backend)
            return backend
        return None

    def _check(self, name: str, value: object) -> None:
        match name:
            case "persistence":
                if value is not None and not isinstance(value, PersistenceBackend):
                    raise InvalidSetting(
                        f"settings.persistence is a PersistenceBackend or None, not {shown(value)}"
                    )
            case _:
                raise UnknownSetting(f"there is no setting {name!r}; there is: persistence")


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InvalidEnvironment(
            f"{SETTINGS_MODULE_VARIABLE} names {name!r}, which can't be imported: {error}"
        ) from error


#: The settings of this process.
settings = Settings()
