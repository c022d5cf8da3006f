"""Payloads of every kind, good and bad, and a model that says how they come back."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime
import decimal
import enum
import json
import math
import random
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

attrs: Any
try:
    import attrs  # not ours, but what trio and others bring along
except ImportError:
    attrs = None


class Text(str):
    pass


class Unequal(str):
    """A key that is no other one, though its text may be."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Listed(list[Any]):
    pass


class Mapped(dict[str, Any]):
    def __iter__(self) -> Any:
        raise KeyError

    def items(self) -> Any:
        raise KeyError


class Odd(enum.Enum):
    ONE = 1
    TEXT = "1"
    NAN = math.nan
    PAIR = (1, 2)
    NONE = None


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Word(enum.StrEnum):
    ONE = "1"
    TWO = "two"


class Weight(float, enum.Enum):
    NAN = math.nan
    SOME = 1.5


class Pair(NamedTuple):
    x: Any
    y: Any


class Line(msgspec.Struct):
    x: Any
    y: Any = None


class Tagged(msgspec.Struct, rename="camel", tag=True, omit_defaults=True):
    some_x: Any
    other_y: Any = 3


class Array(msgspec.Struct, array_like=True, tag="array"):
    x: Any
    y: Any = 1


@dataclasses.dataclass
class Open:
    x: Any
    _y: Any = 2


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any
    y: Any = 2


ATTRS: list[Any] = []
if attrs is not None:

    @attrs.define
    class Defined:
        x: Any
        y: Any = 1

    @attrs.define(slots=False)
    class Loose:
        x: Any
        y: Any = 1

    @attrs.define
    class Private:
        x: Any
        _y: Any = 1

    ATTRS += [Defined, Loose, Private]

#: What may be in a `msgspec.Raw`, and how it comes back.
GOOD_JSON: list[tuple[bytes, Any]] = [
    (b"1", 1),
    (b"{}", {}),
    (b' {"a": 1}\t', {"a": 1}),
    (b'"a:b"', "a:b"),
    (b'{"a\\":":1,"\\\\":2}', {'a":': 1, "\\": 2}),
    (b'{"a":{"b":[{"c":1,"d":":"},{"c":2}]}}', {"a": {"b": [{"c": 1, "d": ":"}, {"c": 2}]}}),
    (b'"\\u0000\\ud83d\\ude00"', "\0😀"),
    (b"1" * 4300, int("1" * 4300)),
    (b"-" + b"1" * 4299, -int("1" * 4299)),
    (b"[" * 90 + b'"[[["' + b"]" * 90, None),
]
BAD_JSON: list[bytes] = [
    b"-" + b"1" * 4300,
    b"",
    b"{",
    b"[1,2",
    b"1,2",
    b'{},"x":1',
    b'{},"actor_address":"bank/treasury","event_type":"Deposited","payload":{"amount":1}',
    b"true false",
    b"1\n",
    b"[1,\n2]",
    b"\r1",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"01",
    b'"\\ud800"',
    b'"\xff"',
    b'{"\xff":1}',
    b'"\xed\xa0\x80"',
    b"\xef\xbb\xbf1",
    b'"\x01"',
    b'{"a":1,"a":2}',
    b'{"a":1,"\\u0061":2}',
    b'[[{"b":{"a":1,"a":1}}]]',
    b"1" * 4301,
    b"[" * 101 + b"]" * 101,
    b'{"a":' * 1200 + b"1" + b"}" * 1200,
    b"[" * 100_000,
    b'"' + b'\\"' * 100_000,
]

AMSTERDAM = ZoneInfo("Europe/Amsterdam")

