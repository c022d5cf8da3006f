"""Processes that are killed while they append. More of them: ``PAPYRA_KILLS=1000``."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from tests.extent import count, some
from tests.persistence.backends.files.appender import STORES
from tests.persistence.backends.files.killer import OPERATIONS

KILLS = count("PAPYRA_KILLS", 6, 50)
ROOT = Path(__file__).parents[4]
#: Kills until a new store is begun, as each of them looks at all that is there.
KILLS_OF_A_STORE = 20
MODES = ("always", "everysec", "no")


def kill_while_it_appends(name: str, path: Path, fsync: str, acknowledgements: int) -> int:
    """Kill a process after so many acknowledgements; return the last position it was given."""
    command = [
        sys.executable,
        "-m",
        "tests.persistence.backends.files.appender",
        name,
        str(path),
        fsync,
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        said += process.stdout.readlines()
    assert process.returncode == -9, said
    # The last of them may have been cut off in the pipe.
    return int([line for line in said if line.endswith("\n")][-1].split()[1])


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fsync", MODES)
@pytest.mark.parametrize("name", STORES)
def test_a_killed_process_loses_no_acknowledged_record_of_a_file_store(
    tmp_path: Path, name: str, fsync: str
) -> None:
    async def look() -> int:
        async with STORES[name](path) as store:
            assert {a.kind for a in (await store.scan()).anomalies} <= {"torn"}
            numbers = [(e.seq, e.payload["order_id"]) async for e in store.stream("event")]
            await store.recover()
            assert (await store.scan()).is_clean
        # Each record carries the position it was to have: none is missing, altered or doubled.
        assert numbers == [(seq, seq) for seq in range(1, len(numbers) + 1)]
        return len(numbers)

    chance = random.Random(name + fsync)
    for number in range(math.ceil(KILLS / len(MODES) / len(STORES))):
        path = tmp_path / f"store-{number // KILLS_OF_A_STORE}"
        acknowledged = kill_while_it_appends(name, path, fsync, chance.randint(1, 60))
        assert anyio.run(look) >= acknowledged


@pytest.mark.parametrize(
    ("name", "operation"), some(itertools.product(STORES, OPERATIONS), every=3)
)
def test_a_file_store_killed_at_any_step_of_an_operation_is_the_old_or_the_new_one(
    tmp_path: Path, name: str, operation: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.persistence.backends.files.killer",
        name,
        operation,
        str(tmp_path / "x"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
