"""What an actor sees of the system it lives in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from papyra._runtime.props import Recipe
from papyra.actor import Actor
from papyra.clock import Clock
from papyra.exceptions import UnhandledMessage
from papyra.persistence.messages import Append, Appended
from papyra.persistence.records import PersistedEvent, event_record
from papyra.ref import ActorRef

if TYPE_CHECKING:
    from papyra._runtime.cell import Cell
    from papyra.system import ActorSystem

__all__ = ("ActorContext",)


class ActorContext:
    """An actor's own view of the system, as ``self.context``. The same one across restarts."""

    __slots__ = ("_actor_address", "_cell", "_system", "_system_id")

    def __init__(self, cell: Cell, system: ActorSystem) -> None:
        self._cell = cell
        self._system = system
        self._system_id = system.system_id
        self._actor_address = str(cell.address)

    @property
    def self_ref(self) -> ActorRef:
        """The actor's own ref, for others to keep."""
        return self._cell.ref

    @property
    def parent(self) -> ActorRef | None:
        """The parent, or `None` for a top-level actor."""
        return self._cell.parent_ref

    @property
    def children(self) -> tuple[ActorRef, ...]:
        """The living children, in the order they were spawned."""
        return tuple(cell.ref for cell in self._cell.children)

    @property
    def system(self) -> ActorSystem:
        """The system."""
        return self._system

    @property
    def clock(self) -> Clock:
        """The system's clock: an actor that waits by it can be tested without waiting."""
        return self._cell.clock

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
        return self._cell.spawn(Recipe(actor_class, args, kwargs, mailbox_capacity), name)

    def watch(self, ref: ActorRef) -> None:
        """Have a `Terminated` sent to this actor when `ref` has stopped; at once if it has."""
        self._cell.watch(ref._cell)

    def unwatch(self, ref: ActorRef) -> None:
        """Take `watch` back. A `Terminated` that is in the mailbox already stays there."""
        self._cell.unwatch(ref._cell)

    def stop(self) -> None:
        """Stop this actor after the message it is handling.

        What else is in its mailbox becomes dead letters. To have that handled first, use
        ``self_ref.stop()``.
        """
        self._cell.loop.check()
        self._cell.stop_now()

    def unhandled(self, message: object) -> UnhandledMessage:
        """Do what `Actor.unhandled` does, and return the error."""
        self._cell.loop.check()
        return self._cell.unhandled(message)

    def event(self, event: object) -> PersistedEvent:
        """Return `event` as a record of this actor's, with the time now.

        `event` is a msgspec Struct or a dataclass, whose class gives the event type, or a pair of
        type name and mapping. Raises `InvalidRecord` for anything else. The record holds `event`
        itself, and is encoded when it is written: do not change it after it was told.
        """
        return event_record(self._system_id, self._actor_address, event, self._cell.clock.time())

    async def persist(self, event: object) -> int:
        """Store `event`, as `event()` takes it, and return its `seq`.

        On return it is as durable as the backend promises. Raises what the append raises.
        """
        appended: Appended = await self.persistence.ask(Append(self.event(event)))
        return appended.first_seq
