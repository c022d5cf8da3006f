"""An actor that would wait for itself is told so; one that has a way out is left to it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForOne
from papyra.exceptions import ActorStopped, AskTimeout, NoChildrenNow, WouldDeadlock
from papyra.testing import wait_until_idle
from tests.actors import Parent
from tests.extent import count

Step = Callable[[Actor], Any]


class Does(Actor):
    """Does what it is sent: an async function of itself."""

    supervision = OneForOne(default=Decision.RESUME)

    def __init__(self, at_stop: Step | None = None) -> None:
        self.at_stop = at_stop

    async def receive(self, message: Step | str) -> Any:
        return message if isinstance(message, str) else await message(self)

    async def on_stop(self) -> None:
        if self.at_stop is not None:
            await self.at_stop(self)


def asks(*way: ActorRef, **options: Any) -> Step:
    """Have each actor ask the next, and the last be asked for its word."""

    async def step(_: Actor) -> Any:
        first, *rest = way
        return await first.ask(asks(*rest, **options) if rest else "word", **options)

    return step


def resuming(**options: Any) -> ActorSystem:
    return ActorSystem("shop", supervision=OneForOne(default=Decision.RESUME), **options)


async def test_an_actor_may_tell_itself_while_its_mailbox_has_room() -> None:
    async def fill(actor: Actor) -> None:
        await actor.context.self_ref.tell("one")
        await actor.context.self_ref.tell("two")
        with pytest.raises(WouldDeadlock, match=r"shop/does can't wait for itself: it handles"):
            await actor.context.self_ref.tell("three")

    async with resuming() as system:
        ref = system.spawn(Does, name="does", mailbox_capacity=2)
        await ref.ask(fill)
        assert await ref.ask("still here") == "still here"


async def test_an_actor_may_not_wait_behind_others_for_room_in_its_own_mailbox() -> None:
    async def tell_itself(actor: Actor) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outsider.ask, tells(ref))
            await wait_until_idle()
            with pytest.raises(WouldDeadlock):
                await ref.tell("own")
            tasks.cancel_scope.cancel()

    def tells(to: ActorRef) -> Step:
        async def step(_: Actor) -> None:
            for word in ("one", "two", "three"):
                await to.tell(word)

        return step

    async with resuming(mailbox_capacity=2) as system:
        outsider = system.spawn(Does)
        ref = system.spawn(Does)
        await ref.ask(tell_itself)
        assert await ref.ask("still here") == "still here"


async def test_a_task_that_an_actor_has_made_may_wait_for_room_in_its_mailbox() -> None:
    async def start(actor: Actor) -> None:
        for _ in range(5):
            tasks.start_soon(actor.context.self_ref.tell, "x")

    async with resuming(mailbox_capacity=1) as system, anyio.create_task_group() as tasks:
        ref = system.spawn(Does)
        await ref.ask(start)
        assert await ref.ask("still here") == "still here"


async def test_an_actor_that_asks_itself_is_refused_with_or_without_a_timeout() -> None:
    async with resuming() as system:
        ref = system.spawn(Does)
        for options in ({}, {"timeout": 5}):
            with pytest.raises(WouldDeadlock, match="can't wait for itself"):
                await ref.ask(asks(ref, **options))


async def test_actors_that_ask_each_other_in_a_circle_get_would_deadlock() -> None:
    async with resuming() as system:
        one, two, three = (system.spawn(Does, name=name) for name in ("one", "two", "three"))
        with pytest.raises(
            WouldDeadlock, match=r"shop/two can't wait for shop/one, which waits fo"
        ):
            await one.ask(asks(two, one))
        with pytest.raises(
            WouldDeadlock,
            match="shop/three can't wait for shop/one, which waits for shop/two, which waits for "
            "shop/three: none of them would ever go on",
        ):
            await one.ask(asks(two, three, one))
        for ref in (one, two, three):
            assert await ref.ask("still here") == "still here"


@pytest.mark.parametrize("limited", ["one", "two"])
async def test_a_circle_of_asks_with_a_timeout_in_it_ends_by_the_timeout(limited: str) -> None:
    async def ask_on(_: Actor) -> Any:
        return await two.ask(back, timeout=0.01 if limited == "one" else None)

    async def back(_: Actor) -> Any:
        return await one.ask("word", timeout=0.01 if limited == "two" else None)

    async with resuming() as system:
        one, two = system.spawn(Does), system.spawn(Does)
        with pytest.raises(AskTimeout):
            await one.ask(ask_on)
        assert await two.ask("still here") == "still here"


@pytest.mark.parametrize("limited", ["one", "two"])
async def test_a_circle_of_asks_with_a_deadline_around_one_ends_by_the_deadline(
    limited: str,
) -> None:
    async def ask_on(_: Actor) -> Any:
        with anyio.move_on_after(0.01 if limited == "one" else float("inf")):
            return await two.ask(back)
        return "gave up"

    async def back(_: Actor) -> Any:
        with anyio.move_on_after(0.01 if limited == "two" else float("inf")):
            return await one.ask("word")
        return "gave up"

    async with resuming() as system:
        one, two = system.spawn(Does), system.spawn(Does)
        assert await one.ask(ask_on) == "gave up"
        assert await two.ask("still here") == "still here"


async def test_actors_that_wait_for_room_in_each_others_mailboxes_get_would_deadlock() -> None:
    def fills(ref: ActorRef, entered: anyio.Event, go: anyio.Event) -> Step:
        async def step(_: Actor) -> str:
            entered.set()
            await go.wait()
            try:
                await ref.tell("one too many")
            except WouldDeadlock:
                return "told"
            return "went on"

        return step

    async with resuming(mailbox_capacity=1) as system, anyio.create_task_group() as tasks:
        one, two = system.spawn(Does), system.spawn(Does)
        go = anyio.Event()
        outcomes: list[str] = []

        async def ask(ref: ActorRef, other: ActorRef, entered: anyio.Event) -> None:
            outcomes.append(await ref.ask(fills(other, entered, go)))

        for ref, other in ((one, two), (two, one)):
            entered = anyio.Event()
            tasks.start_soon(ask, ref, other, entered)
            await entered.wait()
        await one.tell("fills it")
        await two.tell("fills it")
        go.set()
        await wait_until_idle()
        assert sorted(outcomes) == ["told", "went on"]


async def test_a_child_that_asks_the_parent_waiting_for_its_end_gets_would_deadlock() -> None:
    caught: list[str] = []

    async def ask_parent(child: Actor) -> None:
        assert child.context.parent is not None
        with pytest.raises(WouldDeadlock) as error:
            await child.context.parent.ask("word")
        caught.append(str(error.value))

    async def stop_child(parent: Actor) -> None:
        child = parent.context.spawn(Does, ask_parent, name="child")
        await child.ask("started")
        await child.stop()

    async with resuming() as system:
        parent = system.spawn(Does, name="parent")
        await parent.ask(stop_child)
        assert await parent.ask("still here") == "still here"
    assert caught == [
        "shop/parent/child can't wait for shop/parent, which waits for shop/parent/child: "
        "none of them would ever go on"
    ]


async def test_a_stopping_child_that_asks_its_restarting_parent_gets_would_deadlock() -> None:
    caught: list[str] = []

    async def ask_parent(child: Actor) -> None:
        assert child.context.parent is not None
        with pytest.raises(WouldDeadlock) as error:
            await child.context.parent.ask("word")
        caught.append(str(error.value))

    async with ActorSystem("shop") as system:
        parent = system.spawn(Parent)
        child = await parent.ask(("spawn", Does, (ask_parent,), {}))
        await child.ask("started")
        with pytest.raises(ValueError, match="boom"):
            await parent.ask(ValueError("boom"))
        assert await parent.ask(("children",)) == ()
    assert len(caught) == 1


async def test_a_parent_that_asks_itself_in_on_child_failure_gets_would_deadlock() -> None:
    caught: list[str] = []

    class Asks(Parent):
        async def on_child_failure(self, child: ActorRef, error: Exception) -> Decision:
            try:
                await self.context.self_ref.ask("word")
            except WouldDeadlock as deadlock:
                caught.append(str(deadlock))
            return Decision.RESUME

        async def receive(self, message: Any) -> Any:
            if isinstance(message, tuple):
                return await super().receive(message)
            if message == "word":
                return message
            return await message(self)

    async def fail(_: Actor) -> None:
        raise ValueError("boom")

    async with resuming() as system:
        parent = system.spawn(Asks)
        child = await parent.ask(("spawn", Does, (), {}))
        with pytest.raises(ValueError, match="boom"):
            await child.ask(fail)  # the parent is free: it answers itself
        assert caught == []

        async def stop_child(_: Actor) -> None:
            await child.tell(fail)
            await child.stop()

        await parent.ask(stop_child)
    assert len(caught) == 1


async def test_an_actor_that_stops_its_asker_does_not_wait_for_the_askers_end() -> None:
    async def stop_first(_: Actor) -> str:
        await one.stop()
        return "stopped it"

    async with resuming() as system:
        one, two = system.spawn(Does), system.spawn(Does)

        async def ask_second(_: Actor) -> Any:
            return await two.ask(stop_first)

        assert await one.ask(ask_second) == "stopped it"
        await one.stop()
        assert not one.is_alive


async def test_an_actor_whose_reply_is_there_does_not_count_as_waiting() -> None:
    """The second actor has replied, and asks back before the first has seen the reply."""

    entered, release = anyio.Event(), anyio.Event()

    async def hold(_: Actor) -> None:
        entered.set()
        await release.wait()

    async def ask_back(_: Actor) -> Any:
        return await one.ask("word")

    async with resuming() as system, anyio.create_task_group() as tasks:
        one, two = system.spawn(Does), system.spawn(Does)
        replies: list[Any] = []

        async def ask(ref: ActorRef, message: Any) -> None:
            replies.append(await ref.ask(message))

        await two.tell(hold)
        await entered.wait()
        for ref, message in ((one, asks(two)), (two, ask_back)):
            tasks.start_soon(ask, ref, message)
            await wait_until_idle()
        release.set()
    assert replies == ["word"] * 2


async def test_a_sender_let_into_a_mailbox_does_not_count_as_waiting() -> None:
    entered, release = anyio.Event(), anyio.Event()

    async def hold(_: Actor) -> None:
        entered.set()
        await release.wait()

    async def ask_back(_: Actor) -> Any:
        return await one.ask("word")

    async def tell_on(_: Actor) -> None:
        await two.tell("let in")

    async with resuming() as system, anyio.create_task_group() as tasks:
        one = system.spawn(Does)
        two = system.spawn(Does, mailbox_capacity=1)
        await two.tell(hold)
        await entered.wait()
        replies: list[Any] = []

        async def ask() -> None:
            replies.append(await two.ask(ask_back))

        tasks.start_soon(ask)
        await wait_until_idle()
        tasks.start_soon(one.ask, tell_on)
        await wait_until_idle()
        release.set()
    assert replies == ["word"]


# Random programs. More of them: ``PAPYRA_PROGRAMS=1000``.

SEEDS = range(count("PAPYRA_PROGRAMS", 10, 25))

#: What to do, to which of the actors, and what that one is to do then.
Plan = list[tuple[str, int, Any]]


class Planned(Actor):
    """Does what a plan says. It has no way out of a wait but its end."""

    supervision = OneForOne(default=Decision.RESUME)

    def __init__(self, refs: list[ActorRef], told: list[str], at_stop: Plan | None = None) -> None:
        self.refs, self.told, self.at_stop = refs, told, at_stop or []

    async def receive(self, message: Plan) -> None:
        await self.do_all(message)

    async def on_stop(self) -> None:
        await self.do_all(self.at_stop)

    async def do_all(self, plan: Plan) -> None:
        for step in plan:
            try:
                await self.do(*step)
            except WouldDeadlock as error:
                self.told.append(str(error))
            except (ActorStopped, NoChildrenNow):
                return

    async def do(self, what: str, number: int, plan: Any) -> None:
        match what:
            case "ask":
                await self.refs[number].ask(plan)
            case "tell":
                await self.refs[number].tell(plan)
            case "stop":
                await self.refs[number].stop()
            case "child":
                child = self.context.spawn(Planned, self.refs, self.told, plan[1])
                await child.tell(plan[0])
                await child.stop()
            case "crash":
                raise ValueError


def make_plan(dice: random.Random, kinds: list[str], first: int, last: int, depth: int) -> Plan:
    """Return a plan for an actor that reaches those from `first` on; see below."""
    plan: Plan = []
    for _ in range(dice.randint(0, 3) if depth and first <= last else 0):
        kind, number = dice.choice(kinds), dice.randint(first, last)
        # Without circles, an actor reaches later ones only.
        onward = number + 1 if "stop" not in kinds else first
        sub: Any = make_plan(dice, kinds, onward, last, depth - 1)
        if kind == "child":
            sub = [make_plan(dice, kinds, first, last, depth - 1) for _ in range(2)]
        plan.append((kind, number, sub))
    return plan


@pytest.mark.parametrize("circles", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
async def test_random_asks_never_hang_and_without_circles_get_no_would_deadlock(
    seed: int, circles: bool
) -> None:
    dice = random.Random(seed)
    kinds = ["ask", "ask", "tell", "tell", "child"] + ["stop", "crash"] * circles
    refs: list[ActorRef] = []
    told: list[str] = []

    async def client() -> None:
        for _ in range(3):
            number = dice.randrange(len(refs))
            first = 0 if circles else number + 1
            with contextlib.suppress(ActorStopped, ValueError):
                await refs[number].ask(make_plan(dice, kinds, first, len(refs) - 1, 3))

    # It is stopped by nobody's time limit: a program that hangs fails by that of the test.
    async with (
        resuming(mailbox_capacity=dice.randint(1, 3), shutdown_timeout=1e9) as system,
        anyio.create_task_group() as tasks,
    ):
        refs += [system.spawn(Planned, refs, told) for _ in range(dice.randint(1, 5))]
        for _ in range(4):
            tasks.start_soon(client)
    assert circles or told == []
