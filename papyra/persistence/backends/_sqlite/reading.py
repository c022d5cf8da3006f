"""Reads within retention: the rows of one kind that a policy and a read let through."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from typing import Any

from papyra.persistence.backends._sql.blocks import BLOCK, Totals
from papyra.persistence.backends._sql.decoding import StoredRow
from papyra.persistence.backends._sql.hidden import FOREVER, Hidden, hidden_by
from papyra.persistence.backends._sql.tables import TABLES, text_key
from papyra.persistence.backends._sqlite.blocks import blocks
from papyra.persistence.backends.store import MAX_SEQ
from papyra.persistence.messages import Read
from papyra.persistence.records import Kind
from papyra.persistence.retention import Limits

__all__ = ("hidden_of", "visible_rows")


def hidden_of(
    connection: sqlite3.Connection, system_id: str, kind: Kind, limits: Limits, now: float
) -> Hidden:
    """Return what `limits` hide of a kind at Unix time `now`."""

    def weights(block: Totals, in_bytes: bool) -> Iterator[tuple[int, int]]:
        weight = "length(CAST(record AS BLOB))" if in_bytes else "1"
        return connection.execute(
            f"SELECT seq, {weight} FROM {TABLES[kind].name} "  # noqa: S608 - constants
            "WHERE system_id = ? AND seq >= ? AND seq < ? ORDER BY seq DESC",
            (system_id, block.block * BLOCK, (block.block + 1) * BLOCK),
        )

    return hidden_by(limits, now, lambda: blocks(connection, system_id, kind, newest=True), weights)


def visible_rows(
    connection: sqlite3.Connection, system_id: str, request: Read, limits: Limits, now: float
) -> Generator[StoredRow, None, None]:
    """Yield the rows of the records that a read may show, in its order."""
    hidden = hidden_of(connection, system_id, request.kind, limits, now)
    after = max(hidden.through, request.after)
    before = MAX_SEQ + 1 if request.before is None else request.before
    since = hidden.oldest if request.since is None else max(hidden.oldest, request.since)
    until = FOREVER if request.until is None else request.until
    select = _Select(request, system_id, since, until)
    if request.actor is not None or (since, until) == (-FOREVER, FOREVER):
        yield from select.rows(connection, after, before)
        return
    for block in blocks(connection, system_id, request.kind, newest=request.newest):
        start, stop = block.block * BLOCK, (block.block + 1) * BLOCK
        if block.newest < since or block.oldest > until or stop <= after or start >= before:
            continue
        yield from select.rows(connection, max(after, start - 1), min(before, stop))


class _Select:
    """The rows of one read, between whatever positions."""

    def __init__(self, request: Read, system_id: str, since: float, until: float) -> None:
        table = TABLES[request.kind]
        self._values: list[Any] = [system_id]
        source, conditions = table.name, "system_id = ?"
        if request.actor is not None:
            # Not by positions: those of one actor are few.
            index = {"actor": "events_by_actor", "target": "dead_letters_by_target"}
            source += f" INDEXED BY {index[table.actor_column or '']}"
            conditions += f" AND {table.actor_column} = ?"
            self._values.append(text_key(request.actor))
        if since > -FOREVER:
            conditions += " AND timestamp >= ?"
            self._values.append(since)
        if until < FOREVER:
            conditions += " AND timestamp <= ?"
            self._values.append(until)
        self._sql = (
            f"SELECT seq, crc, record FROM {source} WHERE {conditions} "  # noqa: S608 - constants
            f"AND seq > ? AND seq < ? ORDER BY seq {'DESC' if request.newest else 'ASC'}"
        )

    def rows(self, connection: sqlite3.Connection, after: int, before: int) -> Iterator[StoredRow]:
        return connection.execute(self._sql, (*self._values, after, before))