SCALARS: list[Callable[[random.Random], Any]] = [
    lambda _: None,
    lambda _: True,
    lambda r: r.randint(-5, 5),
    lambda r: 10 ** r.randint(1, 5000),
    lambda r: r.random(),
    lambda r: r.choice([math.nan, math.inf, -math.inf]),
    lambda r: "ä" * r.randint(0, 5),
    lambda _: "\ud800",
    lambda r: r.choice([b"ab", bytearray(b"x"), memoryview(b"abc")]),
    lambda r: datetime.datetime(2020, 1, r.randint(1, 28)),
    lambda r: datetime.datetime(r.choice([1900, 2020]), 1, 1, tzinfo=AMSTERDAM),
    lambda r: datetime.time(
        1, tzinfo=datetime.timezone(datetime.timedelta(seconds=r.randint(0, 90)))
    ),
    lambda _: datetime.date(2020, 1, 1),
    lambda r: datetime.timedelta(r.randint(-3, 3), 1),
    lambda r: uuid.UUID(int=r.randint(0, 10)),
    lambda r: decimal.Decimal(r.choice(["1", "1.0", "NaN", "sNaN", "-Infinity", "1E+10"])),
    lambda r: r.choice([*Odd, *Number, *Word, *Weight]),
    lambda r: msgspec.Raw(r.choice(GOOD_JSON)[0]),
    lambda r: msgspec.Raw(r.choice(BAD_JSON)),
    lambda r: r.choice([Text("a"), object(), 1j, len, range(3), int, ..., msgspec.UNSET]),
    lambda _: (number for number in range(3)),
]

KEYS: list[Any] = [
    *("a", "b", "1", 0, 1, 2, 1.0, 1.5, math.nan, Text("a"), Unequal("a"), True, None, (1, 2)),
    *(
        uuid.UUID(int=1),
        str(uuid.UUID(int=1)),
        datetime.date(2020, 1, 1),
        "2020-01-01",
        b"a",
        "YQ==",
    ),
    *(*Odd, *Number, *Word, decimal.Decimal(1), decimal.Decimal("NaN")),
    *(datetime.datetime(2020, 1, 1), "2020-01-01T00:00:00", "\ud800"),
]


def payload(r: random.Random, depth: int = 0) -> Any:
    """Make a payload."""
    if depth > 5 or r.random() < 0.45:
        ordinary: list[Any] = [1, "a", None, 2.5, True]
        return r.choice(SCALARS)(r) if r.random() < 0.35 else r.choice(ordinary)

    def part() -> Any:
        return payload(r, depth + 1)

    count = range(r.randint(0, 3))
    makers: list[Callable[[], Any]] = [
        lambda: [part() for _ in count],
        lambda: tuple(part() for _ in count),
        lambda: {f"key {i}": part() for i in count},
        lambda: {i: part() for i in count},
        lambda: {r.choice(KEYS): part() for _ in count},
        lambda: {r.randint(0, 9) for _ in count},
        lambda: frozenset("ab"),
        lambda: Listed([part()]),
        lambda: Mapped(a=part()),
        lambda: OrderedDict(z=part()),
        lambda: defaultdict(list, q=[part()]),
        lambda: Pair(part(), 1),
        lambda: Line(part(), part()),
        lambda: Tagged(part(), part()),
        lambda: Tagged(part()),
        lambda: Array(part()),
        lambda: Open(part(), part()),
        lambda: Slotted(part()),
        *(lambda kind=kind: kind(part()) for kind in ATTRS),
    ]
    return r.choice(makers)()


