"""Run a scenario again and again, each time with a crash at another point."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import anyio

from papyra.eventsourcing.recovery import FIRST_PAUSE
from papyra.persistence import codec
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.store import Batch
from papyra.persistence.messages import EncodedHistory, HistoryPage, ReadHistory
from papyra.persistence.records import KINDS, PersistedEvent, Record
from papyra.ref import ActorRef
from papyra.system import PERSISTENCE_NAME, ActorSystem
from papyra.testing._matchers import actor_of, type_of
from papyra.testing._schedule import ScheduledSystem, SeededDispatcher, run_scheduled
from papyra.testing.clock import ManualClock
from papyra.testing.fault_rules import InjectedFault
from papyra.testing.faulty_persistence import FaultInjector, FaultyPersistence, FaultyStore

logger = logging.getLogger("papyra")

ReplyT = TypeVar("ReplyT")

Where: TypeAlias = Literal["before", "after"]


class Crashed(Exception):
    """The error of an actor that is crashed, and the outcome of a command cut off by a crash."""


@dataclasses.dataclass(frozen=True)
class CrashPoint:
    """A moment of a scenario, and what fails there."""

    number: int
    #: ``"actor"``: it raises, and supervision takes over. ``"store"``: it reports a failure, after
    #: which the record is not there; or is, if the point is after the append. ``"process"``:
    #: everything stops at once, and a new system starts on the same store.
    #: ``"view"``: the database of a projection reports a failure.
    what: Literal["actor", "store", "process", "view"]
    where: Where
    #: the message or the records that it is about
    about: str

    def __str__(self) -> str:
        return f"crash point {self.number}: the {self.what} fails {self.where} {self.about}"


@dataclasses.dataclass
class CrashRun:
    """The outcome of one run, as `check` gets to see it."""

    #: where it crashed; `None` in the first run, which does not
    point: CrashPoint | None
    #: each command, with its reply or with what asking it raised
    outcomes: list[tuple[object, object]]
    #: everything that is stored, oldest first
    facts: Sequence[Record]
    #: the actor that the commands went to
    ref: ActorRef
    #: the system it lives in
    system: ActorSystem
    #: whether this is the look after the last restart, at a system built on the store alone
    restarted: bool

    def events(self, event_type: type | str) -> list[Any]:
        """Return the payloads of the stored events of this type, oldest first."""
        name = event_type if isinstance(event_type, str) else event_type.__name__
        return [
            fact.payload
            for fact in self.facts
            if isinstance(fact, PersistedEvent) and fact.event_type == name
        ]

    @property
    def acknowledged(self) -> list[object]:
        """The commands that got a reply."""
        return [command for command, outcome in self.outcomes if not isinstance(outcome, Exception)]


@dataclasses.dataclass(frozen=True)
class Crashes:
    """The crash points that were tried, and held."""

    points: Sequence[CrashPoint]


class CrashPointFailed(AssertionError):
    """The invariant does not hold after a crash at one point. `__cause__` says what `check` did."""

    def __init__(
        self,
        point: CrashPoint | None,
        facts: Sequence[Record],
        error: Exception,
        function: str = "crash_everywhere",
    ) -> None:
        again = f"\nrun it alone: {function}(..., points=[{point.number}])" if point else ""
        stored = "\n".join(f"    {fact}" for fact in facts) or "    (nothing)"
        super().__init__(
            f"{point or 'without any crash'}: {type(error).__name__}: {error}{again}\n"
            f"stored when it crashed:\n{stored}"
        )
        #: where it crashed; `None` if it did not
        self.point = point
        #: what was stored at that moment, oldest first
        self.facts = tuple(facts)


async def crash_everywhere(
    build: Callable[[ActorSystem], ActorRef | Awaitable[ActorRef]],
    commands: Sequence[object],
    check: Callable[[CrashRun], object],
    *,
    points: Sequence[int] | None = None,
    retry: bool = False,
    persistence: Callable[[], PersistenceBackend] = InMemoryPersistence,
    system_id: str = "papyra",
) -> Crashes:
    """Run a scenario once for each point at which something could fail; check each time.

    ``build(system)`` spawns the actors and returns the one that is asked the `commands`, one after
    the other; nothing fails until it has returned. ``check(run)`` raises, or returns `False`, when
    the invariant is broken. It is called twice in each run: when all commands are through, and once
    more after a restart, when the actors have only the store to go by. Both may be coroutine
    functions.

    The points are: before and after each message of each actor, where the actor raises; before and
    after each write of the store, snapshots included, and before it reads a history or a snapshot
    for a recovery, where it reports a failure; and each of these again, where the whole process
    dies. The run after the last point meets no crash any more, and ends this. All runs follow one
    schedule (see `explore`), so that numbers mean the same each time. An entity that is passivated
    by a command is recovered for the next one.

    A command that fails is not repeated; with `retry`, it is asked once more, as a client would
    that does not know what became of it. After a recovery that failed, so much time passes before
    that it is tried again. `persistence` makes the store, a fresh one for each run.
    `points` are the numbers of those to try, instead of all. Raises `CrashPointFailed` for the
    first that fails, with its number and what was stored when it crashed.

    After the tests of SQLite, which fail the first allocation, then the second, and so on.
    """
    scenario = _Scenario(build, commands, check, retry, persistence, system_id)
    tried: list[CrashPoint] = []
    if points is None:
        await scenario.run(None)
        number = 0
        while True:
            number += 1
            point = await scenario.run(number)
            if point is None:
                return Crashes(tried)
            tried.append(point)
    for number in points:
        point = await scenario.run(number)
        if point is None:
            raise ValueError(f"the scenario has no crash point {number}")
        tried.append(point)
    return Crashes(tried)


@dataclasses.dataclass(frozen=True)
class _Scenario:
    build: Callable[[ActorSystem], ActorRef | Awaitable[ActorRef]]
    commands: Sequence[object]
    check: Callable[[CrashRun], object]
    retry: bool
    persistence: Callable[[], PersistenceBackend]
    system_id: str

    async def run(self, number: int | None) -> CrashPoint | None:
        """Run it with a crash at point `number`, and return the point if it came to that."""
        run = _Run(self, number)
        # Every crash would be logged, and they are all wanted.
        logger.addFilter(_nothing)
        try:
            await run_scheduled(0, run.dispatcher, run.all, run.give_up)
        except Exception as error:
            raise CrashPointFailed(run.plan.point, run.plan.facts, error) from error
        finally:
            logger.removeFilter(_nothing)
        return run.plan.point


class _Plan:
    """Counts the points that a run comes by, and makes the one fail that it is for."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._armed = False
        self._passed = 0
        self._stored: list[tuple[int, bytes]] = []
        #: the point, once it was reached
        self.point: CrashPoint | None = None
        #: what was stored then
        self.facts: Sequence[Record] = ()
        #: whether a recovery has failed, since the store did
        self.has_failed_recovery = False
        #: cancelled when the process dies
        self.process = anyio.CancelScope()
        self.dead = False

    async def come_by(self, what: Literal["actor", "store"], where: Where, about: str) -> None:
        """Come by a place where `what`, or the process, may fail."""
        if self._armed and self.point is None:
            kinds: tuple[Literal["actor", "store", "process"], ...] = (what, "process")
            for kind in kinds:
                self._passed += 1
                if self._passed == self._number:
                    self.point = CrashPoint(self._number, kind, where, about)
                    self.facts = [codec.decode(encoded, seq) for seq, encoded in self._stored]
                    if kind == "actor":
                        raise Crashed(f"an actor crashed on purpose {where} {about}")
                    if kind == "store":
                        raise InjectedFault(f"the store failed on purpose {where} {about}")
                    self.dead = True
                    self.process.cancel()
        if self.dead:
            await anyio.sleep_forever()

    def arm(self) -> None:
        """Let things fail from now on: what came before was the test's own work."""
        self._armed = True

    def disarm(self) -> None:
        """Let nothing fail any more: what follows are the test's own questions."""
        self._armed = False

    def saw(self, batch: Batch) -> None:
        """Take note of what is stored."""
        self._stored += enumerate(batch.encoded, batch.first_seq)


