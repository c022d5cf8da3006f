"""Durations in seconds, as users give them."""

from __future__ import annotations

import math
import sys

#: A hundred years. Event loops, sockets and servers can't count much longer, each in its own way.
LONGEST = 3_155_760_000.0


def is_seconds(
    value: object, least: float = 0.0, *, above: bool = False, finite: bool = False
) -> bool:
    """Return whether `value` is a number, and at least `least`, or `above` it.

    It may be infinity, or an int beyond all floats, unless it has to be `finite`. `True` is no
    number, nor is a text or a timedelta.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if finite and value > sys.float_info.max:
        return False
    return value > least if above else value >= least


def seconds(value: float) -> float:
    """Return `value` as a float; infinity, which no timer has to count, for more than `LONGEST`."""
    if abs(value) > LONGEST:  # also where it is an int that no float can hold
        return math.inf if value > 0 else -math.inf
    return float(value)
