"""Durable timers as users set them: their times, their messages, and the occurrence at hand."""

from __future__ import annotations

import datetime
import functools
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from papyra._durations import is_seconds
from papyra._safe_repr import shown, text_of, type_name
from papyra.eventsourcing.schema import Schema, Upcaster
from papyra.eventsourcing.steps import decodes_alike, parts_of
from papyra.exceptions import InvalidEvent, InvalidTimer, MissingExtra
from papyra.persistence import codec
from papyra.persistence.timers import Missed, Pending, Scheduled

__all__ = ("Occurrence", "Timer", "TimerMessages")

#: Characters of a timer's name, and of a cron expression, at most.
MAX_NAME, MAX_CRON = 200, 500
#: Seconds that an occurrence may be late before it counts as missed, unless its period is shorter.
GRACE = 60.0
#: Unix time in seconds up to which there are dates, with a day left for time zones.
_END = 253_402_214_400.0

#: How many of the four ways to say when a timer leaves out.
_OTHERS = 3
#: Integers up to there are small.
_WORD = 2**63
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
        due = self._first(now)
        if not due < _END:
            raise self._invalid(f"there is no date for {shown(due)}")
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
        if type(at) is float and -_END < at < _END:
            return at
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


class Occurrence(NamedTuple):
    """The occurrence of a durable timer whose message is being handled."""

    #: the same each time that it is handled, and that of no other one in this store
    id: str
    #: of the timer
    name: str
    #: Unix time in seconds at which it was due
    due: float
    #: 1, 2, 3, ...: greater than 1 if handling it has failed before
    attempt: int


def occurrence_of(actor: str, pending: Pending) -> Occurrence:
    """Return the occurrence of an actor's timer that comes next."""
    name, due = pending.name, pending.due
    occurrence_id = f"{actor}:{name}:{pending.generation}:{due!r}"
    return Occurrence(occurrence_id, name, due, pending.attempts + 1)


def given_up(actor: str, pending: Pending, attempts: int, error: str) -> dict[str, Any]:
    """Return the payload of the dead letter that says that an occurrence is given up."""
    return {
        "timer": pending.name,
        "occurrence": occurrence_of(actor, pending).id,
        "attempts": attempts,
        "error": error,
        "message": pending.scheduled.message,
    }


class TimerMessages:
    """The messages that the timers of one class of actors may bring back."""

    def __init__(
        self, owner: str, types: Sequence[type], upcasters: Sequence[Upcaster] = ()
    ) -> None:
        """Check the types, and what leads to them from what they were.

        Raises `InvalidSchema` for what could not be read back.
        """
        self._owner = owner
        self._schema = Schema(owner, types, upcasters, attribute="timer_messages")
        self._classes = frozenset(self._schema.classes)
        #: those of which any JSON that is made comes back, but for NaN
        self._simple = {each for each in self._schema.classes if _is_simple(each)}
        self._encoder = msgspec.json.Encoder()

    def encode(self, message: object) -> tuple[str, int, Any]:
        """Return the name and the version of a message's type, and the message as plain data.

        Raises `InvalidTimer` for one of another type, or that could not be read back.
        """
        if type(message) not in self._classes:
            known = ", ".join(sorted(each.__name__ for each in self._schema.classes)) or "none"
            raise InvalidTimer(
                f"{type_name(message)} can't be scheduled: it is not in {self._owner}."
                f"timer_messages, which names {known}"
            )
        try:
            kind, payload = self._schema.encode(message)
            if type(payload) is dict and _is_plain(payload.values()):
                return kind.name, kind.version, payload
            if type(message) in self._simple:
                encoded = self._encoder.encode(payload)
                if b"null" not in encoded:
                    return kind.name, kind.version, msgspec.json.decode(encoded)
            return kind.name, kind.version, codec.plain(payload)
        except Exception as error:
            raise InvalidTimer(
                f"{type_name(message)} can't be scheduled: {text_of(error)}"
            ) from error

    def decode(self, scheduled: Scheduled) -> Sequence[object]:
        """Return the message of a timer, as it is today; none where an upcaster has said so.

        Raises `InvalidTimer` for a type, or a version, from which nothing leads to one of today,
        and where an upcaster makes several messages of one.
        """
        try:
            messages = self._schema.decode(_Stored(scheduled))
        except InvalidEvent as error:
            raise InvalidTimer(f"timer {shown(scheduled.name)}: {text_of(error)}") from error
        if len(messages) > 1:
            raise InvalidTimer(
                f"timer {shown(scheduled.name)}: upcasters make {len(messages)} messages of a "
                f"{shown(scheduled.message_type)}, and a timer brings one"
            )
        return messages


