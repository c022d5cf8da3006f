"""Carries out many command lines in one process: ``python -m tests.cli.many``, for `Command.many`.

Takes JSON on its standard input, and prints a line of JSON for each of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

from papyra.cli.app import run


def listing(directory: Path | None) -> dict[str, tuple[object, ...]]:
    """Return everything in a directory: sizes, times, modes, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [] if directory is None else [directory, *sorted(directory.rglob("*"))]:
        stat = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (
            *(stat.st_size, stat.st_mtime_ns, stat.st_mode, stat.st_uid, stat.st_ino),
            hashlib.sha256(data).hexdigest(),
        )
    return found


def handle(arguments: list[str]) -> dict[str, Any]:
    """Carry out one command line, with its output piped."""
    written = [io.BytesIO(), io.BytesIO()]
    outputs = [io.TextIOWrapper(data, "utf-8", write_through=True) for data in written]
    logging.getLogger().handlers.clear()
    sys.stdout, sys.stderr = outputs
    try:
        code: Any = run(arguments)
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    out, err = (data.getvalue().decode() for data in written)
    return {"code": code, "out": out, "err": err}


def main() -> None:
    """Carry out what standard input says; look at the directory `watched` before and after."""
    told = json.load(sys.stdin)
    watched = told["watched"] and Path(told["watched"])
    for arguments in told["calls"]:
        before = listing(watched)
        done = handle(arguments)
        after = listing(watched)
        changed = sorted(p for p in {*before, *after} if before.get(p) != after.get(p))
        print(json.dumps({**done, "changed": changed}))


if __name__ == "__main__":
    main()
