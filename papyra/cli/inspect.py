"""``papyra inspect``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import anyio

from papyra.cli._kinds import format_limits, has_limits, name_of_kind
from papyra.cli._output import (
    AsJson,
    console,
    has_unicode,
    is_terminal,
    report_fields,
    rows,
    show,
    show_fields,
    show_json,
    text,
    write,
)
from papyra.cli._records import styled, tabbed_lines
from papyra.cli._store_argument import StoreName, reading
from papyra.cli._units import ago, format_bytes, format_count, format_duration, format_time
from papyra.persistence.backends import registry
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.records import KINDS, Kind, PersistedAudit, Record
from papyra.persistence.reports import StoreSummary
from papyra.persistence.retention import RetentionPolicy

#: How many parts the picture has of the time from the oldest record to the newest.
_INTERVALS = 48
#: How many of the newest events are shown.
_NEWEST = 5
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "._-=+*#@"


def inspect(store: StoreName = None, /, *, as_json: AsJson = False) -> None:
    """Say what a store is, how much is in it, and how it is.

    It does not look at every record: what is said of its health is what is known without that.
    `papyra scan` looks at everything.

    Examples
    --------
      papyra inspect events.ndjson
      papyra inspect 'redis://localhost/0?system_id=shop'
      papyra inspect --json | jq .records

    """
    anyio.run(_inspect, store, as_json)


async def _inspect(store: str | None, as_json: bool) -> None:
    intervals = min(_INTERVALS, console().width) if is_terminal() else _INTERVALS
    async with reading(store, "inspecting") as backend:
        summary = await backend.summarize()
        counts = await counts_over_time(backend, summary, intervals)
        newest: Sequence[Record] = (await backend.read("event", newest=True, limit=_NEWEST)).records
        audits = (await backend.read("audit", newest=True, limit=1)).records
    if as_json:
        show_json(_as_data(summary, backend, newest) | {"intervals": counts})
        return
    show_fields(_fields(summary, backend, audits))
    if not is_terminal():
        write(rows([("records over time", sparkline(counts))]) + tabbed_lines(newest))
        return
    _show_pictures(summary, counts, newest)


async def counts_over_time(
    backend: PersistenceBackend, summary: StoreSummary, parts: int
) -> list[int]:
    """Return how many records there are, about, in each of so many parts of the store's time.

    They are counted by their positions; those of a kind, evenly, where positions are not used.
    """
    # In halves, as the whole of it may be more than a float holds.
    start, half = (summary.oldest or 0.0) / 2, (summary.newest or 0.0) / 2
    times = [2 * (start + (half - start) * part / parts) for part in range(1, parts)]
    end = summary.last_seq + 1
    runs = [
        (held, [*await _first_positions(backend, kind, [-math.inf, *times], end), end])
        for kind, held in summary.records.items()
    ]
    together = [min(positions) for positions in zip(*(run for _, run in runs), strict=True)]
    if end - together[0] == summary.total_records:
        runs = [(summary.total_records, together)]
    upto = [0.0] * (parts + 1)
    for held, run in runs:
        each = held / max(1, end - run[0])
        upto = [total + each * (seq - run[0]) for total, seq in zip(upto, run, strict=True)]
    return [after - before for before, after in pairwise(map(round, upto))]


async def _first_positions(
    backend: PersistenceBackend, kind: Kind, times: Sequence[float], end: int
) -> list[int]:
    """Return the position of the first record of a kind from each time on, `end` for none."""
    positions: list[int] = []
    position, known_until = 0, None
    for since in times:
        # What is the first since one time is that since all others up to its own time, too.
        if known_until is None or since > known_until:
            records = (await backend.read(kind, since=since, limit=1)).records
            position = min(records[0].seq or end, end) if records else end
            known_until = records[0].timestamp if records else math.inf
        positions.append(position)
    return positions


def _as_data(
    summary: StoreSummary, backend: PersistenceBackend, newest: Sequence[Record]
) -> dict[str, Any]:
    return report_fields(summary) | {
        "rate": _rate(summary),
        "retention": backend.retention,
        "newest_events": newest,
    }


def _fields(
    summary: StoreSummary, backend: PersistenceBackend, audits: Sequence[Record]
) -> list[tuple[str, str]]:
    now = time.time()
    stored = summary.stored_bytes
    size = "" if stored is None else f"{format_bytes(stored)}, of which "
    kinds = ", ".join(_counted(summary.records[kind], kind.replace("_", " ")) for kind in KINDS)
    fields = [
        ("store", summary.location),
        ("backend", _label(summary) + _parts(summary)),
        ("size", f"{size}{format_bytes(summary.total_bytes)} are records"),
        ("records", f"{summary.total_records:,}: {kinds}"),
        ("last position", f"{summary.last_seq:,}"),
    ]
    if summary.snapshots:
        size = format_bytes(summary.snapshot_bytes or 0)
        fields.append(("snapshots", f"{summary.snapshots:,}, {size}"))
    if summary.positions:
        fields.append(("positions", f"{summary.positions:,} of those who follow it"))
    if summary.outbox_waiting or summary.outbox_refused:
        fields.append(
            (
                "outbox",
                f"{summary.outbox_waiting:,} wait, {summary.outbox_refused:,} were set aside",
            )
        )
    if summary.oldest is not None and summary.newest is not None:
        span = format_duration(summary.newest - summary.oldest)
        fields += [
            ("first", format_time(summary.oldest)),
            ("last", f"{format_time(summary.newest)}, {ago(summary.newest, now)}"),
            ("rate", f"{_format_rate(_rate(summary))} over {span}"),
        ]
    fields += [
        ("retention", _format_retention(backend.retention)),
        ("writer", _format_writer(summary)),
        ("health", _health(summary)),
    ]
    if audits and isinstance(audits[0], PersistedAudit):
        fields.append(("system", _format_audit(audits[0], now)))
    return fields


def _parts(summary: StoreSummary) -> str:
    if summary.segments is None:
        return ""
    return f", {_counted(summary.segments, 'segment')}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _rate(summary: StoreSummary) -> float | None:
    """Return the rate of records a second, from the oldest to the newest."""
    if summary.oldest is None or summary.newest is None:
        return None
    span = summary.newest - summary.oldest
    # Times may be too close to each other, or too far, to speak of a rate.
    return summary.total_records / span if 1e-6 < span < math.inf else None


def _format_rate(rate: float | None) -> str:
    if rate is None:
        return "all at once"
    for unit, seconds in (("second", 1), ("minute", 60), ("hour", 3600)):
        if rate * seconds >= 1:
            return f"{format_count(rate * seconds)} a {unit}"
    return f"{format_count(rate * 86400)} a day"


def _format_retention(policy: RetentionPolicy) -> str:
    if not has_limits(policy):
        return "none is set here: everything is shown"
    if not policy.names_kinds:
        return format_limits(policy, " of a kind")
    return "; ".join(
        f"{name_of_kind(kind)}: {format_limits(policy.of(kind)) or 'no limit'}" for kind in KINDS
    )


def _format_writer(summary: StoreSummary) -> str:
    if summary.writer is None:
        return "nobody, as far as can be told"
    # A server knows who has become its writer, and not whether that is still there.
    registration = registry.find(summary.backend)
    is_on_server = registration is not None and registration.is_on_server
    return f"{summary.writer}, the latest" if is_on_server else summary.writer


def _label(summary: StoreSummary) -> str:
    registration = registry.find(summary.backend)
    return summary.backend if registration is None else registration.label


def _health(summary: StoreSummary) -> str:
    if summary.damaged:
        return "damaged: papyra scan says where"
    return "nothing wrong is known (papyra scan looks at everything)"


def _format_audit(audit: PersistedAudit, now: float) -> str:
    payload = audit.payload if isinstance(audit.payload, dict) else {}
    parts = [
        f"{payload[name]:,} {what}"
        for name, what in (
            ("actors", "actors"),
            ("messages_waiting", "messages waiting"),
            ("crashed", "crashes"),
            ("dead_letters", "dead letters"),
        )
        if isinstance(payload.get(name), int)
    ]
    return f"{audit.system_id}, {ago(audit.timestamp, now)}: {', '.join(parts) or 'unknown'}"


def sparkline(counts: Sequence[int]) -> str:
    """Return counts as bars; a count of zero is a space."""
    bars = _BARS if has_unicode() else _ASCII_BARS
    most = max(counts, default=0) or 1
    top = len(bars) - 1
    return "".join(bars[min(top, count * top // most)] if count else " " for count in counts)


def _show_pictures(summary: StoreSummary, counts: Sequence[int], newest: Sequence[Record]) -> None:
    width = console().width
    if summary.total_records:
        bars = sparkline(counts)
        first, last = format_time(summary.oldest), format_time(summary.newest)
        room = max(len(bars), len(first) + len(last) + 1)
        axis = f"{first}{last:>{room - len(first)}}"
        show("", text("records over time", style="dim"), text(bars, style="green", cut=True))
        if len(axis) <= width:
            show(text(axis, style="dim"))
    if newest:
        show("", text("newest events", style="dim"))
        show(*(styled(record, width) for record in newest))
