"""``papyra migrate``."""

from __future__ import annotations

import anyio

from papyra.cli._exit_codes import CommandFailed
from papyra.cli._output import AsJson, Yes, confirm, report_fields, show_json, show_table, tell
from papyra.cli._store_argument import StoreName, backend_at, exists, name_of, place_of
from papyra.persistence.reports import MigrationReport


def migrate(
    store: StoreName = None,
    /,
    *,
    dry_run: bool = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Bring the tables of a database to the version of today.

    A system does not start on a database whose tables an older version has made. This says which
    steps they need, asks, and does them, and keeps everything in them. Each step is one
    transaction. No system that has its tables there may be running. Where a database has no tables
    of Papyra's yet, they are made. Older versions refuse it from then on: papyra copy makes a copy
    first.

    Examples
    --------
      papyra migrate shop.sqlite --dry-run
      papyra migrate 'sqlite:shop.sqlite?system_id=shop' --yes --json

    Parameters
    ----------
    dry_run
        Only show which steps there are.

    """
    name, plan = anyio.run(_plan, store)
    if not plan.supported or not plan.steps or dry_run:
        _report(name, plan, as_json=as_json, done=False)
        return
    if not as_json:
        _report(name, plan, as_json=False, done=False)
    # Outside of any event loop, which would keep Ctrl-C until there is an answer.
    if not confirm(f"migrate {name} to version {plan.version_after}?", yes=yes):
        raise CommandFailed("nothing was changed")
    _report(name, anyio.run(_migrate, store), as_json=as_json, done=True)


async def _plan(store: str | None) -> tuple[str, MigrationReport]:
    """Return the name of a store, and the report of a dry run."""
    backend = backend_at(store, read_only=True)
    if not exists(backend):
        raise CommandFailed(
            f"there is no store at {place_of(backend)}: see what STORE may be with --help"
        )
    return name_of(backend), await backend.migrate(dry_run=True)


async def _migrate(store: str | None) -> MigrationReport:
    return await backend_at(store).migrate()


def _report(name: str, report: MigrationReport, *, as_json: bool, done: bool) -> None:
    if as_json:
        show_json({"done": done, **report_fields(report)})
        return
    before, after = report.version_before, report.version_after
    if not report.supported:
        tell(f"{name}: a store of kind {report.backend} has no tables: nothing to do", "green")
        return
    if not report.steps:
        tell(f"{name}: the tables are of version {after}: nothing to do", "green")
        return
    if done:
        tell(f"{name}: migrated from version {before} to version {after}", "green")
        return
    versions = range(after - len(report.steps) + 1, after + 1)
    show_table(
        ["version", "what is done"],
        [(str(version), step) for version, step in zip(versions, report.steps, strict=True)],
    )
    tell(f"{name}: the tables are of version {before}", "bold")
