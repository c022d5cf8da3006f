"""Processes that are killed while they append. More of them: ``PAPYRA_KILLS=1000``.

What was acknowledged is counted (``-s``).
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from papyra.exceptions import StoreError
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.actors import event
from tests.conftest import event_loops
from tests.extent import count

anyio_backend = event_loops("asyncio")

KILLS = count("PAPYRA_KILLS", 3, 30)
ROOT = Path(__file__).parents[4]


def kill_while_it_appends(path: Path, synchronous: str, acknowledgements: int) -> int:
    """Kill a process after so many acknowledgements; return the last position it was given."""
    module = "tests.persistence.backends.sqlite.appender"
    command = [sys.executable, "-m", module, str(path), synchronous]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        said += process.stdout.readlines()
    assert process.returncode == -9, said
    # The last of them may have been cut off in the pipe.
    return int([line for line in said if line.endswith("\n")][-1].split()[1])


@pytest.mark.timeout(7200)
def test_a_killed_process_loses_no_acknowledged_record_of_a_database(tmp_path: Path) -> None:
    async def look() -> int:
        # By what the crash has left, as another program would, and then as the next writer does.
        for read_only in (True, False):
            async with SQLitePersistence(path, read_only=read_only) as store:
                assert (await store.scan()).is_clean
                numbers = [(e.seq, e.payload["order_id"]) async for e in store.stream("event")]
                history = await store.read_history("shop/one", limit=10)
                assert [each.seq for each in history.events] == list(range(1, 11))[: len(numbers)]
        # Each record carries the position it was to have: none is missing, altered or doubled.
        assert numbers == [(seq, seq) for seq in range(1, len(numbers) + 1)]
        return len(numbers)

    chance = random.Random("kill")
    path = tmp_path / "shop.sqlite"
    for number in range(KILLS):
        synchronous = ("full", "normal", "off")[number % 3]
        acknowledged = kill_while_it_appends(path, synchronous, chance.randint(1, 40))
        assert anyio.run(look) >= acknowledged
    print(f"\n{KILLS} kills: {acknowledged:,} acknowledged")


async def test_a_commit_that_fails_at_the_disk_is_not_there_and_what_follows_is(
    tmp_path: Path,
) -> None:
    """A log that can't grow fails in the middle of what is written to it."""
    path = tmp_path / "shop.sqlite"
    code = """
import anyio, resource, signal, sys
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.exceptions import StoreError
from tests.actors import event

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    async with SQLitePersistence(sys.argv[1]) as store:
        await store.append(event(1))
        for limit in range(40_000, 2_000_000, 80_011):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                appended = await store.append(*(event(0) for _ in range(700)))
            except StoreError:
                pass
            else:
                print("stored", appended)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            numbers = [each.payload["order_id"] for each in await store.list_events(limit=10000)]
            if 0 in numbers:
                break
            numbers.append(len(numbers) + 1)
            appended = await store.append(event(numbers[-1]))
            assert appended.first_seq == numbers[-1], appended
        print(len(numbers))
        sys.stdout.flush()
        import os
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    *_, said = done.stdout.split()
    async with SQLitePersistence(path) as store:
        numbers = [each.payload["order_id"] for each in await store.list_events(limit=10_000)]
        assert len(numbers) == int(said) > 700
        small = [each for each in numbers if each]
        assert small == list(range(1, len(small) + 1))
        assert numbers == small + [0] * 700
        assert (await store.scan()).is_clean


async def test_a_log_that_a_crash_has_left_is_read_and_a_torn_end_of_it_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "shop.sqlite"
    async with SQLitePersistence(path, synchronous="off") as store:
        for number in range(1, 6):
            await store.append(event(number))
        # As it is on the disk at this moment: the database, and a log that is not in it yet.
        left = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal")}
    crashed = tmp_path / "crashed.sqlite"
    lengths = []
    for cut in range(0, len(left["-wal"]), 4096):
        crashed.write_bytes(left[""])
        Path(f"{crashed}-wal").write_bytes(left["-wal"][: len(left["-wal"]) - cut])
        Path(f"{crashed}-shm").unlink(missing_ok=True)
        try:
            async with SQLitePersistence(crashed, synchronous="off") as store:
                assert (await store.scan()).is_clean
                numbers = [each.payload["order_id"] for each in await store.list_events()]
                assert numbers == list(range(1, len(numbers) + 1))
                assert (await store.append(event(9))).first_seq == len(numbers) + 1
        except StoreError:
            raise AssertionError(f"it can't be opened with {cut} bytes less") from None
        lengths.append(len(numbers))
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (5, 0)
    shutil.rmtree(tmp_path)
