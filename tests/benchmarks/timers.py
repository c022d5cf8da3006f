"""The rows about timers: what it takes to start one, and to have many that wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import anyio
import anyio.lowlevel

from papyra import Actor, ActorSystem
from tests.benchmarks.actors import Listener, Tally
from tests.benchmarks.table import Loop, Options, Result, Row, compare, times_as_long

__all__ = ("TIMER_ROWS",)

#: Timers that wait while another actor gets its messages.
PENDING = 10_000


class Timed(Actor):
    """Does something with its timers, and says how long that took."""

    async def receive(self, use: Callable[[Timed], None]) -> float:
        started = time.perf_counter()
        use(self)
        return time.perf_counter() - started


async def bare_timers(count: int) -> float:
    """Have the loop call something later, and cancel that."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    for _ in range(count):
        loop.call_later(60.0, print, "never").cancel()
    return time.perf_counter() - started


async def papyra_timers(count: int) -> float:
    """Start timers of an actor, and cancel them."""

    def start_and_cancel(actor: Timed) -> None:
        for _ in range(count):
            actor.timers.start("one", "never", after=60.0)
            actor.timers.cancel("one")

    async with ActorSystem(audit_interval=None) as system:
        seconds: float = await system.spawn(Timed).ask(start_and_cancel)
    return seconds


def starting(loop: Loop, options: Options) -> Result:
    count = options.count(100_000)
    # Trio calls nothing later: there, too, the reference is what asyncio's loop takes.
    bare = Loop("asyncio", "asyncio", {}) if loop.backend == "trio" else loop
    return compare(
        options,
        count,
        lambda: bare.run(bare_timers, count),
        lambda: loop.run(papyra_timers, count),
    )


async def tells(count: int, pending: int) -> float:
    """Tell an actor messages while another one has timers that wait."""

    def start_all(actor: Timed) -> None:
        for number in range(pending):
            actor.timers.start(number, "never", after=600.0 + number)

    tally = Tally(count)
    async with ActorSystem(audit_interval=None) as system:
        await system.spawn(Timed).ask(start_all)
        ref = system.spawn(Listener)
        await system.backend.flush()
        await anyio.lowlevel.checkpoint()
        started = time.perf_counter()
        for _ in range(count):
            await ref.tell(tally)
        await tally.reached.wait()
        return time.perf_counter() - started


def pending(loop: Loop, options: Options) -> Result:
    count = options.count(200_000)
    return times_as_long(
        options,
        count,
        lambda: loop.run(tells, count, 0),
        lambda: loop.run(tells, count, PENDING),
    )


TIMER_ROWS = [
    Row("start and cancel a volatile timer", "loop.call_later and cancel", 0.15, False, starting),
    Row("tell with 10,000 volatile timers pending", "with none", 1.1, True, pending),
]
