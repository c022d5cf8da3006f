"""What no case matches is said to be unhandled: a dead letter, and an error to the asker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from papyra import Actor, ActorSystem, Decision, OneForOne
from papyra.exceptions import UnhandledMessage
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import wait_until_idle
from tests.actors import letters, story


class Returns(Actor):
    async def receive(self, message: Any) -> Any:
        match message:
            case "known":
                return "reply"
            case _:
                return self.unhandled(message)


class Calls(Actor):
    async def receive(self, message: Any) -> Any:
        if message == "known":
            return "reply"
        self.unhandled(message)
        return None


class Inherits(Actor):
    async def receive(self, message: Any) -> Any:
        return "reply" if message == "known" else await super().receive(message)


@pytest.mark.parametrize("actor_class", [Returns, Calls, Inherits])
async def test_asking_an_unhandled_message_raises_and_the_actor_goes_on(
    persistence: InMemoryPersistence, actor_class: type[Actor]
) -> None:
    async with ActorSystem("shop", persistence=persistence) as system:
        ref = system.spawn(actor_class, name="desk")
        for _ in range(2):
            with pytest.raises(UnhandledMessage, match="shop/desk does not handle str"):
                await ref.ask("typo")
        assert await ref.ask("known") == "reply"
    assert [(e.target, e.payload, e.expects_reply) for e in persistence.dead_letters] == [
        ("shop/desk", "typo", True)
    ] * 2
    assert "ActorCrashed" not in story(persistence)


@pytest.mark.parametrize("actor_class", [Returns, Calls, Inherits])
async def test_a_told_message_that_is_not_handled_is_a_dead_letter(
    persistence: InMemoryPersistence, actor_class: type[Actor]
) -> None:
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(actor_class)
        await ref.tell("typo")
        # Equal to what was not handled, and another message.
        assert await ref.ask("known") == "reply"
        await ref.tell(["a", "list"])
    assert letters(persistence) == ["typo", ["a", "list"]]
    assert not any(letter.expects_reply for letter in persistence.dead_letters)


async def test_an_unhandled_message_with_propagated_variables_is_a_dead_letter(
    persistence: InMemoryPersistence,
) -> None:
    from contextvars import ContextVar  # noqa: PLC0415

    variable: ContextVar[int] = ContextVar("variable")
    variable.set(1)
    async with ActorSystem(persistence=persistence, propagate=(variable,)) as system:
        ref = system.spawn(Calls)
        await ref.tell("told")
        with pytest.raises(UnhandledMessage):
            await ref.ask("asked")
    assert [(e.payload, e.expects_reply) for e in persistence.dead_letters] == [
        ("told", False),
        ("asked", True),
    ]


async def test_each_message_of_a_batch_is_handled_or_unhandled_by_itself(
    persistence: InMemoryPersistence,
) -> None:
    class Picky(Actor):
        batch_types = (int,)

        async def receive(self, message: Any) -> Any:
            await wait_until_idle()

        async def receive_batch(self, messages: Sequence[int]) -> Sequence[Any]:
            return [self.unhandled(m) if m % 2 else self.calls(m) for m in messages]

        def calls(self, message: int) -> int:
            if message > 10:
                self.unhandled(message)
            return message

    import anyio  # noqa: PLC0415

    outcomes: list[Any] = []

    async def ask(number: int) -> None:
        try:
            outcomes.append((number, await ref.ask(number)))
        except UnhandledMessage:
            outcomes.append((number, "unhandled"))

    async with ActorSystem(persistence=persistence) as system, anyio.create_task_group() as tasks:
        ref = system.spawn(Picky)
        await ref.tell("hold")
        for number in (1, 2, 1, 12, 2, 1):
            tasks.start_soon(ask, number)
    assert sorted(outcomes, key=str) == [
        *[(1, "unhandled")] * 3,
        (12, "unhandled"),
        *[(2, 2)] * 2,
    ]
    assert sorted(letters(persistence)) == [1, 1, 1, 12]


async def test_a_crash_after_an_unhandled_message_keeps_its_dead_letter(
    persistence: InMemoryPersistence,
) -> None:
    class Crashes(Actor):
        async def receive(self, message: Any) -> Any:
            self.unhandled(message)
            raise ValueError("boom")

    resume = OneForOne(default=Decision.RESUME)
    async with ActorSystem(persistence=persistence, supervision=resume) as system:
        with pytest.raises(ValueError, match="boom"):
            await system.spawn(Crashes).ask("x")
    assert letters(persistence) == ["x"]


async def test_an_earlier_message_declared_unhandled_is_a_dead_letter_without_an_asker(
    persistence: InMemoryPersistence,
) -> None:
    class Keeps(Actor):
        kept: Any = None

        async def receive(self, message: Any) -> Any:
            if self.kept is not None:
                self.unhandled(self.kept)
            self.kept = message
            return message

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Keeps)
        assert await ref.ask("first") == "first"
        assert await ref.ask("second") == "second"
    assert [(e.payload, e.expects_reply) for e in persistence.dead_letters] == [("first", False)]


async def test_an_actor_with_many_unhandled_messages_waits_for_the_store(
    persistence: InMemoryPersistence,
) -> None:
    longest = 0

    class Counts(Calls):
        async def receive(self, message: Any) -> Any:
            nonlocal longest
            longest = max(longest, self.context.system.audit().persistence_waiting)
            return await super().receive(message)

    async with ActorSystem(persistence=persistence, mailbox_capacity=15_000) as system:
        ref = system.spawn(Counts)
        for number in range(12_000):
            await ref.tell(number)
    assert len(persistence.dead_letters) == 12_000
    assert longest <= 10_001  # its mailbox, and a step of an actor's life
