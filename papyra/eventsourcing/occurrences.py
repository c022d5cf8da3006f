"""Occurrences of durable timers: which one comes when, and which one is at hand."""

from __future__ import annotations

import datetime
import functools
import zoneinfo
from typing import Any, NamedTuple

from papyra._safe_repr import shown, text_of
from papyra.exceptions import InvalidTimer, MissingExtra
from papyra.persistence.timer_changes import Pending, Scheduled

__all__ = ("Occurrence",)

#: Characters of a cron expression, at most.
MAX_CRON = 500
#: Seconds that an occurrence may be late before it counts as missed, unless its period is shorter.
GRACE = 60.0


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
