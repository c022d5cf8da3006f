"""The parts that a Ctrl-C of trio's must not tear apart.

Trio raises ``KeyboardInterrupt`` at any bytecode of any task that is not its own. In the midst of
these it would lose a wake-up, or leave an actor that nobody stops, and the system would never end.
So it strikes where the main task waits next. Code of users that actors run is not shielded.
"""

from __future__ import annotations

from collections.abc import Callable

from papyra._cancellation import shield_from_interrupts, shield_methods_from_interrupts
from papyra._runtime.belongings import Belongings
from papyra._runtime.cell import Cell, spawn
from papyra._runtime.children import Children
from papyra._runtime.dead_letters import DeadLetters
from papyra._runtime.deadlines import Deadlines
from papyra._runtime.deadlock_detection import Waits
from papyra._runtime.death_watch import DeathWatch
from papyra._runtime.entities import EntityRegistry, TopLevel
from papyra._runtime.entity import Entity
from papyra._runtime.idle_timeouts import EntityMailbox
from papyra._runtime.lifecycle import Lifecycle
from papyra._runtime.measured_mailbox import MeasuredEntityMailbox, MeasuredMailbox
from papyra._signal import Latch
from papyra.entity import EntityRef
from papyra.mailbox import Mailbox
from papyra.output_gate import OutputGate
from papyra.ref import ActorRef, Ask
from papyra.volatile_timers import Timers

_CLASSES: tuple[type, ...] = (
    *(ActorRef, EntityRef, Ask, Cell, Lifecycle, Belongings, Children, TopLevel, DeathWatch),
    *(Entity, EntityRegistry, Mailbox, EntityMailbox, MeasuredMailbox, MeasuredEntityMailbox),
    *(DeadLetters, Deadlines, Timers, Waits, OutputGate, Latch),
)


def shield_runtime_from_interrupts(*others: Callable[..., object]) -> None:
    """Shield all of these, and `others`, from now on, if the running event loop is trio's."""
    shield_methods_from_interrupts(*_CLASSES)
    for function in (spawn, *others):
        shield_from_interrupts(function)
