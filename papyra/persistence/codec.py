"""Records to bytes and back: one JSON object a record, the same in every backend.

A record takes up to 64 MiB as JSON, and the records of one request up to 256 MiB together. What
is over that is refused before it is written out: values that share their parts may be small in
memory and, as text, larger than any.
"""

from __future__ import annotations

import math
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from papyra._fresh_stack import on_fresh_stack
from papyra._safe_repr import MEANT, shown, text_of, type_name
from papyra.exceptions import InvalidRecord, RecordTooLarge, StoreError, UnencodablePayload
from papyra.persistence._bounded_json import (
    MAX_RECORD_BYTES,
    MAX_REQUEST_BYTES,
    json_within,
    too_large,
)
from papyra.persistence._json_forms import MAX_DIGITS, depth_of, may_hold_long_integer, room_left
from papyra.persistence._payload_check import MAX_DEPTH, Room, come_back, fault_in, said, to_json
from papyra.persistence.records import (
    MAX_VERSION,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)

__all__ = (
    "MAX_DEPTH",
    "MAX_RECORD_BYTES",
    "MAX_REQUEST_BYTES",
    "Room",
    "concerned",
    "concerned_many",
    "decode",
    "decode_many",
    "decode_numbered",
    "decode_run",
    "encode",
    "encode_payload",
    "may_be_a_record",
    "plain",
    "stored_size",
    "to_json",
)

DecodedT = TypeVar("DecodedT")

#: A limit of recursion, and a depth, up to which Python raises before the stack overflows.
_SAFE_RECURSION = 1000
#: From 3.12 on, Python has a limit of its own for calls of C, many times as high.
_COUNTS_C_APART = sys.version_info >= (3, 12)
#: Records that are encoded in one call, at most: a bad one costs its neighbours no more.
_RUN = 1000
#: Records up to which each is tried by itself first.
_FEW = 16
#: Room that a small payload may take up: about its characters, and some for each value.
_SMALL = 4000
#: Records from which on it pays to look at all of their values at once.
_CROWD = 64
#: Characters of a short text, and values of a narrow payload, at most.
_SHORT, _NARROW = 1000, 30
_SHORT_VALUES = list[Annotated[str, msgspec.Meta(max_length=_SHORT)] | int | bool | None]
_SHORT_TYPES = frozenset({str, int, bool, type(None)})
#: Encoded bytes from which on what is there many times is looked at once.
_LARGE = 1024 * 1024
#: Encoded bytes that a message may take to become a dead letter as it is.
_LETTER = 8 * 1024 * 1024
#: Written between the records of a run, as no JSON holds it.
_NEWLINE = msgspec.Raw(b"\n")
_inside: Callable[[bytes], bytes] = operator.itemgetter(slice(1, -1))

_encode: Callable[[object], bytes] = msgspec.json.Encoder().encode
_encode_lines: Callable[[Sequence[Record]], bytes] = msgspec.json.Encoder().encode_lines
_decode: Callable[[bytes | memoryview], Record] = msgspec.json.Decoder(
    PersistedEvent | PersistedAudit | PersistedDeadLetter
).decode
_set = msgspec.structs.force_setattr
_decode_any: Callable[[bytes], Any] = msgspec.json.Decoder().decode


class _Tagged(msgspec.Struct):
    kind: str


class _Concerned(msgspec.Struct, gc=False):
    actor_address: str | None = None
    target: str | None = None
    revision: int | None = None


_decode_concerned = msgspec.json.Decoder(_Concerned).decode
_decode_all_concerned = msgspec.json.Decoder(list[_Concerned]).decode


class _Limits(NamedTuple):
    """How much a record may be."""

    #: levels of containers in each other
    depth: int
    #: encoded bytes
    size: int


_NEW = _Limits(MAX_DEPTH, MAX_RECORD_BYTES)
_RESTORED = _Limits(_SAFE_RECURSION, MAX_REQUEST_BYTES)

_decode_tagged = msgspec.json.Decoder(_Tagged).decode

