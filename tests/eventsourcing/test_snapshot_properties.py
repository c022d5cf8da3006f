"""Whatever becomes of snapshots, of appends and of actors: the state is the sum of the events.

``PAPYRA_SNAPSHOT_EXAMPLES=2000`` tries as many programs on each backend.
"""

from __future__ import annotations

import copy
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio
import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from papyra import ActorRef, ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.exceptions import StoreError
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.snapshots import SnapshotStore, snapshots_of
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.testing import Delay, FaultyPersistence, Operation
from papyra.testing._redis_server import shared_server
from papyra.testing.fault_rules import Rule
from tests.extent import count

EXAMPLES = count("PAPYRA_SNAPSHOT_EXAMPLES", 6, 25)

NAMES = ("ann", "bob")


class Added(msgspec.Struct, frozen=True):
    number: int


class Trace(msgspec.Struct, frozen=True):
    """A state in which each event that is missing, doubled or out of order shows."""

    count: int = 0
    digest: int = 0


def advance(state: Trace, event: Added) -> Trace:
    return Trace(state.count + 1, (state.digest * 31 + event.number + 1) % 2**61)


class Counter(EventSourced[Trace]):
    events = (Added,)
    snapshots = SnapshotPolicy(every=2, keep=2)

    def initial_state(self) -> Trace:
        return Trace()

    def apply(self, state: Trace, event: Added) -> Trace:
        return advance(state, event)

    async def receive(self, message: Any) -> Any:
        match message:
            case "crash":
                raise RuntimeError("crash")
            case ("wait", *numbers):
                await self.persist(*map(Added, numbers))
            case ("go on", *numbers):
                self.persist_nowait(*map(Added, numbers))
        return self.state, self.revision


class Place(Protocol):
    """Where a store is."""

    def reopen(self) -> PersistenceBackend:
        """Return a backend on the store."""

    def back_up(self) -> None:
        """Copy the records."""

    def restore(self) -> None:
        """Have the records be those that were copied, and leave what is beside them as it is."""


class Memory:
    def __init__(self) -> None:
        self._backend = InMemoryPersistence()

    def reopen(self) -> PersistenceBackend:
        return self._backend

    def back_up(self) -> None:
        store = self._backend.store
        self._copy = copy.deepcopy((store._collections, store._last_seq))

    def restore(self) -> None:
        store, ours = self._backend.store, vars(self._backend.store)
        beside = {name: ours[name] for name in ("_id", "_snapshots")}
        store.clear()
        ours.update(beside)
        collections, store._last_seq = copy.deepcopy(self._copy)
        for kind, collection in collections.items():
            store._collections[kind].__dict__.update(vars(collection))


class Files:
    def __init__(self, kind: str, path: Path) -> None:
        self._kind, self._path = kind, path
        self._copy = path / "copy"
        self._store = path / "store"

    def reopen(self) -> PersistenceBackend:
        if self._kind == "json":
            return JsonFilePersistence(self._store, fsync="no")
        return RotatingFilePersistence(self._store, max_segment_bytes=2000, fsync="no")

    def _records(self) -> list[Path]:
        return [self._store] if self._kind == "json" else list(self._store.glob("[0-9]*"))

    def back_up(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        self._copy.mkdir()
        for file in filter(Path.exists, self._records()):
            shutil.copy(file, self._copy)

    def restore(self) -> None:
        for file in filter(Path.exists, self._records()):
            file.unlink()
        self._store.parent.mkdir(exist_ok=True)
        target = self._store.parent if self._kind == "json" else self._store
        for file in self._copy.iterdir():
            shutil.copy(file, target)


class Database:
    #: the tables that go with the records
    TABLES = ("events", "audits", "dead_letters", "blocks")

    def __init__(self, path: Path) -> None:
        self._store, self._copy = path / "store.db", path / "copy.db"

    def reopen(self) -> PersistenceBackend:
        return SQLitePersistence(self._store, synchronous="off")

    def back_up(self) -> None:
        if self._store.exists():
            with self._connected() as connection, closing(sqlite3.connect(self._copy)) as copy:
                connection.backup(copy)

    def restore(self) -> None:
        with self._connected() as connection:
            had_records = self._copy.exists()
            if had_records:
                connection.execute("ATTACH ? AS copy", (str(self._copy),))
            for table in self.TABLES:
                connection.execute(f"DELETE FROM main.{table}")
                if had_records:
                    connection.execute(f"INSERT INTO main.{table} SELECT * FROM copy.{table}")
            last = "(SELECT last_seq FROM copy.systems)" if had_records else "0"
            connection.execute(f"UPDATE main.systems SET last_seq = {last}")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._store, isolation_level=None)
        with closing(connection):
            yield connection


