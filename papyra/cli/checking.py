"""``papyra scan``, ``papyra recover`` and ``papyra doctor``."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, assert_never

import anyio
from cyclopts import Parameter

from papyra.cli._exit_codes import (
    ANOMALIES_FOUND,
    ANOMALIES_LEFT,
    SUCCEEDED,
    CommandFailed,
    WrongUse,
)
from papyra.cli._output import (
    AsJson,
    Yes,
    confirm,
    is_terminal,
    progress,
    report_fields,
    rows,
    show_json,
    show_table,
    tell,
    write,
)
from papyra.cli._store_argument import (
    StoreName,
    backend_at,
    exists,
    name_of,
    place_of,
    reading,
    refuse_where_no_writer_can_be,
    require_durable,
)
from papyra.cli._units import format_bytes
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.reports import (
    BESIDE,
    AnomalyKind,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
)
from papyra.persistence.startup import PersistenceStartupConfig, StartPlan, plan_start

#: What each anomaly means to somebody who has just been woken up.
_MEANINGS: dict[AnomalyKind, str] = {
    "torn": "a write that did not come to its end, as a crash leaves it; it was never acknowledged",
    "corrupt": "bytes that are no record: this one is lost",
    "checksum": "a record that was changed after it was written: this one is lost",
    "line_ending": "a newline that an editor or a transfer has changed: the record is still there",
    "wrong_fields": "an entry that somebody else has put there",
    "unknown_kind": "a record that a newer version has written; it is kept",
    "gap": "records that were acknowledged and are not there any more",
    "duplicate": "a record that is there twice, or in the wrong place",
    "foreign_file": "a file that does not belong there; it is kept, unless there is a quarantine",
    "missing_segment": "a whole file of the journal is gone, with the records in it",
    "history": "an event of an actor is missing or doubled: it will not start from this history",
    "snapshot": "a snapshot that nobody may believe, and nobody does: nothing is lost but time",
    "index": "an index that does not say what is in its file: nothing is lost but time",
    "outbox": "an application handed over what is no event: it is kept there, and not appended",
}

#: Anomalies with which no record is lost.
_NO_LOSS = BESIDE | {"torn", "line_ending", "unknown_kind", "foreign_file"}
#: How many anomalies somebody reads.
_ON_TERMINAL = 200

Mode = Literal["repair", "quarantine"]


def scan(store: StoreName = None, /, *, as_json: AsJson = False) -> int:
    """Find everything that is wrong with a store.

    It says what it is, where, and what it means. It reads every byte, and changes nothing. Exits
    with 3 if it has found something.

    Examples
    --------
      papyra scan ./journal/
      papyra scan events.ndjson --json | jq '.anomalies[].line'

    """
    name, report = anyio.run(_scan, store, "scanning")
    if as_json:
        show_json(_as_data(report))
    else:
        _show(name, report)
    return SUCCEEDED if report.is_clean else ANOMALIES_FOUND


async def _scan(store: str | None, what: str) -> tuple[str, PersistenceScanReport]:
    """Return the name of a store, and the report of its scan."""
    async with reading(store, what) as backend:
        with progress("scanning", in_bytes=place_of(backend) is not None) as advance:
            return name_of(backend), await backend.scan(advance)


def _as_data(report: PersistenceScanReport) -> dict[str, Any]:
    data = report_fields(report)
    for anomaly in data["anomalies"]:
        anomaly["meaning"] = _MEANINGS[anomaly["kind"]]
    return data | {"is_clean": report.is_clean}


def _show(name: str, report: PersistenceScanReport) -> None:
    counts = Counter(anomaly.kind for anomaly in report.anomalies)
    _show_anomalies(report.anomalies)
    if counts and is_terminal():
        show_table(["", "meaning"], [(kind, _MEANINGS[kind]) for kind in counts])
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing is wrong"
    size = format_bytes(report.bytes_scanned)
    tell(
        f"{name}: {report.records_scanned:,} records ({size}) read: {found}",
        "green" if report.is_clean else "bold red",
    )
    if counts:
        tell("papyra recover --dry-run says what a recovery would do", "dim")


def _show_anomalies(anomalies: Sequence[PersistenceAnomaly]) -> None:
    shown = anomalies[:_ON_TERMINAL] if is_terminal() else anomalies
    if not shown:
        return
    show_table(
        ["what", "where", "detail"],
        [(each.kind, _where(each), each.detail) for each in shown],
        styles=lambda row: "yellow" if row[0] in _NO_LOSS else "red",
    )
    if len(anomalies) > len(shown):
        tell(f"and {len(anomalies) - len(shown):,} more: --json shows them all", "dim")


def _where(anomaly: PersistenceAnomaly) -> str:
    """Return where an anomaly is, the line as editors take it."""
    parts = [anomaly.location or "", "" if anomaly.line is None else str(anomaly.line)]
    place = ":".join(part for part in parts if part)
    if anomaly.offset is not None:
        place += f" (byte {anomaly.offset:,})"
    if anomaly.entry is not None:
        place += f" {anomaly.entry}"
    return place


def recover(
    store: StoreName = None,
    /,
    *,
    mode: Annotated[Mode, Parameter(name=("--mode", "-m"))] = "repair",
    quarantine_dir: Path | None = None,
    dry_run: bool = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Mend what a scan finds, keeping all that can be read.

    It shows what it will do, asks, does it, and scans again. Exits with 4 if something is left.

    Examples
    --------
      papyra recover events.ndjson --dry-run
      papyra recover ./journal/ --mode quarantine --quarantine-dir /var/lib/damaged --yes

    Parameters
    ----------
    mode
        repair removes what is damaged; quarantine keeps a copy of it, too.
    quarantine_dir
        Where such copies go: a directory. Beside the store, if it is left out.
    dry_run
        Only show what it would do.

    """
    if quarantine_dir is not None and mode != "quarantine":
        raise WrongUse("--quarantine-dir is for --mode quarantine")
    place = None if quarantine_dir is None else str(quarantine_dir)
    config = PersistenceRecoveryConfig(mode, place)
    name, found = anyio.run(_scan, store, "recovering")
    if not as_json:
        _show_plan(name, found, config)
    if found.is_clean or dry_run:
        if as_json:
            show_json({"done": False, "scan": _as_data(found)})
        return SUCCEEDED if found.is_clean else ANOMALIES_FOUND
    if not found.records_scanned and config.mode != "quarantine":
        raise CommandFailed(
            f"{name} has not one record that can be read, so it may be no store at all: "
            "--mode quarantine keeps what is there"
        )
    # Outside of any event loop, which would keep Ctrl-C until there is an answer.
    if not confirm(f"recover {name}?", yes=yes):
        raise CommandFailed("nothing was changed")
    report = anyio.run(_recover, store, config)
    if as_json:
        show_json({"done": True, **report_fields(report), "scan": _as_data(report.scan)})
    else:
        summary = f"kept {report.records_kept:,} records, removed {report.records_removed:,}"
        places = [f"the original is at {place}" for place in report.quarantined]
        write(rows([line] for line in (summary, *places)))
        _show(name, report.scan)
    return SUCCEEDED if report.scan.is_clean else ANOMALIES_LEFT


