"""The command ``papyra``: look at a store, check it, mend it, move it. Extra ``cli``."""

from __future__ import annotations

import gc
import sys

__all__ = ("main",)


def main() -> None:
    """Do what the command line says, and exit as it went."""
    # What a command allocates until it gets to work is modules, and they stay: looking for garbage
    # among them, as often as Python does, takes a twentieth of the time of a short command.
    gc.set_threshold(100_000, 10, 10)
    try:
        from papyra.cli.app import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "papyra":
            raise
        from papyra.cli._exit_codes import missing_extra  # noqa: PLC0415

        sys.exit(f"error: {missing_extra(error.name)}")
    except KeyboardInterrupt:  # so soon
        sys.exit(130)
    code = run(sys.argv[1:])
    # Nor is there anything to be found at the end: everything goes with the process.
    gc.freeze()
    sys.exit(code)
