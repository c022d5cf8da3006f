"""The check that stored histories can be read by the classes of today."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from papyra.address import ActorAddress, unescaped
from papyra.clock import SystemClock
from papyra.conf import backend_from_url
from papyra.eventsourcing.actor import EventSourced
from papyra.eventsourcing.stored import base_state, fault_text, schema_of, timer_messages_of
from papyra.exceptions import InvalidPath
from papyra.persistence.backends import registry
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.decisions import (
    Decision,
    decisions_after,
    is_outdated,
    mark_passed_over,
)
from papyra.persistence.messages import ReadHistory
from papyra.persistence.records import PersistedEvent
from papyra.persistence.timer_changes import INDEX_NAME, TIMER, Pending, take_in
from papyra.testing._lone_actor import LoneActor, RecordList
from papyra.testing._snapshot_check import SnapshotCheck, state_codec_of, stored_snapshots

StateT = TypeVar("StateT")

#: Problems that are shown; all of them are in `HistoryCheckFailed.problems`.
_SHOWN = 20


class HistoryProblem(msgspec.Struct, frozen=True):
    """A stored event that could not be recovered from, or a timer that could not be brought."""

    #: the actor's address
    actor: str
    revision: int
    #: empty if the event is missing
    event_type: str
    reason: str

    def __str__(self) -> str:
        event = f" {self.event_type}" if self.event_type else ""
        return f"{self.actor}, revision {self.revision}{event}: {self.reason}"


class CheckedHistories(msgspec.Struct, frozen=True):
    """How much was looked at, and found to be good."""

    actors: int
    events: int
    #: stored snapshots that were compared with what the events add up to
    snapshots: int = 0


class HistoryCheckFailed(AssertionError):
    """Stored histories from which actors could not be recovered; or none were found at all."""

    def __init__(self, message: str, problems: Sequence[HistoryProblem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


async def check_history(
    store: str | Path | PersistenceBackend,
    actor_class: type[EventSourced[Any]],
    *,
    actors: str = "*",
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> CheckedHistories:
    """Check that `actor_class` could be recovered from the histories in `store`.

    For CI: keep what an older release has stored beside the tests, and check it with the classes of
    today. `store` is a path, a URL or a backend; it is read, and nothing in it is changed. `actors`
    is a pattern for the addresses of those that are of this class, such as ``"bank/*"``, or one
    address. A pattern finds nobody whose events a backend's retention policy all hides; an address
    does. `args` and `kwargs` are those of ``__init__``.

    If `actor_class` has a `SnapshotPolicy`, its states are taken through the codec after each
    event, and compared with those of the replay; so is each stored snapshot that a recovery could
    use. The messages of durable timers that are still pending are decoded, through their upcasters.

    Raises `HistoryCheckFailed`, which names actor, revision, event type and reason of every event
    that is missing, or can't be decoded or applied, or at which a snapshot and the replay differ,
    or that has scheduled a pending timer whose message can't be decoded; also if there is no
    history to check. What an operator has decided to pass over is passed over, as a recovery does.
    """
    problems: list[HistoryProblem] = []
    events = snapshots = 0
    async with contextlib.AsyncExitStack() as stack:
        backend = _reader(store)
        if not backend.is_open:
            await stack.enter_async_context(backend)
        is_pattern = any(character in actors for character in "*?[")
        names = await _names(backend, actors) if is_pattern else [actors]
        for name in names:
            address = ActorAddress(*name.partition("/")[::2])
            made_with = actor_class, args, kwargs or {}
            entity_id = unescaped(address.name)  # if it is one; a spawned actor does not ask
            alone = LoneActor(*made_with, address, SystemClock(), RecordList(), entity_id)
            decisions = await decisions_after(backend.execute, name, 0)
            check, stored = await _snapshot_check(backend, name, alone.actor, decisions)
            replay = _Replay(name, alone.actor, check)
            request, more = ReadHistory(name), True
            while more:
                page = await backend.execute(request)
                for record in mark_passed_over(page.events, request.after_revision, decisions):
                    replay.take(record)
                request = msgspec.structs.replace(request, after_revision=page.next_after)
                more = page.more
                events += len(page.events)
            replay.check_timers()
            problems += replay.problems
            snapshots += stored
    if not events:
        raise HistoryCheckFailed(f"there is no history of an actor {actors!r} in {store}")
    if problems:
        raise HistoryCheckFailed(_message(actor_class, problems), problems)
    return CheckedHistories(len(names), events, snapshots)


def _message(actor_class: type, problems: Sequence[HistoryProblem]) -> str:
    lines = [f"{actor_class.__name__} can't be recovered from {len(problems):,} events:"]
    lines += map(str, problems[:_SHOWN])
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN:,} more")
    return "\n  ".join(lines)


def _reader(store: str | Path | PersistenceBackend) -> PersistenceBackend:
    if isinstance(store, PersistenceBackend):
        return store.reader()
    scheme, colon, _ = os.fspath(store).partition(":")
    if isinstance(store, str) and colon and registry.is_known(scheme):
        return backend_from_url(store, read_only=True).reader()
    if not os.path.exists(store):
        raise InvalidPath(f"there is no store at {os.fspath(store)}")
    return registry.backend_at(os.fspath(store), read_only=True).reader()


async def _names(backend: PersistenceBackend, pattern: str) -> list[str]:
    """Return the addresses of the actors that have a history, in the order of their first event."""
    names = {
        event.actor_address: None
        async for event in backend.stream("event")
        if event.revision is not None
    }
    # The index of the timers of a system has a history, too, and is no actor's.
    actors = (name for name in names if not name.endswith(f"/{INDEX_NAME}"))
    return [name for name in actors if fnmatch.fnmatchcase(name, pattern)]


async def _snapshot_check(
    backend: PersistenceBackend,
    name: str,
    actor: EventSourced[StateT],
    decisions: Mapping[int, Decision],
) -> tuple[SnapshotCheck[StateT] | None, int]:
    """Return the check of an actor's snapshots, and how many are stored; if it has any at all."""
    policy = actor.snapshots
    state_codec = None if policy is None else state_codec_of(type(actor))
    if policy is None or state_codec is None:
        return None, 0
    found = await stored_snapshots(backend, name, policy.version, state_codec)
    stored = {each: found[each] for each in found if not is_outdated(each, decisions)}
    return SnapshotCheck(actor, state_codec, stored), len(stored)


