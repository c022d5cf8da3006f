"""`ActorStopped` says why the actor stopped, and what became of the message."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForAll, OneForOne
from papyra.exceptions import ActorStopped, EscalatedFailure
from papyra.testing import wait_until_idle
from tests.actors import Echo, Gate, Parent, spawn_child

STOP = OneForOne(default=Decision.STOP)


class CanNotStart(Actor):
    async def on_start(self) -> None:
        raise OSError("no such device")

    async def receive(self, message: Any) -> Any:
        return message


async def stopped_error(ref: ActorRef, message: Any = "x") -> ActorStopped:
    with pytest.raises(ActorStopped) as caught:
        await ref.ask(message)
    return caught.value


@pytest.mark.parametrize("supervision", [STOP, OneForOne(max_restarts=2)])
async def test_actor_stopped_names_the_error_of_an_actor_that_can_not_start(
    supervision: OneForOne,
) -> None:
    async with ActorSystem("shop", supervision=supervision) as system:
        ref = system.spawn(CanNotStart, name="x")
        early = await stopped_error(ref)
        late = await stopped_error(ref)
    for error in (early, late):
        assert repr(error.__cause__) == "OSError('no such device')"
        assert error.handled == "never"
    assert str(early) == "shop/x stopped before it could reply: OSError: no such device"
    assert str(late) == "shop/x has stopped: OSError: no such device"


async def test_actor_stopped_names_the_error_of_an_actor_that_crashed() -> None:
    entered, release = anyio.Event(), anyio.Event()
    errors: list[ActorStopped] = []

    class Crashes(Gate):
        async def receive(self, message: Any) -> Any:
            await super().receive(message)
            raise ValueError("boom")

    async with ActorSystem("shop", supervision=STOP) as system:
        ref = system.spawn(Crashes)
        await ref.tell((entered, release))
        await entered.wait()

        async def ask() -> None:
            errors.append(await stopped_error(ref))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await wait_until_idle()
            release.set()
        errors.append(await stopped_error(ref))
    assert [repr(error.__cause__) for error in errors] == ["ValueError('boom')"] * 2
    assert [error.handled for error in errors] == ["never"] * 2


async def test_the_asker_whose_message_crashed_an_actor_gets_the_error_itself() -> None:
    async with ActorSystem(supervision=STOP) as system:
        ref = system.spawn(Echo)
        with pytest.raises(ValueError, match="boom"):
            await ref.ask(ValueError("boom"))
        error = await stopped_error(ref)
    assert isinstance(error.__cause__, ValueError)


async def test_actor_stopped_names_an_error_whose_truth_value_is_false() -> None:
    class Empty(Exception):
        def __len__(self) -> int:
            return 0

    async with ActorSystem(supervision=STOP) as system:
        parent = system.spawn(Parent)
        child = await spawn_child(parent, Echo)
        with pytest.raises(Empty):
            await parent.ask(Empty())
        for ref in (parent, child):
            assert isinstance((await stopped_error(ref)).__cause__, Empty)


async def test_actor_stopped_names_the_error_of_an_actor_that_restarts_too_often() -> None:
    async with ActorSystem(supervision=OneForOne(max_restarts=1)) as system:
        ref = system.spawn(Echo)
        for number in range(2):
            with pytest.raises(ValueError, match=str(number)):
                await ref.ask(ValueError(number))
        assert repr((await stopped_error(ref)).__cause__) == "ValueError(1)"


async def test_actor_stopped_names_no_error_of_an_actor_that_was_told_to_stop() -> None:
    async with ActorSystem("shop") as system:
        ref = system.spawn(Echo, name="echo")
        with pytest.raises(ValueError, match="forgotten"):
            await ref.ask(ValueError("forgotten"))  # it has restarted since
        await ref.stop()
        error = await stopped_error(ref)
    assert (str(error), error.__cause__, error.handled) == (
        "shop/echo has stopped",
        None,
        "never",
    )


async def test_actor_stopped_says_that_an_actor_is_stopping() -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with ActorSystem("shop") as system:
        ref = system.spawn(Gate, name="gate")
        await ref.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ref.stop)
            await wait_until_idle()
            assert str(await stopped_error(ref)) == "shop/gate is stopping"
            release.set()


async def test_actor_stopped_names_the_parents_error_for_its_descendants() -> None:
    async with ActorSystem(supervision=STOP) as system:
        parent = system.spawn(Parent)
        child = await spawn_child(parent, Parent)
        grandchild = await spawn_child(child, Echo)
        await parent.tell(ValueError("boom"))
        await wait_until_idle()
        for ref in (parent, child, grandchild):
            assert repr((await stopped_error(ref)).__cause__) == "ValueError('boom')"


async def test_actor_stopped_names_the_error_that_restarted_the_parent_of_a_child() -> None:
    async with ActorSystem() as system:
        parent = system.spawn(Parent)
        child = await spawn_child(parent, Echo)
        with pytest.raises(ValueError, match="boom"):
            await parent.ask(ValueError("boom"))
        await parent.ask("still here")
        assert repr((await stopped_error(child)).__cause__) == "ValueError('boom')"


async def test_actor_stopped_names_the_error_that_stopped_siblings_one_for_all() -> None:
    async with ActorSystem(supervision=OneForAll(default=Decision.STOP)) as system:
        one, two = system.spawn(Echo), system.spawn(Echo)
        await one.tell(ValueError("boom"))
        await wait_until_idle()
        assert repr((await stopped_error(two)).__cause__) == "ValueError('boom')"


async def test_actor_stopped_names_the_escalated_error_that_ended_the_system() -> None:
    refs: list[ActorRef] = []
    with pytest.raises(EscalatedFailure):
        async with ActorSystem(supervision=OneForOne(default=Decision.ESCALATE)) as system:
            refs += [system.spawn(Echo), system.spawn(Echo)]
            await refs[0].tell(ValueError("boom"))
            await anyio.sleep_forever()
    for ref in refs:
        assert repr((await stopped_error(ref)).__cause__) == "ValueError('boom')"


class SlowBatches(Actor):
    batch_types = (int,)

    async def receive(self, message: Any) -> Any:
        entered, release = message
        entered.set()
        await release.wait()

    async def receive_batch(self, messages: Sequence[int]) -> Sequence[Any]:
        await anyio.sleep_forever()
        return messages


@pytest.mark.parametrize("batch", [False, True])
async def test_actor_stopped_says_maybe_of_a_message_being_handled_at_a_cancellation(
    batch: bool,
) -> None:
    outcomes: dict[Any, ActorStopped] = {}

    async def ask(ref: ActorRef, message: Any) -> None:
        outcomes[message] = await stopped_error(ref, message)

    entered = anyio.Event()
    first: Any = 1 if batch else (entered, anyio.Event())
    async with (
        anyio.create_task_group() as tasks,
        ActorSystem("shop", shutdown_timeout=0.01) as system,
    ):
        ref = system.spawn(SlowBatches, name="slow")
        tasks.start_soon(ask, ref, first)
        await wait_until_idle()
        tasks.start_soon(ask, ref, "waits")
        await wait_until_idle()
    assert (str(outcomes[first]), outcomes[first].handled) == (
        "shop/slow was cancelled before it could reply",
        "maybe",
    )
    assert outcomes["waits"].handled == "never"


def test_actor_stopped_is_copied_and_pickled_like_any_other_exception() -> None:
    error = ActorStopped("shop/x has stopped", handled="maybe")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(twin), twin.handled) == ("shop/x has stopped", "maybe")
