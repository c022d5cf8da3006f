"""Records to bytes and back: one JSON object a record, the same in every backend."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from papyra.exceptions import InvalidRecord, StoreError, UnencodablePayload
from papyra.persistence.records import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)

__all__ = ("decode", "encodable", "encode")

_encode: Callable[[object], bytes] = msgspec.json.Encoder().encode
_decode: Callable[[bytes | memoryview], Record] = msgspec.json.Decoder(
    PersistedEvent | PersistedAudit | PersistedDeadLetter
).decode

_TEXT = frozenset({str})
_TIME = frozenset({float, int})
_FLAG = frozenset({bool})
#: What the fields of each type of record must be: structs don't check that themselves, and a
#: record that can be written but not read would be lost.
_FIELDS: dict[type, dict[str, frozenset[type]]] = {
    PersistedEvent: {
        "system_id": _TEXT,
        "actor_address": _TEXT,
        "event_type": _TEXT,
        "timestamp": _TIME,
    },
    PersistedAudit: {"system_id": _TEXT, "timestamp": _TIME},
    PersistedDeadLetter: {
        "system_id": _TEXT,
        "target": _TEXT,
        "message_type": _TEXT,
        "expects_reply": _FLAG,
        "timestamp": _TIME,
    },
}
_GETTERS = {
    record_type: [(attrgetter(name), allowed) for name, allowed in fields.items()]
    for record_type, fields in _FIELDS.items()
}
#: Shortens, and survives a ``__repr__`` that raises.
_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = 80
_timestamp = attrgetter("timestamp")
_seq = attrgetter("seq")


def encode(records: Sequence[Record]) -> list[bytes]:
    """Return each record as a JSON object on one line, without its `seq`.

    Raises `InvalidRecord` for what is no record, or has a field of the wrong type, and
    `UnencodablePayload` for a payload that JSON has no form for: NaN and the infinities too, which
    would otherwise come back as null. A `msgspec.Raw` in a payload is taken at its word.
    """
    # A batch is checked a column at a time, at the speed of C. Which record is wrong, and where in
    # it, is worth the time only once something is known to be.
    if not _well_formed(records):
        for record in records:
            _check(record)
    if any(map(_seq, records)):
        records = [msgspec.structs.replace(record, seq=None) for record in records]
    try:
        encoded = list(map(_encode, records))
    except (TypeError, ValueError, RecursionError) as error:
        for record in records:
            for name in record.__struct_fields__:
                _find_unencodable(getattr(record, name), name)
        raise InvalidRecord(f"a record can't be encoded: {error}") from error
    joined = b"\n".join(encoded)
    if b"null" in joined or joined.count(b"\n") >= len(encoded) > 0:
        for record in records:
            _find_unencodable(record.payload, "payload")
    return encoded


def decode(data: bytes | memoryview, seq: int) -> Record:
    """Return the record that `data` holds, with its position.

    Raises `StoreError` when `data` is no record.
    """
    try:
        record = _decode(data)
    except msgspec.DecodeError as error:
        raise StoreError(f"the bytes of record {seq} can't be read: {error}") from error
    # Nobody else has seen this record yet, so it may still be completed, frozen or not. A copy
    # with its seq would cost as much again as the decoding did.
    msgspec.structs.force_setattr(record, "seq", seq)
    return record


def encodable(value: object) -> bool:
    """Return whether `value` could be a payload."""
    try:
        _find_unencodable(value, "payload")
    except UnencodablePayload:
        return False
    return True


def _well_formed(records: Sequence[Record]) -> bool:
    for record_type in set(map(type, records)):
        getters = _GETTERS.get(record_type)
        if getters is None:
            return False
        same = [record for record in records if type(record) is record_type]
        if not all(allowed.issuperset(map(type, map(get, same))) for get, allowed in getters):
            return False
        if not math.isfinite(sum(map(_timestamp, same))):
            return False
    return True


def _check(record: object) -> None:
    fields = _FIELDS.get(type(record))
    if fields is None:
        raise InvalidRecord(
            "a record is a PersistedEvent, a PersistedAudit or a PersistedDeadLetter, "
            f"not {_shortened(record)}"
        )
    for name, allowed in fields.items():
        value = getattr(record, name)
        if type(value) not in allowed:
            wanted = " or ".join(sorted(t.__name__ for t in allowed))
            raise InvalidRecord(
                f"{type(record).__name__}.{name} is a {wanted}, not {_shortened(value)}"
            )
    timestamp = _timestamp(record)
    if not math.isfinite(timestamp):
        raise InvalidRecord(
            f"{type(record).__name__}.timestamp is Unix time in seconds, not {timestamp}"
        )


def _find_unencodable(value: object, path: str, above: frozenset[int] = frozenset()) -> None:
    """Raise `UnencodablePayload` for the first value in `value` that JSON has no form for."""
    if id(value) in above:
        raise UnencodablePayload(f"{path} contains itself, which JSON can't", path=path)
    if isinstance(value, float) and not math.isfinite(value):
        raise UnencodablePayload(f"{path} is {value}, which JSON has no form for", path=path)
    if isinstance(value, msgspec.Raw):
        if b"\n" in bytes(value):
            raise UnencodablePayload(f"{path} is raw JSON of more than one line", path=path)
        return
    try:
        parts = list(_parts(value, path))
        for part, where in parts:
            _find_unencodable(part, where, above | {id(value)})
    except RecursionError:
        raise UnencodablePayload(f"{path} is nested too deeply", path=path) from None
    if parts and not isinstance(value, Mapping):
        return
    try:
        _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnencodablePayload(
            f"{path} is {_shortened(value)}, which JSON has no form for ({error})", path=path
        ) from error


def _parts(value: object, path: str) -> Iterator[tuple[Any, str]]:
    """Return what `value` is made of, and the path to each part."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield item, f"{path}[{key!r}]"
    elif isinstance(value, (list, tuple, set, frozenset)):
        for position, item in enumerate(value):
            yield item, f"{path}[{position}]"
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield getattr(value, name), f"{path}.{name}"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield getattr(value, field.name), f"{path}.{field.name}"


def _shortened(value: object) -> str:
    return f"{type(value).__name__} {_repr.repr(value)}"