async def _recover(
    store: str | None, config: PersistenceRecoveryConfig
) -> PersistenceRecoveryReport:
    async with backend_at(store) as backend:
        return await backend.recover(config)


def _show_plan(name: str, found: PersistenceScanReport, config: PersistenceRecoveryConfig) -> None:
    """Print what a recovery will do about each kind of anomaly."""
    if found.is_clean:
        tell(f"{name}: {found.records_scanned:,} records, nothing is wrong: nothing to do", "green")
        return
    counts = Counter(anomaly.kind for anomaly in found.anomalies)
    show_table(
        ["what", "how many", "what is done"],
        [(kind, str(count), _plan(kind, config)) for kind, count in counts.items()],
        numbers=["how many"],
    )
    tell(f"{name}: {found.records_scanned:,} records can be read, and are kept", "bold")


def _plan(kind: AnomalyKind, config: PersistenceRecoveryConfig) -> str:
    aside = config.mode == "quarantine"
    match kind:
        case "torn":
            done = "it is cut off"
        case "gap" | "missing_segment":
            return "what is missing is written down as gone: it can't be brought back"
        case "history":
            return "it stays so: what is missing can't be brought back"
        case "unknown_kind":
            return "it is kept as it is"
        case "line_ending":
            done = "the line is written anew"
        case "index":
            return "it is made anew"
        case "outbox":
            return "it is left to whoever knows what it was to be: see papyra_outbox_refused"
        case "foreign_file":
            where = f"to {config.quarantine_dir}" if config.quarantine_dir else "beside the store"
            return f"it is moved {where}" if aside else "it is left where it is"
        case "duplicate":
            done = "one is kept, in its place"
        case _:
            done = "it is removed"
    return f"{done}; a copy of the damaged original is kept" if aside else done


