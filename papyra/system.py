"""The actor system: where the runtime and persistence come together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from papyra._cancellation import (
    end_if_left_open,
    in_a_task,
    interrupt_in,
    shield_from_interrupts,
    start_surely,
    wait_for_groups_left_open,
    wait_through,
    without_cancellation,
)
from papyra._durations import is_seconds, seconds
from papyra._home_loop import HomeLoop
from papyra._portal import Portal
from papyra._runtime.cell import Cell, spawn
from papyra._runtime.children import Children
from papyra._runtime.deadlines import Deadlines
from papyra._runtime.entities import EntityRegistry, TopLevel
from papyra._runtime.failures import Outcome
from papyra._runtime.props import Props
from papyra._runtime.recorder import LoggingRecorder, SystemRecorder
from papyra._runtime.shutdown import GRACE, Shutdown, descendants
from papyra._runtime.timer_service import TimerService
from papyra._runtime.uninterrupted import shield_runtime_from_interrupts
from papyra._safe_repr import shown, type_and_text
from papyra._trio import running_trio
from papyra.actor import Actor, Entities
from papyra.address import ActorAddress, check_name
from papyra.audit import AuditReport
from papyra.class_counters import CountersByClass
from papyra.clock import Clock, SystemClock
from papyra.conf import settings
from papyra.dispatcher import Dispatcher
from papyra.durable_timers import DurableTimers
from papyra.entity import EntityRef
from papyra.events import ActorCrashed, ActorRestarted, ActorStarted, ActorStopped
from papyra.eventsourcing.decoding import wanted_events
from papyra.exceptions import (
    EscalatedFailure,
    InvalidPolicy,
    InvalidRequest,
    InvalidSetting,
    SystemAlreadyStarted,
    SystemNotRunning,
    TaskGroupLeftOpen,
    WrongTask,
)
from papyra.figures import Figures, SubscriptionFigures, figures_of_class
from papyra.persistence.actor import PersistenceActor
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.breaker import CircuitBreakerPolicy
from papyra.persistence.commit_counters import CommitCounters
from papyra.persistence.messages import Attend, Attended, Flush
from papyra.persistence.metrics import MetricsSnapshot
from papyra.persistence.records import Kind
from papyra.persistence.startup import PersistenceStartupConfig, check_store
from papyra.persistence.subscription import Selection, Subscription
from papyra.projections.projection import Projection
from papyra.projections.runner import ProjectionRunner, Projections
from papyra.ref import ActorRef
from papyra.supervision import Decision, OneForOne, SupervisionPolicy
from papyra.system_thread import SystemThread
from papyra.telemetry import Telemetry

#: The name of a system's own persistence actor.
PERSISTENCE_NAME = "$persistence"

#: Seconds from one look at what other processes ask of the writer of the store to the next; after
#: looks that have failed, at most.
LOOK_INTERVAL, LONGEST_LOOK_INTERVAL = 1.0, 60.0
#: The same where applications may hand over events at any time, which somebody waits for.
OUTBOX_INTERVAL = 0.25

#: How many actors read their histories at the same time.
MAX_RECOVERIES = 50


class ActorSystem:
    """Runs actors, and keeps their recorder.

    ``async with ActorSystem("shop") as system:`` starts it, and stops it when the block is left.
    The system's own persistence actor starts before every other actor and stops after the last.
    Each actor's life, dead letters and audits are recorded through it.

    Leaving the block lets each actor handle what is in its mailbox, the last spawned first and
    children before parents, and last all entities at once, for `shutdown_timeout` seconds in all.
    Until it is their turn, messages still wake entities. Leaving it with an exception lets each
    finish the message at hand only. Either way, what then still runs is cancelled, and what was not
    handled becomes dead letters. Last the store gets as long to write what is queued, and each
    projection to handle the batch at hand.
    """

    #: whether what other processes ask of the writer of the store is looked for
    _looks_into_inbox = True

    def __init__(
        self,
        system_id: str = "papyra",
        *,
        persistence: PersistenceBackend | None = None,
        startup: PersistenceStartupConfig | None = None,
        breaker: CircuitBreakerPolicy | None = None,
        supervision: SupervisionPolicy | None = None,
        mailbox_capacity: int = 1_000,
        shutdown_timeout: float = 10.0,
        audit_interval: float | None = 60.0,
        clock: Clock | None = None,
        dispatcher: Dispatcher | None = None,
        propagate: Iterable[ContextVar[Any]] = (),
        telemetry: Telemetry | None = None,
        entities: Iterable[type[Actor]] = (),
        measure: bool = False,
    ) -> None:
        """Make a system that is to be started.

        `system_id` names it in addresses and records. Without `persistence`,
        `Settings.resolve_persistence` finds a backend; `startup` says what to do if its store is
        damaged, by default not to start; `breaker`, when to stop asking one that fails every time.
        `supervision` is for top-level actors that fail.
        `mailbox_capacity` is how many messages a mailbox takes before senders wait. Between two
        audits are `audit_interval` seconds; `None` leaves only the one at the end. `clock` and
        `dispatcher` are for tests, and for instruments.

        An actor starts with no context variable set. Those in `propagate` travel with each message:
        around `receive` they have the values that they had where it was told or asked, unset ones
        included. A batch, which has many senders, sees the actor's own.

        `telemetry` observes the system, and has variables of its own travel: see
        `papyra.observability`. Without it nothing of that is called.

        `entities` are classes whose entities durable timers may wake, without anybody having asked
        for them before; ``system.entities.register`` is for those that are made with arguments.

        With `measure`, `figures` says also how many messages wait, and how long they wait, how long
        handling them takes, and commits. That costs a look or two at the clock for each of them.

        Raises what that raises, and `InvalidActorName`, `InvalidPolicy` or `InvalidSetting` for
        what makes no sense.
        """
        name = check_name(system_id)
        _check_limits(mailbox_capacity, shutdown_timeout, audit_interval)
        if supervision is not None and not isinstance(supervision, SupervisionPolicy):
            raise InvalidPolicy(f"supervision is OneForOne or OneForAll, not {shown(supervision)}")
        if persistence is not None and not isinstance(persistence, PersistenceBackend):
            raise InvalidSetting(f"persistence is a PersistenceBackend, not {shown(persistence)}")
        if startup is not None and not isinstance(startup, PersistenceStartupConfig):
            raise InvalidPolicy(f"startup is a PersistenceStartupConfig, not {shown(startup)}")
        if clock is not None and not isinstance(clock, Clock):
            raise InvalidSetting(f"clock is a Clock, not {shown(clock)}")
        if dispatcher is not None and not isinstance(dispatcher, Dispatcher):
            raise InvalidSetting(f"dispatcher is a Dispatcher, not {shown(dispatcher)}")
        if telemetry is not None and not isinstance(telemetry, Telemetry):
            raise InvalidSetting(f"telemetry is a Telemetry, not {shown(telemetry)}")
        if not isinstance(entities, Iterable):
            raise InvalidSetting(f"entities are classes of actors, not {shown(entities)}")
        if type(measure) is not bool:
            raise InvalidSetting(f"measure is True or False, not {shown(measure)}")
        if breaker is not None and not isinstance(breaker, CircuitBreakerPolicy):
            raise InvalidPolicy(f"breaker is a CircuitBreakerPolicy, not {shown(breaker)}")
        self._system_id = name
        self._backend = persistence
        self._startup = startup or PersistenceStartupConfig()
        self._breaker = breaker
        self._counters = CountersByClass(measured=measure)
        self._started_at: float | None = None
        self._audit_interval = None if audit_interval is None else seconds(audit_interval)
        self._runtime = _Runtime(
            self,
            clock or SystemClock(),
            dispatcher,
            mailbox_capacity,
            _variables(propagate, telemetry),
            telemetry,
            self._end_by,
        )
        self._commits = CommitCounters(self.clock.monotonic) if measure else None
        self._entities = EntityRegistry(name, self._runtime)
        self._guardian = _Guardian(supervision or OneForOne(), self._fail, TopLevel(self._entities))
        self._entities.parent = self._guardian
        self._timers = TimerService(
            *(name, self.clock, self._entities),
            *(self._runtime.start_task, lambda: self.persistence),
        )
        for each in entities:
            self._entities.register(each)
        # The persistence actor answers for its own errors. One that it does not is a bug, and no
        # reason to drop what it holds.
        self._own = _Guardian(
            OneForOne(default=Decision.RESUME), self._fail, Children(), self._lose_persistence
        )
        self._shutdown = Shutdown(
            seconds(shutdown_timeout), self._guardian.children, self._own.children
        )
        self._projections = Projections()
        self._persistence: ActorRef | None = None
        self._recorder: SystemRecorder | None = None
        self._host_task: int | None = None
        self._portal: Portal | None = None
        self._is_left = False
        self._audits = self._attends = False
        self._failure: Exception | None = None
        self._escalated: EscalatedFailure | None = None
        self._interrupt: BaseException | None = None
        self._lost: EscalatedFailure | None = None
        self._stored_before = 0

    @property
    def system_id(self) -> str:
        """The system's name."""
        return self._system_id

    @property
    def clock(self) -> Clock:
        """The clock that the system reads and waits by."""
        return self._runtime.clock

    @property
    def persistence(self) -> ActorRef:
        """The system's persistence actor. Raises `SystemNotRunning` before the start."""
        if self._persistence is None:
            raise SystemNotRunning(f"the system {self._system_id!r} has not been started")
        return self._persistence

    @property
    def backend(self) -> PersistenceBackend:
        """The backend that the persistence actor hosts. Its verbs go through that actor."""
        if self._backend is None:
            raise SystemNotRunning(f"the system {self._system_id!r} has not been started")
        return self._backend

    @property
    def telemetry(self) -> Telemetry | None:
        """What observes the system, if anything does."""
        return self._runtime.telemetry

    @property
    def stored_before(self) -> int:
        """The `seq` of the last record that was in the store when the system started, or 0."""
        return self._stored_before

    @property
    def cancelled_actors(self) -> tuple[str, ...]:
        """The addresses of the actors that did not stop in time when the system stopped."""
        return tuple(self._shutdown.cancelled)

    @property
    def is_running(self) -> bool:
        """Whether actors can be spawned."""
        return self._recorder is not None and not self._shutdown.begun.is_set()

    @property
    def failure(self) -> EscalatedFailure | None:
        """The failure that ends the system, from the moment it was escalated; else `None`.

        It is what comes out of the block, or of `stop`. `__cause__` is the actor's own error. When
        an actor ends the system by `SystemExit` or ``KeyboardInterrupt``, that is no failure.
        """
        if self._interrupt is not None:
            return None
        return self._lost if self._escalated is None else self._escalated

    async def wait_stopped(self) -> None:
        """Return when every actor has stopped and the store is closed, for whatever reason.

        `failure` says then whether it was a failure. Any task of the system's event loop may wait,
        and be cancelled while it does; it stops nothing itself. An actor that waits in ``receive``
        keeps the system from stopping until it is cancelled after `shutdown_timeout`: let it wait
        in the background. Raises `SystemNotRunning` before the start, and `WrongLoop`.
        """
        if self._portal is None:
            raise SystemNotRunning(f"the system {self._system_id!r} has not been started")
        if self._shutdown.ended.is_set():
            await checkpoint()
            return
        self._runtime.loop.check()
        await self._shutdown.ended.wait()

    @property
    def portal(self) -> Portal:
        """The way to the actors from other threads: ``system.portal.call(ref.ask, message)``.

        Raises `SystemNotRunning` before the start, and when the last actor has stopped.
        """
        if self._portal is None or self._portal.closed:
            raise SystemNotRunning(
                f"the system {self._system_id!r} is not running: its portal is open from its start "
                "until the last actor has stopped"
            )
        return self._portal

    @functools.cached_property
    def recoveries(self) -> anyio.Semaphore:
        """How many more actors may read their histories at the same time; first come, first."""
        return anyio.Semaphore(MAX_RECOVERIES)

    def spawn(
        self,
        actor_class: type[Actor],
        *args: Any,
        name: str | None = None,
        mailbox_capacity: int | None = None,
        **kwargs: Any,
    ) -> ActorRef:
        """Make ``actor_class(*args, **kwargs)``, start it, and return its ref.

        The instance is made here and now; ``on_start`` runs in the actor's own task, and messages
        sent meanwhile wait. Without a `name`, one is made from the class.

        Raises `ActorInitializationError` from what ``__init__`` raised (if that is a `PapyraError`,
        just that), `DuplicateActorName`, `InvalidActorName`, `InvalidActor`, `SystemNotRunning` or
        `WrongLoop`.
        """
        self._check_loop()
        if self._recorder is None or not self.is_running:
            raise SystemNotRunning(
                f"the system {self._system_id!r} is not running: "
                "spawn inside 'async with ActorSystem(...) as system:'"
            )
        props = Props.checked(actor_class, args, kwargs, mailbox_capacity)
        address = self._address.child(self._guardian.children.free_name(actor_class, name))
        return spawn(self._guardian, self._runtime, address, props, self._recorder)

    def entity(self, actor_class: type[Actor], entity_id: str) -> EntityRef:
        """Return the ref of the entity of this class and id, which may be kept for ever.

        Its first message wakes it: an actor is made, without arguments or with those that
        `entities` has registered for the class, and finds its id in ``self.context.entity_id``. It
        is at ``system_id/type/id``, where the type is `Actor.entity_name` or the name of the class,
        and `entity_id` may be any string that is not empty: it is escaped as in URLs.

        After `Actor.idle_timeout` seconds without a message, or by ``context.passivate()``, the
        entity is put to sleep: its actor stops, ``on_stop`` included, and the next message wakes it
        again. It is supervised as a top-level actor is. One that is stopped for a failure, be it
        of ``__init__`` or ``on_start``, leaves dead letters, and wakes with the next message, too.

        The same ref is returned for the same entity, as long as somebody holds it. Raises
        `InvalidEntityId`, `SystemNotRunning` before the start, `WrongLoop`, and what
        `Entities.register` raises, if this is the first entity of its class.
        """
        self._check_loop()
        if self._recorder is None:
            raise SystemNotRunning(
                f"the system {self._system_id!r} has not been started: "
                "reach entities inside 'async with ActorSystem(...) as system:'"
            )
        return self._entities.find(actor_class, entity_id)

    @property
    def entities(self) -> Entities:
        """The entities that are awake, and how they are made.

        ``len(system.entities)`` is how many are awake; iterated over, it gives the type, the id and
        the ref of each. ``system.entities.register(Account, rates)`` says what they depend on.
        """
        return self._entities

    @property
    def timers(self) -> DurableTimers:
        """The durable timers that are pending: ``len(system.timers)`` is how many.

        Iterated over, it gives the actor, the name, when it is due and how often it has failed, of
        each. ``system.timers.metrics()`` says what has come of them. It learns of them from the
        store, so right after a start it may not know all of them yet.
        """
        return self._timers

    def subscribe(
        self,
        *,
        after: int = 0,
        kinds: Sequence[Kind] = ("event",),
        types: Iterable[str | type] | None = None,
        actor: ActorRef | ActorAddress | str | None = None,
        entity: type[Actor] | None = None,
    ) -> Subscription:
        """Return what is stored after a position, and then what comes: see `Subscription`.

        ``async with system.subscribe(types=[Deposited]) as items: async for item in items: ...``
        `types` are names of events, or classes that they are decoded into: each is a `Received`
        then. `actor` selects what concerns one actor. `entity` selects what concerns any entity of
        a class; events of an event-sourced one come as `Received`, through its upcasters.

        It ends when the system stops. Raises `InvalidRequest`, `InvalidSchema` for classes that are
        no events, `SystemNotRunning` and `WrongLoop`.
        """
        self._check_loop()
        if not self.is_running:
            raise SystemNotRunning(
                f"the system {self._system_id!r} is not running: "
                "subscribe inside 'async with ActorSystem(...) as system:'"
            )
        selection = self.selection(kinds=kinds, types=types, actor=actor, entity=entity)
        return Subscription(self.backend, selection, after)

    def selection(
        self,
        *,
        kinds: Sequence[Kind] = ("event",),
        types: Iterable[str | type] | None = None,
        actor: ActorRef | ActorAddress | str | None = None,
        entity: type[Actor] | None = None,
    ) -> Selection:
        """Return what `subscribe` gives out for these arguments. Raises as that does."""
        if entity is not None and not (isinstance(entity, type) and issubclass(entity, Actor)):
            raise InvalidRequest(f"entity is a class of actors, not {shown(entity)}")
        names, decode = wanted_events(types, entity)
        address = actor.address if isinstance(actor, ActorRef) else actor
        return Selection.of(
            kinds,
            names,
            str(address) if isinstance(address, ActorAddress) else address,
            None if entity is None else entity.entity_name or entity.__name__,
            decode,
        )

    def project(self, projection: Projection) -> ProjectionRunner:
        """Run a projection until the system stops, and return its runner.

        It goes on where the one of this name has stopped, also in another process; without one, at
        the first event of the store. Raises `InvalidProjection` for what can't be run, also for
        what it selects, `DuplicateProjection` for a name that runs already, `InvalidSchema`,
        `InvalidPolicy`, `SystemNotRunning` and `WrongLoop`. What fails later is in its status.
        """
        self._check_loop()
        if not self.is_running:
            raise SystemNotRunning(
                f"the system {self._system_id!r} is not running: "
                "project inside 'async with ActorSystem(...) as system:'"
            )
        runner = self._projections.add(self, projection)
        self._runtime.start_task(f"projection {runner.name}", runner.run, lambda: runner.has_begun)
        return runner

    @property
    def projections(self) -> Projections:
        """The runners of the system's projections, by name."""
        return self._projections

    def find(self, address: ActorAddress | str) -> ActorRef | None:
        """Return the living actor at `address`, given whole (``"shop/cart/line-1"``), or `None`.

        That may be the system's own, ``"shop/$persistence"``, or an entity that is awake.
        """
        self._check_loop()
        system_id, *names = str(address).split("/")
        if system_id != self._system_id:
            return None
        # Users' names don't start like the system's own.
        is_own = names[:1] == [PERSISTENCE_NAME]
        children, found = (self._own if is_own else self._guardian).children, None
        if len(names) > 1 and self._entities.has_type(names[0]):
            names[:2] = ["/".join(names[:2])]
        for name in names:
            found = children.get(name)
            if found is None:
                return None
            children = found.children
        return found.ref if found else None

    def audit(self) -> AuditReport:
        """Return the health of the system now. Records nothing."""
        self._check_loop()
        cells = list(descendants(self._guardian.children))
        deepest = max(cells, key=lambda cell: len(cell.mailbox), default=None)
        recorder = self._recorder
        counts = recorder.counts if recorder else {}
        projections = [runner.status for runner in self._projections.values()]
        return AuditReport(
            actors=len(cells),
            messages_waiting=sum(len(cell.mailbox) for cell in cells),
            deepest_mailbox=len(deepest.mailbox) if deepest else 0,
            deepest_actor=str(deepest.address) if deepest else None,
            persistence_waiting=sum(len(cell.mailbox) for cell in self._own.children),
            started=counts.get(ActorStarted, 0),
            stopped=counts.get(ActorStopped, 0),
            crashed=counts.get(ActorCrashed, 0),
            restarted=counts.get(ActorRestarted, 0),
            dead_letters=recorder.dead_letters if recorder else 0,
            unclaimed_replies=recorder.unclaimed_replies if recorder else 0,
            persistence=self._backend.metrics.snapshot() if self._backend else MetricsSnapshot(),
            timers_pending=len(self._timers),
            timers_fired=self._timers.fired,
            timers_failed=self._timers.failed,
            timers_longest_late=self._timers.longest_late,
            projections=len(projections),
            projections_paused=sum(each.state == "paused" for each in projections),
            projections_longest_lag=max((each.lag for each in projections), default=0),
        )

    def figures(self) -> Figures:
        """Return what there is to count in the system now, by the class of its actors.

        It looks at each class, projection and subscription, and at no actor, however many there
        are. May be called from any thread, and at any time: before the start all is zero, after the
        end it is what it was then. Records nothing.
        """
        backend = self._backend
        last_seq = backend.last_seq if backend else 0
        positions = backend.commits.positions() if backend else ()
        commits = self._commits
        return Figures(
            system_id=self._system_id,
            timestamp=self.clock.time(),
            started_at=self._started_at,
            is_running=self.is_running,
            classes=tuple(
                figures_of_class(each)
                for each in sorted(self._counters.all(), key=lambda each: each.name)
            ),
            persistence=backend.metrics.snapshot() if backend else MetricsSnapshot(),
            persistence_waiting=sum(len(cell.mailbox) for cell in self._own.children),
            last_seq=last_seq,
            timers=self._timers.figures(),
            subscriptions=SubscriptionFigures(
                len(positions), max((last_seq - each for each in positions), default=0)
            ),
            projections=self._projections.statuses(),
            commit_seconds=None if commits is None else commits.seconds.snapshot(),
            commit_records=None if commits is None else commits.records.snapshot(),
        )

    async def start(self) -> None:
        """Start the persistence actor, and open its backend. ``async with`` does this.

        Raises `BackendInUse` if the backend is hosted, `StoreError` if it can't be opened,
        `StoreDamaged` as `startup` says, `InvalidEnvironment`, and `SystemAlreadyStarted` the
        second time.
        """
        # A Ctrl-C in the midst of these would leave a system that nobody ever stops, or an actor.
        shield_runtime_from_interrupts(
            *(ActorSystem.start, ActorSystem.__aenter__, ActorSystem.__aexit__),
            *(ActorSystem.spawn, ActorSystem.entity, ActorSystem._audit_every, ActorSystem._attend),
        )
        if self._host_task is not None:
            raise self._started_before()
        if self._backend is None:
            self._backend = settings.resolve_persistence()
        self._host_task = anyio.get_current_task().id
        await self._runtime.task_group.__aenter__()
        end_if_left_open(self._runtime)
        self._portal = Portal(self._system_id, self._runtime.loop, self._runtime.task_group)
        try:
            props = Props(PersistenceActor, (self._backend, self._breaker), {}, None)
            address = self._address.child(PERSISTENCE_NAME)
            recorder = LoggingRecorder(PersistenceActor)
            self._persistence = spawn(self._own, self._runtime, address, props, recorder)
            await self._persistence.ask(Flush())
            self._backend.measure_commits(self._commits)
            await check_store(self._backend, self._startup)
            self._stored_before = self._backend.last_seq
        except BaseException as error:
            await self._shut_down(error)
            raise
        (cell,) = self._own.children
        self._recorder = SystemRecorder(self._system_id, self.clock, cell.mailbox, self._counters)
        self._entities.recorders = self._recorder
        self._started_at = self.clock.time()
        has_past = self._stored_before > 0
        self._timers.begin(self._backend, looks=has_past and self._looks_into_inbox)
        if self.telemetry is not None:
            self.telemetry.begin(self)
        if self._audit_interval is not None:
            start_surely(
                self._runtime.task_group.start_soon,
                functools.partial(self._audit_every, self._audit_interval),
                lambda: self._audits,
            )
        # Others may leave something there, or take over from this.
        if self._backend.capabilities.durable and self._looks_into_inbox:
            start_surely(self._runtime.task_group.start_soon, self._attend, lambda: self._attends)

    async def stop(self) -> None:
        """Stop every actor as on leaving ``async with``. Stopping twice is allowed.

        It must be called by the task that called `start`: that is the one the system's task group
        belongs to. Raises `WrongTask` elsewhere, so inside actors, and `EscalatedFailure` if that
        is why the system stops. A cancellation that strikes meanwhile is raised when everybody has
        stopped.
        """
        if self._host_task is None or self._is_left:
            return
        self._check_loop()
        if anyio.get_current_task().id != self._host_task:
            raise WrongTask("a system is stopped by the task that started it")
        await self._shut_down(None)

    def run_in_thread(
        self, backend: str = "asyncio", backend_options: dict[str, Any] | None = None
    ) -> SystemThread:
        """Start the system in a thread of its own, and return the way to it, for synchronous code.

        ``with ActorSystem("bank").run_in_thread() as bank: bank.ask(ref, message)``. Without that
        block it stops with the process. `backend` is ``"asyncio"`` or ``"trio"``, with options as
        `anyio.run` takes them. Raises what `start` raises.
        """
        if self._host_task is not None:
            raise self._started_before()
        thread = SystemThread(
            self,
            self._shutdown.hurry,
            2 * (self._shutdown.timeout + GRACE),
            backend,
            backend_options,
        )
        thread.start()
        return thread

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None:
        if not self._is_left:
            await self._shut_down(exc)

    def _check_loop(self) -> None:
        """Raise `WrongLoop` outside of the system's own, while there is one."""
        if self._portal is not None and not self._portal.closed:
            self._runtime.loop.check()

    def _started_before(self) -> SystemAlreadyStarted:
        return SystemAlreadyStarted(
            f"the system {self._system_id!r} was started before: make a new ActorSystem"
        )

    @property
    def _address(self) -> ActorAddress:
        return ActorAddress(self._system_id, "")

    async def _shut_down(self, exc: BaseException | None) -> None:
        """Stop everything; raise the error, if any, that replaces `exc` as the block is left."""
        self._is_left = True
        self._begin_shutdown(exc if self._failure is None else self._failure)
        blow = await shield_from_interrupts(wait_through)(
            self._shutdown.ended, self._shutdown.hurry
        )
        if anyio.get_current_task().id != self._host_task:
            raise WrongTask(
                f"the system {self._system_id!r} was left by another task than entered it. All of "
                "it has stopped; next time run 'async with ActorSystem()' in a task of its own, "
                "which waits for an event that others set when they are done"
            )
        if exc is not None and self._runtime.task_group.cancel_scope.cancel_called:
            self._lose("one of its own")
        error = await self._leave_group(exc)
        self._raise_what_ended_it()
        if blow is not None:
            raise blow
        if error is not None and error is not exc:
            raise error
        if self._lost is not None and error is None:
            raise self._lost

    async def _leave_group(self, exc: BaseException | None) -> BaseException | None:
        """Leave the task group, in which nobody is left; return what becomes of `exc`."""
        # An exception stays what it is: the task group would wrap it in an ExceptionGroup. A
        # cancellation may be the group's own, alone or among others, so the group has to see it.
        seen = exc if exc is not None and without_cancellation(exc) is not exc else None
        try:
            taken = await self._runtime.task_group.__aexit__(
                type(seen) if seen else None, seen, seen.__traceback__ if seen else None
            )
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            if (interrupt := interrupt_in(error)) is not None:
                return interrupt
            # The event loop's word about tasks that ended within groups of their own: the failures
            # of those actors tell it already.
            return exc if self._runtime.parked else error
        return None if taken else exc

    def _raise_what_ended_it(self) -> None:
        """Raise the failure or the interrupt that ended the system from within, if one did."""
        if self._interrupt is not None:
            raise self._interrupt
        if self._escalated is not None:
            raise self._escalated

    def _begin_shutdown(self, cause: BaseException | None) -> None:
        """Begin to stop everything; if there is a `cause`, right after the messages at hand."""
        self._timers.close()
        self._shutdown.begin(self._runtime.task_group, self._before_store, cause)

    def _before_store(self) -> None:
        """Close the portal and record the last audit, after the last actor."""
        self._entities.close()
        self._projections.stop(self._shutdown.timeout)
        self._runtime.deadlines.close()
        if self._portal is not None:
            self._portal.close()
        if self._recorder is not None:
            self._recorder.audit(self.audit())
            if self.telemetry is not None:
                self.telemetry.end()

    async def _audit_every(self, interval: float) -> None:
        self._audits = True
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            while await self._goes_on_after(interval):
                if self._recorder is not None:
                    self._recorder.audit(self.audit())

    async def _attend(self) -> None:
        """Have what other processes leave for the writer of the store seen to, now and then."""
        self._attends = True
        usual = OUTBOX_INTERVAL if self.backend.has_outbox else LOOK_INTERVAL
        interval = usual
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            while await self._goes_on_after(interval):
                try:
                    seen = await self.persistence.ask(Attend())
                except Exception:  # noqa: BLE001 - its persistence actor has logged it, or stopped
                    seen = Attended(None)
                interval = _next_look(seen, interval, usual)

    async def _goes_on_after(self, interval: float) -> bool:
        """Wait so many seconds, or until the shutdown begins; return whether it has not."""
        with self.clock.move_on_after(interval):
            await self._shutdown.begun.wait()
        return not self._shutdown.begun.is_set()

    def _fail(self, error: Exception) -> None:
        """End the system, as nobody is left to deal with `error`."""
        if self._failure is None:
            self._failure = error
            self._escalated = EscalatedFailure(
                f"a failure was escalated past the top-level actors of {self._system_id!r}: "
                f"{type_and_text(error)}"
            )
            self._escalated.__cause__ = error
            self._cancel_block()

    def _end_by(self, error: BaseException) -> None:
        """End the system by an interrupt that an actor raised, such as `SystemExit`."""
        if self._interrupt is None:
            self._interrupt = error
            self._cancel_block()
        if self._shutdown.begun.is_set():
            self._shutdown.hurry()

    def _lose_persistence(self) -> None:
        """End the system in order, as somebody cancelled the task of its persistence actor."""
        self._lose(f"that of {self.persistence.address}, without which it can't go on")
        self._begin_shutdown(self._lost)
        self._cancel_block()

    def _lose(self, what: str) -> None:
        """Note the error to raise if nothing else explains why the block was cancelled."""
        self._lost = self._lost or EscalatedFailure(
            f"the system {self._system_id!r} has stopped, as somebody cancelled a task: {what}"
        )

    def _cancel_block(self) -> None:
        self._runtime.task_group.cancel_scope.cancel()


