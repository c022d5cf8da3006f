"""What was acknowledged is recovered, exactly once, whenever the process is killed.

``PAPYRA_KILLS`` says how often it is, for each store.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from papyra import ActorSystem
from tests.conftest import event_loops
from tests.eventsourcing.killed import ACCOUNTS, Keeper, store
from tests.extent import count

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

KILLS = count("PAPYRA_KILLS", 2, 5)
#: Numbers that one life gives to an account, at most.
LIFE = 1_000_000


def killed_after(replies: int, kind: str, directory: Path, first: int) -> list[tuple[int, int]]:
    """Run the program until it has written so many lines, kill it, and return all of them."""
    program = [sys.executable, "-m", "tests.eventsourcing.killed", kind, str(directory), str(first)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(replies)]
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    whole = [line.split() for line in lines if line.endswith(b"\n")]
    return [(int(account), int(number)) for account, number in whole]


@pytest.mark.parametrize("kind", ["json", "rotating"])
async def test_what_was_acknowledged_before_a_kill_is_recovered_once(
    kind: str, tmp_path: Path
) -> None:
    acknowledged: dict[int, set[int]] = defaultdict(set)
    for kill in range(KILLS):
        replies = killed_after(random.randint(1, 2_000), kind, tmp_path, kill * LIFE)
        assert replies
        for account, number in replies:
            acknowledged[account].add(number)
        async with ActorSystem("bank", persistence=store(kind, str(tmp_path))) as system:
            for account in range(ACCOUNTS):
                kept = Counter(await system.spawn(Keeper, name=f"a{account}").ask(None))
                assert set(kept.values()) <= {1}
                assert acknowledged[account] <= set(kept)
                # Of each life, at most the number that was on its way when it ended.
                assert len(set(kept) - acknowledged[account]) <= kill + 1
            assert (await system.backend.scan()).anomalies == ()
