"""The seam for telemetry: the places at which the runtime says what it does, while it does it.

A system has none unless it is given one, ``ActorSystem(telemetry=...)``, and then nothing of this
is called. An actor chooses once, when it is made, by which methods it is asked, and handles its
messages. `papyra.observability.opentelemetry` stands on it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, runtime_checkable

from papyra.address import ActorAddress

__all__ = ("Operation", "Telemetry")

ReplyT = TypeVar("ReplyT")


class Operation(Protocol):
    """Something that has begun, and is noted."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What is stored with events, for those who read them later to know what they come from."""

    def end(self, error: BaseException | None = None) -> None:
        """Note that it is over, and the error, if there was one. Called once."""


@runtime_checkable
class Telemetry(Protocol):
    """Observes one system. All methods but `begin` and `end` are called in its event loop.

    None of them may raise. Those that are given a coroutine return it, or another one that awaits
    it: what it returns and raises is what that returns and raises. `actor_type` is the name of the
    actor's class.
    """

    @property
    def variables(self) -> Sequence[ContextVar[Any]]:
        """The context variables that travel with messages, as those of `propagate` do."""

    def begin(self, system: Any) -> None:
        """Take note that an `ActorSystem` has started."""

    def end(self) -> None:
        """Take note that the last actor of that system has stopped."""

    def ask(
        self, actor: ActorAddress, message: object, asking: Coroutine[Any, Any, ReplyT]
    ) -> Coroutine[Any, Any, ReplyT]:
        """Observe an ask, from the call to the reply. Called, and awaited, where the asker is."""

    def receive(
        self,
        actor: ActorAddress,
        actor_type: str,
        message: object,
        handling: Coroutine[Any, Any, ReplyT],
        *,
        is_asked: bool,
    ) -> Coroutine[Any, Any, ReplyT]:
        """Observe the handling of a message. Called with `variables` as they are at the sender.

        It is not called for messages with which none of these has come, nor for batches; nor, where
        it has returned `handling` itself, for messages right behind that have brought the same.
        """

    def persist(self, actor: ActorAddress, records: int) -> Operation | None:
        """Begin an append of so many records. Called in the context of what causes it."""

    def snapshot(self, actor: ActorAddress, revision: int) -> Operation | None:
        """Begin to save a snapshot. Called in the context of what causes it."""

    def recovery(
        self,
        actor: ActorAddress,
        ahead: tuple[Sequence[tuple[ContextVar[Any], Any]], bool] | None,
        recovering: Coroutine[Any, Any, int],
    ) -> Coroutine[Any, Any, int]:
        """Observe the recovery of an actor, which returns the revision that it has reached.

        `ahead` are the values of `variables` that came with the message that waits for it, and
        whether that was asked; `None` if there is none.
        """

    def timer(
        self,
        actor: ActorAddress,
        name: str,
        late: float,
        cause: Mapping[str, str],
        firing: Coroutine[Any, Any, ReplyT],
    ) -> Coroutine[Any, Any, ReplyT]:
        """Observe an occurrence of a durable timer, which was due that many seconds ago.

        `cause` is the metadata of the operation that has scheduled it.
        """

    def projection(
        self,
        name: str,
        causes: Iterable[Mapping[str, str]],
        records: int,
        handling: Coroutine[Any, Any, ReplyT],
    ) -> Coroutine[Any, Any, ReplyT]:
        """Observe the handling of a batch by a projection. `causes` are its events' metadata."""
