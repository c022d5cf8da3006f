"""One event-sourced actor without a system: its context, its history, its life."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar, cast

import anyio

from papyra._home_loop import HomeLoop
from papyra._portal import Portal
from papyra._safe_repr import type_name
from papyra.actor import Actor, ActorContext, Entities
from papyra.address import ActorAddress
from papyra.audit import AuditReport
from papyra.class_counters import ClassCounters, name_of_class
from papyra.clock import Clock
from papyra.durable_timers import DurableTimers, ScheduledTimer, TimerMetrics
from papyra.entity import EntityRef
from papyra.eventsourcing.actor import EventSourced
from papyra.exceptions import NotAnEntity, SystemNotRunning, UnhandledMessage, WouldDeadlock
from papyra.mailbox import Mailbox
from papyra.output_gate import OutputGate
from papyra.persistence.messages import (
    Append,
    Appended,
    AppendMany,
    HistoryPage,
    LoadedSnapshot,
    LoadSnapshot,
    ReadHistory,
    Request,
    SaveSnapshot,
    SnapshotSaved,
)
from papyra.persistence.records import PersistedEvent, Record
from papyra.persistence.reports import ReportProgress
from papyra.persistence.subscribing import Subscribe, Subscribed, Unsubscribe
from papyra.persistence.subscription import Selection
from papyra.persistence.verbs import PersistenceVerbs
from papyra.ref import ActorRef, Answered, Ask, Values
from papyra.retry import Retry
from papyra.volatile_timers import Timers

StateT = TypeVar("StateT")
ReplyT = TypeVar("ReplyT")


class RecordList(PersistenceVerbs):
    """Records in a list, as they were given: nothing is encoded."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def execute(self, request: Request[ReplyT]) -> ReplyT:
        """Append, or read a history; keep no snapshots. A test that needs more needs a store."""
        asked: Any = request
        reply: Any
        match asked:
            case Append(record):
                reply = self._append((record,))
            case AppendMany(records):
                reply = self._append(records)
            case ReadHistory(actor, after_revision, limit):
                events = [
                    record
                    for record in self.records
                    if isinstance(record, PersistedEvent)
                    and (record.revision or 0) > after_revision
                    and record.actor_address == actor
                ]
                page = tuple(events[:limit])
                reply = HistoryPage(page, after_revision + len(page), len(page) < len(events))
            case LoadSnapshot():
                reply = LoadedSnapshot(None, ())
            case SaveSnapshot(revision=revision):
                reply = SnapshotSaved(revision, 0)
            case _:
                _refuse(f"{type_name(asked)} needs a store")
        return cast("ReplyT", reply)

    def _append(self, records: Sequence[Record]) -> Appended:
        self.records += records
        return Appended(len(self.records) - len(records) + 1, len(self.records))

    def watch_scans(self, watcher: ReportProgress) -> Callable[[], None]:
        """Refuse: nothing is scanned here."""
        del watcher
        _refuse("a scan needs a store")


