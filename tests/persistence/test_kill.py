"""Processes that are killed while they append. More of them: ``PAPYRA_KILLS=1000``."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from papyra.persistence.backends._journal import JournalFile, ScanResult
from papyra.persistence.backends._line import BadLine

KILLS = int(os.environ.get("PAPYRA_KILLS", "50"))
ROOT = Path(__file__).parent.parent.parent


def kill_while_it_appends(path: Path, fsync: str, acknowledgements: int) -> int:
    """Kill a process after so many acknowledgements; return the last position it was given."""
    command = [sys.executable, "-m", "tests.persistence.appender", str(path), fsync]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        said += process.stdout.readlines()
    assert process.returncode == -9, said
    # The last of them may have been cut off in the pipe.
    return int([line for line in said if line.endswith("\n")][-1].split()[1])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fsync", ["always", "everysec", "no"])
def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path: Path, fsync: str) -> None:
    path = tmp_path / "events.ndjson"
    chance = random.Random(fsync)
    for _ in range(max(1, KILLS // 3)):
        acknowledged = kill_while_it_appends(path, fsync, chance.randint(1, 60))
        journal, found = JournalFile(path), ScanResult()
        journal.open()
        numbers = []
        for line, record in journal.checked(found):
            if isinstance(line, BadLine):
                assert line.kind == "torn"
            else:
                assert record is not None
                numbers.append((line.seq, record.payload["order_id"]))
        # Each record carries the position it was to have: none is missing, altered or doubled.
        assert numbers == [(seq, seq) for seq in range(1, len(numbers) + 1)]
        assert len(numbers) >= acknowledged
        journal.repair()
        assert not journal.scan().anomalies
        journal.close()
