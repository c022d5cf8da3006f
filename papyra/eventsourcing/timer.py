"""Durable timers as users set them."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.eventsourcing.occurrences import next_by_cron
from papyra.eventsourcing.timer_messages import TimerMessages
from papyra.exceptions import InvalidTimer
from papyra.persistence.timer_changes import Missed, Scheduled

__all__ = ("Timer",)

#: Characters of a timer's name, at most.
MAX_NAME = 200
#: Unix time in seconds up to which there are dates, with a day left for time zones.
_END = 253_402_214_400.0
#: How many of the four ways to say when a timer leaves out.
_OTHERS = 3
_MISSED = ("once", "all", "skip")


class _Message(msgspec.Struct, frozen=True):
    #: stands for one timer of its actor: a pending one of the same name is replaced
    name: str
    #: of one of the types that `timer_messages` names
    message: Any


class Timer(_Message, frozen=True, kw_only=True):
    """A durable timer to be scheduled: ``persist(..., schedule=Timer("pay", Due(), after=60))``.

    Exactly one of `at`, `after`, `every` and `cron` says when. Raises `InvalidTimer` for what makes
    no sense, and `MissingExtra` for `cron` without the extra that is called so.
    """

    #: an aware `datetime`, or Unix time in seconds; what is past is due at once
    at: datetime.datetime | float | None = None
    #: seconds from now
    after: float | None = None
    #: seconds from now to the first occurrence; the n-th is n times as far from now
    every: float | None = None
    #: a cron expression
    cron: str | None = None
    #: the name of the time zone of `cron`, by default UTC
    tz: str | None = None
    #: what becomes of an occurrence that is first seen more than a minute late, or more than its
    #: period: it fires ``"once"``, once for each that was missed (``"all"``), or never (``"skip"``)
    missed: Missed = "once"

    def __post_init__(self) -> None:
        check_timer_name(self.name)
        if (
            (self.at is None) + (self.after is None) + (self.every is None) + (self.cron is None)
        ) != _OTHERS:
            times = {"at": self.at, "after": self.after, "every": self.every, "cron": self.cron}
            said = " and ".join(name for name, value in times.items() if value is not None)
            listed = said or "none of them"
            raise self._invalid(f"one of {', '.join(times)} says when, not {listed}")
        if self.after is not None and not is_seconds(self.after, finite=True):
            raise self._invalid(f"after is seconds, 0 or more, not {shown(self.after)}")
        if self.every is not None and not is_seconds(self.every, 0.001, finite=True):
            raise self._invalid(f"every is seconds, 0.001 or more, not {shown(self.every)}")
        if self.tz is not None and self.cron is None:
            raise self._invalid("tz is the time zone of cron, and there is none")
        if self.missed != "once" and self.missed not in _MISSED:
            raise self._invalid(f"missed is {', '.join(_MISSED)}, not {shown(self.missed)}")

    def scheduled(self, messages: TimerMessages, now: float) -> Scheduled:
        """Return the change that schedules it at Unix time `now`. Raises `InvalidTimer`."""
        kind, version, message = messages.encode(self.message)
        due = self.at
        if type(due) is not float or not -_END < due < _END:
            due = self._first(now)
            if not due < _END:
                raise self._invalid(f"there is no date for {shown(due)}")
        if self.every is None and self.cron is None:
            # Most come once, and are made with as little as may be.
            return Scheduled(self.name, due, kind, message, version, missed=self.missed)
        every = None if self.every is None else float(self.every)
        start, zone_name = None if every is None else now, self._zone()
        return Scheduled(
            *(self.name, due, kind, message, version),
            *(every, start, self.cron, zone_name, self.missed),
        )

    def _first(self, now: float) -> float:
        """Return Unix time in seconds of the first occurrence."""
        if self.at is not None:
            return self._moment(self.at)
        if self.cron is not None:
            first = next_by_cron(self.cron, self.tz or "UTC", now)
            if first is None:
                raise self._invalid(f"{shown(self.cron)} never comes again")
            return first
        return now + float(self.every if self.after is None else self.after)  # type: ignore[arg-type]

    def _moment(self, at: object) -> float:
        if isinstance(at, datetime.datetime):
            if at.utcoffset() is None:
                raise self._invalid(
                    f"at is a moment, and {at} is one only with a time zone: "
                    "datetime.now(UTC) has one"
                )
            return at.timestamp()
        if not is_seconds(at, -_END, finite=True):
            raise self._invalid(f"at is an aware datetime, or Unix time, not {shown(at)}")
        return float(at)  # type: ignore[arg-type]

    def _zone(self) -> str | None:
        return None if self.cron is None else self.tz or "UTC"

    def _invalid(self, why: str) -> InvalidTimer:
        return InvalidTimer(f"timer {shown(self.name)}: {why}")


def check_timer_name(name: object) -> None:
    """Raise `InvalidTimer` unless `name` can be that of a timer."""
    if type(name) is not str or not 0 < len(name) <= MAX_NAME:
        raise InvalidTimer(
            f"the name of a timer is a string of 1 to {MAX_NAME} characters, not {shown(name)}"
        )
    if name.isascii():
        return
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidTimer(f"the name of a timer is text, and {shown(name)} is none") from error


def as_timers(schedule: Timer | Iterable[Timer]) -> Sequence[Timer]:
    """Return timers, or the one that it is, as a sequence. Raises `InvalidTimer` for others."""
    if isinstance(schedule, Timer):
        return (schedule,)
    timers = tuple(schedule) if isinstance(schedule, Iterable) else (schedule,)
    for each in timers:
        if not isinstance(each, Timer):
            raise InvalidTimer(f"schedule takes a Timer, or several, not {shown(each)}")
    return timers


def as_names(unschedule: str | Iterable[str]) -> Sequence[str]:
    """Return the names of timers as a sequence. Raises `InvalidTimer` for what are none."""
    is_one = isinstance(unschedule, str) or not isinstance(unschedule, Iterable)
    names: Sequence[Any] = (unschedule,) if is_one else tuple(unschedule)
    for each in names:
        check_timer_name(each)
    return names
