from __future__ import annotations

from typing import Any

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem, Failure
from papyra.exceptions import (
    ActorStopped,
    AskTimeout,
    InvalidPolicy,
    MailboxFull,
    WouldDeadlock,
)
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import wait_until_idle
from tests.actors import Echo, Gate, Log, letters


async def test_ask_returns_what_receive_returned() -> None:
    async with ActorSystem() as system:
        assert await system.spawn(Echo).ask({"any": "message"}) == {"any": "message"}


async def test_none_is_a_message_like_any_other() -> None:
    log: list[Any] = []
    async with ActorSystem() as system:
        ref = system.spawn(Log, log)
        await ref.tell(None)
        assert await ref.ask(None) == 3
    assert log == ["start", None, None, "stop"]


async def test_ask_raises_what_receive_raised() -> None:
    async with ActorSystem() as system:
        with pytest.raises(KeyError, match="lost"):
            await system.spawn(Echo).ask(KeyError("lost"))


async def test_a_failure_returned_by_receive_is_raised_in_the_asker_only(
    persistence: InMemoryPersistence,
) -> None:
    class Refuses(Actor):
        async def receive(self, message: Any) -> Any:
            return Failure(ValueError("no"))

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Refuses)
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await ref.ask("please")
    assert "ActorCrashed" not in [event.event_type for event in persistence.events]


async def test_messages_of_one_sender_are_handled_in_order() -> None:
    log: list[Any] = []
    async with ActorSystem(mailbox_capacity=3) as system:
        ref = system.spawn(Log, log)
        for number in range(100):
            await ref.tell(number)
    assert log == ["start", *range(100), "stop"]


async def test_an_actor_handles_one_message_at_a_time() -> None:
    class Careful(Actor):
        inside = 0

        async def receive(self, message: Any) -> int:
            self.inside += 1
            await anyio.lowlevel.checkpoint()
            inside, self.inside = self.inside, self.inside - 1
            return inside

    inside: list[int] = []

    async def ask(ref: ActorRef) -> None:
        inside.append(await ref.ask(None))

    async with ActorSystem() as system:
        ref = system.spawn(Careful)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask, ref)
    assert inside == [1] * 20


async def test_ask_times_out_and_the_message_is_handled_all_the_same() -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with ActorSystem() as system:
        ref = system.spawn(Gate)
        await ref.tell((entered, release))
        with pytest.raises(AskTimeout, match=r"papyra/Gate-1 did not reply to str within 0 sec"):
            await ref.ask("late", timeout=0)
        release.set()
        assert await ref.ask("handled", timeout=10) == ["late"]


def test_an_ask_that_times_out_is_a_timeout_error_too() -> None:
    assert issubclass(AskTimeout, TimeoutError)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True])
async def test_an_invalid_timeout_of_ask_is_refused(timeout: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidPolicy, match="timeout is seconds"):
            await system.spawn(Echo).ask("x", timeout=timeout)


def test_a_failure_is_made_of_an_exception() -> None:
    with pytest.raises(TypeError, match="a Failure is made of an exception"):
        Failure("no")  # type: ignore[arg-type]


async def test_ask_with_a_very_long_timeout_returns_the_reply() -> None:
    class Sleeper(Actor):
        async def receive(self, message: Any) -> str:
            return "reply"

    async with ActorSystem() as system:
        assert await system.spawn(Sleeper).ask("x", timeout=1e9) == "reply"


async def test_ask_raises_actor_stopped_when_the_actor_stops_first(
    persistence: InMemoryPersistence,
) -> None:
    entered, release = anyio.Event(), anyio.Event()
    errors: list[Exception] = []

    class StopsItself(Gate):
        async def receive(self, message: Any) -> Any:
            await super().receive(message)
            self.context.stop()

    async def ask(ref: ActorRef) -> None:
        try:
            await ref.ask("too late")
        except ActorStopped as error:
            errors.append(error)

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(StopsItself)
        await ref.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask, ref)
            await wait_until_idle()
            release.set()
    assert len(errors) == 3
    assert letters(persistence) == ["too late"] * 3
    assert all(letter.expects_reply for letter in persistence.dead_letters)


async def test_ask_to_a_stopped_actor_raises_and_leaves_a_dead_letter(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem("shop", persistence=persistence) as system:
        ref = system.spawn(Echo, name="echo")
        await ref.stop()
        with pytest.raises(ActorStopped, match="shop/echo has stopped"):
            await ref.ask("hello")
        assert not ref.is_alive
    (letter,) = persistence.dead_letters
    assert (letter.target, letter.message_type, letter.payload, letter.expects_reply) == (
        "shop/echo",
        "str",
        "hello",
        True,
    )


async def test_tell_to_a_stopped_actor_is_a_dead_letter_and_no_error(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Echo)
        await ref.stop()
        await ref.tell(1)
        ref.tell_nowait(2)
    assert letters(persistence) == [1, 2]
    assert not any(letter.expects_reply for letter in persistence.dead_letters)


async def test_a_full_mailbox_makes_tell_wait_and_tell_nowait_raise() -> None:
    entered, release = anyio.Event(), anyio.Event()
    told: list[int] = []

    async def tell(ref: ActorRef, numbers: range) -> None:
        for number in numbers:
            await ref.tell(number)
            told.append(number)

    async with ActorSystem(mailbox_capacity=4) as system:
        ref = system.spawn(Gate)
        await ref.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell, ref, range(10))
            await wait_until_idle()
            assert told == [0, 1, 2, 3]
            with pytest.raises(MailboxFull, match="holds 4 messages"):
                ref.tell_nowait(99)
            release.set()
        assert await ref.ask("handled") == list(range(10))


async def test_a_cancelled_tell_has_sent_nothing() -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with ActorSystem(mailbox_capacity=1) as system:
        ref = system.spawn(Gate)
        await ref.tell((entered, release))
        await entered.wait()
        await ref.tell("in")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ref.tell, "out")
            await wait_until_idle()
            tasks.cancel_scope.cancel()
        release.set()
        assert await ref.ask("handled") == ["in"]


async def test_a_cancelled_ask_leaves_the_actor_alone() -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with ActorSystem() as system:
        ref = system.spawn(Gate)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ref.ask, (entered, release))
            await entered.wait()
            tasks.cancel_scope.cancel()
        release.set()
        assert await ref.ask("handled") == []


async def test_an_actor_that_asks_itself_is_told_that_it_would_wait_for_ever() -> None:
    class AsksItself(Actor):
        async def receive(self, message: Any) -> Any:
            if message == "ask":
                return await self.context.self_ref.ask("answer")
            return message

    async with ActorSystem() as system:
        ref = system.spawn(AsksItself)
        with pytest.raises(WouldDeadlock):
            await ref.ask("ask")
        assert await ref.ask("still here") == "still here"


async def test_stopping_an_actor_returns_once_its_mailbox_has_been_handled() -> None:
    log: list[Any] = []
    async with ActorSystem() as system:
        ref = system.spawn(Log, log)
        for number in range(5):
            await ref.tell(number)
        await ref.stop()
        assert log == ["start", 0, 1, 2, 3, 4, "stop"]
        await ref.stop()


async def test_an_actor_that_stops_itself_through_its_ref_does_not_wait_for_itself() -> None:
    class Suicidal(Log):
        async def receive(self, message: Any) -> Any:
            await self.context.self_ref.stop()
            return await super().receive(message)

    log: list[Any] = []
    async with ActorSystem() as system:
        ref = system.spawn(Suicidal, log)
        assert await ref.ask("bye") == 2
        await ref.stop()
    assert log == ["start", "bye", "stop"]


async def test_actors_that_stop_each_other_both_stop() -> None:
    class Duelist(Actor):
        other: ActorRef | None = None

        async def receive(self, message: Any) -> None:
            if isinstance(message, ActorRef):
                self.other = message
            else:
                entered, release = message
                entered.set()
                await release.wait()
                assert self.other is not None
                await self.other.stop()

    async with ActorSystem() as system:
        one, two = system.spawn(Duelist), system.spawn(Duelist)
        await one.tell(two)
        await two.tell(one)
        release = anyio.Event()
        for ref in (one, two):
            entered = anyio.Event()
            await ref.tell((entered, release))
            await entered.wait()
        release.set()
        await one.stop()
        await two.stop()
        assert system.audit().actors == 0


async def test_a_ref_shows_its_address() -> None:
    async with ActorSystem("shop") as system:
        ref = system.spawn(Echo, name="echo")
        assert str(ref.address) == "shop/echo"
        assert repr(ref) == "<ActorRef shop/echo>"


async def test_a_reply_that_comes_too_late_is_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="papyra")
    async with ActorSystem("shop") as system:
        gate = system.spawn(Gate, name="gate")
        entered, release = anyio.Event(), anyio.Event()
        with anyio.move_on_after(5) as impatient:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(gate.ask, (entered, release))
                await entered.wait()
                impatient.cancel()
        release.set()
        assert await gate.ask("handled") == []
        assert system.audit().unclaimed_replies == 1
    assert "shop/gate replied to tuple too late" in caplog.text


async def test_an_ask_that_times_out_before_it_is_in_the_mailbox_leaves_no_reply() -> None:
    async with ActorSystem() as system:
        gate = system.spawn(Gate, mailbox_capacity=1)
        entered, release = anyio.Event(), anyio.Event()
        await gate.tell((entered, release))
        await entered.wait()
        await gate.tell("fills the mailbox")
        with pytest.raises(AskTimeout):
            await gate.ask("does not fit", timeout=0)
        release.set()
        assert await gate.ask("handled") == ["fills the mailbox"]
        assert system.audit().unclaimed_replies == 0
