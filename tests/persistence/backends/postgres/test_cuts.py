"""The connection is cut, or something else happens, at every message of a batch.

What an append has acknowledged is stored once, what has raised is not. Outside CI, every eighth
message is tried. It is the store's thread that is cut off, so one event loop is enough.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import pytest

from papyra.exceptions import StoreFenced, StoreUnreachable
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing.conformance._fixtures import a_record, everything, without_seq
from tests.extent import CI, STEP
from tests.persistence.backends.postgres import proxy as proxies
from tests.persistence.backends.postgres.proxy import Cut, Place, Proxy
from tests.persistence.backends.postgres.small_blocks import small_blocks
from tests.postgres_server import query

PLACES: tuple[Place, ...] = proxies.PLACES if CI else ("after", "late")
#: Every how many-th message: of a batch there are few.
EVERY = min(STEP, 8)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def blocks_are_small() -> Iterator[None]:
    """Have the batches complete blocks, whose totals are written with them."""
    with small_blocks():
        yield


Make: TypeAlias = Callable[..., PostgresPersistence]


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(database).port or 5432) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, database: str, schema: str) -> Make:
    """Return what makes a store behind the proxy, each of a system of its own."""

    def make(number: int, **options: Any) -> PostgresPersistence:
        return PostgresPersistence(
            proxy.url(database), schema=schema, system_id=f"cut-{number}", **options
        )

    return make


@pytest.fixture
def make(database: str, schema: str) -> Make:
    """Return what makes a store without a proxy."""

    def make(number: int, **options: Any) -> PostgresPersistence:
        return PostgresPersistence(database, schema=schema, system_id=f"cut-{number}", **options)

    return make


async def holds(store: PostgresPersistence, *numbers: int) -> bool:
    """Return whether a store holds these records, each once, in this order, and nothing else."""
    records = await everything(store)
    found = [without_seq(record) for record in records]
    positions = [record.seq or 0 for record in records]
    assert positions == sorted(set(positions))
    report = await store.scan()
    assert report.is_clean, report
    assert report.records_scanned == len(records)
    assert sum((await store.summarize()).records.values()) == len(records)
    return found == list(map(a_record, numbers))


#: Whoever waits for a lock in this database.
BLOCKED = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"


class Guard:
    """Lets what is late arrive as soon as somebody waits for the transaction that it belongs to."""

    def __init__(self, proxy: Proxy, database: str) -> None:
        self._proxy = proxy
        self._database = database
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            if self._proxy.is_late and query(self._database, BLOCKED, name_of(self._database)):
                self._proxy.release()


def name_of(database: str) -> str:
    return urlsplit(database).path[1:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES)
async def test_a_postgres_batch_is_stored_once_at_whichever_message_its_connection_is_cut(
    proxy: Proxy, database: str, through: Make, make: Make, place: Place
) -> None:
    for message in itertools.count(step=EVERY):
        size = (1, 7)[message % 2]
        batch = range(1, 1 + size)
        async with through(message) as store:
            await store.append(a_record(0))
            proxy.arm(Cut(message, place))
            with Guard(proxy, database):
                appended = await store.append(*map(a_record, batch))
            is_cut = proxy.disarm()
            assert (appended.first_seq, appended.last_seq) == (2, 1 + size)
            if proxy.is_late:  # nobody has waited for it, and it changes nothing
                proxy.release()
            await store.append(a_record(1 + size))
        async with make(message, read_only=True) as store:
            assert await holds(store, 0, *batch, 1 + size), (message, proxy.seen)
        if not is_cut:
            break
    assert message >= EVERY


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("place", "arrives_at_once"), [*((place, False) for place in PLACES), ("late", True)]
)
async def test_a_postgres_append_that_raised_at_a_cut_connection_is_not_stored(
    proxy: Proxy, database: str, through: Make, make: Make, place: Place, arrives_at_once: bool
) -> None:
    raised = 0
    for message in itertools.count(step=EVERY):
        size = (1, 7)[message % 2]
        batch: list[int] = []
        async with through(message, retry_for=0.0) as store:
            await store.append(a_record(0))
            proxy.arm(Cut(message, place))
            try:
                await store.append(*map(a_record, range(1, 1 + size)))
            except StoreUnreachable:
                raised += 1
            else:
                batch = [*range(1, 1 + size)]
            is_cut = proxy.disarm()
            if batch and is_cut:
                # After the answer: of that, it hears only now.
                with pytest.raises(StoreUnreachable):
                    await store.list_events()
            with Guard(proxy, database):
                # Neither shown, nor there, once the store has been written again, ...
                assert await holds(store, 0, *batch), (message, proxy.seen)
                if proxy.is_late and arrives_at_once:
                    proxy.release()
                    assert await holds(store, 0, *batch), (message, proxy.seen)
                await store.append(a_record(100))
            if proxy.is_late:  # ... nor when it arrives after all.
                proxy.release()
            assert await holds(store, 0, *batch, 100), (message, proxy.seen)
            await store.append(a_record(101))
        async with make(message, read_only=True) as store:
            assert await holds(store, 0, *batch, 100, 101), (message, proxy.seen)
        if not is_cut:
            break
    assert raised


@pytest.mark.timeout(600)
@pytest.mark.parametrize("retry_for", [10.0, 0.0])
async def test_a_postgres_batch_is_stored_once_if_its_backend_is_terminated_at_any_message(
    proxy: Proxy, database: str, through: Make, make: Make, retry_for: float
) -> None:
    def terminate() -> None:
        query(
            database,
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()"
            " AND application_name LIKE 'papyra %%' AND backend_type = 'client backend'",
            name_of(database),
        )

    proxy.meanwhile = terminate
    raised = 0
    for message in itertools.count(step=EVERY):
        kept = [0]
        async with through(message, retry_for=retry_for) as store:
            await store.append(a_record(0))
            proxy.arm(Cut(message, "at"))
            try:
                await store.append(*map(a_record, range(1, 6)))
            except StoreUnreachable:
                assert not retry_for
                raised += 1
            else:
                kept += range(1, 6)
            is_reached = proxy.disarm()
            try:
                assert await holds(store, *kept), (message, proxy.seen)
            except StoreUnreachable:  # of its connection, it hears only now
                assert not retry_for
            await store.append(a_record(100))
        async with make(message, read_only=True) as store:
            assert await holds(store, *kept, 100), (message, proxy.seen)
        if not is_reached:
            break
    assert bool(raised) == (not retry_for)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cut_after", [False, True], ids=["whole", "cut"])
async def test_another_postgres_writer_may_take_over_at_any_message_of_a_batch(
    proxy: Proxy, database: str, through: Make, make: Make, cut_after: bool
) -> None:
    """Either the batch comes before what the other one writes, or not at all."""
    outcomes = set()
    for message in itertools.count(step=EVERY):
        rival = threading.Thread(target=anyio.run, args=(take_over, make, message))

        def meanwhile(rival: threading.Thread = rival) -> None:
            rival.start()
            while rival.is_alive() and not query(database, BLOCKED, name_of(database)):
                rival.join(0.01)
            if cut_after:
                proxy.cut_all()

        proxy.meanwhile = meanwhile
        async with through(message) as store:
            await store.append(a_record(0))
            proxy.arm(Cut(message, "at"))
            try:
                await store.append(*map(a_record, range(1, 6)))
            except StoreFenced:
                kept = [0, 50]
            else:
                kept = [0, *range(1, 6), 50]
            if proxy.disarm():
                rival.join()
                outcomes.add(len(kept))
                with pytest.raises(StoreFenced):
                    await store.append(a_record(99))
            else:
                await take_over(make, message)
                break
        async with make(message, read_only=True) as store:
            assert await holds(store, *kept), (message, proxy.seen)
    assert outcomes == {2, 7}


async def take_over(make: Make, number: int) -> None:
    async with make(number) as other:
        await other.append(a_record(50))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES if CI else PLACES[-1:])
async def test_a_postgres_writer_takes_over_at_whichever_message_its_connection_is_cut(
    proxy: Proxy, database: str, through: Make, make: Make, place: Place
) -> None:
    """From the connection on, through the making of what is not there, to the first batch."""
    for message in itertools.count(step=3 * EVERY):
        async with make(message) as before:
            await before.append(a_record(0))
            proxy.arm(Cut(message, place))
            with Guard(proxy, database):
                async with through(message) as store:
                    await store.append(a_record(1))
                    is_cut = proxy.disarm()
                    if proxy.is_late:
                        proxy.release()
                    await store.append(a_record(2))
            with pytest.raises(StoreFenced):
                await before.append(a_record(3))
            assert await holds(before, 0, 1, 2), (message, proxy.seen)
        if not is_cut:
            break
    assert message > 20


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES if CI else PLACES[-1:])
async def test_a_postgres_schema_is_made_once_at_whichever_message_its_connection_is_cut(
    proxy: Proxy, database: str, schema: str, place: Place
) -> None:
    for message in itertools.count(step=EVERY * 5):
        query(database, f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
        proxy.arm(Cut(message, place))
        with Guard(proxy, database):
            async with PostgresPersistence(proxy.url(database), schema=schema) as store:
                await store.append(a_record(1))
        is_cut = proxy.disarm()
        if proxy.is_late:
            proxy.release()
        async with PostgresPersistence(database, schema=schema, read_only=True) as store:
            assert await holds(store, 1), (message, proxy.seen)
        if not is_cut:
            break
    assert message > 20
