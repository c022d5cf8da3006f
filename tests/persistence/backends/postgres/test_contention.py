"""Writers contend for a system, with rollbacks and delays, while readers follow what is committed.

``PAPYRA_CONTENTION=2000`` makes it a long run: so many appends are acknowledged in it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import psycopg
import pytest

from papyra.exceptions import StoreError, StoreFenced
from papyra.persistence import PersistedEvent, Read
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing.conformance._fixtures import T0, an_event
from tests.extent import count
from tests.persistence.backends.postgres.proxy import Cut, Place, Proxy

APPENDS = count("PAPYRA_CONTENTION", 40, 300)
WRITERS = 4
#: The first reads pages, the others have subscriptions.
READERS = 3
#: What the last event is.
LAST = "the last"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Contention:
    """One run: who has appended what, and what each reader was shown."""

    def __init__(self, database: str, schema: str) -> None:
        self.database = database
        self.schema = schema
        #: positions, by what was stored there
        self.acknowledged: dict[str, int] = {}
        self.delivered: list[list[tuple[str, int]]] = [[] for _ in range(READERS)]
        self.fenced = self.raised = 0
        self.is_written = False

    def is_over(self) -> bool:
        return len(self.acknowledged) >= APPENDS

    async def write(self, writer: int, proxy: Proxy) -> None:
        """Take the system over, append until another one does, and so on; now and then cut off."""
        chance = random.Random(writer)
        number = 0
        while not self.is_over():
            store = PostgresPersistence(
                proxy.url(self.database), schema=self.schema, retry_for=chance.choice([0.0, 5.0])
            )
            try:
                async with store:
                    for _ in range(chance.randrange(1, 9)):
                        if chance.random() < 0.3:
                            places: list[Place] = ["before", "in", "after"]
                            proxy.arm(Cut(chance.randrange(14), chance.choice(places)))
                        number += 1
                        names = [
                            f"{writer}-{number}-{part}" for part in range(chance.choice((1, 5)))
                        ]
                        appended = await store.append(
                            *(msgspec.structs.replace(an_event(0), payload=name) for name in names)
                        )
                        for position, name in enumerate(names, appended.first_seq):
                            self.acknowledged[name] = position
            except StoreFenced:
                self.fenced += 1
            except StoreError:
                self.raised += 1

    async def read(self, reader: int) -> None:
        """Read page after page, as a projection does: nothing before the last one seen."""
        delivered = self.delivered[reader]
        async with PostgresPersistence(self.database, schema=self.schema, read_only=True) as store:
            while True:
                is_last = self.is_written
                after = delivered[-1][1] if delivered else 0
                page = await store.execute(Read("event", after=after, limit=7))
                delivered += [(event.payload, event.seq or 0) for event in page.records]
                if is_last and not page.records:
                    return

    async def follow(self, reader: int) -> None:
        """Follow by a subscription, which gives out what is new up to the last one."""
        delivered = self.delivered[reader]
        async with (
            PostgresPersistence(self.database, schema=self.schema, read_only=True) as store,
            store.subscribe() as items,
        ):
            async for item in items:
                if isinstance(item, PersistedEvent):
                    delivered.append((item.payload, item.seq or 0))
                    if item.payload == LAST:
                        return

    def hold_and_roll_back(self, is_over: threading.Event) -> None:
        """Be another program: lock the system's row for a moment, change it, and take that back."""
        chance = random.Random("rollback")
        with psycopg.connect(self.database) as connection:
            while not is_over.is_set():
                connection.execute(
                    f'UPDATE "{self.schema}".systems SET epoch = epoch + 100'.encode()
                )
                time.sleep(chance.uniform(0, 0.01))
                connection.rollback()
                is_over.wait(chance.uniform(0, 0.05))


@pytest.fixture
def proxies(database: str) -> Iterator[list[Proxy]]:
    proxies = [Proxy(urlsplit(database).port or 5432) for _ in range(WRITERS)]
    for proxy in proxies:
        proxy.__enter__()
    yield proxies
    for proxy in proxies:
        proxy.__exit__()


@pytest.mark.timeout(300 + APPENDS)
async def test_readers_of_a_contended_postgres_system_miss_nothing_and_see_nothing_twice(
    database: str, schema: str, proxies: list[Proxy]
) -> None:
    run = Contention(database, schema)
    async with PostgresPersistence(database, schema=schema):
        pass  # there is something to read
    is_over = threading.Event()
    async with anyio.create_task_group() as others:
        others.start_soon(anyio.to_thread.run_sync, run.hold_and_roll_back, is_over)
        others.start_soon(run.read, 0)
        for reader in range(1, READERS):
            others.start_soon(run.follow, reader)
        async with anyio.create_task_group() as writers:
            for writer, proxy in enumerate(proxies):
                writers.start_soon(run.write, writer, proxy)
        is_over.set()
        async with PostgresPersistence(database, schema=schema) as store:
            appended = await store.append(msgspec.structs.replace(an_event(0), payload=LAST))
            run.acknowledged[LAST] = appended.first_seq
        run.is_written = True
    async with PostgresPersistence(database, schema=schema, read_only=True) as store:
        stored = {event.payload: event.seq async for event in store.stream("event")}
        assert (await store.scan()).is_clean
    assert run.acknowledged.items() <= stored.items()
    assert run.fenced
    assert run.raised
    for delivered in run.delivered:
        positions = [position for _, position in delivered]
        assert positions == sorted(set(positions))
        # What was taken back is shown to a reader for as long as it is in doubt, and to none later.
        shown = dict(delivered)
        assert run.acknowledged.items() <= shown.items()
        assert stored.items() <= shown.items()


async def test_postgres_writers_whose_clocks_jump_take_over_by_what_is_stored(
    database: str, schema: str
) -> None:
    """Neither the order of records, nor who may write, is a matter of any clock."""
    chance = random.Random("clock")

    def jumping() -> float:
        return T0 + chance.uniform(-1e9, 1e9)

    writers = [PostgresPersistence(database, schema=schema, clock=jumping) for _ in range(2)]
    numbers = []
    for number in range(10):
        async with writers[number % 2] as store:
            await store.append(an_event(number, timestamp=jumping()))
            numbers.append(number)
            found = [event.payload["n"] async for event in store.stream("event")]
            assert found == numbers
    async with writers[0] as store, writers[1] as other:
        await store.append(an_event(10))
        await other.append(an_event(11))
        with pytest.raises(StoreFenced):
            await store.append(an_event(12))
        assert (await other.scan()).is_clean
