"""A subscription gives out what is stored, each record once and in order, past and to come."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import anyio
import psycopg
import pytest
from anyio.lowlevel import checkpoint
from redis import Redis

from papyra import ActorSystem
from papyra.exceptions import InvalidRequest, StoreError, StoreMoved, StoreReplaced
from papyra.message import ReplyT
from papyra.persistence import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    recent_commits,
)
from papyra.persistence.backends import base
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.paging import MAX_PAGE_RECORDS
from papyra.persistence.backends.postgres import PostgresPersistence, from_settings
from papyra.persistence.backends.redis import RedisStreamsPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.messages import Request
from papyra.persistence.recent_commits import CommitFeed
from papyra.persistence.records import KINDS, Record
from papyra.persistence.retention import RetentionPolicy
from papyra.persistence.subscription import (
    CaughtUp,
    FellBehind,
    Item,
    Received,
    Selection,
    Subscription,
)
from papyra.testing import FaultyPersistence, _postgres_server
from papyra.testing._redis_server import new_store
from tests.conftest import event_loops, kind_for
from tests.extent import CI

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio", "trio")

RECORDS = (PersistedEvent, PersistedAudit, PersistedDeadLetter)
MakeStore = Callable[[], PersistenceBackend]
DURABLE = ("json", "rotating", "sqlite", "redis", "postgres")


def maker(kind: str, path: Path) -> MakeStore:
    match kind:
        case "memory":
            store = InMemoryPersistence()
            return lambda: store
        case "json":
            return lambda: JsonFilePersistence(path / "store.ndjson", fsync="no")
        case "rotating":
            return lambda: RotatingFilePersistence(
                path / "store", max_segment_records=7, fsync="no"
            )
        case "sqlite":
            return lambda: SQLitePersistence(path / "store.db", synchronous="off")
        case "postgres":
            settings = _postgres_server.new_store(lambda: path, {}).store.settings  # type: ignore[attr-defined]
            return lambda: from_settings(settings)
        case _:
            config = new_store(lambda: path, {}).config  # type: ignore[attr-defined]
            return lambda: RedisStreamsPersistence(config)


@pytest.fixture(params=["memory", *(DURABLE if CI else [pytest.param(None, id="durable")])])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    return maker(kind_for(request, DURABLE), tmp_path)


@pytest.fixture(params=DURABLE if CI else None)
def make_durable(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    return maker(kind_for(request, DURABLE), tmp_path)


def event(number: int, actor: str = "s/a", event_type: str = "Added") -> PersistedEvent:
    return PersistedEvent("s", actor, event_type, {"number": number}, float(number))


def audit(number: int) -> PersistedAudit:
    return PersistedAudit("s", {"number": number}, float(number))


def letter(number: int, target: str = "s/a") -> PersistedDeadLetter:
    return PersistedDeadLetter("s", target, "int", {"number": number}, False, float(number))


def some_record(number: int, random: Random) -> Record:
    match random.randrange(4):
        case 0:
            return audit(number)
        case 1:
            return letter(number)
        case _:
            return event(number)


def seqs(items: Iterable[Item]) -> list[int]:
    """Return the positions of the records among some items."""
    return [item.seq or 0 for item in items if isinstance(item, RECORDS)]


async def until_caught_up(items: AsyncIterator[Item], head: int | None = None) -> list[Item]:
    """Return the items up to the end, which is at `head` or anywhere, and without what says so."""
    found: list[Item] = []
    async for item in items:
        if isinstance(item, CaughtUp) and head in (None, item.head):
            return found
        if not isinstance(item, (CaughtUp, FellBehind)):
            found.append(item)
    raise AssertionError("it has ended")


async def all_of(backend: PersistenceBackend) -> list[Record]:
    found = [record for kind in KINDS async for record in backend.stream(kind)]
    return sorted(found, key=lambda record: record.seq or 0)


async def follow_until(items: AsyncIterator[Item], last: int) -> list[Item]:
    """Return the records up to a position."""
    found: list[Item] = []
    async for item in items:
        if not isinstance(item, (CaughtUp, FellBehind)):
            found.append(item)
            record = item.record if isinstance(item, Received) else item
            if (record.seq or 0) >= last:
                return found
    raise AssertionError("it has ended")


async def test_the_past_comes_first_then_that_it_is_over_then_what_is_new(make: MakeStore) -> None:
    async with ActorSystem("s", persistence=make(), audit_interval=None) as system:
        await system.backend.append(event(1), event(2))
        async with system.backend.subscribe() as items:
            stored = await all_of(system.backend)
            assert [await anext(items) for _ in range(3)] == [*stored, CaughtUp(2)]
            await system.backend.append(event(3))
            assert await anext(items) == (await all_of(system.backend))[2]
            assert items.position == 3


async def test_the_end_of_an_empty_store_is_told_and_of_one_in_which_nothing_is_selected(
    make: MakeStore,
) -> None:
    async with ActorSystem("s", persistence=make(), audit_interval=None) as system:
        async with system.backend.subscribe() as items:
            assert await anext(items) == CaughtUp(0)
        await system.backend.append(event(1), audit(2))
        async with system.backend.subscribe(types=["Removed"]) as items:
            assert await anext(items) == CaughtUp(2)
            await system.backend.append(event(3))
            await system.backend.append(event(4, event_type="Removed"))
            assert await anext(items) == (await all_of(system.backend))[3]
            assert items.position == 4


async def test_what_is_selected_comes_and_nothing_else(make: MakeStore) -> None:
    records: list[Record] = [
        event(1, "s/a"),
        event(2, "s/b", "Removed"),
        letter(3, "s/b"),
        audit(4),
        event(5, "s/Account/x"),
        event(6, "s/Account/x/child"),
        event(7, "s/Account/y", "Removed"),
    ]
    selections: list[tuple[dict[str, Any], list[int]]] = [
        ({"kinds": KINDS}, [1, 2, 3, 4, 5, 6, 7]),
        ({"kinds": ("audit",)}, [4]),
        ({"kinds": ("dead_letter", "event"), "actor": "s/b"}, [2, 3]),
        ({"types": ["Added"]}, [1, 5, 6]),
        ({"types": ["Added", "Removed"], "actor": "s/b"}, [2]),
        ({"types": []}, []),
        ({"entity": "Account"}, [5, 7]),
        ({"entity": "Account", "after": 5}, [7]),
    ]
    async with ActorSystem("s", persistence=make(), audit_interval=None) as system:
        backend = system.backend
        for is_live in (False, True):
            before = backend.last_seq
            async with contextlib.AsyncExitStack() as stack:
                followed = []
                for options, expected in selections:
                    start = before + options.get("after", 0)
                    items = backend.subscribe(**{**options, "after": start})
                    followed.append((await stack.enter_async_context(items), expected))
                    if is_live and start == before:
                        assert await anext(items) == CaughtUp(before)
                await backend.append(*records)
                for items, expected in followed:
                    found = await until_caught_up(items) if not is_live else []
                    while len(found) < len(expected):
                        found.append(await anext(items))
                    assert [seq - before for seq in seqs(found)] == expected


async def test_what_retention_hides_is_followed_all_the_same(make: MakeStore) -> None:
    backend = make()
    async with backend:
        await backend.append(*map(event, range(1, 6)))
    backend._retention = RetentionPolicy(max_records=1)
    async with backend, backend.subscribe() as items:
        assert len((await backend.read("event")).records) == 1
        found = await until_caught_up(items)
        assert seqs(found) == [1, 2, 3, 4, 5]


async def test_each_record_comes_once_whenever_somebody_begins_to_follow(make: MakeStore) -> None:
    """Readers begin at any step of appends, from any position, and read at any speed."""
    random = Random(17)
    async with ActorSystem("s", persistence=make(), audit_interval=None) as system:
        backend, seen, total = system.backend, {}, 60

        async def append() -> None:
            number = 0
            while number < total:
                count = random.choice([1, 1, 2, 5])
                await backend.append(
                    *(some_record(number + n, random) for n in range(1, count + 1))
                )
                number += count
                for _ in range(random.choice([0, 0, 1, 10])):
                    await checkpoint()

        async def follow(reader: int) -> None:
            for _ in range(random.randint(0, 200)):
                await checkpoint()
            after = random.choice([0, backend.last_seq, random.randint(0, backend.last_seq)])
            async with backend.subscribe(after=after, kinds=KINDS) as items:
                found: list[Item] = []
                while len(found) < total - after:
                    item = await anext(items)
                    if not isinstance(item, (CaughtUp, FellBehind)):
                        found.append(item)
                    for _ in range(random.choice([0, 0, 3])):
                        await checkpoint()
            seen[reader] = (after, found)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for reader in range(10):
                    tasks.start_soon(follow, reader)
                await append()
        stored = await all_of(backend)
        for after, found in seen.values():
            assert found[: len(stored)] == stored[after : after + len(found)]
            assert len(found) >= total - after


async def test_a_reader_follows_what_another_writes(make_durable: MakeStore) -> None:
    random, total = Random(4), 40
    writer = make_durable()
    async with ActorSystem("s", persistence=writer, audit_interval=None):
        await writer.append(event(1))
        reader = make_durable().reader()
        async with reader, reader.subscribe(kinds=KINDS) as items:
            assert await until_caught_up(items) == await all_of(writer)

            async def append() -> None:
                for number in range(2, total + 1):
                    await writer.append(some_record(number, random))
                    for _ in range(random.choice([0, 1, 20])):
                        await checkpoint()

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(append)
                    found = await follow_until(items, total)
            assert found == (await all_of(writer))[1:]


async def test_a_slow_reader_reads_pages_again_and_is_told_so(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_commits, "MAX_RECENT_RECORDS", 100)
    async with ActorSystem("s", persistence=make(), audit_interval=None) as system:
        backend = system.backend
        async with backend.subscribe() as items:
            assert await anext(items) == CaughtUp(0)
            count = MAX_PAGE_RECORDS + 500
            for start in range(0, count, 500):
                await backend.append(*map(event, range(start + 1, start + 501)))
            assert await anext(items) == FellBehind(0)
            found = await until_caught_up(items, count)
            assert seqs(found) == list(range(1, count + 1))


class Outrun:
    """Reads a backend for a subscription; of its second page something comes in front."""

    #: nothing but a commit is waited for
    poll_interval = None

    def __init__(self, backend: PersistenceBackend, meanwhile: Callable[[], Awaitable[object]]):
        self._backend = backend
        self._meanwhile = meanwhile
        self.pages = 0

    @property
    def commits(self) -> CommitFeed:
        return self._backend.commits

    async def execute(self, request: Request[ReplyT]) -> ReplyT:
        page = await self._backend.execute(request)
        self.pages += 1
        if self.pages == 2:  # the first says what is stored, and this one that it is the end
            await self._meanwhile()
        return page


@pytest.mark.parametrize("is_overtaken", [False, True], ids=["known", "overtaken"])
async def test_what_is_committed_while_a_page_is_on_its_way_is_not_waited_for(
    make: MakeStore, is_overtaken: bool
) -> None:
    backend = make()

    async def append() -> None:
        await backend.append(event(1))
        if is_overtaken:  # what was committed here is not what the store holds
            backend.commits.overtaken()

    async with ActorSystem("s", persistence=backend, audit_interval=None):
        outrun = Outrun(backend, append)
        async with Subscription(outrun, Selection(KINDS)) as items:
            with anyio.fail_after(60):
                assert seqs(await follow_until(items, 1)) == [1]
    assert outrun.pages == 2 + is_overtaken


async def test_what_was_in_doubt_comes_once_it_is_settled(make: MakeStore) -> None:
    """An append is done, but its caller is told that it failed: what follows settles that."""
    faulty = FaultyPersistence(make())
    async with ActorSystem("s", persistence=faulty, audit_interval=None):
        await faulty.append(event(1))
        async with faulty.subscribe() as items:
            assert len(await until_caught_up(items)) == 1
            faulty.fail_next("append", after=True)
            with pytest.raises(StoreError):
                await faulty.append(event(2), event(3))
            await faulty.append(event(4))
            last = faulty.last_seq
            with anyio.fail_after(60):
                found = await follow_until(items, last)
        assert found == (await all_of(faulty))[1:]


async def test_a_store_that_fails_is_read_again(make: MakeStore) -> None:
    faulty = FaultyPersistence(make())
    async with ActorSystem("s", persistence=faulty, audit_interval=None):
        await faulty.append(*map(event, range(1, 4)))
        faulty.fail_next("read", times=3)
        async with faulty.subscribe() as items:
            with anyio.fail_after(60):
                assert seqs(await until_caught_up(items)) == [1, 2, 3]


async def test_any_number_of_tasks_follow_one_reader(make_durable: MakeStore) -> None:
    writer, found = make_durable(), []

    async def follow(reader: PersistenceBackend) -> None:
        async with reader.subscribe() as items:
            found.append(seqs(await follow_until(items, 30)))

    async with ActorSystem("s", persistence=writer, audit_interval=None):
        await writer.append(event(1))
        async with make_durable().reader() as reader:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    for number in range(2, 31):
                        tasks.start_soon(follow, reader)
                        await writer.append(event(number))
    assert found == [list(range(1, 31))] * 29


class CountedReads:
    """Reads a backend for a subscription, and counts by whom it is read."""

    def __init__(self, backend: PersistenceBackend, reads: Counter[int], number: int) -> None:
        self._backend = backend
        self._reads = reads
        self._number = number

    @property
    def commits(self) -> CommitFeed:
        return self._backend.commits

    @property
    def poll_interval(self) -> float | None:
        return self._backend.poll_interval

    async def execute(self, request: Request[ReplyT]) -> ReplyT:
        self._reads[self._number] += 1
        return await self._backend.execute(request)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await anyio.sleep(0.001)


async def test_of_all_who_follow_a_reader_and_are_at_its_end_one_looks_and_tells_the_others(
    make_durable: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "POLL_INTERVAL", 0.001)
    number_of_followers = 20
    reads: Counter[int] = Counter()
    found: dict[int, list[int]] = {number: [] for number in range(number_of_followers)}
    scopes = {number: anyio.CancelScope() for number in found}

    async def follow(reader: PersistenceBackend, number: int) -> None:
        counted = CountedReads(reader, reads, number)
        with scopes[number]:
            async with Subscription(counted, Selection(KINDS)) as items:
                async for item in items:
                    found[number] += seqs([item])

    def have_found_all() -> bool:
        return all(each == list(range(1, writer.last_seq + 1)) for each in found.values())

    writer = make_durable()
    async with ActorSystem("s", persistence=writer, audit_interval=None):
        await writer.append(event(1))
        async with make_durable().reader() as reader, anyio.create_task_group() as tasks:
            for number in found:
                tasks.start_soon(follow, reader, number)
            with anyio.fail_after(60):
                while found:
                    await until(have_found_all)
                    looker = await only_one_that_reads(reads)
                    scopes[looker].cancel()
                    del found[looker]
                    if len(found) % 5 == 0:
                        await writer.append(event(writer.last_seq + 1))


async def only_one_that_reads(reads: Counter[int]) -> int:
    """Wait until one has read often, and meanwhile no other; return which one."""
    while True:
        # Those who have just reached the end may look once more.
        reads.clear()
        await until(lambda: reads.total() >= 20)
        if len(reads) == 1:
            return next(iter(reads))


async def test_who_writes_without_a_host_is_not_kept_off_by_who_follows(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "POLL_INTERVAL", 0)
    monkeypatch.setattr(base, "WRITER_POLL_INTERVAL", 0)
    found: list[Item] = []

    async def follow(items: AsyncIterator[Item]) -> None:
        found.extend(await follow_until(items, 30))

    async with make() as backend, backend.subscribe() as items:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow, items)
                for number in range(1, 31):
                    await backend.append(event(number))
                    await checkpoint()
    assert seqs(found) == list(range(1, 31))


async def test_a_reader_goes_on_across_compactions_and_recoveries(make_durable: MakeStore) -> None:
    writer = make_durable()
    async with ActorSystem("s", persistence=writer, audit_interval=None):
        await writer.append(event(1))
        async with make_durable().reader() as reader, reader.subscribe() as items:
            found = await until_caught_up(items)
            for number in range(2, 61):
                await writer.append(event(number))
                if number % 20 == 0:
                    await writer.compact(RetentionPolicy(max_records=5))
                elif number % 20 == 10:
                    await writer.recover()
                if number % 3 == 0:
                    with anyio.fail_after(60):
                        found += await follow_until(items, number)
        assert seqs(found) == list(range(1, 61))


async def test_events_come_decoded_and_one_that_cannot_be_is_raised_once(make: MakeStore) -> None:
    def decode(stored: PersistedEvent) -> list[int]:
        number = stored.payload["number"]
        if number == 3:
            raise ValueError("no such number")
        return [number] * (number % 3)

    async with ActorSystem("s", persistence=make(), audit_interval=None) as system:
        backend = system.backend
        await backend.append(*map(event, range(1, 6)))
        stored = [record async for record in backend.stream("event")]
        async with backend.subscribe(decode=decode) as items:
            for expected in (1, 2, 2):
                received = await anext(items)
                assert received == Received(expected, stored[expected - 1])
            with pytest.raises(ValueError, match="no such number"):
                await anext(items)
            assert [await anext(items) for _ in range(4)] == [
                Received(4, stored[3]),
                Received(5, stored[4]),
                Received(5, stored[4]),
                CaughtUp(5),
            ]


async def test_what_is_at_hand_comes_in_batches_and_an_error_behind_it(make: MakeStore) -> None:
    def decode(stored: PersistedEvent) -> list[int]:
        if stored.payload["number"] == 3:
            raise ValueError("no such number")
        return [stored.payload["number"]]

    async with ActorSystem("s", persistence=make(), audit_interval=None) as system:
        await system.backend.append(*map(event, range(1, 6)))
        async with system.backend.subscribe(decode=decode) as items:

            async def events(limit: int) -> list[Any]:
                batch = await items.batch(limit)
                return [item.event if isinstance(item, Received) else item for item in batch]

            assert await events(1) == [1]
            assert await events(10) == [2]
            with pytest.raises(ValueError, match="no such number"):
                await items.batch(10)
            assert await events(10) == [4, 5, CaughtUp(5)]


async def test_it_ends_when_the_system_stops_with_all_that_was_stored(make: MakeStore) -> None:
    found: list[Item] = []

    async def follow(items: AsyncIterator[Item]) -> None:
        found.extend([item async for item in items])

    backend = make()
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(60):
            async with ActorSystem("s", persistence=backend, audit_interval=None):
                items = await backend.subscribe().__aenter__()
                tasks.start_soon(follow, items)
                await backend.append(event(1))
    assert [item.seq for item in found if isinstance(item, PersistedEvent)] == [1]


@pytest.mark.parametrize("length", [3, 5], ids=["of the same length", "longer"])
async def test_a_reader_of_a_store_that_was_made_anew_is_told_so(
    make_durable: MakeStore, tmp_path: Path, length: int
) -> None:
    first = make_durable()
    async with first:
        await first.append(*map(event, range(1, 4)))
    reader = make_durable().reader()
    async with reader, reader.subscribe() as items:
        assert len(await until_caught_up(items)) == 3
        await make_anew(first, tmp_path)
        async with make_durable() as second:
            await second.append(*map(event, range(11, 11 + length)))
        with anyio.fail_after(60), pytest.raises((StoreReplaced, StoreMoved)):
            await anext(items)


async def make_anew(store: PersistenceBackend, path: Path) -> None:
    """Remove a store and all that is beside it."""
    if isinstance(store, RedisStreamsPersistence):
        with Redis.from_url(store.config.url) as admin:
            admin.delete(*store.config.keys.everything)
        return
    if isinstance(store, PostgresPersistence):
        settings = store.store.settings
        with psycopg.connect(settings.conninfo) as connection:
            for table in ("events", "systems"):
                statement = f"DELETE FROM {settings.schema}.{table} WHERE system_id = %s"
                connection.execute(statement.encode(), (settings.system_id,))
        return
    for file in path.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()


@pytest.mark.parametrize(
    "options",
    [
        {"after": -1},
        {"after": "1"},
        {"kinds": ()},
        {"kinds": ("events",)},
        {"types": ["Added"], "kinds": ("audit",)},
        {"actor": 3},
        {"actor": "s/a", "kinds": KINDS},
        {"entity": 3},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        InMemoryPersistence().subscribe(**options)


async def test_a_position_after_the_end_is_refused(make: MakeStore) -> None:
    backend = make()
    async with backend:
        await backend.append(event(1))
        async with backend.subscribe(after=2) as items:
            with pytest.raises(StoreReplaced):
                await anext(items)
