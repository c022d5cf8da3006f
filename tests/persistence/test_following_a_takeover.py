"""Who follows a store in a process that was its writer goes on with what its successor writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from examples.own_backend import CommitFiles
from papyra import ActorSystem, system
from papyra.exceptions import PersistenceError, StoreMoved
from papyra.persistence import PersistedEvent
from papyra.persistence.backends import base
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.postgres import from_settings
from papyra.persistence.backends.redis import RedisStreamsPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.subscription import CaughtUp, Subscription
from papyra.testing import FaultyPersistence, _postgres_server
from papyra.testing._redis_server import new_store
from tests.conftest import event_loops
from tests.testing.shelf import Disk, Shelf

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")

MakeStore = Callable[[], PersistenceBackend]


def sqlite(path: Path) -> MakeStore:
    def make() -> PersistenceBackend:
        # As on a file system whose locks do not reach the other machine.
        (path / "store.db.lock").unlink(missing_ok=True)
        return SQLitePersistence(path / "store.db", synchronous="off")

    return make


def redis(path: Path) -> MakeStore:
    config = new_store(lambda: path, {}).config  # type: ignore[attr-defined]
    return lambda: RedisStreamsPersistence(config)


def postgres(path: Path) -> MakeStore:
    settings = _postgres_server.new_store(lambda: path, {}).store.settings  # type: ignore[attr-defined]
    return lambda: from_settings(settings)


def shelf(_: Path) -> MakeStore:
    disk = Disk()
    return lambda: Shelf(disk)


def own_backend(path: Path) -> MakeStore:
    return lambda: PersistenceBackend(CommitFiles(path / "store"))


@pytest.fixture(params=[sqlite, redis, postgres, shelf, own_backend])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    make: MakeStore = request.param(tmp_path)
    return make


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have writers look soon whether they are the ones still."""
    for module, name in ((system, "LOOK_INTERVAL"), (system, "OUTBOX_INTERVAL")):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr(base, "WRITER_POLL_INTERVAL", 0.02)


def event(number: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Added", {"number": number}, float(number))


class Reader:
    """A task that follows a store, and what it has got."""

    def __init__(self, items: Subscription) -> None:
        self._items = items
        self._changed = anyio.Event()
        self.numbers: list[int] = []
        self.is_at_end = False

    async def run(self) -> None:
        async for item in self._items:
            if isinstance(item, PersistedEvent):
                self.numbers.append(item.payload["number"])
            self.is_at_end = isinstance(item, CaughtUp)
            self._changed.set()
            self._changed = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(60):
            while not condition():
                await self._changed.wait()

    async def until_has(self, *numbers: int) -> None:
        await self.until(lambda: len(self.numbers) >= len(numbers))
        assert self.numbers == [*numbers]


async def test_a_process_that_is_told_of_its_successor_follows_it(make: MakeStore) -> None:
    first = make()
    async with ActorSystem("s", persistence=first, audit_interval=None):
        await first.append(event(1))
        async with first.subscribe() as items, anyio.create_task_group() as tasks:
            reader = Reader(items)
            tasks.start_soon(reader.run)
            await reader.until(lambda: reader.is_at_end)
            async with make() as second:
                await second.append(event(2))
                with pytest.raises(PersistenceError):
                    await first.append(event(0))
                await reader.until_has(1, 2)
                await second.append(event(3))
                await reader.until_has(1, 2, 3)
            tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient")
async def test_a_process_that_writes_nothing_any_more_finds_out_about_its_successor(
    make: MakeStore,
) -> None:
    first = make()
    async with ActorSystem("s", persistence=first, audit_interval=None):
        await first.append(event(1))
        async with first.subscribe() as items, anyio.create_task_group() as tasks:
            reader = Reader(items)
            tasks.start_soon(reader.run)
            await reader.until(lambda: reader.is_at_end)
            async with make() as second:
                for number in (2, 3):
                    await second.append(event(number))
                    await reader.until_has(*range(1, number + 1))
            tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient")
async def test_a_backend_without_a_host_finds_out_about_its_successor(make: MakeStore) -> None:
    async with make() as first:
        await first.append(event(1))
        async with first.subscribe() as items, anyio.create_task_group() as tasks:
            reader = Reader(items)
            tasks.start_soon(reader.run)
            await reader.until(lambda: reader.is_at_end)
            async with make() as second:
                await second.append(event(2))
                await reader.until_has(1, 2)
            tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient")
async def test_what_is_in_doubt_when_another_takes_over_keeps_nothing_back(
    make: MakeStore,
) -> None:
    """The append has failed, its process writes nothing more, and its successor does."""
    first = FaultyPersistence(make())
    async with ActorSystem("s", persistence=first, audit_interval=None):
        await first.append(event(1))
        async with first.subscribe() as items, anyio.create_task_group() as tasks:
            reader = Reader(items)
            tasks.start_soon(reader.run)
            await reader.until(lambda: reader.is_at_end)
            first.fail_next("append")
            with pytest.raises(PersistenceError):
                await first.append(event(0))
            async with make() as second:
                await second.append(event(2))
                await reader.until_has(1, 2)
            tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient")
async def test_a_writer_that_was_fenced_may_write_and_be_followed_again(make: MakeStore) -> None:
    first = make()
    async with first, first.subscribe() as items:
        await first.append(event(1))
        async with make() as second:
            await second.append(event(2))
        with pytest.raises(PersistenceError):
            await first.append(event(0))
        assert items.position == 0
    async with first, first.subscribe() as items, anyio.create_task_group() as tasks:
        reader = Reader(items)
        tasks.start_soon(reader.run)
        await reader.until(lambda: reader.is_at_end)
        await first.append(event(3))
        assert first.is_writer
        await reader.until_has(1, 2, 3)
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", ["json", "rotating", "sqlite"])
async def test_who_follows_in_the_writing_process_is_told_that_its_store_was_moved(
    what: str, tmp_path: Path
) -> None:
    place = tmp_path / "store"
    stores: dict[str, MakeStore] = {
        "json": lambda: JsonFilePersistence(place, fsync="no"),
        "rotating": lambda: RotatingFilePersistence(place, fsync="no"),
        "sqlite": lambda: SQLitePersistence(place, synchronous="off"),
    }
    store = stores[what]()
    async with ActorSystem("s", persistence=store, audit_interval=None):
        await store.append(event(1))
        async with store.subscribe() as items:
            assert [type(await anext(items)) for _ in range(2)] == [PersistedEvent, CaughtUp]
            place.rename(tmp_path / "elsewhere")
            with anyio.fail_after(60), pytest.raises(StoreMoved):
                await anext(items)
            (tmp_path / "elsewhere").rename(place)
