from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import itertools
import math
import random
import subprocess
import sys
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papyra.exceptions import InvalidRecord, StoreError, UnencodablePayload
from papyra.persistence import PersistedAudit, PersistedDeadLetter
from papyra.persistence._payload_check import fault_in
from papyra.persistence.codec import (
    _COUNTS_C_APART,
    MAX_DEPTH,
    decode,
    decode_numbered,
    encode,
    may_be_a_record,
    plain,
)
from tests.actors import event
from tests.extent import some
from tests.persistence import payloads
from tests.persistence.payloads import (
    BAD_JSON,
    ERRORS,
    GOOD_JSON,
    Endless,
    HostileZone,
    Refused,
    Unnamed,
    comes_back_as,
    hostile,
    unhashable,
    without,
)


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
def test_encoded_records_are_one_line_each_and_decode_to_the_same(payloads: list[Any]) -> None:
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
    assert fault_in(payload)


def test_a_payload_nested_too_deeply_is_refused() -> None:
    with pytest.raises(UnencodablePayload, match="nested too deeply"):
        encode([event(payload=deep)])


@given(st.integers(0), st.sampled_from([1, 12]))
def test_a_random_payload_is_either_refused_or_comes_back_from_the_codec(
    seed: int, crowd: int
) -> None:
    payload = payloads.payload(random.Random(seed))
    records = [event(payload=payload), *(event(number) for number in range(1, crowd))]
    try:
        expected = comes_back_as(payload)
    except Refused:
        with pytest.raises(UnencodablePayload) as caught:
            encode(records)
        assert str(caught.value).startswith(caught.value.path)
        with pytest.raises(UnencodablePayload):
            plain(payload)
    else:
        lines = encode(records)
        record = decode(lines[0], 1)
        assert record == msgspec.structs.replace(records[0], payload=expected, seq=1)
        assert plain(payload) == expected
        assert not any(b"\n" in line or b"\r" in line for line in lines)


def test_a_decoded_payload_can_be_converted_to_its_original_type() -> None:
    kept: list[Any] = [
        payloads.Tagged(1),
        payloads.Tagged([2], 4),
        payloads.Array("a"),
        payloads.Open(1, 3),
        payloads.Slotted(None),
        payloads.Number.TWO,
        payloads.Pair(1, 2),
        datetime.datetime(2020, 6, 1, 2, 30, tzinfo=payloads.AMSTERDAM),
        datetime.timedelta(days=-1, microseconds=1),
        decimal.Decimal("1E+10"),
        uuid.UUID(int=7),
        2**64 - 1,
    ]
    for value in kept:
        (data,) = encode([event(payload=value)])
        assert msgspec.convert(decode(data, 1).payload, type(value)) == value


@pytest.mark.parametrize("crowd", [1, 12], ids=["alone", "in a run"])
@pytest.mark.parametrize("data", BAD_JSON, ids=lambda data: repr(data[:20]))
def test_raw_json_that_would_not_come_back_is_refused(data: bytes, crowd: int) -> None:
    records = [event(number) for number in range(crowd)]
    records[0] = event(payload={"a": [msgspec.Raw(data)]})
    with pytest.raises(UnencodablePayload, match="is raw JSON") as caught:
        encode(records)
    assert caught.value.path == "payload['a'][0]"


@pytest.mark.parametrize("data", [data for data, _ in GOOD_JSON], ids=lambda data: repr(data[:20]))
def test_raw_json_comes_back_as_what_it_says(data: bytes) -> None:
    (line,) = encode([event(payload=[msgspec.Raw(data)])])
    assert decode(line, 1).payload == [msgspec.json.decode(data)]


class Nan(enum.Enum):
    NAN = math.nan