class Redis:
    def __init__(self) -> None:
        url = shared_server().url
        self._config = RedisStreamsConfig(url=url, prefix="test", system_id=uuid.uuid4().hex)
        self._admin = redis.Redis.from_url(url)
        self._copy: dict[str, bytes] = {}

    def reopen(self) -> PersistenceBackend:
        return RedisStreamsPersistence(self._config)

    def back_up(self) -> None:
        dumps = {key: self._admin.dump(key) for key in self._config.keys.all}
        self._copy = {key: dump for key, dump in dumps.items() if dump is not None}

    def restore(self) -> None:
        keys = self._config.keys
        store_id = self._admin.hget(keys.meta, "id")
        self._admin.delete(*keys.all)
        for key, dump in self._copy.items():
            self._admin.restore(key, 0, dump)
        if store_id is not None:
            self._admin.hset(keys.meta, "id", store_id)

    def close(self) -> None:
        self._admin.delete(*self._config.keys.everything)
        self._admin.close()


class Program:
    """A program of steps on one store, in as many lives as it takes."""

    def __init__(self, place: Place) -> None:
        self._place = place
        #: the numbers that each actor has acknowledged
        self._acknowledged: dict[str, list[int]] = {name: [] for name in NAMES}
        #: those in the copy
        self._copied: dict[str, list[int]] = {}

    async def run(self, lives: list[tuple[bool, list[tuple[Any, ...]]]]) -> None:
        for is_restored, steps in [*lives, (False, [])]:
            if is_restored:
                self._place.restore()
                self._acknowledged = {name: [*self._copied[name]] for name in NAMES}
            else:
                self._place.back_up()
                self._copied = {name: [*self._acknowledged[name]] for name in NAMES}
            store = FaultyPersistence(self._place.reopen())
            async with ActorSystem("s", persistence=store) as system:
                actors = {name: system.spawn(Counter, name=name) for name in NAMES}
                for step in steps:
                    await self._take(step, store, actors)
                store.clear()
                for name in NAMES:
                    assert await actors[name].ask("look") == await self._replayed(store, name)
                await self._check_scan(store)

    async def _check_scan(self, store: FaultyPersistence) -> None:
        """Check that nothing is wrong but snapshots, and nothing at all after a recovery."""
        kinds = {anomaly.kind for anomaly in (await store.scan()).anomalies}
        assert kinds <= {"snapshot"}
        if len(self._acknowledged[NAMES[0]]) % 2:
            assert (await store.recover()).scan.is_clean
            assert (await store.scan()).is_clean
            for name in NAMES:
                assert not (await store.load_snapshot(f"s/{name}")).passed_over

    async def _take(
        self, step: tuple[Any, ...], store: FaultyPersistence, actors: dict[str, ActorRef]
    ) -> None:
        match step:
            case ("persist", name, how, numbers):
                try:
                    state, revision = await actors[name].ask((how, *numbers))
                except StoreError:
                    return
                self._acknowledged[name] += numbers
                assert (state, revision) == await self._replayed(store, name)
            case ("crash", name):
                with pytest.raises(RuntimeError):
                    await actors[name].ask("crash")
            case ("fail", operation, after):
                store.fail_next(operation, after=after)
            case ("compact",):
                await store.compact(RetentionPolicy(max_records=1))
            case (_, name, *_):
                async with alone_with(store):
                    await self._spoil(step, snapshots_of(store.wrapped.store), name)

    async def _spoil(self, step: tuple[Any, ...], snapshots: SnapshotStore, name: str) -> None:
        """Do something to the newest snapshot of an actor."""
        revisions = sorted(await snapshots.snapshot_revisions(f"s/{name}"))
        if not revisions:
            return
        newest = revisions[-1]
        data = await snapshots.load_snapshot(f"s/{name}", newest) or b"?"
        match step:
            case ("flip" | "flip a digit", _, place):
                place %= 8 * len(data)
                if step[0] == "flip a digit":
                    # In the state, mostly; it is a digit afterwards.
                    start = max(data.find(b'"state":'), 0)
                    digits = [n for n in range(start, len(data)) if data[n : n + 1].isdigit()]
                    place = 8 * digits[place % len(digits)] if digits else place
                flipped = bytearray(data)
                flipped[place // 8] ^= 1 << place % 8
                await snapshots.save_snapshot(f"s/{name}", newest, bytes(flipped))
            case ("cut", _, place):
                await snapshots.save_snapshot(f"s/{name}", newest, data[: place % len(data)])
            case ("swap", _, other):
                await snapshots.save_snapshot(f"s/{other}", newest, data)
            case ("move", _, by):
                await snapshots.save_snapshot(f"s/{name}", newest + by, data)
            case ("remove", _):
                for revision in revisions:
                    await snapshots.remove_snapshot(f"s/{name}", revision)

    async def _replayed(self, store: FaultyPersistence, name: str) -> tuple[Trace, int]:
        """Return the sum of the history, and check that all that was acknowledged is in it."""
        page = await store.wrapped.read_history(f"s/{name}")
        numbers = [event.payload["number"] for event in page.events]
        stored = iter(numbers)
        assert all(number in stored for number in self._acknowledged[name])
        state = Trace()
        for number in numbers:
            state = advance(state, Added(number))
        return state, len(numbers)


@asynccontextmanager
async def alone_with(store: FaultyPersistence) -> AsyncIterator[None]:
    """Have the store be used by nobody else meanwhile: it is never called concurrently."""
    is_held = anyio.Event()

    def note(operation: Operation) -> None:
        is_held.set()

    store.use(Rule(Delay(0), "flush", predicate=note))
    store.hang("flush")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.flush)
        await is_held.wait()
        try:
            yield
        finally:
            store.release()


