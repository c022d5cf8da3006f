"""The tables of records: a table for each kind, with columns for what people ask for.

A record is kept as it was encoded, in the column ``record``, and its checksum in ``crc``; the other
columns repeat what is in it, for indexes and for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import count
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
    "RecordTable",
    "Row",
    "checksum",
    "json_text",
    "text_key",
    "values_by_kind",
)

#: The values of a row, in the order of `RecordTable.columns`.
Row: TypeAlias = tuple[Any, ...]


class RecordTable(NamedTuple):
    """The table for records of one kind."""

    kind: Kind
    name: str
    record_type: type[Record]
    #: the columns that only this kind has
    own_columns: tuple[str, ...]
    #: the one of them that names the actor concerned
    actor_column: str | None
    #: returns the values of these columns
    own_values: Callable[[Any], Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is written, in order."""
        return ("system_id", "seq", *self.own_columns, "timestamp", "crc", "record")

    def values(self, record: Record) -> Row:
        """Return what the columns between ``seq`` and ``crc`` say about a record."""
        return (*self.own_values(record), float(record.timestamp))


def _of_event(event: PersistedEvent) -> Row:
    return event.actor_address, event.event_type, event.revision


def _of_audit(audit: PersistedAudit) -> Row:
    del audit
    return ()


def _of_dead_letter(letter: PersistedDeadLetter) -> Row:
    return letter.target, letter.message_type


_EVENTS = RecordTable(
    "event", "events", PersistedEvent, ("actor", "type", "revision"), "actor", _of_event
)
_AUDITS = RecordTable("audit", "audits", PersistedAudit, (), None, _of_audit)
_DEAD_LETTERS = RecordTable(
    "dead_letter",
    "dead_letters",
    PersistedDeadLetter,
    ("target", "message_type"),
    "target",
    _of_dead_letter,
)

TABLES: Mapping[Kind, RecordTable] = {
    table.kind: table for table in (_EVENTS, _AUDITS, _DEAD_LETTERS)
}
_TABLE_OF = {table.record_type: table for table in TABLES.values()}


def values_by_kind(system_id: str, batch: Batch) -> Mapping[Kind, list[Any]]:
    """Return the values of the rows of a batch, one row after the other."""
    found: dict[Kind, list[Any]] = {}
    numbered: Iterable[tuple[int, Record, bytes]] = zip(
        count(batch.first_seq), batch.records, batch.encoded, strict=False
    )
    for seq, record, encoded in numbered:
        table = _TABLE_OF[type(record)]
        values = found.get(table.kind)
        if values is None:
            values = found[table.kind] = []
        values += (system_id, seq, *table.own_values(record))
        values += (float(record.timestamp), crc32(encoded, seq), json_text(encoded))
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