class _Dispatcher(SeededDispatcher):
    def __init__(self, clock: ManualClock, plan: _Plan) -> None:
        super().__init__(0, clock)
        self._plan = plan

    async def handle(
        self, ref: ActorRef, messages: Sequence[Any], handling: Coroutine[Any, Any, ReplyT]
    ) -> ReplyT:
        if ref.address.name == PERSISTENCE_NAME:
            return await super().handle(ref, messages, handling)  # what can fail is the store
        about = f"{type(messages[0]).__name__} at {ref.address}"
        try:
            await self._plan.come_by("actor", "before", about)
        except BaseException:
            handling.close()
            raise
        reply = await handling
        await self._plan.come_by("actor", "after", about)
        return reply


class _Persistence(FaultyPersistence):
    def __init__(self, backend: PersistenceBackend, plan: _Plan) -> None:
        self._plan = plan
        super().__init__(backend)

    def _make_store(self, faults: FaultInjector) -> FaultyStore:
        return _Store(self, faults, self._plan)


class _Store(FaultyStore):
    def __init__(self, host: FaultyPersistence, faults: FaultInjector, plan: _Plan) -> None:
        super().__init__(host, faults)
        self._plan = plan

    async def read_history(self, request: ReadHistory) -> HistoryPage:
        await self._recover(f"the read of the history of {request.actor}")
        return await super().read_history(request)

    async def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        await self._recover(f"the read of the history of {request.actor}")
        return await super().read_encoded_history(request)

    async def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        await self._recover(f"the load of snapshot {revision} of {actor}")
        return await super().load_snapshot(actor, revision)

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        about = f"the save of snapshot {revision} of {actor}"
        await self._plan.come_by("store", "before", about)
        await super().save_snapshot(actor, revision, data)
        await self._plan.come_by("store", "after", about)

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        about = f"the save of the position {name}"
        await self._plan.come_by("store", "before", about)
        is_saved = await super().save_position(name, data, expected)
        await self._plan.come_by("store", "after", about)
        return is_saved

    async def _recover(self, about: str) -> None:
        """Come by a place where a recovery may fail; it makes no difference whether before it."""
        try:
            await self._plan.come_by("store", "before", about)
        except InjectedFault:
            self._plan.has_failed_recovery = True
            raise

    async def store(self, batch: Batch) -> None:
        about = "the append of " + ", ".join(
            f"{type_of(record) or 'an audit'} of {actor_of(record) or record.system_id}"
            for record in batch.records
        )
        await self._plan.come_by("store", "before", about)
        await super().store(batch)
        self._plan.saw(batch)
        await self._plan.come_by("store", "after", about)


