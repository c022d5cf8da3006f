"""The forms that values have in JSON, and which of them come back.

A form says the same thing twice. `comes_back` is quick: it takes all values of one type at once,
and leaves what is in them to the next level. `fault` and `parts` find out, one value at a time,
what is wrong and where.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import re
import types
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import isfinite
from operator import attrgetter
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import msgspec

from papyra._safe_repr import shown, text_of

#: Digits of an integer at most, and its sign counts as one: no longer ones are read.
MAX_DIGITS = 4300
_TOO_LONG = 10**MAX_DIGITS
_TOO_LOW = -(10 ** (MAX_DIGITS - 1))

#: Types whose values come back whatever they are.
HARMLESS: frozenset[type] = frozenset(
    {str, bool, types.NoneType, bytes, bytearray, memoryview, datetime.date, datetime.timedelta}
    | {uuid.UUID}
)
#: Two keys of one of these types are two strings.
_DISTINCT: frozenset[type] = frozenset(
    {str, int, float, bytes, decimal.Decimal, uuid.UUID}
    | {datetime.date, datetime.datetime, datetime.time, datetime.timedelta}
)

_DISTINCT_AND_SHORT: frozenset[type] = frozenset({int, uuid.UUID, datetime.date})
_ITERABLE: frozenset[type] = frozenset({list, tuple, set, frozenset})
_EMPTY: frozenset[Any] = frozenset()
_STR, _INT = frozenset({str}), frozenset({int})
_TEXTS = frozenset({str, bytes, bytearray})
#: Characters that any other harmless value takes, at most.
_SHORT = 40
#: Room that each part of a small value takes up.
_EACH = 40
#: Names from which on it pays to look at those of a dict at once.
_WIDE = 13
#: Levels of a small value, at most.
_LEVELS = 5

_encode = msgspec.json.Encoder().encode
_StructMeta = type(msgspec.Struct)
_decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode

#: What is wrong, and where in the value that is: ``.price``, say.
Fault: TypeAlias = tuple[str, str]


class Look(Protocol):
    """A look at values of one level, and at what is in them."""

    #: levels that there may be in these values
    depth: int
    #: whether these values are within others
    is_within: bool
    #: types of parts that need not be looked at
    ignored: frozenset[type]

    def at(self, values: Sequence[Any]) -> bool:
        """Return whether these values of the level come back, but for what is in them."""

    def into(self, parts: Iterable[Any], count: Callable[[], int]) -> bool:
        """Have so many parts looked at later; return whether there may be that many."""


class Form:
    """How JSON writes the values of a type."""

    def comes_back(self, values: Sequence[Any], look: Look, /) -> bool:
        """Return whether `values`, which are of one type, come back but for what is in them."""
        raise NotImplementedError

    def fault(self, value: Any, look: Look, /) -> Fault | None:
        """Say why `value` does not come back, if that is not for what is in it."""
        raise NotImplementedError

    def is_regular(self, _: Any, /) -> bool:
        """Return whether it is plain that `value` comes back, but for what is in it."""
        return False

    def parts(self, value: Any, /) -> list[Any]:
        """Return what is in `value`."""
        raise NotImplementedError

    def place(self, value: Any, position: int, /) -> str:
        """Return where in `value` one of its parts is."""
        raise NotImplementedError


class _Leaves(Form):
    """Values with nothing in them."""

    def parts(self, _: Any, /) -> list[Any]:
        return []


class _Scalars(_Leaves):
    """Values that come back if something holds of them."""

    def __init__(self, holds: Callable[[Any], bool], wrong: str) -> None:
        self.holds = holds
        self._wrong = wrong

    def comes_back(self, values: Sequence[Any], _: Look, /) -> bool:
        return all(map(self.holds, values))

    def fault(self, value: Any, _: Look, /) -> Fault | None:
        return None if self.holds(value) else (f"is {shown(value)}, {self._wrong}", "")


class _Floats(_Scalars):
    def comes_back(self, values: Sequence[Any], look: Look, /) -> bool:
        # Their sum tells it of most, in a third of the time.
        return math.isfinite(sum(values)) or super().comes_back(values, look)


class _Unset(_Leaves):
    """What stands for a field that is left out, and for nothing by itself."""

    def comes_back(self, _: Sequence[Any], look: Look, /) -> bool:
        return look.is_within

    def fault(self, _value: Any, _look: Look, /) -> Fault | None:
        return None


class _Raws(_Leaves):
    """JSON that is written as it is."""

    def comes_back(self, values: Sequence[Any], look: Look, /) -> bool:
        return not any(_fault_in_json(bytes(raw), look.depth) for raw in values)

    def fault(self, value: Any, look: Look, /) -> Fault | None:
        wrong = _fault_in_json(bytes(value), look.depth)
        return (f"is raw JSON {wrong}", "") if wrong else None


class _Containers(Form):
    """Values that are made of others."""

    def fault(self, _: Any, look: Look, /) -> Fault | None:
        return None if look.depth > 0 else ("is nested too deeply", "")


class _Sequences(_Containers):
    """Lists and their kin. What a subclass makes of iteration and length is passed over."""

    def __init__(self, exact: Any) -> None:
        self._iterate: Callable[[Any], Iterator[Any]] = exact.__iter__
        self._length: Callable[[Any], int] = exact.__len__

    def comes_back(self, values: Sequence[Any], look: Look, /) -> bool:
        parts = chain.from_iterable(map(self._iterate, values))
        return look.into(parts, lambda: sum(map(self._length, values)))

    def parts(self, value: Any, /) -> list[Any]:
        return list(self._iterate(value))

    def place(self, _: Any, position: int, /) -> str:
        return f"[{position}]"


class _Dicts(_Containers):
    def comes_back(self, values: Sequence[Any], look: Look, /) -> bool:
        dicts = values if type(values[0]) is dict else map(dict.keys, values)
        kinds = set(map(type, _EMPTY.union(*dicts)))
        if kinds - _STR and kinds != _INT and any(_fault_in_keys(each, look) for each in values):
            return False
        # Most hold plain values, of which no list needs to be made.
        if set(map(type, chain.from_iterable(map(dict.values, values)))) <= look.ignored:
            return look.into((), lambda: 0)
        parts = chain.from_iterable(map(dict.values, values))
        return look.into(parts, lambda: sum(map(dict.__len__, values)))

    def fault(self, value: Any, look: Look, /) -> Fault | None:
        wrong = _long_key_in(value) or _fault_in_keys(value, look)
        return (wrong, "") if wrong else super().fault(value, look)

    def parts(self, value: Any, /) -> list[Any]:
        return list(dict.values(value))

    def place(self, value: Any, position: int, /) -> str:
        return f"[{shown(list(dict.keys(value))[position])}]"


class _Enums(Form):
    """Members of enumerations, which JSON writes as their values."""

    def is_regular(self, _: Any, /) -> bool:
        return True

    def comes_back(self, values: Sequence[Any], look: Look, /) -> bool:
        return look.at([_value_of(member) for member in values])

    def fault(self, _value: Any, _look: Look, /) -> Fault | None:
        return None

    def parts(self, value: Any, /) -> list[Any]:
        return [_value_of(value)]

    def place(self, _value: Any, _position: int, /) -> str:
        return ""


class _Structs(_Containers):
    def is_regular(self, _: Any, /) -> bool:
        return True

    def comes_back(self, values: Sequence[Any], look: Look, /) -> bool:
        fields = list(map(msgspec.structs.astuple, values))
        return look.into(chain.from_iterable(fields), lambda: sum(map(len, fields)))

    def fault(self, value: Any, look: Look, /) -> Fault | None:
        kind = type(value)
        for name in kind.__struct_fields__:
            try:
                part = getattr(kind, name).__get__(value)
            except AttributeError:
                return "is not set", f".{name}"
            if part is msgspec.UNSET and kind.__struct_config__.array_like:
                return "is UNSET, and can't be left out of an array", f".{name}"
        return super().fault(value, look)

    def parts(self, value: Any, /) -> list[Any]:
        return [part for part in msgspec.structs.astuple(value) if part is not msgspec.UNSET]

    def place(self, value: Any, position: int, /) -> str:
        fields = zip(type(value).__struct_fields__, msgspec.structs.astuple(value), strict=True)
        names = [name for name, part in fields if part is not msgspec.UNSET]
        return f".{names[position]}"


class _Objects(_Containers):
    """Objects of one class, which JSON writes as the names and the values of their attributes."""

    #: whether JSON leaves out private attributes
    leaves_out_private = False

    def __init__(self, kind: Any, names: Iterable[str]) -> None:
        # Not the class itself, which would then be kept as long as this is.
        self._names = dict.fromkeys(names)
        self._slots = [name for name in _slots_of(kind) if self._writes(name)]
        self._has_dict = bool(kind.__dictoffset__)
        # Whether what JSON writes is all in one place, the dict or the slots.
        self._is_in_one = all(map(self._writes, self._names)) and (
            not self._slots if self._has_dict else self._slots == list(self._names)
        )

    def is_regular(self, value: Any, /) -> bool:
        """Return whether JSON writes the fields of the class, all of them, and nothing else."""
        if self._has_dict:
            return self._is_in_one and value.__dict__.keys() == self._names.keys()
        return self._is_in_one and all(hasattr(value, name) for name in self._names)

    def comes_back(self, values: Sequence[Any], look: Look, /) -> bool:
        if not all(map(self.is_regular, values)):
            if any(self.fault(value, look) for value in values):
                return False
            parts = chain.from_iterable([self.written(value).values() for value in values])
        elif self._has_dict:
            parts = chain.from_iterable([value.__dict__.values() for value in values])
        else:
            parts = chain.from_iterable([map(attrgetter(name), values) for name in self._names])
        return look.into(parts, lambda: len(values) * len(self._names))

    def fault(self, value: Any, look: Look, /) -> Fault | None:
        written = self.written(value)
        for name in self._names:
            if not self._writes(name):
                return "is private: such attributes of attrs classes are left out", f".{name}"
            if name not in written:
                return "is not set", f".{name}"
        for name in written:
            if not name.isidentifier():
                return f"has an attribute {shown(name)}, which JSON has no form for", ""
        return super().fault(value, look)

    def parts(self, value: Any, /) -> list[Any]:
        return [part for part in self.written(value).values() if part is not msgspec.UNSET]

    def place(self, value: Any, position: int, /) -> str:
        written = self.written(value).items()
        names = [name for name, part in written if part is not msgspec.UNSET]
        return f".{names[position]}"

    def written(self, value: Any) -> Mapping[str, Any]:
        """Return the attributes that JSON writes."""
        raise NotImplementedError

    def _writes(self, name: str) -> bool:
        return not (self.leaves_out_private and name.startswith("_"))


class _Dataclasses(_Objects):
    """JSON writes the fields, as far as they are set."""

    def written(self, value: Any) -> Mapping[str, Any]:
        held = getattr(value, "__dict__", {})
        written: dict[str, Any] = {}
        for name in value.__dataclass_fields__:
            if name in held:
                written[name] = held[name]
            elif hasattr(getattr(type(value), name, None), "__set__") and hasattr(value, name):
                written[name] = getattr(value, name)  # in a slot, or a descriptor of the user's
        return written


class _Attrs(_Objects):
    """JSON writes all public attributes that are set, be they fields or not."""

    leaves_out_private = True

    def written(self, value: Any) -> Mapping[str, Any]:
        held = {name: getattr(value, name) for name in self._slots if hasattr(value, name)}
        held |= getattr(value, "__dict__", {})
        return {name: part for name, part in held.items() if self._writes(name)}


def _slots_of(kind: type) -> list[str]:
    """Return the names of the slots of a class, its bases' first."""
    return list(
        dict.fromkeys(
            name
            for base in reversed(kind.__mro__)
            for name, member in vars(base).items()
            if type(member) is types.MemberDescriptorType and base is not object
        )
    )


