"""Host: the part of a system that projections stand on."""

from __future__ import annotations

from typing import Protocol

from papyra.clock import Clock
from papyra.persistence.backends.base import PersistenceBackend

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
    def backend(self) -> PersistenceBackend:
        """The backend whose records are followed."""
