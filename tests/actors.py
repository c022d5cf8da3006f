"""Actors that several tests use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio

from papyra import Actor, ActorRef, Decision
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.memory import InMemoryPersistence


class Echo(Actor):
    """Replies with the message; raises it if it is an exception."""

    async def receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        return message


class Log(Actor):
    """Appends what happens to it to a list that the test holds."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    async def on_start(self) -> None:
        self.log.append("start")

    async def receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        self.log.append(message)
        return len(self.log)

    async def on_stop(self) -> None:
        self.log.append("stop")


class Gate(Actor):
    """Says when it is inside, and stays there until it is let go."""

    def __init__(self) -> None:
        self.handled: list[Any] = []

    async def receive(self, message: Any) -> Any:
        match message:
            case (anyio.Event() as entered, anyio.Event() as release):
                entered.set()
                await release.wait()
            case "handled":
                return list(self.handled)
            case _:
                self.handled.append(message)
        return None


class Parent(Actor):
    """Has children as it is told, and asks `decide` what to do when they fail."""

    def __init__(self, decide: Any = None) -> None:
        self.decide = decide

    async def receive(self, message: Any) -> Any:
        match message:
            case ("spawn", actor_class, args, kwargs):
                return self.context.spawn(actor_class, *args, **kwargs)
            case ("watch", ref):
                self.context.watch(ref)
            case ("children",):
                return self.context.children
            case BaseException():
                raise message
        return None

    async def on_child_failure(self, child: ActorRef, error: Exception) -> Decision:
        if self.decide is None:
            return await super().on_child_failure(child, error)
        decision: Decision = self.decide
        return decision


async def spawn_child(
    parent: ActorRef, actor_class: type[Actor], *args: Any, **kwargs: Any
) -> ActorRef:
    ref: ActorRef = await parent.ask(("spawn", actor_class, args, kwargs))
    return ref


def event(number: int = 1, **changes: Any) -> PersistedEvent:
    """Make a record."""
    fields: dict[str, Any] = {
        "system_id": "shop",
        "actor_address": "shop/order-1",
        "event_type": "OrderPlaced",
        "payload": {"order_id": number},
        "timestamp": 1_700_000_000.0 + number,
    }
    return PersistedEvent(**(fields | changes))


def story(persistence: InMemoryPersistence, address: str | None = None) -> list[str]:
    """Return the types of the stored events, of one actor or of all."""
    return [
        event.event_type
        for event in persistence.events
        if address is None or event.actor_address == address
    ]


def letters(persistence: InMemoryPersistence) -> list[Any]:
    """Return the payloads of the stored dead letters."""
    return [letter.payload for letter in persistence.dead_letters]


class Batches(Actor):
    """Takes integers in batches, and tells how long each batch was."""

    batch_types = (int,)
    batch_limit = 10

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def receive(self, message: Any) -> Any:
        match message:
            case (anyio.Event() as entered, anyio.Event() as release):
                entered.set()
                await release.wait()
            case "batches":
                return self.batches
        self.batches.append([])
        return None

    async def receive_batch(self, messages: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(messages))
        if 13 in messages:
            raise ValueError("unlucky")
        return [2 * message for message in messages]
