"""Among the events of many actors, each of them wakes as it should, and holds nobody up.

``PAPYRA_MANY_EVENTS`` says how many events there are, 20 of each actor. How long it took to wake
one and 1,000 of them, and what another actor that appends meanwhile waited, is printed (``-s``).
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random

import anyio
import pytest

from papyra import ActorSystem
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.records import PersistedEvent
from tests.conftest import event_loops
from tests.eventsourcing.accounts import Account, Deposit, Look
from tests.extent import CI, count
from tests.postgres_server import own_database, shared_server
from tests.redis_server import RedisServer, any_binary

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

EVENTS = count("PAPYRA_MANY_EVENTS", 4_000, 40_000)
OWN = 20
ACTORS = EVENTS // OWN
AT_ONCE = min(1_000, ACTORS)


#: In CI, and where it is said how many events.
IN_CI = ["postgres"] if CI or "PAPYRA_MANY_EVENTS" in os.environ else []


@pytest.fixture(params=["memory", "json", "rotating", "sqlite", "redis", *IN_CI])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PersistenceBackend]:
    match request.param:
        case "memory":
            yield InMemoryPersistence()
        case "json":
            yield JsonFilePersistence(tmp_path / "events", fsync="no")
        case "rotating":
            yield RotatingFilePersistence(tmp_path / "events", fsync="no")
        case "sqlite":
            yield SQLitePersistence(tmp_path / "events", synchronous="normal")
        case "postgres":
            # All event loops have the same database.
            yield PostgresPersistence(own_database(shared_server()), system_id=uuid.uuid4().hex)
        case _:
            with RedisServer(any_binary()) as server:
                yield RedisStreamsPersistence(RedisStreamsConfig(url=server.url))


def name_of(number: int) -> str:
    return f"account-{number}"


def balance(number: int) -> tuple[int, int]:
    """Return the amount and the revision of an account."""
    return OWN * number, OWN


async def fill(store: PersistenceBackend) -> None:
    """Append the events of all actors by turns: as many of each as the others have."""
    async with store:
        for revision in range(1, OWN + 1):
            for first in range(0, ACTORS, 1_000):
                await store.append(
                    *(
                        PersistedEvent(
                            "bank",
                            f"bank/{name_of(number)}",
                            "Deposited",
                            {"amount": number},
                            1.7e9,
                            revision=revision,
                        )
                        for number in range(first, min(first + 1_000, ACTORS))
                    )
                )


@pytest.mark.timeout(300 + EVENTS // 500)
async def test_any_of_many_actors_wakes_with_its_own_events(store: PersistenceBackend) -> None:
    waited: list[float] = []
    done = anyio.Event()

    async def deposit_until_done() -> None:
        while not done.is_set():
            started = time.perf_counter()
            assert await depositor.ask(Deposit(1)) == len(waited) + 1
            waited.append(time.perf_counter() - started)

    await fill(store)
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        depositor = system.spawn(Account, name="another")
        assert await depositor.ask(Look()) == (0, 0)
        one = Random(EVENTS).randrange(ACTORS)
        started = time.perf_counter()
        assert await system.spawn(Account, name=name_of(one)).ask(Look()) == balance(one)
        woken_one = time.perf_counter() - started

        others = [number for number in range(0, ACTORS, ACTORS // AT_ONCE) if number != one]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deposit_until_done)
            started = time.perf_counter()
            refs = [system.spawn(Account, name=name_of(number)) for number in others]
            for number, ref in zip(others, refs, strict=True):
                assert await ref.ask(Look()) == balance(number)
            woken = time.perf_counter() - started
            done.set()
    assert waited
    print(
        f"\n{type(store).__name__}: {ACTORS:,} actors; one in {woken_one:.4f} s, "
        f"{len(others):,} in {woken:.2f} s; {len(waited):,} appends of another actor waited "
        f"{max(waited):.4f} s at most, {sum(waited) / len(waited):.4f} s on average"
    )