class LoneActor(Generic[StateT]):
    """An actor, with what its context stands on: it is the owner and the system behind that."""

    is_running = True
    parent_ref = None
    child_refs: tuple[ActorRef, ...] = ()
    ahead = None
    telemetry = None

    def __init__(
        self,
        actor_class: type[EventSourced[StateT]],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        address: ActorAddress,
        clock: Clock,
        backend: PersistenceVerbs,
        entity_id: str | None = None,
    ) -> None:
        self.system_id, self.address, self.clock, self.backend = (
            *(address.system_id, address, clock),
            backend,
        )
        self._entity_id = entity_id
        self.counters = ClassCounters(name_of_class(actor_class))
        self.loop = HomeLoop(address.system_id)
        self.recoveries = anyio.Semaphore(1)
        self.persistence: _StoreRef = _StoreRef(address, backend)
        self.own_ref = _OwnRef(address)
        self.ref: ActorRef = self.own_ref
        #: what has to return before the next message
        self.settlement: Callable[[], Awaitable[None]] | None = None
        self.gate: OutputGate | None = None
        #: the message at hand was left unhandled, as this says
        self.refusal: UnhandledMessage | None = None
        self.has_stopped = False
        #: nothing arrives there: no time passes for an actor alone
        self.mailbox: Mailbox[object] = Mailbox(1, self.loop.new_signal)
        self.deadlines = _NoDeadlines()
        self._timers = Timers(self)
        self._task: object = None
        self.actor = actor_class.__new__(actor_class)
        self.actor.context = ActorContext(self, self)
        self.actor.__init__(*args, **kwargs)  # type: ignore[misc]

    async def start(self) -> None:
        """Recover. Raises `RecoveryFailed`."""
        self._task = self.loop.current_task()
        await self.actor.on_start()
        await self.settle()

    async def receive(self, message: object, idempotency_key: str | None = None) -> Any:
        """Have a message handled, and everything stored that it led to."""
        self._task = self.loop.current_task()
        self.refusal = None
        self.own_ref.told.clear()
        try:
            if idempotency_key is None:
                return await self.actor.receive(message)
            return await self.actor.receive_once(message, idempotency_key)
        finally:
            await self.persistence.answer()

    def append_error(self) -> Exception | None:
        """Return the error of the append that failed, for which all outputs wait in vain."""
        return None if self.gate is None else self.gate.error

    async def settle(self) -> None:
        """Do what has to be done before the next message. Raises `RecoveryFailed`."""
        if self.settlement is not None:
            await self.settlement()

    # The owner of its context

    def settle_first(self, settlement: Callable[[], Awaitable[None]] | None) -> None:
        """Have `settlement` called before the next message."""
        self.settlement = settlement

    def output_gate(self) -> OutputGate:
        """Return the gate, which opens when the message at hand has been handled."""
        if self.gate is None:
            self.gate = _Gate(self.persistence)
        return self.gate

    async def settle_outputs(self) -> None:
        """Answer every append, and open the gate."""
        await self.persistence.answer()
        if self.gate is not None:
            self.gate.reset()

    def runs_here(self) -> bool:
        """Return whether this is the task that handles the message."""
        return self.loop.current_task() is self._task

    def unhandled(self, message: object) -> UnhandledMessage:
        """Note that the message at hand is of no use to the actor."""
        self.refusal = UnhandledMessage(f"{self.address} does not handle {type_name(message)}")
        return self.refusal

    @property
    def entity_id(self) -> str:
        """The id of the entity that it is. Raises `NotAnEntity`."""
        if self._entity_id is None:
            raise NotAnEntity(f"{self.address} is no entity: give the test an entity_id")
        return self._entity_id

    def passivate(self) -> None:
        """Note that the entity goes to sleep after the message at hand. Raises `NotAnEntity`."""
        assert self.entity_id
        self.has_stopped = True

    def stop_now(self) -> None:
        """Note that the actor stops after the message at hand."""
        self.has_stopped = True

    def watch(self, ref: ActorRef) -> None:
        """Do nothing: what ends is for tests with a system."""

    def unwatch(self, ref: ActorRef) -> None:
        """Do nothing."""

    # The owner's timers and tasks

    def own_timers(self) -> Timers:
        """Return the timers: a test sees which are active, and none becomes due."""
        return self._timers

    def captured_values(self) -> Values:
        """Return none: nobody brings any along."""
        return ()

    def set_receive_timeout(self, length: float | None, message: object) -> None:
        """Take note of it; it never comes."""
        idle = self.mailbox.note_idleness(self.clock)
        self._timers.set_receive_timeout(length, message, idle)

    def run_in_background(
        self, function: Any, args: tuple[Any, ...], pipe_to_self: Callable[[Any], object] | None
    ) -> NoReturn:
        """Refuse: there is nobody to look after it."""
        del args, pipe_to_self
        if isinstance(function, Coroutine):
            function.close()
        _refuse("it can't run anything in the background")

    # The owner's children, and the system: there are none

    def spawn(self, actor_class: type[Actor], *args: Any, **kwargs: Any) -> ActorRef:
        """Refuse: there is nobody but this actor."""
        del args, kwargs
        _refuse(f"it can't spawn {actor_class.__name__}")

    def entity(self, actor_class: type[Actor], entity_id: str) -> EntityRef:
        """Refuse: there is nobody but this actor."""
        _refuse(f"it can't reach {actor_class.__name__} {entity_id!r}")

    @property
    def entities(self) -> Entities:
        """There are none."""
        _refuse("there are no entities")

    @property
    def timers(self) -> DurableTimers:
        """Nobody brings any: what is scheduled is stored, and that is all."""
        return _NO_TIMERS

    def find(self, address: ActorAddress | str) -> ActorRef | None:
        """Return `None`, as there is nobody else."""
        del address
        return None

    def selection(self, **options: object) -> Selection:
        """Refuse: nothing comes of it."""
        del options
        _refuse("there is nothing to subscribe to")

    def audit(self) -> AuditReport:
        """Refuse: there is nothing to look at."""
        _refuse("there is nothing to audit")

    @property
    def portal(self) -> Portal:
        """There is none."""
        _refuse("there is no portal")


