"""The records that the benchmarks write, and the loop that nothing can avoid."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence

import anyio
import msgspec

from papyra.persistence import Append, PersistedEvent, PersistenceActor
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.ref import ActorRef
from papyra.system import ActorSystem

__all__ = ("ask_from_tasks", "bare_append_loop", "build", "encoded_size", "fill", "timed_tells")

START = 1_700_000_000.0


def build(number: int) -> PersistedEvent:
    """Make a record with a payload of four fields."""
    return PersistedEvent(
        "shop",
        "shop/order-17",
        "OrderPlaced",
        {"order_id": number, "item": "kettle", "count": 2, "paid": True},
        START + number,
    )


def encoded_size() -> int:
    """Return the encoded bytes of one record."""
    return len(msgspec.json.encode(build(123_456)))


def bare_append_loop(count: int, make: Callable[[int], PersistedEvent] = build) -> float:
    """Build records, encode them into a buffer, note offset and time; return the seconds."""
    encode_into = msgspec.json.Encoder().encode_into
    data = bytearray()
    offsets = array("Q")
    times = array("d")
    started = time.perf_counter()
    for number in range(count):
        record = make(number)
        encode_into(record, data, -1)
        offsets.append(len(data))
        times.append(record.timestamp)
    return time.perf_counter() - started


async def ask_from_tasks(ref: ActorRef, count: int, tasks: int) -> None:
    """Ask a persistence actor to append, from so many tasks at once."""

    async def ask(numbers: range) -> None:
        for number in numbers:
            await ref.ask(Append(build(number)))

    if tasks == 1:
        await ask(range(count))
        return
    async with anyio.create_task_group() as group:
        for task in range(tasks):
            group.start_soon(ask, range(task, count, tasks))


async def timed_tells(records: Callable[[int], PersistedEvent], count: int) -> float:
    """Tell a persistence actor `count` records, one sender; return the seconds until stored."""
    backend = InMemoryPersistence()
    async with ActorSystem(audit_interval=None) as system:
        ref = system.spawn(PersistenceActor, backend)
        started = time.perf_counter()
        for number in range(count):
            await ref.tell(Append(records(number)))
        await backend.flush()
        seconds = time.perf_counter() - started
        assert backend.metrics.records_written == count
    return seconds


async def fill(backend: InMemoryPersistence, count: int) -> None:
    """Append `count` records in order of time."""
    for first in range(0, count, 10_000):
        records: Sequence[PersistedEvent] = [
            build(number) for number in range(first, min(first + 10_000, count))
        ]
        await backend.append(*records)
