"""The actor that hosts a backend."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar, TypeVar

from papyra._safe_repr import shown, type_and_text
from papyra.actor import Actor, Failure
from papyra.exceptions import (
    InvalidActor,
    InvalidPolicy,
    InvalidRequest,
    PapyraError,
    PersistenceError,
    StoreError,
    StoreUnavailable,
)
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.breaker import CircuitBreaker, CircuitBreakerPolicy
from papyra.persistence.messages import Append, AppendEncoded, AppendMany, Request
from papyra.persistence.subscribing import (
    Subscribe,
    Subscribed,
    SubscriptionEnded,
    Unsubscribe,
)
from papyra.persistence.subscription import Subscription
from papyra.ref import ActorRef, Feed

ReplyT = TypeVar("ReplyT")

logger = logging.getLogger("papyra")

#: A store in memory does not get well by being left alone.
NO_BREAKER = CircuitBreakerPolicy(max_failures=None)

#: Seconds between two lines in the log about requests that failed.
LOG_INTERVAL = 10.0


class PersistenceActor(Actor):
    """Hosts one backend and carries out its requests strictly in mailbox order.

    A run of adjacent appends is one commit, and each caller gets a reply of its own. Asked, a
    request that fails raises in the one who asked; told, it is counted in the metrics. Either way
    it is logged, at most once in `LOG_INTERVAL` seconds, and the actor goes on.

    When the store fails several times in a row, it is not asked to write for a while: appends
    raise `StoreUnavailable` at once, and their records are counted as dropped. `breaker` says when;
    without it, a durable store has the default limits, and any other one none.

    It sends what is stored to actors that ask for it with `Subscribe`.

    When it stops it flushes and closes the backend, which may then be hosted again. Raises
    `BackendInUse` if another actor hosts the backend.
    """

    # Every actor of a system sends to this one.
    mailbox_capacity: ClassVar[int | None] = 10_000
    batch_types: ClassVar[tuple[type, ...]] = (Append, AppendEncoded, AppendMany)

    def __init__(
        self, backend: PersistenceBackend, breaker: CircuitBreakerPolicy | None = None
    ) -> None:
        if not isinstance(backend, PersistenceBackend):
            raise InvalidActor(
                f"a PersistenceActor hosts a PersistenceBackend, not {shown(backend)}"
            )
        if breaker is not None and not isinstance(breaker, CircuitBreakerPolicy):
            raise InvalidPolicy(f"breaker is a CircuitBreakerPolicy, not {shown(breaker)}")
        self._backend = backend
        self.batch_limit = backend.batch_limit
        default = CircuitBreakerPolicy() if backend.capabilities.durable else NO_BREAKER
        self._breaker = CircuitBreaker(breaker or default)
        self._unlogged = 0
        self._logged_at: float | None = None
        self._numbers = itertools.count(1)
        self._subscriptions: dict[int, Feed] = {}
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
            if type(message) is Subscribe:
                return self._subscribe(message)
            if type(message) is Unsubscribe:
                return self._unsubscribe(message)
            return await self._backend.handle(message)
        except PersistenceError as error:
            self._log(error)
            return Failure(error)

    async def receive_batch(self, messages: Sequence[Append | AppendMany]) -> Sequence[object]:
        """Carry out a run of appends."""
        if self._breaker.failures and (seconds := self._seconds_left()):
            return self._refuse(messages, seconds)
        replies, errors = await self._backend.commit(messages)
        if errors or self._breaker.failures:
            self._judge(replies, errors)
        if errors:
            self._log(*errors)
            return [Failure(r) if isinstance(r, PersistenceError) else r for r in replies]
        return replies

    async def on_stop(self) -> None:
        """Flush and close the backend, and let go of it."""
        await self._backend.detach()

    def _subscribe(self, request: Subscribe) -> Subscribed | Failure:
        number, subscriber = next(self._numbers), request.subscriber
        try:
            if not isinstance(subscriber, ActorRef):
                raise InvalidRequest(f"a subscriber is an ActorRef, not {shown(subscriber)}")
            selection = self.context.system.selection(
                kinds=request.kinds,
                types=request.types,
                actor=request.actor,
                entity=request.entity,
            )
            self._subscriptions[number] = subscriber.feed(
                Subscription(self._backend, selection, request.after),
                lambda error: self._ended(number, subscriber, error),
                lambda _: self._forget(number),
            )
        except PapyraError as error:
            return self._refuse_subscription(error)
        except Exception as error:  # noqa: BLE001 - a user's own iterable may raise anything
            refused = InvalidRequest(f"this can't be subscribed to: {type_and_text(error)}")
            refused.__cause__ = error
            return self._refuse_subscription(refused)
        return Subscribed(number)

    def _refuse_subscription(self, error: PapyraError) -> Failure:
        self._log(error)
        return Failure(error)

    def _unsubscribe(self, request: Unsubscribe) -> None:
        feed = self._subscriptions.get(request.subscription)
        if feed is not None:
            feed.end()

    def _forget(self, number: int) -> None:
        self._subscriptions.pop(number, None)

    def _ended(
        self, number: int, subscriber: ActorRef, error: Exception | None
    ) -> SubscriptionEnded:
        if error is not None:
            logger.error(
                "the subscription of %s has ended: %s", subscriber.address, type_and_text(error)
            )
        return SubscriptionEnded(number, error)

    def _seconds_left(self) -> float:
        return self._breaker.seconds_left(self.context.clock.monotonic())

    def _refuse(self, messages: Sequence[Append | AppendMany], seconds: float) -> list[Failure]:
        error = StoreUnavailable(
            f"the store behind {self.owner} has failed too often: "
            f"it is tried again in {seconds:.1f} seconds"
        )
        metrics = self._backend.metrics
        metrics.write_errors += len(messages)
        for message in messages:
            # Nobody has checked yet that there are records in it.
            records = (1,) if isinstance(message, Append) else getattr(message, "records", ())
            metrics.records_dropped += len(records) if type(records) in (tuple, list) else 0
        self._log(*[error] * len(messages))
        return [Failure(StoreUnavailable(*error.args)) for _ in messages]

    def _judge(self, replies: Sequence[object], errors: Sequence[PersistenceError]) -> None:
        """Tell the breaker how the store did; a bad record says nothing about that."""
        if any(isinstance(error, StoreError) for error in errors):
            was_closed = self._breaker.is_closed
            self._breaker.failed(self.context.clock.monotonic())
            if was_closed and not self._breaker.is_closed:
                logger.error("%s stops asking its store to write for a while", self.owner)
        elif len(errors) < len(replies):
            self._breaker.succeeded()

    def _log(self, *errors: PapyraError) -> None:
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
