"""Durable timers as they are stored: events in the history of their actor, and what is pending.

Each change of a timer is an event of type `TIMER`, with a revision like any other, so whatever
keeps a history keeps its timers. It changes no state; what is pending is the sum of these changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, cast

import msgspec
from msgspec import structs

from papyra._safe_repr import text_of
from papyra.persistence.bases import BASE_TYPE, read_base
from papyra.persistence.records import RESERVED, PersistedEvent

#: The type of the events that change timers.
TIMER = f"{RESERVED}timer"

#: The type of the events that say that a system has saved its index of timers.
TIMER_INDEX = f"{RESERVED}timer_index"
#: The name at the end of the address of the history of these.
INDEX_NAME = "$timers"

#: What becomes of occurrences that were missed.
Missed: TypeAlias = Literal["once", "all", "skip"]

#: What has become of an occurrence: ``"skipped"`` is one that was missed, or whose message is no
#: more, and ``"failed"`` one that was tried often enough.
Outcome: TypeAlias = Literal["handled", "skipped", "failed"]


class _Change(msgspec.Struct, frozen=True, tag_field="change", omit_defaults=True):
    #: of the timer
    name: str


class Scheduled(_Change, frozen=True, tag="scheduled", omit_defaults=True):
    """A timer is pending from now on, in place of another one of its name."""

    #: Unix time in seconds of its first occurrence
    due: float
    #: the name of the message's type
    message_type: str
    #: plain data
    message: Any
    message_version: int = 1
    #: seconds from one occurrence to the next; `None` unless it recurs so
    every: float | None = None
    #: Unix time in seconds from which `every` counts
    start: float | None = None
    #: a cron expression; `None` unless it recurs by one
    cron: str | None = None
    #: the name of the time zone of that
    tz: str | None = None
    missed: Missed = "once"
    #: the metadata of what has scheduled it: trace context, and the like
    cause: dict[str, str] = {}

    @property
    def recurs(self) -> bool:
        """Whether there may be another occurrence after each."""
        return self.every is not None or self.cron is not None


class Unscheduled(_Change, frozen=True, tag="unscheduled", omit_defaults=True):
    """A timer is taken back."""

    #: whether an operator did so, and not its actor
    by_operator: bool = False


class Fired(_Change, frozen=True, tag="fired", omit_defaults=True):
    """An occurrence is over."""

    #: which one: Unix time in seconds
    due: float
    #: the next one; `None` if that was the last
    next_due: float | None = None
    outcome: Outcome = "handled"


class Failed(_Change, frozen=True, tag="failed", omit_defaults=True):
    """Handling an occurrence has failed, and it comes again."""

    #: which one: Unix time in seconds
    due: float
    #: how often it has failed
    attempts: int
    #: Unix time in seconds before which it does not come again
    not_before: float
    #: why, in short
    error: str = ""


class MadeDue(_Change, frozen=True, tag="made_due", omit_defaults=True):
    """An operator has made a timer due, before its time; recurring ones go on as before."""

    #: Unix time in seconds
    due: float


Change: TypeAlias = Scheduled | Unscheduled | Fired | Failed | MadeDue


class Pending(msgspec.Struct, frozen=True, omit_defaults=True):
    """A timer that is pending, as the changes so far have left it."""

    scheduled: Scheduled
    #: the revision of the event that has scheduled it: one of the same name has another
    generation: int
    #: Unix time in seconds of the occurrence that comes next
    due: float
    #: how often handling that has failed
    attempts: int = 0
    #: Unix time in seconds before which it does not come again
    not_before: float | None = None
    #: why it has failed, in short
    error: str = ""

    @property
    def name(self) -> str:
        """The name, which stands for one timer of its actor."""
        return self.scheduled.name

    @property
    def comes_at(self) -> float:
        """Unix time in seconds at which it is handled next."""
        return self.due if self.not_before is None else max(self.due, self.not_before)

    def after(self, change: Change) -> Pending | None:
        """Return what a change of this timer makes of it; `None` if it is over."""
        match change:
            case Fired(due=due, next_due=next_due):
                if due != self.due:
                    return self
                if next_due is None:
                    return None
                return Pending(self.scheduled, self.generation, next_due)
            case Failed(due=due):
                if due != self.due:
                    return self
                return structs.replace(
                    self,
                    attempts=change.attempts,
                    not_before=change.not_before,
                    error=change.error,
                )
            case MadeDue(due=due):
                return Pending(self.scheduled, self.generation, due)
            case _:
                return None


def begin(timers: dict[str, Pending], scheduled: Scheduled, revision: int) -> None:
    """Have a timer pending that the event of this revision schedules."""
    timers[scheduled.name] = Pending(scheduled, revision, scheduled.due)


def move_on(timers: dict[str, Pending], change: Change, revision: int) -> None:
    """Apply a change, which is the event of this revision, to the timers that are pending."""
    if type(change) is Scheduled:
        begin(timers, change, revision)
        return
    pending = timers.get(change.name)
    if pending is None:
        return
    following = pending.after(change)
    if following is None:
        del timers[change.name]
    else:
        timers[change.name] = following


_CHANGES: dict[Any, type[Change]] = {
    each.__struct_config__.tag: each for each in (Scheduled, Unscheduled, Fired, Failed, MadeDue)
}
_CHANGE_TYPES = frozenset(_CHANGES.values())


class InvalidTimerEvent(ValueError):
    """An event that changes timers, and can't be read."""


def change_in(payload: object) -> Change:
    """Return the change that the payload of a stored event stands for.

    Raises `InvalidTimerEvent` for what is none.
    """
    if type(payload) in _CHANGE_TYPES:
        return cast("Change", payload)  # it has not been stored yet, or has just been
    kind = _CHANGES.get(payload.get("change", "")) if isinstance(payload, dict) else None
    try:
        # A union would be looked into each time anew.
        return msgspec.convert(payload, Change if kind is None else kind, str_keys=True)
    except Exception as error:
        raise InvalidTimerEvent(f"it changes no timer: {text_of(error)}") from error


def with_cause(change: Change, cause: Mapping[str, str]) -> Change:
    """Return a change; one that schedules a timer with what has caused it."""
    return structs.replace(change, cause={**cause}) if isinstance(change, Scheduled) else change


class _Bookkeeping(msgspec.Struct):
    """The part of what goes along with a state that is about timers."""

    timers: dict[str, Pending] = {}


def timers_in_base(record: PersistedEvent) -> dict[str, Pending]:
    """Return the timers that a base holds, by their names.

    Raises `InvalidBase`, and `msgspec.DecodeError`, for what can't be read.
    """
    base = read_base(record)
    if base is None or isinstance(base.bookkeeping, msgspec.UnsetType):
        return {}
    return msgspec.json.decode(base.bookkeeping, type=_Bookkeeping).timers


def take_in(timers: dict[str, Pending], record: PersistedEvent) -> None:
    """Apply an event, the next one of a history, to the timers of its actor.

    Raises `InvalidTimerEvent`, and as `timers_in_base` does.
    """
    if record.event_type == TIMER:
        move_on(timers, change_in(record.payload), record.revision or 0)
    elif record.event_type == BASE_TYPE:
        timers.clear()
        timers.update(timers_in_base(record))