class _NoDeadlines:
    """Deadlines that never come."""

    def add(self, moment: float, each: object, *, first: bool = False) -> None:
        """Do nothing."""

    def forget(self, count: int = 1) -> None:
        """Do nothing."""


class _NoTimers:
    """The timers of a system that brings none."""

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[ScheduledTimer]:
        return iter(())

    def metrics(self) -> TimerMetrics:
        return TimerMetrics(0, 0, 0, 0, 0, 0, 0.0, 0.0)

    def attend(self, ref: ActorRef) -> None:
        """Do nothing."""

    def is_current(self, actor: str, name: str, generation: int, due: float) -> bool:
        del actor, name, generation, due
        return False

    def suspect(self) -> None:
        """Do nothing."""


_NO_TIMERS = _NoTimers()


class _Gate(OutputGate):
    """A gate where nobody waits in vain: the store then carries out what was asked of it."""

    __slots__ = ("_store",)

    def __init__(self, store: _StoreRef) -> None:
        super().__init__()
        self._store = store

    async def opened(self) -> None:
        await self._store.answer()
        await super().opened()

    async def drained(self) -> None:
        await self._store.answer()
        await super().drained()


class _LoneRef(ActorRef):
    """A ref of an actor that always lives, and has no mailbox."""

    def __init__(self, address: ActorAddress) -> None:
        self._address = address

    @property
    def address(self) -> ActorAddress:
        return self._address

    @property
    def is_alive(self) -> bool:
        return True

    async def tell(self, message: object) -> None:
        self.tell_nowait(message)


class _OwnRef(_LoneRef):
    """The actor's own ref: what it tells itself is kept."""

    def __init__(self, address: ActorAddress) -> None:
        super().__init__(address)
        self.told: list[object] = []

    def tell_nowait(self, message: object) -> None:
        self.told.append(message)

    async def ask(
        self,
        message: object,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        del message, timeout, retry, idempotency_key
        raise WouldDeadlock(f"{self._address} was about to wait for itself")

    async def stop(self) -> None:
        _refuse("an actor alone is stopped with context.stop()")


class _StoreRef(_LoneRef):
    """The persistence actor's ref: requests are carried out in the order in which they come."""

    def __init__(self, address: ActorAddress, backend: PersistenceVerbs) -> None:
        super().__init__(ActorAddress(address.system_id, "$persistence"))
        self._backend = backend
        self._requests: deque[tuple[Any, Answered]] = deque()
        #: every event that was stored, as it was handed over
        self.stored: list[PersistedEvent] = []

    async def ask(
        self,
        message: Any,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        del timeout, retry, idempotency_key
        await self.answer()
        return await self._execute(message)

    def ask_at_once(self, message: object) -> Ask | None:
        del message
        return None

    def tell_nowait(self, message: object) -> None:
        self.request(message, _ignore)

    def request(self, message: object, answered: Answered) -> None:
        self._requests.append((message, answered))

    async def answer(self) -> None:
        """Carry out every request that has not been answered."""
        while self._requests:
            request, answered = self._requests.popleft()
            try:
                reply = await self._execute(request)
            except Exception as error:  # noqa: BLE001 - it is that of whoever has asked
                answered(None, error)
            else:
                answered(reply, None)

    async def _execute(self, request: Any) -> object:
        if isinstance(request, (Subscribe, Unsubscribe)):
            return Subscribed(0)  # what the actor is to get, the test gives to it
        reply: object = await self._backend.execute(request)
        match request:
            case Append(PersistedEvent() as event):
                self.stored.append(event)
            case AppendMany(records):
                self.stored += [each for each in records if isinstance(each, PersistedEvent)]
        return reply


def _ignore(reply: object, error: Exception | None) -> None:
    """Take the answer to what was told, which nobody waits for."""


def _refuse(what: str) -> NoReturn:
    raise SystemNotRunning(f"{what}: the actor is alone, without a system. Use one in this test")
