"""The rows about entities: what it takes to wake one, and to ask one that is awake."""

from __future__ import annotations

import time
from typing import Any

from papyra import Actor, ActorRef, ActorSystem
from tests.benchmarks.table import Loop, Options, Result, Row, compare

__all__ = ("ENTITY_ROWS",)


class Plain(Actor):
    """Does nothing but reply."""

    idle_timeout = 300

    async def receive(self, message: Any) -> Any:
        return message


# Activation


async def spawns(count: int) -> float:
    """Spawn actors, and ask each once."""
    async with ActorSystem(audit_interval=None) as system:
        started = time.perf_counter()
        for _ in range(count):
            await system.spawn(Plain).ask(1)
        return time.perf_counter() - started


async def activations(count: int) -> float:
    """Wake entities by asking each once."""
    async with ActorSystem(audit_interval=None) as system:
        started = time.perf_counter()
        for number in range(count):
            await system.entity(Plain, str(number)).ask(1)
        seconds = time.perf_counter() - started
        assert system.entities.activations == count
    return seconds


def activation(loop: Loop, options: Options) -> Result:
    count = options.count(10_000)
    return compare(
        options, count, lambda: loop.run(spawns, count), lambda: loop.run(activations, count)
    )


# Asking


async def asks(ref: ActorRef, count: int) -> float:
    await ref.ask(1)
    started = time.perf_counter()
    for _ in range(count):
        await ref.ask(1)
    return time.perf_counter() - started


async def asks_of_an_actor(count: int) -> float:
    async with ActorSystem(audit_interval=None) as system:
        return await asks(system.spawn(Plain), count)


async def asks_of_an_entity(count: int) -> float:
    async with ActorSystem(audit_interval=None) as system:
        return await asks(system.entity(Plain, "42"), count)


def asking(loop: Loop, options: Options) -> Result:
    count = options.count(30_000)
    return compare(
        options,
        count,
        lambda: loop.run(asks_of_an_actor, count),
        lambda: loop.run(asks_of_an_entity, count),
    )


ENTITY_ROWS = [
    Row("activation of an entity, first ask", "spawn and first ask", 0.3, False, activation),
    Row("ask of an awake entity", "ask of a plain actor", 0.8, False, asking),
]
