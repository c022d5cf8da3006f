"""Watch what a system stores, and what an actor is sent."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import anyio
import msgspec

from papyra.actor import Actor, Failure
from papyra.events import ActorCrashed, ActorRestarted, ActorStarted, ActorStopped
from papyra.exceptions import PersistenceError
from papyra.persistence import codec
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import KINDS, PersistedDeadLetter, PersistedEvent, Record
from papyra.ref import ActorRef, Terminated
from papyra.system import ActorSystem
from papyra.testing._inbox import Inbox, checked_seconds
from papyra.testing._matchers import MessagePattern, RecordPattern, actor_of, type_of

#: Seconds that an expectation waits, as in Akka's test kit.
TIMEOUT = 3.0

_LIFECYCLE = frozenset(
    event.__name__ for event in (ActorStarted, ActorCrashed, ActorRestarted, ActorStopped)
)


class PersistenceProbe:
    """Sees every fact that a system stores from its start on, and waits for those to come.

    An event is given as itself (a Struct, a dataclass, or a pair of type name and mapping, as
    `persist` takes them), as its class, its type's name, or a predicate on the stored record.
    `payload` is a part that its payload must have, `actor` the ref or the address of its actor.

    Each fact meets one expectation. `expect_event` takes the first that matches, wherever it is;
    `expect_next` and `expect_sequence` go by the order of the store. Events that the runtime writes
    are passed over, unless one of them is named: predicates see domain events only.

    Waiting is for the fact, not by the clock: `timeout`, in seconds of the machine, is when a test
    that fails gives up. A failure is an `AssertionError` that shows what was stored instead.
    """

    def __init__(self, system: ActorSystem) -> None:
        """Watch `system`, which must have been started: raises `SystemNotRunning`."""
        self._backend = system.backend
        self._start = system.stored_before
        self._inbox: Inbox[Record] = Inbox("fact", _show, system.clock)
        # What was stored before this moment is read when the first expectation comes.
        self._caught_up = self._backend.last_seq == self._start
        self._early: list[Record] = []
        self._unwatch: Callable[[], None] = self._backend.watch_commits(self._see)

    @property
    def facts(self) -> Sequence[Record]:
        """The facts seen, oldest first; without those stored before it until it waited."""
        return (*self._inbox.items, *self._early)

    async def expect_event(
        self,
        expected: object = None,
        *,
        payload: Mapping[str, Any] | None = None,
        actor: ActorRef | str | None = None,
        timeout: float = TIMEOUT,
    ) -> PersistedEvent:
        """Take the first event that matches, waiting for it if need be, and return it."""
        __tracebackhide__ = True
        pattern = RecordPattern.of_event(expected, payload, _address(actor))
        among = _events([pattern])
        await self._catch_up(timeout)
        return cast("PersistedEvent", await self._inbox.take(pattern, timeout, among))

    async def expect_next(
        self,
        expected: object = None,
        *,
        payload: Mapping[str, Any] | None = None,
        actor: ActorRef | str | None = None,
        timeout: float = TIMEOUT,
    ) -> PersistedEvent:
        """Take the oldest event that is left, waiting for one if need be. It must match.

        With `actor`, that is the oldest of that actor.
        """
        __tracebackhide__ = True
        pattern = RecordPattern.of_event(expected, payload)
        among = _events([pattern], actor)
        await self._catch_up(timeout)
        record = await self._inbox.take(pattern, timeout, among, next_only=True)
        return cast("PersistedEvent", record)

    async def expect_sequence(
        self,
        expected: Sequence[object],
        *,
        actor: ActorRef | str | None = None,
        timeout: float = TIMEOUT,
    ) -> list[PersistedEvent]:
        """Take as many of the oldest events, which must match one by one, and return them."""
        __tracebackhide__ = True
        patterns = [RecordPattern.of_event(one) for one in expected]
        among = _events(patterns, actor)
        await self._catch_up(timeout)
        return cast(
            "list[PersistedEvent]", await self._inbox.take_sequence(patterns, timeout, among)
        )

    async def expect_none(
        self,
        expected: object = None,
        *,
        payload: Mapping[str, Any] | None = None,
        actor: ActorRef | str | None = None,
        within: float | None = None,
    ) -> None:
        """Check that no event that matches is left, and that none comes.

        It waits until nobody in the system has anything to do. With `within`, it waits that many
        seconds; by a `ManualClock`, it advances the clock by as much.
        """
        __tracebackhide__ = True
        pattern = RecordPattern.of_event(expected, payload, _address(actor))
        among = _events([pattern])
        await self._catch_up(TIMEOUT)
        await self._inbox.take_none(pattern, within, among)
        if self._backend.is_open:
            # What came at the last moment may wait behind other work of the store's.
            with contextlib.suppress(PersistenceError):
                await self._backend.flush()
            await self._inbox.take_none(pattern, None, among)

    async def expect_dead_letter(
        self,
        expected: object = None,
        *,
        payload: Mapping[str, Any] | None = None,
        target: ActorRef | str | None = None,
        timeout: float = TIMEOUT,
    ) -> PersistedDeadLetter:
        """Take the first dead letter that matches, waiting for it if need be, and return it.

        `expected` is the message itself, its class, or a predicate on the stored record.
        """
        __tracebackhide__ = True
        pattern = RecordPattern.of_message(expected, payload, _address(target))
        await self._catch_up(timeout)
        record = await self._inbox.take(pattern, timeout, _is_dead_letter)
        return cast("PersistedDeadLetter", record)

    async def expect_restart(
        self, actor: ActorRef | str, *, timeout: float = TIMEOUT
    ) -> PersistedEvent:
        """Take the event that says that `actor` has been restarted."""
        __tracebackhide__ = True
        return await self.expect_event(ActorRestarted, actor=actor, timeout=timeout)

    def close(self) -> None:
        """See no more facts. Nobody has to call this: a probe ends with its system's backend."""
        self._unwatch()

    def _see(self, batch: Batch) -> None:
        seen = self._inbox.add if self._caught_up else self._early.append
        for seq, encoded in enumerate(batch.encoded, batch.first_seq):
            seen(codec.decode(encoded, seq))

    async def _catch_up(self, timeout: float) -> None:
        if not self._caught_up:
            await self._read_the_past(timeout)

    async def _read_the_past(self, timeout: float) -> None:
        missed: list[Record] = []
        with anyio.move_on_after(checked_seconds("timeout", timeout)) as scope:
            for kind in KINDS:
                missed += [r async for r in self._backend.stream(kind, after=self._start)]
        if scope.cancelled_caught:
            raise AssertionError(f"the store could not be read within {timeout:g} s")
        if not self._caught_up:  # another expectation may have been faster
            by_seq = {cast("int", record.seq): record for record in (*missed, *self._early)}
            for seq in sorted(by_seq):
                self._inbox.add(by_seq[seq])
            self._caught_up = True
            self._early.clear()


