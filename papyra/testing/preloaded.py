"""Facts that are there before the system starts: the first part of given-when-then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from papyra.clock import SystemClock
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.messages import Appended
from papyra.persistence.records import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
    event_record,
)
from papyra.system import ActorSystem


def given(
    facts: Iterable[object],
    *,
    actor: str = "given",
    system_id: str = "papyra",
    persistence: PersistenceBackend | None = None,
    **options: Any,
) -> Given:
    """Return a system to enter, which finds `facts` in its store.

    ::

        async with given([OrderPlaced(1)], actor="desk") as system:
            desk = system.spawn(Desk, name="desk")

    A fact is an event as `persist` takes it, of the actor that `actor` names below the system; or a
    whole record. `persistence` is where they go, a fresh store in memory by default. `options` are
    `ActorSystem`'s. A `PersistenceProbe` passes over what was given: it sees what happens then.
    """
    return Given(tuple(facts), actor, system_id, persistence or InMemoryPersistence(), options)


class Given:
    """Facts, and the system that is to find them; made by `given`."""

    def __init__(
        self,
        facts: tuple[object, ...],
        actor: str,
        system_id: str,
        persistence: PersistenceBackend,
        options: dict[str, Any],
    ) -> None:
        self._persistence = persistence
        self._system = ActorSystem(system_id, persistence=persistence, **options)
        clock = options.get("clock") or SystemClock()
        address = f"{system_id}/{actor}"
        self._records: list[Record] = [
            fact
            if isinstance(fact, PersistedEvent | PersistedAudit | PersistedDeadLetter)
            else event_record(system_id, address, fact, clock.time())
            for fact in facts
        ]

    async def store(self) -> Appended:
        """Put the facts into the store, without starting the system."""
        return await self._persistence.append(*self._records)

    async def __aenter__(self) -> ActorSystem:
        await self.store()
        return await self._system.__aenter__()

    async def __aexit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None:
        await self._system.__aexit__(exc_type, exc, traceback)
