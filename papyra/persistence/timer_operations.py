"""Durable timers, looked at and changed by operators: without their actors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, TypeAlias

from papyra._safe_repr import shown, text_of
from papyra.exceptions import InvalidRequest
from papyra.persistence.decisions import ReadPage, events_after
from papyra.persistence.messages import AllPage, CancelTimer, FireTimer, ReadAll
from papyra.persistence.records import PersistedEvent
from papyra.persistence.timer_changes import (
    TIMER,
    Change,
    MadeDue,
    Pending,
    Unscheduled,
    take_in,
)

#: Reads a page of all records.
ReadAllPage: TypeAlias = Callable[[ReadAll], Awaitable[AllPage]]


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


async def pending_timers(read: ReadAllPage) -> AsyncIterator[tuple[str, Pending]]:
    """Yield the timers that are pending in a store, with the addresses of their actors.

    All of the store is read. What can't be read is passed over: its actor's recovery tells.
    """
    actors: dict[str, dict[str, Pending]] = {}
    after = head = 0
    while after < head or not after:
        page = await read(ReadAll(after))
        for record in page.records:
            if isinstance(record, PersistedEvent) and record.revision is not None:
                timers = actors.setdefault(record.actor_address, {})
                try:
                    take_in(timers, record)
                except ValueError:
                    continue
                finally:
                    if not timers:
                        del actors[record.actor_address]
        if page.next_after == after:
            break
        after, head = page.next_after, page.head
    for address, timers in actors.items():
        for pending in timers.values():
            yield address, pending