#: What is around the payload of an event about which nothing is said.
_BEFORE_PAYLOAD, _AFTER_PAYLOAD = _encode(PersistedEvent("", "", "", "@", 0.0)).split(b'"@"')

#: What msgspec raises for bytes that are no record, or are nested too deeply to be read.
_DECODING_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: What the fields of each type of record must be: structs don't check that themselves, and a
#: record that can be written but not read would be lost.
_FIELDS: dict[type, tuple[tuple[str, type], ...]] = {
    PersistedEvent: (("system_id", str), ("actor_address", str), ("event_type", str)),
    PersistedAudit: (("system_id", str),),
    PersistedDeadLetter: (
        ("system_id", str),
        ("target", str),
        ("message_type", str),
        ("expects_reply", bool),
    ),
}
_NUMBERS = frozenset({float, int})
_FIRST_VERSION = 1
_MAX_METADATA, _MAX_METADATA_CHARACTERS = 64, 16 * 1024

#: What a flat payload is made of: dicts, their names, and values. Of them only floats that are not
#: finite do not come back: they are written as ``null``.
_DICTS, _NAMES = frozenset({dict}), frozenset({str})
_NO_NAMES: frozenset[Any] = frozenset()
_FLAT = frozenset({str, int, float, bool, type(None)})


def encode(records: Sequence[Record], *, restored: bool = False) -> list[bytes]:
    """Return each record as a JSON object on one line, without its `seq`.

    Raises `InvalidRecord` for what is no record, or has a field of the wrong type;
    `UnencodablePayload` for a payload that would not come back as `PersistedEvent` says, whatever
    it raises itself; and `RecordTooLarge`, which is one of those, for a record of over
    `MAX_RECORD_BYTES`, or more than `MAX_REQUEST_BYTES` in all. Records that are restored may be
    nested more deeply than new ones, and each as large as a request.
    """
    if len(records) == 1 and (encoded := _encode_small(records[0])) is not None:
        return [encoded]
    room = Room(MAX_REQUEST_BYTES)
    if len(records) <= _RUN:
        return _encode_some(records, restored, room)
    runs = (records[start : start + _RUN] for start in range(0, len(records), _RUN))
    return [encoded for run in runs for encoded in _encode_some(run, restored, room)]


def encode_known(event: PersistedEvent) -> bytes | None:
    """Return an event as `encode` does, whose payload is known to come back.

    Return `None` for one that is not small, or out of the ordinary: `encode` is for these.
    """
    if (
        event.metadata
        or type(event.timestamp) is not float
        or not 0 < (event.revision or 0) <= MAX_VERSION
    ):
        return None
    try:
        encoded = _encode(event)
    except Exception:  # noqa: BLE001 - `encode` says what is wrong
        return None
    # What is not finite is null, and no integer is too long.
    return None if b"null" in encoded or len(encoded) >= MAX_DIGITS else encoded


def encode_payload(payload: object) -> bytes:
    """Return a payload as the JSON that it is in its record. Raises as `encode` does."""
    (encoded,) = encode([PersistedEvent("", "", "", payload, 0.0)])
    return encoded[len(_BEFORE_PAYLOAD) : -len(_AFTER_PAYLOAD)]


def decode(data: bytes | memoryview, seq: int) -> Record:
    """Return the record that `data` holds, with its position.

    Raises `StoreError` when `data` is no record, or nested too deeply to be read.
    """
    try:
        try:
            if _may_overflow():
                _refuse_overflow((data,))
            record = _decode(data)
        except RecursionError:  # here, but perhaps not elsewhere
            (record,) = on_fresh_stack(_decode_all, (data,))
    except _DECODING_ERRORS as error:
        raise StoreError(f"the bytes of record {seq} can't be read: {error}") from error
    # Nobody else has seen this record yet, so it may still be completed, frozen or not. A copy
    # with its seq would cost as much again as the decoding did.
    _set(record, "seq", seq)
    return record


