"""Operators' decisions to pass over events: events themselves, in the history that they are about.

A decision stands behind the event that it is about, with a revision of its own, so whatever keeps
a history keeps its decisions. It changes no state; of two about one event, the first one counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import msgspec
from msgspec import structs

from papyra._safe_repr import shown
from papyra.exceptions import InvalidRequest
from papyra.persistence.messages import EventSkipped, HistoryPage, ReadHistory, SkipEvent
from papyra.persistence.records import RESERVED, PersistedEvent

#: The type of the event that is a decision.
EVENT_SKIPPED = f"{RESERVED}event_skipped"
#: The payload of an event while it is passed over: one that nobody can store.
PASSED_OVER = object()

#: Events that are read at a time.
_PAGE = 1_000

#: Reads a page of a history.
ReadPage: TypeAlias = Callable[[ReadHistory], Awaitable[HistoryPage]]


class Decision(msgspec.Struct, frozen=True):
    """The payload of a decision."""

    #: of the event that is passed over
    revision: int
    reason: str


class Examined(msgspec.Struct, frozen=True):
    """An event that is to be passed over, and what its history says about that."""

    #: the first that can be read from its revision on: another one if it is missing itself
    event: PersistedEvent
    #: the last revision of the history that can be read
    last_revision: int
    #: the decision that there is already, if there is one
    decided: EventSkipped | None


async def events_after(read: ReadPage, actor: str, revision: int) -> AsyncIterator[PersistedEvent]:
    """Yield the events of a history behind a revision, which are read page by page."""
    more = True
    while more:
        page = await read(ReadHistory(actor, revision, _PAGE))
        for record in page.events:
            yield record
        revision, more = page.next_after, page.more


def decision_in(record: PersistedEvent) -> Decision | None:
    """Return the decision that an event is; `None` if it is none that could be followed."""
    if record.event_type != EVENT_SKIPPED or record.revision is None:
        return None
    try:
        decision = msgspec.convert(record.payload, Decision)
    except msgspec.ValidationError:
        return None
    return decision if 0 < decision.revision < record.revision else None


async def decisions_after(read: ReadPage, actor: str, revision: int) -> dict[int, Decision]:
    """Return the decisions behind a revision, by their own revisions. Reads page by page."""
    found: dict[int, Decision] = {}
    async for record in events_after(read, actor, revision):
        decision = decision_in(record)
        if decision is not None and record.revision is not None:
            found[record.revision] = decision
    return found


def mark_passed_over(
    records: Iterable[PersistedEvent], after_revision: int, decisions: Mapping[int, Decision]
) -> Iterator[PersistedEvent]:
    """Yield what follows a revision, with all that changes no state by `decisions` marked as such.

    That are the decisions, and the events that they are about: also those that are missing.
    """
    passed_over = {decision.revision for decision in decisions.values()} | decisions.keys()
    revision = after_revision
    for record in records:
        found = record.revision or 0
        while revision + 1 < found and revision + 1 in passed_over:
            revision += 1
            yield _marked(record, revision)
        yield _marked(record, found) if found in passed_over else record
        revision = found


def is_outdated(revision: int, decisions: Mapping[int, Decision]) -> bool:
    """Return whether a state of this revision contains what a later decision passes over."""
    return any(each.revision <= revision < own for own, each in decisions.items())


async def examine(request: SkipEvent, read: ReadPage) -> Examined:
    """Look at an event that is to be passed over. Raises `InvalidRequest` if that can't be."""
    first = last = None
    decided: EventSkipped | None = None
    async for record in events_after(read, request.actor, request.revision - 1):
        first, last = first or record, record
        decision = decision_in(record)
        if decided is None and decision is not None and decision.revision == request.revision:
            decided = EventSkipped(record.revision or 0, decision.reason, is_new=False)
    if first is None or last is None:
        raise InvalidRequest(
            f"{shown(request.actor)} has no event of revision {request.revision} to pass over"
        )
    _check(request, first)
    return Examined(first, last.revision or 0, decided)


def record_of(request: SkipEvent, examined: Examined, revision: int, now: float) -> PersistedEvent:
    """Return the decision that `request` asks for as an event of this revision, at Unix time."""
    return PersistedEvent(
        examined.event.system_id,
        request.actor,
        EVENT_SKIPPED,
        structs.asdict(Decision(request.revision, request.reason)),
        now,
        revision=revision,
    )


def _check(request: SkipEvent, event: PersistedEvent) -> None:
    is_own = event.event_type.startswith(RESERVED)
    # One that can't be followed stands in the way like any other event.
    is_decision = event.event_type == EVENT_SKIPPED
    if event.revision == request.revision:
        if is_own and (not is_decision or decision_in(event) is not None):
            what = "is a decision itself" if is_decision else "is Papyra's own"
            raise InvalidRequest(
                f"revision {request.revision} of {shown(request.actor)} {what}, and can't be "
                "passed over"
            )
    elif is_own and not is_decision:
        raise InvalidRequest(
            f"revision {request.revision} of {shown(request.actor)} is not in the store any more: "
            f"its history begins with revision {event.revision}"
        )


def _marked(record: PersistedEvent, revision: int) -> PersistedEvent:
    return structs.replace(record, revision=revision, event_type=EVENT_SKIPPED, payload=PASSED_OVER)
