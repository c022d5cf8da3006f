"""Tasks in the background, and blocking calls in threads, that belong to an actor."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForOne
from papyra.exceptions import (
    ActorNotRunning,
    PapyraError,
    TaskGroupLeftOpen,
    WrongLoop,
    WrongTask,
)
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, wait_until_idle
from tests.actors import letters
from tests.conftest import on_event_loops


class Worker(Actor):
    """Calls what it is sent with itself, and notes what else arrives."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        if callable(message):
            return message(self)
        self.log.append(message)
        return None

    async def on_stop(self) -> None:
        self.log.append("stop")


class Endless:
    """Work that says that it has begun, and how it has ended."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.begun = anyio.Event()

    async def __call__(self, *_: Any) -> None:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.log.append("cancelled")


@pytest.fixture
def log() -> list[Any]:
    return []


def run(function: Any, *args: Any, **options: Any) -> Callable[[Worker], Any]:
    return lambda actor: actor.context.run_in_background(function, *args, **options)


async def double(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


async def test_the_result_of_background_work_can_be_sent_to_the_actor_itself(
    log: list[Any],
) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(double, 21, pipe_to_self=lambda result: ("doubled", result)))
        await ref.ask(run(double(1), pipe_to_self=str))
        await ref.ask(run(double, 3))
        await wait_until_idle()
        assert sorted(log, key=str) == [("doubled", 42), "2"]


async def test_an_actor_handles_messages_while_it_works_in_the_background(log: list[Any]) -> None:
    work = Endless(log)
    async with ActorSystem() as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(work))
        await work.begun.wait()
        await ref.ask("told")
        assert log == ["told"]
    assert log == ["told", "cancelled", "stop"]


@pytest.mark.parametrize("how", ["stop", "context", "failure", "cancel", "system"])
async def test_background_work_is_cancelled_before_on_stop(log: list[Any], how: str) -> None:
    work = Endless(log)
    async with ActorSystem(supervision=OneForOne(default=Decision.STOP)) as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(work))
        await work.begun.wait()
        match how:
            case "stop":
                await ref.stop()
            case "context":
                await ref.ask(lambda actor: actor.context.stop())
            case "failure":
                await ref.tell(ValueError("lost"))
            case "cancel":
                system._guardian.children.cancel()
        await wait_until_idle()
        assert log == ([] if how == "system" else ["cancelled", "stop"])
    assert log == ["cancelled", "stop"]


async def test_a_restart_cancels_background_work_and_makes_a_dead_letter_of_its_result(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    work, entered, release = Endless(log), anyio.Event(), anyio.Event()

    class Fails(Worker):
        async def receive(self, message: Any) -> Any:
            if message != "fail":
                return await super().receive(message)
            self.context.run_in_background(work, pipe_to_self=str)
            self.context.run_in_background(double, 21, pipe_to_self=str)
            entered.set()
            await release.wait()
            raise ValueError("lost")

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Fails, log)
        await ref.tell("fail")
        await entered.wait()
        await wait_until_idle()
        await ref.tell("told")
        assert system.audit().messages_waiting == 2
        release.set()
        await wait_until_idle()
        assert log == ["cancelled", "stop", "told"]
    assert letters(persistence) == ["42"]


@pytest.mark.parametrize("decision", [Decision.RESUME, Decision.RESTART, Decision.STOP])
async def test_the_failure_of_background_work_is_the_failure_of_its_actor(
    log: list[Any], decision: Decision, persistence: InMemoryPersistence
) -> None:
    async def fail() -> None:
        raise KeyError("lost")

    supervision = OneForOne(default=decision)
    async with ActorSystem(persistence=persistence, supervision=supervision) as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(fail))
        await wait_until_idle()
        assert ref.is_alive == (decision is not Decision.STOP)
        assert log == ([] if decision is Decision.RESUME else ["stop"])
        assert system.audit().crashed == 1
    (crash,) = [each.payload for each in persistence.events if each.event_type == "ActorCrashed"]
    assert (crash["error_type"], crash["where"]) == ("KeyError", "a background task")
    assert crash["decision"] == decision.value


async def test_the_failure_of_pipe_to_self_is_the_failure_of_its_actor(log: list[Any]) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(double, 1, pipe_to_self=lambda result: result / 0))
        await wait_until_idle()
        assert system.audit().restarted == 1


async def test_background_work_that_was_cancelled_by_its_actor_is_no_failure(
    log: list[Any],
) -> None:
    work = Endless(log)
    async with ActorSystem() as system:
        ref = system.spawn(Worker, log)
        task = await ref.ask(run(work, pipe_to_self=str))
        await work.begun.wait()
        task.cancel()
        task.cancel()
        await wait_until_idle()
        assert log == ["cancelled"]
        assert system.audit().crashed == 0


async def test_a_result_waits_for_room_in_the_mailbox(log: list[Any]) -> None:
    class Full(Worker):
        mailbox_capacity = 1

        async def receive(self, message: Any) -> Any:
            if isinstance(message, tuple):
                for number in range(5):
                    self.context.run_in_background(double, number, pipe_to_self=str)
                message[0].set()
                await message[1].wait()
                return None
            return await super().receive(message)

    async with ActorSystem() as system:
        ref = system.spawn(Full, log)
        entered, release = anyio.Event(), anyio.Event()
        await ref.tell((entered, release))
        await entered.wait()
        await wait_until_idle()
        assert system.audit().messages_waiting == 1
        release.set()
        await wait_until_idle()
        assert sorted(log) == ["0", "2", "4", "6", "8"]


async def test_an_entity_is_not_idle_while_it_works_in_the_background(log: list[Any]) -> None:
    clock = ManualClock()

    class Napper(Worker):
        idle_timeout = 10

    async with ActorSystem(clock=clock) as system:
        system.entities.register(Napper, log)
        ref = system.entity(Napper, "42")
        release = anyio.Event()
        await ref.ask(run(release.wait, pipe_to_self=lambda _: "released"))
        await clock.advance(1_000)
        assert len(system.entities) == 1
        release.set()
        await clock.advance(9.9)
        assert log == ["released"]
        assert len(system.entities) == 1
        await clock.advance(10)
        assert len(system.entities) == 0


async def test_passivation_cancels_background_work(log: list[Any]) -> None:
    work = Endless(log)
    async with ActorSystem() as system:
        system.entities.register(Worker, log)
        ref = system.entity(Worker, "42")
        await ref.ask(run(work))
        await work.begun.wait()
        await ref.ask(lambda actor: actor.context.passivate())
        await wait_until_idle()
        assert log == ["cancelled", "stop"]
        assert len(system.entities) == 0


async def test_background_work_can_ask_its_own_actor_and_start_more(log: list[Any]) -> None:
    class Nested(Worker):
        async def on_start(self) -> None:
            self.context.run_in_background(self.first)

        async def first(self) -> None:
            await self.context.self_ref.ask("from the task")
            self.context.run_in_background(double, 1, pipe_to_self=str)

    async with ActorSystem() as system:
        system.spawn(Nested, log)
        await wait_until_idle()
        assert log == ["from the task", "2"]


async def test_background_work_can_wait_for_the_end_of_its_own_actor(log: list[Any]) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(ref.stop))
        await wait_until_idle()
        assert not ref.is_alive
        assert system.audit().actors == 0


async def test_background_work_sees_the_context_of_its_actor(log: list[Any]) -> None:
    request: ContextVar[str] = ContextVar("request")

    async def look() -> str:
        return request.get("none")

    async with ActorSystem(propagate=(request,)) as system:
        ref = system.spawn(Worker, log)
        request.set("42")
        await ref.ask(run(look, pipe_to_self=str))
        await wait_until_idle()
        assert log == ["42"]


async def test_a_task_group_that_background_work_leaves_open_is_a_failure_that_says_so(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async def leave_open() -> None:
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        work = Endless(log)
        tasks.start_soon(work)
        await work.begun.wait()

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(leave_open))
        await wait_until_idle()
        assert await ref.ask(lambda actor: "alive") == "alive"
    (crash,) = [each.payload for each in persistence.events if each.event_type == "ActorCrashed"]
    assert crash["error_type"] == TaskGroupLeftOpen.__name__


async def test_a_task_group_in_background_work_fails_with_its_group_of_errors(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async def fail() -> None:
        raise KeyError("lost")

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            tasks.start_soon(anyio.sleep_forever)

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(work))
        await wait_until_idle()
        assert system.audit().restarted == 1
    (crash,) = [each.payload for each in persistence.events if each.event_type == "ActorCrashed"]
    assert crash["error_type"] == "ExceptionGroup"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
async def test_an_interrupt_in_background_work_ends_the_system_and_comes_out_of_it(
    log: list[Any], error: type[BaseException]
) -> None:
    async def exit_now() -> None:
        raise error

    with pytest.raises(error):
        async with ActorSystem() as system:
            ref = system.spawn(Worker, log)
            await ref.tell(run(exit_now))
            await anyio.sleep_forever()
    assert log == ["stop"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_background_work_that_somebody_cancels_on_asyncio_ends_without_a_result(
    log: list[Any], anyio_backend: str
) -> None:
    work = Endless(log)
    async with ActorSystem() as system:
        ref = system.spawn(Worker, log)
        await ref.ask(run(work, pipe_to_self=str))
        await work.begun.wait()
        (task,) = [each for each in asyncio.all_tasks() if "background" in each.get_name()]
        task.cancel()
        await wait_until_idle()
        assert log == ["cancelled"]
        assert system.audit().crashed == 0
        await ref.ask("told")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_future_that_somebody_cancels_fails_the_background_work_that_waits_for_it(
    log: list[Any], persistence: InMemoryPersistence, anyio_backend: str
) -> None:
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Worker, log)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await ref.ask(run(future))
        await wait_until_idle()
        future.cancel()
        await wait_until_idle()
        assert system.audit().restarted == 1
    (crash,) = [each.payload for each in persistence.events if each.event_type == "ActorCrashed"]
    assert crash["error_type"] == PapyraError.__name__


async def test_what_can_not_run_in_the_background_is_refused(log: list[Any]) -> None:
    def refused(actor: Worker) -> None:
        with pytest.raises(TypeError, match="run_in_thread"):
            actor.context.run_in_background(int, "5")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a function or a coroutine"):
            actor.context.run_in_background(5)  # type: ignore[call-overload]
        work = double(1)
        with pytest.raises(TypeError, match="arguments are for a function"):
            actor.context.run_in_background(work, 2)  # type: ignore[call-overload]
        work.close()

    async with ActorSystem() as system:
        await system.spawn(Worker, log).ask(refused)


@pytest.mark.filterwarnings("error")
async def test_background_work_is_started_by_a_running_actor_alone(log: list[Any]) -> None:
    errors: list[str] = []

    class Early(Worker):
        def __init__(self, log: list[Any]) -> None:
            super().__init__(log)
            self.start()

        def start(self) -> None:
            try:
                self.context.run_in_background(double(1))
            except ActorNotRunning as error:
                errors.append(str(error))

        async def on_stop(self) -> None:
            self.start()

    async with ActorSystem() as system:
        ref = system.spawn(Early, log)
        context = await ref.ask(lambda actor: actor.context)
        with pytest.raises(WrongTask, match="only papyra/Early-1 itself"):
            context.run_in_background(double(1))

        def in_a_thread() -> None:
            with pytest.raises(WrongLoop):
                context.run_in_background(double(1))

        await anyio.to_thread.run_sync(in_a_thread)
    assert len(errors) == 2


# In threads


class Threads(Actor):
    """Awaits a function in a thread."""

    async def receive(self, message: Any) -> Any:
        return await self.context.run_in_thread(message)


async def test_a_blocking_function_runs_in_a_thread_and_gives_its_result(log: list[Any]) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Threads)
        assert await ref.ask(threading.get_ident) != threading.get_ident()
        assert await ref.ask(functools.partial(divmod, 7, 2)) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await ref.ask(functools.partial(divmod, 7, 0))
        worker = system.spawn(Worker, log)
        piped = anyio.Event()

        def pipe(result: Any) -> Any:
            piped.set()
            return result

        def start(actor: Worker) -> None:
            context = actor.context
            context.run_in_background(context.run_in_thread, divmod, 7, 2, pipe_to_self=pipe)

        await worker.ask(start)
        await piped.wait()
        await wait_until_idle()
        assert log == [(3, 1)]


async def test_a_thread_that_raises_stop_iteration_is_a_failure_like_any_other() -> None:
    def stop() -> None:
        raise StopIteration

    async with ActorSystem() as system:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await system.spawn(Threads).ask(stop)


async def test_a_system_does_not_wait_for_a_blocking_function_when_it_stops(
    log: list[Any],
) -> None:
    release, running, ended = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        running.set()
        release.wait()
        ended.set()

    def start(actor: Worker) -> None:
        context = actor.context
        context.run_in_background(context.run_in_thread, block, pipe_to_self=str)

    try:
        async with ActorSystem() as system:
            await system.spawn(Worker, log).ask(start)
            await anyio.to_thread.run_sync(running.wait)
        assert log == ["stop"]
        assert not ended.is_set()
    finally:
        release.set()
    await anyio.to_thread.run_sync(ended.wait)


async def test_an_actor_goes_on_when_its_wait_for_a_thread_is_cut_short() -> None:
    release = threading.Event()

    class Hasty(Actor):
        async def receive(self, message: Any) -> Any:
            with anyio.move_on_after(0) as scope:
                await self.context.run_in_thread(release.wait)
            return scope.cancelled_caught

    try:
        async with ActorSystem() as system:
            assert await system.spawn(Hasty).ask("now") is True
    finally:
        release.set()


async def test_no_more_threads_run_at_a_time_than_the_limiter_of_anyio_lets() -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    release = threading.Event()
    before, limiter.total_tokens = limiter.total_tokens, 2
    running: list[int] = []

    def block(number: int) -> None:
        running.append(number)
        release.wait()

    try:
        async with ActorSystem() as system:
            refs: list[ActorRef] = [system.spawn(Threads) for _ in range(5)]
            async with anyio.create_task_group() as tasks:
                for number, ref in enumerate(refs):
                    tasks.start_soon(ref.ask, functools.partial(block, number))
                await wait_until_idle()
                assert limiter.borrowed_tokens == 2
                release.set()
        assert sorted(running) == list(range(5))
        assert limiter.borrowed_tokens == 0
    finally:
        release.set()
        limiter.total_tokens = before


PROGRAM = """
import sys, threading
import anyio
from papyra import Actor, ActorSystem

class Blocks(Actor):
    async def receive(self, message):
        self.context.run_in_background(self.context.run_in_thread, threading.Event().wait)

async def main():
    async with ActorSystem() as system:
        await system.spawn(Blocks).ask("now")
        while threading.active_count() == 1:
            await anyio.lowlevel.checkpoint()
    print("left")

anyio.run(main, backend=sys.argv[1])
"""


@on_event_loops("asyncio", "trio")
def test_a_thread_that_never_ends_does_not_keep_the_process(anyio_backend: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, anyio_backend[0]],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("left\n", "", 0)