def decode_many(data: Sequence[bytes], seqs: Sequence[int]) -> list[Record]:
    """Return the records that `data` holds, with their positions, at half the cost.

    Raises `StoreError` when one of them is no record, or nested too deeply to be read.
    """
    records = decode_numbered(data)
    deque(map(_set, records, repeat("seq"), seqs), maxlen=0)  # as in `decode`
    return records


def decode_numbered(data: Sequence[bytes]) -> list[Record]:
    """Return the records that `data` holds, each of which names its own `seq`.

    Raises `StoreError` when one of them is no record, or nested too deeply to be read.
    """
    try:
        try:
            return _decode_all(data)
        except RecursionError:
            return on_fresh_stack(_decode_all, data)
    except _DECODING_ERRORS as error:
        raise StoreError(f"there are bytes that can't be read: {error}") from error


def decode_run(data: bytes, decode_all: Callable[[bytes], list[DecodedT]]) -> list[DecodedT]:
    """Return what `decode_all` makes of records that follow each other, with or without newlines.

    Raises what that raises, and `msgspec.DecodeError` for what is nested too deeply for it.
    """
    if (
        _may_overflow()
        and data.count(b"{") + data.count(b"[") > _SAFE_RECURSION
        and depth_of(data) > _SAFE_RECURSION
    ):
        raise _TooDeep("it is nested too deeply")
    return decode_all(data)


def concerned(data: bytes | memoryview) -> tuple[str | None, int | None]:
    """Return the address of the actor that an encoded record concerns, and its revision, if any.

    This takes a third of the time of decoding it. Returns two `None` for what can't be decoded.
    """
    try:
        found = _decode_concerned(data)
    except _DECODING_ERRORS:
        return None, None
    return found.target if found.actor_address is None else found.actor_address, found.revision


def concerned_many(
    data: Sequence[bytes | memoryview],
) -> Sequence[tuple[str | None, int | None]]:
    """Return what `concerned` does for each encoded record, in a third of the time."""
    try:
        found = _decode_all_concerned(b"[%b]" % b",".join(data))
    except _DECODING_ERRORS:
        return list(map(concerned, data))
    return [
        (each.target if each.actor_address is None else each.actor_address, each.revision)
        for each in found
    ]


def may_be_a_record(data: bytes) -> bool:
    """Return whether what `decode` can't read may be a record all the same, for somebody else."""
    try:
        if _may_overflow():
            _refuse_overflow((data,))
        _decode_tagged(data)
    except (_TooDeep, RecursionError):
        return True
    except _DECODING_ERRORS:
        return False
    return True


def plain(payload: object, room: Room | None = None) -> Any:
    """Return a payload as it comes back: plain data, which nobody else holds.

    Raises `UnencodablePayload` for one that does not come back, or takes up more than there is
    `room` for.
    """
    if come_back((payload,), room=room or Room(MAX_RECORD_BYTES)):
        try:
            return _decode_any(json_within(payload, MAX_RECORD_BYTES if room is None else _LETTER))
        except (RecordTooLarge, *MEANT):
            raise
        except BaseException as error:  # whatever a user's object raises
            raise UnencodablePayload(f"JSON has no form for this: {text_of(error)}") from error
    raise UnencodablePayload("this would not come back as it is")


def stored_size(record: Record) -> int:
    """Return how many bytes a record takes that was read."""
    return len(to_json(msgspec.structs.replace(record, seq=None)))


def _encode_small(record: Record) -> bytes | None:
    """Encode an event with a small payload about which nothing is special; else return `None`.

    For one record by itself this takes half the time.
    """
    try:
        if (
            type(record) is not PersistedEvent
            or type(record.system_id) is not str
            or type(record.actor_address) is not str
            or type(record.event_type) is not str
            or type(timestamp := record.timestamp) is not float
            or not math.isfinite(timestamp)
            or record.seq is not None
            or not (
                (
                    (
                        (revision := record.revision) is None
                        or (type(revision) is int and 0 < revision <= MAX_VERSION)
                    )
                    and record.event_version is _FIRST_VERSION
                    and type(metadata := record.metadata) is dict
                    and not metadata
                )
                or _is_versioned(record)
            )
        ):
            return None
        if room_left(record.payload, _SMALL) < 0:
            return None
        encoded = _encode(record)
    except MEANT:
        raise
    except BaseException:  # noqa: BLE001 - the long way says what is wrong
        return None
    # So no integer is too long.
    return encoded if len(encoded) < MAX_DIGITS else None


