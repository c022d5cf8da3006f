"""Safe reprs, texts and type names of users' objects, whatever these do when they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

__all__ = ("MEANT", "printable", "shown", "text_of", "type_name")

#: Raised to end the program, be it in the middle of a user's object: never held up.
MEANT = (KeyboardInterrupt, SystemExit)

#: What is shown of a value: characters, parts of a collection, and collections in each other.
_LENGTH, _PARTS, _LEVELS = 200, 6, 4

_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}

_name_of = type.__dict__["__name__"].__get__


def shown(value: object, levels: int = _LEVELS, *, length: int = _LENGTH) -> str:
    """Return ``repr(value)``, shortened and printable, even if `value` has none."""
    try:
        text = printable(_repr(value, levels))
        half = (length - 3) // 2
        return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"
    except MEANT:
        raise
    except BaseException:  # noqa: BLE001 - a user's object, which says nothing of itself
        return f"<{type_name(value)} instance at {id(value):#x}>"


def printable(text: str) -> str:
    """Return `text` so that it can be stored: half surrogates, as in odd file names, escaped."""
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, even if that raises."""
    try:
        return printable(str(error))
    except MEANT:
        raise
    except BaseException as another:  # noqa: BLE001 - users' code, and nothing to handle
        return f"(its text can't be had: __str__ raised {type_name(another)})"


def type_name(value: object) -> str:
    """Return the name of the type that `value` is of, whatever it or its metaclass pretends."""
    return printable(_name_of(type(value)))


def _repr(value: Any, levels: int) -> str:
    kind: type = type(value)
    if kind in (str, bytes) and len(value) > _LENGTH:
        return repr(value[: _LENGTH // 2] + value[-_LENGTH // 2 :])  # what shows of it
    if kind is int and value.bit_length() > 4 * _LENGTH:
        return f"<int of {value.bit_length()} bits>"  # Python may refuse to write it out
    if kind is dict and value:
        items = value.items()
        pairs = (f"{shown(key, levels - 1)}: {shown(part, levels - 1)}" for key, part in items)
        return _enclosed("{", pairs, "}", len(value), levels)
    if kind in _BRACKETS and value:
        opening, closing = _BRACKETS[kind]
        parts = (shown(part, levels - 1) for part in value)
        return _enclosed(opening, parts, closing, len(value), levels)
    return repr(value)


def _enclosed(opening: str, parts: Iterator[str], closing: str, count: int, levels: int) -> str:
    inside = list(islice(parts, _PARTS if levels else 0))
    if len(inside) < count:
        inside.append("...")
    elif closing == ")" and count == 1:
        inside.append("")  # a tuple's comma
    return opening + ", ".join(inside).rstrip() + closing
