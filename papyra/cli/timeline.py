"""``papyra timeline``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import anyio
from cyclopts import Parameter
from rich.cells import cell_len, set_cell_size

from papyra.cli._exit_codes import WrongUse
from papyra.cli._no_matches import explain_no_matches
from papyra.cli._output import (
    AsJson,
    console,
    has_unicode,
    is_terminal,
    printable,
    show,
    show_json,
    tell,
    text,
    write,
)
from papyra.cli._store_argument import StoreName, check_output, name_of, reading
from papyra.cli._units import Count, Moment, format_time
from papyra.observability.lifecycles import Lifecycle, Timeline, What, read_timeline
from papyra.persistence.messages import Read

#: How many lanes a terminal shows, where nobody says how many.
_ON_TERMINAL = 30
#: Columns of a picture that nobody looks at on a terminal.
_PIPED_WIDTH = 100


class Marks(NamedTuple):
    """The characters that a picture is made of."""

    started: str
    crashed: str
    restarted: str
    stopped: str
    dead_letter: str
    alive: str
    down: str

    def of(self, what: What) -> str:
        """Return the mark of a step."""
        mark: str = getattr(self, what)
        return mark


_MARKS = Marks("●", "✗", "↻", "■", "◆", "─", "╌")
_ASCII_MARKS = Marks("o", "x", "r", "#", "!", "-", ".")

#: What is shown where there are several in one place, the most important first.
_RANK: Sequence[What] = ("crashed", "stopped", "restarted", "started")
_STYLES: dict[What, str] = {
    "crashed": "bold red",
    "stopped": "blue",
    "restarted": "yellow",
    "started": "green",
}


def timeline(
    store: StoreName = None,
    /,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    actor: Annotated[str | None, Parameter(name=("--actor", "-a"))] = None,
    limit: Annotated[Count | None, Parameter(name=("--limit", "-n"))] = None,
    html: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Show the lives of the actors, one lane each.

    When they started, crashed, were restarted and stopped, and what came when they were no more.

    Examples
    --------
      papyra timeline ./journal/ --since 2h
      papyra timeline events.ndjson --actor shop/desk --html lives.html

    Parameters
    ----------
    since
        Only from then on.
    until
        Only up to then.
    actor
        Only this actor, and those below it.
    limit
        So many lanes at most, those with the most crashes; on a terminal 30.
    html
        Write one page, with a picture to look into, that needs nothing else.

    """
    if limit is not None and limit < 0:
        raise WrongUse(f"--limit is how many lanes, not {limit}")
    check_output(html, store)
    lives = anyio.run(_read, store, since, until, actor)
    if limit is None and html is None and is_terminal() and not as_json:
        limit = _ON_TERMINAL
    every = len(lives.lives)
    lives.lives = _most_eventful(lives.lives, limit)
    if html is not None:
        from papyra.observability.timeline_page import page  # noqa: PLC0415 - it has a template to read

        html.write_text(page(lives), encoding="utf-8")
        tell(f"{len(lives.lives):,} lives written to {html}", "dim")
    elif as_json:
        for life in lives.lives:
            show_json(life)
    else:
        _show(lives)
        if len(lives.lives) < every:
            tell(f"{len(lives.lives):,} of {every:,} actors; --limit, --actor and --html show more")


async def _read(
    store: str | None, since: float | None, until: float | None, actor: str | None
) -> Timeline:
    async with reading(store) as backend:
        lives = await read_timeline(backend, name_of(backend), since, until, actor)
        request = Read("event", actor=actor, since=since, until=until)
        if not lives.lives and request != Read("event"):
            tell(await explain_no_matches(backend, request, below=True), "dim")
        elif not lives.lives and backend.capabilities.durable:
            tell("no actor's life is recorded there", "dim")
        return lives