def place_of(kind: str, directory: Path) -> Place:
    match kind:
        case "memory":
            return Memory()
        case "sqlite":
            return Database(directory)
        case _:
            return Files(kind, directory)


names = st.sampled_from(NAMES)
numbers = st.lists(st.integers(0, 9), min_size=1, max_size=3)
places = st.integers(0, 3_000)
persists = st.tuples(st.just("persist"), names, st.sampled_from(["wait", "go on"]), numbers)
steps = st.one_of(
    persists,
    persists,
    persists,
    st.tuples(st.just("crash"), names),
    st.tuples(
        st.just("fail"),
        st.sampled_from(["append", "save_snapshot", "load_snapshot"]),
        st.booleans(),
    ),
    st.tuples(st.sampled_from(["flip", "flip a digit", "cut"]), names, places),
    st.tuples(st.just("swap"), names, names),
    st.tuples(st.just("move"), names, st.integers(-3, 3).filter(bool)),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("compact")),
)
#: A life begins with a copy of the records, or with the last copy in their place.
programs = st.lists(
    st.tuples(st.booleans(), st.lists(steps, max_size=12)), min_size=1, max_size=4
).map(lambda lives: [(False, lives[0][1]), *lives[1:]])


def tried(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a test try so many programs."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limits = settings(max_examples=examples, deadline=None, suppress_health_check=checks)
        return limits(given(lives=programs)(test))

    return decorate


@pytest.mark.parametrize("kind", ["memory", "json", "rotating", "sqlite"])
@tried(EXAMPLES)
def test_a_snapshot_and_the_events_behind_it_are_the_whole_history(
    kind: str, lives: list[tuple[bool, list[tuple[Any, ...]]]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        anyio.run(Program(place_of(kind, Path(directory))).run, lives)


@tried(EXAMPLES)
def test_a_snapshot_in_redis_and_the_events_behind_it_are_the_whole_history(
    lives: list[tuple[bool, list[tuple[Any, ...]]]],
) -> None:
    place = Redis()
    try:
        anyio.run(Program(place).run, lives)
    finally:
        place.close()
