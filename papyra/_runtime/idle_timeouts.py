"""Idle timeouts: passivate the entities to which nobody has sent anything for a while."""

from __future__ import annotations

from typing import Protocol

from papyra._runtime.deadlines import Deadlines
from papyra._signal import NewSignal
from papyra.clock import Clock
from papyra.mailbox import Mailbox


class Sleepy(Protocol):
    """An entity, as its mailbox sees it."""

    @property
    def is_busy(self) -> bool:
        """Whether it has work in the background."""

    def mailbox_closed(self, mailbox: Mailbox[object]) -> None:
        """Take note that `mailbox` takes no more messages."""

    def passivate(self) -> None:
        """Have the life that runs end after the message at hand."""


class EntityMailbox(Mailbox[object]):
    """The mailbox of an entity, which outlives passivation as long as there are messages in it.

    A message moves no deadline. When one is due, it is looked up since when the entity has been
    idle, and if that is not long enough, the deadline is set anew.
    """

    __slots__ = ("entity", "idle_timeout")

    def __init__(
        self,
        capacity: int,
        new_signal: NewSignal,
        clock: Clock,
        entity: Sleepy,
        idle_timeout: float | None,
    ) -> None:
        super().__init__(capacity, new_signal)
        self.entity = entity
        #: seconds; `None` for never
        self.idle_timeout = idle_timeout
        if idle_timeout is not None:
            self.note_idleness(clock)

    def close(self) -> None:
        super().close()
        self.entity.mailbox_closed(self)

    @property
    def is_over(self) -> bool:
        """Whether nobody is to be passivated any more: there is another mailbox, or the end."""
        return self.closed

    def due(self, now: float) -> float | None:
        """Passivate the entity if it has been idle for so long; return when to look again."""
        idle = self.idle
        if idle is None or self.idle_timeout is None:
            return None
        deadline = now + self.idle_timeout
        if idle.is_idle and not self.entity.is_busy:
            if idle.since + self.idle_timeout <= now:
                self.entity.passivate()
            else:
                deadline = idle.since + self.idle_timeout
        # In any case: before it has stopped there may be a message, and then the mailbox goes on.
        return deadline


def begin_idle_timeout(mailbox: EntityMailbox, deadlines: Deadlines, clock: Clock) -> None:
    """Passivate the entity of `mailbox` whenever it has been idle for so long."""
    if mailbox.idle_timeout is not None:
        # Before the timers of the same moment, which are no reason to stay awake.
        deadlines.add(clock.monotonic() + mailbox.idle_timeout, mailbox, first=True)


def end_idle_timeout(mailbox: EntityMailbox, deadlines: Deadlines) -> None:
    """Forget `mailbox`, which has been closed."""
    if mailbox.idle_timeout is not None:
        deadlines.forget()
