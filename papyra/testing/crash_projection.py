"""Run a projection again and again, each time with a crash at another point of its transactions."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio

from papyra.exceptions import ProjectionBehind
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.records import Record
from papyra.projections.database import ViewDatabase
from papyra.projections.projection import Projection
from papyra.projections.view import View
from papyra.system import ActorSystem
from papyra.testing.crash import Crashes, CrashPoint, CrashPointFailed, Where

__all__ = ("ProjectionCrashRun", "crash_projection_everywhere")

logger = logging.getLogger("papyra")

#: Seconds that a projection gets to handle everything, at most.
PATIENCE = 60.0
#: Seconds between two looks at whether the process has died, and until a lease has run out.
_LOOK, _LEASE = 0.05, 0.1


@dataclasses.dataclass(frozen=True)
class ProjectionCrashRun:
    """The outcome of one run, as `check` gets to see it."""

    #: where it crashed; `None` in the first run, which does not
    point: CrashPoint | None
    #: the view, which holds what was made of all events
    view: View[Any]
    #: the system that runs the projection
    system: ActorSystem
    #: whether this is the look after the last restart
    restarted: bool


async def crash_projection_everywhere(
    projection: Callable[[View[Any]], Projection],
    views: Callable[[], View[Any]],
    fill: Callable[[ActorSystem], Awaitable[object]],
    check: Callable[[ProjectionCrashRun], object],
    *,
    points: Sequence[int] | None = None,
    persistence: Callable[[], PersistenceBackend] = InMemoryPersistence,
    system_id: str = "papyra",
) -> Crashes:
    """Run a projection into a view once for each point at which something could fail.

    ``projection(view)`` makes it, its class for example; ``views()`` returns an empty view, and
    `persistence` a store, fresh ones for each run. ``fill(system)`` has the events stored that are
    handled. ``check(run)`` raises, or returns `False`, when the view is not what it should be. It
    is called twice in each run: when everything is handled, and once more after a restart. It may
    be a coroutine function, as `fill` is one.

    The points are: before each connection, before each statement of a transaction, the handler's
    included, before each commit, and after it, where the view reports a failure; and each of these
    again, where the whole process dies, and a new system goes on with the same store and view. The
    run after the last point meets no crash any more, and ends this.

    A handler's statements are those that it has the transaction itself execute; a cursor's are not
    seen. It takes real time, a tenth of a second for most points; so once the events are handled,
    what comes next is not the same each time. `points` are the numbers of those to try, instead of
    all. Raises `CrashPointFailed` for the first that fails.
    """
    scenario = _Scenario(projection, views, fill, check, persistence, system_id)
    tried: list[CrashPoint] = []
    if points is not None:
        for number in points:
            point = await scenario.run(number)
            if point is None:
                raise ValueError(f"the scenario has no crash point {number}")
            tried.append(point)
        return Crashes(tried)
    await scenario.run(None)
    while (point := await scenario.run(len(tried) + 1)) is not None:
        tried.append(point)
    return Crashes(tried)


@dataclasses.dataclass(frozen=True)
class _Scenario:
    projection: Callable[[View[Any]], Projection]
    views: Callable[[], View[Any]]
    fill: Callable[[ActorSystem], Awaitable[object]]
    check: Callable[[ProjectionCrashRun], object]
    persistence: Callable[[], PersistenceBackend]
    system_id: str

    async def run(self, number: int | None) -> CrashPoint | None:
        """Run it with a crash at point `number`, and return the point if it came to that."""
        run = _Run(self, number)
        # Every crash would be logged, and they are all wanted.
        logger.addFilter(_nothing)
        try:
            with anyio.fail_after(PATIENCE):
                await run.all()
        except Exception as error:
            function = crash_projection_everywhere.__name__
            raise CrashPointFailed(run.plan.point, run.facts, error, function) from error
        finally:
            logger.removeFilter(_nothing)
        return run.plan.point


class _Run:
    """One run of a scenario."""

    def __init__(self, scenario: _Scenario, number: int | None) -> None:
        self.plan = _Plan(number)
        #: the events that were to be handled
        self.facts: Sequence[Record] = ()
        self._scenario = scenario
        self._store = scenario.persistence()
        self._view = scenario.views()
        self._last = 0

    async def all(self) -> None:
        """Run everything, restarts and checks included."""
        async with self._system() as system:
            await self._scenario.fill(system)
            self.facts = [record async for record in system.backend.stream("event")]
            self._last = system.backend.last_seq
            await self._live(system, restarted=False)
        if self.plan.is_dead:
            self.plan.is_dead = False
            async with self._system() as system:
                await self._live(system, restarted=False)
        async with self._system() as system:
            await self._live(system, restarted=True)

    async def _live(self, system: ActorSystem, *, restarted: bool) -> None:
        runner = system.project(self._scenario.projection(_View(self._view, self.plan)))
        while True:
            try:
                await runner.wait_for(self._last, _LOOK)
            except ProjectionBehind:
                if self.plan.is_dead:
                    return
            else:
                break
        if self.plan.is_dead:  # right after it has handled the last one
            return
        run = ProjectionCrashRun(self.plan.point, self._view, system, restarted)
        held = self._scenario.check(run)
        if (await held if inspect.isawaitable(held) else held) is False:
            raise AssertionError("check returned False")

    def _system(self) -> ActorSystem:
        return ActorSystem(self._scenario.system_id, persistence=self._store, audit_interval=None)


class _Outage(Exception):
    """The view can't be reached, on purpose."""


