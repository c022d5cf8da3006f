"""Carries out a command in the process of the tests, in a third of the time of a fork of it.

It has an environment, a directory and standard streams of its own, as far as a process can lend
them. What needs more than that, a signal, a terminal or a pipe that is closed, is a fork: see
`tests.cli.forks`. In CI every command is a process.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import anyio

from papyra.cli import _output
from papyra.cli.app import run
from tests.cli import forks

__all__ = ("call", "can_call")


def can_call() -> bool:
    """Return whether a command can run an event loop here."""
    try:
        anyio.get_current_task()
    except RuntimeError:
        return threading.current_thread() is threading.main_thread()
    return False


def call(
    arguments: Sequence[str], *, directory: Path, env: Mapping[str, str]
) -> tuple[int, str, str]:
    """Carry out a command line; return its exit code, its output and its errors."""
    _, out, err = streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(3)]
    with _lent(streams), mock.patch.dict(os.environ, env, clear=True), contextlib.chdir(directory):
        try:
            code: object = run(arguments)
        except SystemExit as leaving:
            code = leaving.code
    assert code is None or isinstance(code, int)
    return code or 0, _written(out), _written(err)


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _levels() -> dict[str | None, int]:
    """Return which log messages each logger lets through, that of the root under no name."""
    loggers = logging.getLogger().manager.loggerDict
    names = [name for name, each in loggers.items() if isinstance(each, logging.Logger)]
    return {name: logging.getLogger(name).level for name in (None, "papyra", *names)}


@contextlib.contextmanager
def _lent(streams: Sequence[io.TextIOWrapper]) -> Iterator[None]:
    """Set for a while what Python sets when it starts, and what the command sets for itself."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], _levels()
    names = {number: logging.getLevelName(number) for number in (logging.WARNING, logging.ERROR)}
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            for each in (name, f"__{name}__"):
                stack.enter_context(mock.patch(f"sys.{each}", stream))
        stack.enter_context(
            mock.patch.object(importlib.metadata, "entry_points", forks.installed().select)
        )
        stack.enter_context(warnings.catch_warnings())
        forks.warn_as_python_does()
        try:
            yield
        finally:
            _output.console.cache_clear()  # it has looked at the environment
            root.handlers[:] = handlers
            for logger, level in levels.items():
                logging.getLogger(logger).setLevel(level)
            for number, text in names.items():
                logging.addLevelName(number, text)
