"""The store that a command is about."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from papyra.cli._exit_codes import CommandFailed, NothingToDo, WrongUse
from papyra.cli._output import progress, tell
from papyra.conf import backend_from_url, settings
from papyra.persistence.backends import registry
from papyra.persistence.backends.base import PersistenceBackend

#: What every command takes first.
StoreName: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="STORE",
        help="A file, a directory or a URL; left out, what the environment or the settings name.",
    ),
]

_URL = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
#: What the names of files end with that a store in one file has beside it.
_BESIDE = (
    r"\.(lock|id|snapshots|positions|requests|new|(snapshot-[0-9a-f]{40}-[0-9]+\.)?damaged-[0-9]+)"
)
_SEGMENT = re.compile(r"\d{20}\.ndjson")


def backend_at(name: str | None, *, read_only: bool = False) -> PersistenceBackend:
    """Return the backend of a store, not opened yet. It may be one that would write.

    To look at files, it can be `read_only`, as some systems can't write them.
    """
    if name is None:
        return _configured(read_only=read_only)
    if not name.strip():
        raise WrongUse("STORE is empty: a variable that is not set, maybe?")
    scheme = _URL.match(name)
    if scheme is not None and ("://" in name or registry.is_known(scheme[1])):
        return backend_from_url(_impatient(name), read_only=read_only)
    path = Path(os.path.expanduser(name))
    if _SEGMENT.fullmatch(path.name) and not path.is_dir() and not name.endswith("/"):
        raise CommandFailed(
            f"{path} is one segment of a journal: name the directory, {path.parent}/"
        )
    return registry.backend_at(name, read_only=read_only)


def _configured(*, read_only: bool) -> PersistenceBackend:
    """Return what the settings name: a store in memory is never what somebody looks for."""
    backend = settings.configured_persistence(read_only=read_only)
    if backend is None:
        raise WrongUse(
            "which store? Name a file, a directory or a URL, or set PAPYRA_PERSISTENCE to one, "
            "or PAPYRA_SETTINGS_MODULE to a module that has 'persistence'"
        )
    return backend


def _impatient(url: str) -> str:
    """Add what its backend wants where somebody waits at a terminal, and the URL does not say."""
    registration = registry.find(url.partition(":")[0])
    for option, value in registration.when_watched.items() if registration else ():
        if f"{option}=" not in url:
            url += f"{'&' if '?' in url else '?'}{option}={value}"
    return url


def place_of(backend: PersistenceBackend) -> Path | None:
    """Return the file or the directory of a store; `None` if it is no such store."""
    return getattr(backend, "path", None) or getattr(backend, "directory", None)


def name_of(backend: PersistenceBackend) -> str:
    """Return what to call a store, without any secrets."""
    return backend.location or ("" if backend.capabilities.durable else "memory:") or repr(backend)


def exists(backend: PersistenceBackend) -> bool:
    """Return whether a store that is kept in files is there; of others, opening tells."""
    place = place_of(backend)
    if place is None:
        return True
    if not place.is_dir():
        return place.exists()  # what is no file is refused when it is opened
    return any(_SEGMENT.fullmatch(path.name) for path in place.iterdir())


def refuse_where_no_writer_can_be(backend: PersistenceBackend) -> None:
    """Raise `CommandFailed` where a system could not write a store in files; try nothing."""
    place = place_of(backend)
    if place is None:
        return
    # A writer follows links, also to what is not there yet.
    name, place = place, Path(os.path.realpath(place))
    if place.is_symlink():
        raise CommandFailed(f"a system would not start: {name} is a link that leads nowhere")
    makes_directories = getattr(backend, "directory", None) is not None
    home = home_of(place) if makes_directories else place.absolute().parent
    if not home.is_dir():
        raise CommandFailed(f"a system would not start: there is no directory {home}")
    for path in _written(place, home):
        if not os.access(path, os.W_OK):
            raise CommandFailed(f"a system would not start: {path} can't be written")


def _written(place: Path, home: Path) -> list[Path]:
    """Return what a writer of a store has to be allowed to write."""
    files = [place]
    if place.is_dir():
        files = [path for path in place.iterdir() if _SEGMENT.fullmatch(path.name)]
    lock = _lock_of(place)
    folder = place if place.is_dir() else home
    return [*(path for path in files if path.exists()), lock if lock.exists() else folder]


def _lock_of(place: Path) -> Path:
    return place / ".lock" if place.is_dir() else place.with_name(f"{place.name}.lock")


def home_of(place: Path) -> Path:
    """Return the directory that a store is in, or will be."""
    home = place.absolute().parent
    while not home.exists():
        home = home.parent
    return home


def check_output(output: Path | None, name: str | None) -> None:
    """Raise `WrongUse` for a file that is written to, if it is of the store that is read."""
    place = None if output is None else place_of(backend_at(name, read_only=True))
    if output is not None and place is not None and is_of(place, output):
        raise WrongUse(f"{output} is of the store itself: write to another file")


def is_of(place: Path, path: Path) -> bool:
    """Return whether a path is of the store in `place`, also by another name."""
    target, real = Path(os.path.realpath(path)), Path(os.path.realpath(place))
    if real in (target, *target.parents):
        return True
    beside = re.fullmatch(re.escape(real.name) + _BESIDE, target.name)
    if beside and target.parent == real.parent:
        return True
    if not path.exists():
        return False
    files = real.iterdir() if real.is_dir() else (real, _lock_of(real))
    return any(file.exists() and file.samefile(path) for file in files)


def require_durable(backend: PersistenceBackend, what: str) -> None:
    """Raise `NothingToDo` for a store that is nowhere but in the process that has made it."""
    if not backend.capabilities.durable:
        raise NothingToDo(
            f"{what} is not supported in memory, where nothing is on disk: there is nothing to do"
        )


@asynccontextmanager
async def reading(name: str | None, what: str | None = None) -> AsyncIterator[PersistenceBackend]:
    """Open a store to look at it: whoever writes it goes on, and nothing in it is changed.

    For a command that needs something on disk, `what` says what it does.
    """
    backend = backend_at(name, read_only=True)
    if what is not None:
        require_durable(backend, what)
    if not exists(backend):
        place = place_of(backend)
        missing = "no journal in" if place is not None and place.is_dir() else "no store at"
        raise CommandFailed(f"there is {missing} {place}: see what STORE may be with --help")
    async with AsyncExitStack() as stack:
        with progress("opening", in_bytes=True) as opening:
            cache = None if place_of(backend) is None else _cache()
            reader = backend.reader(index_directory=cache, opening=opening)
            await stack.enter_async_context(reader)
        if not backend.capabilities.durable and not reader.last_seq:
            tell("a store in memory is in one process alone, and in this one it is empty", "dim")
        if not reader.last_seq and await _is_nothing(reader):
            raise CommandFailed(
                f"there is no store at {name_of(backend)}: prefix and system_id say which"
            )
        yield reader
        if what is None and getattr(reader, "is_damaged", False):
            tell(
                f"{name_of(reader)} is damaged: what can't be read was passed over; "
                f"papyra scan says where",
                "bold red",
            )


async def _is_nothing(reader: PersistenceBackend) -> bool:
    """Return whether a server knows nothing of a store: an empty file is one, though."""
    registration = registry.find(reader.store.name)
    is_on_server = registration is not None and registration.is_on_server
    return is_on_server and not (await reader.summarize()).total_records


def _cache() -> Path | None:
    """Return the directory for what readers find out, if there can be one."""
    import platformdirs  # noqa: PLC0415 - it is for files alone

    try:
        return Path(platformdirs.user_cache_dir("papyra", appauthor=False))
    except RuntimeError:  # nobody's home: a process in a container may have any user's number
        return None
