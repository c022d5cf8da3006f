"""Host: the part of a system that projections stand on."""

from __future__ import annotations

from typing import Protocol

from papyra.actor import Actor
from papyra.clock import Clock
from papyra.entity import EntityRef
from papyra.persistence.backends.base import PersistenceBackend
from papyra.telemetry import Telemetry

__all__ = ("Host",)


class Host(Protocol):
    """The part of a system that projections stand on."""

    @property
    def system_id(self) -> str:
        """The system's name."""

    @property
    def clock(self) -> Clock:
        """The clock that it waits by."""

    @property
    def telemetry(self) -> Telemetry | None:
        """What observes the system, if anything does."""

    @property
    def is_running(self) -> bool:
        """Whether actors can be spawned, and entities woken."""

    def entity(self, actor_class: type[Actor], entity_id: str) -> EntityRef:
        """Return the ref of an entity."""

    @property
    def backend(self) -> PersistenceBackend:
        """The backend whose records are followed."""
