"""The actor that hosts a backend."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar, TypeVar

from papyra.actor import Actor, Failure
from papyra.exceptions import InvalidActor, PersistenceError
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import Append, AppendMany, Request

__all__ = ("PersistenceActor",)

ReplyT = TypeVar("ReplyT")

logger = logging.getLogger("papyra")

#: Seconds between two lines in the log about requests that failed.
LOG_INTERVAL = 10.0


class PersistenceActor(Actor):
    """Hosts one backend and carries out its requests strictly in mailbox order.

    A run of adjacent appends is one commit, and each caller gets a reply of its own. Asked, a
    request that fails raises in the one who asked; told, it is counted in the metrics. Either way
    it is logged, at most once in `LOG_INTERVAL` seconds, and the actor goes on.

    When it stops it flushes and closes the backend, which may then be hosted again. Raises
    `BackendInUse` if another actor hosts the backend.
    """

    # Every actor of a system sends to this one.
    mailbox_capacity: ClassVar[int | None] = 10_000
    batch_types: ClassVar[tuple[type, ...]] = (Append, AppendMany)
    batch_limit: ClassVar[int] = 10_000

    def __init__(self, backend: PersistenceBackend) -> None:
        if not isinstance(backend, PersistenceBackend):
            raise InvalidActor(f"a PersistenceActor hosts a PersistenceBackend, not {backend!r}")
        self._backend = backend
        self._unlogged = 0
        self._logged_at: float | None = None
        backend.attach(self)

    @property
    def owner(self) -> str:
        """The address of this actor, as the backend's host."""
        return str(self.context.self_ref.address)

    def ask(self, request: Request[ReplyT]) -> Awaitable[ReplyT]:
        """Send `request` through this actor's own mailbox, on behalf of the backend's verbs."""
        return self.context.self_ref.ask(request)

    async def receive(self, message: Any) -> Any:
        """Carry out any request but the appends."""
        try:
            return await self._backend.carry_out(message)
        except PersistenceError as error:
            self._log(error)
            return Failure(error)

    async def receive_batch(self, messages: Sequence[Append | AppendMany]) -> Sequence[object]:
        """Carry out a run of appends."""
        replies, errors = await self._backend.commit(messages)
        if errors:
            self._log(*errors)
            return [Failure(r) if isinstance(r, PersistenceError) else r for r in replies]
        return replies

    async def on_stop(self) -> None:
        """Flush and close the backend, and let go of it."""
        await self._backend.detach()

    def _log(self, *errors: PersistenceError) -> None:
        now = time.monotonic()
        self._unlogged += len(errors)
        if errors and (self._logged_at is None or now - self._logged_at >= LOG_INTERVAL):
            logger.error(
                "%s: %d requests failed since the last line like this; the latest: %s",
                self.owner,
                self._unlogged,
                errors[-1],
            )
            self._logged_at = now
            self._unlogged = 0
