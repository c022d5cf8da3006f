"""Ctrl-C at any line while a store is used that nobody hosts: it is closed, and nothing is lost.

More lines: ``PAPYRA_INTERRUPTS=1 python -m pytest tests/persistence/backends/test_interrupted.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from papyra.persistence import PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.conftest import LOOPS
from tests.extent import CI
from tests.interrupts import SHARES, STRIDE, at_lines, run

KINDS: dict[str, Callable[[Path], PersistenceBackend]] = {
    "memory": lambda path: InMemoryPersistence(),
    "json": lambda path: JsonFilePersistence(path, fsync="no"),
    "rotating": lambda path: RotatingFilePersistence(path, fsync="no"),
    "sqlite": SQLitePersistence,
}
CASES = (
    [*itertools.product(LOOPS, KINDS)]
    if CI
    else [("trio", "json"), ("asyncio", "rotating"), ("trio", "sqlite")]
)


def ev(number: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Counted", {"n": number}, float(number))


class Use:
    """What is done with a store."""

    def __init__(self, store: PersistenceBackend) -> None:
        self.store = store
        self.acknowledged: list[int] = []

    async def do(self) -> None:
        async with self.store as store:
            for number in range(4):
                await store.append(ev(number))
                self.acknowledged.append(number)
            await store.scan()
            async with store.subscribe() as items:
                async for item in items:
                    if isinstance(item, PersistedEvent) and item.seq == len(self.acknowledged):
                        break

    async def check(self) -> None:
        async with self.store as store:
            events = await store.list_events()
            numbers = [each.payload["n"] for each in events]
            assert numbers == [*range(len(numbers))]
            assert len(numbers) >= len(self.acknowledged)
            await store.append(ev(9))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(("loop", "kind"), CASES)
@pytest.mark.parametrize("share", range(SHARES))
def test_ctrl_c_at_any_line_leaves_a_store_closed_and_what_was_acknowledged_in_it(
    loop: str, kind: str, share: int, tmp_path: Path
) -> None:
    # A store takes a tenth of the lines of a system.
    for number, interrupt in enumerate(at_lines(share, STRIDE // 10)):
        use = Use(KINDS[kind](tmp_path / str(number)))
        with pytest.raises(KeyboardInterrupt):
            run(loop, use.do, interrupt)
        anyio.run(use.check)
