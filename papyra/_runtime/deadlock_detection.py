"""Deadlock detection: refuse a wait that closes a circle of actors waiting for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

from papyra._home_loop import HomeLoop
from papyra._runtime.lifecycle import Lifecycle
from papyra._signal import Latch, Signal
from papyra.address import ActorAddress
from papyra.dispatcher import Dispatcher
from papyra.exceptions import WouldDeadlock


class Waiter(Protocol):
    """An actor that waits for others, and is waited for."""

    address: ActorAddress
    loop: HomeLoop
    dispatcher: Dispatcher | None
    lifecycle: Lifecycle
    stopped: Latch
    #: whether it is part of the system, which waits for no user's actor
    is_systems_own: bool

    @property
    def waits(self) -> Waits:
        """Its waits for others."""

    @property
    def children(self) -> Iterable[Waiter]:
        """The living children, which stop before it."""

    @property
    def heir(self) -> Waiter:
        """The actor that has its mailbox now: itself, or another life of the same entity."""


#: A wait in an actor's own task, so that it handles nothing meanwhile: for whom, what tells whether
#: it is over, and whether that one must have stopped, not only come to its next message.
_Wait: TypeAlias = tuple[Waiter, Callable[[], bool], bool]

#: An actor on a chain of waits, and whether it must have stopped, not only come to a message.
_Step: TypeAlias = tuple[Waiter, bool]


class Waits:
    """The waits of one actor for others.

    Only what is certain counts: waits in the actor's own task, without a time limit. Tasks that it
    has made may wait for the actor itself, and a limit is a way out.
    """

    __slots__ = ("_cell", "_own", "_stops")

    def __init__(self, cell: Waiter) -> None:
        self._cell = cell
        self._own: _Wait | None = None
        # In whichever task, and with a limit or not: nobody has to see an actor stop.
        self._stops: tuple[Waiter, ...] = ()

    def begin(self, on: Waiter, until: Signal, *, limited: bool = False) -> bool:
        """Note that this actor waits for `on` to handle a message, and return whether it counts.

        Raises `WouldDeadlock` if `on` can't come to that before this actor goes on.
        """
        cell = self._cell
        if on is cell:
            if _runs_here(cell):
                raise WouldDeadlock(_sentence(cell, [cell]))
            return False
        if limited or on.is_systems_own or not _runs_here(cell):
            return False
        if cell.dispatcher is not None and cell.dispatcher.finds_deadlocks:
            return False
        if cell.loop.is_opaque and cell.loop.has_deadline(cell.lifecycle.task):
            return False
        if on.waits._own is not None or not on.lifecycle.can_have_children:
            chain = on.waits.chain_to(cell)
            if chain and not any(link.loop.has_deadline(link.lifecycle.task) for link in chain):
                raise WouldDeadlock(_sentence(cell, chain))
        self._own = (on, until.done, False)
        return True

    def end(self) -> None:
        """Note that the wait is over."""
        self._own = None

    def begin_after(self, predecessor: Waiter) -> None:
        """Note that this actor begins when `predecessor` has stopped."""
        self._own = (predecessor, predecessor.stopped.is_set, True)

    async def for_end_of(self, other: Waiter) -> None:
        """Wait until `other` has stopped, unless it can't stop before this actor goes on."""
        if other.waits.chain_to(self._cell, to_stop=True):
            return
        wait = (other, other.stopped.is_set, True)
        self._stops += (other,)
        if _runs_here(self._cell) and not self._cell.loop.has_deadline(self._cell.lifecycle.task):
            self._own = wait
        try:
            await other.stopped.wait()
        finally:
            stops = list(self._stops)
            stops.remove(other)
            self._stops = tuple(stops)
            if self._own is wait:
                self._own = None

    def chain_to(self, other: Waiter, *, to_stop: bool = False) -> list[Waiter]:
        """Return the actors, this one first and `other` last, of which each waits for the next.

        Empty if this one can come to its next message, or `to_stop` to its end, without `other`.
        """
        came_from: dict[_Step, _Step | None] = {(self._cell, to_stop): None}
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

    def _next(self, cell: Waiter, to_stop: bool, *, stops: bool) -> Iterator[_Step]:
        if self._own is not None:
            on, is_over, must_stop = self._own
            if not is_over():
                yield on.heir, must_stop
        if to_stop or not cell.lifecycle.can_have_children:
            # It stops them now, or before it stops itself.
            yield from ((child, True) for child in cell.children)
        if stops:
            yield from ((other, True) for other in self._stops)


def _runs_here(cell: Waiter) -> bool:
    """Return whether this is called in the task of the actor itself."""
    return cell.loop.current_task() is cell.lifecycle.task


def _way(end: _Step, came_from: dict[_Step, _Step | None]) -> list[Waiter]:
    way: list[Waiter] = []
    step: _Step | None = end
    while step is not None:
        way.append(step[0])
        step = came_from[step]
    return way[::-1]


def _sentence(cell: Waiter, chain: list[Waiter]) -> str:
    if len(chain) == 1:
        return f"{cell.address} can't wait for itself: it handles its next message after this one"
    waits = ", which waits for ".join(str(link.address) for link in chain)
    return f"{cell.address} can't wait for {waits}: none of them would ever go on"
