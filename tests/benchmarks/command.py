"""The rows about the command: how long it takes, counted in starts of the interpreter."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import redis
from tests.benchmarks.files import directory, filled
from tests.benchmarks.table import Loop, Options, Result, Row, compare

__all__ = ("COMMAND_ROWS",)


def timed(*command: str | Path) -> float:
    """Run a program, and return the seconds that it takes."""
    env = os.environ | {"XDG_CACHE_HOME": directory().name}
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    return time.perf_counter() - started


def on_redis(count: int) -> str:
    """Return the URL of a store of so many records."""
    config = redis.filled(count)
    return f"{config.url}?prefix={config.prefix}&system_id={config.system_id}"


def starts(
    *arguments: str, store: int | None = None, kind: Callable[[int], str | Path] = filled
) -> Callable[[Loop, Options], Result]:
    """Compare a command, on a store of so many records, with an interpreter that does nothing."""

    def measure(loop: Loop, options: Options) -> Result:
        del loop  # the command has one of its own
        program = Path(sys.executable).with_name("papyra")
        command: list[str | Path] = [program, *arguments]
        if store is not None:
            command.append(kind(options.count(store)))
        timed(*command)  # the first one finds out what the next ones know
        # How many times as long: what takes longer is the reference.
        nothing = functools.partial(timed, sys.executable, "-c", "pass")
        return compare(options, 1, lambda: timed(*command), nothing)

    return measure


MILLION = 1_000_000
COMMAND_ROWS = [
    Row("papyra --help", "python -c pass", 20, True, starts("--help")),
    Row(
        "papyra events -n 10 of 1,000,000",
        "python -c pass",
        21,
        True,
        starts("events", "-n", "10", store=MILLION),
    ),
    Row(
        "papyra inspect 1,000,000 records",
        "python -c pass",
        50,
        True,
        starts("inspect", store=MILLION),
    ),
    Row(
        "papyra events -n 10, on Redis",
        "python -c pass",
        21,
        True,
        starts("events", "-n", "10", store=MILLION, kind=on_redis),
    ),
    Row(
        "papyra inspect, on Redis",
        "python -c pass",
        50,
        True,
        starts("inspect", store=MILLION, kind=on_redis),
    ),
]