def _are_flat(payloads: Sequence[Any], encoded: bytes) -> bool:
    """Return whether all payloads are flat dicts of what comes back."""
    return (
        _DICTS.issuperset(map(type, payloads))
        and _NAMES.issuperset(map(type, _NO_NAMES.union(*payloads)))
        and (kinds := set(map(type, chain.from_iterable(map(dict.values, payloads))))) <= _FLAT
        and _are_finite(kinds, encoded)
        and 0 < sys.get_int_max_str_digits() <= MAX_DIGITS
    )


def _are_finite(kinds: set[type], encoded: bytes) -> bool:
    """Return whether flat values of these types are finite; `None` may make it say no."""
    # Without floats nothing is searched, which takes as long as the encoding itself.
    return float not in kinds or b"null" not in encoded


def _encode_some(records: Sequence[Record], restored: bool, room: Room) -> list[bytes]:
    # Events about which nothing is special are encoded in one call. Whatever is out of the
    # ordinary goes the long way, which knows what is wrong and where.
    lines = _encode_crowd(records, room) if len(records) >= _CROWD else None
    if lines is None and len(records) > 1:
        lines = _encode_run(records, room)
    if lines is None:
        lines = _encode_each(records, restored, room)
    if room.left < 0:
        raise too_large(MAX_REQUEST_BYTES, "all that is to be stored together")
    return lines


def _encode_crowd(records: Sequence[Record], room: Room) -> list[bytes] | None:
    """Encode events of one system with few and short plain values; return `None` if one is not.

    Of so many, each takes a fifth less time than with a bound to what is written.
    """
    try:
        first = records[0].payload
        if type(first) is not dict or not _SHORT_TYPES.issuperset(map(type, first.values())):
            return None  # as most that follow are like it
        system_id = records[0].system_id
        payloads = [
            record.payload
            for record in records
            if type(record) is PersistedEvent
            and record.system_id is system_id
            and type(address := record.actor_address) is str
            and len(address) <= _SHORT
            and type(event_type := record.event_type) is str
            and len(event_type) <= _SHORT
            and type(record.timestamp) is float
            and record.seq is None
            and (
                (
                    record.revision is None
                    and record.event_version is _FIRST_VERSION
                    and type(metadata := record.metadata) is dict
                    and not metadata
                )
                or _is_versioned(record)
            )
        ]
        if (
            len(payloads) < len(records)
            or type(system_id) is not str
            or len(system_id) > _SHORT
            or not math.isfinite(sum([record.timestamp for record in records]))
            or not _DICTS.issuperset(map(type, payloads))
        ):
            return None
        names = _NO_NAMES.union(*payloads)
        values = list(chain.from_iterable(map(dict.values, payloads)))
        if (
            not _NAMES.issuperset(map(type, names))
            or max(map(len, names), default=0) > _SHORT
            or len(values) > _NARROW * len(records)
        ):
            return None
        msgspec.convert(values, _SHORT_VALUES)  # raises
        data = _encode_lines(records)
    except MEANT:
        raise
    except BaseException:  # noqa: BLE001 - the long way says what is wrong
        return None
    if may_hold_long_integer(data):
        return None
    room.left -= len(data)
    lines = data.split(b"\n")
    lines.pop()  # what follows the last line: nothing
    return lines


