"""What a reader gets of a store that other processes write is what is stored: once, and in order.

Those are real processes, which append, rotate, compact, recover and open again at random, and are
killed in the middle; one follows the other. Readers begin anywhere, and read at any speed. With
PAPYRA_FOLLOW_LIVES=100 they have many lives, instead of two, in CI three.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import anyio
import msgspec
import pytest

from papyra.persistence import PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.testing import _postgres_server
from papyra.testing._redis_server import new_store
from tests.conftest import event_loops
from tests.extent import CI, count
from tests.persistence.store_writer import event, open_store

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")

LIVES = count("PAPYRA_FOLLOW_LIVES", 2, 3)
#: Events of one life, if it is not killed before.
EVENTS = 60
KINDS = ["json", "rotating", "sqlite", "redis", "postgres"]


@pytest.fixture(params=KINDS if CI else ["rotating"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Return the kind of a store, and what it is made of."""
    match request.param:
        case "redis":
            config = new_store(lambda: tmp_path, {}).config  # type: ignore[attr-defined]
            return "redis", msgspec.json.encode(config).decode()
        case "postgres":
            made = _postgres_server.new_store(lambda: tmp_path, {})
            settings = made.store.settings  # type: ignore[attr-defined]
            return "postgres", msgspec.json.encode(settings).decode()
        case kind:
            return kind, str(tmp_path / "store")


class Reader:
    """Follows from a position on, at a speed of its own."""

    def __init__(self, backend: PersistenceBackend, after: int, seed: int) -> None:
        self.after = after
        self.found: list[PersistedEvent] = []
        self.done = anyio.Event()
        self._backend = backend
        self._chance = random.Random(seed)

    async def run(self) -> None:
        async with self._backend.subscribe(after=self.after) as items:
            async for item in items:
                if isinstance(item, PersistedEvent):
                    self.found.append(item)
                    if item.payload["number"] == 10**9:
                        self.done.set()
                        return
                    if not self._chance.randrange(20):
                        await anyio.sleep(self._chance.uniform(0, 0.05))


@pytest.mark.timeout(300 + 30 * LIVES)
async def test_readers_get_what_other_processes_store(store: tuple[str, str]) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    acknowledged = [0]
    async with open_store(*store) as made:
        await made.append(event(0))
    async with open_store(*store).reader() as backend, anyio.create_task_group() as tasks:
        readers = [Reader(backend, 0, seed)]
        tasks.start_soon(readers[0].run)
        for life in range(LIVES):
            after = chance.randint(0, (await backend.flush()).last_seq)
            readers.append(Reader(backend, after, life))
            tasks.start_soon(readers[-1].run)
            first = 1 + life * EVENTS
            acknowledged += await live(store, chance, first, first + EVENTS - 1)
        async with open_store(*store) as made:
            await made.append(event(10**9))  # which ends it for them
        with anyio.fail_after(60):
            for reader in readers:
                await reader.done.wait()
    async with open_store(*store) as made:
        stored = [record async for record in made.stream("event")]
        assert (await made.scan()).is_clean
    numbers = [record.payload["number"] for record in stored if isinstance(record, PersistedEvent)]
    assert set(acknowledged) <= set(numbers)
    assert numbers == sorted(set(numbers))
    for reader in readers:
        assert reader.found == [record for record in stored if (record.seq or 0) > reader.after]


async def live(store: tuple[str, str], chance: random.Random, first: int, last: int) -> list[int]:
    """Run a writer until it ends, or is killed; return the numbers that were acknowledged."""
    command = [sys.executable, "-m", "tests.persistence.store_writer", *store]
    command += map(str, (chance.randrange(2**32), first, last))
    killed_after = chance.randint(1, 2 * EVENTS)
    acknowledged: list[int] = []
    with anyio.fail_after(120):
        async with await anyio.open_process(command, stderr=None) as process:
            assert process.stdout is not None
            rest = b""
            async for data in process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                acknowledged += map(int, lines)
                if len(acknowledged) >= killed_after and process.returncode is None:
                    process.kill()
            code = await process.wait()
    assert code in (0, -9), code
    return acknowledged
