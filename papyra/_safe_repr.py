"""Safe reprs, texts and type names of users' objects, whatever these do when they are asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeGuard, TypeVar

import msgspec

KindT = TypeVar("KindT")

#: Raised to end the program, be it in the middle of a user's object: never held up.
MEANT = (KeyboardInterrupt, SystemExit)

#: What is shown of a value: characters, parts of a collection, and collections in each other.
_LENGTH, _PARTS, _LEVELS = 200, 6, 4

#: Errors in a traceback that is shown, at most, and places where there might be one.
_ERRORS = 10_000
#: Characters of an error's text, at most.
_TEXT = 10_000

_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}

_name_of = type.__dict__["__name__"].__get__


def shown(value: object, levels: int = _LEVELS, *, length: int = _LENGTH) -> str:
    """Return ``repr(value)``, shortened and printable, even if `value` has none.

    Of collections, structs, dataclasses and errors, only what shows is looked at. A ``__repr__``
    that somebody wrote takes the time that it takes.
    """
    try:
        return _shortened(_repr(value, levels), length)
    except MEANT:
        raise
    except BaseException:  # noqa: BLE001 - a user's object, which says nothing of itself
        return f"<{type_name(value)} instance at {id(value):#x}>"


def printable(text: str) -> str:
    """Return `text` so that it can be stored: half surrogates, as in odd file names, escaped."""
    if type(text) is str and text.isascii():
        return text  # as nearly all are, in a third of the time
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """Return `text` with whatever ends a line, or can't be shown, written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, shortened if it is long, even if that raises."""
    try:
        return _shortened(_str(error), _TEXT)
    except MEANT:
        raise
    except BaseException as another:  # noqa: BLE001 - users' code, and nothing to handle
        return f"(its text can't be had: __str__ raised {type_name(another)})"


def type_and_text(error: BaseException) -> str:
    """Return the name of an error's type, and its text, as the last line of a traceback has it."""
    return f"{type_name(error)}: {text_of(error)}"


def has_short_traceback(error: BaseException) -> bool:
    """Return whether an error, with those that it came from and holds, can be shown in no time.

    Groups that are in each other again and again are few errors, and no end of text.
    """
    ahead: list[BaseException | None] = [error]
    for _ in range(_ERRORS):
        if not ahead:
            return True
        found = ahead.pop()
        if found is not None:
            ahead += (found.__cause__, found.__context__)
            if isinstance(found, BaseExceptionGroup):
                ahead += found.exceptions
    return False


def is_really(value: object, kind: type[KindT]) -> TypeGuard[KindT]:
    """Return ``isinstance(value, kind)``, whatever the `__class__` of a user's object does."""
    return issubclass(type(value), kind)


def type_name(value: object) -> str:
    """Return the name of the type that `value` is of, whatever it or its metaclass pretends."""
    return printable(_name_of(type(value)))


def _shortened(text: str, length: int) -> str:
    half = (length - 3) // 2
    return printable(text if len(text) <= length else f"{text[:half]}...{text[-half:]}")


def _str(error: BaseException) -> str:
    # The text of most errors is made of their arguments, which may be of any size.
    kind, args = type(error), error.args
    if kind.__str__ is KeyError.__str__ and len(args) == 1:
        return shown(args[0], length=_TEXT)
    if kind.__str__ in (BaseException.__str__, KeyError.__str__):
        if len(args) > 1:
            return shown(args, length=_TEXT)
        if args and issubclass(type(args[0]), BaseException):
            return _str(args[0])
        if args and _is_bounded(type(args[0])):
            return shown(args[0], length=_TEXT)
    return str(error)


def _is_bounded(kind: Any) -> bool:
    """Return whether only what shows of such values is looked at, and is their text, too."""
    if kind is dict or kind in _BRACKETS:
        return True
    return kind.__str__ is object.__str__ and _names_in_repr(kind) is not None


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
    names = _names_in_repr(kind)
    if names is not None:
        held = (f"{name}={shown(getattr(value, name), levels - 1)}" for name in names)
        return _enclosed(f"{kind.__qualname__}(", held, ") ", len(names), levels).rstrip(" ")
    if issubclass(kind, BaseException) and kind.__repr__ is BaseException.__repr__:
        parts = (shown(part, levels - 1) for part in value.args)
        return _enclosed(f"{kind.__name__}(", parts, ") ", len(value.args), levels).rstrip(" ")
    return repr(value)


def _names_in_repr(kind: Any) -> list[str] | None:
    """Return the fields that a ``__repr__`` shows that nobody wrote by hand."""
    written = kind.__repr__
    if written is msgspec.Struct.__repr__:
        return list(kind.__struct_fields__)
    code = getattr(getattr(written, "__wrapped__", written), "__code__", None)
    if code is None or not code.co_filename.startswith("<"):
        return None
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.repr]
    shown_fields = getattr(kind, "__attrs_attrs__", None)
    return None if shown_fields is None else [field.name for field in shown_fields if field.repr]


def _enclosed(opening: str, parts: Iterator[str], closing: str, count: int, levels: int) -> str:
    inside = list(islice(parts, _PARTS if levels else 0))
    if len(inside) < count:
        inside.append("...")
    elif closing == ")" and count == 1:
        inside.append("")  # a tuple's comma
    return opening + ", ".join(inside).rstrip() + closing
