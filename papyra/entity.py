"""Refs to entities: actors that wake with a message, and sleep when nobody needs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self

from papyra.mailbox import Mailbox
from papyra.ref import ActorRef, Recipient


class Sleeper(Recipient, Protocol):
    """The entity behind a ref, while no actor is."""

    #: as the user has given it
    id: str

    @property
    def is_open(self) -> bool:
        """Whether a message would wake it."""


class EntityRef(ActorRef):
    """A handle to an entity. It may be kept for ever, whatever becomes of the actor.

    The first message wakes the entity: an actor is made, and handles it. Later that actor may be
    passivated, so stopped, or it may fail; the next message wakes the entity again. Messages that
    come while one life of it ends are handled by the next: in order, each once, and within the
    capacity of one mailbox. What a failed life leaves in its mailbox becomes dead letters, as with
    any actor.

    While the system lives, there is one such object for each entity.
    """

    __slots__ = ("_entity",)

    def __init__(self, entity: Sleeper) -> None:
        super().__init__(entity)
        self._entity = entity

    @property
    def entity_id(self) -> str:
        """The id, as it was given to ``system.entity``."""
        return self._entity.id

    @property
    def is_alive(self) -> bool:
        """Whether it takes messages, asleep or not: until the system stops its entities."""
        return self._entity.is_open

    async def stop(self) -> None:
        """Have the entity handle the messages in its mailbox, and return when it sleeps.

        It does not wake for this. Messages that are sent from now on wake it again. Inside an actor
        that must itself stop first it returns at once, as `ActorRef.stop` does.
        """
        await self._entity.stop()

    def lead_to(self, recipient: Recipient) -> None:
        """Send what comes next to `recipient`: the runtime says so when lives begin and end."""
        self._cell = recipient
        self._mailbox = recipient.mailbox
        self._put_nowait = recipient.put_nowait

    def leads_to(self, mailbox: Mailbox[object]) -> bool:
        """Return whether what comes next would get into `mailbox`."""
        return self._mailbox is mailbox

    # A copy would miss what becomes of the entity.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<EntityRef {self.address}>"


class AwakeEntity(NamedTuple):
    """An entity that is awake at this moment."""

    type: str  #: the name of its type
    id: str  #: as it was given to ``system.entity``
    ref: EntityRef


class AwakeEntities(Protocol):
    """The entities of a system that are awake, and how often they woke."""

    @property
    def activations(self) -> int:
        """How often an entity was woken, since the system started."""

    @property
    def passivations(self) -> int:
        """How often one went to sleep again in order, so neither failed nor cancelled."""

    def __len__(self) -> int:
        """Return how many are awake. Costs nothing."""

    def __iter__(self) -> Iterator[AwakeEntity]:
        """Iterate over those that are awake now, in the order in which they woke."""
