"""Ctrl-C at any line of Papyra's code: one outcome. Trio raises it right there.

More lines: ``PAPYRA_INTERRUPTS=1 python -m pytest tests/runtime/test_interrupted_lines.py``.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from papyra import Actor, ActorRef, ActorSystem
from papyra.eventsourcing import EventSourced
from papyra.persistence import Received
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.projections import Projection
from tests.conftest import LOOPS
from tests.extent import CI
from tests.interrupts import SHARES, at_lines, run

CASES = (
    [*itertools.product(LOOPS, ["memory", "json"])]
    if CI
    else [("trio", "memory"), ("asyncio", "json")]
)


class Counted(msgspec.Struct, frozen=True):
    number: int


class Rang(msgspec.Struct, frozen=True):
    number: int


class Account(EventSourced[int]):
    """Counts what it is told, and acknowledges it; sets a timer, and counts what that brings."""

    events = (Counted,)
    timer_messages = (Rang,)
    acknowledged: list[int]

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Counted) -> int:
        return state + 1

    async def receive(self, message: Any) -> Any:
        match message:
            case int(number):
                await self.persist(Counted(number))
                self.acknowledged.append(number)
            case "later":
                await self.schedule("ring", Rang(7), after=0)
            case "now":
                self.persist_nowait(Counted(-2))
            case Rang():
                await self.persist(Counted(-1))
        return self.state


class Child(Actor):
    async def receive(self, message: Any) -> Any:
        return message


class Busy(Actor):
    """Has children that it watches, timers, and a task in the background; tells itself things."""

    async def on_start(self) -> None:
        self.child = self.context.spawn(Child, name="child")
        self.context.watch(self.child)
        self.timers.start("tick", "tick", every=0.001)
        self.context.receive_timeout(10, "idle")
        self.context.run_in_background(self.work, pipe_to_self=lambda result: result)

    async def work(self) -> str:
        await self.child.ask("hello")
        return "worked"

    async def receive(self, message: Any) -> Any:
        if message == "fail":
            raise ValueError(message)
        return message


class Seen(Projection):
    name = "seen"
    events = (Counted,)

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    async def handle(self, received: Received) -> None:
        self.numbers.append(received.event.number)


class World:
    """A system with a part of all that there is, and what has to hold after it."""

    def __init__(self, store: PersistenceBackend) -> None:
        self.store = store
        self.acknowledged: list[int] = []
        self.refs: list[ActorRef] = []

    async def live(self) -> None:
        class Mine(Account):
            acknowledged = self.acknowledged

        async with ActorSystem("world", persistence=self.store, shutdown_timeout=5) as system:
            busy = system.spawn(Busy, name="busy")
            self.refs = [busy]
            projection = system.project(Seen())
            account = system.entity(Mine, "1")
            async with system.subscribe(types=[Counted]) as items:
                for number in range(3):
                    await account.ask(number)
                await busy.tell("hello")
                await busy.tell("fail")
                assert await busy.ask("are you there?", timeout=60) == "are you there?"
                await account.ask("later")
                await account.tell("now")
                async for item in items:
                    if getattr(getattr(item, "event", None), "number", 0) == -2:
                        break
            await projection.wait_for(1)
            await busy.stop()

    async def check(self) -> None:
        assert not any(ref.is_alive for ref in self.refs)
        async with self.store as store:  # raises if somebody hosts it still
            assert (await store.scan()).is_clean
        await self.check_kept()

    async def check_kept(self) -> None:
        async with self.store as store:
            await store.recover()  # a torn end
            events = await store.list_events()
        stored = [e.payload["number"] for e in events if e.event_type == "Counted"]
        assert {*self.acknowledged} <= {*stored}
        assert len({*stored}) == len(stored)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(("loop", "kind"), CASES)
@pytest.mark.parametrize("share", range(SHARES))
def test_ctrl_c_at_any_line_stops_a_system_in_order(
    loop: str, kind: str, share: int, tmp_path: Path
) -> None:
    for number, interrupt in enumerate(at_lines(share)):
        store: PersistenceBackend = InMemoryPersistence()
        if kind == "json":
            store = JsonFilePersistence(tmp_path / f"{number}.ndjson", fsync="no")
        world = World(store)
        with pytest.raises(KeyboardInterrupt):
            run(loop, world.live, interrupt)
        anyio.run(world.check)


@pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("share", range(SHARES))
def test_a_second_ctrl_c_at_any_line_ends_a_system_and_keeps_what_was_acknowledged(
    loop: str, share: int, tmp_path: Path
) -> None:
    interrupts = at_lines(share, again=lambda number: 1 + number % 97)
    for number, interrupt in enumerate(interrupts):
        path, copy = tmp_path / f"{number}.ndjson", tmp_path / f"{number}.copy"
        world = World(JsonFilePersistence(path, fsync="no"))
        # asyncio raises the second one anywhere, and what it says then is its own.
        with pytest.raises((KeyboardInterrupt, BaseExceptionGroup, RuntimeError)):
            run(loop, world.live, interrupt)
        if path.exists():
            # It may be open still: a clean close is not promised.
            shutil.copy(path, copy)
            world.store = JsonFilePersistence(copy)
            anyio.run(world.check_kept)
