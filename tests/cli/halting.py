"""Runs a command that halts where a test is to find it, however late that comes to look.

What it is told comes before the words of the command: ``--open PATH`` stops the process as it opens
that file; with ``--copied SEQ`` a copy gets stuck before a batch that goes beyond that position,
and says so in a file.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio

import papyra.cli
from papyra.persistence.records import Record
from papyra.persistence.verbs import PersistenceVerbs

__all__ = ("main", "stuck_file")


def stuck_file(directory: Path, pid: int | None) -> Path:
    """Return the file that is there once a copy is stuck."""
    return directory / f"stuck-{pid}"


def main() -> None:
    program, option, value, *words = sys.argv
    sys.argv = [program, *words]
    if option == "--open":
        _stop_at_open(value)
    else:
        assert option == "--copied"
        _get_stuck_behind(int(value))
    papyra.cli.main()


def _stop_at_open(wanted: str) -> None:
    is_over = False

    def stop(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_over
        if event == "open" and not is_over and _is_at(arguments[0], wanted):
            is_over = True
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(stop)


def _is_at(path: object, wanted: str) -> bool:
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path) == wanted


def _get_stuck_behind(last_seq: int) -> None:
    restore = PersistenceVerbs.restore

    async def get_stuck(self: PersistenceVerbs, *records: Record) -> Any:
        while (records[-1].seq or 0) > last_seq:
            stuck_file(Path.cwd(), os.getpid()).touch()
            await anyio.sleep(0.01)
        return await restore(self, *records)

    PersistenceVerbs.restore = get_stuck  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
