"""Actors, as users write them: the class to subclass, its context, its refusals."""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, ClassVar, Protocol, TypeVar, overload

import anyio

from papyra._durations import is_seconds
from papyra._home_loop import HomeLoop
from papyra._portal import Portal
from papyra._safe_repr import shown
from papyra._threads import run_in_thread
from papyra.address import ActorAddress, users_name
from papyra.audit import AuditReport
from papyra.class_counters import ClassCounters
from papyra.clock import Clock
from papyra.durable_timers import DurableTimers
from papyra.entity import AwakeEntities, EntityRef
from papyra.exceptions import InvalidActor, InvalidActorName, UnhandledMessage
from papyra.output_gate import OutputGate
from papyra.persistence.messages import Append, Appended
from papyra.persistence.records import Kind, PersistedEvent, event_record
from papyra.persistence.subscription import Selection
from papyra.persistence.verbs import PersistenceVerbs
from papyra.ref import ActorRef, Values
from papyra.supervision import Decision, OneForOne, SupervisionPolicy
from papyra.telemetry import Telemetry
from papyra.volatile_timers import Timers

ResultT = TypeVar("ResultT")


class Entities(AwakeEntities, Protocol):
    """The entities of a system: who is awake, and how each type of them is made."""

    def register(self, actor_class: type[Actor], *args: Any, **kwargs: Any) -> None:
        """Have entities of this class made by ``actor_class(*args, **kwargs)``, whenever they wake.

        That is for what they depend on; each finds its own id in ``self.context.entity_id``, from
        ``__init__`` on. A class without arguments need not be registered. Call it before the first
        ``system.entity`` of this class; the system need not have started.

        Raises `DuplicateEntityName` if this class, or another of its `Actor.entity_name`, is known
        already; `DuplicateActorName` if an actor lives under that name; `InvalidActorName` for a
        name that can't be part of an address; `InvalidActor` for a class that can't be called so.
        """


class System(Protocol):
    """The `ActorSystem`, as its actors see it: they neither start nor stop it."""

    @property
    def system_id(self) -> str:
        """The system's name."""

    @property
    def is_running(self) -> bool:
        """Whether actors can be spawned."""

    @property
    def clock(self) -> Clock:
        """The clock that the system reads and waits by."""

    @property
    def persistence(self) -> ActorRef:
        """The system's persistence actor."""

    @property
    def backend(self) -> PersistenceVerbs:
        """The backend that the persistence actor hosts; its verbs go through that actor."""

    @property
    def portal(self) -> Portal:
        """The way to the actors from other threads."""

    @property
    def telemetry(self) -> Telemetry | None:
        """What observes the system, if anything does."""

    @property
    def recoveries(self) -> anyio.Semaphore:
        """How many more actors may read their histories at the same time."""

    def spawn(
        self,
        actor_class: type[Actor],
        *args: Any,
        name: str | None = None,
        mailbox_capacity: int | None = None,
        **kwargs: Any,
    ) -> ActorRef:
        """Start a top-level actor, and return its ref."""

    def entity(self, actor_class: type[Actor], entity_id: str) -> EntityRef:
        """Return the ref of an entity."""

    @property
    def entities(self) -> Entities:
        """The entities that are awake, and how they are made."""

    @property
    def timers(self) -> DurableTimers:
        """The durable timers that are pending."""

    def find(self, address: ActorAddress | str) -> ActorRef | None:
        """Return the living actor at `address`."""

    def selection(
        self,
        *,
        kinds: Sequence[Kind],
        types: Iterable[str | type] | None,
        actor: ActorRef | ActorAddress | str | None,
        entity: type[Actor] | None,
    ) -> Selection:
        """Return what a subscription gives out, and in which form."""

    def audit(self) -> AuditReport:
        """Return the health of the system now."""


class BackgroundTask(Protocol):
    """A task that an actor has in the background."""

    def cancel(self) -> None:
        """Cancel it: nothing comes of it any more, and that is no failure. Does not wait."""


