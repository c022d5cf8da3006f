"""The rows about many actors: what it takes to start one, to keep it, and to wake it."""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import anyio
from anyio.lowlevel import checkpoint

from papyra import Actor, ActorSystem
from tests.benchmarks.table import Loop, Options, Result, Row, times_as_long

__all__ = ("ACTOR_ROWS",)

#: Actors, or tasks, that are woken in random order, again and again.
FLOCK = 4_000


class Tally:
    """Counts up to a number, and says when that is reached."""

    def __init__(self, total: int) -> None:
        self._left = total
        self.reached = anyio.Event()

    def count(self) -> None:
        self._left -= 1
        if not self._left:
            self.reached.set()


class Listener(Actor):
    """Does next to nothing with a message."""

    async def receive(self, tally: Tally) -> None:
        tally.count()


# Spawning


async def bare_spawns(count: int) -> float:
    """Start tasks that wait for an event each, and set that."""
    tally = Tally(count)
    elapsed: list[float] = []

    async def wait(event: anyio.Event) -> None:
        await event.wait()
        tally.count()

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            event = anyio.Event()
            tasks.start_soon(wait, event)
            event.set()
        await tally.reached.wait()
        elapsed.append(time.perf_counter() - started)
    return elapsed[0]


async def papyra_spawns(count: int) -> float:
    """Spawn actors, and send a message to each."""
    tally = Tally(count)
    async with ActorSystem(audit_interval=None) as system:
        started = time.perf_counter()
        for _ in range(count):
            await system.spawn(Listener).tell(tally)
        await tally.reached.wait()
        return time.perf_counter() - started


def spawning(loop: Loop, options: Options) -> Result:
    count = options.count(20_000)
    return times_as_long(
        options, count, lambda: loop.run(bare_spawns, count), lambda: loop.run(papyra_spawns, count)
    )


# Keeping


def resident(loop: Loop, options: Options) -> Result:
    count = options.count(20_000)

    def bytes_of(what: str) -> float:
        # In a process of its own, so that nothing else has grown the heap.
        command = [sys.executable, "-m", "tests.benchmarks.resident", what, str(count), loop.name]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    of_actors = [bytes_of("actors") for _ in range(options.repeat)]
    ratios = [of_actor / bytes_of("tasks") for of_actor in of_actors]
    return Result(ratios, f"{statistics.median(of_actors):,.0f} bytes")


# Waking


async def rounds(count: int, wake_all: Callable[[list[int], Tally], Awaitable[None]]) -> float:
    """Wake the whole flock, in another order each time, `count` wakes in all."""
    order, shuffle = list(range(FLOCK)), random.Random(14).shuffle
    seconds = 0.0
    for _ in range(max(1, count // FLOCK)):
        shuffle(order)
        tally = Tally(FLOCK)
        started = time.perf_counter()
        await wake_all(order, tally)
        await tally.reached.wait()
        seconds += time.perf_counter() - started
        for _ in range(3):
            await checkpoint()  # until all of them wait again
    return seconds


async def bare_wakes(count: int) -> float:
    """Wake tasks by futures."""
    create_future = asyncio.get_running_loop().create_future
    futures = [create_future() for _ in range(FLOCK)]

    async def listen(number: int) -> None:
        while (tally := await futures[number]) is not None:
            futures[number] = create_future()
            tally.count()

    async def wake_all(order: list[int], tally: Tally) -> None:
        for number in order:
            futures[number].set_result(tally)

    async with anyio.create_task_group() as tasks:
        for number in range(FLOCK):
            tasks.start_soon(listen, number)
        await checkpoint()
        seconds = await rounds(count, wake_all)
        for future in futures:
            future.set_result(None)
    return seconds


async def papyra_wakes(count: int) -> float:
    """Tell idle actors a message each."""
    async with ActorSystem(audit_interval=None) as system:
        refs = [system.spawn(Listener) for _ in range(FLOCK)]
        await system.backend.flush()

        async def wake_all(order: list[int], tally: Tally) -> None:
            for number in order:
                await refs[number].tell(tally)

        return await rounds(count, wake_all)


def waking(loop: Loop, options: Options) -> Result:
    count = max(FLOCK, options.count(100_000) // FLOCK * FLOCK)
    # Trio has no futures: there, too, the reference is what asyncio's take.
    futures = Loop("asyncio", "asyncio", {}) if loop.backend == "trio" else loop
    return times_as_long(
        options,
        count,
        lambda: futures.run(bare_wakes, count),
        lambda: loop.run(papyra_wakes, count),
    )


ACTOR_ROWS = [
    Row("spawn and first message, 20,000 actors", "tasks and events", 2, True, spawning),
    Row("resident bytes of an idle actor", "of a task and its event", 1.5, True, resident),
    Row("a message to one of 4,000 idle actors", "waking by a future", 3, True, waking),
]
