"""Refs, contexts and systems are used in their own event loop; elsewhere they say so."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio

from papyra import Actor, ActorRef, ActorSystem
from papyra.exceptions import ActorStopped, WrongLoop
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.actors import Echo, Log, letters
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio", "uvloop", "trio")

OUTSIDE = r"system 'shop' can't be reached from another thread .* system\.portal\.call"

#: Everything that a ref does to its actor.
REF_USES: dict[str, Callable[[ActorRef], Any]] = {
    "tell": lambda ref: ref.tell("x"),
    "tell_nowait": lambda ref: ref.tell_nowait("x"),
    "ask": lambda ref: ref.ask("x"),
    "ask with a timeout": lambda ref: ref.ask("x", timeout=5),
    "stop": lambda ref: ref.stop(),
}


class Ended(Exception):
    """The coroutine came to its end, without an event loop."""


def step(awaitable: Awaitable[Any]) -> None:
    """Run a coroutine where no event loop runs, until it would wait."""
    try:
        awaitable.__await__().__next__()
    except StopIteration:
        raise Ended from None


def use_without_a_loop(use: Callable[[ActorRef], Any], ref: ActorRef) -> None:
    result = use(ref)
    if result is not None:
        step(result)


def use_in_another_loop(backend: str, use: Callable[[ActorRef], Any], ref: ActorRef) -> None:
    async def main() -> None:
        result = use(ref)
        if result is not None:
            await result

    anyio.run(main, backend=backend)


WHERE: dict[str, Callable[[Callable[[ActorRef], Any], ActorRef], None]] = {
    "no loop": use_without_a_loop,
    "asyncio": lambda use, ref: use_in_another_loop("asyncio", use, ref),
    "trio": lambda use, ref: use_in_another_loop("trio", use, ref),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("use", REF_USES)
async def test_a_ref_used_in_another_thread_raises_wrong_loop_and_does_nothing(
    persistence: InMemoryPersistence, use: str, where: str
) -> None:
    log: list[Any] = []
    async with ActorSystem("shop", persistence=persistence) as system:
        ref = system.spawn(Log, log)

        def outside() -> None:
            with pytest.raises(WrongLoop, match=OUTSIDE):
                WHERE[where](REF_USES[use], ref)

        await anyio.to_thread.run_sync(outside)
        assert ref.is_alive
        assert await ref.ask("inside") == 2
    assert log == ["start", "inside", "stop"]
    assert letters(persistence) == []


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("use", REF_USES)
async def test_a_ref_of_a_stopped_actor_used_in_another_thread_raises_wrong_loop(
    persistence: InMemoryPersistence, use: str, where: str
) -> None:
    async with ActorSystem("shop", persistence=persistence) as system:
        ref = system.spawn(Echo)
        await ref.stop()

        def outside() -> None:
            with pytest.raises(WrongLoop, match=OUTSIDE):
                WHERE[where](REF_USES[use], ref)

        await anyio.to_thread.run_sync(outside)
    assert letters(persistence) == []


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("use", REF_USES)
def test_a_ref_of_a_system_whose_event_loop_has_ended_raises_wrong_loop(
    anyio_backend: Any, use: str, where: str
) -> None:
    async def main() -> ActorRef:
        async with ActorSystem("shop") as system:
            return system.spawn(Echo)

    name, options = anyio_backend
    ref = anyio.run(main, backend=name, backend_options=options)
    with pytest.raises(WrongLoop, match=OUTSIDE):
        WHERE[where](REF_USES[use], ref)


async def test_a_ref_of_an_ended_system_in_its_event_loop_is_that_of_a_stopped_actor() -> None:
    async with ActorSystem("shop") as system:
        ref = system.spawn(Echo)
    await ref.tell("x")
    ref.tell_nowait("x")
    await ref.stop()
    with pytest.raises(ActorStopped):
        await ref.ask("x")


@pytest.mark.parametrize("use", ["ask", "ask with a timeout", "stop"])
@pytest.mark.parametrize("outer", ["asyncio", "trio"])
def test_a_ref_used_in_an_event_loop_inside_its_own_raises_wrong_loop(outer: str, use: str) -> None:
    async def main() -> None:
        async with ActorSystem("shop") as system:
            ref = system.spawn(Echo)

            async def inside() -> None:
                with pytest.raises(WrongLoop, match=OUTSIDE):
                    await REF_USES[use](ref)

            # Not by anyio, which would refuse.
            if outer == "trio":
                asyncio.run(inside())
            else:
                trio.run(inside)
            assert await ref.ask("outside again") == "outside again"

    anyio.run(main, backend=outer)


def test_a_system_runs_in_an_event_loop_inside_another_one() -> None:
    async def live() -> Any:
        async with ActorSystem("shop") as system:
            return await system.spawn(Echo).ask("x")

    async def main() -> Any:
        return trio.run(live)

    assert asyncio.run(main()) == "x"


def test_a_system_on_trio_as_a_guest_of_asyncio_is_not_reached_from_asyncio() -> None:
    async def live(spawned: asyncio.Future[ActorRef], over: trio.Event) -> None:
        async with ActorSystem("shop") as system:
            ref = system.spawn(Echo)
            assert await ref.ask("x") == "x"
            spawned.set_result(ref)
            await over.wait()

    async def host() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        spawned = loop.create_future()
        over = trio.Event()
        trio.lowlevel.start_guest_run(
            live,
            spawned,
            over,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        ref = await spawned
        with pytest.raises(WrongLoop):
            await ref.ask("x")
        loop.call_soon(over.set)
        (await done).unwrap()

    asyncio.run(host())


SYSTEM_USES: dict[str, Callable[[ActorSystem], Any]] = {
    "spawn": lambda system: system.spawn(Echo),
    "find": lambda system: system.find("shop/echo"),
    "audit": lambda system: system.audit(),
    "stop": lambda system: system.stop(),
    "a verb of the backend": lambda system: system.backend.flush(),
}


@pytest.mark.parametrize("use", SYSTEM_USES)
async def test_a_system_used_in_another_thread_raises_wrong_loop(use: str) -> None:
    async with ActorSystem("shop") as system:

        def outside() -> None:
            with pytest.raises(WrongLoop, match=OUTSIDE):
                result = SYSTEM_USES[use](system)
                if result is not None:
                    step(result)

        await anyio.to_thread.run_sync(outside)
        assert system.is_running
        assert system.audit().actors == 0


class Busy(Actor):
    """Does in a thread what it is told to do with its context."""

    async def receive(self, message: Callable[[Actor], Any]) -> Any:
        return await anyio.to_thread.run_sync(message, self)


CONTEXT_USES: dict[str, Callable[[Actor], Any]] = {
    "spawn": lambda actor: actor.context.spawn(Echo),
    "watch": lambda actor: actor.context.watch(actor.context.self_ref),
    "unwatch": lambda actor: actor.context.unwatch(actor.context.self_ref),
    "stop": lambda actor: actor.context.stop(),
    "persist": lambda actor: step(actor.context.persist(("Taken", {}))),
}


@pytest.mark.parametrize("use", CONTEXT_USES)
async def test_an_actors_context_used_in_a_worker_thread_raises_wrong_loop(use: str) -> None:
    def outside(actor: Actor) -> str:
        with pytest.raises(WrongLoop, match=OUTSIDE):
            CONTEXT_USES[use](actor)
        return "tried"

    async with ActorSystem("shop") as system:
        ref = system.spawn(Busy)
        assert await ref.ask(outside) == "tried"
        assert await ref.ask(lambda actor: len(actor.context.children)) == 0


async def test_read_only_properties_of_refs_and_systems_work_in_every_thread() -> None:
    async with ActorSystem("shop") as system:
        ref = system.spawn(Echo, name="echo")
        same = system.find("shop/echo")

        def outside() -> None:
            assert repr(ref) == "<ActorRef shop/echo>"
            assert (str(ref.address), ref.is_alive) == ("shop/echo", True)
            assert ref == same
            assert len({ref, same}) == 1
            assert copy.copy([ref]) == [ref]
            assert (system.system_id, system.is_running) == ("shop", True)
            assert system.persistence.is_alive
            assert system.stored_before == 0
            assert system.cancelled_actors == ()

        await anyio.to_thread.run_sync(outside)


def test_a_ref_used_in_a_thread_with_a_reused_id_raises_wrong_loop() -> None:
    """Numbers of threads are given again, so the loop itself counts where the actor is no more."""
    refs: list[ActorRef] = []

    async def main() -> None:
        async with ActorSystem("shop") as system:
            refs.append(system.spawn(Echo))

    def outside() -> None:
        with pytest.raises(WrongLoop):
            refs[0].tell_nowait("x")
        outcomes.append("refused")

    outcomes: list[str] = []
    for target in (lambda: anyio.run(main), outside):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert outcomes == ["refused"]


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_an_actor_may_run_a_loop_and_a_system_of_its_own_in_a_thread(other: str) -> None:
    class Hosts(Actor):
        async def receive(self, message: Any) -> Any:
            return await anyio.to_thread.run_sync(lambda: anyio.run(live, backend=other))

    async def live() -> Any:
        async with ActorSystem("inner", mailbox_capacity=1) as system:
            ref = system.spawn(Echo)
            for word in ("one", "two", "three"):
                await ref.tell(word)
            reply = await ref.ask("x")
            assert await ref.ask("x", timeout=5) == reply
            await ref.stop()
            return reply

    async with ActorSystem("outer") as system:
        assert await system.spawn(Hosts).ask("go") == "x"


async def test_an_actor_reaches_actors_of_another_system_in_its_event_loop() -> None:
    class Asks(Actor):
        async def receive(self, message: ActorRef) -> Any:
            reply = await message.ask("x")
            await message.tell("x")
            await message.stop()
            return reply

    async with ActorSystem("one") as one, ActorSystem("two") as two:
        assert await one.spawn(Asks).ask(two.spawn(Echo)) == "x"
