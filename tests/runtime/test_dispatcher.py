"""The seam between mailbox and actor."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from papyra import Actor, ActorRef, ActorSystem
from papyra.dispatcher import Dispatcher
from tests.actors import Batches, Echo

ReplyT = TypeVar("ReplyT")


class Recording(Dispatcher):
    """Keeps what it is asked about user actors."""

    def __init__(self, throughput: int = 100) -> None:
        self.throughput = throughput
        self.turns: list[str] = []
        self.handled: list[tuple[str, Sequence[Any]]] = []

    async def next_turn(self, ref: ActorRef) -> None:
        self.turns.append(ref.address.name)
        await super().next_turn(ref)

    async def handle(
        self, ref: ActorRef, messages: Sequence[Any], handling: Coroutine[Any, Any, ReplyT]
    ) -> ReplyT:
        if ref.address.name != "$persistence":
            self.handled.append((ref.address.name, messages))
        return await super().handle(ref, messages, handling)


async def test_a_dispatcher_is_around_every_message() -> None:
    dispatcher = Recording()
    async with ActorSystem(dispatcher=dispatcher) as system:
        assert await system.spawn(Echo, name="a").ask("x") == "x"
        await system.spawn(Echo, name="b").tell(None)
    assert dispatcher.handled == [("a", ("x",)), ("b", (None,))]
    assert dispatcher.turns == []


async def test_a_dispatcher_handles_a_run_of_a_batch_type_once() -> None:
    dispatcher = Recording()
    async with ActorSystem(dispatcher=dispatcher) as system:
        ref = system.spawn(Batches, name="batches")
        for number in range(3):
            await ref.tell(number)
        assert await ref.ask(3) == 6
    assert dispatcher.handled == [("batches", [0, 1, 2, 3])]


@pytest.mark.parametrize(("throughput", "turns"), [(0, 1 + 7), (1, 6), (3, 2), (7, 0)])
async def test_an_actor_asks_its_dispatcher_for_a_turn_after_so_many_messages(
    throughput: int, turns: int
) -> None:
    dispatcher = Recording(throughput)
    async with ActorSystem(dispatcher=dispatcher) as system:
        ref = system.spawn(Echo, name="busy")
        for number in range(7):
            await ref.tell(number)
    assert dispatcher.turns.count("busy") == turns


async def test_an_exception_of_a_dispatcher_is_the_actors_failure() -> None:
    class Failing(Recording):
        async def handle(
            self, ref: ActorRef, messages: Sequence[Any], handling: Coroutine[Any, Any, ReplyT]
        ) -> ReplyT:
            if messages == ("bad",):
                handling.close()
                raise ValueError("not this one")
            return await super().handle(ref, messages, handling)

    async with ActorSystem(dispatcher=Failing()) as system:
        ref = system.spawn(Echo, name="echo")
        with pytest.raises(ValueError, match="not this one"):
            await ref.ask("bad")
        assert await ref.ask("good") == "good"
        assert system.audit().restarted == 1


async def test_an_actor_told_to_stop_stops_before_its_dispatchers_next_turn() -> None:
    class Stopping(Actor):
        handled = 0

        async def receive(self, message: Any) -> None:
            Stopping.handled += 1
            if message == "stop":
                self.context.stop()

    async with ActorSystem(dispatcher=Recording(1)) as system:
        ref = system.spawn(Stopping)
        for message in ("go", "stop", "go", "go"):
            await ref.tell(message)
        await ref.stop()
        assert (Stopping.handled, system.audit().dead_letters) == (2, 2)
