"""Event types have names and versions, and old ones become those of today."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec
import pytest

from papyra.eventsourcing import EventSourced, event, upcaster
from papyra.eventsourcing.schema import Schema, upcasters_of
from papyra.exceptions import InvalidActor, InvalidEvent, InvalidSchema
from papyra.persistence import PersistedEvent
from papyra.persistence.codec import decode, encode


class Opened(msgspec.Struct, frozen=True):
    owner: str


@event("deposited", version=3)
class Deposited(msgspec.Struct, frozen=True):
    cents: int
    currency: str = "EUR"


@upcaster("deposited", from_version=1)
def in_cents(payload: Any) -> Any:
    return {"cents": round(payload["amount"] * 100)}


@upcaster("deposited", from_version=2)
def with_currency(payload: Any) -> Any:
    return payload | {"currency": "EUR"}


def schema(*events: type, upcasters: Iterable[object] = ()) -> Schema:
    return Schema("Account", events, upcasters_of(upcasters))


def stored(event_type: str, payload: Any, version: int = 1) -> PersistedEvent:
    return PersistedEvent("s", "s/a", event_type, payload, 1.0, 1, 1, version)


def test_an_event_is_stored_under_the_name_of_its_class_unless_another_was_given() -> None:
    events = schema(Opened, Deposited, upcasters=(in_cents, with_currency))
    opened, _ = events.encode(Opened("ann"))
    deposited, _ = events.encode(Deposited(5))
    assert tuple(opened) == ("Opened", 1)
    assert tuple(deposited) == ("deposited", 3)


def test_a_stored_event_is_decoded_into_its_class_with_defaults_for_added_fields() -> None:
    events = schema(Opened, Deposited)
    assert events.decode(stored("Opened", {"owner": "ann"})) == [Opened("ann")]
    assert events.decode(stored("deposited", {"cents": 5}, 3)) == [Deposited(5, "EUR")]


def test_upcasters_lead_step_by_step_to_the_version_of_today() -> None:
    events = schema(Deposited, upcasters=(with_currency, in_cents))
    assert events.decode(stored("deposited", {"amount": 1.25}, 1)) == [Deposited(125, "EUR")]
    assert events.decode(stored("deposited", {"cents": 7}, 2)) == [Deposited(7, "EUR")]


def test_an_upcaster_may_remove_an_event_double_it_or_turn_it_into_others() -> None:
    @upcaster("Closed", from_version=1, to=())
    def removed(payload: Any) -> None:
        del payload

    @upcaster("deposited", from_version=2)
    def doubled(payload: Any) -> list[Any]:
        return [payload, payload]

    @upcaster("Created", from_version=1, to=("Opened", "deposited"))
    def split(payload: Any) -> Any:
        yield "Opened", {"owner": payload["owner"]}
        yield "deposited", {"cents": payload["cents"]}

    @upcaster("OldCreated", from_version=1, to="Created")
    def renamed(payload: Any) -> Any:
        return [("Created", payload)]

    events = schema(Opened, Deposited, upcasters=(removed, doubled, split))
    assert events.decode(stored("Closed", {})) == []
    assert events.decode(stored("deposited", {"cents": 1}, 2)) == [Deposited(1), Deposited(1)]
    both = events.decode(stored("Created", {"owner": "ann", "cents": 3}))
    assert both == [Opened("ann"), Deposited(3)]
    with pytest.raises(InvalidSchema, match="leads to 'Created', which Account does not know"):
        schema(Opened, Deposited, upcasters=(renamed,))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (stored("Lost", {}), "no event 'Lost'"),
        (stored("deposited", {"cents": 1}, 4), "newer than the 3"),
        (stored("deposited", {"cents": 1}, 1), "older than the 3"),
        (stored("Opened", {}), "is no Opened"),
        (stored("Opened", {"owner": 5}), "is no Opened"),
        (stored("Opened", None), "is no Opened"),
    ],
)
def test_what_is_no_event_of_today_is_refused_by_name(record: PersistedEvent, why: str) -> None:
    with pytest.raises(InvalidEvent, match=why):
        schema(Opened, Deposited).decode(record)


def test_an_upcaster_that_raises_or_makes_what_it_did_not_name_is_refused_by_name() -> None:
    @upcaster("Old", from_version=1, to="Opened")
    def broken(payload: Any) -> Any:
        return payload["no"]

    @upcaster("Older", from_version=1, to="Opened")
    def elsewhere(payload: Any) -> Any:
        return [("deposited", payload)]

    events = schema(Opened, Deposited, upcasters=(broken, elsewhere))
    with pytest.raises(InvalidEvent, match=r"upcaster of 'Old' from version 1 raised KeyError"):
        events.decode(stored("Old", {}))
    with pytest.raises(InvalidEvent, match="made 'deposited', of which it said nothing"):
        events.decode(stored("Older", {}))


def test_an_event_that_is_not_declared_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="Opened is no event of Account: its events are Deposi"):
        schema(Deposited).encode(Opened("ann"))


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Part:
    size: float
    tags: frozenset[str]


class Everything(msgspec.Struct, frozen=True):
    when: datetime.datetime
    day: datetime.date
    price: decimal.Decimal
    id: uuid.UUID
    raw: bytes
    colour: Colour
    part: Part
    by_number: dict[int, tuple[str, ...]]
    by_day: dict[datetime.date, float]
    either: int | str | None
    parts: list[Part]


def test_what_an_event_holds_comes_back_as_it_was() -> None:
    whole = Everything(
        datetime.datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=datetime.UTC),
        datetime.date(2026, 2, 3),
        decimal.Decimal("1.10"),
        uuid.UUID(int=7),
        b"\0\xff",
        Colour.RED,
        Part(1.0, frozenset({"a"})),
        {1: ("x",), 2: ()},
        {datetime.date(2026, 2, 3): 0.5},
        None,
        [Part(2.0, frozenset())],
    )
    events = schema(Everything)
    (line,) = encode([stored("Everything", whole)])
    record = decode(line, 1)
    assert isinstance(record, PersistedEvent)
    assert events.decode(record) == [whole]


class Custom:
    pass


class HoldsCustom(msgspec.Struct):
    thing: Custom


class HoldsCustomDeeply(msgspec.Struct):
    things: dict[str, list[tuple[Custom, ...]]]


@dataclasses.dataclass
class HoldsUnknown:
    thing: Missing  # type: ignore[name-defined]  # noqa: F821


class HoldsAlternatives(msgspec.Struct):
    things: list[int] | tuple[int, ...]


class AlsoOpened:
    @event("Opened")
    class Twice(msgspec.Struct):
        pass


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ((HoldsCustom,), "no form for Custom"),
        ((HoldsCustomDeeply,), "no form for Custom"),
        ((HoldsUnknown,), "could not be read back"),
        ((HoldsAlternatives,), "could not be read back"),
        ((Opened, AlsoOpened.Twice), "two events called 'Opened'"),
        ((Opened, Opened), "two events called 'Opened'"),
        ((Custom,), "an event is a msgspec Struct"),
        (("Opened",), "an event is a msgspec Struct"),
        (Opened, "tuple of classes"),
    ],
)
def test_events_that_could_not_be_read_back_are_refused_with_the_class(
    events: Any, why: str
) -> None:
    with pytest.raises(InvalidSchema, match=why):
        type("Broken", (EventSourced,), {"events": events})


def steps(*versions: tuple[str, int]) -> list[object]:
    return [upcaster(name, version)(lambda payload: payload) for name, version in versions]


@pytest.mark.parametrize(
    ("upcasters", "why"),
    [
        (steps(("deposited", 1)), "leads to 'deposited' of version 2"),
        (steps(("deposited", 3)), "its newest version is 3"),
        (steps(("deposited", 2), ("deposited", 2)), "has two of what is the upcaster"),
        (steps(("Lost", 1)), "leads to 'Lost' of version 2"),
    ],
)
def test_upcasters_that_lead_nowhere_are_refused_with_the_class(upcasters: Any, why: str) -> None:
    with pytest.raises(InvalidSchema, match=why):
        type("Broken", (EventSourced,), {"events": (Deposited,), "upcasters": upcasters})


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, 10**20])
def test_a_version_is_a_whole_number_from_one_on(version: Any) -> None:
    with pytest.raises(InvalidSchema):
        event("deposited", version)
    with pytest.raises(InvalidSchema):
        upcaster("deposited", version)


@pytest.mark.parametrize("name", ["", None, 5, b"x"])
def test_an_events_name_is_a_string_that_is_not_empty(name: Any) -> None:
    with pytest.raises(InvalidSchema):
        event(name)
    with pytest.raises(InvalidSchema):
        upcaster("a", 1, to=[name])


async def _start(self: object) -> None:
    del self


async def _applies(self: object, state: object, event: object) -> None:
    del self, state, event


@pytest.mark.parametrize(
    ("member", "value", "why"),
    [
        ("on_start", _start, "on_recovered"),
        ("apply", _applies, "pure"),
        ("initial_state", _start, "pure"),
        ("batch_types", (int,), "one by one"),
    ],
)
def test_an_event_sourced_class_that_could_not_be_recovered_is_refused(
    member: str, value: Any, why: str
) -> None:
    with pytest.raises(InvalidActor, match=why):
        type("Broken", (EventSourced,), {"events": (), member: value})


def test_upcasters_in_the_body_of_a_class_and_of_its_bases_count() -> None:
    class Base(EventSourced[int]):
        events: ClassVar[tuple[type, ...]] = (Deposited,)

        @staticmethod
        @upcaster("deposited", from_version=1)
        def first(payload: Any) -> Any:
            return in_cents(payload)

        @upcaster("deposited", from_version=2)
        def second(payload: Any) -> Any:
            return with_currency(payload)

    class Derived(Base):
        events = (Deposited, Opened)

    for actor in (Base, Derived):
        assert actor._definition is not None
        record = stored("deposited", {"amount": 1}, 1)
        assert actor._definition.schema.decode(record) == [Deposited(100, "EUR")]
