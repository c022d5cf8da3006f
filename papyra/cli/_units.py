"""Times, durations and sizes, as people write and read them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Annotated, Any, TypeAlias, TypeVar

from cyclopts import Parameter, Token

ValueT = TypeVar("ValueT")

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|w)")

_UNITS = ("", "K", "M", "G", "T", "P")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(iB|B|)", re.IGNORECASE)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Unix times that a calendar has.
_FIRST, _LAST = -62_135_596_800.0, 253_402_300_799.0


def duration(text: str) -> float:
    """Return seconds: ``90s``, ``2h``, ``1h30m``, ``7d``, ``500ms``; a plain number is seconds."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(map("".join, parts)) != text.replace(" ", ""):
        raise ValueError(f"{text!r} is no duration: write 90s, 15m, 2h, 7d or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def size(text: str) -> int:
    """Return bytes: ``512MiB`` and ``512M`` in steps of 1024, ``10MB`` in steps of 1000."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write 512MiB, 1GiB, 10MB or a number of bytes")
    number, unit, suffix = match.groups()
    step = 1000 if unit and suffix.upper() == "B" else 1024
    count = int(Fraction(number) * step ** _UNITS.index(unit.upper()))
    if count >= 10**36:
        raise ValueError(f"{text[:20]}... is more bytes than there are")
    return count


def whole_number(text: str) -> int:
    """Return a whole number, which may be negative."""
    if not re.fullmatch(r"-?\d{1,18}", text.strip()):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def moment(text: str, now: float) -> float:
    """Return Unix time in seconds: ``1h`` is so long before `now`.

    Otherwise a date, ``2013-01-31``, or a date and a time, ``2013-01-31T14:05``, in UTC unless it
    says another zone; or Unix time itself, ``@1751328000``. The @ may be left out where a number
    can be nothing else: not a date, not milliseconds, not an age.
    """
    text = text.strip()
    when = _unix_time(text)
    if when is None and _DURATION.match(text):
        when = now - _age(text)
    if when is None:
        when = _calendar_time(text)
    if not math.isfinite(when):
        raise ValueError(f"{text!r} is more than a time can be: {_WRITE}")
    return when


_WRITE = "write 1h for an hour ago, 2013-01-31, 2013-01-31T14:05 or @1359641100"
_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.[0-9]+)?")
_WITH_SIGN = re.compile(r"@-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_UNEVEN = re.compile(r"[0-9.]+\s*(mo|mon|mons|months?|y|yrs?|years?)", re.IGNORECASE)


def _unix_time(text: str) -> float | None:
    if _WITH_SIGN.fullmatch(text):
        return float(text[1:])
    number = _NUMBER.fullmatch(text)
    if number is None:
        return None
    sign, whole = number.groups()
    if sign or len(whole) in (9, 10) or not whole.strip("0"):  # from 1973 to 2286
        return float(text)
    raise ValueError(f"{text!r} may be {_readings(whole)}: {_WRITE}")


def _readings(digits: str) -> str:
    """Return what a number may mean, and what to write for each."""
    match len(digits):
        case 4 | 6 | 7 | 8 | 12 | 14:
            date = "-".join(part for part in (digits[:4], digits[4:6], digits[6:8]) if part)
            meant = f" ({date})" if len(digits) == 8 else ""
            return f"a date{meant} or Unix time (@{digits})"
        case 13 | 16 | 19:
            return f"Unix time in smaller units than seconds (@{digits[:10]})"
        case size if size < 9:
            return f"an age ({digits}s) or Unix time (@{digits})"
        case _:
            return f"Unix time (@{digits[:12]}...)"


def _age(text: str) -> float:
    try:
        return duration(text)
    except ValueError:
        raise _no_time(text) from None


def _no_time(text: str) -> ValueError:
    if _UNEVEN.fullmatch(text):
        return ValueError(f"{text!r} is no time, as months and years differ: write 30d or 365d")
    return ValueError(f"{text!r} is no time: {_WRITE}")


def _calendar_time(text: str) -> float:
    try:
        # Which takes anything between a date and a time.
        if not re.fullmatch(r"[0-9W-]+([Tt ][0-9:.,+-]+[Zz]?)?", text):
            raise ValueError
        when = datetime.fromisoformat(text.upper())
    except ValueError:
        raise _no_time(text) from None
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def format_time(when: float | None) -> str:
    """Return a time as ISO 8601 in UTC, to the millisecond."""
    if when is None:
        return "-"
    if not _FIRST <= when <= _LAST:
        return f"@{when:g}"  # Unix time that no calendar has
    text = (_EPOCH + timedelta(milliseconds=round(when * 1000))).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``2h 5m``."""
    if not math.isfinite(seconds):
        return "for ever"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    seconds, parts = max(seconds, 1.0), []
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, _SECONDS[unit])
        if count:
            parts.append(f"{count:.0f}{unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def format_bytes(count: float) -> str:
    """Return a size in steps of 1024: ``136.1 MiB``."""
    for unit in _UNITS:
        if round(count, 1) < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.1f} {unit}iB" if unit else f"{count:.0f} B"


def format_count(count: float) -> str:
    """Return a number with separators: ``673,385``; one that is not whole with two digits."""
    return f"{count:,.0f}" if count == int(count) or count >= 9.95 else f"{count:.2g}"


def ago(when: float, now: float) -> str:
    """Return the age of a time, as of `now`: ``5m ago``, or ``in 5m``."""
    length = format_duration(abs(now - when))
    return f"{length} ago" if now >= when else f"in {length}"


def _converter(convert: Callable[[str], ValueT]) -> Callable[[Any, Sequence[Token]], ValueT]:
    return lambda _, tokens: convert(tokens[0].value)


Duration: TypeAlias = Annotated[
    float, Parameter(converter=_converter(duration), metavar="DURATION")
]
Count: TypeAlias = Annotated[int, Parameter(converter=_converter(whole_number), metavar="N")]
Size: TypeAlias = Annotated[int, Parameter(converter=_converter(size), metavar="SIZE")]
Moment: TypeAlias = Annotated[
    float, Parameter(converter=_converter(lambda text: moment(text, time.time())), metavar="TIME")
]
