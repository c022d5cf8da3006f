"""Projections into something else than a view: coroutine functions, at least once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest

from papyra import ActorSystem
from papyra.exceptions import InvalidProjection, ProjectionOutdated
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.projections import DeadLetter, OnError, Pause, Projection, Retry
from tests.conftest import event_loops
from tests.projections.balances import Deposited, Deposits, in_state, until
from tests.projections.conftest import NewSystem

anyio_backend = event_loops("asyncio", "trio")


class Mails(Projection):
    name = "mails"
    events = (Deposited,)
    on_error: ClassVar[OnError] = Pause()

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        self.refused: set[int] = set()

    async def handle(self, received: Any) -> None:
        await anyio.lowlevel.checkpoint()
        if received.event.amount in self.refused:
            raise ConnectionError("no mail today")
        self.sent.append(received.event.amount)


@pytest.fixture(params=["memory", "json", "sqlite"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], PersistenceBackend]:
    """Return what opens the same store again and again."""
    if request.param == "memory":
        kept = InMemoryPersistence()
        return lambda: kept
    if request.param == "json":
        return lambda: JsonFilePersistence(tmp_path / "store.ndjson")
    return lambda: SQLitePersistence(tmp_path / "store.db")


async def test_it_goes_on_where_it_was_in_the_next_system(
    new_store: Callable[[], PersistenceBackend],
) -> None:
    for amounts in ((1, 2), (4,)):
        async with ActorSystem("bank", persistence=new_store(), audit_interval=None) as system:
            mails = Mails()
            runner = system.project(mails)
            await runner.wait_for(await Deposits(system).add(*amounts), timeout=60)
            assert mails.sent == list(amounts)
            assert not runner.status.is_exact


async def test_it_pauses_at_the_event_that_fails_and_those_before_are_not_handled_again(
    new_system: NewSystem,
) -> None:
    async with new_system() as system:
        mails = Mails()
        mails.refused = {4}
        last = await Deposits(system).add(1, 2, 4, 8)
        runner = system.project(mails)
        await in_state(runner, "paused")
        assert mails.sent == [1, 2]
        mails.refused = set()
        await runner.resume()
        await runner.wait_for(last, timeout=60)
        assert mails.sent == [1, 2, 4, 8]


async def test_it_is_tried_again_as_often_as_was_said(new_system: NewSystem) -> None:
    class Trying(Mails):
        name = "mails"
        on_error = Retry(3).then(DeadLetter())
        tries = 0

        async def handle(self, received: Any) -> None:
            self.tries += received.event.amount in self.refused
            await super().handle(received)

    async with new_system() as system:
        mails = Trying()
        mails.refused = {2}
        bad = await Deposits(system).add(1, 2)
        await Deposits(system).add(4)
        await Deposits(system).add(8, account="bob")
        runner = system.project(mails)
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert (mails.sent, mails.tries) == ([1, 8], 3)
        mails.refused = set()
        await runner.retry(bad)
        assert mails.sent == [1, 8, 2, 4]
        assert runner.status.parked == 0


async def test_what_was_handled_after_the_position_was_saved_is_handled_again(
    new_system: NewSystem, store: InMemoryPersistence
) -> None:
    """The process ends after the handler and before the position is saved."""
    async with new_system() as system:
        mails = Mails()
        runner = system.project(mails)
        await runner.wait_for(await Deposits(system).add(1), timeout=60)
        saved = await store.load_position("projections/mails")
        await runner.wait_for(await Deposits(system).add(2), timeout=60)
        later = await store.load_position("projections/mails")
        assert saved is not None
    async with store:
        assert await store.save_position("projections/mails", saved, later)
    async with new_system() as system:
        mails = Mails()
        runner = system.project(mails)
        await runner.wait_for(system.backend.last_seq, timeout=60)
        assert mails.sent == [2]


async def test_a_handler_that_hangs_is_cancelled_and_it_pauses(new_system: NewSystem) -> None:
    class Hanging(Mails):
        name = "mails"
        handle_timeout = 0.05

        async def handle(self, received: Any) -> None:
            if received.event.amount in self.refused:
                await anyio.sleep_forever()
            await super().handle(received)

    async with new_system() as system:
        mails = Hanging()
        mails.refused = {2}
        await Deposits(system).add(1, 2)
        runner = system.project(mails)
        await in_state(runner, "paused")
        assert "HandlerTimedOut" in runner.status.error
        mails.refused = set()
        await runner.retry()
        await until(lambda: mails.sent == [1, 2])


async def test_a_greater_version_begins_at_the_beginning_and_a_smaller_one_is_refused(
    new_system: NewSystem,
) -> None:
    class Newer(Mails):
        name, version = "mails", 2

    async with new_system() as system:
        mails: Mails = Mails()
        await system.project(mails).wait_for(await Deposits(system).add(1), timeout=60)
    async with new_system() as system:
        mails = Newer()
        await system.project(mails).wait_for(system.backend.last_seq, timeout=60)
        assert mails.sent == [1]
    async with new_system() as system:
        runner = system.project(Mails())
        await in_state(runner, "paused")
        assert runner.status.error.startswith(ProjectionOutdated.__name__)


async def test_it_cant_be_rebuilt(new_system: NewSystem) -> None:
    async with new_system() as system:
        runner = system.project(Mails())
        await in_state(runner, "running")
        with pytest.raises(InvalidProjection):
            await runner.rebuild()