class Hostile:
    """Raises whatever it is asked, be it what it is."""

    def __init__(self, error: BaseException) -> None:
        object.__setattr__(self, "error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "error")

    def __repr__(self) -> str:
        raise object.__getattribute__(self, "error")

    __hash__ = __eq__ = __str__ = __iter__ = __len__ = __repr__  # type: ignore[assignment]


class HostileZone(datetime.tzinfo):
    """Raises in the middle of the encoding."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def utcoffset(self, when: object) -> Any:
        raise self.error

    dst = tzname = utcoffset


class HostileMeta(type):
    """Makes types that raise when they are looked up, or asked for their name."""

    def __hash__(cls) -> int:
        raise ZeroDivisionError("no hash")

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ZeroDivisionError("no name")


class Unnamed(metaclass=HostileMeta):
    pass


def unhashable(error: BaseException) -> object:
    """Make an object whose type raises `error` when it is looked up."""

    class Meta(type):
        def __hash__(cls) -> int:
            raise error

    return Meta("Unhashable", (), {})()


class Endless(list[Any]):
    """A list that never ends, if it is asked."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield 1

    def __len__(self) -> int:
        raise OverflowError


def without(value: Any, name: str) -> Any:
    """Return a value with one field not set, be it frozen or not."""
    if isinstance(value, msgspec.Struct):
        getattr(type(value), name).__delete__(value)
    else:
        delattr(value, name)
    return value


#: What may be raised in the middle of anything, and does not end the program.
ERRORS: list[BaseException] = [
    RuntimeError("no"),
    RecursionError("no"),
    MemoryError(),
    AttributeError("no"),
    ZeroDivisionError(Hostile(ValueError())),
    GeneratorExit(),
    asyncio.CancelledError(),
    BaseException("no"),
]


def hostile(error: BaseException) -> list[Any]:
    """Make payloads that raise."""
    zone = datetime.datetime(2020, 1, 1, tzinfo=HostileZone(error))
    return [Hostile(error), {"zone": zone}, Line(zone), {"a": [Hostile(error)]}]


class Refused(Exception):
    """A payload that is not accepted."""


def comes_back_as(value: Any, depth: int = 100) -> Any:
    """Return what is read back of a payload. Raises `Refused`."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return _text(value)
    if kind is int:
        return _unless(not -(10**4299) < value < 10**4300, value)
    if kind is float:
        return _unless(not math.isfinite(value), value)
    if kind in (bytes, bytearray, memoryview):
        return base64.b64encode(bytes(value)).decode()
    if kind is decimal.Decimal:
        return _unless(not value.is_finite(), str(value))
    if kind in (datetime.datetime, datetime.time):
        offset = value.utcoffset()
        _unless(offset is not None and offset.total_seconds() % 60 != 0, None)
        return msgspec.to_builtins(value)
    if kind in (datetime.date, datetime.timedelta, uuid.UUID):
        return msgspec.to_builtins(value)
    if kind is msgspec.Raw:
        return _json(bytes(value), depth)
    if isinstance(value, enum.Enum):
        return _member(value, depth)
    _unless(depth < 1, None)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [comes_back_as(part, depth - 1) for part in value]
    if isinstance(value, dict):
        return _mapping(value, depth)
    if isinstance(value, msgspec.Struct):
        return _struct(value, depth)
    names = None
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif kind in ATTRS:
        names = [attribute.name for attribute in attrs.fields(kind)]
        _unless(kind is ATTRS[2], None)
    if names is None:
        raise Refused
    parts = {name: getattr(value, name) for name in names}
    return _fields(parts, depth)


def _unless(is_refused: bool, value: Any) -> Any:
    if is_refused:
        raise Refused
    return value


def _text(value: str) -> str:
    _unless(any("\ud800" <= character <= "\udfff" for character in value), None)
    return value


def _member(value: enum.Enum, depth: int) -> Any:
    if isinstance(value, str):
        return str(value.value)
    return int(value) if isinstance(value, int) else comes_back_as(value.value, depth)


def _mapping(value: dict[Any, Any], depth: int) -> Any:
    found: dict[str, Any] = {}
    for key in dict.keys(value):
        name = _key(key)
        _unless(name in found, None)
        found[name] = comes_back_as(dict.__getitem__(value, key), depth - 1)
    return found


def _key(key: Any) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return _text("".join([*str.__iter__(key)]))
    _unless(key is None or isinstance(key, (bool, tuple)), None)
    # As a text, a sign more does no harm.
    found: object = key if type(key) is int and abs(key) < 10**4300 else comes_back_as(key)
    return found if isinstance(found, str) else json.dumps(found)


def _struct(value: msgspec.Struct, depth: int) -> Any:
    names, config = value.__struct_fields__, value.__struct_config__
    parts = {name: getattr(value, name) for name in names}
    if config.array_like:
        _unless(msgspec.UNSET in parts.values(), None)
        return [config.tag, *(comes_back_as(part, depth - 1) for part in parts.values())]
    if isinstance(value, Tagged):
        found = {"someX": parts["some_x"]}
        if parts["other_y"] is not Tagged.__struct_defaults__[0]:
            found["otherY"] = parts["other_y"]
        return {"type": "Tagged"} | _fields(found, depth)
    return _fields(parts, depth)


def _fields(parts: dict[str, Any], depth: int) -> Any:
    return {
        name: comes_back_as(part, depth - 1)
        for name, part in parts.items()
        if part is not msgspec.UNSET
    }


def _json(data: bytes, depth: int) -> Any:
    if data in BAD_JSON:
        raise Refused
    value = json.loads(data)
    deepest, level = 0, [value]
    while level := [
        part
        for each in level
        if isinstance(each, (dict, list))
        for part in [*(each.values() if isinstance(each, dict) else each), 0]
    ]:
        deepest += 1
    return _unless(deepest > depth, value)
