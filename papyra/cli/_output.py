"""The output of a command: for people on a terminal, plain and stable for other programs.

Everything that a command prints goes through this module, and whatever it is, a terminal has
nothing to obey in it: see `printable`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeAlias, cast

import msgspec
from cyclopts import Parameter

from papyra.cli._exit_codes import CommandFailed, WrongUse
from papyra.persistence.codec import to_json
from papyra.persistence.reports import ReportProgress, ScanProgress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.text import Text

AsJson: TypeAlias = Annotated[
    bool, Parameter(name="--json", help="Print JSON, for other programs.")
]
Yes: TypeAlias = Annotated[bool, Parameter(name=("--yes", "-y"), help="Do it without asking.")]

#: Seconds after which somebody wants to see progress.
_WORTH_A_BAR = 0.3


def is_terminal() -> bool:
    """Return whether somebody reads what is printed."""
    return sys.stdout.isatty()


@functools.cache
def console(*, stderr: bool = False) -> Console:
    """Return the console for pictures, tables and colours. It takes text, never markup."""
    # When it is needed: other programs read what it has no part in.
    from rich.console import Console  # noqa: PLC0415

    without_colours = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    return Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        **without_colours,  # type: ignore[arg-type]
    )


def has_unicode() -> bool:
    """Return whether every character can be printed as it is."""
    return (sys.stdout.encoding or "ascii").lower().startswith("utf")


def printable(text: str) -> str:
    """Return `text` with control characters, and those that can't be shown, escaped; one line."""
    if not has_unicode():
        text = text.encode("ascii", "backslashreplace").decode()
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def json_text(value: object) -> str:
    """Return a value as JSON on one line, with JSON's escapes for what `printable` escapes."""
    text = _as_json(value)
    if text.isascii() and text.isprintable():
        return text
    keeps_unicode = has_unicode()
    return "".join(
        c if c.isprintable() and (keeps_unicode or c.isascii()) else json.dumps(c)[1:-1]
        for c in text
    )


def _as_json(value: object) -> str:
    try:
        return to_json(value).decode()
    except UnicodeEncodeError:
        # A path that is not valid UTF-8 comes with lone surrogates, which JSON has no form for.
        return to_json(_without_surrogates(msgspec.to_builtins(value))).decode()


def _without_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {
                _without_surrogates(key): _without_surrogates(each) for key, each in value.items()
            }
        case list() | tuple():
            return [_without_surrogates(each) for each in value]
        case _:
            return value


def rows(rows: Iterable[Sequence[str]]) -> str:
    """Return a line for each row, its cells separated by tabs."""
    return "".join("\t".join(map(printable, row)) + "\n" for row in rows)


def write(lines: str) -> None:
    """Print lines, and in them tabs, for other programs; everything else is escaped."""
    if not lines.replace("\n", "").replace("\t", "").isprintable():
        lines = "\n".join("\t".join(map(printable, line.split("\t"))) for line in lines.split("\n"))
    sys.stdout.write(lines)


def text(*parts: str | tuple[str, str], style: str = "", cut: bool = False) -> Text:
    """Return text for people, of parts each of which may have a style of its own.

    With `cut`, it is one line, whose end is left out where it does not fit.
    """
    from rich.text import Text  # noqa: PLC0415 - where it is drawn

    made = Text(style=style)
    if cut:
        made.no_wrap, made.overflow = True, "ellipsis" if has_unicode() else "crop"
    for part in parts:
        content, own = (part, "") if isinstance(part, str) else part
        made.append(printable(content), own)
    return made


def show(*renderables: RenderableType) -> None:
    """Print something for people, made of `text`."""
    for renderable in renderables:
        console().print(renderable)


def show_json(value: object) -> None:
    """Print one JSON document on one line."""
    write(json_text(value) + "\n")


