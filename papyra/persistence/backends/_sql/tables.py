"""The tables of records: a table for each kind, with columns for what people ask for.

A record is kept as it was encoded, in the column ``record``, and its checksum in ``crc``; the other
columns repeat what is in it, for indexes and for people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

from papyra.persistence.backends.store import Batch
from papyra.persistence.records import (
    Kind,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)

__all__ = (
    "TABLES",
    "Part",
    "RecordTable",
    "Row",
    "checksum",
    "json_text",
    "parts_by_kind",
    "table_of",
    "text_key",
)

#: The values of a row, in the order of `RecordTable.columns`.
Row: TypeAlias = tuple[Any, ...]


class RecordTable(NamedTuple):
    """The table for records of one kind."""

    kind: Kind
    name: str
    record_type: type[Record]
    #: the one of its own columns that names the actor concerned
    actor_column: str | None
    #: the columns that only this kind has, and the fields of a record that are in them
    own_columns: tuple[str, ...]
    own_fields: tuple[str, ...]
    #: returns the values of these fields
    own_values: Callable[[Any], Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is written, in order."""
        return ("system_id", "seq", *self.own_columns, "timestamp", "crc", "record")

    def values(self, record: Record) -> Row:
        """Return what the columns between ``seq`` and ``crc`` say about a record."""
        return (*self.own_values(record), float(record.timestamp))


class Part(NamedTuple):
    """The records of one kind in a batch, which need not be one after the other."""

    seqs: Sequence[int]
    records: Sequence[Record]
    encoded: Sequence[bytes]

    def own_columns(self, table: RecordTable) -> list[list[Any]]:
        """Return the values of each column that only this kind has."""
        return [list(map(attrgetter(name), self.records)) for name in table.own_fields]

    def timestamps(self) -> list[float]:
        """Return the Unix times in seconds."""
        return [float(record.timestamp) for record in self.records]

    def checksums(self) -> list[int]:
        """Return the `checksum` of each record."""
        return list(map(crc32, self.encoded, self.seqs))


def _table(
    kind: Kind, name: str, record_type: type[Record], actor_column: str | None, **fields: str
) -> RecordTable:
    """Return the table whose own columns hold these fields."""
    own_values = attrgetter(*fields.values()) if fields else _nothing
    return RecordTable(
        kind, name, record_type, actor_column, tuple(fields), tuple(fields.values()), own_values
    )


def _nothing(record: Record) -> Row:
    del record
    return ()


_EVENTS = _table(
    *("event", "events", PersistedEvent, "actor"),
    actor="actor_address",
    type="event_type",
    revision="revision",
)
_AUDITS = _table("audit", "audits", PersistedAudit, None)
_DEAD_LETTERS = _table(
    *("dead_letter", "dead_letters", PersistedDeadLetter, "target"),
    target="target",
    message_type="message_type",
)

TABLES: Mapping[Kind, RecordTable] = {
    table.kind: table for table in (_EVENTS, _AUDITS, _DEAD_LETTERS)
}
_TABLE_OF = {table.record_type: table for table in TABLES.values()}


def table_of(record: Record) -> RecordTable:
    """Return the table that a record belongs in."""
    return _TABLE_OF[type(record)]


def parts_by_kind(batch: Batch) -> Mapping[Kind, Part]:
    """Return the parts of a batch by kinds, in the order of `TABLES`."""
    records = batch.records
    seqs = range(batch.first_seq, batch.first_seq + len(records))
    whole = Part(seqs, records, batch.encoded)
    if len(records) == 1 or len(types := set(map(type, records))) == 1:
        return {table_of(records[0]).kind: whole}
    found: dict[Kind, Part] = {}
    for kind, table in TABLES.items():
        if table.record_type in types:
            chosen = [type(record) is table.record_type for record in records]
            found[kind] = Part(
                list(compress(seqs, chosen)),
                list(compress(records, chosen)),
                list(compress(batch.encoded, chosen)),
            )
    return found


def checksum(seq: int, encoded: bytes) -> int:
    """Return the checksum of a record at its position: a CRC-32 that begins with that."""
    return crc32(encoded, seq)


def text_key(text: str) -> str | bytes:
    """Return what to look for where a column is to be this text.

    For what no text can be, as lone surrogates, that is bytes, which are in no such column.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
    return text


def json_text(encoded: bytes) -> str | bytes:
    """Return JSON as the text that it is, or the bytes that are none."""
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded
