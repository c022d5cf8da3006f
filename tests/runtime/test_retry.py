from __future__ import annotations

from typing import Any

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, Failure, OneForOne, Retry
from papyra.exceptions import (
    ActorStopped,
    AskTimeout,
    InvalidPolicy,
    UnhandledMessage,
)
from papyra.retry import RetryThen
from papyra.testing import ManualClock
from tests.actors import Echo, Gate


class Busy(Actor):
    """Says no as often as it is told, then yes."""

    def __init__(self, refusals: int) -> None:
        self.left = refusals
        self.asked_at: list[float] = []

    async def receive(self, message: Any) -> Any:
        if message == "when":
            return self.asked_at
        self.asked_at.append(self.context.clock.monotonic())
        self.left -= 1
        return Failure(ConnectionError(f"{self.left} more")) if self.left >= 0 else message


def test_a_retry_doubles_its_delay_up_to_the_longest() -> None:
    retry = Retry(None, backoff=0.5, max_backoff=3.0)
    assert [retry.delay(n) for n in (1, 2, 3, 4, 10_000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_retry_with_jitter_leaves_that_share_of_the_delay_to_chance() -> None:
    delays = [Retry(2, 8.0, 0.25).delay(1) for _ in range(200)]
    assert all(6.0 <= delay <= 8.0 for delay in delays)
    assert len(set(delays)) > 100


def test_a_retry_gives_up_after_max_attempts_and_after_errors_that_it_does_not_cover() -> None:
    retry = Retry(2, backoff=1.0, on=(ConnectionError, KeyError))
    assert retry.delay_after(1, ConnectionResetError()) == 1.0
    assert retry.delay_after(2, ConnectionResetError()) is None
    assert retry.delay_after(1, IndexError()) is None


def test_a_retry_can_be_followed_by_what_is_to_be_done_when_it_gives_up() -> None:
    assert Retry(3).then("pause") == RetryThen(Retry(3), "pause")


@pytest.mark.parametrize(
    "changes",
    [
        {"max_attempts": 0},
        {"max_attempts": True},
        {"max_attempts": 2.0},
        {"backoff": -1},
        {"backoff": float("inf")},
        {"max_backoff": float("nan")},
        {"jitter": 1.01},
        {"jitter": -0.1},
        {"jitter": float("nan")},
        {"jitter": "some"},
        {"on": "ConnectionError"},
        {"on": (ValueError, KeyboardInterrupt)},
        {"on": ValueError()},
    ],
    ids=str,
)
def test_an_invalid_retry_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy):
        Retry(**{"max_attempts": 3, **changes})


async def answers(system: ActorSystem, ref: ActorRef, **options: Any) -> list[Any]:
    """Ask while a minute goes by, and return the reply or the error, if there is one by then."""
    found: list[Any] = []

    async def ask() -> None:
        try:
            found.append(await ref.ask("please", **options))
        except Exception as error:
            found.append(error)

    assert isinstance(system.clock, ManualClock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await system.clock.advance(60)
        tasks.cancel_scope.cancel()
    return found


async def test_ask_with_a_retry_asks_again_after_its_delays() -> None:
    async with ActorSystem(clock=ManualClock()) as system:
        busy = system.spawn(Busy, 2)
        assert await answers(system, busy, retry=Retry(3, backoff=1.0)) == ["please"]
        assert await busy.ask("when") == [0.0, 1.0, 3.0]


async def test_ask_raises_the_last_error_when_its_retry_gives_up() -> None:
    async with ActorSystem(clock=ManualClock()) as system:
        busy = system.spawn(Busy, 5)
        (error,) = await answers(system, busy, retry=Retry(2, backoff=1.0))
        assert str(error) == "3 more"


async def test_ask_does_not_try_again_after_an_error_that_its_retry_does_not_cover() -> None:
    async with ActorSystem(clock=ManualClock()) as system:
        busy = system.spawn(Busy, 1)
        (error,) = await answers(system, busy, retry=Retry(9, on=TimeoutError))
        assert isinstance(error, ConnectionError)
        assert await busy.ask("when") == [0.0]


async def test_each_attempt_of_an_ask_has_its_own_timeout() -> None:
    async with ActorSystem(clock=ManualClock()) as system:
        gate = system.spawn(Gate)
        entered, release = anyio.Event(), anyio.Event()
        await gate.tell((entered, release))
        (error,) = await answers(system, gate, timeout=5, retry=Retry(3, on=AskTimeout))
        assert isinstance(error, AskTimeout)
        release.set()
        assert await gate.ask("handled") == ["please"] * 3


async def test_an_ask_that_makes_no_sense_is_not_tried_again() -> None:
    tried: list[Any] = []

    class Useless(Actor):
        async def receive(self, message: Any) -> Any:
            tried.append(message)
            return self.unhandled(message)

    async with ActorSystem() as system:
        ref = system.spawn(Useless)
        with pytest.raises(UnhandledMessage):
            await ref.ask(1, retry=Retry(None))
        with pytest.raises(InvalidPolicy, match="timeout is seconds"):
            await ref.ask(1, timeout=-1, retry=Retry(None))
        with pytest.raises(InvalidPolicy, match="retry is a Retry"):
            await ref.ask(1, retry=3)  # type: ignore[call-overload]
    assert tried == [1]


async def test_who_asks_with_a_retry_can_be_cancelled_between_two_attempts() -> None:
    async with ActorSystem(clock=ManualClock()) as system:
        busy = system.spawn(Busy, 1)
        assert await answers(system, busy, retry=Retry(2, backoff=61, max_backoff=90)) == []
        assert await busy.ask("when") == [0.0]


async def test_supervision_restarts_as_often_as_its_retry_says_and_with_its_delays() -> None:
    clock, started = ManualClock(), []

    class Fails(Actor):
        async def on_start(self) -> None:
            started.append(clock.monotonic())
            raise ConnectionError

        async def receive(self, message: Any) -> None:
            """Never."""

    supervision = OneForOne(retry=Retry(4, backoff=1.0, on=ConnectionError))
    async with ActorSystem(clock=clock, supervision=supervision) as system:
        ref = system.spawn(Fails)
        await clock.advance(60)
        assert not ref.is_alive
    assert started == [0.0, 1.0, 3.0, 7.0]


async def test_supervision_stops_who_fails_with_an_error_that_its_retry_does_not_cover() -> None:
    on: dict[type[Exception], Decision] = {KeyError: Decision.RESTART}
    supervision = OneForOne(retry=Retry(None, on=ConnectionError), on=on)
    assert supervision.decide(KeyError()) is Decision.RESTART
    async with ActorSystem(supervision=supervision) as system:
        ref = system.spawn(Echo)
        for error in (ConnectionResetError("boom"), KeyError("boom"), ValueError("boom")):
            with pytest.raises(type(error), match="boom"):
                await ref.ask(error)
        with pytest.raises(ActorStopped):
            await ref.ask("anybody?")


@pytest.mark.parametrize("changes", [{"retry": 3}, {"retry": Retry(3), "max_restarts": 3}], ids=str)
def test_an_invalid_supervision_policy_with_a_retry_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy, match="retry"):
        OneForOne(**changes)
