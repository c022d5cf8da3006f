"""Print the resident bytes of a record, an actor or a task: ``python -m ... WHAT COUNT LOOP``."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import anyio

from papyra import Actor, ActorSystem
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.benchmarks.table import LOOPS
from tests.benchmarks.workload import fill

PAGE = 4096

#: Actors, or tasks, that are there before anything is measured.
WARM = 1_000


def resident_bytes() -> int:
    """Return the resident memory of this process, from ``/proc``."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


async def of_records(count: int) -> float:
    warm = InMemoryPersistence()
    await fill(warm, 10_000)
    del warm
    backend = InMemoryPersistence()
    before = resident_bytes()
    await fill(backend, count)
    grown = resident_bytes() - before
    assert backend.metrics.records_written == count
    return grown / count


class Idle(Actor):
    async def receive(self, message: object) -> None:
        pass


async def of_actors(count: int) -> float:
    """Measure actors that have handled a message, and wait for another."""
    async with ActorSystem(audit_interval=None) as system:

        async def spawn(count: int) -> None:
            for _ in range(count):
                await system.spawn(Idle).tell(None)
            await system.backend.flush()

        await spawn(WARM)
        before = resident_bytes()
        await spawn(count)
        grown = resident_bytes() - before
        assert system.audit().actors == WARM + count
    return grown / count


async def of_tasks(count: int) -> float:
    """Measure tasks that wait for an event each."""
    events: list[anyio.Event] = []

    async with anyio.create_task_group() as tasks:

        async def start(count: int) -> None:
            for _ in range(count):
                event = anyio.Event()
                events.append(event)
                tasks.start_soon(event.wait)
            await anyio.wait_all_tasks_blocked()

        await start(WARM)
        before = resident_bytes()
        await start(count)
        grown = resident_bytes() - before
        for event in events:
            event.set()
    return grown / count


MEASURES = {"records": of_records, "actors": of_actors, "tasks": of_tasks}


if __name__ == "__main__":
    what, count, name = sys.argv[1:]
    (loop,) = [loop for loop in LOOPS if loop.name == name]
    print(loop.run(MEASURES[what], int(count)))