def report_fields(report: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a report for `show_json`, without the tag of its type."""
    fields: dict[str, Any] = msgspec.to_builtins(report)
    del fields["type"]
    return fields


def show_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values: aligned for people, separated by tabs for programs."""
    if not is_terminal():
        write(rows(fields))
        return
    from rich.table import Table  # noqa: PLC0415

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fields:
        grid.add_row(name, text(value))
    show(grid)


def show_table(
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    styles: Callable[[Sequence[str]], str] = lambda _: "",
) -> None:
    """Print a table: drawn for people; for programs a line each, separated by tabs, no header.

    The columns called `numbers` stand to the right.
    """
    if not is_terminal():
        write(rows(cells))
        return
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(
            text(name), justify="right" if name in numbers else "left", overflow="fold"
        )
    for row in cells:
        table.add_row(*map(text, row), style=styles(row))
    show(table)


def tell(message: str, style: str = "") -> None:
    """Print a message for people, on one line of stderr: it is no part of the result."""
    if not sys.stderr.isatty():
        sys.stderr.write(f"{printable(message)}\n")
        return
    console(stderr=True).print(text((message, style)), soft_wrap=True)


def confirm(question: str, *, yes: bool) -> bool:
    """Return whether to go on: `yes`, or what somebody at the terminal answers.

    Raises `WrongUse` where nobody can be asked.
    """
    if yes:
        return True
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        raise WrongUse("this changes the store, and there is nobody to ask: add --yes")
    from rich.prompt import Confirm  # noqa: PLC0415

    try:
        return Confirm.ask(
            text(question),
            console=console(stderr=True),
            default=False,
            stream=cast("TextIO", _Answers()),
        )
    except EOFError:
        raise CommandFailed("no answer: nothing was changed") from None


class _Answers:
    """Lines from a terminal, as `input` reads them, but for Ctrl-C, which always ends the wait."""

    def readline(self) -> str:
        """Return a line without its end; raise `EOFError` where there is none."""
        if os.name == "posix":  # elsewhere a terminal is nothing to select
            _wait_for_line()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")


def _wait_for_line() -> None:
    """Wait until there is something to read on standard input.

    Of a signal that comes right before a read, Python takes note when that has returned: whoever
    presses Ctrl-C as the question appears would wait for nothing.
    """
    signalled, signals = socket.socketpair()
    with signalled, signals:
        signals.setblocking(False)
        before = signal.set_wakeup_fd(signals.fileno())
        try:
            while sys.stdin not in select.select([sys.stdin, signalled], [], [])[0]:
                signalled.recv(1)  # a signal that is no interrupt
        finally:
            signal.set_wakeup_fd(before)


@contextlib.contextmanager
def progress(what: str, *, in_bytes: bool = False) -> Iterator[ReportProgress]:
    """Show the progress of a long operation on a terminal; yield the callback that reports it."""
    bar = _Bar(what, in_bytes=in_bytes)
    try:
        yield bar.show if sys.stderr.isatty() else bar.keep
    finally:
        bar.close()


class _Bar:
    """A bar on stderr, which is there once it is worth looking at."""

    def __init__(self, what: str, *, in_bytes: bool) -> None:
        self._what, self._in_bytes = printable(what), in_bytes
        self._since = time.monotonic()
        self._bars: Progress | None = None
        self._task: TaskID

    def keep(self, how_far: ScanProgress) -> None:
        """Show nothing."""

    def show(self, how_far: ScanProgress) -> None:
        """Draw the progress."""
        if self._bars is None:
            if time.monotonic() - self._since < _WORTH_A_BAR:
                return
            self._bars = self._start()
            self._task = self._bars.add_task(self._what)
        self._bars.update(self._task, completed=how_far.done, total=how_far.total)

    def close(self) -> None:
        """Remove the bar."""
        if self._bars is not None:
            self._bars.stop()

    def _start(self) -> Progress:
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        amount: ProgressColumn = MofNCompleteColumn()
        if self._in_bytes:
            amount = DownloadColumn(binary_units=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            amount,
            TimeRemainingColumn(),
        )
        bars = Progress(*columns, console=console(stderr=True), transient=True)
        bars.start()
        return bars
