"""Who waits for whom, so that no actor waits for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from papyra.exceptions import WouldDeadlock

if TYPE_CHECKING:
    from papyra._runtime.cell import Cell
    from papyra._signal import Signal

__all__ = ("Waits",)


#: What an actor waits for in its own task, so that it handles nothing meanwhile: for whom, until
#: when, and whether that one must have stopped, not only come to its next message.
_Wait: TypeAlias = "tuple[Cell, Signal, bool]"


class Waits:
    """What one actor waits for.

    Only what is certain counts: waits in the actor's own task, without a time limit. Tasks that it
    has made may wait for the actor itself, and a limit is a way out.
    """

    __slots__ = ("_cell", "_own", "_stops")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._own: _Wait | None = None
        # In whichever task, and with a limit or not: nobody has to see an actor stop.
        self._stops: tuple[Cell, ...] = ()

    def begin(self, on: Cell, until: Signal, *, limited: bool = False) -> bool:
        """Note that this actor waits for `on` to handle a message, and return whether it counts.

        Raises `WouldDeadlock` if `on` can't come to that before this actor goes on.
        """
        cell = self._cell
        if on is cell:
            if cell.runs_in_this_task():
                raise WouldDeadlock(_sentence(cell, [cell]))
            return False
        if limited or on.is_systems_own or cell.loop.current_task() is not cell.task:
            return False
        if cell.dispatcher is not None and cell.dispatcher.finds_deadlocks:
            return False
        if cell.loop.is_opaque and cell.loop.has_deadline(cell.task):
            return False
        if on.waits._own is not None or not on.can_have_children:
            chain = on.waits.chain_to(cell)
            if chain and not any(link.loop.has_deadline(link.task) for link in chain):
                raise WouldDeadlock(_sentence(cell, chain))
        self._own = (on, until, False)
        return True

    def end(self) -> None:
        """Note that the wait is over."""
        self._own = None

    async def for_end_of(self, other: Cell) -> None:
        """Wait until `other` has stopped, unless it can't stop before this actor goes on."""
        if other.waits.chain_to(self._cell, to_stop=True):
            return
        wait = (other, other.stopped, True)
        self._stops += (other,)
        if self._cell.runs_in_this_task() and not self._cell.loop.has_deadline(self._cell.task):
            self._own = wait
        try:
            await other.stopped.wait()
        finally:
            stops = list(self._stops)
            stops.remove(other)
            self._stops = tuple(stops)
            if self._own is wait:
                self._own = None

    def chain_to(self, other: Cell, *, to_stop: bool = False) -> list[Cell]:
        """Return the actors, this one first and `other` last, of which each waits for the next.

        Empty if this one can come to its next message, or `to_stop` to its end, without `other`.
        """
        came_from: dict[tuple[Cell, bool], tuple[Cell, bool] | None] = {(self._cell, to_stop): None}
        ahead = [(self._cell, to_stop)]
        while ahead:
            here = ahead.pop()
            if here[0] is other:
                return _way(here, came_from)
            for step in here[0].waits._next(*here, stops=to_stop):
                if step not in came_from:
                    came_from[step] = here
                    ahead.append(step)
        return []

    def _next(self, cell: Cell, to_stop: bool, *, stops: bool) -> Iterator[tuple[Cell, bool]]:
        if self._own is not None:
            on, until, must_stop = self._own
            if not until.is_set():
                yield on, must_stop
        if to_stop or not cell.can_have_children:
            # It stops them now, or before it stops itself.
            yield from ((child, True) for child in cell.children)
        if stops:
            yield from ((other, True) for other in self._stops)


def _way(
    end: tuple[Cell, bool], came_from: dict[tuple[Cell, bool], tuple[Cell, bool] | None]
) -> list[Cell]:
    way: list[Cell] = []
    step: tuple[Cell, bool] | None = end
    while step is not None:
        way.append(step[0])
        step = came_from[step]
    return way[::-1]


def _sentence(cell: Cell, chain: list[Cell]) -> str:
    if len(chain) == 1:
        return f"{cell.address} can't wait for itself: it handles its next message after this one"
    waits = ", which waits for ".join(str(link.address) for link in chain)
    return f"{cell.address} can't wait for {waits}: none of them would ever go on"
