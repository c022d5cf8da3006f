"""Values as the server reads them from the wire: arrays, each of them a column, and JSON."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

__all__ = ("FloatArray", "IntArray", "Json", "JsonArray", "TextArray", "register")

_HEADER = struct.Struct(">iiIii").pack
_LENGTH = struct.Struct(">i").pack
_INT, _FLOAT, _TEXT, _JSON = 20, 701, 25, 114


class IntArray(bytes):
    """A ``bigint[]``."""

    @classmethod
    def of(cls, values: Sequence[int]) -> IntArray:
        """Return the array of some numbers, none of which may be null."""
        return cls(_header(_INT, len(values)) + _fixed("q", values))


class FloatArray(bytes):
    """A ``double precision[]``."""

    @classmethod
    def of(cls, values: Sequence[float]) -> FloatArray:
        """Return the array of some numbers."""
        return cls(_header(_FLOAT, len(values)) + _fixed("d", values))


class TextArray(bytes):
    """A ``text[]``."""

    @classmethod
    def of(cls, values: Sequence[str]) -> TextArray:
        """Return the array of some strings, without NUL characters."""
        return cls(_header(_TEXT, len(values)) + _varying(map(str.encode, values)))


class JsonArray(bytes):
    """A ``json[]``."""

    @classmethod
    def of(cls, values: Sequence[bytes]) -> JsonArray:
        """Return the array of some JSON."""
        return cls(_header(_JSON, len(values)) + _varying(values))


class Json(bytes):
    """A ``json``."""


def _header(oid: int, length: int) -> bytes:
    """Return what an array begins with: dimensions, no nulls, type, length, first index."""
    return _HEADER(1, 0, oid, length, 1)


def _fixed(code: str, values: Sequence[float]) -> bytes:
    """Return numbers of eight bytes, each after its length."""
    flat: list[float] = [8] * (2 * len(values))
    flat[1::2] = values
    return struct.pack(">" + f"i{code}" * len(values), *flat)


def _varying(values: Iterable[bytes]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        parts += (_LENGTH(len(value)), value)
    return b"".join(parts)


class _AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        """Return what is encoded already."""
        return obj


class _IntArrayDumper(_AsItIs):
    oid = 1016


class _FloatArrayDumper(_AsItIs):
    oid = 1022


class _TextArrayDumper(_AsItIs):
    oid = 1009


class _JsonArrayDumper(_AsItIs):
    oid = 199


class _JsonDumper(_AsItIs):
    oid = _JSON


def register(connection: Connection[tuple[object, ...]]) -> None:
    """Let these be parameters of statements on a connection."""
    for value, dumper in (
        (IntArray, _IntArrayDumper),
        (FloatArray, _FloatArrayDumper),
        (TextArray, _TextArrayDumper),
        (JsonArray, _JsonArrayDumper),
        (Json, _JsonDumper),
    ):
        connection.adapters.register_dumper(value, dumper)
