"""Ctrl-C at any line of Papyra's code, on trio, which raises it right there: one outcome.

More lines: ``PAPYRA_INTERRUPTS=1 python -m pytest tests/runtime/test_interrupted_lines.py``.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
import trio

import papyra
from papyra import Actor, ActorRef, ActorSystem
from papyra.eventsourcing import EventSourced
from papyra.persistence import Received
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.projections import Projection
from tests.extent import CI

#: Every how many-th line is tried.
STRIDE = 4 if "PAPYRA_INTERRUPTS" in os.environ else 100 if CI else 500
#: How many tests share these lines.
SHARES = 4 if CI or "PAPYRA_INTERRUPTS" in os.environ else 1
ROOT = str(Path(papyra.__file__).parent)


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

        async with ActorSystem("world", persistence=self.store, shutdown_timeout=60) as system:
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
            events = await store.list_events()
            assert (await store.scan()).is_clean
        stored = [e.payload["number"] for e in events if e.event_type == "Counted"]
        assert {*self.acknowledged} <= {*stored}
        assert len({*stored}) == len(stored)


class InterruptAtLine:
    """Presses Ctrl-C before the n-th line of Papyra's code that this thread runs."""

    def __init__(self, number: int) -> None:
        self._left = number
        #: where that was
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if self.where or not frame.f_code.co_filename.startswith(ROOT):
            return None
        return self._trace

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and not self.where:
            if self._left == 0:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
                return None
            self._left -= 1
        return self._trace


@pytest.fixture(params=["memory", "json"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], PersistenceBackend]:
    numbers = itertools.count()

    def new() -> PersistenceBackend:
        if request.param == "memory":
            return InMemoryPersistence()
        return JsonFilePersistence(tmp_path / f"{next(numbers)}.ndjson", fsync="no")

    return new


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT interrupt this process, which a shell may have started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("start", range(SHARES))
def test_ctrl_c_at_any_line_stops_a_system_in_order(
    new_store: Callable[[], PersistenceBackend], start: int
) -> None:
    for number in itertools.count(start * STRIDE // SHARES, STRIDE):
        world, interrupt = World(new_store()), InterruptAtLine(number)
        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                trio.run(world.live)
                assert not interrupt.where, f"Ctrl-C at {interrupt.where} was lost"
                raise KeyboardInterrupt
        finally:
            sys.settrace(before)
        trio.run(world.check)
        if not interrupt.where:
            break
    assert number > STRIDE
