"""Insertion: a batch by one statement, which is its transaction, too.

A batch of one record is that of an actor which waits for it. It gets a statement of its own, with a
value for each column: arrays of one take three times as long to make, and the server to unpack.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from papyra.persistence.backends._postgres.arrays import (
    FloatArray,
    IntArray,
    Json,
    JsonArray,
    TextArray,
)
from papyra.persistence.backends._postgres.blocks import SEAL, block_of, values_to_seal
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.text import column_text, column_texts
from papyra.persistence.backends._postgres.writer_row import InDoubt, WriterRow
from papyra.persistence.backends._sql.tables import (
    TABLES,
    Part,
    checksum,
    parts_by_kind,
    table_of,
)
from papyra.persistence.backends.store import Batch
from papyra.persistence.outbox import HandedOver
from papyra.persistence.records import Kind

__all__ = ("EncodedBatch",)


class EncodedBatch:
    """A batch as the values of its statement."""

    def __init__(self, batch: Batch, handed: Sequence[HandedOver] = ()) -> None:
        self.handed = handed
        self._batch = batch
        self.first_seq = batch.first_seq
        self.last_seq = batch.first_seq + len(batch.records) - 1
        self.in_doubt = InDoubt(
            secrets.token_hex(16),
            self.first_seq,
            self.last_seq,
            table_of(batch.records[0]).kind,
            batch.restored,
            tuple(handed),
        )
        self._is_single = len(batch.records) == 1
        values = _row(batch) if self._is_single else _columns(batch)
        self._kinds = tuple(values)
        self._values = {name: value for part in values.values() for name, value in part.items()}

    def insert(self, system: System, row: WriterRow) -> bool:
        """Store it, and return whether it was the writer's to store."""
        seal = block_of(self.last_seq + 1)
        values = {
            **self._values,
            "epoch": row.epoch,
            "writer": row.writer,
            "batch": self.in_doubt.id,
            "first": self.first_seq,
        }
        is_sealing = seal > row.sealed
        if is_sealing:
            values |= values_to_seal(self._batch, row.sealed, seal)
        pooled = system.connection.is_pooled
        if pooled:
            values["acknowledge"] = system.settings.acknowledge
        statement = _statement(
            self._kinds, is_single=self._is_single, is_sealing=is_sealing, is_pooled=pooled
        )
        (found,) = system.row(statement, **values)
        if found and is_sealing:
            row.sealed = seal
        return bool(found)


#: Values of a statement by their names.
_Values: TypeAlias = dict[str, object]


def _columns(batch: Batch) -> Mapping[Kind, _Values]:
    """Return the columns of each table, each of them as one value."""
    return {kind: _columns_of(kind, part) for kind, part in parts_by_kind(batch).items()}


def _columns_of(kind: Kind, part: Part) -> _Values:
    columns: _Values = {
        "seq": IntArray.of(part.seqs),
        "timestamp": FloatArray.of(part.timestamps()),
        "bytes": IntArray.of(list(map(len, part.encoded))),
        "crc": IntArray.of(part.checksums()),
        "record": JsonArray.of(part.encoded),
    }
    table = TABLES[kind]
    for name, values in zip(table.own_columns, part.own_columns(table), strict=True):
        if name == "revision":
            columns[name] = IntArray.of([each or 0 for each in values])
        else:
            columns[name] = TextArray.of(column_texts(values))
    return {f"{kind}_{name}": values for name, values in columns.items()}


def _row(batch: Batch) -> Mapping[Kind, _Values]:
    """Return the values of the one row of a batch."""
    record, encoded = batch.records[0], batch.encoded[0]
    values: _Values = {
        "timestamp": float(record.timestamp),
        "bytes": len(encoded),
        "crc": checksum(batch.first_seq, encoded),
        "record": Json(encoded),
    }
    table = table_of(record)
    for name, value in zip(table.own_columns, table.own_values(record), strict=True):
        values[name] = (value or 0) if name == "revision" else column_text(value)
    return {table.kind: values}


@functools.cache
def _statement(
    kinds: tuple[Kind, ...], *, is_single: bool, is_sealing: bool, is_pooled: bool
) -> str:
    parts = [_WRITER_POOLED if is_pooled else _WRITER]
    if is_sealing:
        parts.append(SEAL)
    parts += map(_insertion_of_one if is_single else _insertion, kinds)
    return f"WITH {', '.join(parts)} SELECT count(*) FROM writer"  # noqa: S608 - constants


_WRITER = """writer AS (
    SELECT system_id FROM {schema}.systems
    WHERE system_id = %(system)s AND epoch = %(epoch)s AND writer = %(writer)s FOR SHARE
)"""
#: Nothing of a session is there, so its settings are those of each transaction.
_WRITER_POOLED = """setting AS MATERIALIZED (
    SELECT set_config('synchronous_commit', %(acknowledge)s, true)
), writer AS (
    SELECT system_id FROM {schema}.systems, setting
    WHERE system_id = %(system)s AND epoch = %(epoch)s AND writer = %(writer)s
    FOR SHARE OF systems
)"""


#: There is none 0: values that are never null have the same types in every batch.
_REVISION = "nullif({}, 0)"


def _insertion_of_one(kind: Kind) -> str:
    table = TABLES[kind]
    names = (*table.own_columns, "timestamp", "bytes", "crc", "record")
    values = {
        **{name: f"%({name})b" for name in names},
        "revision": _REVISION.format("%(revision)b"),
    }
    return f"""{table.name}_inserted AS (
    INSERT INTO {{schema}}.{table.name} (system_id, batch, seq, {", ".join(names)})
    SELECT w.system_id, %(batch)s, %(first)s, {", ".join(values[name] for name in names)}
    FROM writer AS w
)"""  # noqa: S608 - constants


def _insertion(kind: Kind) -> str:
    table = TABLES[kind]
    names = ("seq", *table.own_columns, "timestamp", "bytes", "crc", "record")
    values = {
        **{name: f"r.{name}" for name in names},
        "revision": _REVISION.format("r.revision"),
    }
    columns = ", ".join(names)
    arrays = ", ".join(f"%({kind}_{name})b" for name in names)
    return f"""{table.name}_inserted AS (
    INSERT INTO {{schema}}.{table.name} (system_id, batch, {columns})
    SELECT w.system_id, CASE WHEN r.seq = %(first)s THEN %(batch)s END,
        {", ".join(values[name] for name in names)}
    FROM writer AS w, unnest({arrays}) AS r({columns})
)"""  # noqa: S608 - constants
