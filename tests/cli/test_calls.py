"""A command that the process of the tests carries out leaves nothing behind in it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from tests.cli import calls


def lent() -> list[object]:
    """Return what a command is lent, as it is now."""
    root = logging.getLogger()
    return [
        *(os.getcwd(), dict(os.environ), warnings.filters[:], root.handlers[:], root.level),
        *(sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__),
        *(logging.getLogger("papyra").level, logging.getLevelName(logging.WARNING)),
    ]


def test_a_command_gives_back_what_it_was_lent(tmp_path: Path) -> None:
    before = lent()
    env = {"HOME": str(tmp_path)}
    # Bench lowers what is logged.
    code, out, err = calls.call(["bench", "--records", "100"], directory=tmp_path, env=env)
    assert code == 0
    assert "100" in out
    assert "one machine" in err
    code, out, err = calls.call(["events", "nowhere.ndjson"], directory=tmp_path, env=env)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert lent() == before