def _most_eventful(lives: list[Lifecycle], limit: int | None) -> list[Lifecycle]:
    """Return up to `limit` lives, those with the most crashes and then the most steps, in order."""
    if limit is None or len(lives) <= limit:
        return lives
    ranked = sorted(range(len(lives)), key=lambda n: (-lives[n].crashes, -len(lives[n].steps), n))
    return [lives[number] for number in sorted(ranked[:limit])]


def _show(lives: Timeline) -> None:
    if not lives.lives:
        return
    width = console().width if is_terminal() else _PIPED_WIDTH
    marks = _MARKS if has_unicode() else _ASCII_MARKS
    names = [printable(life.actor) for life in lives.lives]
    label = min(max(map(cell_len, names)), max(10, width // 3), max(1, width - 5))
    letters: dict[str, list[float]] = {}
    for letter in lives.dead_letters:
        letters.setdefault(letter.target, []).append(letter.timestamp)
    span = Span(lives.start, lives.end, max(1, width - label - 1))
    lines = [
        (
            set_cell_size(shortened(name, label), label + 1),
            lane(life, letters.get(life.actor, ()), span, marks),
        )
        for name, life in zip(names, lives.lives, strict=True)
    ]
    first, last = format_time(lives.start), format_time(lives.end)
    room = width - label - 1
    axis = f"{first}{last:>{room - len(first)}}" if room > len(first) + len(last) else first
    legend = "  ".join(f"{marks.of(what)} {what}" for what in reversed(_RANK))
    legend += f"  {marks.dead_letter} dead letter"
    if not is_terminal():
        write("".join(f"{name}{picture}".rstrip() + "\n" for name, picture in lines))
        write(f"{'':{label + 1}}{axis}\n{legend}\n")
        return
    for name, picture in lines:
        show(text((name, "cyan"), *_coloured(picture, marks), cut=True))
    show(text(f"{'':{label + 1}}{axis}", style="dim", cut=True), text(legend, style="dim"))


def shortened(name: str, width: int) -> str:
    """Return a name with its middle left out, if it takes more than so many columns."""
    if cell_len(name) <= width:
        return name
    head = set_cell_size(name, (width - 1) // 3)
    tail = name
    while cell_len(tail) > width - 1 - cell_len(head):
        tail = tail[1:]
    return f"{head}{'…' if has_unicode() else '~'}{tail}"


class Span(NamedTuple):
    """The time that a picture shows, in so many columns."""

    start: float
    end: float
    width: int

    def column(self, time: float) -> int:
        """Return the column of a time."""
        # In halves, as the whole of it may be more than a float holds.
        length = self.end / 2 - self.start / 2
        part = (time / 2 - self.start / 2) / length if length else 0.0
        return min(self.width - 1, max(0, int(part * self.width)))


def lane(life: Lifecycle, letters: Sequence[float], span: Span, marks: Marks) -> str:
    """Return one life as a line; `letters` are the times of the dead letters to it."""
    cells = [" "] * span.width
    # An actor whose story is known from its start on was not there before.
    state = " " if life.is_whole else marks.alive
    at = 0
    for step in life.steps:
        here = span.column(step.time)
        cells[at:here] = state * (here - at)
        at = here
        match step.what:
            case "crashed":
                state = marks.down if step.detail.get("decision") == "restart" else marks.alive
            case "stopped":
                state = " "
            case _:
                state = marks.alive
    cells[at:] = state * (span.width - at)
    for time in letters:
        cells[span.column(time)] = marks.dead_letter
    for step in sorted(life.steps, key=lambda step: _RANK.index(step.what), reverse=True):
        cells[span.column(step.time)] = marks.of(step.what)
    return "".join(cells)


def _coloured(picture: str, marks: Marks) -> Iterator[tuple[str, str]]:
    """Yield the parts of a lane, each with its style."""
    styles = {marks.of(what): style for what, style in _STYLES.items()}
    styles |= {marks.dead_letter: "magenta", marks.alive: "dim", marks.down: "red"}
    for cell, run in itertools.groupby(picture):
        yield "".join(run), styles.get(cell, "")