def _next_look(seen: Attended, interval: float, usual: float) -> float:
    """Return the seconds to the next look: none where there may be more to take over."""
    if seen.count is None or seen.taken is None:
        return min(2 * max(interval, usual), LONGEST_LOOK_INTERVAL)
    return 0.0 if seen.taken else usual


@dataclasses.dataclass(eq=False)
class _Runtime:
    """The system, as its cells use it."""

    system: ActorSystem
    clock: Clock
    dispatcher: Dispatcher | None
    mailbox_capacity: int
    propagate: tuple[ContextVar[Any], ...]
    telemetry: Telemetry | None
    interrupt: Callable[[BaseException], None]
    #: what the latest message has brought along, where telemetry is all that does so
    latest_values: list[Any] = dataclasses.field(default_factory=lambda: [None, ()])
    #: tasks that have nothing to do any more, and yet must not end before their actors' groups
    parked: int = 0

    @functools.cached_property
    def task_group(self) -> TaskGroup:
        """All actors live in it."""
        return anyio.create_task_group()

    @functools.cached_property
    def loop(self) -> HomeLoop:
        """Where the system was started."""
        return HomeLoop(self.system.system_id)

    @functools.cached_property
    def deadlines(self) -> Deadlines:
        """The deadlines of all actors."""
        return Deadlines(self.clock, self.start_task)

    @functools.cached_property
    def _call_soon(self) -> Callable[..., object] | None:
        return None if running_trio() else asyncio.get_running_loop().call_soon

    def launch(self, cell: Cell) -> None:
        before = cell.lifecycle.incarnation
        # It must not keep the context variables of whoever spawned it: they are of one request.
        cell.variables.run(self._start, cell)
        if self._call_soon is not None:
            # The task's first step is in the queue already, and comes before this.
            self._call_soon(self._launch_unless_begun, cell, before)

    def _start(self, cell: Cell) -> None:
        self.task_group.start_soon(cell.run, name=str(cell.address))

    def _launch_unless_begun(self, cell: Cell, before: int) -> None:
        """Launch `cell` again if its task was cancelled before it has begun: it never will."""
        if cell.lifecycle.incarnation == before:
            # For the task group this is a task that has failed: it has cancelled the others.
            self.system._lose(f"that of {cell.address}, before it had begun")
            cell.discard_run()
            in_a_task(functools.partial(self.launch, cell))

    def start_task(
        self,
        name: str,
        function: Callable[[], Coroutine[Any, Any, None]],
        has_begun: Callable[[], bool],
    ) -> None:
        # In a context of its own, as it is no part of what has set it off.
        run = self.loop.empty_context.copy().run
        start_surely(
            lambda begin: run(lambda: self.task_group.start_soon(begin, name=name)),
            function,
            has_begun,
        )

    def start_task_here(
        self,
        name: str,
        function: Callable[[], Coroutine[Any, Any, None]],
        has_begun: Callable[[], bool],
    ) -> None:
        start_surely(
            lambda begin: self.task_group.start_soon(begin, name=name), function, has_begun
        )

    def end_left_open(self) -> None:
        """Stop everything, as the actor that started the system has ended without stopping it."""
        left_open = f"nobody has stopped the system {self.system.system_id!r}"
        self.system._begin_shutdown(TaskGroupLeftOpen(left_open))

    async def park(self) -> None:
        self.parked += 1
        await wait_through(self.system._shutdown.ended)
        await wait_for_groups_left_open()


