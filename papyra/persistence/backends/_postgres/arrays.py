"""Values as the server reads them from the wire: arrays, each of them a column, and JSON."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence

from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

__all__ = ("FloatArray", "IntArray", "Json", "JsonArray", "TextArray", "register")

_HEADER = struct.Struct(">iiIii").pack
_LENGTH = struct.Struct(">i").pack
#: The length of a number, as it is on the wire, in an array of the machine's own.
_EIGHT = array("i", _LENGTH(8))
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
        return cls(_header(_TEXT, len(values)) + _varying(list(map(str.encode, values))))


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
    numbers = array(code, values)
    if sys.byteorder == "little":
        numbers.byteswap()
    halves = array("i", numbers.tobytes())
    parts = _EIGHT * (3 * len(values))
    parts[1::3], parts[2::3] = halves[::2], halves[1::2]
    return parts.tobytes()


def _varying(values: Sequence[bytes]) -> bytes:
    """Return values of any lengths, each after its own."""
    parts = [b""] * (2 * len(values))
    parts[::2], parts[1::2] = map(_LENGTH, map(len, values)), values
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
