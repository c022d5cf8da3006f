"""``papyra compact``."""

from __future__ import annotations

import sys
from typing import Annotated

import anyio
import msgspec
from cyclopts import Parameter

from papyra.cli._exit_codes import CommandFailed, WrongUse
from papyra.cli._kinds import KindName, format_limits, has_limits, name_of_kind, policy_for
from papyra.cli._output import (
    AsJson,
    Yes,
    confirm,
    is_terminal,
    report_fields,
    show,
    show_json,
    show_table,
    tell,
)
from papyra.cli._store_argument import StoreName, backend_at, name_of, reading
from papyra.cli._units import Count, Duration, Size, format_bytes
from papyra.exceptions import InvalidPolicy
from papyra.persistence.records import Kind
from papyra.persistence.reports import CompactionReport, HistoriesReport
from papyra.persistence.retention import RetentionPolicy


def compact(
    store: StoreName = None,
    /,
    *,
    kind: Annotated[list[KindName] | None, Parameter(name="--kind", negative=())] = None,
    max_age: Duration | None = None,
    max_records: Count | None = None,
    max_bytes: Size | None = None,
    trim_histories: bool = False,
    dry_run: bool = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is too old, or too much.

    Each limit is for each kind of record by itself. Without any, and without STORE, those of the
    settings hold. It shows what would go, and what is kept and why, asks, and does it. Events that
    are part of the history of an actor are kept whatever the limits are. With --trim-histories, a
    history may begin with a snapshot, and the hidden events before it go.

    Examples
    --------
      papyra compact events.ndjson --max-age 30d --dry-run
      papyra compact ./journal/ --max-records 1000000 --max-bytes 1GiB --yes
      papyra compact ./journal/ --kind audits --kind dead-letters --max-age 7d
      papyra compact ./journal/ --max-age 90d --trim-histories --dry-run

    Parameters
    ----------
    kind
        Only records of this kind; again for another one.
    max_age
        Keep what is no older.
    max_records
        Keep so many, the newest.
    max_bytes
        Keep the newest that fit into this.
    trim_histories
        Remove the beginnings of histories, too, of actors with two good snapshots or more.
    dry_run
        Only show what would be left.

    """
    try:
        policy = RetentionPolicy(
            max_records=max_records, max_age_seconds=max_age, max_total_bytes=max_bytes
        )
    except InvalidPolicy as error:
        raise WrongUse(str(error)) from error
    name, policy, plan = anyio.run(_plan, store, policy, kind or [], trim_histories)
    removed = plan.records_before - plan.records_after
    if dry_run or not removed:
        _report(name, policy, plan, as_json=as_json, done=False)
        return
    if not as_json:
        _report(name, policy, plan, as_json=False, done=False)
    # Outside of any event loop, which would keep Ctrl-C until there is an answer.
    if not confirm(f"remove {removed:,} records from {name}?", yes=yes):
        raise CommandFailed("nothing was changed")
    _report(name, policy, anyio.run(_compact, store, policy), as_json=as_json, done=True)


async def _plan(
    store: str | None, policy: RetentionPolicy, kinds: list[KindName], trims: bool
) -> tuple[str, RetentionPolicy, CompactionReport]:
    """Return the name of a store, the policy to compact it by, and the report of a dry run."""
    async with reading(store, "compacting") as backend:
        if policy == RetentionPolicy():
            policy = backend.retention
        trims = trims or policy.trim_histories
        if kinds:
            policy = policy_for(kinds, policy)
        policy = msgspec.structs.replace(policy, trim_histories=trims)
        if not has_limits(policy):
            raise WrongUse("say what to keep: --max-age 30d, --max-records N or --max-bytes 1GiB")
        return name_of(backend), policy, await backend.compact(policy, dry_run=True)


async def _compact(store: str | None, policy: RetentionPolicy) -> CompactionReport:
    async with backend_at(store) as backend:
        return await backend.compact(policy)


def _report(
    name: str, policy: RetentionPolicy, report: CompactionReport, *, as_json: bool, done: bool
) -> None:
    if as_json:
        show_json({"done": done, "retention": policy, **report_fields(report)})
        return
    removed = report.records_before - report.records_after
    freed = report.bytes_before - report.bytes_after
    what = "removed" if done else "to remove"
    if report.histories is not None:
        _show_histories(report.histories, what)
    if not removed:
        kept = report.kept_for_histories
        why = f"; {kept:,} are kept as part of histories" if kept else ""
        tell(f"{name}: {report.records_before:,} records, none of them to remove{why}", "green")
        return
    if report.kinds:
        _show_kinds(policy, report, what)
    show_table(
        ["", "records", "size"],
        [
            ("before", f"{report.records_before:,}", format_bytes(report.bytes_before)),
            (what, f"{removed:,}", format_bytes(freed)),
            ("after", f"{report.records_after:,}", format_bytes(report.bytes_after)),
        ],
        numbers=["records", "size"],
    )
    sys.stdout.flush()


def _show_kinds(policy: RetentionPolicy, report: CompactionReport, what: str) -> None:
    """Show what goes of each kind, what is kept, and why."""
    show_table(
        ["", what, "kept", "why"],
        [
            (
                name_of_kind(kind),
                f"{each.records_before - each.records_after:,}",
                f"{each.records_after:,}",
                _why_kept(kind, policy, report),
            )
            for kind, each in report.kinds.items()
        ],
        numbers=[what, "kept"],
    )
    if is_terminal():
        show("")


def _why_kept(kind: Kind, policy: RetentionPolicy, report: CompactionReport) -> str:
    limits = format_limits(policy.of(kind)) or "no limit"
    if kind == "event" and report.kept_for_histories:
        return f"{limits}; {report.kept_for_histories:,} are part of histories"
    return limits


def _show_histories(histories: HistoriesReport, what: str) -> None:
    """Show how many histories are trimmed, how many are not, and why."""
    if not histories.supported:
        tell("this store keeps every history whole: it can't trim them", "yellow")
        return
    events = f"{histories.events_removed:,} events {what}: they begin with a snapshot"
    found = [
        ("trimmed", histories.trimmed, events),
        ("kept", histories.without_snapshots, "fewer than two good snapshots of one version"),
        ("kept", histories.still_shown, "the limits keep what the oldest snapshot sums up"),
    ]
    rows = [(name, f"{count:,}", why) for name, count, why in found if count]
    if rows:
        show_table(["histories", "how many", "why"], rows, numbers=["how many"])
        if is_terminal():
            show("")
