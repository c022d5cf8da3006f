"""Cause: the event for which a projection tells entities what to do, each command once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ("Cause", "caused_by", "current_cause")


class Cause:
    """One event that a projection handles. The commands for it are counted, so each has its key."""

    def __init__(self, projection: str, seq: int, part: int) -> None:
        #: the same whenever this projection handles this event
        self.id = f"{projection}/{seq}.{part + 1}" if part else f"{projection}/{seq}"
        #: the commands so far, by the addresses of those that were told
        self._counts: dict[str, int] = {}

    def next_key(self, address: str) -> str:
        """Return the idempotency key of the next command to one entity."""
        count = self._counts[address] = self._counts.get(address, 0) + 1
        return self.id if count == 1 else f"{self.id}/{count}"


#: The event that is handled in this task, and in those that were started there.
current_cause: ContextVar[Cause | None] = ContextVar("papyra_cause", default=None)


@contextlib.contextmanager
def caused_by(projection: str, seq: int | None, part: int = 0) -> Iterator[None]:
    """Have what runs here be caused by an event, or by one of those that it has become."""
    token = current_cause.set(Cause(projection, seq or 0, part))
    try:
        yield
    finally:
        current_cause.reset(token)
