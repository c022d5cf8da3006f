"""Ctrl-C at any moment, once or twice, in a process of its own; on uvloop, too, in CI.

More of them: ``PAPYRA_INTERRUPTS=100 python -m pytest tests/runtime/test_interrupts.py``.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from papyra.persistence.backends.json import JsonFilePersistence
from tests.conftest import LOOPS
from tests.extent import CI, count

CHOSEN = list(LOOPS) if CI else ["asyncio", "trio"]
RUNS = count("PAPYRA_INTERRUPTS", 1, 2)
#: Seconds after which a process has hung.
PATIENCE = 60


def run(loop: str, path: Path, seed: int, presses: int) -> tuple[list[int], str, bool]:
    """Run the program, press Ctrl-C, and return what it acknowledged, its errors, and its end."""
    chance = random.Random(seed)
    command = [sys.executable, "-m", "tests.runtime.interrupted", loop, str(path), "300"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            for _ in range(presses):
                # A moment is what this is about: nothing is waited for.
                time.sleep(chance.random() * 0.15)
                process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode in (0, 1, 130, -signal.SIGINT), errors
    *numbers, last = out.split() or [""]
    left = last == "left"
    return [int(n) for n in numbers + ([] if left else [last]) if n], errors, left


def stored(path: Path) -> tuple[list[int], list[str]]:
    async def read() -> tuple[list[int], list[str]]:
        async with JsonFilePersistence(path) as store:
            await store.recover()  # a torn end
            assert (await store.scan()).is_clean
            events = await store.list_events()
        numbers = [e.payload["number"] for e in events if e.event_type == "Counted"]
        return numbers, [e.event_type for e in events]

    return asyncio.run(read())


@pytest.mark.parametrize("loop", CHOSEN)
@pytest.mark.parametrize("seed", range(RUNS))
def test_a_program_that_is_interrupted_once_ends_in_order(
    loop: str, seed: int, tmp_path: Path
) -> None:
    acknowledged, errors, left = run(loop, tmp_path / "store", seed, presses=1)
    numbers, types = stored(tmp_path / "store")
    assert set(acknowledged) <= set(numbers)
    assert types.count("ActorStarted") == types.count("ActorStopped"), errors
    if not left:
        # Python may warn of a coroutine behind it, between whose making and running it struck.
        assert "KeyboardInterrupt" in errors.splitlines(), errors
    assert "TrioInternalError" not in errors


@pytest.mark.parametrize("loop", CHOSEN)
@pytest.mark.parametrize("seed", range(RUNS))
def test_a_program_interrupted_twice_ends_and_keeps_every_acknowledged_record(
    loop: str, seed: int, tmp_path: Path
) -> None:
    acknowledged, errors, _ = run(loop, tmp_path / "store", seed, presses=2)
    numbers, _ = stored(tmp_path / "store")
    assert set(acknowledged) <= set(numbers), errors
