"""The cell: one actor as refs, contexts, its parent and its children reach it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context, ContextVar
from typing import Any, Literal, Protocol, cast

from papyra._cancellation import shield_from_interrupts
from papyra._home_loop import HomeLoop
from papyra._logs import watch_tasks
from papyra._runtime.belongings import (
    Belongings,
    OwnTask,
    checked_work,
    discard_work,
    not_running,
)
from papyra._runtime.children import Children
from papyra._runtime.context_variables import captured
from papyra._runtime.dead_letters import DeadLetters
from papyra._runtime.deadlines import Deadlines
from papyra._runtime.deadlock_detection import Waits
from papyra._runtime.death_watch import DeathWatch
from papyra._runtime.failures import Failures, Outcome, Supervisor
from papyra._runtime.feeds import Feed
from papyra._runtime.lifecycle import Lifecycle
from papyra._runtime.loop import ActorLoop
from papyra._runtime.measured_mailbox import new_mailbox
from papyra._runtime.observed import ObservedContext, ObservedRef
from papyra._runtime.props import Props
from papyra._runtime.recorder import Recorder, Recorders
from papyra._safe_repr import shown, type_name
from papyra._signal import Latch, Signal
from papyra.actor import Actor, ActorContext, System
from papyra.address import ActorAddress
from papyra.class_counters import ClassCounters
from papyra.clock import Clock
from papyra.dispatcher import Dispatcher
from papyra.exceptions import (
    ActorStopped,
    NoChildrenNow,
    NotAnEntity,
    UnhandledMessage,
    WrongTask,
)
from papyra.mailbox import Mailbox, put_bringing
from papyra.output_gate import OutputGate, current_gate
from papyra.ref import ActorRef, Ask, LastMessage, Source, Told, Values
from papyra.ref import Feed as AnyFeed
from papyra.supervision import Decision, SupervisionPolicy
from papyra.telemetry import Telemetry
from papyra.volatile_timers import Timers, is_of_one_life

#: The actor in whose task, or in a task made there, the code runs.
current_cell: ContextVar[Cell | None] = ContextVar("papyra_current_cell", default=None)


# Most actors have none, and a list takes 56 bytes, even if it is empty.
_NO_FEEDS: Any = ()


class Runtime(Protocol):
    """The system, as a cell uses it."""

    @property
    def clock(self) -> Clock: ...

    @property
    def dispatcher(self) -> Dispatcher | None: ...

    @property
    def mailbox_capacity(self) -> int: ...

    @property
    def loop(self) -> HomeLoop: ...

    @property
    def propagate(self) -> Sequence[ContextVar[Any]]: ...

    @property
    def telemetry(self) -> Telemetry | None: ...

    @property
    def latest_values(self) -> list[Any]:
        """What the latest message has brought, as `put_bringing` keeps it."""

    @property
    def system(self) -> System: ...

    @property
    def deadlines(self) -> Deadlines:
        """The deadlines of all its actors."""

    def launch(self, cell: Cell) -> None:
        """Run `cell` in a task of its own."""

    def start_task(
        self,
        name: str,
        function: Callable[[], Coroutine[Any, Any, None]],
        has_begun: Callable[[], bool],
    ) -> None:
        """Run `function`, which is no actor's, in a task of its own and without context."""

    def start_task_here(
        self,
        name: str,
        function: Callable[[], Coroutine[Any, Any, None]],
        has_begun: Callable[[], bool],
    ) -> None:
        """Run `function` in a task of its own, in the context that there is."""

    def interrupt(self, error: BaseException) -> None:
        """End the system, as `error`, which is no `Exception`, demands; it comes out of it."""

    async def park(self) -> None:
        """Return when all actors have stopped."""


class Identity(Protocol):
    """The entity of which a cell is one life."""

    #: as its user has given it
    id: str

    @property
    def ref(self) -> ActorRef:
        """The ref, the same for all lives."""

    @property
    def cell(self) -> Cell | None:
        """The life that runs, if one does."""

    def ended(self, cell: Cell) -> None:
        """Begin another life, should there be messages for it."""


class Watched(Protocol):
    """Whom a ref leads to, as its watchers need it."""

    @property
    def death_watch(self) -> DeathWatch:
        """What watchers are entered in."""


