"""A bank under random commands and faults keeps what it acknowledged, and makes up nothing.

Each seed is a few lives of one store: clients command three accounts, which move money between each
other, while the store fails, hangs and is compacted, and accounts crash, are cancelled and go to
sleep. They are actors or entities, with snapshots in one life and without in the next. What is
stored in the end is compared with what was acknowledged; each reply, at the moment when it is
given, with what is stored; and each snapshot with the whole history. ``PAPYRA_BANK_SEEDS`` says how
many seeds each store gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from redis import Redis

from papyra import ActorRef, ActorSystem, Decision, Failure, OneForOne
from papyra._runtime.cell import Cell
from papyra.entity import EntityRef
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.exceptions import PapyraError, PersistenceError
from papyra.output_gate import OutputGate
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.redis import RedisStreamsPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.retention import RetentionPolicy
from papyra.ref import Ask
from papyra.testing import Fail, FaultyPersistence, InjectedFault, Operation, check_history
from papyra.testing._redis_server import new_store
from papyra.testing.fault_rules import Rule
from tests.conftest import event_loops
from tests.extent import count

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio", "trio")

SEEDS = count("PAPYRA_BANK_SEEDS", 4, 10)
NAMES = ("ann", "bob", "cid")


class Added(msgspec.Struct, frozen=True):
    key: str
    amount: int
    #: the account it comes from; empty for what is put in
    source: str = ""


class Taken(msgspec.Struct, frozen=True):
    key: str
    amount: int


class State(msgspec.Struct, frozen=True):
    amount: int = 0
    keys: tuple[str, ...] = ()


class Told(msgspec.Struct, frozen=True):
    """What an account says of itself."""

    name: str
    revision: int
    state: State


class Add(msgspec.Struct, frozen=True):
    keys: tuple[str, ...]
    amount: int
    way: str = "nowait"
    then: str = ""
    source: str = ""


class Move(msgspec.Struct, frozen=True):
    key: str
    amount: int
    target: ActorRef
    way: str
    send: str


class Look(msgspec.Struct, frozen=True):
    pass


class Crash(Exception):
    pass


class CrashAndResume(Crash):
    pass


class CrashAndStop(Crash):
    pass


class Refused(Exception):
    pass


CRASHES = {"restart": Crash, "resume": CrashAndResume, "stop": CrashAndStop}
WAYS = ("persist", "nowait", "nowait", "one by one", "impatient", "careless")
THEN = ("", "", "", *CRASHES, "leave", "sleep", "sleep", "cancel", "yield")


class Account(EventSourced[State]):
    """Its commands say how it persists, and what happens to it then."""

    entity_name = "account"
    events = (Added, Taken)

    def initial_state(self) -> State:
        return State()

    def apply(self, state: State, event: Added | Taken) -> State:
        change = event.amount if isinstance(event, Added) else -event.amount
        return State(state.amount + change, (*state.keys, event.key))

    async def receive(self, message: Any) -> Any:
        match message:
            case Add(keys) if not set(keys) & set(self.state.keys):
                events = [Added(key, message.amount, message.source) for key in keys]
                await self.keep(message.way, *events)
                await self.then(message.then)
            case Move(key, amount):
                if amount > self.state.amount:
                    return Failure(Refused())
                await self.keep(message.way, Taken(key, amount))
                await self.send(message, Add((key,), amount, source=self.name))
        return Told(self.name, self.revision, self.state)

    @property
    def name(self) -> str:
        return self.context.self_ref.address.name.rpartition("/")[2]

    async def keep(self, way: str, *events: object) -> None:
        match way:
            case "nowait":
                self.persist_nowait(*events)
            case "one by one":
                for event in events:
                    self.persist_nowait(event)
                    await checkpoint()
            case "impatient":
                with anyio.move_on_after(0):
                    await self.persist(*events)
            case "careless":
                try:
                    await self.persist(*events)
                except PersistenceError:
                    await checkpoint()
            case _:
                await self.persist(*events)

    async def then(self, what: str) -> None:
        match what:
            case "restart" | "resume" | "stop":
                raise CRASHES[what]
            case "leave":
                self.context.stop()
            case "sleep" if isinstance(self.context.self_ref, EntityRef):
                self.context.passivate()
            case "cancel":
                _cancel_task(self.context.self_ref)
            case "yield":
                await _wait(5)

    async def send(self, move: Move, message: Add) -> None:
        assert self.revision  # known, or there is nothing to be sent
        match move.send:
            case "ask":
                await move.target.ask(message, timeout=0.02)
            case "tell":
                await move.target.tell(message)
            case _:
                move.target.tell_nowait(message)


class PhotographedAccount(Account):
    snapshots = SnapshotPolicy(every=3)


class SleepyAccount(PhotographedAccount):
    idle_timeout = 0.001


async def _wait(turns: int) -> None:
    for _ in range(turns):
        await checkpoint()


def _cancel_task(ref: ActorRef) -> None:
    """Cancel the task of an actor as asyncio does it, where there is asyncio."""
    if (cell := _cell_of(ref)) and isinstance(cell.lifecycle.task, asyncio.Task):
        cell.lifecycle.task.cancel()


def _cell_of(ref: ActorRef) -> Cell | None:
    """Return what runs behind a ref; nothing does behind that of an entity that sleeps."""
    cell = ref._cell
    return cell if isinstance(cell, Cell) else None


def _next_of_a_history(fault: Fail) -> Rule[Fail]:
    """Return the rule that injects `fault` into the next commit that is part of a history."""

    def is_one(operation: Operation) -> bool:
        return any(record.revision is not None for record in operation.records)

    return Rule(fault, "append", predicate=is_one, times=1)


#: Looks into the store past its backend: the stored events, each with the name of its account.
Stored: TypeAlias = Callable[[], list[tuple[str, str]]]


class Bank:
    """One store, and what was acknowledged of it."""

    def __init__(
        self, seed: int, backend: Callable[[Random], PersistenceBackend], stored: Stored
    ) -> None:
        self.random = Random(seed)
        self._backend = backend
        self._stored = stored
        self._commands = 0
        self.acknowledged: set[tuple[str, str]] = set()
        self.replies = 0
        #: whether its accounts are entities
        self._has_entities = seed % 4 > 0
        #: what they are in this life
        self._class: type[Account] = Account
        self.passivations = 0

    def check_reply(self, reply: object) -> None:
        """Fail if a reply that is being given tells of what is not stored."""
        if isinstance(reply, Told):
            self.replies += 1
            keys = [key for name, key in self._stored() if name == reply.name]
            assert tuple(keys[: reply.revision]) == reply.state.keys

    async def live(self) -> None:
        """Open the store, use it in a bad time, and close it."""
        store = FaultyPersistence(self._backend(self.random))
        self._class = self.random.choice([Account, PhotographedAccount, SleepyAccount])
        supervision = OneForOne(
            on={CrashAndResume: Decision.RESUME, CrashAndStop: Decision.STOP}, max_restarts=10_000
        )
        shutdown_timeout = self.random.choice([0.05, 5.0])
        if isinstance(store.wrapped, RedisStreamsPersistence):
            shutdown_timeout = 5.0  # cut off as it disconnects, it would leave that to Python
        with anyio.CancelScope() as scope:
            async with ActorSystem(
                "bank",
                persistence=store,
                supervision=supervision,
                shutdown_timeout=shutdown_timeout,
                audit_interval=None,
            ) as system:
                try:
                    async with anyio.create_task_group() as tasks:
                        for _ in range(self.random.randint(1, 5)):
                            tasks.start_soon(self._command, system)
                        tasks.start_soon(self._disturb, system, store)
                        if self.random.random() < 0.15:
                            await _wait(self.random.randint(0, 100))
                            scope.cancel()
                finally:
                    store.clear()
                    self.passivations += system.entities.passivations

    async def _command(self, system: ActorSystem) -> None:
        for _ in range(self.random.randint(3, 20)):
            account = self._account(system, self.random.choice(NAMES))
            target = self._account(system, self.random.choice(NAMES))
            timeout = self.random.choice([None, None, None, 0.0, 0.01])
            try:
                reply = await account.ask(self._any_command(target), timeout)
            except (PapyraError, Crash, Refused):
                await checkpoint()
            else:
                self.acknowledged |= {(reply.name, key) for key in reply.state.keys}

    def _account(self, system: ActorSystem, name: str) -> ActorRef:
        if self._has_entities:
            return system.entity(self._class, name)
        return system.find(f"bank/{name}") or system.spawn(self._class, name=name)

    def _address(self, name: str) -> str:
        return f"bank/account/{name}" if self._has_entities else f"bank/{name}"

    def _any_command(self, target: ActorRef) -> object:
        random = self.random
        self._commands += 1
        key = f"k{self._commands}"
        match random.choices(("add", "move", "look"), (5, 3, 2))[0]:
            case "add":
                keys = tuple(f"{key}.{n}" for n in range(random.choice([1, 1, 1, 3])))
                return Add(keys, random.randint(1, 9), random.choice(WAYS), random.choice(THEN))
            case "move":
                send = random.choice(["ask", "tell", "tell_nowait"])
                way = random.choice(["persist", "nowait"])
                return Move(key, random.randint(1, 5), target, way, send)
            case _:
                return Look()

    async def _disturb(self, system: ActorSystem, store: FaultyPersistence) -> None:
        random = self.random
        for _ in range(random.randint(0, 20)):
            await _wait(random.randint(0, 20))
            match random.choice(["fail", "fail", "lose", "read", "hang", "compact", "cancel"]):
                case "fail":
                    store.use(_next_of_a_history(Fail(InjectedFault("it failed"))))
                case "lose":
                    store.use(_next_of_a_history(Fail(InjectedFault("no answer"), after=True)))
                case "read":
                    store.fail_next("read")
                case "hang":
                    store.hang("append", kind="event")
                    await _wait(random.randint(0, 40))
                    if random.random() < 0.5:
                        store.use(_next_of_a_history(Fail(InjectedFault("it failed"))))
                        await _wait(random.randint(0, 10))
                    store.release()
                case "compact":
                    await system.backend.compact(RetentionPolicy(max_records=random.randint(1, 9)))
                case _:
                    ref = system.find(self._address(random.choice(NAMES)))
                    if ref and (cell := _cell_of(ref)):
                        cell.cancel()
        store.clear()

    async def check(self) -> None:
        """Fail unless the store holds what it has to, and the accounts say the same."""
        histories: dict[str, list[PersistedEvent]] = {}
        self._class = PhotographedAccount
        async with ActorSystem("bank", persistence=self._backend(self.random)) as system:
            for name in NAMES:
                page = await system.backend.read_history(self._address(name), limit=10_000)
                histories[name] = events = list(page.events)
                assert [event.revision for event in events] == list(range(1, len(events) + 1))
                keys = [event.payload["key"] for event in events]
                told: Told = await self._account(system, name).ask(Look())
                assert (told.revision, list(told.state.keys)) == (len(events), keys)
                assert max(Counter(keys).values(), default=1) == 1
                assert {key for known, key in self.acknowledged if known == name} <= set(keys)
            if any(histories.values()):
                await check_history(system.backend, PhotographedAccount)
        self._check_sum(histories)

    def _check_sum(self, histories: dict[str, list[PersistedEvent]]) -> None:
        events = [(name, event) for name in NAMES for event in histories[name]]
        taken = {
            event.payload["key"]: (name, event)
            for name, event in events
            if event.event_type == Taken.__name__
        }
        added = [event for _, event in events if event.event_type == Added.__name__]
        balance = sum(event.payload["amount"] for event in added)
        balance -= sum(event.payload["amount"] for _, event in taken.values())
        on_its_way = dict(taken)
        for event in (event for event in added if event.payload["source"]):
            source, before = on_its_way.pop(event.payload["key"])
            assert source == event.payload["source"]
            assert before.payload["amount"] == event.payload["amount"]
            assert (before.seq or 0) < (event.seq or 0)
        put_in = sum(event.payload["amount"] for event in added if not event.payload["source"])
        lost_on_its_way = sum(event.payload["amount"] for _, event in on_its_way.values())
        assert balance + lost_on_its_way == put_in


_LINE = re.compile(rb'"bank/(?:account/)?(\w+)".*"key":"([^"]+)"')


def _of_accounts(lines: Iterable[bytes]) -> list[tuple[str, str]]:
    """Return the name and the key of each line that is an event of an account."""
    found = [match.groups() for line in lines if (match := _LINE.search(line))]
    return [(name.decode(), key.decode()) for name, key in found]


def _in_files(directory: Path) -> Stored:
    def files() -> dict[Path, int]:
        return {file: file.stat().st_ino for file in sorted(directory.glob("*.ndjson"))}

    def lines() -> list[bytes]:
        while True:
            with contextlib.suppress(FileNotFoundError):
                before = files()
                found = [line for file in before for line in file.read_bytes().split(b"\n")]
                if files() == before:  # no compaction has replaced any
                    return found

    return lambda: _of_accounts(lines())


def _memory(directory: Path) -> tuple[Callable[[Random], PersistenceBackend], Stored]:
    del directory
    store = InMemoryPersistence()

    def stored() -> list[tuple[str, str]]:
        return [
            (event.actor_address.rpartition("/")[2], event.payload["key"])
            for event in store.events
            if event.revision is not None
        ]

    return lambda _: store, stored


def _json(directory: Path) -> tuple[Callable[[Random], PersistenceBackend], Stored]:
    path = directory / "events.ndjson"
    return lambda _: JsonFilePersistence(path, fsync="no"), _in_files(directory)


def _rotating(directory: Path) -> tuple[Callable[[Random], PersistenceBackend], Stored]:
    def backend(random: Random) -> PersistenceBackend:
        records = random.choice([5, 20, 60])
        return RotatingFilePersistence(directory, max_segment_records=records, fsync="no")

    return backend, _in_files(directory)


def _redis(directory: Path) -> tuple[Callable[[Random], PersistenceBackend], Stored]:
    config = new_store(lambda: directory, {}).config  # type: ignore[attr-defined]
    client = Redis.from_url(config.url)

    def stored() -> list[tuple[str, str]]:
        entries: Any = client.xrange(config.keys.streams["event"])
        return _of_accounts(b" ".join(fields.values()) for _, fields in entries)

    return lambda _: RedisStreamsPersistence(config), stored


@pytest.fixture
def replies_are_checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Bank]]:
    """Have every reply checked at the moment when it is given, by the last of these banks."""
    banks: list[Bank] = []
    wrong: list[BaseException] = []
    resolve = Ask.resolve

    def checked(ask: Ask, reply: object) -> None:
        try:
            banks[-1].check_reply(reply)
        except BaseException as error:
            wrong.append(error)
        resolve(ask, reply)

    monkeypatch.setattr(Ask, "resolve", checked)
    yield banks
    for error in wrong:
        raise error


@pytest.mark.parametrize("kind", [_memory, _json, _rotating, _redis])
async def test_a_bank_keeps_what_it_acknowledged_and_tells_of_nothing_before_it_is_stored(
    kind: Callable[[Path], tuple[Callable[[Random], PersistenceBackend], Stored]],
    tmp_path: Path,
    replies_are_checked: list[Bank],
) -> None:
    shut = OutputGate.shut
    for seed in range(SEEDS):
        directory = tmp_path / str(seed)
        directory.mkdir()
        bank = Bank(seed, *kind(directory))
        replies_are_checked.append(bank)
        with anyio.fail_after(60):
            for _ in range(bank.random.randint(1, 4)):
                await bank.live()
                assert OutputGate.shut == shut
            await bank.check()
    assert sum(bank.replies for bank in replies_are_checked) > SEEDS
    assert sum(bank.passivations for bank in replies_are_checked) > 0
