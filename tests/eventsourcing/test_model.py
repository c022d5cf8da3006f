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
import sqlite3
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
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.redis import RedisStreamsPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.retention import RetentionPolicy
from papyra.ref import Ask
from papyra.testing import Fail, FaultyPersistence, InjectedFault, Operation, check_history
from papyra.testing._redis_server import new_store
from papyra.testing.fault_rules import Rule
from tests.conftest import event_loops
from tests.extent import count

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

SEEDS = count("PAPYRA_BANK_SEEDS", 2, 10)
NAMES = ("ann", "bob", "cid")


class Added(msgspec.Struct, frozen=True):
    key: str
    amount: int
    #: the account it comes from; empty for what is put in
    source: str = ""


class Taken(msgspec.Struct, frozen=True):
    key: str
    amount: int


OWN_EVENTS = (Added.__name__, Taken.__name__)


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


class Line(msgspec.Struct, frozen=True):
    """An event of an account, as it is stored; of other records, the revision is 0."""

    actor_address: str = ""
    event_type: str = ""
    payload: dict[str, Any] = {}
    revision: int = 0

    @property
    def place(self) -> tuple[str, int]:
        """The name of the account, and the revision."""
        return self.actor_address.rpartition("/")[2], self.revision

    @property
    def key(self) -> str:
        """The key of the command."""
        return str(self.payload["key"])

    @property
    def amount(self) -> int:
        """The amount that was added or taken."""
        return int(self.payload["amount"])


#: Looks into the store past its backend: the events of accounts that are there, in order.
Stored: TypeAlias = Callable[[], list[Line]]


class Bank:
    """One store, and what was acknowledged of it."""

    def __init__(
        self, seed: int, backend: Callable[[Random], PersistenceBackend], stored: Stored
    ) -> None:
        self.random = Random(seed)
        self._backend = backend
        self._stored = stored
        #: every event that was ever seen in the store, as histories get trimmed
        self._book: dict[tuple[str, int], Line] = {}
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
            self._look()
            assert reply.state.keys == tuple(self._keys(reply.name, reply.revision))

    def _look(self) -> None:
        """Write down what is stored, and strike out what was stored and is taken back."""
        last: dict[str, int] = {}
        for line in self._stored():
            name, revision = line.place
            if line.event_type in OWN_EVENTS:  # and no base, which stands for those before it
                self._book[line.place] = line
            last[name] = max(revision, last.get(name, 0))
        for name, revision in tuple(self._book):
            if revision > last.get(name, revision):
                del self._book[name, revision]

    def _keys(self, name: str, revision: int) -> list[str]:
        """Return the keys of an account up to a revision. Raises if one is not stored."""
        return [self._book[name, number].key for number in range(1, revision + 1)]

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
            match random.choice(
                ["fail", "fail", "lose", "read", "hang", *2 * ["compact"], "cancel"]
            ):
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
                    self._look()
                    limit, trims = random.randint(1, 9), random.random() < 0.7
                    policy = RetentionPolicy(max_records=limit, trim_histories=trims)
                    with contextlib.suppress(InjectedFault):  # as it reads, too
                        await system.backend.compact(policy)
                case _:
                    ref = system.find(self._address(random.choice(NAMES)))
                    if ref and (cell := _cell_of(ref)):
                        cell.cancel()
        store.clear()

    async def check(self) -> None:
        """Fail unless the store holds what it has to, and the accounts say the same."""
        self._class = PhotographedAccount
        self._look()
        last: dict[str, int] = {}
        async with ActorSystem("bank", persistence=self._backend(self.random)) as system:
            for name in NAMES:
                told: Told = await self._account(system, name).ask(Look())
                last[name] = told.revision
                keys = self._keys(name, told.revision)
                assert list(told.state.keys) == keys
                assert max(Counter(keys).values(), default=1) == 1
                assert {key for known, key in self.acknowledged if known == name} <= set(keys)
                page = await system.backend.read_history(self._address(name), limit=10_000)
                own = [event for event in page.events if event.event_type in OWN_EVENTS]
                gone = told.revision - len(own)  # trimmed
                revisions = [event.revision for event in own]
                assert revisions == list(range(gone + 1, told.revision + 1))
                assert [event.payload["key"] for event in own] == keys[gone:]
            if any(last.values()):
                await check_history(system.backend, PhotographedAccount)
        self._check_sum(
            [line for line in self._book.values() if line.revision <= last[line.place[0]]]
        )

    def _check_sum(self, lines: list[Line]) -> None:
        """Fail unless all money is on an account, or on its way from one to another."""
        taken = {line.key: line for line in lines if line.event_type == Taken.__name__}
        added = [line for line in lines if line.event_type == Added.__name__]
        balance = sum(line.amount for line in added) - sum(line.amount for line in taken.values())
        on_its_way = dict(taken)
        for line in (line for line in added if line.payload["source"]):
            before = on_its_way.pop(line.key)
            assert before.place[0] == line.payload["source"]
            assert before.amount == line.amount
            assert lines.index(before) < lines.index(line)
        put_in = sum(line.amount for line in added if not line.payload["source"])
        assert balance + sum(line.amount for line in on_its_way.values()) == put_in


def _of_accounts(lines: Iterable[bytes]) -> list[Line]:
    found = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError):  # it is being written
            found.append(msgspec.json.decode(line, type=Line))
    return [line for line in found if line.revision]


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

    def stored() -> list[Line]:
        return [
            Line(event.actor_address, event.event_type, event.payload, event.revision)
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


def _sqlite(directory: Path) -> tuple[Callable[[Random], PersistenceBackend], Stored]:
    path = directory / "events.db"

    def stored() -> list[Line]:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT record FROM events ORDER BY seq").fetchall()
        return _of_accounts(record.encode() for (record,) in rows)

    return lambda _: SQLitePersistence(path, synchronous="off"), stored


def _redis(directory: Path) -> tuple[Callable[[Random], PersistenceBackend], Stored]:
    config = new_store(lambda: directory, {}).config  # type: ignore[attr-defined]
    client = Redis.from_url(config.url)

    def stored() -> list[Line]:
        entries: Any = client.xrange(config.keys.streams["event"])
        return _of_accounts(fields[b"record"] for _, fields in entries)

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


@pytest.mark.parametrize("kind", [_memory, _json, _rotating, _sqlite, _redis])
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
    # Two or three of them may well have none.
    assert sum(bank.passivations for bank in replies_are_checked) >= SEEDS // 10
