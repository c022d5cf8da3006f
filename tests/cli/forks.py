"""Lets a fork of the process that runs the tests become a command, which starts no Python then.

It is a process all the same, with pipes or a terminal, an environment and an exit code of its own;
what it saves is the start and the end of Python, which take longer than most commands. In CI, on
the newest Python, each has a Python of its own: see `tests.extent`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import importlib.metadata
import io
import logging
import os
import pkgutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import papyra.cli
import papyra.persistence

__all__ = ("OBEYED", "becoming", "forking", "import_everything", "installed", "warn_as_python_does")

#: What commands import when they need it.
_LATER = (
    *("anyio._backends._asyncio", "redis.asyncio"),
    *("cyclopts.config", "cyclopts.help", "cyclopts.help.formatters.default", "docstring_parser"),
    *("rich._emoji_codes", "rich.console", "rich.live", "rich.panel", "rich.table"),
)
#: What Python goes by when it starts, and a fork, too: where to find modules, how to print.
OBEYED = {"PYTHONPATH", "PYTHONIOENCODING"}
#: What Python says nothing of, unless it is asked to.
_QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)

#: Returns what packages register. That is in dozens of files, which are read once for all forks.
installed = functools.cache(importlib.metadata.entry_points)


def import_everything() -> None:
    """Import what commands need, for all forks at once."""
    installed()
    for package in (papyra.cli, papyra.persistence):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in _LATER:
        importlib.import_module(name)


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Let this process be forked though it has threads: they hold nothing that a command needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def becoming(
    program: Callable[[], None], arguments: Sequence[str], env: Mapping[str, str]
) -> Callable[[], None]:
    """Return a `preexec_fn` that runs a program where another would be executed."""

    def become() -> None:
        code = 1
        try:
            os.environ.clear()
            os.environ.update(env)
            _forget_the_tests()
            time.tzset()
            sys.argv = ["papyra", *arguments]
            sys.path[:0] = [os.getcwd(), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
            code = _run(program)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    return become


def _run(program: Callable[[], None]) -> int:
    """Return the exit code of a program."""
    code: object = None
    try:
        program()
    except SystemExit as leaving:
        code = leaving.code
    sys.stdout.flush()
    sys.stderr.flush()
    assert code is None or isinstance(code, int)
    return code or 0


def _forget_the_tests() -> None:
    """Make the process what it is when Python has just started."""
    gc.freeze()
    faulthandler.disable()
    # Whoever has forked waits until this is closed.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    importlib.metadata.entry_points = installed().select
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    warn_as_python_does()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _open(number)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def warn_as_python_does() -> None:
    """Have warnings go to standard error, and those be ignored that nobody has asked for."""
    warnings.resetwarnings()
    warnings.showwarning = _show_warning
    for category in _QUIET:
        warnings.simplefilter("ignore", category)


def _show_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    sys.stderr.write(f"{category.__name__}: {message}\n")


def _open(number: int) -> io.TextIOWrapper:
    """Open a standard stream as Python does when it starts."""
    # The editor of lines, which the tests have imported, leaves any other input than 0 alone.
    source = number or os.dup(0)
    raw = open(source, "wb" if number else "rb", closefd=False)  # noqa: SIM115
    errors = "backslashreplace" if number == 2 else "strict"
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=number == 2 or os.isatty(number))
