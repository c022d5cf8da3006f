"""The output gate: nobody hears of what is not kept yet."""

from __future__ import annotations

from collections import deque
from contextvars import ContextVar
from typing import ClassVar, Protocol

import anyio

from papyra._error_copy import copy_of

__all__ = ("Output", "OutputGate", "current_gate")


class Output(Protocol):
    """What an actor gives out: a reply, an error, a message."""

    def release(self) -> None:
        """Give it out."""

    def fail(self, error: Exception) -> None:
        """Give `error` out instead, or nothing."""


class OutputGate:
    """Holds what one actor gives out until the appends before it have been answered.

    It keeps the promise that nobody ever hears of what was not stored, while the actor goes on: its
    outputs queue up behind its appends, in order. The answer to an append, wherever that arrives,
    lets out what is behind it up to the next append; a failed one fails everything behind it. The
    idea is that of Durable Objects (workerd's ``io-gate.h``).
    """

    __slots__ = ("_is_left", "_queue", "error", "outstanding")

    #: how many gates are shut: as long as none is, nobody needs to look for one
    shut: ClassVar[int] = 0

    def __init__(self) -> None:
        #: outputs, and `None` for each append that has not been answered
        self._queue: deque[Output | None] = deque()
        #: appends that have not been answered
        self.outstanding = 0
        #: what the first append raised that failed; until `reset`, all that is given out fails
        self.error: Exception | None = None
        self._is_left = False

    @property
    def is_shut(self) -> bool:
        """Whether what is given out has to wait, or to fail."""
        return self.outstanding > 0 or self.error is not None

    def expect(self) -> None:
        """Shut, until there is an answer to one more append."""
        if not self.is_shut:
            OutputGate.shut += 1
        self.outstanding += 1
        self._queue.append(None)

    def answer(self, error: Exception | None) -> None:
        """Take the answer to the oldest append, and let out what is behind it, or fail that."""
        self.outstanding -= 1
        if self.error is None:
            self.error = error
        self._queue.popleft()
        if self.error is not None:
            held, self._queue = self._queue, deque([None] * self.outstanding)
            for output in held:
                if output is not None:
                    output.fail(self.error)
            if self._is_left:
                self.leave()
            return
        while self._queue and (output := self._queue[0]) is not None:
            self._queue.popleft()
            output.release()
        if not self.is_shut:
            OutputGate.shut -= 1

    def hold(self, output: Output) -> None:
        """Give `output` out as soon as that may be; at once if nothing is outstanding."""
        if self.error is not None:
            output.fail(self.error)
        elif self.outstanding:
            self._queue.append(output)
        else:
            output.release()

    async def opened(self) -> None:
        """Wait until the appends so far have been answered; raise the error of the first failed."""
        if self.is_shut:
            passage = _Passage()
            self.hold(passage)
            await passage.wait()

    async def drained(self) -> None:
        """Wait until every append so far has been answered, well or not."""
        while self.outstanding:
            drained = anyio.Event()
            self._queue.append(_Last(drained))
            await drained.wait()

    def reset(self) -> None:
        """Open again after a failure: what was given out before depends on nothing any more."""
        if self.error is not None:
            self.error = None
            if not self.is_shut:
                OutputGate.shut -= 1

    def leave(self) -> None:
        """Note that the actor has stopped: what is still held gets its outcome, and no more comes.

        What its last appends have let through or failed is up to them all the same.
        """
        self._is_left = True
        if not self.outstanding:
            self.reset()


class _Passage:
    """A task that waits at the gate."""

    def __init__(self) -> None:
        self._opened = anyio.Event()
        self._error: Exception | None = None

    def release(self) -> None:
        self._opened.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._opened.set()

    async def wait(self) -> None:
        await self._opened.wait()
        if self._error is not None:
            raise copy_of(self._error)


class _Last:
    """Something that waits, whatever becomes of the appends before it."""

    def __init__(self, event: anyio.Event) -> None:
        self._event = event

    def release(self) -> None:
        self._event.set()

    def fail(self, error: Exception) -> None:
        del error
        self._event.set()


#: The gate of the actor in whose task, or in a task made there, the code runs.
current_gate: ContextVar[OutputGate | None] = ContextVar("papyra_output_gate", default=None)