def _value_of(member: Any) -> Any:
    # Those that are numbers or strings are written as what they are.
    if isinstance(member, int):
        return int.__int__(member)
    return str.__str__(member) if isinstance(member, str) else member._value_


def _has_whole_minutes(value: datetime.datetime | datetime.time) -> bool:
    if value.tzinfo is None or value.tzinfo is datetime.UTC:
        return True
    offset = value.utcoffset()
    return offset is None or not offset % datetime.timedelta(minutes=1)


def _fault_in_keys(value: dict[Any, Any], look: Look) -> str | None:
    """Say why the keys of a dict would not all come back, as strings."""
    keys = list(dict.keys(value))
    for key in keys:
        if type(key) is not int and not issubclass(type(key), str) and not look.at([key]):
            return f"has the key {shown(key)}, which JSON has no form for"
    kinds = set(map(type, keys))
    if kinds == _STR:
        "".join(keys).encode()  # raises
    if len(kinds) == 1 and kinds <= _DISTINCT:
        return None
    written: dict[bytes, Any] = {}
    for key in keys:
        other = written.setdefault(_encode({key: None}), key)
        if other is not key:
            return f"has keys that are one in JSON: {shown(other)} and {shown(key)}"
    return None


def _long_key_in(value: dict[Any, Any]) -> str | None:
    """Say which key of a dict is an integer that can't be written."""
    for key in dict.keys(value):
        if type(key) is int and not -_TOO_LONG < key < _TOO_LONG:
            return f"has the key {shown(key)}, of over {MAX_DIGITS} digits"
    return None


