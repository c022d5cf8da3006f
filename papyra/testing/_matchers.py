"""Matchers: expectations by value, type, name or predicate, and the difference to them."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import msgspec

from papyra._runtime.recorder import storable
from papyra.persistence.records import event_record

_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = 200
_repr.maxlist = _repr.maxtuple = _repr.maxdict = 20


_UNSET = object()


class Pattern:
    """An expectation of an item."""

    #: in words, for the report of a failure
    description: str

    def matches(self, item: Any) -> bool:
        """Return whether `item` is as expected."""
        raise NotImplementedError

    def compare(self, item: Any) -> tuple[object, object] | None:
        """Return what was expected of `item` and what it is, or `None` if they have no likeness."""
        del item
        return None


class RecordPattern(Pattern):
    """Expects of a stored record its type, all or part of its payload, and its actor."""

    def __init__(
        self,
        *,
        of_type: str | None = None,
        whole: object = _UNSET,
        part: Mapping[str, Any] | None = None,
        predicate: Callable[[Any], object] | None = None,
        actor: str | None = None,
    ) -> None:
        #: the name of the type of the event, or of the message; `None` if any will do
        self.of_type = of_type
        self.predicate = predicate
        self._whole = whole if whole is _UNSET else plain(whole)
        self._part = _UNSET if part is None else plain(part)
        self._actor = actor
        words = [] if of_type is None else [of_type]
        if whole is not _UNSET:
            words.append(_repr.repr(self._whole))
        if predicate is not None:
            words.append(f"one for which {_text_of_function(predicate)} holds")
        if part is not None:
            words.append(f"with {_repr.repr(self._part)}")
        if actor is not None:
            words.append(f"of {actor}")
        self.description = " ".join(words) or "anything"

    @classmethod
    def of_event(
        cls, expected: object, part: Mapping[str, Any] | None = None, actor: str | None = None
    ) -> RecordPattern:
        """Expect an event, given in any of the ways that tests may give one."""
        if isinstance(expected, str):
            return cls(of_type=expected, part=part, actor=actor)
        if expected is None or isinstance(expected, type) or _is_predicate(expected):
            return cls.of_message(expected, part, actor)
        record = event_record("", "", expected, 0.0)
        return cls(of_type=record.event_type, whole=record.payload, part=part, actor=actor)

    @classmethod
    def of_message(
        cls, expected: object, part: Mapping[str, Any] | None = None, target: str | None = None
    ) -> RecordPattern:
        """Expect a dead letter, given by its message, the message's class, or a predicate."""
        if expected is None:
            return cls(part=part, actor=target)
        if isinstance(expected, type):
            return cls(of_type=expected.__name__, part=part, actor=target)
        if _is_predicate(expected):
            return cls(predicate=expected, part=part, actor=target)
        whole = storable(expected)
        return cls(of_type=type(expected).__name__, whole=whole, part=part, actor=target)

    def matches(self, item: Any) -> bool:
        return (
            self.of_type in (None, type_of(item))
            and self._actor in (None, actor_of(item))
            and self._whole in (_UNSET, item.payload)
            and (self._part is _UNSET or _contains(item.payload, self._part))
            and (self.predicate is None or bool(self.predicate(item)))
        )

    def compare(self, item: Any) -> tuple[object, object] | None:
        expected = self._part if self._whole is _UNSET else self._whole
        if expected is _UNSET or self.of_type not in (None, type_of(item)):
            return None
        return expected, item.payload


class MessagePattern(Pattern):
    """Expects a message: equal to a value, of a class, or one for which a predicate holds."""

    def __init__(self, expected: object) -> None:
        self._expected = expected
        if expected is ...:
            self.description = "any message"
        elif isinstance(expected, type):
            self.description = f"of type {expected.__name__}"
        elif _is_predicate(expected):
            self.description = f"one for which {_text_of_function(expected)} holds"
        else:
            self.description = _repr.repr(expected)

    def matches(self, item: Any) -> bool:
        expected = self._expected
        if expected is ...:
            return True
        if isinstance(expected, type):
            return isinstance(item, expected)
        if _is_predicate(expected):
            return bool(expected(item))
        return bool(item == expected)

    def compare(self, item: Any) -> tuple[object, object] | None:
        return (self._expected, item) if type(item) is type(self._expected) else None


def type_of(record: Any) -> str | None:
    """Return the type of an event, or of the message that is a dead letter."""
    name: str | None = getattr(record, "event_type", None) or getattr(record, "message_type", None)
    return name


def actor_of(record: Any) -> str | None:
    """Return the actor of an event, or of a dead letter."""
    address: str | None = getattr(record, "actor_address", None) or getattr(record, "target", None)
    return address


def plain(value: object) -> object:
    """Return `value` as it would be read back from a store."""
    return msgspec.json.decode(msgspec.json.encode(value))


def difference(expected: object, found: object) -> list[str]:
    """Return lines that show where two values differ, as `difflib.ndiff` does."""
    return [
        line.rstrip()
        for line in difflib.ndiff(_lines(expected), _lines(found))
        if not line.startswith("?")
    ]


def _lines(value: object) -> list[str]:
    try:
        return json.dumps(plain(value), indent=2, ensure_ascii=False).splitlines()
    except (TypeError, ValueError):
        return [_repr.repr(value)]


def _contains(whole: object, part: object) -> bool:
    """Return whether `whole` has all that `part` has; mappings may have more."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and _contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return (
            isinstance(whole, list) and len(whole) == len(part) and all(map(_contains, whole, part))
        )
    return whole == part


def _is_predicate(expected: object) -> TypeGuard[Callable[[Any], object]]:
    # Functions, methods, partials; not a message that happens to have a __call__.
    return inspect.isroutine(expected) or isinstance(expected, functools.partial)


def _text_of_function(function: Callable[..., object]) -> str:
    name: str = getattr(function, "__name__", repr(function))
    if name != "<lambda>":
        return f"{name}()"
    try:
        source = inspect.getsource(function).strip()
    except (OSError, TypeError):
        return "the lambda"
    return source.splitlines()[0]