class Own(set[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(())


@dataclasses.dataclass
class Actor:
    """What tells its attributes as it likes."""

    x: int = 1

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("crowd", [1, 12], ids=["alone", "in a run"])
@pytest.mark.parametrize(
    ("value", "path", "wrong"),
    [
        ({1: "a", "1": "b"}, "", "keys that are one in JSON: 1 and '1'"),
        ({payloads.Odd.ONE: 1, payloads.Odd.TEXT: 2}, "", "keys that are one"),
        ({payloads.Unequal("a"): 1, "a": 2}, "", "keys that are one"),
        ({uuid.UUID(int=1): 1, str(uuid.UUID(int=1)): 2}, "", "keys that are one"),
        ({datetime.date(2020, 1, 1): 1, "2020-01-01": 2}, "", "keys that are one"),
        ({b"a": 1, "YQ==": 2}, "", "keys that are one"),
        ({math.nan: 1}, "", "the key nan"),
        ({decimal.Decimal("NaN"): 1}, "", "the key Decimal"),
        ({True: 1}, "", "keys are supported"),
        ({None: 1}, "", "keys are supported"),
        (Nan.NAN, "", "is nan"),
        (payloads.Line([Nan.NAN]), ".x[0]", "is nan"),
        (payloads.Open(1, math.inf), "._y", "is inf"),
        (decimal.Decimal("NaN"), "", "is Decimal"),
        (decimal.Decimal("-Infinity"), "", "is Decimal"),
        (datetime.datetime(1900, 1, 1, tzinfo=payloads.AMSTERDAM), "", "seconds off UTC"),
        (without(payloads.Line(1), "y"), ".y", "is not set"),
        (without(payloads.Open(1), "_y"), "._y", "is not set"),
        (without(payloads.Slotted(1), "x"), ".x", "is not set"),
        (Own({1}), "", "makes up what it holds"),
        (Actor(), "", "makes up what it holds"),
        (10**5000, "", "is <int of 16610 bits>"),
        (-(10**4299), "", "of over 4300 digits, sign included"),
        (payloads.Line(["1" * 9000, -(10**4299)]), ".x[1]", "of over 4300 digits, sign included"),
        ({10**5000: 1}, "", "has the key <int of 16610 bits>, of over 4300 digits"),
        ((1 for _ in ()), "", "is generator"),
        (msgspec.Raw(b"1,2"), "", "is raw JSON that can't be read"),
    ],
    ids=map(str, itertools.count()),
)
def test_a_value_that_would_not_come_back_is_refused_with_its_path(
    value: Any, path: str, wrong: str, crowd: int
) -> None:
    records = [event(number) for number in range(crowd)]
    records[-1] = event(payload={"here": value})
    with pytest.raises(UnencodablePayload, match=wrong) as caught:
        encode(records)
    assert caught.value.path == f"payload['here']{path}"
    assert fault_in(value)


def test_a_payload_that_is_unset_is_refused() -> None:
    for crowd in (1, 12):
        with pytest.raises(UnencodablePayload, match="payload is"):
            encode([event(payload=msgspec.UNSET)] * crowd)


@pytest.mark.skipif(not payloads.ATTRS, reason="attrs is not installed")
def test_attributes_of_attrs_classes_do_not_vanish() -> None:
    defined, loose, private = payloads.ATTRS
    with pytest.raises(UnencodablePayload, match="is private") as caught:
        encode([event(payload=[private(1)])])
    assert caught.value.path == "payload[0]._y"
    with pytest.raises(UnencodablePayload, match="is nan") as caught:
        encode([event(payload=defined(1, math.nan))])
    assert caught.value.path == "payload.y"
    with pytest.raises(UnencodablePayload, match="is not set"):
        encode([event(payload=without(defined(1), "y"))])
    odd = loose(1)
    vars(odd)['x":1,"y'] = 2
    with pytest.raises(UnencodablePayload, match="has an attribute"):
        encode([event(payload=odd)])


def test_an_integer_of_more_than_4300_digits_is_refused_in_a_payload() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        for crowd in (1, 12):
            with pytest.raises(UnencodablePayload, match="4300 digits"):
                encode([event(payload=[1, 10**4300])] * crowd)
            assert len(encode([event(payload=[1, 10**4299])] * crowd)) == crowd
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize("crowd", [1, 12], ids=["alone", "in a run"])
@pytest.mark.parametrize(
    "value",
    [10**4299, -(10**4298), {-(10**4299): "a key"}, "9" * 9000, ["-" + "9" * 9000, 10**4299]],
    ids=map(str, itertools.count()),
)
def test_the_longest_integers_and_texts_of_digits_come_back_from_the_codec(
    value: Any, crowd: int
) -> None:
    records = [event(number) for number in range(crowd)]
    records[-1] = event(payload={"here": value})
    (*_, last) = encode(records)
    assert decode(last, 1).payload == comes_back_as({"here": value})


#: Ways to put a value into another one, one level deeper.
NESTS: list[Callable[[Any], Any]] = [
    lambda part: [part],
    lambda part: (part,),
    lambda part: {"a": part},
    lambda part: {1: part},
    payloads.Line,
    payloads.Array,
    payloads.Open,
    payloads.Slotted,
    *payloads.ATTRS[:2],
]


def nested(depth: int, seed: int) -> Any:
    """Make a payload of so many levels, of all kinds, with raw JSON at the bottom."""
    r = random.Random(seed)
    value: Any = msgspec.Raw(b"[" * (depth // 3) + b"]" * (depth // 3)) if seed % 2 else [[]]
    for _ in range(depth - (depth // 3 if seed % 2 else 2)):
        value = r.choice(NESTS)(value)
    return value


@pytest.mark.parametrize("crowd", [1, 12], ids=["alone", "in a run"])
def test_the_greatest_depth_is_the_same_however_a_payload_nests(crowd: int) -> None:
    for seed in range(8):
        lines = encode([event(payload=nested(MAX_DEPTH, seed))] * crowd)
        assert decode(lines[0], 1).payload == comes_back_as(nested(MAX_DEPTH, seed))
        for depth in (MAX_DEPTH + 1, MAX_DEPTH + 50, 990, 1200):
            with pytest.raises(UnencodablePayload, match="nested too deeply"):
                encode([event(payload=nested(depth, seed))] * crowd)


def deep_in_the_stack(left: int, function: Callable[[], Any]) -> Any:
    """Call a function with so many frames left of a thread's stack.

    That of the tests themselves holds calls from C, too, which no frame shows.
    """

    def descend(levels: int) -> Any:
        return function() if levels <= 0 else descend(levels - 1)

    def call() -> Any:
        frame, depth = sys._getframe(), 0
        while frame.f_back is not None:
            frame, depth = frame.f_back, depth + 1
        return descend(sys.getrecursionlimit() - depth - left)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def test_a_payload_of_the_greatest_depth_is_encoded_and_decoded_deep_in_the_stack() -> None:
    record = event(payload=nested(MAX_DEPTH, 1))
    (line,) = encode([record])
    payload = decode(line, 1).payload
    for left in (12, 20, 50, 90, 150, 300):
        assert deep_in_the_stack(left, lambda: decode(line, 1)).payload == payload
        assert deep_in_the_stack(left, lambda: decode_numbered([line] * 3))[2].payload == payload
    for left in (40, 90, 150, 300):
        assert deep_in_the_stack(left, lambda: encode([record])) == [line]
        assert deep_in_the_stack(left, lambda: encode([record] * 12)) == [line] * 12
        with pytest.raises(UnencodablePayload, match="nested too deeply"):
            deep_in_the_stack(left, lambda: encode([event(payload=nested(MAX_DEPTH + 1, 1))]))


def test_decoding_bytes_nested_too_deeply_is_an_error_of_that_record() -> None:
    line = encode([event(payload="here")])[0]
    for depth in (1200, 100_000):
        deep_line = line.replace(b'"here"', b"[" * depth + b"]" * depth)
        for read in (
            lambda data=deep_line: decode(data, 5),
            lambda d=deep_line: decode_numbered([d]),
        ):
            with pytest.raises(StoreError, match="can't be read"):
                read()
        assert may_be_a_record(deep_line)
    assert not may_be_a_record(b'{"kind":1}')
    half_deep = line.replace(b'"here"', b"[" * 900 + b"]" * 900)
    assert deep_in_the_stack(100, lambda: decode(half_deep, 1)).actor_address == "shop/order-1"


LIMITS = """
import sys, threading
limit, stack, counts_apart = map(int, sys.argv[1:])
from papyra.exceptions import StoreError, UnencodablePayload
from papyra.persistence import PersistedEvent, codec
def check():
    event = PersistedEvent("s", "s/a", "E", "here", 1.0)
    deep = payload = []
    for depth in range(99):
        deep = [deep]
    line, = codec.encode([PersistedEvent("s", "s/a", "E", deep, 1.0)])
    assert codec.decode(line, 1).payload == deep
    deeper = line.replace(b"[", b"[" * 2000).replace(b"]", b"]" * 2000)
    for read in (codec.decode, lambda data, seq: codec.decode_numbered([data])):
        try:
            read(deeper, 1)
        except StoreError:
            pass
        else:
            raise AssertionError
    assert codec.may_be_a_record(deeper)
    for _ in range(40_000):
        deep = [deep]
    itself = []
    itself += [itself, {"a": itself}]
    for payload in (deep, itself, {"a": (deep, itself)}):
        for crowd in (1, 12):
            try:
                codec.encode([PersistedEvent("s", "s/a", "E", payload, 1.0)] * crowd)
            except UnencodablePayload:
                pass
            else:
                raise AssertionError
    while deep:
        deep = deep.pop()
threading.stack_size(stack)
sys.setrecursionlimit(limit)
codec._COUNTS_C_APART = counts_apart
thread = threading.Thread(target=check)
errors = []
threading.excepthook = errors.append
thread.start()
thread.join()
sys.exit(bool(errors) and repr(errors))
"""


# A Python that counts calls of C apart can't be taken for one that does not.
@pytest.mark.parametrize("counts_apart", sorted({_COUNTS_C_APART, True}))
@pytest.mark.parametrize("limit", some([200, 1000, 10**6], every=2))
@pytest.mark.parametrize("stack", [1024 * 1024, 0], ids=["small stack", "default stack"])
def test_no_recursion_limit_lets_the_codec_overflow_the_stack(
    limit: int, stack: int, counts_apart: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITS, str(limit), str(stack), str(int(counts_apart))],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("crowd", [1, 12], ids=["alone", "in a run"])
def test_a_payload_that_raises_while_it_is_encoded_is_an_invalid_record(
    error: BaseException, crowd: int
) -> None:
    unhashables = [unhashable(error), {"a": unhashable(error)}, {"a": [unhashable(error), 1]}]
    others = [Unnamed(), Endless(), [Endless([object()])], Unnamed]
    for payload in [*hostile(error), *unhashables, *others]:
        if type(payload) is Endless:
            assert encode([event(payload=payload)])[0].count(b"[]") == 1  # as it is, not as it says
            continue
        records = [event(number) for number in range(crowd)]
        records[-1] = event(payload=payload)
        with pytest.raises(InvalidRecord):
            encode(records)
        with pytest.raises(UnencodablePayload):
            plain(payload)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_program_passes_through_the_codec(
    error: type[BaseException],
) -> None:
    payload = datetime.datetime(2020, 1, 1, tzinfo=HostileZone(error()))
    for crowd in (1, 12):
        with pytest.raises(error):
            encode([event(payload=payload)] * crowd)


audit = PersistedAudit("shop", {}, 1.0)
letter = PersistedDeadLetter("shop", "shop/a", "str", "x", True, 1.0)


@pytest.mark.parametrize("crowd", [1, 20, 100], ids=["alone", "in a run", "in a crowd"])
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
        (event(timestamp=10**400), "PersistedEvent.timestamp is Unix time"),
        (event(timestamp=-(10**400)), "PersistedEvent.timestamp is Unix time"),
        (event(timestamp=decimal.Decimal(1)), "PersistedEvent.timestamp is Unix time"),
        (event(actor_address=payloads.Text("a/b")), "actor_address is a str, not Text"),
        (event(revision=0), "revision is a whole number from 1"),
        (event(revision="1"), "revision is a whole number from 1"),
        (event(event_version=0), "event_version is a whole number from 1"),
        (event(event_version=True), "event_version is a whole number from 1"),
        (event(metadata=[]), "metadata is a dict of up to 64 strings"),
        (event(metadata=None), "metadata is a dict of up to 64 strings"),
        (event(metadata={"id": 1}), "metadata is a dict of up to 64 strings"),
        (event(event_type="\ud800"), "event_type is str"),
        (without(event(), "payload"), "can't be encoded: .*payload"),
        (without(event(), "system_id"), "can't be encoded: .*system_id"),
        (without(event(), "seq"), "can't be encoded: .*seq"),
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


def test_audits_and_dead_letters_are_decoded_to_the_same() -> None:
    for record in (audit, letter):
        (data,) = encode([record])
        assert decode(data, 3) == msgspec.structs.replace(record, seq=3)


def test_the_position_of_a_record_in_another_store_is_not_encoded() -> None:
    for crowd in (1, 20):
        for data in encode([event(seq=99)] * crowd):
            assert b"seq" not in data


@pytest.mark.parametrize("time", [5, -5, 2**53 + 1, 10**300, -0.5])
def test_a_time_that_is_a_whole_number_is_encoded(time: float) -> None:
    for crowd in (1, 12):
        data = encode([event(timestamp=time)] * crowd)[0]
        assert decode(data, 1).timestamp == float(time)


NOT_UTF8 = encode([event()])[0].replace(b"shop", b"sh\xe5p")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"kind":"other"}', b'{"kind":"event"}', NOT_UTF8]
)
def test_decoding_bytes_that_are_no_record_is_an_error_with_the_position(data: bytes) -> None:
    with pytest.raises(StoreError, match="the bytes of record 5 can't be read"):
        decode(data, 5)
