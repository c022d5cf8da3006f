"""What was acknowledged is recovered, exactly once, whenever the process is killed.

``PAPYRA_KILLS`` says how often it is, for each store. What was acknowledged is counted (``-s``).
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from papyra import ActorSystem
from tests.conftest import event_loops
from tests.eventsourcing.killed import ENTITIES, Keeper, store
from tests.extent import count, some

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

KILLS = count("PAPYRA_KILLS", 2, 5)
#: Numbers that one life gives to an entity, at most.
LIFE = 1_000_000


def killed_after(replies: int, kind: str, place: str, first: int) -> list[tuple[int, int]]:
    """Run the program until it has written so many lines, kill it, and return all of them."""
    program = [sys.executable, "-m", "tests.eventsourcing.killed", kind, place, str(first)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(replies)]
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    whole = [line.split() for line in lines if line.endswith(b"\n")]
    return [(int(entity), int(number)) for entity, number in whole]


@pytest.fixture(params=some(["redis", "json", "postgres", "sqlite", "rotating"], every=5))
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.timeout(300 + 20 * KILLS)
async def test_what_was_acknowledged_before_a_kill_is_recovered_once(kind: str, place: str) -> None:
    acknowledged: dict[int, set[int]] = defaultdict(set)
    for kill in range(KILLS):
        replies = killed_after(random.randint(1, 5 * ENTITIES), kind, place, kill * LIFE)
        assert replies
        for entity, number in replies:
            acknowledged[entity].add(number)
        async with ActorSystem("bank", persistence=store(kind, place)) as system:
            for entity in range(ENTITIES):
                kept = Counter(await system.entity(Keeper, str(entity)).ask(None))
                assert set(kept.values()) <= {1}
                assert acknowledged[entity] <= set(kept)
                # Of each life, at most the number that was on its way when it ended.
                assert len(set(kept) - acknowledged[entity]) <= kill + 1
            assert (await system.backend.scan()).anomalies == ()
    told = sum(map(len, acknowledged.values()))
    print(f"\n{kind}: {KILLS} kills, {told:,} commands acknowledged; none lost, none twice")
