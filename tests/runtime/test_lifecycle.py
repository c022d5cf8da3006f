"""The life of one actor, and everything that can go wrong in it."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForOne, Terminated
from papyra.exceptions import (
    ActorInitializationError,
    ActorStopped,
    DuplicateActorName,
    InvalidActor,
    InvalidActorName,
    InvalidPolicy,
    NoChildrenNow,
)
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import wait_until_idle
from tests.actors import Batches, Echo, Log, Parent, letters, spawn_child, story
from tests.conftest import LOOPS
from tests.persistence import payloads


async def test_an_actor_that_fails_to_initialize_is_reported_where_it_is_spawned(
    persistence: InMemoryPersistence,
) -> None:
    class Broken(Actor):
        def __init__(self) -> None:
            raise OSError("no such printer")

        async def receive(self, message: Any) -> None: ...

    async with ActorSystem(persistence=persistence) as system:
        with pytest.raises(
            ActorInitializationError, match=r"Broken.__init__ raised OSError: no such printer"
        ) as caught:
            system.spawn(Broken, name="printer")
        assert isinstance(caught.value.__cause__, OSError)
        assert await system.spawn(Echo, name="printer").ask("fine") == "fine"


async def test_spawning_an_actor_with_wrong_arguments_is_an_initialization_error() -> None:
    async with ActorSystem() as system:
        with pytest.raises(ActorInitializationError, match=r"Echo.__init__ raised TypeError"):
            system.spawn(Echo, colour="red")


@pytest.mark.parametrize("not_an_actor", [object, "Echo", None, Echo()])
async def test_only_actor_classes_can_be_spawned(not_an_actor: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidActor, match="only subclasses of Actor"):
            system.spawn(not_an_actor)


async def test_an_actor_without_receive_can_not_be_spawned() -> None:
    class Deaf(Actor):
        pass

    async with ActorSystem() as system:
        with pytest.raises(ActorInitializationError, match="abstract method"):
            system.spawn(Deaf)  # type: ignore[type-abstract]


def test_a_hook_that_is_no_coroutine_function_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(InvalidActor, match=r"Blocking.receive must be 'async def'"):

        class Blocking(Actor):
            def receive(self, message: Any) -> None: ...  # type: ignore[override]


def test_a_supervision_that_is_no_policy_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(InvalidActor, match="supervision is OneForOne or OneForAll"):

        class Confused(Echo):
            supervision = Decision.STOP  # type: ignore[assignment]


async def test_an_actor_has_its_context_in_init() -> None:
    class Curious(Actor):
        def __init__(self) -> None:
            self.address = str(self.context.self_ref.address)

        async def receive(self, message: Any) -> str:
            return self.address

    async with ActorSystem("shop") as system:
        assert await system.spawn(Curious, name="curious").ask(None) == "shop/curious"


async def test_messages_wait_until_on_start_is_done() -> None:
    started = anyio.Event()

    class Slow(Log):
        async def on_start(self) -> None:
            await started.wait()
            await super().on_start()

    log: list[Any] = []
    async with ActorSystem() as system:
        ref = system.spawn(Slow, log)
        await ref.tell("early")
        await wait_until_idle()
        assert log == []
        started.set()
        await ref.ask("late")
    assert log == ["start", "early", "late", "stop"]


async def test_on_start_that_fails_is_tried_again_on_a_new_instance(
    persistence: InMemoryPersistence,
) -> None:
    attempts: list[int] = []

    class Flaky(Echo):
        async def on_start(self) -> None:
            attempts.append(id(self))
            if len(attempts) < 3:
                raise OSError("not yet")

    async with ActorSystem(persistence=persistence) as system:
        assert await system.spawn(Flaky).ask("there?") == "there?"
    assert story(persistence) == ["ActorCrashed", "ActorCrashed", "ActorRestarted", "ActorStopped"]
    assert [e.payload["where"] for e in persistence.events[:2]] == ["on_start", "on_start"]


@pytest.mark.parametrize("decision", [Decision.STOP, Decision.RESUME])
async def test_on_start_that_fails_for_good_stops_the_actor(
    persistence: InMemoryPersistence, decision: Decision
) -> None:
    stopped: list[str] = []

    class Broken(Echo):
        async def on_start(self) -> None:
            raise OSError("never")

        async def on_stop(self) -> None:
            stopped.append("on_stop")

    policy = OneForOne(default=decision)
    async with ActorSystem(persistence=persistence, supervision=policy) as system:
        ref = system.spawn(Broken)
        with pytest.raises(ActorStopped):
            await ref.ask("there?")
    assert stopped == []
    assert letters(persistence) == ["there?"]
    assert story(persistence) == ["ActorCrashed", "ActorStopped"]


async def test_init_that_fails_on_a_restart_is_a_failure_like_any_other(
    persistence: InMemoryPersistence,
) -> None:
    made: list[int] = []

    class Once(Echo):
        def __init__(self) -> None:
            made.append(1)
            if len(made) == 2:
                raise OSError("taken")

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Once)
        await ref.tell(ValueError("boom"))
        assert await ref.ask("back?") == "back?"
    assert [e.payload["where"] for e in persistence.events if e.event_type == "ActorCrashed"] == [
        "receive",
        "__init__",
    ]


async def test_on_stop_that_fails_is_recorded_and_the_actor_stops(
    persistence: InMemoryPersistence,
) -> None:
    class Clumsy(Echo):
        async def on_stop(self) -> None:
            raise OSError("dropped it")

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Clumsy)
        await ref.stop()
        assert await system.spawn(Echo).ask("fine") == "fine"
    assert story(persistence)[:3] == ["ActorStarted", "ActorCrashed", "ActorStopped"]
    assert persistence.events[1].payload["where"] == "on_stop"


async def test_a_crash_with_an_error_that_can_not_be_printed_is_recorded(
    persistence: InMemoryPersistence,
) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Echo)
        with pytest.raises(Unspeakable):
            await ref.ask(Unspeakable())
        with pytest.raises(OSError, match="\udcff"):
            await ref.ask(OSError("\udcff"))
        assert await ref.ask("fine") == "fine"
    crashes = [e.payload for e in persistence.events if e.event_type == "ActorCrashed"]
    assert [crash["error_type"] for crash in crashes] == ["Unspeakable", "OSError"]
    assert crashes[1]["error"] == "\\udcff"


async def test_an_actor_that_awaits_a_cancelled_future_crashes_and_restarts(
    persistence: InMemoryPersistence, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":  # there are no futures there; a scope of one's own is enough
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        return

    class Waits(Actor):
        async def receive(self, message: Any) -> Any:
            if message == "wait":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            return message

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Waits)
        with pytest.raises(Exception, match="was cancelled"):
            await ref.ask("wait")
        assert await ref.ask("fine") == "fine"
    assert story(persistence) == ["ActorStarted", "ActorCrashed", "ActorRestarted", "ActorStopped"]


async def test_a_name_is_taken_while_the_actor_lives() -> None:
    async with ActorSystem("shop") as system:
        first = system.spawn(Echo, name="echo")
        with pytest.raises(DuplicateActorName, match="there is an actor at shop/echo already"):
            system.spawn(Echo, name="echo")
        await first.stop()
        second = system.spawn(Echo, name="echo")
        assert second.address == first.address
        assert await second.ask(1) == 1


async def test_an_actor_spawned_without_a_name_gets_one_from_its_class() -> None:
    async with ActorSystem("shop") as system:
        system.spawn(Echo, name="Echo-2")
        refs = [system.spawn(Echo) for _ in range(3)]
        assert [str(ref.address) for ref in refs] == ["shop/Echo-1", "shop/Echo-3", "shop/Echo-4"]


@pytest.mark.parametrize("name", ["", "a/b", "\n", 7])
async def test_spawning_an_actor_with_an_invalid_name_is_refused(name: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidActorName):
            system.spawn(Echo, name=name)


async def test_spawning_an_actor_with_an_invalid_mailbox_capacity_is_refused() -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidPolicy):
            system.spawn(Echo, mailbox_capacity=0)


async def test_an_actor_is_found_by_its_address() -> None:
    async with ActorSystem("shop") as system:
        parent = system.spawn(Parent, name="parent")
        child = await spawn_child(parent, Echo, name="child")
        assert system.find("shop/parent/child") is child
        assert system.find(child.address) is child
        for nowhere in ("shop", "shop/child", "shop/parent/other", "works/parent", ""):
            assert system.find(nowhere) is None
        await child.stop()
        assert system.find("shop/parent/child") is None


async def test_a_child_knows_its_parent_and_the_parent_its_children() -> None:
    class Child(Echo):
        async def receive(self, message: Any) -> Any:
            return self.context.parent, self.context.system

    async with ActorSystem() as system:
        parent = system.spawn(Parent)
        child = await spawn_child(parent, Child)
        assert await parent.ask(("children",)) == (child,)
        assert await child.ask(None) == (parent, system)


async def test_children_stop_before_their_parent(persistence: InMemoryPersistence) -> None:
    async with ActorSystem("shop", persistence=persistence) as system:
        parent = system.spawn(Parent, name="p")
        for name in ("first", "second"):
            child = await spawn_child(parent, Parent, name=name)
            await spawn_child(child, Echo, name="leaf")
        await parent.stop()
    assert [e.actor_address for e in persistence.events if e.event_type == "ActorStopped"] == [
        "shop/p/second/leaf",
        "shop/p/second",
        "shop/p/first/leaf",
        "shop/p/first",
        "shop/p",
    ]


async def test_a_child_that_stops_its_parent_does_not_wait_for_itself() -> None:
    class Patricide(Actor):
        async def receive(self, message: Any) -> str:
            assert self.context.parent is not None
            await self.context.parent.stop()
            return "done"

    async with ActorSystem() as system:
        parent = system.spawn(Parent)
        child = await spawn_child(parent, Patricide)
        assert await child.ask(None) == "done"
        await parent.stop()
        assert not child.is_alive


async def test_a_stopping_actor_has_no_more_children() -> None:
    errors: list[Exception] = []

    class Late(Parent):
        async def on_stop(self) -> None:
            try:
                self.context.spawn(Echo)
            except NoChildrenNow as error:
                errors.append(error)

    async with ActorSystem("shop") as system:
        system.spawn(Late, name="late")
    assert "shop/late can have children from on_start on, until it stops" in str(errors[0])


async def test_an_actor_can_spawn_no_children_in_its_init() -> None:
    class Hasty(Echo):
        def __init__(self) -> None:
            self.child = self.context.spawn(Echo)

    async with ActorSystem() as system:
        with pytest.raises(NoChildrenNow):
            system.spawn(Hasty)
        assert system.audit().actors == 0


async def test_batch_replies_that_raise_when_read_are_a_failure_of_the_actor() -> None:
    class Empty(list[int]):
        def __len__(self) -> int:
            return 1

    class Cheat(Batches):
        async def receive_batch(self, messages: Any) -> Any:
            return Empty()

    async with ActorSystem() as system:
        with pytest.raises(IndexError):
            await system.spawn(Cheat).ask(1)


async def test_a_watcher_is_told_when_a_watched_actor_has_stopped() -> None:
    log: list[Any] = []

    class Watcher(Log):
        async def receive(self, message: Any) -> Any:
            match message:
                case ActorRef():
                    self.context.watch(message)
                    if message.is_alive:
                        self.context.watch(message)
                case ("unwatch", ref):
                    self.context.unwatch(ref)
                case _:
                    await super().receive(message)

    async with ActorSystem() as system:
        watcher = system.spawn(Watcher, log, mailbox_capacity=1)
        one, two, three = (system.spawn(Echo) for _ in range(3))
        await three.stop()
        for ref in (one, two, three):
            await watcher.ask(ref)
        await watcher.ask(("unwatch", two))
        await two.stop()
        await one.stop()
        await watcher.ask("end")
    assert log == ["start", Terminated(three), Terminated(one), "end", "stop"]


async def test_a_watcher_that_has_stopped_is_forgotten(persistence: InMemoryPersistence) -> None:
    async with ActorSystem(persistence=persistence) as system:
        watcher, watched = system.spawn(Parent), system.spawn(Echo)
        await watcher.ask(("watch", watched))
        await watcher.stop()
        await watched.stop()
    assert letters(persistence) == []


async def test_adjacent_messages_of_batch_types_come_as_one_batch() -> None:
    entered, release = anyio.Event(), anyio.Event()
    replies: list[int] = []

    async def ask(ref: ActorRef, number: int) -> None:
        replies.append(await ref.ask(number))

    async with ActorSystem() as system:
        ref = system.spawn(Batches)
        await ref.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                await ref.tell(number)
            tasks.start_soon(ask, ref, 3)
            await wait_until_idle()
            await ref.tell("something else")
            for number in range(20, 32):
                await ref.tell(number)
            release.set()
        batches = await ref.ask("batches")
    assert replies == [6]
    assert batches == [[], [0, 1, 2, 3], [], list(range(20, 30)), [30, 31]]


async def test_an_asked_message_of_another_type_ends_the_batch() -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with ActorSystem() as system:
        ref = system.spawn(Batches)
        await ref.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            await ref.tell(1)
            tasks.start_soon(ref.ask, "something else")
            await wait_until_idle()
            await ref.tell(2)
            release.set()
        assert await ref.ask("batches") == [[], [1], [], [2]]


async def test_a_message_whose_type_raises_is_handled_like_any_other() -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with ActorSystem() as system:
        ref = system.spawn(Batches)
        await ref.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            await ref.tell(1)
            await ref.tell(payloads.Unnamed())
            await ref.tell(2)
            tasks.start_soon(ref.ask, payloads.Unnamed())
            await wait_until_idle()
            await ref.tell(3)
            release.set()
        assert await ref.ask("batches") == [[], [1], [], [2], [], [3]]


async def test_a_crash_is_recorded_whatever_the_message_and_the_error_are(
    persistence: InMemoryPersistence,
) -> None:
    class Mute(Exception, metaclass=payloads.HostileMeta):
        def __str__(self) -> str:
            raise self

    class Raises(Actor):
        async def receive(self, message: Any) -> None:
            raise Mute

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Raises)
        with pytest.raises(Mute):
            await ref.ask(payloads.Unnamed())
    (crashed,) = [e.payload for e in persistence.events if e.event_type == "ActorCrashed"]
    assert (crashed["error_type"], crashed["message_type"]) == ("Mute", "Unnamed")
    assert crashed["error"] == "(its text can't be had: __str__ raised Mute)"


async def test_a_batch_that_fails_fails_every_asker_in_it() -> None:
    entered, release = anyio.Event(), anyio.Event()
    errors: list[str] = []

    async def ask(ref: ActorRef, number: int) -> None:
        with pytest.raises(ValueError, match="unlucky") as caught:
            await ref.ask(number)
        errors.append(str(caught.value))

    async with ActorSystem() as system:
        ref = system.spawn(Batches)
        await ref.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            for number in (12, 13, 14):
                tasks.start_soon(ask, ref, number)
            await wait_until_idle()
            release.set()
        assert await ref.ask(4) == 8
    assert errors == ["unlucky"] * 3


async def test_a_batch_with_too_few_replies_is_a_failure() -> None:
    class Forgetful(Batches):
        async def receive_batch(self, messages: Any) -> Any:
            return []

    async with ActorSystem() as system:
        with pytest.raises(TypeError, match="0 replies to 1 messages"):
            await system.spawn(Forgetful).ask(1)


async def test_a_busy_actor_lets_other_actors_run() -> None:
    class Busy(Actor):
        handled = 0

        async def receive(self, message: Any) -> int:
            self.handled += 1
            if self.handled < 5_000:
                self.context.self_ref.tell_nowait(message)
            return self.handled

    class Peek(Actor):
        def __init__(self, busy: ActorRef) -> None:
            self.busy = busy

        async def receive(self, message: Any) -> int:
            handled: int = await self.busy.ask("peek")
            return handled

    async with ActorSystem() as system:
        busy = system.spawn(Busy)
        await busy.tell("go on")
        # It never runs out of messages; still, another actor's question gets through.
        assert await system.spawn(Peek, busy).ask(None) < 1_000


@pytest.mark.parametrize("loop", list(LOOPS.values()), ids=list(LOOPS))
def test_a_system_exit_in_an_actor_ends_the_program(loop: tuple[str, dict[str, Any]]) -> None:
    class Exits(Actor):
        async def receive(self, message: Any) -> None:
            sys.exit(3)

    async def main() -> None:
        async with ActorSystem() as system:
            await system.spawn(Exits).tell("exit")
            await anyio.sleep_forever()

    # asyncio lets it out as it is, trio in a group.
    with pytest.raises((SystemExit, BaseExceptionGroup)) as caught:
        anyio.run(main, backend=loop[0], backend_options=loop[1])
    assert "3" in repr(caught.value)


class Batcher(Actor):
    """Replies with the size of the batch that a number came in."""

    batch_types = (int,)

    def __init__(self, limit: Any = 1_000) -> None:
        self.batch_limit = limit

    async def receive(self, message: Any) -> Any:
        self.batch_limit = message
        return "set"

    async def receive_batch(self, messages: Sequence[int]) -> list[int]:
        return [len(messages)] * len(messages)


@pytest.mark.parametrize("limit", [0, -1, None, "5", 1.5, math.inf])
async def test_a_batch_limit_that_makes_no_sense_is_refused_at_the_spawn(limit: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidActor, match="batch_limit is a whole number greater than 0"):
            system.spawn(Batcher, limit)
        assert await system.spawn(Batcher, 10**30).ask(1) == 1


@pytest.mark.parametrize("types", [None, int, (1,), ([],), "int"])
async def test_invalid_batch_types_are_refused_at_the_spawn(types: Any) -> None:
    odd = type("Odd", (Batcher,), {"batch_types": types})
    async with ActorSystem() as system:
        with pytest.raises(InvalidActor, match=r"Odd\.batch_types is a tuple of types"):
            system.spawn(odd)


async def test_a_batch_limit_that_becomes_invalid_is_the_actors_own_failure(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem(persistence=persistence) as system:
        ref, echo = system.spawn(Batcher), system.spawn(Echo)
        assert await ref.ask("five") == "set"
        for number in (1, 2, 3):
            ref.tell_nowait(number)
        assert await ref.ask("a limit, for the next instance") == "set"
        assert await echo.ask("fine") == "fine"
    (crashed,) = [e.payload for e in persistence.events if e.event_type == "ActorCrashed"]
    assert (crashed["error_type"], crashed["where"]) == ("TypeError", "receive_batch")


class Meant(BaseException):
    """Nothing that an actor could handle."""


async def test_a_message_whose_type_can_not_be_hashed_goes_to_receive() -> None:
    async with ActorSystem() as system:
        ref = system.spawn(BatchEcho)
        odd = payloads.unhashable(Meant())
        async with anyio.create_task_group() as tasks:
            for message in (1, odd, 2, odd):
                tasks.start_soon(expect_reply, ref, message)


async def expect_reply(ref: ActorRef, message: object) -> None:
    assert await ref.ask(message) is message


class BatchEcho(Echo):
    batch_types = (int,)

    async def receive_batch(self, messages: Sequence[int]) -> Sequence[int]:
        return messages


async def test_an_error_that_can_not_be_logged_is_a_crash_like_any_other(
    persistence: InMemoryPersistence, caplog: pytest.LogCaptureFixture
) -> None:
    class Untraced(Exception):
        def __getattribute__(self, name: str) -> Any:
            raise Meant

    class Raises(Echo):
        async def receive(self, message: Any) -> Any:
            if message == "fail":
                raise Untraced
            return message

    class Undecided(Parent):
        async def on_child_failure(self, child: ActorRef, error: Exception) -> Decision:
            raise Untraced

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Raises)
        await ref.tell("fail")
        assert await ref.ask("fine") == "fine"
        child = await spawn_child(system.spawn(Undecided), Raises)
        await child.tell("fail")
        await wait_until_idle()
        assert not child.is_alive
    crashes = [e.payload for e in persistence.events if e.event_type == "ActorCrashed"]
    assert [crash["error_type"] for crash in crashes] == ["Untraced"] * 2
    assert "Untraced, whose traceback can't be shown" in caplog.text
