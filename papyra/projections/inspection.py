"""Inspection: the projections of a view, and of a store, as another process sees them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal, TypeAlias

import msgspec

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.store import Inbox, Positions
from papyra.projections.builds import Build, Builds, Parked
from papyra.projections.store_keeper import PREFIX, Kept, request_of
from papyra.projections.view import View

__all__ = ("Inspected", "InspectedState", "inspect_store", "inspect_view", "withdraw")

logger = logging.getLogger("papyra")

#: As `ProjectionState`, as far as others can tell: ``stopped``: nobody runs it.
InspectedState: TypeAlias = Literal["building", "running", "paused", "stopped"]


class Inspected(msgspec.Struct, frozen=True):
    """A projection, as what is kept of it says."""

    build: Build
    state: InspectedState
    #: where the view is; empty for one without a view, whose position is in the store
    location: str
    #: parked events, and those held back behind them, by their positions
    parked: tuple[Parked, ...]
    #: the build that is made beside this one; `None` if none is
    beside: Build | None = None
    #: how many builds are retired, and not dropped yet
    retired: int = 0
    #: Unix time, by the clock that ``build.lease_until`` is of
    now: float = 0.0

    @property
    def is_run(self) -> bool:
        """Whether somebody runs it, be it that it is paused."""
        return self.build.owner is not None and self.build.lease_until >= self.now


def inspect_view(view: View[Any]) -> Sequence[Inspected]:
    """Return the projections of a view, by name. Blocks; changes nothing.

    Raises `ViewUnavailable` if the database can't be reached.
    """
    if not view.is_there():
        return ()
    database = view.database()
    database.open(to_read=True)
    try:
        if not database.has_tables():
            return ()
        ((now,),) = database.rows(f"SELECT {database.now}")
        found = Builds(database, "").all()
        return [
            _inspected(
                list(builds),
                view.location,
                now,
                lambda build: Builds(database, build.name).parked(build.build),
            )
            for _, builds in groupby(found, key=lambda build: build.name)
        ]
    finally:
        database.close()


async def inspect_store(backend: PersistenceBackend) -> Sequence[Inspected]:
    """Return the projections that keep their positions in a store, by name.

    Whether any of them is run is not noted anywhere: all are, if somebody writes the store.
    """
    if not isinstance(backend.store, Positions):
        return ()
    now = time.time()
    is_run = isinstance(backend.store, Inbox) and await backend.store.is_attended()
    found: list[Inspected] = []
    for name in sorted(await backend.list_positions()):
        data = await backend.load_position(name) if _is_projection(name) else None
        if data is None:
            continue
        try:
            kept = msgspec.json.decode(data, type=Kept)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            logger.warning("the position %r is none of a projection: %s", name, error)
            continue
        request = await backend.load_position(request_of(kept.build.name)) or b""
        build = msgspec.structs.replace(
            kept.build,
            request=request.decode(errors="replace"),
            owner="the writer of the store" if is_run else None,
            lease_until=now,
        )
        found.append(Inspected(build, _state(build, now), "", kept.parked, now=now))
    return found


def withdraw(view: View[Any], name: str, request: str) -> bool:
    """Take back what was asked of a projection; return whether that was not taken yet. Blocks."""
    database = view.database()
    database.open(to_read=False)
    try:
        with database.transaction():
            builds = Builds(database, name)
            live = next((each for each in builds.own() if each.is_live), None)
            build = None if live is None else builds.find(live.build)
            return build is not None and build.request == request and builds.post("")
    finally:
        database.close()


def _is_projection(name: str) -> bool:
    return name.startswith(PREFIX) and "/" not in name.removeprefix(PREFIX)


def _inspected(
    builds: Sequence[Build],
    location: str,
    now: float,
    parked: Callable[[Build], Sequence[Parked]],
) -> Inspected:
    """Return one projection out of all its builds: the live one, and what is beside it."""
    current = [build for build in builds if build.state != "retired"] or builds[-1:]
    live = next((build for build in current if build.is_live), current[-1])
    beside = next((build for build in reversed(current) if build is not live), None)
    return Inspected(
        live,
        _state(live, now),
        location,
        tuple(parked(live)),
        beside,
        retired=sum(build.state == "retired" for build in builds),
        now=now,
    )


def _state(build: Build, now: float) -> InspectedState:
    if build.is_paused:
        return "paused"
    if build.owner is None or build.lease_until < now or build.state == "retired":
        return "stopped"
    return build.state
