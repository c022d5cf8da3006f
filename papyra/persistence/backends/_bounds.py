"""Numbers that every store can count with, in place of what was asked for."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from papyra.persistence.backends.store import MAX_SEQ
from papyra.persistence.messages import Read, ReadHistory
from papyra.persistence.retention import Limits, RetentionPolicy

#: What fits into a column of 64 bits.
_GREATEST = 2**63 - 1

LimitsT = TypeVar("LimitsT", bound=Limits)


def bounded_read(request: Read) -> Read:
    """Return a read that finds the same, with positions that may be given, and times as floats."""
    changes: dict[str, Any] = {}
    for name, greatest in (("after", MAX_SEQ), ("before", MAX_SEQ + 1), ("limit", MAX_SEQ)):
        value = getattr(request, name)
        if value is not None and value > greatest:
            changes[name] = greatest
    for name in ("since", "until"):
        value = getattr(request, name)
        if type(value) is int:
            changes[name] = float(value)
    return msgspec.structs.replace(request, **changes) if changes else request


def bounded_history(request: ReadHistory) -> ReadHistory:
    """Return a read of a history that finds the same, with a revision that may be given."""
    if request.after_revision <= MAX_SEQ and (request.limit or 0) <= MAX_SEQ:
        return request
    limit = None if request.limit is None else min(request.limit, MAX_SEQ)
    return type(request)(request.actor, min(request.after_revision, MAX_SEQ), limit)


def bounded_policy(policy: RetentionPolicy) -> RetentionPolicy:
    """Return a policy that keeps the same, and counts in 64 bits.

    Where a kind has limits of its own, each has, and there are no general ones: a store that knows
    of those alone then hides and removes nothing, rather than what another kind's limits are for.
    """
    if not policy.names_kinds:
        return _bounded_limits(policy)
    return RetentionPolicy(
        events=_bounded_limits(policy.of("event")),
        audits=_bounded_limits(policy.of("audit")),
        dead_letters=_bounded_limits(policy.of("dead_letter")),
    )


def _bounded_limits(limits: LimitsT) -> LimitsT:
    changes: dict[str, Any] = {
        name: _GREATEST
        for name in ("max_records", "max_total_bytes")
        if (value := getattr(limits, name)) is not None and value > _GREATEST
    }
    return msgspec.structs.replace(limits, **changes) if changes else limits
