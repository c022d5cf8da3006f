"""The exit codes of the command, and the errors that lead to them."""

from __future__ import annotations

import re

from papyra.exceptions import PapyraError

SUCCEEDED, FAILED, WRONG_USE, ANOMALIES_FOUND, ANOMALIES_LEFT = range(5)
#: What shells say of a command that was ended by Ctrl-C.
INTERRUPTED = 130

#: Characters of an error that are shown, of whatever it repeats.
_LONGEST = 400
#: The value of an option of a URL that is called so, and a password in one that holds spaces.
_OPTION = re.compile(r"(?<!\w)(\w++=)[^\s&'\"]+")
_SECRET = re.compile(r"pass|pwd|secret|token", re.IGNORECASE)
_SPACED = re.compile(r"(://[^\s:/@]*:)(?!\d+[/\s:,])[^@/]{0,200}(?=@)")


class CommandFailed(Exception):
    """It could not be done; the text says why, and what to do."""


class WrongUse(Exception):
    """The command can't be understood; the text says what to write instead."""


class NothingToDo(Exception):
    """There is nothing that it could be done to, and so it has succeeded."""


def format_error(error: BaseException) -> str:
    """Return an error in one line: that of the system below it, if there is one."""
    cause = error.__cause__
    if isinstance(error, PapyraError) and isinstance(cause, OSError) and cause.strerror:
        return format_error(cause)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = " ".join(_text_of(error).split())
    return text or type(error).__name__


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as unspeakable:  # noqa: BLE001 - there are objects that can't be shown
        return f"{type(error).__name__}, whose text can't be had: {type(unspeakable).__name__}"


def without_secrets(text: str) -> str:
    """Return `text` with what may be a password left out, and its middle where it is long."""
    if "@" in text:
        text = re.sub(r"\S+", lambda word: _masked(word[0]), _SPACED.sub(r"\1***", text))
    text = _OPTION.sub(lambda found: _without_value(found[0], found[1]), text)
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _without_value(option: str, name: str) -> str:
    return f"{name}***" if _SECRET.search(name) else option


def _masked(word: str) -> str:
    """Return a word without what is between a user's name and the last @, however mistyped."""
    head, at, rest = word.rpartition("@")
    scheme, slashes, login = head.partition("://") if "://" in head else ("", "", head)
    user, colon, _ = login.partition(":")
    return f"{scheme}{slashes}{user}{colon}***{at}{rest}" if colon else word


def missing_extra(module: str) -> str:
    """Return the message about a module that is not installed."""
    return (
        f"the command needs {module}, which Papyra's extra 'cli' brings: "
        "pip install '.[cli]' in Papyra's checkout"
    )
