"""Refs and contexts of a system with telemetry: they say what they are asked to do.

Those of a system without any are of the classes above these, so it costs nothing there.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from msgspec import structs

from papyra.actor import ActorContext, ContextOwner, System
from papyra.entity import EntityRef, Sleeper
from papyra.persistence.messages import Append, Appended
from papyra.ref import ActorRef, Recipient
from papyra.retry import Retry
from papyra.telemetry import Telemetry


class ObservedRef(ActorRef):
    """A ref to an actor that was spawned."""

    __slots__ = ("_telemetry",)

    def __init__(self, cell: Recipient, telemetry: Telemetry) -> None:
        super().__init__(cell)
        self._telemetry = telemetry

    def ask(
        self,
        message: Any,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Ask as above, observed; with `retry`, so is each attempt."""
        if retry is None and idempotency_key is None:  # as nearly all are, in less time
            asking = ActorRef.ask(self, message, timeout)
        else:
            asking = ActorRef.ask(
                self, message, timeout, retry=retry, idempotency_key=idempotency_key
            )
        return self._telemetry.ask(self._cell.address, message, asking)


class ObservedEntityRef(EntityRef):
    """A ref to an entity."""

    __slots__ = ("_telemetry",)

    def __init__(self, entity: Sleeper, telemetry: Telemetry) -> None:
        super().__init__(entity)
        self._telemetry = telemetry

    ask = ObservedRef.ask


class ObservedContext(ActorContext):
    """The context of an actor."""

    __slots__ = ("_telemetry",)

    def __init__(self, owner: ContextOwner, system: System, telemetry: Telemetry) -> None:
        super().__init__(owner, system)
        self._telemetry = telemetry

    async def persist(self, event: object) -> int:
        """Store as above, observed."""
        record = self.event(event)
        operation = self._telemetry.persist(self._owner.address, 1)
        if operation is None:
            appended: Appended = await self.persistence.ask(Append(record))
            return appended.first_seq
        try:
            record = structs.replace(record, metadata={**operation.metadata})
            appended = await self.persistence.ask(Append(record))
        except BaseException as error:
            operation.end(error)
            raise
        operation.end()
        return appended.first_seq