def may_hold_long_integer(data: bytes) -> bool:
    """Return whether JSON may hold an integer of about `MAX_DIGITS` digits, or has just the text.

    Of so many digits in a row, some are among those that are looked at.
    """
    return len(data) >= MAX_DIGITS and any(
        data[start : start + 64].isdigit() for start in range(0, len(data), MAX_DIGITS // 2)
    )


_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def depth_of(data: bytes) -> int:
    """Return how many containers there are inside each other in JSON."""
    depth = deepest = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _fault_in_json(data: bytes, depth: int) -> str | None:
    """Say why JSON that is written as it is would not come back."""
    if b"\n" in data or b"\r" in data:
        return "of more than one line"
    if data.count(b"[") + data.count(b"{") > depth and depth_of(data) > depth:
        return "that is nested too deeply"
    try:
        value = _decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        return f"that can't be read: {text_of(error)}"
    # Of two members with one name, one is lost: there are as many as colons outside of strings.
    if data.count(b":") > 1:
        members = _members(value)
        if data.count(b":") != members != _STRING.sub(b"", data).count(b":"):
            return "that has a name twice"
    return None


def _members(value: Any) -> int:
    """Return how many members the objects in plain data have."""
    count, level = 0, [value]
    while level:
        dicts = [each for each in level if type(each) is dict]
        count += sum(map(len, dicts))
        lists = [each for each in level if type(each) is list]
        level = [*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, dicts))]
    return count


