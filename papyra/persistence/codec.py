"""Records to bytes and back: one JSON object a record, the same in every backend."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from papyra.exceptions import InvalidRecord, StoreError, UnencodablePayload
from papyra.persistence.records import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)

__all__ = ("decode", "decode_numbered", "encodable", "encode")

_encoder = msgspec.json.Encoder()
_encode: Callable[[object], bytes] = _encoder.encode
_encode_lines: Callable[[Sequence[Record]], bytes] = _encoder.encode_lines
_decode: Callable[[bytes | memoryview], Record] = msgspec.json.Decoder(
    PersistedEvent | PersistedAudit | PersistedDeadLetter
).decode

#: What msgspec raises for a value that it can't write.
_ENCODING_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)

#: What msgspec raises for bytes that are no record.
_DECODING_ERRORS = (msgspec.DecodeError, UnicodeDecodeError)

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

#: Shortens, and survives a ``__repr__`` that raises.
_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = 80


def encode(records: Sequence[Record]) -> list[bytes]:
    """Return each record as a JSON object on one line, without its `seq`.

    Raises `InvalidRecord` for what is no record, or has a field of the wrong type, and
    `UnencodablePayload` for a payload that JSON has no form for: NaN and the infinities too, which
    would otherwise come back as null. A `msgspec.Raw` in a payload is taken at its word.
    """
    # A run of plain events is encoded in one call. Whatever is out of the ordinary goes the long
    # way, which knows what is wrong and where.
    if len(records) > 8 and _are_plain_events(records):
        try:
            lines = _encode_lines(records)
        except _ENCODING_ERRORS:
            pass
        else:
            encoded = lines.split(b"\n")
            if b"null" not in lines and len(encoded) == len(records) + 1:
                encoded.pop()  # what follows the last line: nothing
                return encoded
    return [_encode_one(record) for record in records]


def _encode_one(record: Record) -> bytes:
    _check(record)
    if record.seq is not None:
        record = msgspec.structs.replace(record, seq=None)
    try:
        encoded = _encode(record)
    except _ENCODING_ERRORS as error:
        for name in record.__struct_fields__:
            _find_unencodable(getattr(record, name), name)
        raise InvalidRecord(f"a record can't be encoded: {error}") from error
    if b"null" in encoded or b"\n" in encoded:
        _find_unencodable(record.payload, "payload")
    return encoded


def decode(data: bytes | memoryview, seq: int) -> Record:
    """Return the record that `data` holds, with its position.

    Raises `StoreError` when `data` is no record.
    """
    try:
        record = _decode(data)
    except _DECODING_ERRORS as error:
        raise StoreError(f"the bytes of record {seq} can't be read: {error}") from error
    # Nobody else has seen this record yet, so it may still be completed, frozen or not. A copy
    # with its seq would cost as much again as the decoding did.
    msgspec.structs.force_setattr(record, "seq", seq)
    return record


def decode_numbered(data: Iterable[bytes]) -> list[Record]:
    """Return the records that `data` holds, each of which names its own `seq`.

    Raises `StoreError` when one of them is no record.
    """
    try:
        return list(map(_decode, data))
    except _DECODING_ERRORS as error:
        raise StoreError(f"there are bytes that can't be read: {error}") from error


def encodable(value: object) -> bool:
    """Return whether `value` could be a payload."""
    try:
        _find_unencodable(value, "payload")
    except UnencodablePayload:
        return False
    return True


def _are_plain_events(records: Sequence[Record]) -> bool:
    odd = [
        record
        for record in records
        if type(record) is not PersistedEvent
        or type(record.system_id) is not str
        or type(record.actor_address) is not str
        or type(record.event_type) is not str
        or type(record.timestamp) is not float
        or record.seq is not None
    ]
    return not odd and math.isfinite(sum([record.timestamp for record in records]))


def _check(record: Record) -> None:
    fields = _FIELDS.get(type(record))
    if fields is None:
        raise InvalidRecord(
            "a record is a PersistedEvent, a PersistedAudit or a PersistedDeadLetter, "
            f"not {_shortened(record)}"
        )
    for name, wanted in fields:
        value = getattr(record, name)
        if type(value) is not wanted:
            raise InvalidRecord(
                f"{type(record).__name__}.{name} is a {wanted.__name__}, not {_shortened(value)}"
            )
    timestamp = record.timestamp
    if type(timestamp) not in _NUMBERS or not math.isfinite(timestamp):
        raise InvalidRecord(
            f"{type(record).__name__}.timestamp is Unix time in seconds, "
            f"not {_shortened(timestamp)}"
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
    except _ENCODING_ERRORS as error:
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
