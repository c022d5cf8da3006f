"""`ActorSystem.run_in_thread`: a system for code that has no event loop."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, assert_type

import pytest

from papyra import Actor, ActorSystem, Decision, Message, OneForOne, Retry, SystemThread
from papyra.exceptions import (
    AskTimeout,
    BackendInUse,
    DuplicateActorName,
    EscalatedFailure,
    SystemAlreadyStarted,
    SystemNotRunning,
    WrongLoop,
)
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.actors import Echo, Log
from tests.conftest import LOOPS
from tests.extent import CI, some

ESCALATE = OneForOne(default=Decision.ESCALATE)
BACKENDS = [LOOPS[name] for name in (list(LOOPS) if CI else ["asyncio", "trio"])]


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Sum(Message[int]):
    """Is answered with a number."""


class Whole(Actor):
    """Is an entity that says who it is, and what it has heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def receive(self, message: Any) -> Any:
        match message:
            case Sum():
                return sum(self.heard)
            case "id":
                return self.context.entity_id
        self.heard.append(message)
        return None


def test_synchronous_code_asks_tells_spawns_and_reaches_entities(backend: Any) -> None:
    with ActorSystem("bank").run_in_thread(*backend) as bank:
        ann = bank.entity(Whole, "ann")
        assert bank.ask(ann, "id") == "ann"
        bank.tell(ann, 1)
        bank.tell(ann, 2)
        total = bank.ask(ann, Sum(), timeout=60)
        assert_type(total, int)
        assert total == 3
        log: list[Any] = []
        ref = bank.spawn(Log, log, name="log")
        assert bank.ask(ref, "here", retry=Retry(2)) == 2
        assert bank.call(lambda: ref.address.name) == "log"
    assert log == ["start", "here", "stop"]


def test_errors_and_time_outs_come_through_to_synchronous_code(backend: Any) -> None:
    class Silent(Actor):
        async def receive(self, message: Any) -> None:
            await self.context.clock.sleep(3600)

    with ActorSystem(shutdown_timeout=0).run_in_thread(*backend) as thread:
        with pytest.raises(KeyError, match="lost"):
            thread.ask(thread.spawn(Echo), KeyError("lost"))
        with pytest.raises(AskTimeout):
            thread.ask(thread.spawn(Silent), "anybody?", timeout=0.01)
        thread.spawn(Echo, name="one")
        with pytest.raises(DuplicateActorName):
            thread.spawn(Echo, name="one")


def test_many_threads_use_one_system_at_once(backend: Any) -> None:
    with ActorSystem().run_in_thread(*backend) as thread, ThreadPoolExecutor(16) as pool:
        ref = thread.spawn(Echo)
        assert list(pool.map(lambda n: thread.ask(ref, n), range(500))) == list(range(500))


def test_registered_context_variables_travel_from_a_thread_to_an_actor(backend: Any) -> None:
    request = ContextVar[str]("request")

    class Reader(Actor):
        async def receive(self, message: Any) -> str:
            return request.get("none")

    with ActorSystem(propagate=(request,)).run_in_thread(*backend) as thread:
        ref = thread.spawn(Reader)
        assert thread.ask(ref, "?") == "none"
        request.set("r-1")
        assert thread.ask(ref, "?") == "r-1"


def test_a_system_in_a_thread_is_of_no_use_after_its_stop_which_is_allowed_twice() -> None:
    store = InMemoryPersistence()
    thread = ActorSystem(persistence=store).run_in_thread()
    ref = thread.spawn(Echo)
    thread.stop()
    thread.stop()
    assert not thread.is_alive
    assert store.is_closed
    for use in (
        lambda: thread.ask(ref, 1),
        lambda: thread.tell(ref, 1),
        lambda: thread.spawn(Echo),
    ):
        with pytest.raises(SystemNotRunning):
            use()


def test_the_start_of_a_system_in_a_thread_raises_what_it_raises() -> None:
    store = InMemoryPersistence()
    with ActorSystem(persistence=store).run_in_thread(), pytest.raises(BackendInUse):
        ActorSystem(persistence=store).run_in_thread()
    system = ActorSystem()
    with system.run_in_thread(), pytest.raises(SystemAlreadyStarted):
        system.run_in_thread()


