"""Where a store is."""

from __future__ import annotations

import os
from pathlib import Path

from papyra._safe_repr import shown
from papyra.exceptions import InvalidPath


class Place(os.PathLike[str]):
    """The path of a store, which a change of the working directory does not move.

    ``~`` stands for a home. Raises `InvalidPath` for what no file can be called.
    """

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        #: as it was named, for messages and reports
        self.name: Path
        #: from the root on, with the links that are in it
        self.path: Path
        if isinstance(path, Place):
            self.name, self.path = path.name, path.path
        else:
            self.name = Path(_expand(_text(path)))
            self.path = _from_the_root(self.name)

    def __fspath__(self) -> str:
        return str(self.path)


def _text(path: object) -> str:
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidPath(f"a path is a string or a pathlib.Path, not {shown(path)}") from error
    if not text:
        raise InvalidPath("a store needs a path, and this one is empty")
    if "\0" in text:
        raise InvalidPath(f"no path has a NUL byte in it, as {text!r} has")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidPath(f"no file can be called {text!a}: {error.reason}") from error
    return text


def _expand(path: str) -> str:
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise InvalidPath(f"{path!r} begins with a home that is not known; './{path}' is a file")
    return expanded


def _from_the_root(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise InvalidPath(
            f"{str(path)!r} is relative to a working directory that was removed"
        ) from error


def printable(path: Path) -> str:
    """Return how reports call a file, whatever bytes its name is of: they are sent as UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