class _ProcessDied(Exception):
    pass


class _Run:
    """One run of a scenario."""

    def __init__(self, scenario: _Scenario, number: int | None) -> None:
        self._scenario = scenario
        self.plan = _Plan(number)
        self._clock = ManualClock()
        self.dispatcher = _Dispatcher(self._clock, self.plan)
        self._store = _Persistence(scenario.persistence(), self.plan)
        self._outcomes: list[tuple[object, object]] = []
        self._system = self._new_system()

    async def all(self) -> None:
        """Run everything, restarts and checks included."""
        try:
            async with self._system:
                with self.plan.process:
                    await self._live(restarted=False)
                if self.plan.dead:
                    self._system.give_up()
                    raise _ProcessDied
        except _ProcessDied:
            self.plan.dead = False
            async with self._restarted():
                if len(self._outcomes) < len(self._scenario.commands):
                    command = self._scenario.commands[len(self._outcomes)]
                    self._outcomes.append((command, Crashed("the process died meanwhile")))
                await self._live(restarted=False)
        async with self._restarted():
            await self._live(restarted=True)

    def give_up(self) -> str:
        return self._system.give_up()

    async def _live(self, *, restarted: bool) -> None:
        ref = await _awaited(self._scenario.build(self._system))
        if not restarted:
            self.plan.arm()
        if self._scenario.retry and self._outcomes and isinstance(self._outcomes[-1][1], Crashed):
            command, _ = self._outcomes.pop()
            self._outcomes.append((command, await _ask(ref, command)))
        for command in self._scenario.commands[len(self._outcomes) :]:
            unharmed = self.plan.point is None
            outcome = await _ask(ref, command)
            if (
                self._scenario.retry
                and unharmed
                and self.plan.point is not None
                and isinstance(outcome, Exception)
            ):
                await self._recovery_is_due()
                outcome = await _ask(ref, command)
            self._outcomes.append((command, outcome))
        self.plan.disarm()
        await self._recovery_is_due()
        facts = [record for kind in KINDS async for record in self._system.backend.stream(kind)]
        facts.sort(key=lambda record: record.seq or 0)
        held = await _awaited(
            self._scenario.check(
                CrashRun(self.plan.point, list(self._outcomes), facts, ref, self._system, restarted)
            )
        )
        if held is False:
            raise AssertionError("check returned False")

    async def _recovery_is_due(self) -> None:
        """Let time pass if a recovery has failed, until it is tried again with a message."""
        if self.plan.has_failed_recovery:
            self.plan.has_failed_recovery = False
            await self._clock.sleep(2 * FIRST_PAUSE)

    def _restarted(self) -> ScheduledSystem:
        self._system = self._new_system()
        return self._system

    def _new_system(self) -> ScheduledSystem:
        return ScheduledSystem(self._scenario.system_id, self._store, self._clock, self.dispatcher)


def _nothing(record: logging.LogRecord) -> bool:
    del record
    return False


async def _ask(ref: ActorRef, command: object) -> object:
    try:
        return await ref.ask(command)
    except Exception as error:  # noqa: BLE001 - what a command comes to is for the check to judge
        return error


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
