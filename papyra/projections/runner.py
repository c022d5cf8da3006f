"""The runner of a projection, as users hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import anyio
from anyio.abc import TaskGroup

from papyra._cancellation import shield_methods_from_interrupts
from papyra._durations import is_seconds, seconds
from papyra._logs import about, fields
from papyra._safe_repr import shown
from papyra.exceptions import (
    DuplicateProjection,
    InvalidPolicy,
    InvalidProjection,
    InvalidRequest,
    ProjectionBehind,
    ProjectionStopped,
)
from papyra.projections.commands import Command, Verb
from papyra.projections.course import Course
from papyra.projections.follower import Follower
from papyra.projections.host import Host
from papyra.projections.keeper import Keeper
from papyra.projections.projection import Projection, Wanted, attach, checked
from papyra.projections.status import ProjectionStatus
from papyra.projections.store_keeper import StoreKeeper
from papyra.projections.view_keeper import ViewKeeper

__all__ = ("ProjectionRunner", "Projections")

#: Seconds between two looks at a position that moves without anything being handled.
_LOOK = 0.02


class ProjectionRunner:
    """Runs one projection of a system. `ActorSystem.project` makes it, and starts it.

    It ends with the system, after the last actor; the position stays where it is. What it raises
    is a `ProjectionError`.
    """

    def __init__(self, host: Host, projection: Projection) -> None:
        shield_methods_from_interrupts(type(self))
        self._wanted: Wanted = checked(projection)
        self._host = host
        self._projection = projection
        attach(projection, host)
        self._main = self._new_follower(None)
        self._beside: Follower | None = None
        self._group: TaskGroup | None = None
        self._scopes: dict[Follower, anyio.CancelScope] = {}
        self._is_stopped = False
        #: whether its task has begun
        self.has_begun = False

    @property
    def name(self) -> str:
        """The name of the projection."""
        return self._projection.name

    @property
    def projection(self) -> Projection:
        """The projection."""
        return self._projection

    @property
    def status(self) -> ProjectionStatus:
        """The status of the projection now."""
        main, beside = self._main.course, self._beside
        counters = main.counters
        head, position = self._host.backend.last_seq, self._main.position
        # One that stands by does not know how far the other one is.
        is_behind = head > position and main.state != "standby"
        view = self._projection.view
        return ProjectionStatus(
            name=self.name,
            version=self._projection.version,
            build=main.build.build if main.build is not None else 0,
            state=main.state,
            location=view.location if view is not None else "",
            is_exact=view is not None,
            position=position,
            head=head,
            handled_at=counters.handled_at,
            lag_seconds=counters.age if is_behind else 0.0,
            rate=counters.rate,
            handled=counters.handled,
            commits=counters.commits,
            retries=counters.retries,
            skipped=counters.skipped,
            parked=counters.parked,
            error=main.error,
            error_seq=main.error_seq,
            rebuilding=None if beside is None else beside.position,
            pauses=counters.pauses,
        )

    async def wait_for(self, seq: int, timeout: float | None = None) -> None:
        """Return when everything up to position `seq` is handled, in the view that is read.

        Raises `ProjectionBehind` after so many seconds by the system's clock, and
        `ProjectionStopped` at once if it is paused, or has stopped, before that.
        """
        if type(seq) is not int or seq < 0:
            raise InvalidRequest(f"seq is a whole number, 0 or greater, not {shown(seq)}")
        if timeout is not None and not is_seconds(timeout):
            raise InvalidPolicy(f"timeout is seconds, 0 or more, not {shown(timeout)}")
        with self._host.clock.move_on_after(math.inf if timeout is None else seconds(timeout)):
            while not self._has_reached(seq):
                # What is not for this projection moves its position, too, and sets no event.
                with anyio.move_on_after(_LOOK):
                    await self._main.course.changed.wait()
        if not self._has_reached(seq):
            status = self.status
            raise ProjectionBehind(
                f"{self.name}: position {status.position} ({status.state}) after {timeout:g} "
                f"seconds, and {seq} was waited for{': ' if status.error else ''}{status.error}"
            )

    async def pause(self, reason: str = "") -> None:
        """Stop after the batch at hand, and stay so, over restarts, until it is resumed."""
        await self._main.command(Command(Verb.PAUSE, reason=reason))

    async def resume(self) -> None:
        """Go on where it was paused. The event that it was paused at is tried again."""
        await self._main.command(Command(Verb.RESUME))

    async def retry(self, seq: int | None = None) -> None:
        """Try the event that it is paused at again, or a parked one, with those held back behind.

        Raises `ProjectionStopped` for an event that is not parked, or can't be handled now either.
        """
        await self._main.command(Command(Verb.RETRY, seq=seq))

    async def skip(self, seq: int | None = None, reason: str = "") -> None:
        """Pass over the event that it is paused at, or a parked one, and go on.

        Where it was paused with `EventsCompacted`, it goes on without those events. Raises
        `ProjectionStopped` for an event that is not parked, and if it is not paused at any.
        """
        await self._main.command(Command(Verb.SKIP, seq=seq, reason=reason))

    async def rebuild(self) -> None:
        """Build the view anew from the first event on, and return when it has taken over.

        Meanwhile the old one is read, and goes on. Raises `InvalidProjection` for one without
        `tables`, and `ProjectionStopped` if the new one is paused, as it can't handle an event.
        """
        await self._main.command(Command(Verb.REBUILD))
        while (beside := self._beside) is not None:
            course = beside.course
            if course.state in ("paused", "stopped"):
                raise ProjectionStopped(f"{self.name}: the new build is paused: {course.error}")
            with anyio.move_on_after(_LOOK):
                await course.changed.wait()

    async def drop_old(self) -> None:
        """Drop the tables of builds that are replaced."""
        await self._main.command(Command(Verb.DROP_OLD))

    async def run(self) -> None:
        """Run until the system stops. For the system."""
        self.has_begun = True
        about.set({**about.get({}), **fields(projection=self.name)})
        try:
            async with anyio.create_task_group() as self._group:
                if self._is_stopped:
                    return
                self._start(self._main)
        finally:
            self._group = None

    def stop(self, seconds: float = math.inf) -> None:
        """Let it end after the transaction at hand, which has so many seconds. For the system."""
        self._is_stopped = True
        for follower, scope in self._scopes.items():
            follower.hurry(seconds)
            scope.cancel()

    def _has_reached(self, seq: int) -> bool:
        position, course = self._main.position, self._main.course
        if self._main.is_live and position >= seq:
            return True
        if course.state in ("paused", "stopped"):
            raise ProjectionStopped(
                f"{self.name} is {course.state} at position {position}, before {seq}"
                f"{': ' if course.error else ''}{course.error}"
            )
        return False

    def _new_follower(self, number: int | None) -> Follower:
        projection, view = self._projection, self._projection.view
        course = Course(self._host, projection, self._wanted)

        def keep(store_id: str | None) -> Keeper:
            if view is None:
                return StoreKeeper(projection, self._host.backend, course.decode, store_id)
            return ViewKeeper(projection, view, course.decode, store_id=store_id, number=number)

        return Follower(course, keep, self._obey)

    def _start(self, follower: Follower) -> None:
        if self._group is None:
            raise ProjectionStopped(f"{self.name} has stopped")
        self._scopes[follower] = anyio.CancelScope()
        self._group.start_soon(self._run, follower, name=f"projection {self.name}")

    async def _run(self, follower: Follower) -> None:
        with self._scopes[follower]:
            await follower.run()
        del self._scopes[follower]

    async def _obey(self, command: Command) -> bool:
        """Begin a rebuild, if that is the command."""
        if command.verb is not Verb.REBUILD:
            return False
        if not self._projection.tables or self._projection.view is None:
            raise InvalidProjection(
                f"{self.name}: it names no tables, so there is nothing to be built beside the old"
            )
        if self._beside is None:
            number = await self._main.add_build()
            self._beside = self._new_follower(number)
            self._beside.took_over = self._swap
            self._start(self._beside)
        return True

    def _swap(self) -> None:
        """Go on with the build that has taken over."""
        if self._beside is None:
            return
        old, self._main, self._beside = self._main, self._beside, None
        self._scopes[old].cancel()


class Projections(Mapping[str, ProjectionRunner]):
    """The projections that a system runs, by their names."""

    def __init__(self) -> None:
        self._runners: dict[str, ProjectionRunner] = {}

    def __getitem__(self, name: str) -> ProjectionRunner:
        return self._runners[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runners)

    def __len__(self) -> int:
        return len(self._runners)

    def statuses(self) -> tuple[ProjectionStatus, ...]:
        """Return the status of each; from any thread."""
        return tuple(runner.status for runner in tuple(self._runners.values()))

    def add(self, host: Host, projection: Projection) -> ProjectionRunner:
        """Make the runner of a projection. For the system."""
        runner = ProjectionRunner(host, projection)
        other = self._runners.get(runner.name)
        if other is not None:
            raise DuplicateProjection(
                f"a projection {runner.name!r} runs already, of {type(other.projection).__name__}: "
                f"give {type(projection).__name__} another name"
            )
        self._runners[runner.name] = runner
        return runner

    def stop(self, seconds: float) -> None:
        """Let all of them end, with so many seconds for what is under way. For the system."""
        for runner in self._runners.values():
            runner.stop(seconds)
