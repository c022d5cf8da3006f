"""What the rows about databases measure, whichever database it is."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from papyra import ActorSystem
from papyra.persistence import Append, PersistenceActor
from papyra.persistence.backends.base import PersistenceBackend
from tests.benchmarks.histories import Account, Balance, Deposited, fill
from tests.benchmarks.workload import ask_from_tasks, build

__all__ = (
    "bare_replay",
    "deposits",
    "fill_orders",
    "newest_ten",
    "replay",
    "timed_asks",
    "timed_tells",
)


async def hosted(store: PersistenceBackend, work: Callable[[Any], Awaitable[None]]) -> float:
    async with ActorSystem(audit_interval=None) as system:
        ref = system.spawn(PersistenceActor, store)
        await ref.ask(Append(build(0)))
        started = time.perf_counter()
        await work(ref)
        return time.perf_counter() - started


async def timed_tells(store: PersistenceBackend, count: int) -> float:
    async def work(ref: Any) -> None:
        for number in range(count):
            await ref.tell(Append(build(number)))
        await ref.ask(Append(build(count)))

    return await hosted(store, work)


async def timed_asks(store: PersistenceBackend, count: int, tasks: int) -> float:
    async def work(ref: Any) -> None:
        await ask_from_tasks(ref, count, tasks)

    return await hosted(store, work)


async def fill_orders(store: PersistenceBackend, count: int) -> None:
    async with store:
        for first in range(0, count, 5000):
            await store.append(*map(build, range(first, min(first + 5000, count))))


async def newest_ten(store: PersistenceBackend, count: int) -> float:
    async with store:
        await store.list_events(limit=10)
        started = time.perf_counter()
        for _ in range(count):
            await store.list_events(limit=10)
        return time.perf_counter() - started


def deposits(events: int) -> list[tuple[int, str]]:
    """Return the positions and the records of an actor's events."""
    encode = msgspec.json.Encoder().encode
    return [(number, encode(Deposited(1)).decode()) for number in range(events)]


def bare_replay(select: Callable[[], Iterable[tuple[bytes | str]]], events: int) -> float:
    """Select the events of an actor, decode and apply them."""
    decode, apply = msgspec.json.Decoder(Deposited).decode, Account.apply
    actor, state = object.__new__(Account), Balance()
    started = time.perf_counter()
    for (record,) in select():
        state = apply(actor, state, decode(record))
    seconds = time.perf_counter() - started
    assert state.amount == events
    return seconds


async def replay(store: PersistenceBackend, events: int) -> float:
    await fill(store, events, 1)
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        await store.read_history("bank/a0", limit=1)
        started = time.perf_counter()
        assert await system.spawn(Account, name="a0").ask("look") == events
        return time.perf_counter() - started
