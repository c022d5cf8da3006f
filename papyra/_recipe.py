"""How to make an actor: once when it is spawned, and again each time it restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from papyra.actor import Actor
from papyra.exceptions import InvalidActor

if TYPE_CHECKING:
    from papyra.context import ActorContext

__all__ = ("Recipe",)


class Recipe(NamedTuple):
    """A class of actors, the arguments to call it with, and the size of the mailbox."""

    actor_class: type[Actor]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    mailbox_capacity: int | None

    def check(self) -> None:
        """Raise `InvalidActor` for what is no class of actors."""
        if not (isinstance(self.actor_class, type) and issubclass(self.actor_class, Actor)):
            raise InvalidActor(f"only subclasses of Actor can be spawned, not {self.actor_class!r}")

    def capacity(self, default: int) -> int:
        """Return how many messages the mailbox takes."""
        if self.mailbox_capacity is not None:
            return self.mailbox_capacity
        by_class = self.actor_class.mailbox_capacity
        return default if by_class is None else by_class

    def make(self, context: ActorContext) -> Actor:
        """Return a new instance. Raises what its ``__init__`` raises."""
        # In two steps, so that __init__ can use the context already.
        actor = self.actor_class.__new__(self.actor_class)
        actor.context = context
        actor.__init__(*self.args, **self.kwargs)  # type: ignore[misc]
        return actor