_WITHOUT_FORM = "which JSON has no form for"
_HARMLESS = _Scalars(lambda _: True, "")

_FORMS: dict[type, Form] = {
    **dict.fromkeys(HARMLESS, _HARMLESS),
    int: _Scalars(
        lambda value: _TOO_LOW < value < _TOO_LONG, f"of over {MAX_DIGITS} digits, sign included"
    ),
    float: _Floats(math.isfinite, _WITHOUT_FORM),
    decimal.Decimal: _Scalars(decimal.Decimal.is_finite, _WITHOUT_FORM),
    datetime.datetime: _Scalars(_has_whole_minutes, "seconds off UTC, which JSON has no form for"),
    datetime.time: _Scalars(_has_whole_minutes, "seconds off UTC, which JSON has no form for"),
    msgspec.UnsetType: _Unset(),
    msgspec.Raw: _Raws(),
    list: _Sequences(list),
    tuple: _Sequences(tuple),
    set: _Sequences(set),
    frozenset: _Sequences(frozenset),
    dict: _Dicts(),
}

#: The forms of users' classes, as far as they were asked for.
_class_forms: WeakKeyDictionary[type, Form | None] = WeakKeyDictionary()


def form_of(kind: type) -> Form | None:
    """Return the form of a type's values; `None` if there is none that can be relied on."""
    form = _FORMS.get(kind)
    if form is not None:
        return form
    if kind not in _class_forms:
        _class_forms[kind] = _form_of_class(kind)
    return _class_forms[kind]