class _Replay(Generic[StateT]):
    """The replay of one history, which goes on after a problem."""

    def __init__(
        self, name: str, actor: EventSourced[StateT], snapshots: SnapshotCheck[StateT] | None
    ) -> None:
        self._name, self._actor = name, actor
        self._snapshots = snapshots
        self._schema = schema_of(type(actor))
        self._timers: dict[str, Pending] = {}
        self._state = actor.initial_state()
        self._allows_none = self._state is None
        self._revision = 0
        #: after a problem, the state is not known, and nothing more is applied
        self.problems: list[HistoryProblem] = []

    def take(self, record: PersistedEvent) -> None:
        """Decode and apply an event, or begin with the state of a base."""
        revision, is_base = record.revision or 0, record.event_type == BASE_TYPE
        follows = revision if is_base else self._revision + 1
        for missing in range(follows, min(revision, follows + _SHOWN)):
            self.problems.append(HistoryProblem(self._name, missing, "", "it is missing"))
        if revision <= self._revision:
            self._note(revision, record.event_type, "it is there twice")
        self._revision = revision
        try:
            events = [] if is_base else self._schema.decode(record)
            if is_base:
                self._begin_with(record)
            elif not self.problems:
                self._apply(events)
            take_in(self._timers, record)
        except Exception as error:  # noqa: BLE001 - what users' classes raise is what is looked for
            self._note(revision, record.event_type, fault_text(error))
        if self.problems or self._snapshots is None:
            return
        if why := self._snapshots.fault_at(revision, events, self._state):
            self._note(revision, record.event_type, why)

    def check_timers(self) -> None:
        """Decode the messages of the timers that are pending at the end of the history."""
        messages = timer_messages_of(type(self._actor))
        for pending in self._timers.values():
            try:
                messages.decode(pending.scheduled)
            except Exception as error:  # noqa: BLE001 - also what users' upcasters raise
                self._note(pending.generation, TIMER, fault_text(error))

    def _begin_with(self, base: PersistedEvent) -> None:
        self._state = base_state(type(self._actor), base)
        if self._snapshots is not None:
            self._snapshots.begin_anew()

    def _apply(self, events: Sequence[object]) -> None:
        for event in events:
            self._state = self._actor.apply(self._state, event)
            if self._state is None and not self._allows_none:
                raise TypeError("apply returned None")

    def _note(self, revision: int, event_type: str, reason: str) -> None:
        self.problems.append(HistoryProblem(self._name, revision, event_type, reason))
