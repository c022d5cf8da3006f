"""Whatever the code of a projection raises, or claims to be: it pauses, and ends nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from papyra.exceptions import InvalidProjection, InvalidRequest
from papyra.projections import OnError, Pause, Projection, SQLiteView
from tests.conftest import event_loops
from tests.projections.balances import Balances, Deposited, Deposits, in_state
from tests.projections.conftest import NewSystem

anyio_backend = event_loops("asyncio", "trio")


class Shy(Exception):
    """Tells nothing of itself."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("it has no class")

    def __str__(self) -> str:
        raise RuntimeError("it has no text")

    __repr__ = __str__


class Fatal(BaseException):
    """Is no `Exception`."""


def leave() -> None:
    sys.exit("enough")


def be_shy() -> None:
    raise Shy


def be_fatal() -> None:
    raise Fatal("no end of this")


def wait_for_something_cancelled() -> None:
    raise asyncio.CancelledError


def end_in_a_group() -> None:
    raise BaseExceptionGroup("several", [SystemExit(3), ValueError("one")])


ENDS = [leave, be_shy, be_fatal, wait_for_something_cancelled, end_in_a_group]


class Ending(Projection):
    """Without a view: its code is called on the event loop."""

    name = "ending"
    events = (Deposited,)
    on_error: ClassVar[OnError] = Pause()

    def __init__(self, end: Callable[[], None]) -> None:
        super().__init__()
        self.end: Callable[[], None] | None = end
        self.handled: list[int] = []

    async def handle(self, received: Any) -> None:
        await anyio.lowlevel.checkpoint()
        if self.end is not None:
            self.end()
        self.handled.append(received.event.amount)


class Living(Ending):
    name = "ending"

    async def handle(self, received: Any) -> None:
        self.handled.append(received.event.amount)

    async def live(self, received: Any) -> None:
        del received
        if self.end is not None:
            self.end()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", [Ending, Living], ids=["handle", "live"])
async def test_code_on_the_event_loop_that_ends_programs_or_tasks_fails_like_any_other(
    kind: type[Ending], end: Callable[[], None], new_system: NewSystem
) -> None:
    async with new_system() as system:
        projection = kind(end)
        runner = system.project(projection)
        await runner.wait_for(0, timeout=60)
        await in_state(runner, "running")
        await Deposits(system).add(1)
        await in_state(runner, "paused")
        assert runner.status.error
        projection.end = None
        await runner.resume()
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert projection.handled[-1] == 1


class EndingInItsView(Balances):
    name = "balances"
    on_error: ClassVar[OnError] = Pause()

    def __init__(self, view: SQLiteView, where: str, end: Callable[[], None]) -> None:
        super().__init__(view)
        self.where, self.end = where, end

    def setup(self, tx: Any) -> None:
        super().setup(tx)
        if self.where == "setup":
            self.end()

    def handle(self, received: Any, tx: Any) -> None:
        super().handle(received, tx)
        if self.where == "handle":
            self.end()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("where", ["setup", "handle"])
async def test_code_in_the_thread_of_a_view_that_ends_programs_or_tasks_fails_like_any_other(
    where: str, end: Callable[[], None], new_system: NewSystem, path: Path
) -> None:
    async with new_system() as system:
        await Deposits(system).add(1)
        projection = EndingInItsView(SQLiteView(path), where, end)
        runner = system.project(projection)
        await in_state(runner, "paused")
        assert runner.status.error
        projection.where = "nowhere"
        await runner.resume()
        await runner.wait_for(system.backend.last_seq, timeout=60)


@pytest.mark.parametrize("cls", [Ending, EndingInItsView], ids=["no view", "a view"])
async def test_seconds_that_no_float_can_hold_are_as_good_as_none(
    cls: type[Projection], new_system: NewSystem, path: Path
) -> None:
    def never() -> None:
        """Do nothing."""

    class Patient(cls):  # type: ignore[valid-type, misc]
        batch_seconds = handle_timeout = 10**400

    async with new_system() as system:
        await Deposits(system).add(1)
        runner = system.project(
            Patient(never) if cls is Ending else Patient(SQLiteView(path), "nowhere", never)
        )
        await runner.wait_for(system.backend.last_seq, timeout=10**400)


async def test_a_setup_that_nobody_would_await_is_refused(
    new_system: NewSystem, path: Path
) -> None:
    class Awaited(Balances):
        async def setup(self, tx: Any) -> None:  # type: ignore[override]
            """Make nothing."""

    async with new_system() as system:
        with pytest.raises(InvalidProjection, match="setup is a plain function"):
            system.project(Awaited(SQLiteView(path)))


@pytest.mark.parametrize("limit", [0, -1, True, 1.0, None])
async def test_a_batch_of_nothing_is_refused(limit: Any, new_system: NewSystem) -> None:
    async with new_system() as system, system.subscribe() as items:
        with pytest.raises(InvalidRequest, match="limit is a whole number from 1 on"):
            await items.batch(limit)
