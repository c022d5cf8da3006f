"""Each timer counts once, whenever the process is killed: also between its coming and its note.

``PAPYRA_KILLS=100`` makes it a long run.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import anyio
import pytest

from papyra import ActorSystem
from papyra.persistence import CaughtUp, PersistedEvent
from papyra.persistence.timer_changes import TIMER, Pending, take_in
from tests.conftest import event_loops
from tests.eventsourcing.killed import store
from tests.eventsourcing.killed_timers import ENTITIES, Waiter
from tests.extent import CI, count, some

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

KILLS = count("PAPYRA_KILLS", 1, 5)
#: Those that strike between the coming of a timer and its note.
STRIKES = count("PAPYRA_KILLS", 1, 2)
#: Numbers that one life gives to an entity, at most.
LIFE = 1_000_000
FILES, SERVERS = ("json", "sqlite", "rotating"), ("redis", "postgres")


def lines_of(*arguments: str, kill_after: int | None = None) -> list[tuple[str, int, int]]:
    """Run the program, kill it after so many lines unless it does so itself; return all lines."""
    program = [sys.executable, "-m", "tests.eventsourcing.killed_timers", *arguments]
    root = Path(__file__).parents[2]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        read: list[bytes] = []
        if kill_after is not None:
            read = [process.stdout.readline() for _ in range(kill_after)]
            process.kill()
        read += process.stdout.read().splitlines(keepends=True)
    whole = [line.decode().split() for line in read if line.endswith(b"\n")]
    return [(what, int(entity), int(number)) for what, entity, number in whole]


@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("kind", some(FILES, every=3))
async def test_each_timer_counts_once_whenever_the_process_is_killed(kind: str, place: str) -> None:
    told = [
        lines_of(kind, place, str(kill * LIFE), kill_after=random.randint(1, 20 * ENTITIES))
        for kill in range(KILLS)
    ]
    await each_counts_once(kind, place, told)


@pytest.mark.timeout(300 + 20 * STRIKES)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # of those that die it is that anyway
@pytest.mark.parametrize("kind", [*some(FILES, every=3), *(SERVERS if CI else ())])
async def test_each_timer_counts_once_though_the_process_dies_between_its_coming_and_its_note(
    kind: str, place: str
) -> None:
    told = [
        lines_of(kind, place, str(kill * LIFE), str(2 * random.randint(1, 100) + kill % 2))
        for kill in range(STRIKES)
    ]
    await each_counts_once(kind, place, told)


async def each_counts_once(kind: str, place: str, told: list[list[tuple[str, int, int]]]) -> None:
    """Check what is there after so many lives, each of which has said something."""
    was_set: dict[int, set[int]] = defaultdict(set)
    came: Counter[tuple[int, int]] = Counter()
    for what, entity, number in (line for lines in told for line in lines):
        if what == "set":
            was_set[entity].add(number)
        else:
            came[entity, number] += 1
    async with ActorSystem("bank", persistence=store(kind, place), entities=[Waiter]) as system:
        await system.entity(Waiter, "0").ask(None)
        with anyio.fail_after(60):
            await none_is_pending(system)
        for entity in range(ENTITIES):
            state = Counter(await system.entity(Waiter, str(entity)).ask(None))
            assert set(state.values()) <= {1}
            assert was_set[entity] <= set(state)
        assert (await system.backend.scan()).anomalies == ()
    # At most once more after each kill.
    assert max(came.values(), default=0) <= len(told) + 1


async def none_is_pending(system: ActorSystem) -> None:
    """Wait until no timer is pending by what is stored: the index may not know of all of that."""
    timers: dict[str, dict[str, Pending]] = defaultdict(dict)
    is_caught_up = False
    async with system.subscribe(types=[TIMER]) as items:
        async for item in items:
            if isinstance(item, PersistedEvent):
                take_in(timers[item.actor_address], item)
            is_caught_up = is_caught_up or isinstance(item, CaughtUp)
            if is_caught_up and not any(timers.values()):
                return
