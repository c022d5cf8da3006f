"""Durable timers, looked at and changed by operators: without their actors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from papyra._safe_repr import shown, text_of
from papyra.exceptions import InvalidRequest, SnapshotsUnsupported
from papyra.persistence.decisions import ReadPage, events_after
from papyra.persistence.messages import (
    CancelTimer,
    FireTimer,
    LoadSnapshot,
    Read,
    ReadAll,
    ReadHistory,
)
from papyra.persistence.records import PersistedEvent
from papyra.persistence.timer_changes import (
    TIMER,
    Change,
    MadeDue,
    Pending,
    Scheduled,
    Unscheduled,
    take_in,
)
from papyra.persistence.timer_checkpoints import (
    CHECKPOINT_VERSION,
    Checkpoint,
    Kept,
    checkpoint_in,
    index_address,
)
from papyra.persistence.verbs import PersistenceVerbs

#: In place of a message that was not read yet.
_NOT_READ = object()


class FoundTimer(NamedTuple):
    """A timer that is pending, and the end of its history."""

    pending: Pending
    last: PersistedEvent


async def find_timer(actor: str, name: str, read: ReadPage) -> FoundTimer:
    """Return a pending timer of an actor. Raises `InvalidRequest` if there is none of that name."""
    timers: dict[str, Pending] = {}
    last: PersistedEvent | None = None
    async for record in events_after(read, actor, 0):
        last = record
        try:
            take_in(timers, record)
        except ValueError as error:
            raise InvalidRequest(
                f"the timers of {shown(actor)} can't be read: revision {record.revision}: "
                f"{text_of(error)}"
            ) from error
    if last is None or name not in timers:
        raise InvalidRequest(f"{shown(actor)} has no timer {shown(name)} that is pending")
    return FoundTimer(timers[name], last)


def change_for(request: CancelTimer | FireTimer, found: FoundTimer, now: float) -> Change | None:
    """Return the change that is asked for; `None` if there is nothing to do."""
    if isinstance(request, CancelTimer):
        return Unscheduled(request.name, by_operator=True)
    is_due = found.pending.comes_at <= now and not found.pending.attempts
    return None if is_due else MadeDue(request.name, now)


def change_record(found: FoundTimer, change: Change, revision: int, now: float) -> PersistedEvent:
    """Return a change as an event of this revision, at Unix time."""
    last = found.last
    return PersistedEvent(last.system_id, last.actor_address, TIMER, change, now, revision=revision)


async def pending_timers(backend: PersistenceVerbs) -> AsyncIterator[tuple[str, Pending]]:
    """Yield the timers that are pending in a store, with the addresses of their actors.

    Read is what was stored after the newest checkpoint, and the event that has scheduled each timer
    in it; all of the store if there is none, or other systems have timers there. What can't be
    read is passed over: its actor's recovery tells.
    """
    begun = await _checkpoint(backend)
    actors: dict[str, dict[str, Pending]] = {}
    for kept in begun.timers:
        actors.setdefault(kept.actor, {})[kept.name] = _without_message(kept)
    await _read_on(backend, begun.position, actors)
    for address, timers in actors.items():
        for pending in timers.values():
            if pending.scheduled.message is not _NOT_READ:
                yield address, pending
            elif (read := await _with_message(backend, address, pending)) is not None:
                yield address, read


async def _checkpoint(backend: PersistenceVerbs) -> Checkpoint:
    """Return the newest checkpoint that holds for all of the store; an empty one without any."""
    newest = await backend.execute(Read("event", limit=1, newest=True))
    if not newest.records:
        return Checkpoint(0)
    address = index_address(newest.records[0].system_id)
    try:
        loaded = await backend.execute(LoadSnapshot(address, CHECKPOINT_VERSION))
        found = Checkpoint(0) if loaded.snapshot is None else checkpoint_in(loaded.snapshot)
    except (SnapshotsUnsupported, msgspec.DecodeError):
        return Checkpoint(0)
    return found if found.is_alone else Checkpoint(0)


async def _read_on(
    backend: PersistenceVerbs, after: int, actors: dict[str, dict[str, Pending]]
) -> None:
    """Apply all that is stored after a position to the timers of actors."""
    while True:
        page = await backend.execute(ReadAll(after))
        for record in page.records:
            if isinstance(record, PersistedEvent) and record.revision is not None:
                timers = actors.setdefault(record.actor_address, {})
                _take_in_if_readable(timers, record)
                if not timers:
                    del actors[record.actor_address]
        if page.next_after == after or page.next_after >= page.head:
            return
        after = page.next_after


def _take_in_if_readable(timers: dict[str, Pending], record: PersistedEvent) -> None:
    with contextlib.suppress(ValueError):
        take_in(timers, record)


def _without_message(kept: Kept) -> Pending:
    """Return a timer of a checkpoint, which does not hold its message."""
    scheduled = Scheduled(kept.name, kept.due, "", _NOT_READ)
    return Pending(scheduled, kept.generation, kept.due, kept.attempts)


async def _with_message(backend: PersistenceVerbs, actor: str, timer: Pending) -> Pending | None:
    """Return a timer with what has scheduled it; `None` if that can't be read, or it is over."""
    timers: dict[str, Pending] = {}
    if not timer.attempts:
        page = await backend.execute(ReadHistory(actor, timer.generation - 1, 1))
        for record in page.events:
            _take_in_if_readable(timers, record)
        found = timers.get(timer.name)
        if found is not None and found.generation == timer.generation:
            return Pending(found.scheduled, timer.generation, timer.due)
    # Why it has failed is told later in the history, and a base may have taken its beginning.
    timers.clear()
    async for record in events_after(backend.execute, actor, 0):
        _take_in_if_readable(timers, record)
    return timers.get(timer.name)