class Parent(Supervisor, Protocol):
    """The cell's parent: another cell, or the guardian of the top-level actors."""

    @property
    def children(self) -> Children[Cell]:
        """The cells it supervises."""


def spawn(
    parent: Parent,
    runtime: Runtime,
    address: ActorAddress,
    props: Props,
    recorders: Recorders,
) -> ActorRef:
    """Make an actor, give it to `parent`, start it, and return its ref."""
    cell = Cell(parent, runtime, address, props, recorders.for_class(props.actor_class))
    # First, as an actor that runs and is no child is stopped by nobody.
    parent.children.add(cell)
    try:
        runtime.launch(cell)
    except BaseException as error:  # outside of the event loop, for one
        # A second Ctrl-C, which asyncio raises anywhere, may have struck behind the launch.
        if not (isinstance(error, KeyboardInterrupt) and cell.is_launched):
            parent.children.remove(cell)
        raise
    cell.counters.actors += 1
    return cell.ref


class Cell:
    """One actor across all its incarnations, put together from its parts.

    What it does with its messages is in its `ActorLoop`. What others decide about it reaches that
    through its `Lifecycle`.
    """

    __slots__ = (
        "_actor_loop",
        "_death_watch",
        "_feeds",
        "_running",
        "_runtime",
        "_waits",
        "address",
        "children",
        "clock",
        "context",
        "dead_letters",
        "dispatcher",
        "entity",
        "failures",
        "is_systems_own",
        "lifecycle",
        "loop",
        "mailbox",
        "parent",
        "propagate",
        "put_nowait",
        "recorder",
        "ref",
        "stopped",
        "telemetry",
    )

    def __init__(
        self,
        parent: Parent,
        runtime: Runtime,
        address: ActorAddress,
        props: Props,
        recorder: Recorder,
        entity: Identity | None = None,
        mailbox: Mailbox[object] | None = None,
    ) -> None:
        self.address = address
        #: the entity of which this is one life
        self.entity = entity
        self.clock = runtime.clock
        self.dispatcher = runtime.dispatcher
        self.loop = runtime.loop
        self.mailbox: Mailbox[object] = (
            new_mailbox(
                props.capacity(runtime.mailbox_capacity),
                *(self.loop.new_signal, self.clock, recorder.counters),
            )
            if mailbox is None
            else mailbox
        )
        #: whether it is part of the system, which waits for no user's actor
        self.is_systems_own = address.name.startswith("$")
        #: what observes it, if anything does
        self.telemetry: Telemetry | None = None
        #: the context variables that travel with messages
        self.propagate: Sequence[ContextVar[Any]] = ()
        if not self.is_systems_own:
            self.telemetry, self.propagate = runtime.telemetry, runtime.propagate
        self.put_nowait: Callable[[object], None] = self.mailbox.put_nowait
        if (
            self.telemetry is not None
            and len(self.propagate) == 1
            and not props.actor_class.batch_types
        ):
            self.put_nowait = put_bringing(
                self.mailbox, self.propagate[0], runtime.latest_values, Ask, Told
            )
        elif self.propagate:
            self.put_nowait = self._put_with_values
        self.ref = self._new_ref() if entity is None else entity.ref
        self.children: Children[Cell] = Children()
        #: set when the actor has stopped, and all that follows from it is done
        self.stopped = Latch()

        self.parent = parent
        self.recorder = recorder
        self.lifecycle = Lifecycle(address, self.mailbox)
        self.dead_letters = DeadLetters(address, self.mailbox, self.lifecycle, recorder)
        self.failures = Failures(self, parent, recorder)
        self.context = (
            ActorContext(self, runtime.system)
            if self.telemetry is None
            else ObservedContext(self, runtime.system, self.telemetry)
        )

        # Made when they are needed: most actors neither watch, nor are watched, nor wait.
        self._death_watch: DeathWatch | None = None
        self._feeds: list[AnyFeed] = _NO_FEEDS
        self._waits: Waits | None = None
        self._runtime = runtime
        self._running: Coroutine[Any, Any, None] | None = None
        self._actor_loop = ActorLoop(self, props)

    @property
    def death_watch(self) -> DeathWatch:
        """The actor's part in watching."""
        if self._death_watch is None:
            self._death_watch = DeathWatch(self.ref, self.mailbox, over=self.stopped.is_set())
        return self._death_watch

    @property
    def waits(self) -> Waits:
        """The actor's waits for others."""
        if self._waits is None:
            self._waits = Waits(self)
        return self._waits

    @property
    def counters(self) -> ClassCounters:
        """The counters of its class."""
        return self.recorder.counters

    @property
    def variables(self) -> Context:
        """The context that the actor lives in."""
        return self._actor_loop.variables

    @property
    def is_woken(self) -> bool:
        """Whether a message has brought it to life, and nobody has spawned it."""
        return self.entity is not None

    @property
    def keeps_keys(self) -> bool:
        return self._actor_loop.keeps_keys

    @property
    def ahead(self) -> tuple[Values, bool] | None:
        return self._actor_loop.ahead

    @property
    def heir(self) -> Cell:
        """The cell that has its mailbox now: itself, or another life of the same entity."""
        if self.entity is not None and self.stopped.is_set():
            return self.entity.cell or self
        return self

    @property
    def entity_id(self) -> str:
        """The id of the entity that it is. Raises `NotAnEntity`."""
        return self._own_entity().id

    @property
    def policy(self) -> SupervisionPolicy:
        return self._actor_loop.actor.supervision

    async def decide(self, child: ActorRef, error: Exception) -> Decision:
        decision = await self._actor_loop.actor.on_child_failure(child, error)
        if not isinstance(decision, Decision):
            raise TypeError(f"on_child_failure returned {shown(decision)}, which is no Decision")
        return decision

    @property
    def shields_children(self) -> bool:
        return False

    def child_was_cancelled(self) -> None:
        raise AssertionError("it does not go on")

    async def fail(self, error: Exception) -> Outcome:
        outcome = await self.failures.decide(error, "a child")
        if outcome is not Decision.RESUME:
            self.lifecycle.apply(outcome, error)
        return outcome

    @property
    def parent_ref(self) -> ActorRef | None:
        return self.parent.ref

    @property
    def child_refs(self) -> tuple[ActorRef, ...]:
        return tuple(cell.ref for cell in self.children)

    def spawn(
        self,
        actor_class: type[Actor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str | None,
        mailbox_capacity: int | None,
    ) -> ActorRef:
        self.loop.check()
        if not self.lifecycle.can_have_children:
            # In __init__ there is nobody yet to supervise them, should it fail.
            raise NoChildrenNow(
                f"{self.address} can have children from on_start on, until it stops"
            )
        props = Props.checked(actor_class, args, kwargs, mailbox_capacity)
        address = self.address.child(self.children.free_name(actor_class, name))
        return spawn(self, self._runtime, address, props, self.recorder)

    def watch(self, ref: ActorRef) -> None:
        self.loop.check()
        self.death_watch.add(_watched(ref).death_watch)

    def unwatch(self, ref: ActorRef) -> None:
        self.loop.check()
        self.death_watch.remove(_watched(ref).death_watch)

    async def queue_up(self, item: object) -> None:
        """Put a message into the mailbox when there is room."""
        await self.mailbox.queue_up(self._with_values(item) if self.propagate else item)

    async def queue_up_told(self, message: object) -> None:
        """Put a message that was told into the mailbox when there is room.

        Raises `WouldDeadlock` if there can't be any before the caller goes on.
        """
        self.loop.check()
        admitted = self.loop.new_signal()
        wait = self.begin_wait(admitted, limited=False)
        try:
            item = self._with_values(message) if self.propagate else message
            await self.mailbox.queue_up(item, admitted)
        finally:
            if wait is not None:
                wait.end()

    def begin_wait(self, until: Signal, *, limited: bool) -> Waits | None:
        """Note that the actor that uses this one's ref waits for it; return the wait if it counts.

        Raises `WouldDeadlock` if this one can't come to handle a message before that actor goes on.
        """
        caller = current_cell.get()
        if caller is None or (self.is_systems_own and caller is not self):
            return None  # as most who wait for the store, which waits for none of them
        caller = self.caller()
        if caller is not None and caller.waits.begin(self, until, limited=limited):
            return caller.waits
        return None

    def feed(self, source: Source, last: LastMessage, over: Callable[[AnyFeed], None]) -> AnyFeed:
        if self.mailbox.closed:
            raise self.stopped_error("is stopping", "never")

        def end(feed: AnyFeed) -> None:
            self._feeds.remove(feed)
            over(feed)

        feed = Feed(self.mailbox, self.loop.new_signal, source, last, end)
        self._feeds = [*self._feeds, feed]
        name = f"{self.address} is fed"
        self._runtime.start_task(name, shield_from_interrupts(feed.run), lambda: feed.has_begun)
        return feed

    def end_feeds(self) -> None:
        """End what feeds this incarnation, and drop what of it is in the mailbox."""
        for feed in tuple(self._feeds):
            feed.end()

    def forget_watches(self) -> None:
        """Take back every `watch`, and the notices of deaths that are in the mailbox."""
        if self._death_watch is not None:
            self._death_watch.forget()
        self.mailbox.discard(is_of_one_life)

    async def refuse(self, message: object, *, expects_reply: bool) -> None:
        await self.dead_letters.add(message, asked=expects_reply)

    def refuse_nowait(self, message: object, *, expects_reply: bool) -> None:
        self.dead_letters.add_nowait(message, asked=expects_reply)

    def refuse_anyway(self, message: object) -> None:
        self.dead_letters.add_anyway(message, asked=False)

    def caller(self) -> Cell | None:
        """Return the actor that uses this one's ref.

        None of another loop: context variables get also into threads that run loops of their own.
        """
        caller = current_cell.get()
        if caller is None or caller.loop is self.loop or caller.loop.is_same(self.loop):
            return caller
        return None

    def own_timers(self) -> Timers:
        return self._belongings().timers

    def set_receive_timeout(self, length: float | None, message: object) -> None:
        self.loop.check()
        self._belongings().set_receive_timeout(length, message)

    def run_in_background(
        self,
        function: Any,
        args: tuple[Any, ...],
        pipe_to_self: Callable[[Any], object] | None,
    ) -> OwnTask:
        try:
            self.loop.check()
            if self.caller() is not self:
                raise WrongTask(f"only {self.address} itself starts tasks that belong to it")
            belongings = self._belongings()
        except BaseException:
            discard_work(function)
            raise
        return belongings.run(checked_work(function, args), pipe_to_self)

    @property
    def is_busy(self) -> bool:
        """Whether it has work in the background."""
        belongings = self._actor_loop.belongings
        return belongings is not None and bool(belongings.tasks)

    @property
    def deadlines(self) -> Deadlines:
        return self._runtime.deadlines

    def captured_values(self) -> Values:
        return captured(self.propagate) if self.propagate else ()

    def start_task(
        self,
        name: str,
        function: Callable[[], Coroutine[Any, Any, None]],
        has_begun: Callable[[], bool],
    ) -> None:
        self._runtime.start_task_here(name, function, has_begun)

    async def fail_in_background(self, error: Exception) -> None:
        outcome = await self.failures.decide(error, "a background task")
        if outcome is not Decision.RESUME:
            self.lifecycle.apply(outcome, error)

    def _belongings(self) -> Belongings:
        """Return what the incarnation has. Raises `ActorNotRunning`."""
        if not self.lifecycle.can_have_children:
            raise not_running(self.address)
        belongings = self._actor_loop.belongings
        if belongings is None or belongings.is_over:
            belongings = Belongings(self)
            self._actor_loop.take_over(belongings)
        return belongings

    def unhandled(self, message: object) -> UnhandledMessage:
        """Make a dead letter of `message`, and fail the ask that it came with, if any."""
        error = UnhandledMessage(f"{self.address} does not handle {type_name(message)}")
        if not self._actor_loop.refuse_at_hand(message, error):
            self.dead_letters.add_anyway(message, asked=False)
        return error

    def settle_first(self, settlement: Callable[[], Awaitable[None]] | None) -> None:
        self.lifecycle.settlement = settlement

    def output_gate(self) -> OutputGate:
        gate = self.lifecycle.gate
        if gate is None:
            gate = self.lifecycle.gate = OutputGate()
        if current_gate.get() is not gate:
            current_gate.set(gate)
        return gate

    async def settle_outputs(self) -> None:
        if self.lifecycle.gate is not None:
            await self.lifecycle.gate.drained()
            self.lifecycle.gate.reset()

    def runs_here(self) -> bool:
        try:
            return self.loop.current_task() is self.lifecycle.task
        except RuntimeError:  # trio's, where it does not run
            return False

    def stop_now(self) -> None:
        """Stop after the message at hand."""
        self.lifecycle.stop()

    def passivate(self) -> None:
        """Go to sleep after the message at hand. Raises `NotAnEntity`."""
        self._own_entity()
        self.lifecycle.passivate()

    def _own_entity(self) -> Identity:
        if self.entity is None:
            raise NotAnEntity(
                f"{self.address} was spawned: entities are those that 'system.entity(...)' leads to"
            )
        return self.entity

    def stopped_error(self, what: str, handled: Literal["never", "maybe"]) -> ActorStopped:
        return self.lifecycle.stopped_error(what, handled)

    async def stop(self) -> None:
        """Stop after the messages in the mailbox; wait for that unless it would be in vain."""
        self.loop.check()
        self.mailbox.close()
        caller = self.caller()
        if caller is None:
            await self.stopped.wait()
        else:
            await caller.waits.for_end_of(self)

    def cancel(self) -> None:
        """Cancel this actor and its descendants."""
        ahead = [self]
        while ahead:
            cell = ahead.pop()
            cell.lifecycle.cancel()
            ahead += cell.children

    def run(self) -> Coroutine[Any, Any, None]:
        """Return the coroutine of one incarnation."""
        self._running = shield_from_interrupts(self._actor_loop.run)()
        return self._running

    def discard_run(self) -> None:
        """Let go of an incarnation whose task was cancelled before it has begun."""
        if self._running is not None:
            self._running.close()

    def _put_with_values(self, item: object) -> None:
        self.mailbox.put_nowait(self._with_values(item))

    def _with_values(self, item: object) -> object:
        """Return `item` with its sender's context variables; a batch has no one sender."""
        message = item.message if type(item) is Ask else item
        values = () if self._actor_loop.takes_in_batches(message) else captured(self.propagate)
        if type(item) is Ask:
            item.values = values
            return item
        return Told(item, values) if values else item

    def launch_again(self) -> None:
        """Run the next incarnation."""
        self.lifecycle.renew_scope()
        self._runtime.launch(self)

    def interrupt(self, error: BaseException) -> None:
        """End the system with `error`."""
        self._runtime.interrupt(error)

    async def park(self) -> None:
        """Return when all actors of the system have stopped."""
        await self._runtime.park()

    def _new_ref(self) -> ActorRef:
        return ActorRef(self) if self.telemetry is None else ObservedRef(self, self.telemetry)

    @property
    def is_launched(self) -> bool:
        """Whether there is a first incarnation, or is about to be."""
        return self._running is not None

    @property
    def has_ended(self) -> bool:
        """Whether all who want to know have been told that the actor has stopped."""
        return self.stopped.is_set()

    def new_variables(self) -> Context:
        """Return the context that an incarnation starts from: this actor's, and empty otherwise."""
        variables = self.loop.empty_context.copy()
        variables.run(current_cell.set, self)
        return variables

    def end(self) -> None:
        """Tell all who want to know that the actor has stopped."""
        self.parent.children.remove(self)
        self.counters.actors -= 1
        self.end_feeds()
        if self._death_watch is not None:
            self._death_watch.end()
        if self.entity is not None:
            self.counters.entities_awake -= 1
            self.entity.ended(self)
        self.stopped.set()


def _watched(ref: ActorRef) -> Watched:
    if not isinstance(ref, ActorRef):
        raise TypeError(f"an actor is watched by its ActorRef, not by {shown(ref)}")
    return cast("Watched", ref._cell)


def _fields_here() -> dict[str, str | None]:
    """Return the fields of what is logged where this is called, if that is in an actor."""
    cell = current_cell.get()
    if cell is None:
        return {}
    message_type, correlation_id = cell._actor_loop.at_hand()
    return {
        "papyra_actor": str(cell.address),
        "papyra_message_type": message_type,
        "papyra_correlation_id": correlation_id,
    }


watch_tasks(_fields_here)
