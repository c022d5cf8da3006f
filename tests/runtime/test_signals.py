"""Waking a task that is cancelled at that moment, as Ctrl-C does on asyncio at any bytecode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from papyra._signal import Signal, wake
from papyra.mailbox import Mailbox
from papyra.ref import Ask


class CancelledMeanwhile:
    """A future that is cancelled behind each look at it."""

    def done(self) -> bool:
        return False

    def set_result(self, result: None, /) -> None:
        raise asyncio.InvalidStateError

    def __await__(self) -> Generator[Any, Any, Any]:
        yield


def waited_for() -> Mailbox[str]:
    mailbox: Mailbox[str] = Mailbox(3, CancelledMeanwhile)
    assert mailbox.wakeup() is not None
    return mailbox


@pytest.mark.parametrize(
    "wakes",
    [
        lambda: wake(CancelledMeanwhile()),
        lambda: Ask("hello", CancelledMeanwhile()).resolve("hi"),
        lambda: Ask("hello", CancelledMeanwhile()).fail(ValueError()),
        lambda: waited_for().put_nowait("hello"),
        lambda: waited_for().push("hello"),
        lambda: waited_for().wake(),
        lambda: waited_for().close(),
    ],
    ids=["wake", "resolve", "fail", "put_nowait", "push", "wake-mailbox", "close"],
)
def test_who_wakes_a_task_that_is_cancelled_at_that_moment_goes_on(
    wakes: Callable[[], object],
) -> None:
    wakes()


def test_a_message_for_a_task_that_is_cancelled_at_that_moment_is_kept() -> None:
    mailbox = waited_for()
    mailbox.put_nowait("hello")
    assert mailbox.pop("nothing") == "hello"


def test_a_signal_is_set_once() -> None:
    loop = asyncio.new_event_loop()
    try:
        signal: Signal = loop.create_future()
        wake(signal)
        wake(signal)
        assert signal.done()
    finally:
        loop.close()
