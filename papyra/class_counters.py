"""Counters of what actors do, kept by their class, so that a thousand actors are one series."""

from __future__ import annotations

from typing import Final

from papyra._histogram import Histogram
from papyra._safe_repr import printable
from papyra.events import (
    ActorCrashed,
    ActorRestarted,
    ActorStarted,
    ActorStopped,
    LifecycleEvent,
)

__all__ = (
    "MAX_CLASSES",
    "OTHER_CLASSES",
    "ClassCounters",
    "CountersByClass",
    "name_of_class",
)

#: Classes that are counted apart, at most; those that come later are counted together. A program
#: that makes its classes as it goes would make as many series.
MAX_CLASSES: Final = 500
#: The name under which the classes are counted that come too late.
OTHER_CLASSES: Final = "(other)"
#: Characters of a class's name.
_MAX_NAME: Final = 200
_module_of = type.__dict__["__module__"].__get__
_qualified_name_of = type.__dict__["__qualname__"].__get__


class ClassCounters:
    """What the actors of one class have done since their system started."""

    __slots__ = (
        "actors",
        "dead_letters",
        "entities_awake",
        "handled",
        "mailbox_seconds",
        "messages_waiting",
        "name",
        "receive_seconds",
        "recoveries",
        "recovery_errors",
        "snapshots",
        "steps",
        "unclaimed_replies",
    )

    def __init__(self, name: str, *, measured: bool = False) -> None:
        self.name = name
        #: how many live now; of these, how many are entities
        self.actors = self.entities_awake = 0
        #: of their lives, by the type of the event that tells of it
        self.steps: dict[type[LifecycleEvent], int] = dict.fromkeys(
            (ActorStarted, ActorStopped, ActorCrashed, ActorRestarted), 0
        )
        self.dead_letters = self.unclaimed_replies = 0
        #: histories that were read to the end, and those that could not be
        self.recoveries = self.recovery_errors = 0
        #: snapshots that were saved
        self.snapshots = 0
        #: messages in the mailboxes, and those that were handled, where the system measures
        self.messages_waiting = self.handled = 0
        #: from the mailbox into `receive`, and in there, a message or a batch of them each
        self.mailbox_seconds = Histogram() if measured else None
        self.receive_seconds = Histogram() if measured else None


class CountersByClass:
    """The counters of each class of actors, by the name of the class.

    No class is kept alive by them. Classes of the same name, as a function makes them at each call,
    share their counters.
    """

    def __init__(self, *, measured: bool = False) -> None:
        #: whether times are taken, and mailboxes counted
        self.measured = measured
        self._by_name: dict[str, ClassCounters] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def all(self) -> tuple[ClassCounters, ...]:
        """Return the counters of all classes; from any thread."""
        return tuple(self._by_name.values())

    def of(self, actor_class: type) -> ClassCounters:
        """Return the counters of a class."""
        name = name_of_class(actor_class)
        found = self._by_name.get(name)
        if found is None:
            if len(self._by_name) >= MAX_CLASSES:
                name = OTHER_CLASSES
            found = self._by_name.get(name)
            if found is None:
                found = self._by_name[name] = ClassCounters(name, measured=self.measured)
        return found


def name_of_class(actor_class: type) -> str:
    """Return the name of a class with that of its module, whatever its metaclass pretends."""
    module = _module_of(actor_class)
    name = _qualified_name_of(actor_class)
    if type(module) is str:
        name = f"{module}.{name}"
    return printable(name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}...")
