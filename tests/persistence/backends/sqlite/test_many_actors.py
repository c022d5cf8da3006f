"""Waking an actor costs what its own history costs, however many others there are.

More of them: ``PAPYRA_LARGE=1000000``, which are 50,000 actors.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import event_loops
from tests.extent import count
from tests.persistence.backends.sqlite.many_actors import figures, fill, instructions_of_waking

anyio_backend = event_loops("asyncio")

EVENTS = count("PAPYRA_LARGE", 20_000, 100_000)


@pytest.mark.timeout(3600)
async def test_any_actor_of_very_many_wakes_and_many_at_once_hold_no_append_up(
    tmp_path: Path,
) -> None:
    found = await figures(tmp_path / "bank.sqlite", EVENTS)
    assert found["clean"], found
    # One that appends takes its turn between reads, and not after all of them.
    assert found["appended meanwhile"] >= 5, found
    small = tmp_path / "small.sqlite"
    await fill(small, 2_000)
    assert found["instructions"] <= 1.2 * await instructions_of_waking(small, 2_000), found
