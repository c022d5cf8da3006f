"""``papyra metrics``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import anyio
import msgspec
from cyclopts import Parameter

from papyra.cli._exit_codes import WrongUse
from papyra.cli._output import (
    AsJson,
    is_terminal,
    printable,
    show_json,
    show_table,
    tell,
    write,
)
from papyra.cli._store_argument import StoreName, name_of, reading
from papyra.cli._units import format_time
from papyra.observability.series import Family, Kind, Series
from papyra.persistence.metrics import MetricsSnapshot
from papyra.persistence.records import PersistedAudit
from papyra.persistence.reports import StoreSummary

#: What an audit says that only grows; the rest goes up and down.
_COUNTED = frozenset(
    {
        "started",
        "stopped",
        "crashed",
        "restarted",
        "dead_letters",
        "unclaimed_replies",
        "timers_fired",
        "timers_failed",
    }
)

#: Names of metrics; and ends of them that mean something to Prometheus.
_METRIC_NAME = re.compile(r"[a-zA-Z0-9_]+")
_RESERVED = ("_", "_total", "_created", "_bucket", "_count", "_sum", "_info", "_gcount", "_gsum")


def metrics(
    store: StoreName = None,
    /,
    *,
    output_format: Annotated[
        Literal["table", "json", "prometheus"], Parameter(name="--format")
    ] = "table",
    as_json: AsJson = False,
) -> None:
    """Show what a store holds, and what its system has counted.

    A system keeps its counters in memory, and writes them down with each audit: these are those of
    the newest one.

    Examples
    --------
      papyra metrics ./journal/
      papyra metrics --format prometheus > /var/lib/node_exporter/papyra.prom

    Parameters
    ----------
    output_format
        For people, for programs, or in the text format of Prometheus.

    """
    if as_json and output_format == "prometheus":
        raise WrongUse("--json and --format prometheus: one of them")
    anyio.run(_metrics, store, "json" if as_json else output_format)


async def _metrics(store: str | None, output_format: str) -> None:
    async with reading(store) as backend:
        summary = await backend.summarize()
        page = await backend.read("audit", newest=True, limit=1)
        name = name_of(backend)
    audit: PersistedAudit | None = None
    for record in page.records:
        assert isinstance(record, PersistedAudit)
        audit = record
    holds = _holds(summary)
    system = _numbers(audit.payload) if audit is not None else {}
    counters = _counters(audit)
    match output_format:
        case "json":
            data = {"store": name, "holds": holds, "counters": counters, "system": None}
            if audit is not None:
                data["system"] = {
                    "system_id": audit.system_id,
                    "timestamp": audit.timestamp,
                    **system,
                }
            show_json(data)
        case "prometheus":
            write(_exposition(name, holds, counters, system, audit))
        case _:
            _show(holds, counters, system, audit)


def _holds(summary: StoreSummary) -> dict[str, Any]:
    return {
        "records": summary.records,
        "record_bytes": summary.record_bytes,
        "stored_bytes": summary.stored_bytes,
        "last_seq": summary.last_seq,
        "segments": summary.segments,
        "oldest_timestamp": summary.oldest,
        "newest_timestamp": summary.newest,
        "damaged": int(summary.damaged),
    }


def _numbers(payload: object) -> dict[str, int]:
    """Return the numbers in an audit's payload, whichever version has written it."""
    fields = payload if isinstance(payload, dict) else {}
    return {name: value for name, value in fields.items() if type(value) is int}


def _counters(audit: PersistedAudit | None) -> dict[str, int]:
    """Return the counters of the system's store; zeros where no audit has any."""
    payload = audit.payload if audit is not None and isinstance(audit.payload, dict) else {}
    try:
        snapshot = msgspec.convert(payload.get("persistence"), MetricsSnapshot)
    except msgspec.ValidationError:
        snapshot = MetricsSnapshot()
    return dict(snapshot)


def _show(
    holds: dict[str, Any],
    counters: dict[str, int],
    system: dict[str, int],
    audit: PersistedAudit | None,
) -> None:
    rows = [("store", name, _format_value(name, value)) for name, value in _flat(holds)]
    rows += [("persistence", name, _format_value(name, value)) for name, value in counters.items()]
    if audit is not None:
        rows += [("system", "system_id", audit.system_id)]
        rows += [("system", "time", format_time(audit.timestamp))]
        rows += [("system", name, _format_value(name, value)) for name, value in system.items()]
    show_table(["of", "name", "value"], rows, numbers=["value"])


def _flat(holds: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in holds.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{kind}", each) for kind, each in value.items())
        elif value is not None:
            yield name, value


def _format_value(name: str, value: float) -> str:
    if name.endswith("timestamp"):
        return format_time(value)
    return f"{value:,}" if is_terminal() else str(value)


def _exposition(
    store: str,
    holds: dict[str, Any],
    counters: dict[str, int],
    system: dict[str, int],
    audit: PersistedAudit | None,
) -> str:
    """Return it all in the text format of Prometheus, version 0.0.4."""
    from papyra.observability.prometheus import expose, metric_of  # noqa: PLC0415

    families = list(_store_families(store, holds))
    if audit is not None:
        families += _system_families(store, counters, system, audit)
    return expose(map(metric_of, families)).body.decode()


def _store_families(store: str, holds: dict[str, Any]) -> Iterator[Family]:
    for name, value in holds.items():
        if value is None:
            continue
        by_kind = value.items() if isinstance(value, dict) else [(None, value)]
        yield Family(
            f"papyra.store.{name}",
            "gauge",
            "s" if name.endswith("timestamp") else "",
            f"What the store holds: {name.replace('_', ' ')}.",
            [
                Series(_labels(store=store, **({} if kind is None else {"kind": kind})), each)
                for kind, each in by_kind
            ],
        )


def _system_families(
    store: str, counters: dict[str, int], system: dict[str, int], audit: PersistedAudit
) -> Iterator[Family]:
    """Yield what an audit says, but for names in it that are none for a metric, or are taken.

    Anybody may persist an audit, with whatever payload.
    """
    labels = _labels(store=store, system_id=audit.system_id)
    for name, count in counters.items():
        yield _family(labels, f"papyra.persistence.{name}", "counter", "", count)
    yield _family(labels, "papyra.system.audit_timestamp", "gauge", "s", audit.timestamp)
    taken = {"audit_timestamp_seconds", *(f"{name}_total" for name in _COUNTED)}
    for name, number in system.items():
        if name in _COUNTED:
            yield _family(labels, f"papyra.system.{name}", "counter", "", number)
        elif _METRIC_NAME.fullmatch(name) and not name.endswith(_RESERVED) and name not in taken:
            yield _family(labels, f"papyra.system.{name}", "gauge", "", number)
        else:
            tell(f"left out: the audit's {name!r}, as no metric can be called so", "yellow")


def _family(labels: dict[str, str], name: str, kind: Kind, unit: str, value: float) -> Family:
    _, whose, counted = name.split(".", 2)
    whose = "store" if whose == "persistence" else whose
    documentation = f"By the newest audit of the {whose}: {counted.replace('_', ' ')}."
    return Family(name, kind, unit, documentation, [Series(labels, value)])


def _labels(**labels: str) -> dict[str, str]:
    """Return labels as `printable` shows them, but for ends of lines, which Prometheus escapes."""
    return {name: "\n".join(map(printable, text.split("\n"))) for name, text in labels.items()}
