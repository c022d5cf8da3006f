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
from tests.conftest import event_loops
from tests.eventsourcing.killed import store
from tests.eventsourcing.killed_timers import ENTITIES, Waiter
from tests.extent import count, some

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

KILLS = count("PAPYRA_KILLS", 1, 5)
#: Numbers that one life gives to an entity, at most.
LIFE = 1_000_000


def killed_after(lines: int, kind: str, place: str, first: int) -> list[tuple[str, int, int]]:
    """Run the program until it has written so many lines, kill it, and return all of them."""
    program = [sys.executable, "-m", "tests.eventsourcing.killed_timers", kind, place, str(first)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        read = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        read += process.stdout.read().splitlines(keepends=True)
    whole = [line.decode().split() for line in read if line.endswith(b"\n")]
    return [(what, int(entity), int(number)) for what, entity, number in whole]


@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("kind", some(["json", "sqlite", "rotating"], every=3))
async def test_each_timer_counts_once_whenever_the_process_is_killed(
    kind: str, tmp_path: Path
) -> None:
    was_set: dict[int, set[int]] = defaultdict(set)
    came: Counter[tuple[int, int]] = Counter()
    for kill in range(KILLS):
        lines = random.randint(1, 20 * ENTITIES)
        for what, entity, number in killed_after(lines, kind, str(tmp_path), kill * LIFE):
            if what == "set":
                was_set[entity].add(number)
            else:
                came[entity, number] += 1
    backend = store(kind, str(tmp_path))
    async with ActorSystem("bank", persistence=backend, entities=[Waiter]) as system:
        await system.entity(Waiter, "0").ask(None)
        with anyio.fail_after(60):
            while len(system.timers) or not system.timers.metrics().fired:  # noqa: ASYNC110
                await anyio.sleep(0.05)  # a real clock
        for entity in range(ENTITIES):
            state = Counter(await system.entity(Waiter, str(entity)).ask(None))
            assert set(state.values()) <= {1}
            assert was_set[entity] <= set(state)
        assert (await system.backend.scan()).anomalies == ()
    # At most once more after each kill.
    assert max(came.values(), default=0) <= KILLS + 1
