"""Which payloads come back: the others are refused, each with the path to what is wrong.

Values are looked at level by level, with all of one type in a level taken at once: of ordinary
ones that takes less time than encoding them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from papyra._fresh_stack import on_fresh_stack
from papyra._safe_repr import MEANT, shown, text_of, type_name
from papyra.exceptions import RecordTooLarge, UnencodablePayload
from papyra.persistence._bounded_json import json_within
from papyra.persistence._json_forms import HARMLESS, MAX_DIGITS, form_of

#: How many containers may be inside each other in what is accepted. Every reader can read that,
#: however much of its stack is used up already.
MAX_DEPTH = 100

#: Containers among which one is looked for that contains itself.
_MANY = 10_000
#: Types in a level up to which it is gone through once for each of them.
_FEW = 4
#: Values from which on it pays to look at all of a level in one call.
_CROWD = 200
_FINITE = msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)
_PLAIN = list[str | int | Annotated[float, _FINITE] | bool | None]
_PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})
_TEXTS = frozenset({str, bytes, bytearray})
_HARMLESS_AND_INT = HARMLESS | {int}

_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


class Room(msgspec.Struct):
    """How much values may take up: about the bytes of their texts, and eight for each of them."""

    #: negative once there is not enough
    left: int


def come_back(
    values: Sequence[Any],
    depth: int = MAX_DEPTH,
    *,
    room: Room | None = None,
    once: bool = False,
    closely: bool = False,
) -> bool:
    """Return whether all of `values` that JSON has a form for come back as they are.

    They may be `depth` levels deep, and take up the `room` that there is. With `once`, what is
    there many times, be it in itself, is looked at once. Only `closely`, integers are looked at:
    `may_hold_long_integer` tells of what was encoded whether that is called for.
    """
    look = _Look(depth, closely=closely) if room is None else _BoundedLook(depth, room)
    return look.through(values, once=once)


def fault_in(value: Any, depth: int = MAX_DEPTH) -> UnencodablePayload | None:
    """Return what keeps a payload from coming back, if anything does."""
    try:
        return _fault_in(value, depth)
    except RecordTooLarge as error:
        return error


def _fault_in(value: Any, depth: int) -> UnencodablePayload | None:
    _are_fine([value], depth)  # raises, if there is no end to what is to be looked at
    look = _Look(depth)
    if not look.through((value,), once=True) and look.is_too_deep:
        return _fault_in_deep(value, depth)
    path = "payload"
    while True:
        wrong, place, part = _look_closely(value, depth)
        path += place
        if not part:
            return UnencodablePayload(f"{path} {wrong}", path=path) if wrong else None
        value = part[0]
        depth -= 1


def to_json(value: Any) -> bytes:
    """Encode what comes back, of any size, however much of the stack is used up already."""
    try:
        return _encode(value)
    except RecursionError:
        return on_fresh_stack(_encode, value)


class _Look:
    """A look at the values of one level, and then at what is in them."""

    def __init__(self, depth: int, *, closely: bool = False) -> None:
        self.depth = depth
        self.is_within = False
        self.is_too_deep = False
        self._below: list[Any] = []
        # Longer integers can be written where that was allowed, but not be read elsewhere.
        are_short = not closely and 0 < sys.get_int_max_str_digits() <= MAX_DIGITS
        self.ignored = self._harmless = _HARMLESS_AND_INT if are_short else HARMLESS

    def through(self, values: Sequence[Any], *, once: bool) -> bool:
        """Return whether values of the first level, and all that is in them, come back."""
        try:
            while values:
                if not self.at(values):
                    return False
                values, self._below = self._below, []
                if once:
                    values = list({id(value): value for value in values}.values())
                self.depth -= 1
                self.is_within = True
        except MEANT:
            raise
        except BaseException:  # noqa: BLE001 - a user's object raised, and `fault_in` says which
            return False
        return True

    def at(self, values: Sequence[Any]) -> bool:
        """Return whether values of this level come back, but for what is in them."""
        if len(values) >= _CROWD and type(values[0]) in _PLAIN_TYPES and self._are_plain(values):
            return True
        kinds = set(map(type, values))
        harmful = kinds - self._harmless
        if len(kinds) == 1 and harmful:
            return self._comes_back(kinds.pop(), values)
        if len(harmful) > _FEW:
            groups = _by_type(values)
            return all(self._comes_back(kind, groups[kind]) for kind in harmful)
        return all(
            self._comes_back(kind, [value for value in values if type(value) is kind])
            for kind in harmful
        )

    def _are_plain(self, values: Sequence[Any]) -> bool:
        """Return whether all are texts, numbers, or the like that come back: of many, quickly."""
        if int not in self._harmless:
            return False
        try:
            msgspec.convert(values, _PLAIN)
        except msgspec.ValidationError:
            return False
        return True

    def into(self, parts: Iterable[Any], count: Callable[[], int]) -> bool:
        """Have parts looked at later, if there may be another level."""
        del count
        self._below += parts
        self.is_too_deep = self.depth < 1
        return not self.is_too_deep

    def _comes_back(self, kind: type, values: Sequence[Any]) -> bool:
        form = form_of(kind)
        return form is not None and form.comes_back(values, self)


class _BoundedLook(_Look):
    """A look that ends where values take up too much room."""

    def __init__(self, depth: int, room: Room) -> None:
        super().__init__(depth)
        self.ignored = frozenset()  # each takes up room
        self._room = room

    def at(self, values: Sequence[Any]) -> bool:
        texts = [value for value in values if type(value) in _TEXTS]
        raws = [memoryview(value).nbytes for value in values if type(value) is msgspec.Raw]
        self._room.left -= 8 * len(values) + sum(map(len, texts)) + sum(raws)
        return self._room.left >= 0 and super().at(values)

    def into(self, parts: Iterable[Any], count: Callable[[], int]) -> bool:
        # Before there is a list of them: a few lists in each other can have any number of parts.
        if 8 * count() > self._room.left:
            self._room.left = -1
            return False
        return super().into(parts, count)


def _fault_in_deep(value: Any, depth: int) -> UnencodablePayload:
    path = _cycle_in(value)
    if path is not None:
        return UnencodablePayload(f"{path} contains itself, which JSON can't", path=path)
    wrong = f"payload is nested too deeply: it has more than {depth} levels"
    return UnencodablePayload(wrong, path="payload")


def _cycle_in(value: Any) -> str | None:
    """Return the path on which a value contains itself, if it does."""
    above, done = {id(value)}, set[int]()
    ahead = [(value, _positions_in(value))]
    way: list[tuple[Any, int]] = []
    while ahead and len(above) + len(done) < _MANY:
        value, positions = ahead[-1]
        for part, position in positions:
            if id(part) in above:
                return "payload" + "".join(itertools.starmap(_place, [*way, (value, position)]))
            if id(part) not in done:
                way.append((value, position))
                above.add(id(part))
                ahead.append((part, _positions_in(part)))
                break
        else:
            ahead.pop()
            above.remove(id(value))
            done.add(id(value))
            if way:
                way.pop()
    return None


def _positions_in(value: Any) -> Iterator[tuple[Any, int]]:
    """Return the parts of a value that may have parts of their own, and their positions."""
    form = form_of(type(value))
    parts = [] if form is None else form.parts(value)
    return ((part, i) for i, part in enumerate(parts) if type(part) not in _HARMLESS_AND_INT)


def _place(value: Any, position: int) -> str:
    form = form_of(type(value))
    return "" if form is None else form.place(value, position)


def _by_type(values: Sequence[Any]) -> Mapping[type, list[Any]]:
    groups: dict[type, list[Any]] = {}
    for value in values:
        groups.setdefault(type(value), []).append(value)
    return groups


def _look_closely(value: Any, depth: int) -> tuple[str, str, list[Any]]:
    """Return what is wrong with `value`, or where in it something is: and what that is."""
    try:
        form = form_of(type(value))
        if form is not None:
            fault = form.fault(value, _Look(depth))
            if fault is not None:
                return *fault, []
            parts = form.parts(value)
            position = _first_bad(parts, depth - 1)
            if position is not None:
                return "", form.place(value, position), [parts[position]]
        json_within(value)
    except (RecordTooLarge, RecursionError, *MEANT):
        raise  # a RecursionError is the stack's, most likely
    except BaseException as error:  # noqa: BLE001 - whatever a user's object raises
        wrong = f"{said(value)}, which JSON has no form for ({text_of(error)})"
        return f"is {wrong}", "", []
    if form is None:
        return f"is {said(value)}, whose class makes up what it holds", "", []
    return "", "", []


def _first_bad(parts: list[Any], depth: int) -> int | None:
    """Return the position of the first part that does not come back: by halves, as most do."""
    if len(parts) == 1:
        return 0  # it will be seen
    start, stop = 0, len(parts)
    while stop - start > 1:
        middle = (start + stop) // 2
        start, stop = (middle, stop) if _are_fine(parts[start:middle], depth) else (start, middle)
    return None if _are_fine(parts[start:stop], depth) else start


def _are_fine(values: list[Any], depth: int) -> bool:
    if not come_back(values, depth, once=True, closely=True):
        return False
    try:
        json_within(values)
    except (RecordTooLarge, RecursionError, *MEANT):
        raise
    except BaseException:  # noqa: BLE001 - whatever a user's object raises
        return False
    return True


def said(value: object) -> str:
    """Return the type of a value, and the value, for an error that names it."""
    return f"{type_name(value)} {shown(value)}"
