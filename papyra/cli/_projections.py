"""The projections of a store: those that keep their positions in it, and those into views."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import anyio
import msgspec
from cyclopts import Parameter

from papyra.cli._app_module import imported
from papyra.cli._exit_codes import CommandFailed, WrongUse
from papyra.cli._units import format_count, format_duration
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import ReadAll
from papyra.persistence.records import KINDS

if TYPE_CHECKING:
    from papyra.projections import View
    from papyra.projections.inspection import Inspected

App: TypeAlias = Annotated[
    str | None,
    Parameter(help="A module that makes the projections, or their views, when it is imported."),
]
Views: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(
        name="--view",
        help="The database of a view: a file of SQLite's, or a URL of PostgreSQL; several times.",
        negative="",
    ),
]

COLUMNS = ("projection", "state", "position", "behind", "by", "rate", "parked", "error")
NUMBERS = ("position", "behind", "parked")
_POSTGRES = ("postgres://", "postgresql://")


class Row(msgspec.Struct, frozen=True):
    """A projection beside the store that it follows."""

    inspected: Inspected
    #: positions that it is behind the end of the store; `None` where it follows another store
    lag: int | None
    #: seconds that the first of these has been there for; 0 if there are none
    lag_seconds: float
    #: positions a second; `None` if nobody has looked twice
    rate: float | None = None

    @property
    def name(self) -> str:
        """The name of the projection."""
        return self.inspected.build.name


def views_of(app: str | None, names: Sequence[str]) -> list[View[Any]]:
    """Return the views that the options name, each once. Raises `WrongUse`."""
    found: dict[str, View[Any]] = {}
    for view in (*map(_view_at, names), *(() if app is None else _views_in(app))):
        found.setdefault(view.location, view)
    return list(found.values())


def _view_at(name: str) -> View[Any]:
    from papyra.projections import PostgresView, SQLiteView  # noqa: PLC0415 - with its driver

    if not name.strip():
        raise WrongUse("--view is empty: a variable that is not set, maybe?")
    if name.startswith(_POSTGRES):
        return PostgresView(name)
    view = SQLiteView(name.removeprefix("sqlite:"))
    if not view.is_there():
        raise CommandFailed(f"--view {name}: there is no database")
    return view


def _views_in(app: str) -> list[View[Any]]:
    """Return the views that are in a module, or in projections there."""
    from papyra.projections import Projection, View  # noqa: PLC0415 - where it is needed

    found: list[View[Any]] = []
    for value in _values(vars(imported(app)).values()):
        view = value.view if isinstance(value, Projection) else value
        if isinstance(view, View):
            found.append(view)
    if not found:
        raise WrongUse(
            f"--app {app}: no projection into a view is made when it is imported: name the "
            "database with --view"
        )
    return found


def _values(values: Iterable[object]) -> Iterable[object]:
    for value in values:
        yield value
        if isinstance(value, Mapping):
            yield from value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from value


async def look(
    backend: PersistenceBackend, views: Sequence[View[Any]], *, over: float = 0.0
) -> list[Row]:
    """Return all projections, by name. For their rates, look twice, so many seconds apart."""
    before = await look_once(backend, views) if over else []
    if over:
        await anyio.sleep(over)
    return with_rates(before, await look_once(backend, views))


async def look_once(backend: PersistenceBackend, views: Sequence[View[Any]]) -> list[Row]:
    """Return all projections, by name, without their rates."""
    found = await _inspect(backend, views)
    if not found:
        return []
    head, store_id = (await backend.summarize()).last_seq, await backend.store_id()
    rows = [await _row(backend, each, head, store_id) for each in found]
    return sorted(rows, key=_key)


def with_rates(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Return projections with how fast they went on since they were looked at before."""
    at = {_key(row): row.inspected for row in before}
    return [msgspec.structs.replace(row, rate=_rate(at.get(_key(row)), row)) for row in rows]


def _rate(before: Inspected | None, row: Row) -> float | None:
    seconds = row.inspected.now - before.now if before is not None else 0.0
    if before is None or seconds <= 0:
        return None
    return (row.inspected.build.position - before.build.position) / seconds


def _key(row: Row) -> tuple[str, str, int]:
    return row.name, row.inspected.location, row.inspected.build.build


async def _inspect(backend: PersistenceBackend, views: Sequence[View[Any]]) -> Sequence[Inspected]:
    from papyra.projections.inspection import (  # noqa: PLC0415 - where it is needed
        inspect_store,
        inspect_view,
    )

    found = list(await inspect_store(backend))
    for view in views:
        found += await anyio.to_thread.run_sync(inspect_view, view)
    return found


async def _row(
    backend: PersistenceBackend, inspected: Inspected, head: int, store_id: str | None
) -> Row:
    anchor, position = inspected.build.anchor, inspected.build.position
    is_other = anchor is not None and anchor.store_id not in (None, store_id)
    if is_other and store_id is not None:
        return Row(inspected, None, 0.0)
    lag = max(0, head - position)
    return Row(inspected, lag, await _waited(backend, position) if lag else 0.0)


async def _waited(backend: PersistenceBackend, position: int) -> float:
    """Return for how many seconds the first record behind a position has been there."""
    page = await backend.execute(ReadAll(position, KINDS))
    return max(0.0, time.time() - page.records[0].timestamp) if page.records else 0.0


def state_of(row: Row) -> str:
    """Return the state in words, for people."""
    inspected, build = row.inspected, row.inspected.build
    words = inspected.state if row.lag is not None else f"{inspected.state}, of another store"
    if inspected.state == "paused" and build.error_seq is not None:
        words = f"{words} at {build.error_seq}"
    if inspected.beside is not None:
        words = f"{words}, rebuilding: {inspected.beside.position:,}"
    if build.request:
        words = f"{words}, asked to {build.request}"
    return words


def cells(row: Row) -> tuple[str, ...]:
    """Return the columns of a table of projections."""
    build = row.inspected.build
    return (
        *(row.name, state_of(row), f"{build.position:,}"),
        "-" if row.lag is None else f"{row.lag:,}",
        format_duration(row.lag_seconds) if row.lag else "-",
        "-" if row.rate is None else f"{format_count(round(row.rate, 1))}/s",
        *(f"{len(row.inspected.parked):,}", build.error),
    )


def style_of(row: Sequence[str]) -> str:
    """Return the style of the cells of a projection."""
    state = row[1]
    if state.startswith("paused") or "another store" in state:
        return "bold red"
    return "yellow" if state.startswith("stopped") or row[6] != "0" else ""


def as_data(row: Row) -> dict[str, Any]:
    """Return a projection for other programs."""
    inspected, build, beside = row.inspected, row.inspected.build, row.inspected.beside
    return {
        "name": row.name,
        "version": build.version,
        "build": build.build,
        "state": inspected.state,
        "is_run": inspected.is_run,
        "view": inspected.location or None,
        "position": build.position,
        "lag": row.lag,
        "lag_seconds": row.lag_seconds,
        "rate": row.rate,
        "error": build.error or None,
        "error_seq": build.error_seq,
        "parked": list(inspected.parked),
        "request": build.request or None,
        "rebuilding": None
        if beside is None
        else {"build": beside.build, "version": beside.version, "position": beside.position},
        "retired": inspected.retired,
    }
