"""The children of one actor, or of the guardian: keep their names, and stop them in order."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from papyra._runtime.lifecycle import Lifecycle
from papyra._signal import Latch
from papyra.address import ActorAddress, users_name
from papyra.exceptions import DuplicateActorName
from papyra.mailbox import Mailbox


class Child(Protocol):
    """An actor, as its parent stops it."""

    address: ActorAddress
    mailbox: Mailbox[object]
    lifecycle: Lifecycle
    stopped: Latch

    def cancel(self) -> None:
        """Cancel the actor and its descendants."""


ChildT = TypeVar("ChildT", bound=Child)

# Most actors have none, and a dictionary takes 64 bytes, even if it is empty.
_NO_CELLS: Any = MappingProxyType({})


class Children(Generic[ChildT]):
    """Living cells by name, in the order they were spawned."""

    __slots__ = (
        "_cells",
        "_spawned",
    )

    def __init__(self) -> None:
        self._cells: dict[str, ChildT] = _NO_CELLS
        self._spawned = 0

    def __iter__(self) -> Iterator[ChildT]:
        return iter(tuple(self._cells.values()))

    def __len__(self) -> int:
        return len(self._cells)

    def get(self, name: str) -> ChildT | None:
        """Return the child called `name`."""
        return self._cells.get(name)

    def free_name(self, actor_class: type, name: object) -> str:
        """Return `name` if it is free, or make one from the class if it is `None`.

        Raises `InvalidActorName` and `DuplicateActorName`.
        """
        if name is not None:
            given = users_name(name)
            if given in self._cells:
                raise DuplicateActorName(
                    f"there is an actor at {self._cells[given].address} already: "
                    "choose another name, or stop that one first"
                )
            return given
        while True:
            self._spawned += 1
            made = users_name(f"{actor_class.__name__}-{self._spawned}")
            if made not in self._cells:
                return made

    def add(self, cell: ChildT) -> None:
        """Take `cell` in under its name."""
        if self._cells is _NO_CELLS:
            self._cells = {}
        self._cells[cell.address.name] = cell

    def remove(self, cell: ChildT) -> None:
        """Forget `cell`; its name is free."""
        if self._cells:
            self._cells.pop(cell.address.name, None)

    async def stop(self, *, drain: bool, cause: BaseException | None = None) -> None:
        """Stop all, the last spawned first, as Erlang's supervisors do.

        Later actors are given refs to earlier ones more often than the other way round; so what a
        later one still sends while it stops finds the earlier ones alive. With `drain`, each
        handles what is in its mailbox first. `cause` is what those are told who wait for a reply.
        """
        if not drain:
            self.finish_at_hand(cause)
        while self._cells:
            cell = next(reversed(self._cells.values()))
            if cell.lifecycle.cause is None:
                cell.lifecycle.cause = cause
            cell.mailbox.close()
            await cell.stopped.wait()

    def finish_at_hand(self, cause: BaseException | None) -> None:
        """Have each stop after the message at hand, because of `cause`."""
        for cell in self:
            cell.lifecycle.stop(cause)

    def cancel(self) -> None:
        """Cancel whatever any of them, or of their descendants, is doing."""
        for cell in self:
            cell.cancel()
