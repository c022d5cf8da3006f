"""The kinds of records on a command line, and the limits that each of them has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

from papyra.cli._units import format_bytes, format_duration
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.retention import Limits, RetentionPolicy

#: A kind, by the name of the command that lists its records.
KindName: TypeAlias = Literal["events", "audits", "dead-letters"]

_NAMES: dict[Kind, KindName] = {
    "event": "events",
    "audit": "audits",
    "dead_letter": "dead-letters",
}


def name_of_kind(kind: Kind) -> str:
    """Return the name of a kind in a sentence."""
    return _NAMES[kind].replace("-", " ")


def policy_for(names: Collection[KindName], policy: RetentionPolicy) -> RetentionPolicy:
    """Return a policy that limits some kinds as `policy` does, and no others."""

    def own(kind: Kind) -> Limits | None:
        return policy.of(kind) if _NAMES[kind] in names else None

    return RetentionPolicy(
        events=own("event"), audits=own("audit"), dead_letters=own("dead_letter")
    )


def has_limits(policy: RetentionPolicy) -> bool:
    """Return whether a policy limits anything."""
    return any(policy.of(kind) != Limits() for kind in KINDS)


def format_limits(limits: Limits, of_what: str = "") -> str:
    """Return limits in words; nothing where there is none."""
    parts = []
    if limits.max_records is not None:
        plural = "" if limits.max_records == 1 else "s"
        parts.append(f"{limits.max_records:,} record{plural}{of_what}")
    if limits.max_age_seconds is not None:
        parts.append(format_duration(limits.max_age_seconds))
    if limits.max_total_bytes is not None:
        parts.append(f"{format_bytes(limits.max_total_bytes)}{of_what}")
    return f"at most {', '.join(parts)}" if parts else ""