def _is_simple(message_class: type) -> bool:
    """Return whether there is nothing in a class of messages but what JSON has, and other such."""
    parts = parts_of(msgspec.inspect.type_info(message_class))
    is_known = not any(isinstance(each, msgspec.inspect.AnyType) for each in parts)
    return is_known and decodes_alike(message_class)


def _is_plain(values: Iterable[object]) -> bool:
    """Return whether it is plain that these come back from JSON as they are."""
    for each in values:
        if type(each) is int:
            if not -_WORD <= each < _WORD:
                return False
        elif type(each) is str:
            if not each.isascii():
                return False
        elif each is not None and type(each) is not bool:
            return False
    return True


class _Stored:
    """The message of a timer, as a schema decodes what is stored."""

    revision: int | None = None
    metadata: Mapping[str, str] | None = None

    def __init__(self, scheduled: Scheduled) -> None:
        self.event_type = scheduled.message_type
        self.event_version = scheduled.message_version
        self.payload = scheduled.message


def next_due(scheduled: Scheduled, due: float, now: float) -> float | None:
    """Return Unix time in seconds of the occurrence after that of `due`, if there is one.

    It is the next one still to come, or the one that follows `due` where all are made up for.
    """
    after = due if scheduled.missed == "all" else max(due, now)
    if scheduled.every is not None:
        start = due if scheduled.start is None else scheduled.start
        periods = max(0, int((after - start) // scheduled.every)) + 1
        following = start + periods * scheduled.every
        # A float can't tell some moments from the next.
        return following if following > after else start + (periods + 1) * scheduled.every
    if scheduled.cron is not None:
        return next_by_cron(scheduled.cron, scheduled.tz or "UTC", after)
    return None


def is_missed(scheduled: Scheduled, due: float, seen: float) -> bool:
    """Return whether an occurrence that was first seen to be due at Unix time `seen` is missed."""
    grace = GRACE if scheduled.every is None else min(GRACE, scheduled.every)
    return seen - due > grace


def next_by_cron(expression: str, tz: str, after: float) -> float | None:
    """Return Unix time in seconds of the first moment after another that `expression` names.

    `None` if there is none in the next fifty years. Raises `InvalidTimer`, and `MissingExtra`.
    """
    try:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra(
            "timers with cron= need cronsim, which Papyra's extra 'cron' brings: "
            "pip install '.[cron]' in Papyra's checkout"
        ) from error
    if not isinstance(expression, str) or len(expression) > MAX_CRON:
        raise InvalidTimer(f"cron is text like '30 8 * * MON-FRI', not {shown(expression)}")
    moment = datetime.datetime.fromtimestamp(after, zone(tz))
    try:
        return next(CronSim(expression, moment)).timestamp()
    except CronSimError as error:
        raise InvalidTimer(f"cron expression {shown(expression)}: {text_of(error)}") from error
    except (StopIteration, OverflowError):
        return None


@functools.lru_cache(maxsize=64)
def zone(name: str) -> datetime.tzinfo:
    """Return the time zone of that name. Raises `InvalidTimer`."""
    if name == "UTC":
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        raise InvalidTimer(
            f"there is no time zone {shown(name)} here: names are like 'Europe/Paris', and on some "
            "systems they are in the package tzdata"
        ) from error


def check_timer_name(name: object) -> None:
    """Raise `InvalidTimer` unless `name` can be that of a timer."""
    if type(name) is not str or not 0 < len(name) <= MAX_NAME:
        raise InvalidTimer(
            f"the name of a timer is a string of 1 to {MAX_NAME} characters, not {shown(name)}"
        )
    try:
        if not name.isascii():
            name.encode()
    except UnicodeEncodeError as error:
        raise InvalidTimer(f"the name of a timer is text, and {shown(name)} is none") from error


def as_timers(schedule: Timer | Iterable[Timer]) -> Sequence[Timer]:
    """Return timers, or the one that it is, as a sequence. Raises `InvalidTimer` for others."""
    if isinstance(schedule, Timer):
        return (schedule,)
    timers = tuple(schedule)
    for each in timers:
        if not isinstance(each, Timer):
            raise InvalidTimer(f"schedule takes a Timer, or several, not {shown(each)}")
    return timers


def as_names(unschedule: str | Iterable[str]) -> Sequence[str]:
    """Return the names of timers as a sequence. Raises `InvalidTimer` for what are none."""
    names = (unschedule,) if isinstance(unschedule, str) else tuple(unschedule)
    for each in names:
        check_timer_name(each)
    return names
