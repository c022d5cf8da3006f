"""Whatever crashes, fails or is repeated: each command with a key is carried out once.

``PAPYRA_REPEATED_EXAMPLES=2000`` tries as many programs on each store, and
``PAPYRA_REPEATED_SEEDS=2000`` as many orders.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from papyra import Actor, ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.retry import Retry
from papyra.testing import CrashRun, FaultyPersistence, check_history, crash_everywhere, explore
from tests.conftest import event_loops
from tests.extent import count

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

EXAMPLES = count("PAPYRA_REPEATED_EXAMPLES", 5, 25)


class Added(msgspec.Struct, frozen=True):
    key: str
    amount: int


class Add(msgspec.Struct, frozen=True):
    """Add an amount in one step, or in two; reply with the sum, and with that in between."""

    key: str
    amount: int
    in_two: bool = False


class Sum(EventSourced[int]):
    events = (Added,)
    snapshots = SnapshotPolicy(every=2, keep=2)
    entity_name = "sum"
    #: how many more of the commands fail in between, or at their ends
    fails_between = fails_at_end = 0

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Added) -> int:
        return state + event.amount

    async def receive(self, message: Any) -> Any:
        if not isinstance(message, Add):
            return self.state
        if message.in_two:
            await self.keep(Added(message.key, message.amount))
            between = self.state
            if type(self).fails_between:
                type(self).fails_between -= 1
                raise RuntimeError("between")
            await self.keep(Added(message.key, 0), Added(message.key, 1))
            return [between, self.state]
        await self.keep(Added(message.key, message.amount))
        if type(self).fails_at_end:
            type(self).fails_at_end -= 1
            raise RuntimeError("at the end")
        return self.state

    async def keep(self, *events: object) -> None:
        await self.persist(*events)


class FastSum(Sum):
    async def keep(self, *events: object) -> None:
        self.persist_nowait(*events)


SUMS = pytest.mark.parametrize("sum_class", [Sum, FastSum])


class Client(Actor):
    """Asks with the key of the command, so that whoever asks it again asks the same."""

    def __init__(self, sum_class: type[Sum]) -> None:
        self._sum_class = sum_class

    async def receive(self, message: Any) -> Any:
        sums = self.context.entity(self._sum_class, "x")
        if isinstance(message, Add):
            return await sums.ask(message, idempotency_key=message.key)
        return await sums.ask(message)


@SUMS
async def test_each_command_is_carried_out_once_whatever_crashes(sum_class: type[Sum]) -> None:
    commands = [Add("a", 10, in_two=True), Add("b", 100)]
    points = 0

    async def check(run: CrashRun) -> None:
        nonlocal points
        points += not run.restarted
        added = run.events(Added)
        for command, outcome in run.outcomes:
            assert isinstance(command, Add)
            assert [each["amount"] for each in added if each["key"] == command.key] in (
                *([[command.amount, 0, 1], [command.amount]] if command.in_two else []),
                *([] if command.in_two else [[command.amount]]),
                *([[]] if isinstance(outcome, Exception) else []),
            )
            if not isinstance(outcome, Exception):
                assert await run.ref.ask(command) == outcome
        assert await run.ref.ask("look") == sum(each["amount"] for each in added)

    crashes = await crash_everywhere(
        lambda system: system.spawn(Client, sum_class), commands, check, retry=True
    )
    assert len(crashes.points) > 30
    assert points == len(crashes.points) + 2


@SUMS
async def test_repeats_in_any_order_get_one_reply(sum_class: type[Sum]) -> None:
    async def program(system: ActorSystem) -> None:
        sums = system.entity(sum_class, "x")
        replies: dict[str, list[object]] = {"a": [], "b": []}

        async def ask(command: Add) -> None:
            reply = await sums.ask(command, idempotency_key=command.key)
            replies[command.key].append(reply)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask, Add("a", 1))
                tasks.start_soon(ask, Add("b", 10, True))
                tasks.start_soon(sums.stop)
        assert replies in (
            {"a": [1] * 3, "b": [[11, 12]] * 3},
            {"a": [12] * 3, "b": [[10, 11]] * 3},
        )
        assert await sums.ask("look") == 12
        await check_history(system.backend, sum_class)

    explored = await explore(program, seeds=count("PAPYRA_REPEATED_SEEDS", 20, 150))
    assert explored.schedules > 10


KEYS = st.sampled_from("abcdefg")
ASKED = st.tuples(st.just("ask"), KEYS, st.booleans())
FAULT = st.tuples(
    st.sampled_from(["fail", "lose the answer", "crash between", "crash at the end"]),
    st.integers(1, 2),
)
Step: TypeAlias = tuple[Any, ...]
STEP: st.SearchStrategy[Step] = st.one_of(
    *(ASKED, ASKED, ASKED, FAULT),
    st.tuples(st.sampled_from(["restart", "sleep", "compact", "add"])),
)


class Model:
    """What is to be replied, as long as the window remembers it."""

    def __init__(self, window: int) -> None:
        self.sum = 0
        self._window = window
        self._replies: dict[str, object] = {}

    def reply(self, command: Add) -> object:
        if command.key not in self._replies:
            between = self.sum + command.amount
            self.sum = between + command.in_two
            self._replies[command.key] = [between, self.sum] if command.in_two else self.sum
            while len(self._replies) > self._window:
                del self._replies[next(iter(self._replies))]
        return self._replies[command.key]


class Program:
    """A program of commands and faults, step by step."""

    def __init__(
        self, sum_class: type[Sum], reopen: Callable[[], PersistenceBackend], trims: bool
    ) -> None:
        self._class, self._reopen, self._trims = sum_class, reopen, trims
        self._model = Model(sum_class.idempotency_window)
        #: a key belongs to one command
        self._in_two: dict[str, bool] = {}

    async def run(self, steps: list[Step]) -> None:
        self._class.fails_between = self._class.fails_at_end = 0
        rest = [*steps, ("restart",)]
        while rest:
            until = rest.index(("restart",))
            lived, rest = rest[:until], rest[until + 1 :]
            store = FaultyPersistence(self._reopen())
            async with ActorSystem("papyra", persistence=store) as system:
                for step in lived:
                    await self._do(step, system, store)
        store = FaultyPersistence(self._reopen())
        async with ActorSystem("papyra", persistence=store) as system:
            assert await system.entity(self._class, "x").ask("look") == self._model.sum
            if self._model.sum:
                await check_history(system.backend, self._class)

    async def _do(self, step: Step, system: ActorSystem, store: FaultyPersistence) -> None:
        sums = system.entity(self._class, "x")
        match step:
            case ("ask", key, in_two):
                command = Add(key, 5, self._in_two.setdefault(key, in_two))
                reply = await sums.ask(command, retry=Retry(9), idempotency_key=key)
                assert reply == self._model.reply(command)
            case ("add",):
                store.clear()
                self._class.fails_between = self._class.fails_at_end = 0
                await sums.ask(Add("", 3))
                self._model.sum += 3
            case ("fail" | "lose the answer" as fault, times):
                store.clear()
                store.fail_next("append", kind="event", times=times, after=fault != "fail")
            case ("crash between", times):
                self._class.fails_between = times
            case ("crash at the end", times):
                self._class.fails_at_end = times
            case ("sleep",):
                await sums.stop()
            case ("compact",):
                store.clear()
                policy = RetentionPolicy(max_records=3, trim_histories=self._trims)
                await system.backend.compact(policy)
        assert await self._looked(system) == self._model.sum

    async def _looked(self, system: ActorSystem) -> int:
        sums = system.entity(self._class, "x")
        found: int = await sums.ask("look", retry=Retry(9))
        return found


class ShortSum(Sum):
    idempotency_window = 3


class ShortFastSum(FastSum):
    idempotency_window = 3


@pytest.mark.parametrize("sum_class", [ShortSum, ShortFastSum])
@pytest.mark.parametrize("store", ["memory", "json", "sqlite"])
async def test_the_sum_is_that_of_each_command_once(
    sum_class: type[Sum], store: str, anyio_backend: Any
) -> None:
    name, options = anyio_backend

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEP, min_size=4, max_size=25))
    def check(steps: list[Step]) -> None:
        folder = Path(tempfile.mkdtemp())
        memory = InMemoryPersistence()
        reopen: dict[str, Callable[[], PersistenceBackend]] = {
            "memory": lambda: memory,
            "json": lambda: JsonFilePersistence(folder / "x.ndjson", fsync="no"),
            "sqlite": lambda: SQLitePersistence(folder / "x.db"),
        }
        program = Program(sum_class, reopen[store], trims=store != "memory")
        try:
            anyio.run(program.run, steps, backend=name, backend_options=options)
        finally:
            shutil.rmtree(folder)

    await anyio.to_thread.run_sync(check)