def room_left(  # noqa: PLR0912 - it is the way of small events, and each call takes a tenth of it
    value: Any, room: int, levels: int = _LEVELS
) -> int:
    """Return how much room a small value leaves, without much ado; below 0 if it is not one.

    One that leaves some comes back. It takes up a unit for each character, and more for each
    value: what is larger is to be known as soon as can be.
    """
    kind = type(value)
    if kind is dict:
        parts = value.values()
        # Of many names, one call is quicker.
        are_names = len(value) >= _WIDE and _STR.issuperset(map(type, value))
        for name in () if are_names else value:
            if type(name) is not str:
                if not _has_short_keys(value):
                    return -1
                break
        else:
            # The names of the outermost dict are there once: they take no more than there is.
            if levels < _LEVELS:
                room -= len("".join(value))
    elif kind in _ITERABLE:
        parts = value
    elif type(kind) is _StructMeta:
        parts = msgspec.structs.astuple(value)
    elif (form := form_of(kind)) is not None and form.is_regular(value):
        parts = form.parts(value)
    else:
        return _room_left_by_other(value, room, 0)
    room -= _EACH * len(parts)
    if room < 0:
        return -1
    for part in parts:
        kind = type(part)
        if kind is str:
            room -= len(part)
        elif kind is float:
            if not isfinite(part):
                return -1
        elif kind is not int and kind is not bool and part is not None:
            if (kind is dict or kind is list) and levels:
                room = room_left(part, room, levels - 1)
            else:
                room = _room_left_by_other(part, room, levels)
            if room < 0:
                return -1
    return room


def _room_left_by_other(value: Any, room: int, levels: int) -> int:
    """Return how much room is left by a value that is looked at more closely."""
    kind = type(value)
    form = form_of(kind)
    if kind in _TEXTS:
        return room - len(value)
    if kind is msgspec.Raw:
        json = bytes(value)
        return -1 if len(json) > room or _fault_in_json(json, levels) else room - len(json)
    if form is _HARMLESS:
        return -1 if kind is memoryview else room - _SHORT
    if isinstance(form, _Scalars):
        return room - value.__sizeof__() if form.holds(value) else -1
    return room_left(value, room, levels - 1) if levels else -1


def _has_short_keys(value: dict[Any, Any]) -> bool:
    """Return whether the keys of a dict are of one type, and each is a short string of its own."""
    kinds = set(map(type, dict.keys(value)))
    return len(kinds) == 1 and kinds <= _DISTINCT_AND_SHORT


def _form_of_class(kind: Any) -> Form | None:
    """Return the form of a class of the user's, as msgspec finds it: in this order."""
    for base in (list, dict):
        if issubclass(kind, base):
            return _FORMS[base]
    if issubclass(type(kind), _StructMeta):
        return _Structs()
    if issubclass(kind, tuple):
        return _FORMS[tuple]
    # Of the others it is asked what they hold, so they may not make that up.
    if type(kind.__getattribute__) is not types.WrapperDescriptorType:
        return None
    if issubclass(type(kind), enum.EnumMeta):
        return _Enums()
    if issubclass(kind, uuid.UUID):
        return _HARMLESS
    for exact in (set, frozenset):
        if issubclass(kind, exact):
            return _FORMS[exact] if kind.__iter__ is exact.__iter__ else None
    if dataclasses.is_dataclass(kind):
        return _Dataclasses(kind, [field.name for field in dataclasses.fields(kind)])
    if "__attrs_attrs__" in vars(kind):
        return _Attrs(kind, [attribute.name for attribute in kind.__attrs_attrs__])
    return None
