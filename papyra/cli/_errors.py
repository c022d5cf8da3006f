"""How a command ends when it does not succeed."""

from __future__ import annotations

from papyra.exceptions import PapyraError

__all__ = (
    "ANOMALIES_FOUND",
    "ANOMALIES_LEFT",
    "FAILED",
    "INTERRUPTED",
    "SUCCEEDED",
    "WRONG_USE",
    "CommandFailed",
    "NothingToDo",
    "WrongUse",
    "said_error",
)

SUCCEEDED, FAILED, WRONG_USE, ANOMALIES_FOUND, ANOMALIES_LEFT = range(5)
#: What shells say of a command that was ended by Ctrl-C.
INTERRUPTED = 130


class CommandFailed(Exception):
    """It could not be done; the text says why, and what to do."""


class WrongUse(Exception):
    """The command can't be understood; the text says what to write instead."""


class NothingToDo(Exception):
    """There is nothing that it could be done to, and so it has succeeded."""


def said_error(error: BaseException) -> str:
    """Return what went wrong in one line."""
    cause = error.__cause__
    if isinstance(error, PapyraError) and isinstance(cause, OSError) and cause.strerror:
        return said_error(cause)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = " ".join(str(error).split())
    return text or type(error).__name__
