"""The list of backends. Others join it by entry points in the group ``papyra.backends``.

Such an entry point has the scheme of its URLs for a name, which is the `name` of its stores, too,
and leads to a `Registration`::

    [project.entry-points."papyra.backends"]
    shelf = "my_shelf:REGISTRATION"

Then ``shelf:...`` is a store wherever one is named: in ``PAPYRA_PERSISTENCE``, for every ``papyra``
command, and ``shelf`` is one for ``PAPYRA_TEST_STORE``. Nothing is imported before it is needed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from papyra.exceptions import InvalidEnvironment, InvalidPath, MissingExtra
from papyra.persistence.backends.base import PersistenceBackend

__all__ = ("GROUP", "Registration", "backend_at", "find", "is_known", "names", "schemes")

logger = logging.getLogger("papyra")

#: The group of entry points.
GROUP = "papyra.backends"


class _FromName(Protocol):
    def __call__(self, name: str, /, *, read_only: bool) -> PersistenceBackend: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Registration:
    """One kind of backend: what to call it, and how to make one, which is not opened yet.

    `read_only` is for programs that only look: nothing is written, and no lock is needed.
    """

    #: what people call it: ``JSON file``
    label: str
    #: makes one of a whole URL, scheme included; raises `InvalidStoreURL` or another `ValueError`,
    #: which repeats nothing that may be secret, or `MissingExtra`. For a path with options, as in
    #: ``shelf:///srv/shelf?fsync=no``, there is `papyra.persistence.backends.urls.path_and_options`
    from_url: _FromName
    #: makes one of a path, as a command is given it
    from_path: _FromName | None = None
    #: whether a path is one of a store of this kind, or is to become one
    is_path_of: Callable[[str], bool] | None = None
    #: makes an empty one for a test; the first argument makes a directory, if it needs one, and the
    #: second has what `PersistenceBackend` takes by name
    for_test: Callable[[Callable[[], Path], Mapping[str, Any]], PersistenceBackend] | None = None
    #: removes what one of `for_test` has left outside its directory
    forget: Callable[[PersistenceBackend], None] | None = None
    #: makes an empty one beside another, on the same server, and removes it afterwards
    beside: (
        Callable[[PersistenceBackend], contextlib.AbstractAsyncContextManager[PersistenceBackend]]
        | None
    ) = None
    #: how its path ends in a directory of its own; then a benchmark measures it without being
    #: asked, by its URL if there is no `is_path_of`
    file_name: str | None = None
    #: whether it is on a server: an empty one is none, and who writes it may be gone
    is_on_server: bool = False
    #: options for the URL where somebody waits at a terminal
    when_watched: Mapping[str, str] = field(default_factory=dict)


def lazily(target: str) -> Callable[..., Any]:
    """Return a function that imports the one called ``module:name`` when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


