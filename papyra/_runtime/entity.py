"""One entity: wake it with a message, and begin one life after the other."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Literal, Protocol

from papyra._durations import LONGEST
from papyra._runtime.cell import Cell, Parent, Runtime
from papyra._runtime.deadlock_detection import Waits
from papyra._runtime.death_watch import DeathWatch
from papyra._runtime.idle_timeouts import (
    EntityMailbox,
    begin_idle_timeout,
    end_idle_timeout,
)
from papyra._runtime.observed import ObservedEntityRef
from papyra._runtime.props import Props
from papyra._runtime.recorder import Recorder, Recorders
from papyra._signal import Latch, Signal
from papyra.actor import handles_once
from papyra.address import ActorAddress
from papyra.entity import EntityRef
from papyra.exceptions import ActorStopped, MailboxClosed
from papyra.mailbox import Mailbox
from papyra.ref import Feed, LastMessage, Source
from papyra.supervision import Decision
from papyra.volatile_timers import is_of_one_life


class EntityType:
    """One class of entities, and how they are made."""

    def __init__(self, name: str, props: Props, capacity: int) -> None:
        self.name = name
        self.props = props
        self.capacity = capacity
        #: by id; those that somebody holds, and those that are awake
        self.refs: weakref.WeakValueDictionary[str, EntityRef] = weakref.WeakValueDictionary()

    @property
    def idle_timeout(self) -> float | None:
        """Seconds; `None` for never."""
        timeout = self.props.actor_class.idle_timeout
        return None if timeout is None or timeout > LONGEST else float(timeout)


class Lives(Protocol):
    """The entities of a system, as one of them needs them."""

    runtime: Runtime
    parent: Parent
    recorders: Recorders
    #: what the refs of those that sleep lead to
    closed_mailbox: Mailbox[object]
    #: set when nobody is woken any more
    closed: Latch
    #: the error for which the system stops
    cause: BaseException | None

    def address(self, type_name: str, entity_id: str) -> ActorAddress:
        """Return where an entity is."""

    def new_mailbox(self, entity: Entity) -> EntityMailbox:
        """Return the mailbox of a life that takes over from no other."""

    def begin(self, entity: Entity, cell: Cell) -> None:
        """Begin a life."""

    def ended(self, cell: Cell) -> None:
        """Take note that a life has ended."""


class Entity:
    """One entity across all its lives, and what its ref leads to while it sleeps.

    Each life is a cell. While one runs and takes messages, the ref leads there. Once it takes no
    more, the ref leads here again, and the next message makes another cell. That one begins at
    once, or when the one before has ended. So one mailbox follows the other, or, where a life is
    passivated with messages left, is handed on.
    """

    __slots__ = (
        "_lives",
        "_ref",
        "address",
        "cell",
        "clock",
        "following",
        "id",
        "loop",
        "mailbox",
        "stopped",
        "type",
    )

    def __init__(self, lives: Lives, entity_type: EntityType, entity_id: str) -> None:
        self._lives = lives
        self.type = entity_type
        self.id = entity_id
        self.address = lives.address(entity_type.name, entity_id)
        self.loop = lives.runtime.loop
        self.clock = lives.runtime.clock
        self.mailbox = lives.closed_mailbox
        self.stopped = lives.closed
        self._ref: weakref.ref[EntityRef]
        #: the life that runs, if one does
        self.cell: Cell | None = None
        #: the lives that begin when that has ended, one after the other, for messages that came
        #: meanwhile; none but the last gets more
        self.following: tuple[Cell, ...] = ()

    def new_ref(self) -> EntityRef:
        """Return the one ref that there is to be of it."""
        telemetry = self._lives.runtime.telemetry
        made = EntityRef(self) if telemetry is None else ObservedEntityRef(self, telemetry)
        self._ref = weakref.ref(made)  # who sends a message, or lives, holds it
        return made

    @property
    def ref(self) -> EntityRef:
        """The ref, which exists as long as somebody holds it, as each life does."""
        found = self._ref()
        assert found is not None
        return found

    @property
    def keeps_keys(self) -> bool:
        """Whether it knows by an idempotency key that it has handled a message before."""
        return handles_once(self.type.props.actor_class)

    @property
    def is_open(self) -> bool:
        """Whether a message would wake it."""
        return not self._lives.closed.is_set()

    def put_nowait(self, item: object) -> None:
        """Wake with `item`. Raises `MailboxClosed` when the system stops its entities."""
        self._wake().put_nowait(item)

    def begin_wait(self, until: Signal, *, limited: bool) -> Waits | None:
        """Wake, and note the wait of the actor that runs here; as `Cell.begin_wait`."""
        return self._wake().begin_wait(until, limited=limited) if self.is_open else None

    async def queue_up(self, item: object) -> None:
        """Put `item` into the mailbox when there is room, which is now."""
        self.put_nowait(item)

    async def queue_up_told(self, message: object) -> None:
        """Put a message that was told into the mailbox when there is room, which is now."""
        self.put_nowait(message)

    async def refuse(self, message: object, *, expects_reply: bool) -> None:
        """Make a dead letter of `message`; wait if the store has no room for it."""
        await self._recorder().dead_letter(self.address, message, expects_reply)

    def refuse_nowait(self, message: object, *, expects_reply: bool) -> None:
        """Make a dead letter of `message`; raise `MailboxFull` if the store has no room for it."""
        self._recorder().dead_letter_nowait(self.address, message, expects_reply)

    def refuse_anyway(self, message: object) -> None:
        """Make a dead letter of `message`, whether the store has room for it or not."""
        self._recorder().dead_letter_left(self.address, message, False)

    def feed(self, source: Source, last: LastMessage, over: Callable[[Feed], None]) -> Feed:
        """Raise `ActorStopped`: while it sleeps, there is nobody with whose life that could end."""
        del source, last, over
        raise ActorStopped(f"{self.address} is asleep", handled="never")

    def stopped_error(self, what: str, handled: Literal["never", "maybe"]) -> ActorStopped:
        """Return the error for who asked when the system no longer wakes its entities."""
        del what
        why = f"{self.address} is not woken any more, as its system stops"
        error = ActorStopped(why, handled=handled)
        error.__cause__ = self._lives.cause
        return error

    async def stop(self) -> None:
        """Return when it sleeps, and has handled what it was sent before."""
        self.loop.check()
        life = self._last_life()
        while life is not None:
            await life.stop()
            if not life.stopped.is_set():
                return  # it can't before the caller goes on
            heir = self.cell
            life = heir if heir is not None and heir.mailbox is life.mailbox else None

    @property
    def is_busy(self) -> bool:
        """Whether the life that runs has work in the background."""
        return self.cell is not None and self.cell.is_busy

    def passivate(self) -> None:
        """Have the life that runs end after the message at hand."""
        if self.cell is not None:
            self.cell.lifecycle.passivate()

    @property
    def death_watch(self) -> DeathWatch:
        """What watchers are entered in: that of the life that ends, or one that is over."""
        if self.cell is not None:
            return self.cell.death_watch
        return DeathWatch(self.ref, self.mailbox, over=True)

    def finish_at_hand(self, cause: BaseException | None) -> None:
        """Have the life that runs end after the message at hand, and begin no other."""
        for cell in self.lives():
            cell.lifecycle.stop(cause)

    def mailbox_closed(self, mailbox: Mailbox[object]) -> None:
        """Have the ref lead here, if it has led to `mailbox`."""
        if (led := self._ref()) is not None and led.leads_to(mailbox):
            led.lead_to(self)

    def ended(self, cell: Cell) -> None:
        """Begin the next life, if there are messages for it."""
        self.cell = None
        self._lives.ended(cell)
        mailbox = cell.mailbox
        # Whom one life watched, and what it sent to itself, is nothing to the next.
        mailbox.discard(is_of_one_life)
        if cell.lifecycle.passivates and len(mailbox):
            heir = self._new_cell(mailbox)
            self._lives.begin(self, heir)
            for following in self.following[:1]:
                following.waits.begin_after(heir)
            if self.ref.leads_to(mailbox):
                self.ref.lead_to(heir)
            return
        mailbox.close()
        cell.dead_letters.empty_mailbox_at_once()  # if it was stopped while it was passivated
        end_idle_timeout(_own_mailbox(cell), self._lives.runtime.deadlines)
        while self.following and self.cell is None:
            following, *rest = self.following
            self.following = tuple(rest)
            if following.lifecycle.directive is Decision.STOP or not len(following.mailbox):
                _discard(following)
            else:
                self._begin(following)

    def _wake(self) -> Cell:
        """Return the cell of the next life, which begins when that before has ended."""
        self.loop.check()
        if not self.is_open:
            raise MailboxClosed
        cell, last = self._new_cell(self._lives.new_mailbox(self)), self._last_life()
        if last is None:
            self._begin(cell)
        else:
            cell.waits.begin_after(last)
            self.following += (cell,)
        self.ref.lead_to(cell)
        return cell

    def lives(self) -> tuple[Cell, ...]:
        """Return the life that runs, and those that are to follow it."""
        return self.following if self.cell is None else (self.cell, *self.following)

    def _last_life(self) -> Cell | None:
        return self.following[-1] if self.following else self.cell

    def _begin(self, cell: Cell) -> None:
        """Begin a life that takes over from no other."""
        self._lives.begin(self, cell)
        begin_idle_timeout(_own_mailbox(cell), self._lives.runtime.deadlines, self.clock)

    def _new_cell(self, mailbox: Mailbox[object]) -> Cell:
        lives = self._lives
        props, recorder = self.type.props, self._recorder()
        return Cell(lives.parent, lives.runtime, self.address, props, recorder, self, mailbox)

    def _recorder(self) -> Recorder:
        return self._lives.recorders.for_class(self.type.props.actor_class)


def _own_mailbox(cell: Cell) -> EntityMailbox:
    assert isinstance(cell.mailbox, EntityMailbox)
    return cell.mailbox


def _discard(cell: Cell) -> None:
    """Give up a life that has not begun."""
    cell.mailbox.close()
    cell.dead_letters.empty_mailbox_at_once()
    cell.death_watch.end()
    cell.stopped.set()
