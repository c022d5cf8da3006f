"""The rows of the table: each measures a subject and its reference, and knows its bar."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable

import anyio
import msgspec
import pykka
from eventsourcing.persistence import StoredEvent
from eventsourcing.popo import POPOAggregateRecorder

from examples.flights import Flight, Progress, events_of, fly, read_flights
from papyra import Actor, ActorSystem
from papyra.persistence import PersistedEvent, PersistenceActor
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import CheckedSystem, PersistenceProbe
from tests.benchmarks.actors import ACTOR_ROWS
from tests.benchmarks.command import COMMAND_ROWS
from tests.benchmarks.durable_timers import DURABLE_TIMER_ROWS
from tests.benchmarks.entities import ENTITY_ROWS
from tests.benchmarks.figures import FIGURE_ROWS
from tests.benchmarks.files import FILE_ROWS
from tests.benchmarks.histories import HISTORY_ROWS
from tests.benchmarks.postgres import POSTGRES_ROWS
from tests.benchmarks.projections import PROJECTION_ROWS
from tests.benchmarks.redis import REDIS_ROWS
from tests.benchmarks.sqlite import SQLITE_ROWS
from tests.benchmarks.subscriptions import SUBSCRIPTION_ROWS
from tests.benchmarks.table import Loop, Options, Result, Row, compare
from tests.benchmarks.telemetry import TELEMETRY_ROWS
from tests.benchmarks.timers import TIMER_ROWS
from tests.benchmarks.workload import (
    START,
    ask_from_tasks,
    bare_append_loop,
    build,
    encoded_size,
    fill,
    timed_tells,
)

__all__ = ("ROWS",)


# The hosted backend


def hosted_tell(loop: Loop, options: Options) -> Result:
    count = options.count(200_000)
    return compare(
        options,
        count,
        lambda: bare_append_loop(count),
        lambda: loop.run(timed_tells, build, count),
    )


async def ping_pong(count: int) -> float:
    """Two tasks take turns through events."""
    ping, pong = anyio.Event(), anyio.Event()
    elapsed: list[float] = []

    async def answer() -> None:
        nonlocal ping
        for _ in range(count):
            await ping.wait()
            ping = anyio.Event()
            pong.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        await anyio.lowlevel.checkpoint()
        started = time.perf_counter()
        for _ in range(count):
            pong = anyio.Event()
            ping.set()
            await pong.wait()
        # not from in here: the group might swallow the return, as far as a type checker knows
        elapsed.append(time.perf_counter() - started)
    return elapsed[0]


async def timed_asks(count: int, tasks: int) -> float:
    """Ask a persistence actor to append, from several tasks at once."""
    backend = InMemoryPersistence()
    async with ActorSystem(audit_interval=None) as system:
        ref = system.spawn(PersistenceActor, backend)
        await backend.flush()
        started = time.perf_counter()
        await ask_from_tasks(ref, count, tasks)
        seconds = time.perf_counter() - started
        assert backend.metrics.records_written == count
    return seconds


def hosted_ask(loop: Loop, options: Options) -> Result:
    count = options.count(20_000)
    return compare(
        options, count, lambda: loop.run(ping_pong, count), lambda: loop.run(timed_asks, count, 1)
    )


def hosted_ask_100(loop: Loop, options: Options) -> Result:
    count = options.count(20_000)
    return compare(
        options,
        count,
        lambda: loop.run(timed_asks, count, 1),
        lambda: loop.run(timed_asks, count, 100),
    )


# Peers


class Counter(Actor):
    def __init__(self) -> None:
        self.count = 0

    async def receive(self, message: object) -> int:
        self.count += 1
        return self.count


class PykkaCounter(pykka.ThreadingActor):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: object) -> int:
        self.count += 1
        return self.count


def pykka_tell(count: int) -> float:
    ref = PykkaCounter.start()
    started = time.perf_counter()
    for number in range(count):
        ref.tell(number)
    assert ref.ask(None) == count + 1
    seconds = time.perf_counter() - started
    ref.stop()
    return seconds


async def papyra_tell(count: int) -> float:
    async with ActorSystem(audit_interval=None) as system:
        ref = system.spawn(Counter)
        started = time.perf_counter()
        for number in range(count):
            await ref.tell(number)
        assert await ref.ask(None) == count + 1
        return time.perf_counter() - started


def plain_tell(loop: Loop, options: Options) -> Result:
    count = options.count(100_000)
    return compare(options, count, lambda: pykka_tell(count), lambda: loop.run(papyra_tell, count))


def popo_insert(count: int) -> float:
    originator = uuid.uuid4()
    encode = msgspec.json.Encoder().encode
    events = [
        StoredEvent(
            originator_id=originator,
            originator_version=number,
            topic="shop:OrderPlaced",
            state=encode(build(number).payload),
        )
        for number in range(count)
    ]
    recorder = POPOAggregateRecorder()
    started = time.perf_counter()
    for event in events:
        recorder.insert_events([event])
    return time.perf_counter() - started


def against_popo(loop: Loop, options: Options) -> Result:
    count = options.count(100_000)
    # Both get what they are to store ready made; ours encodes it, the recorder is given bytes.
    records = [build(number) for number in range(count)]
    return compare(
        options,
        count,
        lambda: popo_insert(count),
        lambda: loop.run(timed_tells, records.__getitem__, count),
    )


# Reads


async def timed_reads(backend: InMemoryPersistence, since: float | None, times: int) -> float:
    limit = None if since is not None else 10
    started = time.perf_counter()
    for _ in range(times):
        assert len(await backend.list_events(limit=limit, since=since)) == 10
    return time.perf_counter() - started


def reads(by_time: bool) -> Callable[[Loop, Options], Result]:
    def measure(loop: Loop, options: Options) -> Result:
        stores = []
        for count in (1_000, options.count(1_000_000)):
            backend = InMemoryPersistence()
            loop.run(_filled, backend, count)
            stores.append((backend, START + count - 10 if by_time else None))
        (small, small_since), (large, large_since) = stores
        times = 2_000
        ratios, seconds = [], []
        for _ in range(options.repeat):
            reference = loop.run(timed_reads, small, small_since, times)
            seconds.append(loop.run(timed_reads, large, large_since, times))
            ratios.append(seconds[-1] / reference)
        return Result(ratios, f"{statistics.median(seconds) / times * 1e6:.1f} µs")

    return measure


async def _filled(backend: InMemoryPersistence, count: int) -> float:
    await fill(backend, count)
    return 0.0


# Memory


def resident(loop: Loop, options: Options) -> Result:
    count = options.count(1_000_000)
    # In a process of its own, so that nothing else has grown the heap.
    output = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.resident", "records", str(count), loop.name],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    per_record = float(output)
    return Result([(per_record - 32) / encoded_size()], f"{per_record:.0f} bytes")


# The main job


async def timed_flights(flights: list[Flight]) -> float:
    backend = InMemoryPersistence()
    async with ActorSystem("flights", persistence=backend, audit_interval=None) as system:
        started = time.perf_counter()
        await fly(system, iter(flights), Progress())
        await backend.flush()
        return time.perf_counter() - started


def all_flights(loop: Loop, options: Options) -> Result:
    assert options.flights is not None
    flights = list(read_flights(options.flights))
    steps = [
        (f"flights/{flight.aircraft}", event) for flight in flights for event in events_of(flight)
    ]

    def make(number: int) -> PersistedEvent:
        address, event = steps[number]
        return PersistedEvent("flights", address, type(event).__name__, event, START + number)

    # The data itself is no part of what is measured, so the collector need not look at it.
    gc.collect()
    gc.freeze()
    try:
        return compare(
            options,
            len(steps),
            lambda: bare_append_loop(len(steps), make),
            lambda: loop.run(timed_flights, flights),
        )
    finally:
        gc.unfreeze()


# A test of typical size: a system, three actors, ten messages, three expectations


class Till(Actor):
    """Persists what it takes in."""

    async def receive(self, amount: int) -> int:
        return await self.context.persist(("Taken", {"amount": amount}))


async def typical_tests(count: int) -> float:
    started = time.process_time()
    for _ in range(count):
        async with CheckedSystem() as system:
            probe = PersistenceProbe(system)
            tills = [system.spawn(Till, name=f"till-{number}") for number in range(3)]
            for number in range(10):
                await tills[number % 3].tell(number)
            await probe.expect_event(("Taken", {"amount": 9}))
            await probe.expect_event("Taken", actor=tills[1])
            await probe.expect_event("Taken", payload={"amount": 5})
    return time.process_time() - started


class PykkaTill(pykka.ThreadingActor):
    """The same, with a list for a store."""

    def __init__(self, taken: list[tuple[str, int]], name: str) -> None:
        super().__init__()
        self.taken = taken
        self.name = name

    def on_receive(self, message: int) -> int:
        self.taken.append((self.name, message))
        return len(self.taken)


def typical_tests_with_pykka(count: int) -> float:
    started = time.process_time()
    for _ in range(count):
        taken: list[tuple[str, int]] = []
        tills = [PykkaTill.start(taken, f"till-{number}") for number in range(3)]
        for number in range(10):
            tills[number % 3].tell(number)
        # Nothing tells that a message has been handled but a reply to one that follows it.
        for till in tills:
            till.ask(-1)
        assert ("till-0", 9) in taken
        assert any(name == "till-1" for name, _ in taken)
        assert any(amount == 5 for _, amount in taken)
        for till in tills:
            till.stop()
    return time.process_time() - started


def typical_test(loop: Loop, options: Options) -> Result:
    count = options.count(500)
    return compare(
        options,
        count,
        lambda: typical_tests_with_pykka(count),
        lambda: loop.run(typical_tests, count),
    )


ROWS = [
    Row("hosted append, tell, one sender", "a bare append loop", 0.5, False, hosted_tell),
    Row("hosted append, ask, one task", "ping-pong over events", 0.6, False, hosted_ask),
    Row("hosted append, ask, 100 tasks", "ask, one task", 1.5, False, hosted_ask_100),
    Row("tell to a plain actor until handled", "pykka's tell", 4, False, plain_tell),
    Row("in-memory append through the actor", "POPO insert_events", 2, False, against_popo),
    Row("list_events(limit=10) at 1,000,000", "the same at 1,000", 1.5, True, reads(False)),
    Row("list_events(since) at 1,000,000", "the same at 1,000", 2, True, reads(True)),
    Row("resident bytes a record, less 32", "encoded bytes", 1.25, True, resident),
    *ACTOR_ROWS,
    *HISTORY_ROWS,
    *ENTITY_ROWS,
    *FILE_ROWS,
    *REDIS_ROWS,
    *SQLITE_ROWS,
    *POSTGRES_ROWS,
    *TIMER_ROWS,
    *TELEMETRY_ROWS,
    *SUBSCRIPTION_ROWS,
    *PROJECTION_ROWS,
    *DURABLE_TIMER_ROWS,
    *FIGURE_ROWS,
    *COMMAND_ROWS,
    Row("a typical test, in CPU time", "the same with pykka", 0.5, False, typical_test),
    Row(
        "all flights, one actor per aircraft", "a bare append loop", 0.15, False, all_flights, True
    ),
]
