"""Records that are small in memory and larger than any store as text, as they share their parts."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import resource
from collections.abc import Callable, Iterator
from typing import Any

import attrs  # trio, which these tests need, brings it along
import msgspec
import pytest

from papyra._runtime.recorder import storable
from papyra.exceptions import InvalidRecord, RecordTooLarge, UnencodablePayload
from papyra.persistence import PersistedAudit, PersistedDeadLetter
from papyra.persistence._payload_check import fault_in
from papyra.persistence.codec import (
    MAX_RECORD_BYTES,
    MAX_REQUEST_BYTES,
    Room,
    decode,
    encode,
    plain,
)
from tests.actors import event
from tests.extent import some
from tests.persistence.payloads import hostile

MIB = 1024 * 1024
#: Memory that refusing a record may take.
ENOUGH = 700 * MIB
#: In the middle of what is shared: so it is soon too large. Of nothing but brackets it takes long.
TEXT = "x" * 64 * 1024


class Pair(msgspec.Struct):
    left: Any
    right: Any = None


@dataclasses.dataclass
class Twins:
    left: Any
    right: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    left: Any
    right: Any


class Long(enum.Enum):
    TEXT = "x" * MIB


def doubled(join: Callable[[Any, Any], Any], times: int = 60, value: Any = TEXT) -> Any:
    for _ in range(times):
        value = join(value, value)
    return value


def mixed(one: Any, other: Any) -> Any:
    return Pair((one, {"a": [other]}))


def attrs_twins(one: Any, other: Any) -> Any:
    return attrs.make_class("Twins", ["left", "right"])(one, other)


SHARED: dict[str, Callable[[], Any]] = {
    "lists": lambda: doubled(lambda one, other: [one, other]),
    "lists of nothing": lambda: doubled(lambda one, other: [one, other], value=[]),
    "tuples": lambda: doubled(lambda one, other: (one, other)),
    "dicts": lambda: doubled(lambda one, other: {"a": one, "b": other}),
    "structs": lambda: doubled(Pair),
    "dataclasses": lambda: doubled(Twins),
    "dataclasses with slots": lambda: doubled(Slotted),
    "attrs classes": lambda: doubled(attrs_twins),
    # Each time is four levels, of which there may be a hundred.
    "a mixture": lambda: [doubled(mixed, times=24)] * 200,
    "a broad list": lambda: [[[[[1] * 1000] * 1000] * 1000] * 1000],
    "empty lists": lambda: [[[[]] * 10_000] * 10_000],
    "texts": lambda: ["x" * MIB] * 1000,
    "texts in a dict": lambda: dict.fromkeys(map(str, range(1000)), "x" * MIB),
    "texts in a small dict": lambda: dict.fromkeys("abcdefgh", "x" * 50 * MIB),
    "texts to be escaped": lambda: dict.fromkeys("abcdefgh", "\0" * 10 * MIB),
    "bytes": lambda: [b"x" * MIB] * 1000,
    "a memoryview": lambda: [memoryview(b"x" * MIB)] * 1000,
    "names": lambda: [{"x" * MIB: 1}] * 1000,
    "long integers": lambda: [10**1000] * 100_000,
    "decimals": lambda: [decimal.Decimal("1" * MIB)] * 1000,
    "raw JSON": lambda: [msgspec.Raw(b'"' + b"x" * MIB + b'"')] * 1000,
    "members of enumerations": lambda: [Long.TEXT] * 1000,
    "one text": lambda: "x" * (MAX_RECORD_BYTES + 1),
}
SOME = some(SHARED, every=5)
#: Records that are encoded together, and what that is called.
CROWDS = {1: "alone", 12: "in a run", 100: "in a crowd"}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let no more memory be had than refusing takes, be it an endless list that is written out."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ENOUGH, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", SOME)
def test_a_payload_that_is_too_large_once_written_out_is_refused(shape: str) -> None:
    with pytest.raises(RecordTooLarge, match="64 MiB") as caught:
        encode([event(payload=SHARED[shape]())])
    assert isinstance(caught.value, UnencodablePayload)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("crowd", [12, 100], ids=["in a run", "in a crowd"])
@pytest.mark.parametrize("shape", ["lists", "structs", "texts in a small dict", "names"])
def test_a_payload_that_is_too_large_is_refused_among_others(shape: str, crowd: int) -> None:
    records = [event(number) for number in range(crowd)]
    records[-1] = event(payload=SHARED[shape]())
    with pytest.raises(RecordTooLarge, match="64 MiB"):
        encode(records)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", SOME)
def test_what_is_too_large_is_no_payload(shape: str) -> None:
    payload = SHARED[shape]()
    with pytest.raises(UnencodablePayload):
        plain(payload, Room(MIB))
    assert fault_in(payload)


@pytest.mark.usefixtures("little_memory")
def test_records_of_the_other_kinds_have_the_limit_too() -> None:
    payload = SHARED["lists"]()
    for record in (
        PersistedAudit("shop", payload, 1.0),
        PersistedDeadLetter("shop", "shop/desk", "Sell", payload, False, 1.0),
    ):
        with pytest.raises(RecordTooLarge):
            encode([record])


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", SOME)
def test_a_message_that_is_too_large_becomes_a_dead_letter_that_says_what_it_was(
    shape: str,
) -> None:
    (line,) = encode([event(payload=storable(Pair(SHARED[shape]())))])
    assert decode(line, 1).payload.keys() == {"repr"}
    assert "Pair" in decode(line, 1).payload["repr"]


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", ["lists", "dicts", "structs", "texts", "texts in a small dict"])
def test_what_is_restored_has_a_limit_too(shape: str) -> None:
    with pytest.raises(RecordTooLarge, match="256 MiB"):
        encode([event(payload=SHARED[shape]())], restored=True)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("field", ["system_id", "actor_address", "event_type"])
@pytest.mark.parametrize("crowd", some(CROWDS, every=2), ids=CROWDS.get)
def test_other_fields_that_are_too_large_are_refused(field: str, crowd: int) -> None:
    large = "x" * 100 * MIB
    with pytest.raises(RecordTooLarge):
        encode([event(number, **{field: large}) for number in range(crowd)])


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", some(["payload", "event_type"], every=2))
def test_records_that_are_too_large_together_are_refused(kind: str) -> None:
    large = "x" * MIB
    records = [event(number, **{kind: large}) for number in range(300)]
    with pytest.raises(RecordTooLarge, match="256 MiB"):
        encode(records)
    with pytest.raises(RecordTooLarge, match="256 MiB"):
        encode(records * 10, restored=True)
    assert MAX_REQUEST_BYTES == 256 * MIB


@pytest.mark.usefixtures("little_memory")
def test_something_wrong_in_what_is_too_large_is_found_or_not_but_it_is_refused() -> None:
    for payload in ([object(), SHARED["lists"]()], [SHARED["lists"](), object()]):
        with pytest.raises(UnencodablePayload):
            encode([event(payload=payload)])


@pytest.mark.parametrize("crowd", some([12, 1], every=2), ids=CROWDS.get)
def test_the_largest_record_is_stored_and_one_byte_more_is_not(crowd: int) -> None:
    less = len(encode([event(payload="")])[0])
    others = [event(number) for number in range(1, crowd)]
    largest = "x" * (MAX_RECORD_BYTES - less)
    line = encode([event(payload=largest), *others])[0]
    assert len(line) == MAX_RECORD_BYTES
    assert decode(line, 1).payload == largest
    with pytest.raises(RecordTooLarge):
        encode([event(payload=largest + "x"), *others])
    assert len(encode([event(payload=largest + "x")], restored=True)[0]) == MAX_RECORD_BYTES + 1


@pytest.mark.parametrize("crowd", [1, 12, 100], ids=["alone", "in a run", "in a crowd"])
def test_parts_that_are_shared_come_back_as_often_as_they_are_there(crowd: int) -> None:
    row = ["x" * 100, {"n": 1.5}, None]
    payload: Any = {"rows": [row] * 1000, "again": [[row] * 10] * 10}
    for line in encode([event(number, payload=payload) for number in range(crowd)]):
        assert decode(line, 1).payload == payload


def test_a_users_error_that_looks_like_a_full_buffer_is_not_taken_for_one() -> None:
    for payload in hostile(BufferError("mine")):
        with pytest.raises(InvalidRecord) as caught:
            encode([event(payload=payload)])
        assert not isinstance(caught.value, RecordTooLarge)


@pytest.mark.parametrize("size", [0, 10, 5000, 100_000, 2 * MIB])
def test_a_record_that_was_refused_takes_nothing_from_those_after_it(size: int) -> None:
    for _ in range(3):
        with pytest.raises(RecordTooLarge):
            encode([event(payload=SHARED["lists"]())])
        (line,) = encode([event(payload=["x" * size])])
        assert decode(line, 1).payload == ["x" * size]
