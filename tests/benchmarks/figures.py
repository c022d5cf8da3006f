"""The rows about figures: what a scrape costs, and what a system pays that measures."""

from __future__ import annotations

import time

from papyra import ActorSystem
from papyra.observability.prometheus import scrape
from tests.actors import Echo
from tests.benchmarks.actors import Listener, Tally
from tests.benchmarks.table import Loop, Options, Result, Row, compare, times_as_long

__all__ = ("FIGURE_ROWS",)

#: Scrapes that are timed together.
SCRAPES = 20
FEW = 100


def scraped(system: ActorSystem) -> float:
    """Scrape, several times."""
    started = time.perf_counter()
    for _ in range(SCRAPES):
        scrape([system])
    return time.perf_counter() - started


def scrape_of_many(loop: Loop, options: Options) -> Result:
    few: list[float] = []
    many: list[float] = []

    async def scrape_few_and_many(count: int) -> float:
        async with ActorSystem(audit_interval=None, measure=True, shutdown_timeout=600.0) as system:
            for number in range(count):
                system.spawn(Listener)
                if number == FEW:
                    few.extend(scraped(system) for _ in range(options.repeat))
            many.extend(scraped(system) for _ in range(options.repeat))
        return 0.0

    loop.run(scrape_few_and_many, options.count(100_000))
    return times_as_long(options, SCRAPES, few.pop, many.pop)


async def tells(count: int, measure: bool) -> float:
    """Tell an actor messages."""
    tally = Tally(count)
    async with ActorSystem(audit_interval=None, measure=measure) as system:
        ref = system.spawn(Listener)
        await system.backend.flush()
        started = time.perf_counter()
        for _ in range(count):
            await ref.tell(tally)
        await tally.reached.wait()
        return time.perf_counter() - started


async def asks(count: int, measure: bool) -> float:
    """Ask an actor."""
    async with ActorSystem(audit_interval=None, measure=measure) as system:
        ref = system.spawn(Echo)
        await ref.ask(0)
        started = time.perf_counter()
        for number in range(count):
            await ref.ask(number)
        return time.perf_counter() - started


def measured_tell(loop: Loop, options: Options) -> Result:
    count = options.count(100_000)
    return compare(
        options,
        count,
        lambda: loop.run(tells, count, False),
        lambda: loop.run(tells, count, True),
    )


def measured_ask(loop: Loop, options: Options) -> Result:
    count = options.count(30_000)
    return compare(
        options, count, lambda: loop.run(asks, count, False), lambda: loop.run(asks, count, True)
    )


FIGURE_ROWS = [
    Row("scrape of 100,000 actors", "of 100, time", 1.5, True, scrape_of_many),
    Row("tell, measured", "tell", 0.3, False, measured_tell),
    Row("ask, measured", "ask", 0.6, False, measured_ask),
]
