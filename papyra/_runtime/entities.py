"""The entities of a system: how each type of them is made, who is awake, and how all stop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from papyra._runtime.cell import Cell, Parent, Runtime
from papyra._runtime.children import Children
from papyra._runtime.entity import Entity, EntityType
from papyra._runtime.idle_timeouts import EntityMailbox
from papyra._runtime.measured_mailbox import new_entity_mailbox
from papyra._runtime.props import Props
from papyra._runtime.recorder import Recorders
from papyra._safe_repr import shown
from papyra._signal import Latch
from papyra.actor import Actor
from papyra.address import ActorAddress, escaped, users_name
from papyra.entity import AwakeEntity, EntityRef
from papyra.exceptions import (
    DuplicateActorName,
    DuplicateEntityName,
    InvalidActor,
    InvalidEntityId,
)
from papyra.mailbox import Mailbox


class EntityRegistry:
    """The entities of a system: how each type is made, and who is awake."""

    #: the parent of them all
    parent: Parent
    #: there when the system has started
    recorders: Recorders

    def __init__(self, system_id: str, runtime: Runtime) -> None:
        self._system_id = system_id
        self.runtime = runtime
        self._types: dict[type[Actor], EntityType] = {}
        self._names: dict[str, EntityType] = {}
        #: by path, in the order in which they woke
        self.awake: dict[str, Entity] = {}
        #: the error for which the system stops
        self.cause: BaseException | None = None
        #: what the refs of those that sleep lead to
        self.closed_mailbox: Mailbox[object] = Mailbox(1)
        self.closed_mailbox.close()
        #: set when nobody is woken any more
        self.closed = Latch()
        #: how often an entity was woken
        self.activations = 0
        #: how often one went to sleep in order
        self.passivations = 0
        #: called with the name and the class of each type that becomes known
        self.on_new_type: Callable[[str, type[Actor]], None] | None = None

    def __len__(self) -> int:
        return len(self.awake)

    def __iter__(self) -> Iterator[AwakeEntity]:
        return iter(
            [AwakeEntity(each.type.name, each.id, each.ref) for each in self.awake.values()]
        )

    def register(self, actor_class: type[Actor], *args: Any, **kwargs: Any) -> None:
        """Have entities of this class made with these arguments; see `Entities.register`."""
        known = self._types.get(actor_class) if isinstance(actor_class, type) else None
        if known is not None:
            raise DuplicateEntityName(
                f"{_qualified(actor_class)} is known as the entity type {known.name!r} already: "
                "register it once, and before the first system.entity(...) of it"
            )
        self._add(actor_class, args, kwargs)

    def find(self, actor_class: type[Actor], entity_id: str) -> EntityRef:
        """Return the ref of an entity; see `ActorSystem.entity`."""
        entity_type = self._types.get(actor_class) if isinstance(actor_class, type) else None
        if entity_type is None:
            entity_type = self._add(actor_class, (), {})
        # A member of an enum, say, may show itself as something else.
        plain = str.__str__(entity_id) if isinstance(entity_id, str) else ""
        found = entity_type.refs.get(plain)
        if found is None:
            if not plain:
                raise InvalidEntityId(
                    f"the id of an entity is a string, and not an empty one: {shown(entity_id)}"
                )
            found = Entity(self, entity_type, plain).new_ref()
            entity_type.refs[plain] = found
        return found

    def class_of(self, name: str) -> type[Actor] | None:
        """Return the class of the type of entities called `name`, if there is one."""
        known = self._names.get(name)
        return None if known is None else known.props.actor_class

    def has_type(self, name: str) -> bool:
        """Return whether there is a type of entities called `name`."""
        return name in self._names

    def address(self, type_name: str, entity_id: str) -> ActorAddress:
        """Return where an entity is."""
        return ActorAddress(self._system_id, f"{type_name}/{escaped(entity_id)}")

    def close(self, cause: BaseException | None = None) -> None:
        """Wake nobody any more, because of `cause`."""
        if not self.closed.is_set():
            self.cause = cause
            self.closed.set()

    def close_mailboxes(self) -> None:
        """Wake nobody any more, and have those that are awake handle what they have."""
        self.close()
        for entity in tuple(self.awake.values()):
            for cell in entity.lives():
                cell.mailbox.close()

    def new_mailbox(self, entity: Entity) -> EntityMailbox:
        """Return the mailbox of a life that takes over from no other."""
        return new_entity_mailbox(
            entity.type.capacity,
            self.runtime.loop.new_signal,
            self.runtime.clock,
            entity,
            entity.type.idle_timeout,
            self.recorders.for_class(entity.type.props.actor_class).counters,
        )

    def begin(self, entity: Entity, cell: Cell) -> None:
        """Begin a life of `entity`."""
        self.runtime.launch(cell)
        entity.cell = cell
        self.awake[entity.address.path] = entity
        self.activations += 1
        cell.counters.actors += 1
        cell.counters.entities_awake += 1

    def ended(self, cell: Cell) -> None:
        """Take note that a life has ended."""
        if cell.lifecycle.reason == "stopped":
            self.passivations += 1

    def _add(
        self, actor_class: type[Actor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> EntityType:
        """Return a new type of entities."""
        props = Props.checked(actor_class, args, kwargs, None)
        name = users_name(actor_class.entity_name or actor_class.__name__)
        if name in self._names:
            other = self._names[name].props.actor_class
            raise DuplicateEntityName(
                f"{_qualified(actor_class)} and {_qualified(other)} can't both be the entity type "
                f"{name!r}: give one of them an entity_name of its own"
            )
        if self.parent.children.get(name) is not None:
            raise DuplicateActorName(
                f"{_qualified(actor_class)} can't be the entity type {name!r}, as an actor has "
                "this name: give one of them another"
            )
        _check_call(props)
        capacity = props.capacity(self.runtime.mailbox_capacity)
        Mailbox[object](capacity)  # raises for one that makes no sense
        made = EntityType(name, props, capacity)
        self._types[actor_class] = self._names[name] = made
        if self.on_new_type is not None:
            self.on_new_type(name, actor_class)
        return made


class TopLevel(Children[Cell]):
    """The top-level actors: those with a name of their own, and the entities that are awake.

    When the system stops, the entities come last, all at once: until then they can be woken by
    actors that handle what is in their mailboxes.
    """

    __slots__ = ("_entities",)

    def __init__(self, entities: EntityRegistry) -> None:
        super().__init__()
        self._entities = entities

    def __iter__(self) -> Iterator[Cell]:
        yield from super().__iter__()
        yield from self._awake()

    def __len__(self) -> int:
        return super().__len__() + len(self._entities)

    def get(self, name: str) -> Cell | None:
        """Return the actor called `name`, or the entity that is awake at that path."""
        entity = self._entities.awake.get(name)
        return super().get(name) if entity is None else entity.cell

    def free_name(self, actor_class: type, name: object) -> str:
        """Return `name`, or one that is made; as `Children`, and of no type of entities."""
        free = super().free_name(actor_class, name)
        if not self._entities.has_type(free):
            return free
        if name is None:
            return self.free_name(actor_class, None)
        raise DuplicateActorName(f"{free!r} is the name of a type of entities: choose another")

    def remove(self, cell: Cell) -> None:
        """Forget `cell`; its name is free."""
        if cell.entity is None:
            super().remove(cell)
        else:
            self._entities.awake.pop(cell.address.path, None)

    async def stop(self, *, drain: bool, cause: BaseException | None = None) -> None:
        """Stop all actors, the last spawned first, and then all entities."""
        await super().stop(drain=drain, cause=cause)
        self._entities.close_mailboxes()
        while self._entities.awake:
            await next(self._awake()).stopped.wait()

    def finish_at_hand(self, cause: BaseException | None) -> None:
        """Have each stop after the message at hand, because of `cause`."""
        self._entities.close(cause)
        super().finish_at_hand(cause)
        for entity in tuple(self._entities.awake.values()):
            entity.finish_at_hand(cause)

    def cancel(self) -> None:
        """Cancel whatever any of them, or of their descendants, is doing."""
        self._entities.close()
        for entity in tuple(self._entities.awake.values()):
            entity.finish_at_hand(None)
        super().cancel()

    def _awake(self) -> Iterator[Cell]:
        return (entity.cell for entity in tuple(self._entities.awake.values()) if entity.cell)


def _check_call(props: Props) -> None:
    """Raise `InvalidActor` if no instance could be made."""
    actor_class = props.actor_class
    if inspect.isabstract(actor_class):
        missing = ", ".join(sorted(actor_class.__abstractmethods__))
        raise InvalidActor(f"{_qualified(actor_class)} is abstract: it lacks {missing}")
    try:
        signature = inspect.signature(actor_class)
    except (TypeError, ValueError):
        return  # it does not say
    try:
        signature.bind(*props.args, **props.kwargs)
    except TypeError as error:
        name = actor_class.__name__
        raise InvalidActor(
            f"{_qualified(actor_class)} can't be made with the arguments that it is registered "
            f"with: {error}. Say system.entities.register({name}, ...) with what it depends on; "
            "its own id is in self.context.entity_id"
        ) from error


def _qualified(actor_class: type) -> str:
    return f"{actor_class.__module__}.{actor_class.__qualname__}"
