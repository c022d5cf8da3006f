"""An actor starts with no context variable set; those that are registered travel with messages."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import anyio
import pytest
import sniffio

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForOne
from papyra.dispatcher import Dispatcher
from papyra.exceptions import AskTimeout, InvalidSetting
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence, MemoryStore
from papyra.testing import wait_until_idle
from tests.actors import Gate, letters
from tests.persistence import payloads

ReplyT = TypeVar("ReplyT")

request_id: ContextVar[str] = ContextVar("request_id")
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Lives(Actor):
    """Notes what is set at each step of its life, and sets it then."""

    def __init__(self, seen: list[tuple[str, str | None]]) -> None:
        self.seen = seen
        self.see("init")

    def see(self, where: str) -> None:
        self.seen.append((where, request_id.get(None)))
        request_id.set(where)

    async def on_start(self) -> None:
        self.see("start")

    async def receive(self, message: Any) -> Any:
        self.see("receive")
        if isinstance(message, Exception):
            raise message
        if message == "spawn":
            return self.context.spawn(Lives, self.seen)
        return None

    async def on_stop(self) -> None:
        self.see("stop")


async def test_an_actor_has_its_own_context_variables_and_not_its_spawners() -> None:
    seen: list[tuple[str, str | None]] = []
    request_id.set("the spawner's")
    async with ActorSystem() as system:
        ref = system.spawn(Lives, seen)
        await ref.ask(1)
        await ref.ask(2)
    assert seen == [
        ("init", None),
        ("start", "init"),
        ("receive", "start"),
        ("receive", "receive"),
        ("stop", "receive"),
    ]
    assert request_id.get() == "the spawner's"


async def test_a_child_actor_has_context_variables_of_its_own() -> None:
    seen: list[tuple[str, str | None]] = []
    async with ActorSystem() as system:
        parent = system.spawn(Lives, seen)
        child = await parent.ask("spawn")
        await child.ask(1)
    assert seen[3:6] == [("init", None), ("start", "init"), ("receive", "start")]


async def test_a_restarted_actor_begins_with_no_context_variable_set() -> None:
    seen: list[tuple[str, str | None]] = []
    async with ActorSystem() as system:
        ref = system.spawn(Lives, seen)
        for _ in range(3):
            with pytest.raises(ValueError, match="x"):
                await ref.ask(ValueError("x"))
        await ref.ask(1)
    life = [("init", None), ("start", "init"), ("receive", "start"), ("stop", "receive")]
    assert seen == life * 4


async def test_each_attempt_to_start_an_actor_begins_with_no_context_variable_set() -> None:
    seen: list[str | None] = []

    class Stubborn(Actor):
        async def on_start(self) -> None:
            seen.append(request_id.get(None))
            request_id.set("left")
            if len(seen) < 4:
                raise ValueError(len(seen))

        async def receive(self, message: Any) -> Any:
            return request_id.get()

    async with ActorSystem() as system:
        assert await system.spawn(Stubborn).ask("x") == "left"
    assert seen == [None] * 4


async def test_the_persistence_actor_has_context_variables_of_its_own() -> None:
    class Store(MemoryStore):
        async def append(self, batch: Any) -> None:
            seen.add(request_id.get(None))
            await super().append(batch)

    seen: set[str | None] = set()
    request_id.set("of the one who starts the system")
    async with ActorSystem(persistence=PersistenceBackend(Store())) as system:
        await system.spawn(Gate).ask("x")
    assert seen == {None}


class AtHome(Actor):
    """Does in an actor what code does that knows nothing of actors."""

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        done = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.finish, done)
            with anyio.fail_after(60):
                await done.wait()
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        if sniffio.current_async_library() == "asyncio":
            await self.as_on_asyncio()
        return await anyio.to_thread.run_sync(functools.partial(anyio.from_thread.run, self.name))

    async def finish(self, done: anyio.Event) -> None:
        done.set()

    async def name(self) -> str:
        return sniffio.current_async_library()

    async def as_on_asyncio(self) -> None:
        loop = asyncio.get_running_loop()
        made = loop.create_future()
        loop.call_soon(lambda: made.set_result(anyio.Event()))  # asks which library runs
        assert not (await made).is_set()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        request_id.set("own")
        assert await asyncio.create_task(self.seen()) == "own"
        assert await asyncio.to_thread(request_id.get) == "own"

    async def seen(self) -> str:
        return request_id.get()


@pytest.mark.parametrize("restarts", [0, 1, 2])
async def test_an_actor_may_use_scopes_task_groups_tasks_and_threads_as_other_code_does(
    anyio_backend_name: str, restarts: int
) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(AtHome)
        for _ in range(restarts):
            with pytest.raises(ValueError, match="x"):
                await ref.ask(ValueError("x"))
        assert await ref.ask("go") == anyio_backend_name


async def test_an_actor_that_has_restarted_is_cancelled_like_any_other() -> None:
    outcomes: list[str] = []

    class Stuck(Gate):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, Exception):
                raise message
            try:
                await super().receive(message)
            finally:
                outcomes.append("cancelled")

        async def on_stop(self) -> None:
            outcomes.append("stopped")

    entered = anyio.Event()
    async with ActorSystem(shutdown_timeout=0.01) as system:
        ref = system.spawn(Stuck)
        await ref.tell(ValueError("x"))
        await ref.tell((entered, anyio.Event()))
        await entered.wait()
        outcomes.clear()
    assert outcomes == ["cancelled", "stopped"]


# What travels


class Sees(Actor):
    """Replies with what is set. May raise, set something itself, or pass the question on."""

    batch_types = (int,)

    def __init__(self, own: str | None = None) -> None:
        self.own = own
        self.log: list[tuple[str | None, str]] = []

    async def on_start(self) -> None:
        if self.own is not None:
            request_id.set(self.own)
            tenant.set(self.own)

    async def receive(self, message: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        self.log.append(self.seen())
        match message:
            case Exception():
                request_id.set("never seen")
                raise message
            case ("set", value):
                request_id.set(value)
            case ActorRef():
                return await message.ask("passed on")
            case "log":
                return self.log
            case (anyio.Event() as entered, anyio.Event() as release):
                entered.set()
                await release.wait()
        return self.seen()

    async def receive_batch(self, messages: Sequence[int]) -> Sequence[Any]:
        return [self.seen()] * len(messages)

    def seen(self) -> tuple[str | None, str]:
        return request_id.get(None), tenant.get()


def propagating(**options: Any) -> ActorSystem:
    resume = OneForOne(default=Decision.RESUME)
    return ActorSystem("shop", propagate=(request_id, tenant), supervision=resume, **options)


async def test_propagated_variables_have_the_senders_values_in_receive() -> None:
    async with propagating() as system:
        ref = system.spawn(Sees)
        request_id.set("r1")
        await ref.tell("told")
        tenant.set("t1")
        ref.tell_nowait("told without waiting")
        request_id.set("r2")
        assert await ref.ask("asked") == ("r2", "t1")
        assert await ref.ask("asked", timeout=5) == ("r2", "t1")
        log = await ref.ask("log")
    assert log[:2] == [("r1", "nobody"), ("r1", "t1")]


@pytest.mark.parametrize("with_timers", [False, True])
async def test_a_message_that_raises_whatever_it_is_asked_reaches_the_actor(
    with_timers: bool,
) -> None:
    class Taking(Actor):
        async def on_start(self) -> None:
            if with_timers:
                self.timers.start("once", "never", after=1_000)
                self.context.receive_timeout(1_000, "never")

        async def receive(self, message: Any) -> str:
            return type(message).__qualname__

    async with propagating() as running:
        ref = running.spawn(Taking)
        assert await ref.ask(payloads.Hostile(ZeroDivisionError("no"))) == "Hostile"
        await ref.tell(payloads.Hostile(ZeroDivisionError("no")))
        assert await ref.ask(1) == "int"


async def test_a_propagated_variable_unset_at_the_sender_is_unset_in_receive() -> None:
    async with propagating() as system:
        ref = system.spawn(Sees)
        token = request_id.set("r1")
        assert await ref.ask("x") == ("r1", "nobody")
        request_id.reset(token)
        assert await ref.ask("x") == (None, "nobody")


async def test_context_variables_are_not_propagated_without_registration() -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Sees)
        request_id.set("r1")
        assert await ref.ask("x") == (None, "nobody")


async def test_only_registered_context_variables_are_propagated() -> None:
    async with ActorSystem(propagate=[tenant]) as system:
        ref = system.spawn(Sees)
        request_id.set("r1")
        tenant.set("t1")
        assert await ref.ask("x") == (None, "t1")


async def test_propagated_variables_are_reset_when_receive_raises() -> None:
    async with propagating() as system:
        ref = system.spawn(Sees, "own")
        token = request_id.set("r1")
        with pytest.raises(ValueError, match="x"):
            await ref.ask(ValueError("x"))
        assert await ref.ask(1) == ("own", "own")  # in a batch: the actor's own
        request_id.reset(token)
        assert await ref.ask("x") == (None, "nobody")
        assert await ref.ask(1) == ("own", "own")


async def test_a_propagated_variable_that_an_actor_sets_itself_is_reset_after_receive() -> None:
    async with propagating() as system:
        ref = system.spawn(Sees)
        assert await ref.ask(("set", "mine")) == ("mine", "nobody")
        assert await ref.ask("x") == (None, "nobody")
        request_id.set("r1")
        assert await ref.ask(("set", "mine")) == ("mine", "nobody")
        assert await ref.ask("x") == ("r1", "nobody")


async def test_a_context_variable_that_is_not_propagated_stays_set_in_its_actor() -> None:
    color: ContextVar[str] = ContextVar("color", default="none")

    class Paints(Sees):
        async def receive(self, message: Any) -> Any:
            before = color.get()
            color.set(message)
            return before, await super().receive(message)

    async with propagating() as system:
        ref = system.spawn(Paints, "own")  # so `receive` runs where that is unset
        assert await ref.ask("red") == ("none", (None, "nobody"))
        assert await ref.ask("blue") == ("red", (None, "nobody"))
        request_id.set("r1")
        assert await ref.ask("green") == ("blue", ("r1", "nobody"))
        assert await ref.ask("black") == ("green", ("r1", "nobody"))


async def test_propagated_variables_travel_on_with_messages_that_an_actor_sends() -> None:
    async with propagating() as system:
        last = system.spawn(Sees)
        first = system.spawn(Sees)
        request_id.set("r1")
        assert await first.ask(last) == ("r1", "nobody")


async def test_a_sender_waiting_for_room_propagates_the_values_set_when_it_sent() -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with propagating(mailbox_capacity=1) as system:
        ref = system.spawn(Sees)
        await ref.tell((entered, release))
        await entered.wait()

        async def send(value: str) -> None:
            request_id.set(value)
            await ref.tell(value)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(send, f"r{number}")
            await wait_until_idle()
            release.set()
        log = await ref.ask("log")
    assert sorted(log[1:5]) == [(f"r{number}", "nobody") for number in range(4)]


async def test_a_thread_propagates_its_own_variables_through_the_portal() -> None:
    async with propagating() as system:
        ref = system.spawn(Sees)

        def outside(value: str) -> Any:
            request_id.set(value)
            return system.portal.call(ref.ask, "x")

        assert await anyio.to_thread.run_sync(outside, "worker") == ("worker", "nobody")
        replies: list[Any] = []
        thread = threading.Thread(target=lambda: replies.append(outside("plain")))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert replies == [("plain", "nobody")]
        assert await ref.ask("x") == (None, "nobody")


async def test_a_dispatcher_sees_propagated_variables_and_may_refuse_a_message() -> None:
    seen: list[Any] = []

    class Looks(Dispatcher):
        async def handle(
            self, ref: ActorRef, messages: Sequence[Any], handling: Coroutine[Any, Any, ReplyT]
        ) -> ReplyT:
            if not ref.address.name.startswith("$"):
                seen.append(request_id.get(None))
            if messages == ("refuse",):
                handling.close()
                raise ValueError("refused")
            return await handling

    async with propagating(dispatcher=Looks()) as system:
        ref = system.spawn(Sees)
        request_id.set("r1")
        assert await ref.ask("x") == ("r1", "nobody")
        with pytest.raises(ValueError, match="refused"):
            await ref.ask("refuse")
        assert seen == ["r1", "r1"]


async def test_a_restarted_actor_gets_propagated_variables() -> None:
    async with ActorSystem(propagate=(request_id,)) as system:
        ref = system.spawn(Sees)
        request_id.set("r1")
        with pytest.raises(ValueError, match="x"):
            await ref.ask(ValueError("x"))
        assert await ref.ask("x") == ("r1", "nobody")
        assert await ref.ask(1) == (None, "nobody")


async def test_a_dead_letter_holds_the_message_without_its_propagated_variables(
    persistence: InMemoryPersistence,
) -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with ActorSystem(persistence=persistence, propagate=(request_id,)) as system:
        ref = system.spawn(Sees)
        await ref.tell((entered, release))
        await entered.wait()
        request_id.set("r1")
        await ref.tell("left")
        with pytest.raises(AskTimeout):
            await ref.ask("left, too", timeout=0)
        stop: Callable[[], None] = ref._cell.stop_now  # type: ignore[attr-defined]
        stop()
        release.set()
        await ref.stop()
        await ref.tell("late")
    assert letters(persistence) == ["left", "left, too", "late"]


@pytest.mark.parametrize("wrong", [request_id, ("request_id",), "request_id", (request_id, 1), 5])
def test_propagate_takes_only_context_variables(wrong: Any) -> None:
    with pytest.raises(InvalidSetting, match="propagate is a tuple of ContextVars, not"):
        ActorSystem(propagate=wrong)


async def test_a_message_of_an_unhashable_type_with_propagated_variables_is_received() -> None:
    class Unhashable(type):
        def __hash__(cls) -> int:
            raise TypeError("not me")

    class Odd(metaclass=Unhashable):
        pass

    class Batched(Actor):
        batch_types = (int,)

        async def receive(self, message: Any) -> Any:
            return "received"

    async with ActorSystem(propagate=(request_id,)) as system:
        assert await system.spawn(Batched).ask(Odd()) == "received"
