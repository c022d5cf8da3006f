"""Given events, when a command, then events, reply, state, error: of an event-sourced actor."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from papyra._safe_repr import text_of
from papyra.actor import Failure
from papyra.address import ActorAddress, escaped
from papyra.clock import Clock, SystemClock
from papyra.eventsourcing.actor import EventSourced
from papyra.eventsourcing.schema import Schema
from papyra.eventsourcing.stored import base_state, schema_of, timer_messages_of
from papyra.exceptions import InvalidTimer
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.decisions import events_after
from papyra.persistence.records import PersistedEvent
from papyra.persistence.timer_changes import TIMER, Scheduled, Unscheduled, change_in
from papyra.ref import checked_key
from papyra.testing._lone_actor import LoneActor, RecordList
from papyra.testing._snapshot_check import (
    SnapshotCheck,
    difference,
    state_codec_of,
    stored_snapshots,
)

StateT = TypeVar("StateT")


class ReplayMismatch(AssertionError):
    """An event, or a state, does not come back from a store as what it was."""


class SetTimer(NamedTuple):
    """A durable timer that a command has scheduled."""

    message: object
    #: Unix time in seconds at which it comes first, by the clock that the test has given
    due: float


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome(Generic[StateT]):
    """What became of a command."""

    #: what it has persisted, in order
    events: tuple[object, ...]
    #: what `receive` returned; `None` if there is an error
    reply: Any
    #: what is raised in who asks: a `Failure`'s, `UnhandledMessage`, a crash's, a failed append's
    error: Exception | None
    #: the state afterwards; after a crash, the one that was recovered
    state: StateT
    #: the number of events in the history afterwards
    revision: int
    #: whether `receive` raised, so that a new instance goes on
    has_crashed: bool
    #: whether the actor has stopped itself, or was passivated
    has_stopped: bool
    #: the messages that it told itself, which nobody has handled
    told_itself: tuple[object, ...]
    #: the durable timers that it has scheduled, and not taken back, by their names
    scheduled: Mapping[str, SetTimer] = dataclasses.field(default_factory=dict)
    #: the names of those that were pending and that it has taken back, in order
    unscheduled: tuple[str, ...] = ()


def given_history(
    actor_class: type[EventSourced[StateT]],
    *events: object,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    store: PersistenceBackend | None = None,
    actor: str = "given",
    entity_id: str | None = None,
    system_id: str = "papyra",
    clock: Clock | None = None,
) -> GivenHistory[StateT]:
    """Return an actor that has `events` behind it, to give commands to.

    ::

        account = given_history(Account, Deposited(10))
        outcome = await account.when(Withdraw(3))
        assert (outcome.events, outcome.reply) == ((Withdrawn(3),), 7)

    There is no system, and nothing is encoded, so a command takes some microseconds. Other actors
    are what the test puts in their place: `args` and `kwargs` are those of ``__init__``.

    With a `store`, events go there and come from there, and after each command `ReplayMismatch` is
    raised for what would be something else after a restart: an event, a state, or the one that a
    snapshot leads to, taken at whichever revision. It names that, and how the two differ. The store
    may be a `FaultyPersistence`. It is opened where it is needed, unless it is open.

    Raises `InvalidEvent` for an event that `actor_class` does not name.
    """
    if entity_id is not None:
        actor = f"{actor_class.entity_name or actor_class.__name__}/{escaped(entity_id)}"
    address = ActorAddress(system_id, actor)
    made_with = tuple(args), kwargs or {}
    return GivenHistory(
        actor_class, events, *made_with, store, address, clock or SystemClock(), entity_id
    )


class GivenHistory(Generic[StateT]):
    """An actor that has handled what it was given so far; made by `given_history`."""

    def __init__(
        self,
        actor_class: type[EventSourced[StateT]],
        events: Sequence[object],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        store: PersistenceBackend | None,
        address: ActorAddress,
        clock: Clock,
        entity_id: str | None,
    ) -> None:
        self._class = actor_class
        self._schema: Schema = schema_of(actor_class)
        self._timer_messages = timer_messages_of(actor_class)
        self._args, self._kwargs = args, kwargs
        self._store, self._backend = store, store or RecordList()
        self._address, self._clock, self._entity_id = address, clock, entity_id
        self._given = [self._record(event, n) for n, event in enumerate(events, 1)]
        self._alone: LoneActor[StateT] | None = None

    async def when(self, command: object, *, idempotency_key: str | None = None) -> Outcome[StateT]:
        """Have the actor handle `command`, after those before, and return what became of it.

        The first one has it recover before. With an `idempotency_key` it is handled as `ask` has it
        with that. Raises `InvalidIdempotencyKey`; `RecoveryFailed` if the events that it has behind
        it can't be decoded or applied, and `ReplayMismatch` for events that it could not be
        recovered from.
        """
        if idempotency_key is not None:
            checked_key(idempotency_key)
        async with self._open():
            alone = await self._awake()
            await alone.settle()
            first = len(alone.persistence.stored)
            outcome = await self._handle(alone, command, idempotency_key)
            stored = [each for each in alone.persistence.stored[first:] if each.revision]
            events = self._decoded(stored)
            if self._store is not None:
                await self._compare(stored, events, outcome.state)
            scheduled, unscheduled = self._timers(stored)
            return dataclasses.replace(
                outcome,
                events=tuple(events),
                scheduled=MappingProxyType(scheduled),
                unscheduled=tuple(unscheduled),
            )

    async def _handle(
        self, alone: LoneActor[StateT], command: object, idempotency_key: str | None
    ) -> Outcome[StateT]:
        reply, error, has_crashed = None, None, False
        try:
            reply = await alone.receive(command, idempotency_key)
        except Exception as crash:  # noqa: BLE001 - as its supervisor would take it
            error, has_crashed = crash, True
        error = alone.append_error() or error or alone.refusal
        if isinstance(reply, Failure):
            error = error or reply.error
        if alone.has_stopped or has_crashed:
            await alone.actor.on_stop()
            self._alone = None
        told, has_stopped = tuple(alone.own_ref.told), alone.has_stopped
        if has_crashed:
            alone_now = await self._awake()
        else:
            alone_now = alone
            await alone.settle()
        actor = alone_now.actor
        reply = None if error is not None else reply
        return Outcome(
            (), reply, error, actor.state, actor.revision, has_crashed, has_stopped, told
        )

    async def _awake(self) -> LoneActor[StateT]:
        """Return the actor, started and recovered if it is not there."""
        if self._alone is not None:
            return self._alone
        if self._given:
            given, self._given = self._given, []
            await self._backend.append(*given)
        alone = self._new()
        await alone.start()
        self._alone = alone
        return alone

    def _new(self) -> LoneActor[StateT]:
        where = self._address, self._clock, self._backend
        return LoneActor(self._class, self._args, self._kwargs, *where, self._entity_id)

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        if self._store is None or self._store.is_open:
            yield
        else:
            async with self._store:
                yield

    def _record(self, event: object, revision: int) -> PersistedEvent:
        event_type, payload = self._schema.encode(event)
        return PersistedEvent(
            *(self._address.system_id, str(self._address), event_type.name),
            payload,
            self._clock.time(),
            None,
            revision,
            event_type.version,
        )

    def _decoded(self, records: Sequence[PersistedEvent]) -> list[object]:
        decoded = []
        for record in records:
            try:
                decoded += self._schema.decode(record)
            except Exception as error:
                raise ReplayMismatch(
                    f"what was persisted could not be recovered from: {text_of(error)}"
                ) from error
        return decoded

    def _timers(self, records: Sequence[PersistedEvent]) -> tuple[dict[str, SetTimer], list[str]]:
        """Return the timers that a command has scheduled, and the names of those taken back."""
        scheduled: dict[str, SetTimer] = {}
        unscheduled = []
        for change in [change_in(each.payload) for each in records if each.event_type == TIMER]:
            if isinstance(change, Scheduled):
                try:
                    (message,) = self._timer_messages.decode(change)
                except InvalidTimer as error:
                    raise ReplayMismatch(f"it could not be brought: {text_of(error)}") from error
                scheduled[change.name] = SetTimer(message, change.due)
            elif isinstance(change, Unscheduled):
                scheduled.pop(change.name, None)
                unscheduled.append(change.name)
        return scheduled, unscheduled

    async def _compare(
        self, handed: Sequence[PersistedEvent], events: Sequence[object], state: StateT
    ) -> None:
        """Raise `ReplayMismatch` if the store, or a snapshot, gives something else back."""
        read, actor_address = self._backend.execute, str(self._address)
        records = [each async for each in events_after(read, actor_address, 0)]
        new = {each.revision for each in handed}
        stored = self._decoded([each for each in records if each.revision in new])
        for event, again in zip(events, stored, strict=True):
            _check_same("an event", event, again)
        timers, _ = self._timers(handed)
        timers_again, _ = self._timers([each for each in records if each.revision in new])
        for name, timer in timers.items():
            _check_same(f"timer {name!r}", timer, timers_again[name])
        actor = self._new().actor
        snapshots = await self._snapshot_check(actor)
        replayed = actor.initial_state()
        for record in records:
            if record.event_type == BASE_TYPE:
                replayed, decoded = base_state(self._class, record), []
                if snapshots:
                    snapshots.begin_anew()
            else:
                decoded = self._decoded([record])
            for event in decoded:
                replayed = actor.apply(replayed, event)
            if snapshots and (why := snapshots.fault_at(record.revision or 0, decoded, replayed)):
                raise ReplayMismatch(f"at revision {record.revision}: {why}")
        last = records[-1].revision if records else 0
        _check_same(f"after revision {last}, the state", state, replayed)

    async def _snapshot_check(self, actor: EventSourced[StateT]) -> SnapshotCheck[StateT] | None:
        """Return the check of snapshots; `None` if JSON has no form for the states."""
        state_codec = state_codec_of(self._class)
        if state_codec is None:
            return None
        version = 1 if self._class.snapshots is None else self._class.snapshots.version
        stored = await stored_snapshots(self._backend, str(self._address), version, state_codec)
        return SnapshotCheck(actor, state_codec, stored)


def _check_same(what: str, before: object, after: object) -> None:
    if why := difference(before, after):
        raise ReplayMismatch(f"{what} {why}")
