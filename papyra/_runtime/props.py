"""Props: the class and the arguments from which an actor, and each restart of it, is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from papyra._safe_repr import shown
from papyra.actor import Actor, ActorContext
from papyra.exceptions import InvalidActor

# Most actors are made without, and a dictionary takes 64 bytes, even if it is empty.
_NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class Props(NamedTuple):
    """A class of actors, the arguments to call it with, and the size of the mailbox."""

    actor_class: type[Actor]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    mailbox_capacity: int | None

    @classmethod
    def checked(
        cls,
        actor_class: type[Actor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mailbox_capacity: int | None,
    ) -> Props:
        """Return the props of an actor that a user spawns.

        Raises `InvalidActor` unless that is a class of actors, with types as `batch_types`.
        """
        if not (isinstance(actor_class, type) and issubclass(actor_class, Actor)):
            raise InvalidActor(f"only subclasses of Actor can be spawned, not {shown(actor_class)}")
        types = actor_class.batch_types
        if not isinstance(types, (tuple, list, set, frozenset)) or not all(
            isinstance(each, type) for each in types
        ):
            raise InvalidActor(
                f"{actor_class.__name__}.batch_types is a tuple of types, not {shown(types)}"
            )
        return cls(actor_class, args, kwargs or _NO_KWARGS, mailbox_capacity)

    def capacity(self, default: int) -> int:
        """Return how many messages the mailbox takes."""
        if self.mailbox_capacity is not None:
            return self.mailbox_capacity
        by_class = self.actor_class.mailbox_capacity
        return default if by_class is None else by_class

    def make(self, context: ActorContext) -> Actor:
        """Return a new instance.

        Raises what its ``__init__`` raises, and `InvalidActor` for an odd `batch_limit`.
        """
        # In two steps, so that __init__ can use the context already.
        actor = self.actor_class.__new__(self.actor_class)
        actor.context = context
        actor.__init__(*self.args, **self.kwargs)  # type: ignore[misc]
        limit = actor.batch_limit
        if not isinstance(limit, int) or limit < 1:
            raise InvalidActor(
                f"{self.actor_class.__name__}.batch_limit is a whole number greater than 0, "
                f"not {shown(limit)}"
            )
        return actor