def _encode_run(records: Sequence[Record], room: Room) -> list[bytes] | None:
    """Encode events about which nothing is special; return `None` if something is."""
    try:
        payloads = [
            record.payload
            for record in records
            if type(record) is PersistedEvent
            and type(record.system_id) is str
            and type(record.actor_address) is str
            and type(record.event_type) is str
            and type(record.timestamp) is float
            and record.seq is None
            and (
                (
                    record.revision is None
                    and record.event_version is _FIRST_VERSION
                    and type(metadata := record.metadata) is dict
                    and not metadata
                )
                or _is_versioned(record)
            )
        ]
        if len(payloads) < len(records):
            return None
        if not math.isfinite(sum([record.timestamp for record in records])):
            return None
        if len(records) <= _FEW and (lines := _encode_few(records, payloads)):
            return lines
        # What would overflow the stack must not even be encoded.
        is_checked = _may_overflow()
        if is_checked and not come_back(payloads, once=True):
            return None
        values: list[Any] = [_NEWLINE] * (2 * len(records) - 1)
        values[::2] = records
        data = json_within(values)
        if may_hold_long_integer(data):
            return None
        if not (
            is_checked or _are_flat(payloads, data) or come_back(payloads, once=len(data) > _LARGE)
        ):
            return None
        # Each has a bracket or a comma before and after it.
        lines = list(map(_inside, data.split(b"\n")))
    except MEANT:
        raise
    except BaseException:  # noqa: BLE001 - one record is bad; each is encoded by itself now
        return None
    room.left -= len(data)
    return lines if len(lines) == len(records) else None


def _encode_few(records: Sequence[Record], payloads: Sequence[Any]) -> list[bytes] | None:
    """Encode small events, one after the other; return `None` if one is not small."""
    if any([room_left(payload, _SMALL) < 0 for payload in payloads]):  # noqa: C419 - it is quicker
        return None
    lines: list[bytes] = []
    for record in records:
        encoded = _encode(record)
        if len(encoded) >= MAX_DIGITS:
            return None
        lines.append(encoded)
    return lines


def _encode_each(records: Sequence[Record], restored: bool, room: Room) -> list[bytes]:
    lines: list[bytes] = []
    for record in records:
        encoded = _encode_restored(record) if restored else _encode_one(record)
        lines.append(encoded)
        room.left -= len(encoded)
        if room.left < 0:
            break
    return lines


def _encode_restored(record: Record) -> bytes:
    """Encode a record that was accepted once, by an older program perhaps, at any depth."""
    encoded = _encode_one(record, _RESTORED)
    if encoded.count(b"[") + encoded.count(b"{") > MAX_DEPTH:
        try:
            decode(encoded, 0)
        except StoreError as error:
            raise UnencodablePayload(f"payload can't be read again: {error}") from error
    return encoded


def _encode_one(record: Record, limits: _Limits = _NEW) -> bytes:
    try:
        try:
            return _encode_checked(record, limits)
        except RecursionError:
            return on_fresh_stack(_encode_closely, record, limits)
    except (InvalidRecord, *MEANT):
        raise
    except BaseException as error:
        # Nothing waits here: even a cancellation can only be raised by what is in the record.
        raise InvalidRecord(f"{shown(record)} can't be encoded: {text_of(error)}") from error


def _encode_checked(record: Record, limits: _Limits) -> bytes:
    record = _checked(record)
    encoded = _encode_plain(record, limits)
    return _encode_closely(record, limits) if encoded is None else encoded


def _encode_plain(record: Record, limits: _Limits) -> bytes | None:
    """Encode a record in whose payload nothing is special; return `None` if something is."""
    try:
        payload = record.payload
        if _may_overflow() and not come_back((payload,), limits.depth, once=True):
            return None
        encoded = json_within(record, limits.size)
        if b"\n" in encoded or may_hold_long_integer(encoded):
            return None
        is_large = len(encoded) > _LARGE
        return encoded if come_back((payload,), limits.depth, once=is_large) else None
    except (RecordTooLarge, *MEANT):
        raise
    except BaseException:  # noqa: BLE001 - it is found out more closely what that was
        return None


