"""The dispatcher: order the turns of actors, and surround the handling of their messages."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from anyio.lowlevel import checkpoint

from papyra.ref import ActorRef

__all__ = ("Dispatcher",)

ReplyT = TypeVar("ReplyT")


class Dispatcher:
    """How a system's actors get to handle their messages.

    A system has no need of one. It is a seam for instruments: to order the actors' turns, to
    measure them, to fail them. `papyra.testing` stands on it. Name, and `throughput`, are Akka's.
    """

    #: messages an actor handles before the others get their turn; 0 to ask before each message
    throughput: int = 100
    #: whether it finds out by itself that nobody can go on: circles of waits are left to it then,
    #: as a `WouldDeadlock` is a failure like any other, which supervision may well hide
    finds_deadlocks: bool = False

    async def next_turn(self, ref: ActorRef) -> None:
        """Return when the actor `ref`, in whose mailbox there are messages, may go on.

        Called in the actor's own task after every `throughput` messages; with a throughput of 0
        also before it starts.
        """
        del ref
        await checkpoint()

    async def handle(
        self, ref: ActorRef, messages: Sequence[Any], handling: Coroutine[Any, Any, ReplyT]
    ) -> ReplyT:
        """Run `handling`, which is `ref`'s ``receive`` or ``receive_batch`` called with `messages`.

        What it returns is the reply, what it raises the actor's failure. One that does not await
        `handling` has to close it.
        """
        del ref, messages
        return await handling
