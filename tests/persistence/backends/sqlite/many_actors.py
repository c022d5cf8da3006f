"""A database of very many actors: one of them wakes, and a thousand at once while another appends.

``python -m tests.persistence.backends.sqlite.many_actors EVENTS [PATH]``

It says how long each took in seconds, what waking one costs in instructions of SQLite's machine,
and how long the one that appends has waited.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from papyra import ActorSystem
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.eventsourcing.accounts import Account, Deposit, Look

__all__ = ("EACH", "figures", "fill")

#: Events of each actor, and actors that wake at once.
EACH, AT_ONCE = 20, 1_000
BATCH = 5_000
#: Instructions of SQLite's machine that are counted as one.
STEP = 20


def step(number: int, actors: int) -> PersistedEvent:
    """Return one of the events of all actors, by turns: each deposits 1, 2, 3, ..."""
    revision = number // actors + 1
    return PersistedEvent(
        *("bank", f"bank/a{number % actors}", "Deposited", {"amount": revision}, 1.7e9 + number),
        revision=revision,
    )


async def fill(path: Path, events: int) -> None:
    actors = events // EACH
    async with SQLitePersistence(path, synchronous="off") as store:
        for first in range(0, events, BATCH):
            numbers = range(first, min(first + BATCH, events))
            await store.append(*[step(number, actors) for number in numbers])


async def instructions_of_waking(path: Path, events: int) -> int:
    """Return how many instructions the history of an actor takes to be read, at most."""
    async with SQLitePersistence(path, read_only=True) as store:
        run, connection = store.store._thread.run, store.store.blocking._connection
        steps: list[int] = []
        done = 0

        def took_a_step() -> int:
            nonlocal done
            done += 1
            return 0

        await run(connection.set_progress_handler, took_a_step, STEP)
        for number in random.Random(1).sample(range(events // EACH), 20):
            done = 0
            assert len((await store.read_history(f"bank/a{number}")).events) == EACH
            steps.append(done)
        await run(connection.set_progress_handler, None, STEP)
        return max(steps) * STEP


async def figures(path: Path, events: int) -> dict[str, Any]:
    """Fill a database, and return what is found."""
    found: dict[str, Any] = {"events": events, "actors": events // EACH}
    started = time.perf_counter()
    await fill(path, events)
    found["filled"] = time.perf_counter() - started
    found["instructions"] = await instructions_of_waking(path, events)
    store = SQLitePersistence(path, synchronous="normal")
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        found["woken one"] = await _wake_one_by_one(system, events)
        found |= await _wake_many(system, events)
    async with SQLitePersistence(path, read_only=True) as reader:
        found["clean"] = (await reader.scan()).is_clean
    return found


async def _wake_one_by_one(system: ActorSystem, events: int) -> float:
    """Return how long it took to wake one actor, as the median of some."""
    seconds = []
    for number in random.Random(2).sample(range(events // EACH), 20):
        started = time.perf_counter()
        account = system.spawn(Account, name=f"a{number}")
        assert await account.ask(Look()) == (EACH * (EACH + 1) // 2, EACH)
        seconds.append(time.perf_counter() - started)
        await account.stop()
    return statistics.median(seconds)


async def _wake_many(system: ActorSystem, events: int) -> dict[str, Any]:
    """Wake many at once; another one appends meanwhile."""
    other = system.spawn(Account, name="other")
    await other.ask(Deposit(0))
    alone = [await _timed(other) for _ in range(20)]
    waits: list[float] = []
    numbers = random.Random(3).sample(range(events // EACH), min(AT_ONCE, events // EACH))
    left = len(numbers)

    async def wake(number: int) -> None:
        nonlocal left
        account = system.spawn(Account, name=f"a{number}")
        assert await account.ask(Look()) == (EACH * (EACH + 1) // 2, EACH)
        left -= 1

    async def append() -> None:
        while left:
            waits.append(await _timed(other))

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append)
        for number in numbers:
            tasks.start_soon(wake, number)
    assert (await other.ask(Look()))[1] == 1 + len(alone) + len(waits)
    return {
        "woken": len(numbers),
        "woken in": time.perf_counter() - started,
        "appended meanwhile": len(waits),
        "append alone": statistics.median(alone),
        "append meanwhile": statistics.median(waits),
        "longest append": max(waits),
    }


async def _timed(account: Any) -> float:
    started = time.perf_counter()
    await account.ask(Deposit(1))
    return time.perf_counter() - started


async def main(events: int, path: Path | None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(await figures(path or Path(directory) / "bank.sqlite", events), indent=1))


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