_BACKENDS = "papyra.persistence.backends"
_REDIS = Registration(
    label="Redis Streams",
    from_url=lazily(f"{_BACKENDS}.redis:from_url"),
    for_test=lazily("papyra.testing._redis_server:new_store"),
    forget=lazily("papyra.testing._redis_server:forget"),
    beside=lazily(f"{_BACKENDS}.redis:beside"),
    is_on_server=True,
    when_watched={"retry_for": "1"},
)
_POSTGRES = Registration(
    label="PostgreSQL",
    from_url=lazily(f"{_BACKENDS}.postgres:from_url"),
    for_test=lazily("papyra.testing._postgres_server:new_store"),
    forget=lazily("papyra.testing._postgres_server:forget"),
    beside=lazily(f"{_BACKENDS}.postgres:beside"),
    is_on_server=True,
    when_watched={"retry_for": "1"},
)
#: Papyra's own. Of those that can be at a path, the first that says so has it.
_OWN: Mapping[str, Registration] = {
    "memory": Registration(
        label="memory",
        from_url=lazily(f"{_BACKENDS}.memory:from_url"),
        for_test=lazily(f"{_BACKENDS}.memory:for_test"),
    ),
    "sqlite": Registration(
        label="SQLite",
        from_url=lazily(f"{_BACKENDS}.sqlite:from_url"),
        from_path=lazily(f"{_BACKENDS}.sqlite:SQLitePersistence"),
        is_path_of=lazily(f"{_BACKENDS}.sqlite:is_path"),
        for_test=lazily(f"{_BACKENDS}.sqlite:for_test"),
        file_name="events.sqlite",
    ),
    "rotating": Registration(
        label="rotating files",
        from_url=lazily(f"{_BACKENDS}.rotating:from_url"),
        from_path=lazily(f"{_BACKENDS}.rotating:RotatingFilePersistence"),
        is_path_of=lazily(f"{_BACKENDS}.rotating:is_path"),
        for_test=lazily(f"{_BACKENDS}.rotating:for_test"),
        file_name="journal/",
    ),
    "json": Registration(
        label="JSON file",
        from_url=lazily(f"{_BACKENDS}.json:from_url"),
        from_path=lazily(f"{_BACKENDS}.json:JsonFilePersistence"),
        is_path_of=lambda _: True,
        for_test=lazily(f"{_BACKENDS}.json:for_test"),
        file_name="events.ndjson",
    ),
    "redis": _REDIS,
    **{
        f"redis{tls}{topology}": _REDIS
        for tls in ("", "s")
        for topology in ("", "+sentinel", "+cluster")
    },
    "unix": _REDIS,
    "postgres": _POSTGRES,
    "postgresql": _POSTGRES,
}


def names() -> Sequence[str]:
    """Return the name of each kind of backend, Papyra's own first. Imports none of them."""
    own: dict[Registration, str] = {}
    for name, registration in _OWN.items():
        own.setdefault(registration, name)
    return [*own.values(), *sorted(_others())]


def schemes() -> Sequence[str]:
    """Return every scheme that a URL may begin with."""
    return [*_OWN, *sorted(_others())]


def is_known(scheme: str) -> bool:
    """Return whether a URL may begin with `scheme`."""
    return scheme in _OWN or scheme in _others()


def find(scheme: str) -> Registration | None:
    """Return the registration for a scheme, or a name; `None` if there is none.

    Raises `InvalidEnvironment`, or `MissingExtra`, for one that can't be imported.
    """
    own = _OWN.get(scheme)
    if own is not None:
        return own
    entry = _others().get(scheme)
    return None if entry is None else _load(entry)


def backend_at(path: str, *, read_only: bool = False) -> PersistenceBackend:
    """Return a new backend on the store at a path, or on one that would be made there.

    Those of others are asked first whether it is theirs: of what nobody knows, a directory is that
    of rotating files, and anything else a JSON file.
    """
    for registration in (*_loadable(), *_OWN.values()):
        from_path, is_path_of = registration.from_path, registration.is_path_of
        if from_path is not None and is_path_of is not None and is_path_of(path):
            return from_path(path, read_only=read_only)
    raise InvalidPath(f"no backend has its stores at paths such as {path!r}")


def _others() -> Mapping[str, importlib.metadata.EntryPoint]:
    entries = importlib.metadata.entry_points(group=GROUP)
    return {entry.name: entry for entry in entries if entry.name not in _OWN}


def _load(entry: importlib.metadata.EntryPoint) -> Registration:
    try:
        loaded = entry.load()
    except MissingExtra:
        raise
    except Exception as error:
        raise InvalidEnvironment(
            f"the backend {entry.name!r} is at {entry.value}, which can't be imported: {error}"
        ) from error
    if not isinstance(loaded, Registration):
        raise InvalidEnvironment(
            f"the backend {entry.name!r} is at {entry.value}, where there is no Registration"
        )
    return loaded


def _loadable() -> Iterator[Registration]:
    """Yield what others have registered, but for what can't be imported: it has no say here."""
    for entry in _others().values():
        try:
            yield _load(entry)
        except (InvalidEnvironment, MissingExtra) as error:
            logger.warning("%s", error)