def test_a_failure_that_is_escalated_comes_out_of_a_system_in_a_thread(backend: Any) -> None:
    system = ActorSystem(supervision=ESCALATE)
    with (
        pytest.raises(EscalatedFailure, match="boom") as raised,
        system.run_in_thread(*backend) as thread,
    ):
        ref = thread.spawn(Echo)
        thread.tell(ref, ValueError("boom"))
        with pytest.raises(SystemNotRunning):
            thread.call(system.wait_stopped)
        while thread.is_alive:
            threading.Event().wait(0.001)
        with pytest.raises(SystemNotRunning) as refused:
            thread.ask(ref, 1)
        assert refused.value.__cause__ is system.failure
    assert raised.value is system.failure


def test_a_system_in_a_thread_can_neither_be_asked_nor_stopped_by_its_own_actors(
    backend: Any,
) -> None:
    class Inner(Actor):
        async def receive(self, message: Any) -> list[type]:
            raised = []
            for use in (lambda: thread.ask(ref, 1), thread.stop, lambda: thread.spawn(Echo)):
                try:
                    use()
                except WrongLoop as error:
                    raised.append(type(error))
            return raised

    with ActorSystem().run_in_thread(*backend) as thread:
        ref = thread.spawn(Inner)
        assert thread.ask(ref, "try") == [WrongLoop] * 3


def test_a_system_in_a_thread_is_used_where_another_event_loop_runs() -> None:
    async def notebook() -> Any:
        with ActorSystem().run_in_thread() as thread:
            return thread.ask(thread.spawn(Echo), "from a cell")

    assert asyncio.run(notebook()) == "from a cell"


def test_the_block_of_a_system_in_a_thread_raises_its_own_error() -> None:
    with pytest.raises(KeyError, match="mine"), ActorSystem().run_in_thread() as thread:
        raise KeyError("mine")
    assert not thread.is_alive


# Processes


def run(which: str, path: Path, backend: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.runtime.threaded", which, str(path), backend]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def stored(path: Path) -> tuple[int, int, int]:
    """Return how many were counted, started and stopped."""

    async def read() -> list[str]:
        async with JsonFilePersistence(path) as store:
            assert (await store.scan()).is_clean
            return [event.event_type for event in await store.list_events()]

    types = asyncio.run(read())
    return types.count("Counted"), types.count("ActorStarted"), types.count("ActorStopped")


ENDS = [
    ("ends", 0, ["1", "stopped"], ""),
    ("worker", 0, ["1", "2", "stopped"], ""),
    ("exits", 7, ["1", "stopped"], ""),
    ("fails", 1, ["1", "stopped"], "KeyError"),
    ("escalates", 1, ["1", "stopped"], "EscalatedFailure"),
    ("forks", 0, ["1", *["refused: True False"] * 3, "2", "stopped"], ""),
]


@pytest.mark.parametrize("backend", ["asyncio", "trio"] if CI else ["asyncio"])
@pytest.mark.parametrize(("which", "code", "said", "error"), some(ENDS, every=4))
def test_a_system_in_a_thread_stops_in_order_however_its_process_ends(
    which: str, code: int, said: list[str], error: str, backend: str, tmp_path: Path
) -> None:
    with run(which, tmp_path / "store", backend) as process:
        out, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    assert out.split("\n")[:-1] == said
    assert error in errors
    counted, started, ended = stored(tmp_path / "store")
    assert started == ended == 1
    assert counted == (2 if which in ("ends", "worker", "forks") else 1)


@pytest.mark.parametrize("backend", ["asyncio", "trio"] if CI else ["asyncio"])
@pytest.mark.parametrize("which", ["waits", "daemon"] if CI else ["waits"])
def test_a_system_in_a_thread_stops_in_order_at_ctrl_c_and_keeps_what_it_acknowledged(
    which: str, backend: str, tmp_path: Path
) -> None:
    with run(which, tmp_path / "store", backend) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        if which == "waits":
            process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=100)
    assert process.returncode in (0, 1, -signal.SIGINT), errors
    if which == "waits":
        assert "KeyboardInterrupt" in errors
    *numbers, last = out.split()
    assert last == "stopped", errors
    counted, started, ended = stored(tmp_path / "store")
    assert counted >= max([1, *map(int, numbers)])
    assert started == ended == 1


def test_a_thread_that_has_a_system_is_typed() -> None:
    def reply(thread: SystemThread) -> int:
        return thread.ask(thread.entity(Whole, "ann"), Sum())

    assert callable(reply)
