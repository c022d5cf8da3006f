"""The command line: which commands there are, and how each of them ends.

Cyclopts rather than Typer: it imports a command when that is called, and Rich when there is
something to draw, so that looking at a store takes half the time.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cyclopts import App, CycloptsError, Group, Parameter

from papyra.cli._exit_codes import (
    FAILED,
    INTERRUPTED,
    SUCCEEDED,
    WRONG_USE,
    CommandFailed,
    NothingToDo,
    WrongUse,
    format_error,
    missing_extra,
    without_secrets,
)
from papyra.exceptions import MissingExtra, PapyraError, SettingsError

HELP = """Look at a store of Papyra's, check it, mend it, move it.

STORE is a file, a directory or a URL. Left out, it is what PAPYRA_PERSISTENCE, or the module that \
PAPYRA_SETTINGS_MODULE names, says.

  events.ndjson
  ./journal/
  redis://host/0?prefix=papyra&system_id=orders
  memory:
"""

NOTES = """Durations: 90s, 2h, 7d. Sizes: 512MiB, 1GiB. Times: 1h (ago), 2013-01-31T14:05 \
(UTC), @1359641100 (Unix time).

Exit codes: 0 success, 1 failure, 2 wrong use, 3 anomalies found, 4 anomalies left after recovery.
"""

#: The groups of the help, and their commands: the module of each, and the first line of its help.
_GROUPS = {
    "Look": {
        "inspect": ("inspect", "Say what a store is, how much is in it, and how it is."),
        "events": ("listing", "List events, the oldest first."),
        "audits": ("listing", "List audits, the oldest first."),
        "dead-letters": ("listing", "List messages that reached nobody, the oldest first."),
        "history": ("history", "Show the history of one actor, and whether it can be read."),
        "timeline": ("timeline", "Show the lives of the actors, one lane each."),
        "projections": (
            "projections",
            "Say how far projections are, and have one paused or rebuilt.",
        ),
        "metrics": ("metrics", "Show what a store holds, and what its system has counted."),
        "top": ("top", "Watch a store, or a running process, live."),
        "timers": ("timers", "List the durable timers that are pending; cancel or fire one."),
    },
    "Check and mend": {
        "scan": ("checking", "Find everything that is wrong with a store."),
        "doctor": ("checking", "Make the check that a system makes when it starts."),
        "recover": ("checking", "Mend what a scan finds, keeping all that can be read."),
        "skip-event": ("skip_event", "Have an actor recover without one event of its history."),
    },
    "Change and move": {
        "compact": ("compact", "Remove what is too old, or too much."),
        "migrate": ("migrate", "Bring the tables of a database to the version of today."),
        "copy": ("copy", "Copy the records of one store to another."),
    },
    "Other": {
        "bench": ("bench", "Measure what this machine does with a store."),
        "completion": ("completion", "Print what makes a shell complete these commands."),
    },
}
COMMANDS = {name: where for group in _GROUPS.values() for name, where in group.items()}
#: What a command takes, if that is not one store.
_TAKES = {
    "history": "ACTOR [STORE]",
    "skip-event": "ACTOR REVISION [STORE] --reason TEXT",
    "timers": "[cancel ACTOR NAME | fire ACTOR NAME] [STORE]",
    "projections": "[ACTION NAME] [STORE]",
    "copy": "SOURCE TARGET",
    "bench": "[STORE...]",
    "completion": "bash|zsh|fish",
}


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - it takes its time

    return version("papyra")


def make_app(called: str | None = None) -> App:
    """Return the command line, when `called` is the command that is about to be called.

    All the others are known by the first line of their help, so that none of them is imported.
    """
    app = App(
        name="papyra",
        help=HELP,
        help_epilogue=NOTES,
        help_format="plaintext",
        version=_version,
        version_flags="--version",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative="", show_default=False),
    )
    app["--help"].group = app["--version"].group = Group("Options", sort_key=len(_GROUPS))
    for position, (title, commands) in enumerate(_GROUPS.items()):
        group = Group(title, sort_key=position)
        for number, (name, (module, first_line)) in enumerate(commands.items()):
            place, function = f"papyra.cli.{module}", name.replace("-", "_")
            app.command(
                f"{place}:{function}",
                name=name,
                **(_help_of(place, function) if name == called else {"help": first_line}),
                usage=f"Usage: papyra {name} {_TAKES.get(name, '[STORE]')} [OPTIONS]",
                group=group,
                sort_key=number,
            )
    return app


def _help_of(place: str, function: str) -> dict[str, str]:
    """Return the help of a command out of its docstring, without its parameters.

    Its examples go to the end, where they are looked for.
    """
    text = inspect.getdoc(getattr(importlib.import_module(place), function)) or ""
    description, _, rest = text.partition("\n\nExamples\n--------\n")
    examples = rest.partition("\n\nParameters\n")[0]
    return {
        "help": "\n\n".join(part.replace("\n", " ") for part in description.split("\n\n")),
        "help_epilogue": f"Examples:\n{examples}\n\n{NOTES}",
    }


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line, and return the exit code. Errors are one line on stderr."""
    _set_up_output()
    try:
        with _only_errors():
            return _handle(arguments)
    except (CycloptsError, WrongUse, SettingsError) as error:
        is_missing = isinstance(error.__cause__, MissingExtra)
        return _fail(format_error(error), FAILED if is_missing else WRONG_USE)
    except BrokenPipeError:
        # Whoever reads has seen enough. Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCEEDED
    except KeyboardInterrupt:
        sys.stderr.write("\n" if sys.stderr.isatty() else "")
        return INTERRUPTED
    except (CommandFailed, PapyraError, OSError) as error:
        _drop_unwritten()
        return _fail(format_error(error), FAILED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "papyra":
            return _crash(error)
        # Not through Rich, which may be what is missing.
        sys.stderr.write(f"error: {missing_extra(error.name)}\n")
        return FAILED
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - as Python would print it raw
        return _crash(error)


def _handle(arguments: Sequence[str]) -> int:
    try:
        code = make_app(next(iter(arguments), None))(
            list(arguments),
            print_error=False,
            exit_on_error=False,
            result_action="return_value",
        )
    except NothingToDo as nothing:
        code = SUCCEEDED
        _show_nothing_to_do(str(nothing), as_json="--json" in arguments)
    except SystemExit as leaving:
        # Rich leaves on its own when nobody reads.
        if isinstance(leaving.__context__, BrokenPipeError):
            raise leaving.__context__ from None
        raise
    sys.stdout.flush()
    return code if isinstance(code, int) else SUCCEEDED


@contextmanager
def _only_errors() -> Iterator[None]:
    """Take the one error out of a group, in which tasks wrap it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            (error,) = error.exceptions
        raise error from error.__cause__


def _show_nothing_to_do(text: str, *, as_json: bool) -> None:
    from papyra.cli._output import show_json, write  # noqa: PLC0415 - it is seldom needed

    if as_json:
        show_json({"supported": False, "detail": text})
    else:
        write(f"{text}\n")


def _drop_unwritten() -> None:
    """Drop output that a full disk did not take: Python would complain of it at the end, too."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str, code: int) -> int:
    from papyra.cli._output import tell  # noqa: PLC0415 - it is seldom needed

    tell(f"error: {without_secrets(text)}", "bold red")
    return code


def _crash(error: BaseException) -> int:
    """Print the traceback of a fault of this program, for those who mend it."""
    from papyra.cli._output import tell  # noqa: PLC0415 - it is seldom needed

    for lines in traceback.format_exception(error):
        for line in lines.rstrip("\n").split("\n"):
            tell(without_secrets(line))
    return _fail(f"this is a fault of papyra itself: {type(error).__name__}", FAILED)


class _PlainFormatter(logging.Formatter):
    """Formats log records for a terminal, control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        from papyra.cli._output import printable  # noqa: PLC0415 - it is seldom needed

        lines = without_secrets(super().format(record))
        return "\n".join(map(printable, lines.split("\n")))


def _set_up_output() -> None:
    for level in (logging.WARNING, logging.ERROR):
        logging.addLevelName(level, logging.getLevelName(level).lower())
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever has called
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        else:
            # A terminal that can't show a character shows its number.
            stream.reconfigure(errors="backslashreplace")