def doctor(
    store: StoreName = None,
    /,
    *,
    mode: Annotated[
        Literal["ignore", "fail_on_anomaly", "recover"], Parameter(name=("--mode", "-m"))
    ] = "fail_on_anomaly",
    as_json: AsJson = False,
) -> int:
    """Make the check that a system makes when it starts.

    It says what a start would do, and changes nothing: for init containers and CI. A start cuts off
    a torn end, as a crash leaves it, and does about damage what PersistenceStartupConfig says.
    Exits with 3 if a system would not start since the store is damaged, with 4 if not even a
    recovery would help, and with 1 if something else keeps it from starting.

    Examples
    --------
      papyra doctor ./journal/
      papyra doctor 'redis://redis/0?system_id=shop' --mode recover

    Parameters
    ----------
    mode
        What the start would do about damage: nothing, fail, or recover. `papyra recover` does it.

    """
    return anyio.run(_doctor, store, PersistenceStartupConfig(mode), as_json)


async def _doctor(store: str | None, config: PersistenceStartupConfig, as_json: bool) -> int:
    backend = backend_at(store, read_only=True)
    require_durable(backend, "a startup check")
    name = name_of(backend)
    refuse_where_no_writer_can_be(backend)
    report: PersistenceScanReport | None = None
    plan: StartPlan = "start"
    if exists(backend):
        report = await _examine(backend, config)
    if report is not None:
        plan = plan_start(report, config)
    code = SUCCEEDED
    if plan == "refuse":
        code = ANOMALIES_LEFT if config.mode == "recover" else ANOMALIES_FOUND
    if as_json:
        scan = None if report is None else _as_data(report)
        told = {"store": name, "mode": config.mode, "can_start": plan != "refuse", "plan": plan}
        show_json({**told, "scan": scan})
        return code
    if report is not None:
        _show_anomalies(report.anomalies)
    outlook = _format_plan(plan, report) if exists(backend) else _NEW
    tell(f"{name}: {outlook}", "bold red" if code else "green")
    return code


async def _examine(
    backend: PersistenceBackend, config: PersistenceStartupConfig
) -> PersistenceScanReport | None:
    """Scan as a start does, without its lock; `None` in mode ``ignore``, which does not look."""
    await _refuse_outdated(backend)
    async with backend.reader() as reader:
        writer, place = (await reader.summarize()).writer, place_of(backend)
        # A note of another host's may be of a container that is no more: that does not tell.
        is_here = writer is not None and writer.endswith(f" on {socket.gethostname()}")
        if place is not None and is_here:
            raise CommandFailed(
                f"a system would not start: {writer} has {name_of(backend)} open, and one process "
                "at a time writes to a store"
            )
        if config.mode == "ignore":
            return None
        with progress("scanning", in_bytes=place_of(backend) is not None) as advance:
            return await reader.scan(advance)


async def _refuse_outdated(backend: PersistenceBackend) -> None:
    """Raise `CommandFailed` for tables that a reader can look at, and a system does not take."""
    plan = await backend.migrate(dry_run=True)
    if plan.version_before and plan.steps:
        raise CommandFailed(
            f"a system would not start: the tables of {name_of(backend)} are of version "
            f"{plan.version_before}: see papyra migrate --dry-run"
        )


_NEW = "there is no store yet: a system starts with a new one"


def _format_plan(plan: StartPlan, report: PersistenceScanReport | None) -> str:
    match plan:
        case "start":
            return "a system can start"
        case "truncate":
            size = 0 if report is None else _torn_bytes(report)
            torn = f"a torn end of {size:,} bytes" if size else "a torn end"
            return f"a system can start: it would cut off {torn}, which nobody was told was stored"
        case "recover":
            return "a system can start: it would recover the store first, as papyra recover does"
        case "refuse":
            return "a system would not start: see papyra recover --dry-run"
        case _:
            assert_never(plan)


def _torn_bytes(report: PersistenceScanReport) -> int:
    """Return how many bytes are behind the first torn line of each file."""
    starts: dict[str, int] = {}
    for anomaly in report.anomalies:
        if anomaly.location is not None and anomaly.offset is not None:
            start = min(anomaly.offset, starts.get(anomaly.location, anomaly.offset))
            starts[anomaly.location] = start
    return sum(max(0, Path(path).stat().st_size - start) for path, start in starts.items())
