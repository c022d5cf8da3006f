"""Run a program of actors in many orders, to find those in which it fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.system import ActorSystem
from papyra.testing._schedule import ScheduledSystem, SeededDispatcher, run_scheduled
from papyra.testing.clock import ManualClock

#: A report shows at most this many turns.
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Exploration:
    """The number of schedules that were tried."""

    #: how many schedules were run
    runs: int
    #: how many of them were different
    schedules: int


class ScheduleFailed(AssertionError):
    """The program failed under one schedule. `__cause__` is its own error."""

    def __init__(self, seed: int, turns: Sequence[str], error: Exception) -> None:
        shown = turns[-_SHOWN:]
        super().__init__(
            f"with seed {seed}: {type(error).__name__}: {error}\n"
            f"run this schedule alone: explore(..., seeds=[{seed}])\n"
            f"the last {len(shown)} of its {len(turns)} turns: {' '.join(shown)}"
        )
        #: what to give `explore` to see it again
        self.seed = seed
        #: the addresses of the actors, in the order of their turns
        self.turns = tuple(turns)


async def explore(
    program: Callable[[ActorSystem], Awaitable[object]],
    seeds: int | Iterable[int] = 200,
    *,
    persistence: Callable[[], PersistenceBackend] = InMemoryPersistence,
    system_id: str = "papyra",
) -> Exploration:
    """Run ``await program(system)`` once for each seed, with as many interleavings of mailboxes.

    Each run gets a system of its own, started, on a new store and a `ManualClock`. One actor at a
    time handles one message; which one, among those that have any, the seed decides, again before
    each message. The persistence actor takes part, and everybody waits while its store is at work.
    Waits by the clock end, the earliest first, when nobody can do anything else. The same seed
    gives the same schedule, on asyncio and on trio, if the program depends on nothing else: no
    other randomness, time, threads, or network.

    `seeds` is how many (0, 1, 2, ...), or which. Raises `ScheduleFailed`, with the seed, for the
    first run in which the program, or the leaving of its system, raises; or in which nobody can go
    on, as in a cycle of asks.
    """
    schedules: set[tuple[str, ...]] = set()
    runs = 0
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        turns = await _run(program, seed, persistence(), system_id)
        schedules.add(turns)
        runs += 1
    return Exploration(runs, len(schedules))


async def _run(
    program: Callable[[ActorSystem], Awaitable[object]],
    seed: int,
    persistence: PersistenceBackend,
    system_id: str,
) -> tuple[str, ...]:
    clock = ManualClock()
    dispatcher = SeededDispatcher(seed, clock)
    system = ScheduledSystem(system_id, persistence, clock, dispatcher)

    async def run() -> None:
        async with system:
            await program(system)

    try:
        await run_scheduled(seed, dispatcher, run, system.give_up)
    except Exception as error:
        raise ScheduleFailed(seed, dispatcher.turns, error) from error
    return tuple(dispatcher.turns)