class _Guardian:
    """The parent of top-level actors."""

    ref: None = None

    def __init__(
        self,
        policy: SupervisionPolicy,
        escalate: Callable[[Exception], None],
        children: Children[Cell],
        child_was_cancelled: Callable[[], None] | None = None,
    ) -> None:
        self.policy = policy
        self.children = children
        self.shields_children = child_was_cancelled is not None
        self._child_was_cancelled = child_was_cancelled
        self._escalate = escalate

    def child_was_cancelled(self) -> None:
        if self._child_was_cancelled is not None:
            self._child_was_cancelled()

    async def decide(self, child: ActorRef, error: Exception) -> Decision:
        del child
        return self.policy.decide(error)

    async def fail(self, error: Exception) -> Outcome:
        self._escalate(error)
        return Decision.STOP


def _variables(
    propagate: Iterable[ContextVar[Any]], telemetry: Telemetry | None
) -> tuple[ContextVar[Any], ...]:
    variables = tuple(propagate) if isinstance(propagate, Iterable) else (propagate,)
    for variable in variables:
        if not isinstance(variable, ContextVar) or not isinstance(propagate, Iterable):
            raise InvalidSetting(f"propagate is a tuple of ContextVars, not {shown(propagate)}")
    own = () if telemetry is None else telemetry.variables
    return tuple(dict.fromkeys((*variables, *own)))


def _check_limits(
    mailbox_capacity: int, shutdown_timeout: float, audit_interval: float | None
) -> None:
    if type(mailbox_capacity) is not int or mailbox_capacity < 1:
        raise InvalidPolicy(
            f"mailbox_capacity is a whole number greater than 0, not {shown(mailbox_capacity)}"
        )
    if not is_seconds(shutdown_timeout):
        raise InvalidPolicy(
            f"shutdown_timeout is seconds, 0 or more, not {shown(shutdown_timeout)}"
        )
    if audit_interval is not None and not is_seconds(audit_interval, above=True):
        raise InvalidPolicy(f"audit_interval is seconds, more than 0, not {shown(audit_interval)}")
