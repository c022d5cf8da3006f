"""Where an actor is."""

from __future__ import annotations

import msgspec

from papyra.exceptions import InvalidActorName

__all__ = ("ActorAddress", "check_name")


class ActorAddress(msgspec.Struct, frozen=True, order=True):
    """The place of an actor in its system: ``str(address)`` is ``"shop/cart/line-1"``.

    An address names a place, not an incarnation: it stays the same when the actor restarts,
    and once an actor has stopped, a later one may take its place.
    """

    system_id: str
    #: the names from the top-level actor down, joined with ``/``
    path: str

    def __str__(self) -> str:
        return f"{self.system_id}/{self.path}" if self.path else self.system_id

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> ActorAddress | None:
        """The address of the parent, or ``None`` for a top-level actor."""
        above = self.path.rpartition("/")[0]
        return ActorAddress(self.system_id, above) if above else None

    def child(self, name: str) -> ActorAddress:
        """Return the address of the child called `name`.

        Raises `InvalidActorName` when `name` is not a printable string without ``/``.
        """
        check_name(name)
        return ActorAddress(self.system_id, f"{self.path}/{name}" if self.path else name)


def check_name(name: object) -> None:
    """Raise `InvalidActorName` unless `name` can be a part of an address."""
    if not isinstance(name, str) or not name or not name.isprintable() or "/" in name:
        raise InvalidActorName(name)
