from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
from collections import OrderedDict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papyra.exceptions import InvalidRecord, StoreError, UnencodablePayload
from papyra.persistence import PersistedAudit, PersistedDeadLetter
from papyra.persistence.codec import decode, encodable, encode
from tests.actors import event


class Line(msgspec.Struct):
    price: Any


@dataclasses.dataclass
class Order:
    lines: list[Line]


class Colour(enum.Enum):
    RED = "red"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@given(st.lists(json_values, min_size=1, max_size=20))
def test_what_is_encoded_is_read_back_the_same_on_one_line_each(payloads: list[Any]) -> None:
    records = [event(number, payload=payload) for number, payload in enumerate(payloads)]
    for record, data in zip(records, encode(records), strict=True):
        assert b"\n" not in data
        assert decode(data, 7) == msgspec.structs.replace(record, seq=7)


@pytest.mark.parametrize(
    ("payload", "read_back"),
    [
        (Order([Line(1)]), {"lines": [{"price": 1}]}),
        ((1, 2), [1, 2]),
        (frozenset({3}), [3]),
        ({1: "one"}, {"1": "one"}),
        (OrderedDict(a=1), {"a": 1}),
        (Colour.RED, "red"),
        (decimal.Decimal("1.10"), "1.10"),
        (datetime.date(2013, 1, 1), "2013-01-01"),
        (b"\x00", "AA=="),
        (2**70, 2**70),
        (None, None),
        (msgspec.Raw(b'{"a": 1}'), {"a": 1}),
        ("line\nbreak", "line\nbreak"),
    ],
)
def test_payloads_are_read_back_as_plain_data(payload: Any, read_back: Any) -> None:
    (data,) = encode([event(payload=payload)])
    assert decode(data, 1).payload == read_back


cycle: list[Any] = []
cycle.append({"again": cycle})
deep: Any = 0
for _ in range(100_000):
    deep = [deep]


@pytest.mark.parametrize("crowd", [1, 20], ids=["alone", "in a run"])
@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (object(), "payload"),
        ({"items": [1, 2, {"price": object()}]}, "payload['items'][2]['price']"),
        (Order([Line(1), Line(object())]), "payload.lines[1].price"),
        ({"x": math.nan}, "payload['x']"),
        ([1.0, [math.inf]], "payload[1][0]"),
        ((-math.inf,), "payload[0]"),
        ({"name": "\udcff"}, "payload['name']"),
        ({"a": {(1, 2): 3}}, "payload['a']"),
        ({"f": len}, "payload['f']"),
        (msgspec.Raw(b"[1,\n2]"), "payload"),
        (cycle, "payload[0]['again']"),
        (1j, "payload"),
    ],
)
def test_a_payload_that_json_can_not_hold_is_refused_with_the_path_to_it(
    payload: Any, path: str, crowd: int
) -> None:
    records = [event(number) for number in range(crowd)]
    records[-1] = event(payload=payload)
    with pytest.raises(UnencodablePayload) as caught:
        encode(records)
    assert caught.value.path == path
    assert str(caught.value).startswith(path)
    assert not encodable(payload)


def test_a_payload_nested_too_deeply_is_refused() -> None:
    with pytest.raises(UnencodablePayload, match="nested too deeply"):
        encode([event(payload=deep)])


audit = PersistedAudit("shop", {}, 1.0)
letter = PersistedDeadLetter("shop", "shop/a", "str", "x", True, 1.0)


@pytest.mark.parametrize("crowd", [1, 20], ids=["alone", "in a run"])
@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (event(system_id=1), "PersistedEvent.system_id is a str, not int 1"),
        (event(actor_address=None), "PersistedEvent.actor_address is a str"),
        (event(event_type=b"x"), "PersistedEvent.event_type is a str"),
        (event(timestamp="now"), "PersistedEvent.timestamp is Unix time in seconds, not str"),
        (event(timestamp=True), "PersistedEvent.timestamp is Unix time"),
        (event(timestamp=math.nan), "PersistedEvent.timestamp is Unix time"),
        (event(timestamp=math.inf), "PersistedEvent.timestamp is Unix time"),
        (event(system_id="\udcff"), "system_id is str"),
        (msgspec.structs.replace(audit, timestamp=None), "PersistedAudit.timestamp"),
        (msgspec.structs.replace(letter, expects_reply=1), "expects_reply is a bool"),
        (msgspec.structs.replace(letter, target=1), "PersistedDeadLetter.target is a str"),
        ("a string", "a record is a PersistedEvent, a PersistedAudit or a PersistedDeadLetter"),
        (None, "a record is a PersistedEvent"),
        ({"kind": "event"}, "a record is a PersistedEvent"),
    ],
)
def test_a_record_that_could_not_be_read_again_is_refused(
    record: Any, complaint: str, crowd: int
) -> None:
    records = [event(number) for number in range(crowd)]
    records[-1] = record
    with pytest.raises(InvalidRecord, match=complaint):
        encode(records)


def test_the_other_kinds_are_read_back_too() -> None:
    for record in (audit, letter):
        (data,) = encode([record])
        assert decode(data, 3) == msgspec.structs.replace(record, seq=3)


def test_the_seq_of_another_store_is_not_written() -> None:
    for crowd in (1, 20):
        for data in encode([event(seq=99)] * crowd):
            assert b"seq" not in data


def test_whole_numbers_are_times_too() -> None:
    (data,) = encode([event(timestamp=5)])
    assert decode(data, 1).timestamp == 5.0


NOT_UTF8 = encode([event()])[0].replace(b"shop", b"sh\xe5p")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"kind":"other"}', b'{"kind":"event"}', NOT_UTF8]
)
def test_bytes_that_are_no_record_are_an_error_that_says_which(data: bytes) -> None:
    with pytest.raises(StoreError, match="the bytes of record 5 can't be read"):
        decode(data, 5)