class TestProbe:
    """An actor that keeps what it is sent, for a test to look at.

    Give its `ref` to the actors under test. A message is expected by itself (``==``), by its class,
    or by a predicate; each one meets one expectation. Time limits are as in `PersistenceProbe`.
    """

    __test__: ClassVar[bool] = False  # pytest would take it for a class of tests

    def __init__(
        self, system: ActorSystem, name: str | None = None, *, reply: object = None
    ) -> None:
        """Start the actor.

        `reply` is its reply to whoever asks: a value, an exception to raise there, or a function of
        the message that returns either.
        """
        self._inbox: Inbox[Any] = Inbox("message", repr, system.clock)
        self._ref = system.spawn(_Recorder, self._inbox, reply, name=name)
        self._watched: set[ActorRef] = set()

    @property
    def ref(self) -> ActorRef:
        """The actor."""
        return self._ref

    @property
    def messages(self) -> Sequence[Any]:
        """The messages it was sent, oldest first."""
        return tuple(self._inbox.items)

    async def expect_message(self, expected: object = ..., *, timeout: float = TIMEOUT) -> Any:
        """Take the first message that matches, waiting for it if need be, and return it."""
        __tracebackhide__ = True
        return await self._inbox.take(MessagePattern(expected), timeout, _anything)

    async def expect_next(self, expected: object = ..., *, timeout: float = TIMEOUT) -> Any:
        """Take the oldest message that is left, waiting for one if need be. It must match."""
        __tracebackhide__ = True
        pattern = MessagePattern(expected)
        return await self._inbox.take(pattern, timeout, _anything, next_only=True)

    async def expect_sequence(
        self, expected: Sequence[object], *, timeout: float = TIMEOUT
    ) -> list[Any]:
        """Take as many of the oldest messages, which must match one by one, and return them."""
        __tracebackhide__ = True
        patterns = [MessagePattern(one) for one in expected]
        return await self._inbox.take_sequence(patterns, timeout, _anything)

    async def expect_none(self, expected: object = ..., *, within: float | None = None) -> None:
        """Check that no message that matches is left, and that none comes.

        `within` is as in `PersistenceProbe.expect_none`.
        """
        __tracebackhide__ = True
        await self._inbox.take_none(MessagePattern(expected), within, _anything)

    async def expect_terminated(self, ref: ActorRef, *, timeout: float = TIMEOUT) -> None:
        """Wait until `ref` has stopped."""
        __tracebackhide__ = True
        if ref not in self._watched:
            self._watched.add(ref)
            await self._ref.tell(_Watch(ref))
        await self.expect_message(Terminated(ref), timeout=timeout)


@dataclasses.dataclass(frozen=True)
class _Watch:
    ref: ActorRef


class _Recorder(Actor):
    def __init__(self, inbox: Inbox[Any], reply: object) -> None:
        self._inbox = inbox
        self._reply = reply

    async def receive(self, message: Any) -> Any:
        if isinstance(message, _Watch):
            self.context.watch(message.ref)
            return None
        self._inbox.add(message)
        reply = self._reply(message) if callable(self._reply) else self._reply
        return Failure(reply) if isinstance(reply, Exception) else reply


def _address(actor: ActorRef | str | None) -> str | None:
    return str(actor.address) if isinstance(actor, ActorRef) else actor


def _show(record: Record) -> str:
    words = [str(record.seq), actor_of(record) or record.system_id]
    if isinstance(record, PersistedDeadLetter):
        words.append("dead letter:")
    words += [type_of(record) or "audit", msgspec.json.encode(record.payload).decode()]
    return " ".join(words)


def _anything(message: object) -> bool:
    del message
    return True


def _is_dead_letter(record: Record) -> bool:
    return isinstance(record, PersistedDeadLetter)


def _events(
    patterns: Sequence[RecordPattern], actor: ActorRef | str | None = None
) -> Callable[[Record], bool]:
    """Return which facts count: events, the runtime's own only if a pattern names one of them."""
    address = _address(actor)
    named = any(pattern.of_type in _LIFECYCLE for pattern in patterns)
    passed_over = frozenset[str]() if named else _LIFECYCLE
    return lambda record: (
        isinstance(record, PersistedEvent)
        and record.event_type not in passed_over
        and address in (None, record.actor_address)
    )
