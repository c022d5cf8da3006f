"""Event types: their names and versions, and how what was stored becomes events of today."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import structs

from papyra._safe_repr import shown, text_of, type_and_text, type_name
from papyra.eventsourcing.bookkeeping import MARKS, NOTES
from papyra.eventsourcing.steps import Step, StepDecoder, parts_of
from papyra.exceptions import InvalidEvent, InvalidSchema
from papyra.persistence.decisions import PASSED_OVER
from papyra.persistence.records import MAX_VERSION, RESERVED

ClassT = TypeVar("ClassT", bound=type)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

#: A payload on its way to today's form: the event's name, its version, and plain data.
Stored: TypeAlias = tuple[str, int, Any]

_fields: Callable[[Any], dict[str, Any]] = structs.asdict

#: Where a class, or a function, keeps what its decorator said.
_EVENT, _UPCASTER = "__papyra_event__", "__papyra_upcaster__"


class EventType(NamedTuple):
    """The name and the version under which a class of events is stored."""

    name: str
    version: int


class _Form(NamedTuple):
    """How events of one class are stored."""

    event_type: EventType
    decode: Callable[[bytes], object]
    #: whether by their fields: the codec is faster with flat dicts
    is_plain: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Upcaster:
    """A step from one version of an event to the next, or to other events."""

    name: str
    from_version: int
    #: the names of the events that it makes; the same one unless it says otherwise
    to: tuple[str, ...]
    function: Callable[[Any], Any]

    def apply(self, payload: Any) -> Iterator[Stored]:
        """Yield what `payload` has become.

        For the same event one payload, or `None`, or an iterable of them; for others, pairs of name
        and payload.
        """
        made = self.function(payload)
        if made is None:
            return
        if self.to == (self.name,):
            for each in (made,) if isinstance(made, Mapping) else made:
                yield self.name, self.from_version + 1, each
            return
        for name, each in made:
            if name not in self.to:
                raise InvalidEvent(f"{self} made {shown(name)}, of which it said nothing")
            yield name, self.from_version + 1 if name == self.name else 0, each

    def __str__(self) -> str:
        return f"the upcaster of {self.name!r} from version {self.from_version}"


def event(name: str, version: int = 1) -> Callable[[ClassT], ClassT]:
    """Say under which name and version a class of events is stored.

    Without it, that is the class's own name, and version 1. With it, the class can be renamed.
    """
    _check_name(name)
    _check_version("version", version)

    def mark(event_class: ClassT) -> ClassT:
        if not isinstance(event_class, type):
            raise InvalidSchema(f"an event is a class, not {shown(event_class)}")
        setattr(event_class, _EVENT, EventType(name, version))
        return event_class

    return mark


def upcaster(
    name: str, from_version: int, *, to: str | Iterable[str] | None = None
) -> Callable[[FunctionT], FunctionT]:
    """Say that a function turns the payload of an old event into newer ones.

    It is given the payload of version `from_version` as plain data, and returns that of the next
    version; an iterable of several; or `None`, or nothing in it, for an event that is no more. If
    it makes other events, `to` names them all, and it returns an iterable of pairs of name and
    payload; those are of the newest version that their class has.

    It belongs into the body of the actor's class, or into its `upcasters`. It must be pure: it is
    called in each recovery.
    """
    _check_name(name)
    _check_version("from_version", from_version)
    names = (name,) if to is None else (to,) if isinstance(to, str) else tuple(to)
    for each in names:
        _check_name(each)

    def mark(function: FunctionT) -> FunctionT:
        if not callable(function):
            raise InvalidSchema(f"an upcaster is a function, not {shown(function)}")
        if inspect.iscoroutinefunction(function):
            raise InvalidSchema(f"{function.__name__} is an upcaster, so not 'async def'")
        setattr(function, _UPCASTER, (name, from_version, names))
        return function

    return mark


class Schema:
    """The events of one class of actors, and the upcasters that lead to them."""

    def __init__(
        self,
        owner: str,
        events: Sequence[type],
        upcasters: Sequence[Upcaster],
        *,
        attribute: str = "events",
    ) -> None:
        """Check both. Raises `InvalidSchema` for what could not be read back.

        `attribute` is the one of `owner` that names `events`.
        """
        self._owner = owner
        self._attribute = attribute
        #: what errors call what is decoded
        self._noun = "event" if attribute == "events" else "message"
        self._encode = msgspec.json.Encoder().encode
        self._forms: dict[type, _Form] = {}
        self._classes: dict[str, tuple[type, int]] = {}
        #: the classes by their names and newest versions
        self.newest: dict[tuple[str, int], type] = {}
        self._upcasters: dict[tuple[str, int], Upcaster] = {}
        for event_class in events:
            self._add(event_class)
        for each in upcasters:
            self._add_upcaster(each)
        for each in upcasters:
            self._check_way(each)
        self._check_versions()

    @property
    def classes(self) -> Collection[type]:
        """The classes of today."""
        return self._forms.keys()

    def encode(self, event: object) -> tuple[EventType, object]:
        """Return the name and version of an event, and the payload that is stored of it.

        Raises `InvalidEvent` for one of another type, and for one that could not be read back:
        neither classes of msgspec nor dataclasses look at what they are made of, and a history that
        holds it once is lost.
        """
        form = self._forms.get(type(event))
        if form is None:
            known = ", ".join(sorted(each.__name__ for each in self._forms)) or "none"
            raise InvalidEvent(
                f"{type_name(event)} is no event of {self._owner}: its events are {known}"
            )
        event_type, decode, is_plain = form
        try:
            encoded = self._encode(event)
        except Exception:  # noqa: BLE001 - the codec says what JSON has no form for
            encoded = b""
        if encoded:
            try:
                decode(encoded)
            except Exception as error:  # users' classes may raise anything when they are made
                raise InvalidEvent(
                    f"{type_name(event)} could not be read back: {text_of(error)}"
                ) from error
        return event_type, _fields(event) if is_plain else event

    @functools.cached_property
    def steps(self) -> StepDecoder | None:
        """What decodes stored events at once into these, if there are any to be decoded."""
        upcast = {name for name, _ in self._upcasters}
        if not upcast | self._classes.keys():
            return None
        with contextlib.suppress(UnicodeEncodeError):  # a name that JSON has no form for
            return StepDecoder(self._classes, upcast, NOTES, MARKS)
        return None

    def decode(self, record: Step) -> list[object]:
        """Return the events that a stored one stands for today: mostly one.

        It is none if it is marked as passed over, and for a note of Papyra's own. Raises
        `InvalidEvent` for what can't be decoded into the classes that there are.
        """
        if record.payload is PASSED_OVER or record.event_type in NOTES:
            return []
        return list(self._upcast((record.event_type, record.event_version, record.payload)))

    def _upcast(self, stored: Stored) -> Iterator[object]:
        name, version, payload = stored
        event_class, newest = self._classes.get(name, (None, 0))
        if event_class is not None and version in (0, newest):
            yield self._convert(event_class, payload, name, newest)
            return
        step = self._upcasters.get((name, version))
        if step is None:
            raise InvalidEvent(self._unknown(name, version, newest))
        try:
            steps = list(step.apply(payload))
        except InvalidEvent:
            raise
        except Exception as error:
            raise InvalidEvent(f"{step} raised {type_and_text(error)}") from error
        for each in steps:
            yield from self._upcast(each)

    def _unknown(self, name: str, version: int, newest: int) -> str:
        if not newest:
            return (
                f"{self._owner} has no {self._noun} {shown(name)}, and no upcaster of it from "
                f"{version}"
            )
        newer = "newer than" if version > newest else "older than"
        return (
            f"{self._noun} {shown(name)} is of version {version}, {newer} the {newest} that "
            f"{self._owner} knows, and there is no upcaster for it"
        )

    def _convert(self, event_class: type, payload: object, name: str, version: int) -> object:
        try:
            return msgspec.convert(payload, event_class, str_keys=True)
        except Exception as error:  # users' classes may raise anything when they are made
            raise InvalidEvent(
                f"{self._noun} {shown(name)} of version {version} is no {event_class.__name__}: "
                f"{text_of(error)}"
            ) from error

    def _add(self, event_class: type) -> None:
        if not _is_event_class(event_class):
            raise InvalidSchema(
                f"{self._owner}.{self._attribute} holds {shown(event_class)}: "
                "an event is a msgspec Struct, a dataclass or an attrs class"
            )
        event_type = _type_of(event_class)
        taken = self._classes.get(event_type.name)
        if taken is not None:
            raise InvalidSchema(
                f"{self._owner} has two events called {event_type.name!r}: "
                f"{taken[0].__qualname__} and {event_class.__qualname__}"
            )
        if (fault := fault_in(event_class)) is not None:
            raise InvalidSchema(f"{event_class.__qualname__} could not be read back: {fault}")
        self._forms[event_class] = _Form(
            event_type, msgspec.json.Decoder(event_class).decode, _is_plain(event_class)
        )
        self._classes[event_type.name] = event_class, event_type.version
        self.newest[event_type.name, event_type.version] = event_class

    def _add_upcaster(self, step: Upcaster) -> None:
        place = step.name, step.from_version
        if place in self._upcasters:
            raise InvalidSchema(f"{self._owner} has two of what is {step}")
        _, newest = self._classes.get(step.name, (None, 0))
        if newest and step.from_version >= newest:
            raise InvalidSchema(
                f"{self._owner} has {step}, but its newest version is {newest}: "
                "say a greater one with '@event'"
            )
        self._upcasters[place] = step

    def _check_way(self, step: Upcaster) -> None:
        """Raise `InvalidSchema` if what `step` makes leads to no event that there is."""
        for name in step.to:
            if name != step.name and name in self._classes:
                continue
            following = step.name, step.from_version + 1
            _, newest = self._classes.get(name, (None, 0))
            if name == step.name and (newest == following[1] or following in self._upcasters):
                continue
            raise InvalidSchema(
                f"{step} leads to {name!r}"
                + (f" of version {following[1]}" if name == step.name else "")
                + f", which {self._owner} does not know"
            )

    def _check_versions(self) -> None:
        """Raise `InvalidSchema` for an old version from which no upcaster leads on."""
        for name, (_, newest) in self._classes.items():
            begun = [v for n, v in self._upcasters if n == name]
            for version in range(min(begun, default=newest), newest):
                if (name, version) not in self._upcasters:
                    raise InvalidSchema(
                        f"{self._owner} has no upcaster of {name!r} from version {version}"
                    )


def upcasters_of(members: Iterable[object]) -> list[Upcaster]:
    """Return the upcasters among `members`."""
    found = []
    for member in members:
        function = member.__func__ if isinstance(member, staticmethod) else member
        said = getattr(function, _UPCASTER, None)
        if callable(function) and isinstance(said, tuple):
            name, from_version, to = said
            found.append(Upcaster(name, from_version, to, function))
    return found


def leading_to(classes: Iterable[object], steps: Sequence[Upcaster]) -> list[Upcaster]:
    """Return the steps that lead to one of these classes, or to nothing, be it through others."""
    names = {_type_of(each).name for each in classes if isinstance(each, type)}
    found: list[Upcaster] = []
    ahead = list(steps)
    while leading := [each for each in ahead if not each.to or names & {each.name, *each.to}]:
        found += leading
        names |= {each.name for each in leading}
        ahead = [each for each in ahead if each not in leading]
    return found


def _type_of(event_class: type) -> EventType:
    said: EventType = vars(event_class).get(_EVENT, EventType(event_class.__name__, 1))
    return said


def _is_event_class(event_class: object) -> bool:
    return isinstance(event_class, type) and (
        issubclass(event_class, msgspec.Struct)
        or dataclasses.is_dataclass(event_class)
        or hasattr(event_class, "__attrs_attrs__")
    )


def _is_plain(event_class: type) -> bool:
    """Return whether an event is encoded as the dict of its fields."""
    if not issubclass(event_class, msgspec.Struct):
        return False
    config = event_class.__struct_config__
    return (
        config.tag is None
        and not config.array_like
        and not config.omit_defaults
        and event_class.__struct_fields__ == event_class.__struct_encode_fields__
    )


def fault_in(kind_of_value: Any) -> str | None:
    """Return what keeps the codec from reading a value of this type back, or `None`."""
    try:
        kind = msgspec.inspect.type_info(kind_of_value)
        msgspec.json.Decoder(kind_of_value)
    except Exception as error:  # noqa: BLE001 - names in annotations that are not there, for one
        return text_of(error)
    for each in parts_of(kind):
        if isinstance(each, msgspec.inspect.CustomType):
            return f"JSON has no form for {each.cls.__qualname__}"
    return None


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidSchema(f"an event's name is a string that is not empty, not {shown(name)}")
    if name.startswith(RESERVED):
        raise InvalidSchema(f"names that begin with {RESERVED!r} are Papyra's own: {shown(name)}")


def _check_version(what: str, version: object) -> None:
    if type(version) is not int or not 0 < version <= MAX_VERSION:
        raise InvalidSchema(f"{what} is a whole number from 1 on, not {shown(version)}")
