"""The module that ``--app`` names: whatever somebody has written."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from papyra._safe_repr import type_and_text
from papyra.cli._exit_codes import WrongUse


def imported(name: str) -> Any:
    """Import the module of `--app`. Raises `WrongUse` for one that can't be imported."""
    # As `python -m` has it: the module is looked for where the command is called.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is whatever somebody has written
        why = type_and_text(error)
        raise WrongUse(f"--app {name} can't be imported: {why}") from None
