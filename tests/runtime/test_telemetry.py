"""The seam for telemetry: what a system calls of it, and that it calls nothing without one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest

from papyra import Actor, ActorSystem, Failure
from papyra.address import ActorAddress
from papyra.eventsourcing import SnapshotPolicy
from papyra.exceptions import StoreError
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.projections import Projection
from papyra.telemetry import Operation, Telemetry
from papyra.testing import FaultyPersistence, ManualClock
from tests.eventsourcing.accounts import Account, Deposit, Deposited, Look, PipelinedAccount

ReplyT = TypeVar("ReplyT")

trace: ContextVar[str] = ContextVar("trace")

#: Rooms in which nothing may run in a system without telemetry.
ROOMS = ("telemetry.py", "observed.py", "observability")


class Noted:
    """An operation that is noted when it ends."""

    def __init__(self, notes: list[str], what: str) -> None:
        self._notes = notes
        self._what = what
        self.metadata = {"trace": trace.get("none")}

    def end(self, error: BaseException | None = None) -> None:
        self._notes.append(f"{self._what}{'' if error is None else f': {type(error).__name__}'}")


class Notebook:
    """Telemetry that notes what it is told of, each with the trace that it belongs to."""

    variables: Sequence[ContextVar[Any]] = (trace,)

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, system: Any) -> None:
        self.notes.append(f"begin {system.system_id}")

    def end(self) -> None:
        self.notes.append("end")

    async def _observed(self, what: str, work: Coroutine[Any, Any, ReplyT]) -> ReplyT:
        within = trace.get("none")
        try:
            reply = await work
        except Exception as error:
            self.notes.append(f"{within}: {what} raised {type(error).__name__}")
            raise
        self.notes.append(f"{within}: {what}")
        return reply

    def ask(
        self, actor: ActorAddress, message: object, asking: Coroutine[Any, Any, ReplyT]
    ) -> Coroutine[Any, Any, ReplyT]:
        return self._observed(f"ask {actor} {type(message).__name__}", asking)

    def receive(
        self,
        actor: ActorAddress,
        actor_type: str,
        message: object,
        handling: Coroutine[Any, Any, ReplyT],
        *,
        is_asked: bool,
    ) -> Coroutine[Any, Any, ReplyT]:
        how = "asked" if is_asked else "told"
        return self._observed(f"{actor_type} {actor.name} was {how}", handling)

    def persist(self, actor: ActorAddress, records: int) -> Operation | None:
        return Noted(self.notes, f"{trace.get('none')}: {actor.name} persists {records}")

    def snapshot(self, actor: ActorAddress, revision: int) -> Operation | None:
        return Noted(self.notes, f"{trace.get('none')}: snapshot {revision} of {actor.name}")

    def recovery(
        self,
        actor: ActorAddress,
        ahead: tuple[Sequence[tuple[ContextVar[Any], Any]], bool] | None,
        recovering: Coroutine[Any, Any, int],
    ) -> Coroutine[Any, Any, int]:
        values = [] if ahead is None else [value for _, value in ahead[0]]
        return self._observed(f"{actor.name} recovers for {values}", recovering)

    def timer(
        self,
        actor: ActorAddress,
        name: str,
        late: float,
        cause: Mapping[str, str],
        firing: Coroutine[Any, Any, ReplyT],
    ) -> Coroutine[Any, Any, ReplyT]:
        return self._observed(f"timer {name} of {cause.get('trace')}", firing)

    def projection(
        self,
        name: str,
        causes: Iterable[Mapping[str, str]],
        records: int,
        handling: Coroutine[Any, Any, ReplyT],
    ) -> Coroutine[Any, Any, ReplyT]:
        traces = [each.get("trace") for each in causes]
        return self._observed(f"{name} handles {records} of {traces}", handling)


def test_the_notebook_of_these_tests_is_telemetry() -> None:
    notebook: Telemetry = Notebook()
    assert notebook.variables == (trace,)


class Echo(Actor):
    async def receive(self, message: Any) -> Any:
        if message == "refuse":
            return Failure(ValueError("no"))
        if isinstance(message, Exception):
            raise message
        if message == "trace":
            return trace.get("none")
        return message


class Relay(Actor):
    async def on_start(self) -> None:
        self.echo = self.context.spawn(Echo, name="echo")

    async def receive(self, message: Any) -> Any:
        if message == "store":
            return await self.context.persist(("Stored", {}))
        return await self.echo.ask(message)


async def test_asks_and_receives_are_observed_where_they_are_and_in_the_trace_of_their_sender(
    persistence: InMemoryPersistence,
) -> None:
    notebook = Notebook()
    async with ActorSystem("shop", persistence=persistence, telemetry=notebook) as system:
        relay = system.spawn(Relay, name="relay")
        trace.set("request 1")
        assert await relay.ask("trace") == "request 1"
        with pytest.raises(ZeroDivisionError):
            await relay.ask(ZeroDivisionError())
    assert notebook.notes == [
        "begin shop",
        "request 1: Echo echo was asked",
        "request 1: ask shop/relay/echo str",
        "request 1: Relay relay was asked",
        "request 1: ask shop/relay str",
        "request 1: Echo echo was asked raised ZeroDivisionError",
        "request 1: ask shop/relay/echo ZeroDivisionError raised ZeroDivisionError",
        "request 1: Relay relay was asked raised ZeroDivisionError",
        "request 1: ask shop/relay ZeroDivisionError raised ZeroDivisionError",
        "end",
    ]


@contextmanager
def in_trace(name: str) -> Iterator[None]:
    token = trace.set(name)
    try:
        yield
    finally:
        trace.reset(token)


async def test_an_actor_keeps_the_trace_neither_of_its_spawner_nor_of_its_last_sender(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem("shop", persistence=persistence, telemetry=Notebook()) as system:
        with in_trace("spawner"):
            echo = system.spawn(Echo)
        before = await echo.ask("trace")
        with in_trace("request 1"):
            during = await echo.ask("trace")
        after = await echo.ask("trace")
    assert (before, during, after) == ("none", "request 1", "none")


class Keeper(Account):
    """An account with snapshots and a timer."""

    snapshots = SnapshotPolicy(every=2)
    timer_messages = (Deposit,)

    async def receive(self, message: Any) -> Any:
        if message == "schedule":
            return await self.schedule("interest", Deposit(1), after=60)
        return await super().receive(message)


async def test_what_an_event_sourced_actor_does_is_observed(
    persistence: InMemoryPersistence,
) -> None:
    notebook, clock = Notebook(), ManualClock()
    async with ActorSystem(
        "bank", persistence=persistence, telemetry=notebook, clock=clock, entities=[Keeper]
    ) as system:
        account = system.entity(Keeper, "1")
        with in_trace("request 1"):
            await account.ask(Deposit(2))
        with in_trace("request 2"):
            await account.ask("schedule")
        await account.stop()
        await clock.advance(60)
        assert await account.ask(Look()) == (3, 4)
    (deposited, scheduled) = (await persistence.read_history("bank/Keeper/1")).events[:2]
    assert (deposited.metadata, scheduled.metadata) == (
        {"trace": "request 1"},
        {"trace": "request 2"},
    )
    # The store has them saved when it comes to it.
    snapshots = {each for each in notebook.notes if "snapshot" in each}
    assert snapshots == {"request 2: snapshot 2 of 1", "none: snapshot 4 of 1"}
    others = [each for each in notebook.notes if each not in snapshots]
    assert [each for each in others if "ask bank" not in each] == [
        "begin bank",
        "none: 1 recovers for ['request 1']",
        "request 1: 1 persists 1",
        "request 1: Keeper 1 was asked",
        "request 2: 1 persists 1",
        "request 2: Keeper 1 was asked",
        "none: 1 recovers for []",
        "none: 1 persists 2",
        "none: timer interest of request 2",
        "end",
    ]


async def test_an_append_that_fails_and_one_that_nobody_waits_for_end_all_the_same() -> None:
    notebook, store = Notebook(), FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("bank", persistence=store, telemetry=notebook) as system:
        account = system.spawn(Account, name="1")
        pipelined = system.spawn(PipelinedAccount, name="2")
        await account.ask(Look())
        await pipelined.ask(Deposit(1))
        store.fail_when(lambda operation: any(each.revision for each in operation.records))
        for each in (account, pipelined):
            with pytest.raises(StoreError):
                await each.ask(Deposit(1))
    assert [each for each in notebook.notes if "persists" in each] == [
        "none: 2 persists 1",
        "none: 1 persists 1: InjectedFault",
        "none: 2 persists 1: InjectedFault",
    ]


class Deposits(Projection):
    name = "deposits"
    events = (Deposited,)

    async def handle(self, received: Any) -> None:
        del received


async def test_a_projection_is_observed_with_what_its_events_come_from(
    persistence: InMemoryPersistence,
) -> None:
    notebook = Notebook()
    async with ActorSystem("bank", persistence=persistence, telemetry=notebook) as system:
        account = system.spawn(Account, name="1")
        with in_trace("request 1"):
            await account.ask(Deposit(2))
        runner = system.project(Deposits())
        await runner.wait_for(system.backend.last_seq, 60)
    assert "none: deposits handles 1 of ['request 1']" in notebook.notes


async def test_no_telemetry_code_runs_in_a_system_without_any(
    persistence: InMemoryPersistence,
) -> None:
    called: set[str] = set()

    def note(frame: FrameType, event: str, arg: object) -> None:
        called.add(frame.f_code.co_filename)

    async def work(telemetry: Telemetry | None) -> set[str]:
        called.clear()
        store, clock = InMemoryPersistence(), ManualClock()
        sys.setprofile(note)
        threading.setprofile(note)
        try:
            async with ActorSystem(
                "bank", persistence=store, clock=clock, entities=[Keeper], telemetry=telemetry
            ) as system:
                relay, account = system.spawn(Relay), system.entity(Keeper, "1")
                await relay.tell(1)
                for each in (1, "store"):
                    await relay.ask(each)
                for message in (Deposit(1), Deposit(1), "schedule"):
                    await account.ask(message)
                await clock.advance(60)
                await system.project(Deposits()).wait_for(store.last_seq, 60)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        rooms = {Path(name) for name in called if "papyra" in name}
        return {path.name for path in rooms if path.name in ROOMS or "observability" in path.parts}

    assert await work(None) == set()
    assert await work(Notebook()) == {"observed.py"}