class ContextOwner(Protocol):
    """The actor that a context is for."""

    address: ActorAddress
    ref: ActorRef
    clock: Clock
    loop: HomeLoop

    @property
    def counters(self) -> ClassCounters:
        """The counters of its class."""

    @property
    def parent_ref(self) -> ActorRef | None:
        """The ref of the parent, or `None` for a top-level actor."""

    @property
    def child_refs(self) -> tuple[ActorRef, ...]:
        """The refs of the living children, in the order they were spawned."""

    @property
    def ahead(self) -> tuple[Values, bool] | None:
        """The context variables of the message that comes next, and whether it was asked."""

    def spawn(
        self,
        actor_class: type[Actor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str | None,
        mailbox_capacity: int | None,
    ) -> ActorRef:
        """Start a child, and return its ref."""

    @property
    def entity_id(self) -> str:
        """The id of the entity that it is. Raises `NotAnEntity`."""

    def passivate(self) -> None:
        """Have the entity go to sleep after the message at hand. Raises `NotAnEntity`."""

    def watch(self, ref: ActorRef) -> None:
        """Have a `Terminated` sent when `ref` has stopped."""

    def unwatch(self, ref: ActorRef) -> None:
        """Take `watch` back."""

    def stop_now(self) -> None:
        """Stop after the message at hand."""

    def unhandled(self, message: object) -> UnhandledMessage:
        """Make a dead letter of `message`, and fail the ask that it came with, if any."""

    def own_timers(self) -> Timers:
        """Return the timers of the incarnation. Raises `ActorNotRunning`."""

    def set_receive_timeout(self, length: float | None, message: object) -> None:
        """Have `message` come whenever there was no other for `length` seconds."""

    def run_in_background(
        self,
        function: Any,
        args: tuple[Any, ...],
        pipe_to_self: Callable[[Any], object] | None,
    ) -> BackgroundTask:
        """Await `function`, or what it returns for `args`, in a task of the actor's."""

    def settle_first(self, settlement: Callable[[], Awaitable[None]] | None) -> None:
        """Have `settlement` return before each message from now on; `None` takes it back."""

    def output_gate(self) -> OutputGate:
        """Return what the outputs of this actor pass from now on."""

    async def settle_outputs(self) -> None:
        """Wait until the appends at the gate have been answered, and open it."""

    def runs_here(self) -> bool:
        """Return whether this code runs in the actor's own task."""


class HandlesOnce(Protocol):
    """An actor that knows by an idempotency key that it has handled a message before."""

    async def receive_once(self, message: Any, idempotency_key: str) -> Any:
        """Handle one message, as ``receive``, or reply as the first time if that was before."""


def handles_once(actor_class: type) -> bool:
    """Return whether actors of a class are `HandlesOnce`."""
    # Protocols that are looked up take ten times as long.
    return hasattr(actor_class, "receive_once")


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A reply that is raised in the one who asked, while the actor goes on.

    To raise in ``receive`` is to crash, and supervision takes over. To return a `Failure` is to
    say no.
    """

    error: Exception

    def __post_init__(self) -> None:
        if not isinstance(self.error, Exception):
            raise TypeError(f"a Failure is made of an exception, not {shown(self.error)}")


class ActorContext:
    """An actor's own view of the system, as ``self.context``. The same one across restarts."""

    __slots__ = ("_actor_address", "_owner", "_system", "_system_id")

    def __init__(self, owner: ContextOwner, system: System) -> None:
        self._owner = owner
        self._system = system
        self._system_id = system.system_id
        self._actor_address = str(owner.address)

    @property
    def self_ref(self) -> ActorRef:
        """The actor's own ref, for others to keep."""
        return self._owner.ref

    @property
    def parent(self) -> ActorRef | None:
        """The parent, or `None` for a top-level actor."""
        return self._owner.parent_ref

    @property
    def children(self) -> tuple[ActorRef, ...]:
        """The living children, in the order they were spawned."""
        return self._owner.child_refs

    @property
    def system(self) -> System:
        """The system."""
        return self._system

    @property
    def clock(self) -> Clock:
        """The system's clock: an actor that waits by it can be tested without waiting."""
        return self._owner.clock

    @property
    def counters(self) -> ClassCounters:
        """The counters of this actor's class, for those who extend Papyra to count with."""
        return self._owner.counters

    @property
    def persistence(self) -> ActorRef:
        """The system's persistence actor."""
        return self._system.persistence

    def spawn(
        self,
        actor_class: type[Actor],
        *args: Any,
        name: str | None = None,
        mailbox_capacity: int | None = None,
        **kwargs: Any,
    ) -> ActorRef:
        """Start a child; as `ActorSystem.spawn`.

        Raises `NoChildrenNow` in ``__init__``, and once this actor is stopping. When this actor
        restarts, its children are stopped.
        """
        return self._owner.spawn(actor_class, args, kwargs, name, mailbox_capacity)

    def entity(self, actor_class: type[Actor], entity_id: str) -> EntityRef:
        """Return the ref of an entity; as `ActorSystem.entity`. It is no child of this actor."""
        return self._system.entity(actor_class, entity_id)

    @property
    def entity_id(self) -> str:
        """The id of the entity that this actor is, from ``__init__`` on.

        Raises `NotAnEntity` in an actor that was spawned.
        """
        return self._owner.entity_id

    def passivate(self) -> None:
        """Have this entity go to sleep after the message that it is handling.

        Its actor stops, ``on_stop`` included. What else is in the mailbox, and what comes
        meanwhile, wakes it again. In ``on_start`` it has no effect while messages wait. Raises
        `NotAnEntity` in an actor that was spawned.
        """
        self._owner.loop.check()
        self._owner.passivate()

    def watch(self, ref: ActorRef) -> None:
        """Have a `Terminated` sent to this actor when `ref` has stopped; at once if it has.

        Of an entity, that is when it falls asleep, for whatever reason; at once if it sleeps.
        """
        self._owner.watch(ref)

    def unwatch(self, ref: ActorRef) -> None:
        """Take `watch` back. A `Terminated` that is in the mailbox already stays there."""
        self._owner.unwatch(ref)

    def stop(self) -> None:
        """Stop this actor after the message it is handling.

        What else is in its mailbox becomes dead letters. To have that handled first, use
        ``self_ref.stop()``.
        """
        self._owner.loop.check()
        self._owner.stop_now()

    def unhandled(self, message: object) -> UnhandledMessage:
        """Make a dead letter of `message`, as `Actor.unhandled` does; return the asker's error."""
        self._owner.loop.check()
        return self._owner.unhandled(message)

    @property
    def timers(self) -> Timers:
        """The volatile timers of this incarnation; as `Actor.timers`.

        Raises `ActorNotRunning` in ``__init__``, and once the actor is stopping or restarting.
        """
        return self._owner.own_timers()

    def receive_timeout(self, seconds: float | None, message: object = None) -> None:
        """Send `message` to this actor whenever nobody has sent it any for so many seconds.

        That begins now, and again with each message that it has handled; those of its own timers
        do not count, nor does this one, so it comes again after the same time. `None` for `seconds`
        ends it; another call replaces it. Like a timer it ends with the incarnation, and does not
        keep an entity awake: one with a shorter `Actor.idle_timeout` sleeps before it comes.

        Raises `InvalidPolicy` for a time that makes no sense, and as `Timers.start`.
        """
        self._owner.set_receive_timeout(seconds, message)

    @overload
    def run_in_background(
        self,
        function: Callable[..., Awaitable[ResultT]],
        *args: Any,
        pipe_to_self: Callable[[ResultT], object] | None = None,
    ) -> BackgroundTask: ...

    @overload
    def run_in_background(
        self,
        function: Awaitable[ResultT],
        *,
        pipe_to_self: Callable[[ResultT], object] | None = None,
    ) -> BackgroundTask: ...

    def run_in_background(
        self,
        function: Any,
        *args: Any,
        pipe_to_self: Callable[[Any], object] | None = None,
    ) -> BackgroundTask:
        """Await ``function(*args)``, or a coroutine, in a task that belongs to this actor.

        The actor goes on with its messages meanwhile. ``pipe_to_self(result)`` makes a message of
        the result, which is sent to the actor when there is room in its mailbox. What the task
        raises is the failure of the actor: its supervisor decides, as if `receive` had raised it.

        When the actor stops or restarts, the task is cancelled, and waited for before ``on_stop``;
        a result that was not handled by then becomes a dead letter. An entity is not idle while it
        has such a task. To cancel the task of asyncio itself ends it without a result.

        Raises `ActorNotRunning` in ``__init__``, and once the actor is stopping or restarting,
        `WrongTask` where it is not the actor that calls, and `TypeError` for what can't be awaited:
        a function that blocks is for `run_in_thread`.
        """
        return self._owner.run_in_background(function, args, pipe_to_self)

    async def run_in_thread(self, function: Callable[..., ResultT], *args: Any) -> ResultT:
        """Return what ``function(*args)`` returns in a thread, and raise what it raises.

        For functions that block. Awaited in `receive`, it holds up the messages of this actor, and
        nobody else's; ``run_in_background(self.context.run_in_thread, function)`` does not. As many
        run at a time as anyio's default thread limiter lets (40).

        Nothing ends a thread from outside. Whoever waits here and is cancelled, be it by a timeout
        or as the actor or the system stops, goes on at once; the function runs on by itself to its
        end, and what it returns or raises is dropped. It keeps neither the system nor the process.
        """
        self._owner.loop.check()
        return await run_in_thread(self._owner.loop, function, args)

    @property
    def ahead(self) -> tuple[Values, bool] | None:
        """The context variables of the message that comes next, and whether it was asked.

        `None` if none waits, or if it has brought none. For telemetry.
        """
        return self._owner.ahead

    def settle_first(self, settlement: Callable[[], Awaitable[None]] | None) -> None:
        """Call `settlement` before each message, until it is taken back with `None`.

        What it raises goes to the one who asked, and the message becomes a dead letter: for actors
        that can't handle any before something has been settled. A restart takes it back.
        """
        self._owner.settle_first(settlement)

    def output_gate(self) -> OutputGate:
        """Return the gate that the replies, tells and asks of this actor pass from now on."""
        return self._owner.output_gate()

    async def settle_outputs(self) -> None:
        """Wait until the appends at the gate, if there is one, have been answered, and open it."""
        await self._owner.settle_outputs()

    @property
    def is_own_task(self) -> bool:
        """Whether this code runs in the actor's own task, and not in one that was started there."""
        return self._owner.runs_here()

    @property
    def runs_here(self) -> Callable[[], bool]:
        """Return what returns `is_own_task`, for who has to ask often."""
        return self._owner.runs_here

    def event(self, event: object) -> PersistedEvent:
        """Return `event` as a record of this actor's, with the time now.

        `event` is a msgspec Struct or a dataclass, whose class gives the event type, or a pair of
        type name and mapping. Raises `InvalidRecord` for anything else. The record holds `event`
        itself, and is encoded when it is written: do not change it after it was told.
        """
        return event_record(self._system_id, self._actor_address, event, self._owner.clock.time())

    async def persist(self, event: object) -> int:
        """Store `event`, as `event()` takes it, and return its `seq`.

        On return it is as durable as the backend promises. Raises what the append raises.
        """
        appended: Appended = await self.persistence.ask(Append(self.event(event)))
        return appended.first_seq


class Actor(abc.ABC):
    """Handles messages one at a time.

    The life of an actor: ``__init__``, `on_start`, `receive` for each message, `on_stop`. When it
    fails and is restarted, `on_stop` is called and a new instance starts over with the same
    arguments. Every hook but ``__init__`` is a coroutine function.
    """

    #: what the runtime offers to this actor; set before ``__init__`` runs
    context: ActorContext

    #: how this actor supervises its children
    supervision: ClassVar[SupervisionPolicy] = OneForOne()
    #: messages the mailbox takes before senders wait; `None` for the system's own figure
    mailbox_capacity: ClassVar[int | None] = None
    #: as an entity: the name of its type in addresses, by default that of the class; with a name of
    #: its own, a class can be renamed
    entity_name: ClassVar[str | None] = None
    #: as an entity: seconds without a message after which it is passivated; `None` for never
    idle_timeout: ClassVar[float | None] = None
    #: messages of exactly these types are handed to `receive_batch`, a run of them at a time
    batch_types: ClassVar[tuple[type, ...]] = ()
    #: the longest run that `receive_batch` gets
    batch_limit: int = 1_000

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("on_start", "receive", "receive_batch", "on_stop", "on_child_failure"):
            hook = vars(cls).get(name)
            if isinstance(hook, FunctionType) and not inspect.iscoroutinefunction(hook):
                raise InvalidActor(f"{cls.__name__}.{name} must be 'async def'")
        if not isinstance(cls.supervision, SupervisionPolicy):
            raise InvalidActor(
                f"{cls.__name__}.supervision is OneForOne or OneForAll, "
                f"not {shown(cls.supervision)}"
            )
        _check_entity(cls)

    @functools.cached_property
    def timers(self) -> Timers:
        """The volatile timers of this actor, from ``on_start`` on."""
        return self.context.timers

    async def on_start(self) -> None:
        """Prepare for the first message. If this raises, the actor has failed, not started."""

    @abc.abstractmethod
    async def receive(self, message: Any) -> Any:
        """Handle one message; what it returns is the reply, if the message was asked.

        What it raises goes to the one who asked, and to supervision. A message that it has no use
        for belongs to `unhandled`, as here: ``case _: return self.unhandled(message)``.
        """
        return self.unhandled(message)

    def unhandled(self, message: Any) -> Failure:
        """Make a dead letter of `message`; whoever asked gets `UnhandledMessage`.

        It is called while `message` is handled. To return the failure that it returns, or to leave
        it, comes to the same.
        """
        return Failure(self.context.unhandled(message))

    async def receive_batch(self, messages: Sequence[Any]) -> Sequence[Any]:
        """Handle a run of adjacent messages, all of `batch_types`; return a reply for each.

        What it raises goes to everyone who asked in this run, and to supervision.
        """
        raise NotImplementedError

    async def on_stop(self) -> None:
        """Release whatever `on_start` took. Called once for each successful `on_start`."""

    async def on_child_failure(self, child: ActorRef, error: Exception) -> Decision:
        """Return the decision about a child that failed. As it is, `supervision` decides.

        It is called at once, in the child's task, even while this actor is waiting in `receive`:
        were it to queue up, a parent that asks its failing child would wait for ever. So it must
        not wait for that child.
        """
        del child
        return self.supervision.decide(error)


def _check_entity(actor_class: type[Actor]) -> None:
    """Raise `InvalidActor` if what a class says about itself as an entity makes no sense."""
    name, timeout = actor_class.entity_name, actor_class.idle_timeout
    if timeout is not None and not is_seconds(timeout, above=True):
        raise InvalidActor(
            f"{actor_class.__name__}.idle_timeout is seconds, more than 0, or None for never, "
            f"not {shown(timeout)}"
        )
    if name is not None:
        try:
            users_name(name)
        except InvalidActorName as error:
            raise InvalidActor(f"{actor_class.__name__}.entity_name: {error}") from error
