"""The rows about event-sourced actors: to wake one, to replay a history, and to persist."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from redis.asyncio import Redis

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced
from papyra.persistence import Append, PersistedEvent, PersistenceActor
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.benchmarks import redis
from tests.benchmarks.table import Loop, Options, Result, Row, compare, times_as_long

__all__ = ("HISTORY_ROWS",)

MakeStore = Callable[[Path], PersistenceBackend]

MEMORY: MakeStore = lambda _: InMemoryPersistence()  # noqa: E731
JSON: MakeStore = lambda path: JsonFilePersistence(path / "store", fsync="no")  # noqa: E731
ROTATING: MakeStore = lambda path: RotatingFilePersistence(path / "store", fsync="no")  # noqa: E731
SYNCED: MakeStore = lambda path: JsonFilePersistence(path / "store")  # noqa: E731


class Deposited(msgspec.Struct, frozen=True):
    amount: int


class StoredDeposit(msgspec.Struct):
    payload: Deposited


class Balance(msgspec.Struct, frozen=True):
    amount: int = 0


class Account(EventSourced[Balance]):
    events = (Deposited,)

    def initial_state(self) -> Balance:
        return Balance()

    def apply(self, state: Balance, event: Deposited) -> Balance:
        return Balance(state.amount + event.amount)

    async def receive(self, message: Any) -> Any:
        if message == "look":
            return self.state.amount
        await self.persist(Deposited(1))
        return self.state.amount


class Pipelined(Account):
    async def receive(self, message: Any) -> Any:
        if message == "look":
            return self.state.amount
        self.persist_nowait(Deposited(1))
        return self.state.amount


class Appending(Account):
    """Stores an event for each message, as a plain actor would."""

    async def receive(self, message: Any) -> Any:
        await self.context.persist(("Deposited", {"amount": 1}))


def step(actor: str, revision: int) -> PersistedEvent:
    payload = {"amount": 1}
    return PersistedEvent("bank", f"bank/{actor}", "Deposited", payload, 1.7e9, revision=revision)


async def fill(store: PersistenceBackend, records: int, actors: int, own: int = 0) -> None:
    """Append steps of many actors by turns, and at even distances `own` of one that is rare."""
    every = records // own if own else records + 1
    async with store:
        batch: list[PersistedEvent] = []
        for number in range(records):
            batch.append(step(f"a{number % actors}", number // actors + 1))
            if number % every == every - 1:
                batch.append(step("rare", number // every + 1))
            if len(batch) >= 1_000 or number + 1 == records:
                await store.append(*batch)
                batch.clear()


async def filled(make: MakeStore, path: Path, records: int, own: int) -> PersistenceBackend:
    """Return a store of so many records, opened anew if it is one that can be."""
    store = make(path)
    await fill(store, records, max(1, records // 20), own)
    return make(path) if store.capabilities.durable else store


async def wake(store: PersistenceBackend, times: int) -> float:
    """Wake the actor that is rare, again and again."""
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        await store.read_history("bank/nobody")
        started = time.perf_counter()
        for _ in range(times):
            account = system.spawn(Account, name="rare")
            assert await account.ask("look") == 20
            await account.stop()
        return time.perf_counter() - started


async def wake_among(make: MakeStore, records: int, times: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        return await wake(await filled(make, Path(directory), records, 20), times)


def waking(make: MakeStore) -> Callable[[Loop, Options], Result]:
    """Wake one actor of 20 events, in a large store and in a small one."""

    def measure(loop: Loop, options: Options) -> Result:
        large, small = options.count(1_000_000), options.count(10_000)
        return times_as_long(
            options,
            50,
            lambda: loop.run(wake_among, make, small, 50),
            lambda: loop.run(wake_among, make, large, 50),
        )

    return measure


@functools.cache
def filled_redis(records: int) -> RedisStreamsConfig:
    config = redis.new_config()
    actors = max(1, records // 20)
    anyio.run(fill, RedisStreamsPersistence(config), records, actors, 20)
    return config


def waking_on_redis(loop: Loop, options: Options) -> Result:
    """Wake one actor of 20 events, in a large store and in a small one."""

    async def wake_among_others(records: int) -> float:
        return await wake(RedisStreamsPersistence(filled_redis_of[records]), 50)

    large, small = options.count(1_000_000), options.count(10_000)
    filled_redis_of = {records: filled_redis(records) for records in (large, small)}
    return times_as_long(
        options,
        50,
        lambda: loop.run(wake_among_others, small),
        lambda: loop.run(wake_among_others, large),
    )


async def wake_all(path: Path, actors: int) -> float:
    """Wake actors of 10 events, all at once."""
    store = ROTATING(path)
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        started = time.perf_counter()
        accounts = [system.spawn(Account, name=f"a{number}") for number in range(actors)]
        for account in accounts:
            assert await account.ask("look") == 10
        return time.perf_counter() - started


async def read_all(path: Path, records: int) -> float:
    """Read what they are made of in one pass."""
    async with ROTATING(path) as store:
        started = time.perf_counter()
        found = [event async for event in store.stream("event") if event.revision is not None]
        assert len(found) == records
        return time.perf_counter() - started


def waking_many(loop: Loop, options: Options) -> Result:
    actors = options.count(1_000)
    with tempfile.TemporaryDirectory() as directory:
        anyio.run(fill, ROTATING(Path(directory)), 10 * actors, actors)
        return times_as_long(
            options,
            actors,
            lambda: loop.run(read_all, Path(directory), 10 * actors),
            lambda: loop.run(wake_all, Path(directory), actors),
        )


def replaying(make: MakeStore, *, with_library: bool = False) -> Callable[[Loop, Options], Result]:
    """Replay a long history, against decoding and applying the same events in a bare loop.

    Or against the library `eventsourcing`, which replays the same.
    """

    async def replay(events: int) -> float:
        with tempfile.TemporaryDirectory() as directory:
            store = make(Path(directory))
            await fill(store, events, 1)
            async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
                await store.read_history("bank/a0", limit=1)
                started = time.perf_counter()
                assert await system.spawn(Account, name="a0").ask("look") == events
                return time.perf_counter() - started

    def bare(events: int) -> float:
        lines = [msgspec.json.encode(Deposited(1)) for _ in range(events)]
        decode, apply = msgspec.json.Decoder(Deposited).decode, Account.apply
        actor, state = object.__new__(Account), Balance()
        started = time.perf_counter()
        for line in lines:
            state = apply(actor, state, decode(line))
        assert state.amount == events
        return time.perf_counter() - started

    def measure(loop: Loop, options: Options) -> Result:
        events = options.count(100_000)
        reference = replay_with_library if with_library else bare
        return compare(options, events, lambda: reference(events), lambda: loop.run(replay, events))

    return measure


async def replay_on_redis(config: RedisStreamsConfig, events: int) -> float:
    store = RedisStreamsPersistence(config)
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        await store.read_history("bank/a0", limit=1)
        started = time.perf_counter()
        assert await system.spawn(Account, name="a0").ask("look") == events
        return time.perf_counter() - started


async def fetch_and_apply(config: RedisStreamsConfig, events: int) -> float:
    """Fetch the events of an actor with redis-py, a page at a time, decode and apply them."""
    decode, apply = msgspec.json.Decoder(StoredDeposit).decode, Account.apply
    actor, state = object.__new__(Account), Balance()
    async with Redis.from_url(config.url) as client:
        key, start, done = config.keys.streams["event"], "-", 0
        started = time.perf_counter()
        while done < events:
            page: list[Any] = await client.xrange(key, start, "+", 1_000) or []
            for _, fields in page:
                state = apply(actor, state, decode(fields[b"record"]).payload)
            start, done = f"({page[-1][0].decode()}", done + len(page)
        seconds = time.perf_counter() - started
    assert state.amount == events
    return seconds


def replaying_on_redis(loop: Loop, options: Options) -> Result:
    events, config = options.count(100_000), redis.new_config()
    anyio.run(fill, RedisStreamsPersistence(config), events, 1)
    return compare(
        options,
        events,
        lambda: redis.bare(fetch_and_apply, config, events),
        lambda: loop.run(replay_on_redis, config, events),
    )


class LibraryAccount(Aggregate):
    """The same with the library `eventsourcing`."""

    def __init__(self) -> None:
        self.amount = 0

    @event("Deposited")
    def deposit(self, amount: int) -> None:
        self.amount += amount


def replay_with_library(events: int) -> float:
    """Replay a history that the library keeps in memory."""
    application: Application[Any] = Application()
    account = LibraryAccount()
    for start in range(0, events, 1_000):
        for _ in range(start, min(start + 1_000, events)):
            account.deposit(1)
        application.save(account)
    started = time.perf_counter()
    found: Any = application.repository.get(account.id)
    seconds = time.perf_counter() - started
    assert found.amount == events
    return seconds


async def persists(count: int) -> float:
    """Ask one event-sourced actor to persist, one time after the other."""
    async with ActorSystem(
        "bank", persistence=InMemoryPersistence(), audit_interval=None
    ) as system:
        account = system.spawn(Account, name="a")
        await account.ask("look")
        started = time.perf_counter()
        for _ in range(count):
            await account.ask("deposit")
        return time.perf_counter() - started


async def appends(count: int) -> float:
    """Ask a persistence actor to append, one time after the other."""
    async with ActorSystem("bank", audit_interval=None) as system:
        backend = InMemoryPersistence()
        ref = system.spawn(PersistenceActor, backend)
        await backend.flush()
        record = PersistedEvent("bank", "bank/a", "Deposited", {"amount": 1}, 1.7e9)
        started = time.perf_counter()
        for _ in range(count):
            await ref.ask(Append(record))
        return time.perf_counter() - started


def persisting(loop: Loop, options: Options) -> Result:
    count = options.count(10_000)
    return compare(
        options, count, lambda: loop.run(appends, count), lambda: loop.run(persists, count)
    )


async def ask_synced(actor: type[Account], actors: int, askers: int, rounds: int) -> float:
    """Ask from many tasks, of one actor or of many, on a file that is synced for each commit."""
    with tempfile.TemporaryDirectory() as directory:
        store = SYNCED(Path(directory))
        async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
            refs = [system.spawn(actor, name=f"a{number}") for number in range(actors)]
            for ref in refs:
                await ref.ask("look" if actor is not Appending else "deposit")

            async def ask(number: int) -> None:
                for _ in range(rounds):
                    await refs[number % actors].ask("deposit")

            started = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for number in range(askers):
                    tasks.start_soon(ask, number)
            return time.perf_counter() - started


def synced(subject: type[Account], actors: int) -> Callable[[Loop, Options], Result]:
    def measure(loop: Loop, options: Options) -> Result:
        rounds = max(2, options.count(1_000) // 100)
        return compare(
            options,
            256 * rounds,
            lambda: loop.run(ask_synced, Appending, 256, 256, rounds),
            lambda: loop.run(ask_synced, subject, actors, 256, rounds),
        )

    return measure


HISTORY_ROWS = [
    Row("wake one actor at 1,000,000, memory", "at 10,000", 2, True, waking(MEMORY)),
    Row("wake one actor at 1,000,000, JSON", "at 10,000", 2, True, waking(JSON)),
    Row("wake one actor at 1,000,000, rotating", "at 10,000", 2, True, waking(ROTATING)),
    Row("wake one actor at 1,000,000, Redis", "at 10,000", 2, True, waking_on_redis),
    Row("wake 1,000 actors of 10, rotating", "one pass over them", 25, True, waking_many),
    Row("replay 100,000 events, memory", "decode and apply", 0.3, False, replaying(MEMORY)),
    Row("replay 100,000 events, JSON file", "decode and apply", 0.2, False, replaying(JSON)),
    Row("replay 100,000 events, Redis", "fetch, decode, apply", 0.3, False, replaying_on_redis),
    Row(
        "replay 100,000 events, in memory",
        "eventsourcing, memory",
        6,
        False,
        replaying(MEMORY, with_library=True),
    ),
    Row("persist, one actor, memory", "hosted ask", 0.5, False, persisting),
    Row("persist_nowait, 256 askers, JSON", "256 that append", 0.6, False, synced(Pipelined, 1)),
    Row("persist, 256 actors, JSON file", "256 that append", 0.6, False, synced(Account, 256)),
]