class _Plan:
    """Counts the points that a run comes by, in the view's thread, and has the one fail."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._passed = 0
        #: the point, once it was reached
        self.point: CrashPoint | None = None
        #: whether the process has died: nothing comes through any more
        self.is_dead = False

    def come_by(self, where: Where, about: str) -> None:
        """Come by a place where the view, or the process, may fail."""
        if self.point is None:
            for kind in ("view", "process"):
                self._passed += 1
                if self._passed == self._number:
                    self.point = CrashPoint(self._number, kind, where, about)
                    self.is_dead = kind == "process"
                    raise _Outage(f"the {kind} failed on purpose {where} {about}")
        if self.is_dead:
            raise _Outage("the process has died")


class _View(View[Any]):
    """A view that fails at one point."""

    lease = _LEASE

    def __init__(self, view: View[Any], plan: _Plan) -> None:
        self._view = view
        self._plan = plan

    @property
    def location(self) -> str:
        return self._view.location

    def database(self) -> ViewDatabase[Any]:
        return _Database(self._view.database(), self._plan)


class _Database(ViewDatabase[Any]):
    """A connection that fails at one point."""

    def __init__(self, database: ViewDatabase[Any], plan: _Plan) -> None:
        self._database = database
        self._plan = plan
        self.now, self.for_update = database.now, database.for_update

    @property
    def in_handler(self) -> bool:
        return self._database.in_handler

    @in_handler.setter
    def in_handler(self, value: bool) -> None:
        self._database.in_handler = value

    def open(self, *, to_read: bool = False) -> None:
        self._plan.come_by("before", "it is connected")
        self._database.open(to_read=to_read)

    def close(self) -> None:
        self._database.close()

    def interrupt(self) -> None:
        self._database.interrupt()

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        self._plan.come_by("before", "a transaction")
        with self._database.transaction() as tx:
            yield _Transaction(tx, self._plan)
            self._plan.come_by("before", "a commit")
        self._plan.come_by("after", "a commit")

    def transaction_check(self) -> Callable[[], bool]:
        return self._database.transaction_check()

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        self._plan.come_by("before", sql)
        return self._database.rows(sql, *parameters)

    def change(self, sql: str, *parameters: Any) -> int:
        self._plan.come_by("before", sql)
        return self._database.change(sql, *parameters)

    def has_tables(self) -> bool:
        return self._database.has_tables()

    def outage(self, error: BaseException) -> str | None:
        return str(error) if isinstance(error, _Outage) else self._database.outage(error)

    def is_refused(self, error: BaseException) -> bool:
        return self._database.is_refused(error)


class _Transaction:
    """The transaction that a handler gets, which fails at one point."""

    def __init__(self, tx: Any, plan: _Plan) -> None:
        self._tx = tx
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tx, name)
        if name not in ("execute", "executemany", "executescript"):
            return found

        def execute(sql: Any, *args: Any, **kwargs: Any) -> Any:
            self._plan.come_by("before", str(sql))
            return found(sql, *args, **kwargs)

        return execute


def _nothing(record: logging.LogRecord) -> bool:
    del record
    return False
