"""Actors whose facts are kept: an actor runtime whose persistence is itself an actor."""

from typing import TYPE_CHECKING

from papyra._lazy_imports import finder

if TYPE_CHECKING:
    from papyra.actor import Actor, ActorContext, Failure
    from papyra.address import ActorAddress
    from papyra.audit import AuditReport
    from papyra.clock import Clock, SystemClock
    from papyra.entity import AwakeEntity, EntityRef
    from papyra.eventsourcing.actor import EventSourced
    from papyra.exceptions import PapyraError
    from papyra.figures import Figures
    from papyra.message import Message
    from papyra.ref import ActorRef, Terminated
    from papyra.retry import Retry
    from papyra.supervision import Decision, OneForAll, OneForOne, SupervisionPolicy
    from papyra.system import ActorSystem
    from papyra.system_thread import SystemThread

__all__ = (
    "Actor",
    "ActorAddress",
    "ActorContext",
    "ActorRef",
    "ActorSystem",
    "AuditReport",
    "AwakeEntity",
    "Clock",
    "Decision",
    "EntityRef",
    "EventSourced",
    "Failure",
    "Figures",
    "Message",
    "OneForAll",
    "OneForOne",
    "PapyraError",
    "Retry",
    "SupervisionPolicy",
    "SystemClock",
    "SystemThread",
    "Terminated",
)

#: Where these names are, from the ground up.
_MODULES = (
    "exceptions",
    "address",
    "clock",
    "audit",
    "retry",
    "supervision",
    "message",
    "ref",
    "entity",
    "actor",
    "eventsourcing.actor",
    "figures",
    "system_thread",
    "system",
)

if not TYPE_CHECKING:
    __getattr__ = finder(__name__, __all__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