def _encode_closely(record: Record, limits: _Limits) -> bytes:
    """Encode a record that is out of the ordinary, or say what is wrong with it."""
    record = _checked(record)
    fault = fault_in(record.payload, limits.depth)
    if fault is not None:
        raise fault
    for name, _ in _FIELDS[type(record)]:
        try:
            to_json(getattr(record, name))
        except UnicodeEncodeError as error:
            raise InvalidRecord(
                f"{name} is {said(getattr(record, name))}, which JSON has no form for ({error})"
            ) from error
    try:
        return json_within(record, limits.size)
    except (RecordTooLarge, RecursionError, *MEANT):
        raise
    except BaseException as error:
        raise UnencodablePayload(
            f"payload is {said(record.payload)}, which JSON has no form for ({text_of(error)})",
            path="payload",
        ) from error


def _checked(record: Record) -> Record:
    """Return a record whose fields can be read again, without its `seq`."""
    fields = _FIELDS.get(type(record))
    if fields is None:
        raise InvalidRecord(
            "a record is a PersistedEvent, a PersistedAudit or a PersistedDeadLetter, "
            f"not {said(record)}"
        )
    for name, wanted in fields:
        value = getattr(record, name)
        if type(value) is not wanted:
            raise InvalidRecord(
                f"{type_name(record)}.{name} is a {wanted.__name__}, not {said(value)}"
            )
    if type(record) is PersistedEvent and not _is_versioned(record):
        _refuse_versions(record)
    timestamp = record.timestamp
    if not _is_time(timestamp):
        raise InvalidRecord(
            f"{type_name(record)}.timestamp is Unix time in seconds, not {said(timestamp)}"
        )
    if record.seq is None and type(timestamp) is float:
        return record
    return msgspec.structs.replace(record, seq=None, timestamp=float(timestamp))


def _is_versioned(event: PersistedEvent) -> bool:
    """Return whether revision, version and metadata are of the right types and ranges."""
    revision, version, metadata = event.revision, event.event_version, event.metadata
    return (
        (revision is None or (type(revision) is int and 0 < revision <= MAX_VERSION))
        and (type(version) is int and 0 < version <= MAX_VERSION)
        and type(metadata) is dict
        and (not metadata or fits_in_metadata(metadata))
    )


def fits_in_metadata(metadata: Mapping[str, str]) -> bool:
    """Return whether an event may have this metadata: strings by their names, and not too many."""
    room = _MAX_METADATA_CHARACTERS
    for name, value in metadata.items():
        if type(name) is not str or type(value) is not str:
            return False
        room -= len(name) + len(value)
    return room >= 0 and len(metadata) <= _MAX_METADATA


def _refuse_versions(event: PersistedEvent) -> None:
    for name in ("revision", "event_version"):
        value = getattr(event, name)
        if (type(value) is not int or not 0 < value <= MAX_VERSION) and (
            (name, value) != ("revision", None)
        ):
            raise InvalidRecord(
                f"PersistedEvent.{name} is a whole number from 1 to {MAX_VERSION}, "
                f"not {said(value)}"
            )
    raise InvalidRecord(
        f"PersistedEvent.metadata is a dict of up to {_MAX_METADATA} strings by their names, of "
        f"{_MAX_METADATA_CHARACTERS} characters in all, not {said(event.metadata)}"
    )


def _is_time(value: object) -> bool:
    try:
        return type(value) in _NUMBERS and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond all floats
        return False


def _may_overflow() -> bool:
    """Return whether the stack may overflow before Python raises `RecursionError`."""
    return _COUNTS_C_APART or sys.getrecursionlimit() > _SAFE_RECURSION


def _decode_all(data: Sequence[bytes | memoryview]) -> list[Record]:
    if _may_overflow():
        _refuse_overflow(data)
    return list(map(_decode, data))


class _TooDeep(msgspec.DecodeError):
    """What must not even be decoded."""


def _refuse_overflow(data: Iterable[bytes | memoryview]) -> None:
    """Raise `_TooDeep` for what would overflow the stack."""
    for each in data:
        if len(each) > 2 * _SAFE_RECURSION and depth_of(bytes(each)) > _SAFE_RECURSION:
            raise _TooDeep("it is nested too deeply")
