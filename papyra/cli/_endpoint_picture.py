"""The figures of a running process, as ``papyra top`` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from papyra.cli._endpoint import ClassLook, EndpointLook, ProjectionLook, SystemLook
from papyra.cli._output import console, text
from papyra.cli._units import ago, format_count, format_time

if TYPE_CHECKING:
    from rich.console import RenderableType

_CLASSES = (
    *("class", "actors", "awake", "waiting", "handled", "wait", "receive"),
    *("crashes", "restarts", "dead letters"),
)
_PROJECTIONS = ("projection", "state", "lag", "behind", "handled")


def line_of(look: EndpointLook) -> Sequence[str]:
    """Return the cells of a line: time, actors, waiting; handled, commits and crashes a second."""
    waiting = [each.messages_waiting for each in look.classes if each.messages_waiting is not None]
    handled = [each.handled for each in look.classes if each.handled is not None]
    return (
        format_time(look.time),
        f"{sum(each.actors for each in look.classes):.0f}",
        f"{sum(waiting):.0f}" if waiting else "",
        f"{sum(handled):.1f}" if handled else "",
        f"{sum(each.commits for each in look.systems):.1f}",
        f"{sum(each.crashes for each in look.classes):.1f}",
    )


def picture(name: str, look: EndpointLook, away: str | None) -> RenderableType:
    """Return what fits on the terminal; `away` says why the figures are no newer."""
    from rich.console import Group  # noqa: PLC0415

    _, height = console().size
    lines: list[RenderableType] = [text(name, style="bold", cut=True)]
    if away is not None:
        lines.append(text(f"waiting: {away}", style="yellow", cut=True))
    lines += [text(_of_system(each, look.time), cut=True) for each in look.systems[:4]]
    shown = min(len(look.projections), max(1, height // 3)) if look.projections else 0
    room = max(1, height - len(lines) - 3 - (shown + 2 if shown else 0))
    # The busiest first: what is idle is what nobody looks for.
    busy = sorted(look.classes, key=lambda each: (-(each.handled or 0.0), -each.actors))
    lines += ["", _table(_CLASSES, [_of_class(each) for each in busy[:room]])]
    if len(busy) > room:
        lines[-2] = text(f"classes, {len(busy) - room} more", style="dim")
    if shown:
        urgent = sorted(look.projections, key=lambda each: (each.state == "running", -each.lag))
        lines += ["", _table(_PROJECTIONS, [_of_projection(each) for each in urgent[:shown]])]
    return Group(*lines)


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    for name in columns:
        left = name in ("class", "projection", "state")
        table.add_column(justify="left" if left else "right", no_wrap=True)
    table.add_row(*(text(name, style="dim") for name in columns))
    for row in cells:
        table.add_row(*map(text, row))
    return table


def _of_system(each: SystemLook, now: float) -> str:
    started = f", started {ago(each.started_at, now)}" if each.started_at is not None else ""
    took = f" of {_milliseconds(each.commit_seconds)}" if each.commit_seconds is not None else ""
    return (
        f"{each.system_id}: {'running' if each.is_running else 'not running'}{started}  "
        f"{_rate(each.commits)} commits{took}  {_rate(each.records)} records  "
        f"{each.last_seq:,.0f} stored  {each.persistence_waiting:,.0f} waiting  "
        f"{each.write_errors:,.0f} write errors  {each.timers_pending:,.0f} timers"
    )


def _of_class(each: ClassLook) -> Sequence[str]:
    return (
        each.actor_class,
        *(f"{number:,.0f}" for number in (each.actors, each.entities_awake)),
        "" if each.messages_waiting is None else f"{each.messages_waiting:,.0f}",
        "" if each.handled is None else _rate(each.handled),
        *(_milliseconds(each.mailbox_seconds), _milliseconds(each.receive_seconds)),
        _rate(each.crashes),
        *(f"{number:,.0f}" for number in (each.restarts, each.dead_letters)),
    )


def _of_projection(each: ProjectionLook) -> Sequence[str]:
    behind = f"{each.lag_seconds:,.1f} s" if each.lag_seconds else ""
    return each.projection, each.state, f"{each.lag:,.0f}", behind, _rate(each.handled)


def _rate(rate: float) -> str:
    return f"{format_count(round(rate, 1))}/s"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:,.2f} ms"
