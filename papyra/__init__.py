"""Actors whose facts are kept: an actor runtime whose persistence is itself an actor."""

from papyra.actor import Actor, Failure
from papyra.address import ActorAddress
from papyra.audit import AuditReport
from papyra.clock import Clock, SystemClock
from papyra.context import ActorContext
from papyra.exceptions import PapyraError
from papyra.ref import ActorRef, Terminated
from papyra.supervision import Decision, OneForAll, OneForOne, SupervisionPolicy
from papyra.system import ActorSystem

__all__ = (
    "Actor",
    "ActorAddress",
    "ActorContext",
    "ActorRef",
    "ActorSystem",
    "AuditReport",
    "Clock",
    "Decision",
    "Failure",
    "OneForAll",
    "OneForOne",
    "PapyraError",
    "SupervisionPolicy",
    "SystemClock",
    "Terminated",
)
