"""Reads within retention: the rows of one kind that a policy and a read let through."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from papyra.persistence.backends._postgres.blocks import blocks
from papyra.persistence.backends._postgres.connection import Row
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.text import column_text
from papyra.persistence.backends._sql.blocks import BLOCK, Totals
from papyra.persistence.backends._sql.decoding import StoredRow
from papyra.persistence.backends._sql.hidden import FOREVER, Hidden, hidden_by
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.backends.paging import (
    MAX_PAGE_BYTES,
    MAX_PAGE_RECORDS,
    records_wanted,
)
from papyra.persistence.backends.store import MAX_SEQ
from papyra.persistence.messages import Read, ReadHistory
from papyra.persistence.records import Kind
from papyra.persistence.retention import Limits

__all__ = ("hidden_of", "history_rows", "visible_rows")

#: How many rows may be fetched together: few numbers, so that few statements are prepared, which
#: have them in their text. A plan for any number would sort everything first.
_FETCHES = (16, 128, 512, 2_048, 4_096, MAX_PAGE_RECORDS + 1)


def hidden_of(system: System, kind: Kind, limits: Limits, now: float) -> Hidden:
    """Return what `limits` hide of a kind at Unix time `now`."""

    def weights(block: Totals, in_bytes: bool) -> list[Row]:
        return system.rows(
            f"SELECT seq, {'bytes' if in_bytes else 1} FROM {{schema}}.{TABLES[kind].name}"  # noqa: S608
            " WHERE system_id = %(system)s AND seq >= %(first)s AND seq < %(stop)s"
            " ORDER BY seq DESC",
            first=block.block * BLOCK,
            stop=(block.block + 1) * BLOCK,
        )

    return hidden_by(limits, now, lambda: blocks(system, kind, newest=True), weights)


def visible_rows(system: System, request: Read, limits: Limits, now: float) -> Iterator[StoredRow]:
    """Yield the rows of the records that a read may show, in its order."""
    hidden = hidden_of(system, request.kind, limits, now)
    after = max(hidden.through, request.after)
    before = MAX_SEQ + 1 if request.before is None else request.before
    since = hidden.oldest if request.since is None else max(hidden.oldest, request.since)
    until = FOREVER if request.until is None else request.until
    select = _Select(request, since, until)
    if request.actor is not None or (since, until) == (-FOREVER, FOREVER):
        yield from select.rows(system, after, before)
        return
    for block in blocks(system, request.kind, newest=request.newest):
        start, stop = block.block * BLOCK, (block.block + 1) * BLOCK
        if block.newest < since or block.oldest > until or stop <= after or start >= before:
            continue
        yield from select.rows(system, max(after, start - 1), min(before, stop))


class _Select:
    """The rows of one read, between whatever positions."""

    def __init__(self, request: Read, since: float, until: float) -> None:
        table = TABLES[request.kind]
        self._newest = request.newest
        self._wanted = MAX_PAGE_RECORDS if request.limit is None else request.limit
        self._values: dict[str, Any] = {}
        conditions = "system_id = %(system)s"
        if request.actor is not None:
            conditions += f" AND {table.actor_column} = %(actor)s"
            self._values["actor"] = column_text(request.actor)
        if since > -FOREVER:
            conditions += " AND timestamp >= %(since)s"
            self._values["since"] = since
        if until < FOREVER:
            conditions += " AND timestamp <= %(until)s"
            self._values["until"] = until
        order = "DESC" if request.newest else "ASC"
        self._source = f"{table.name} WHERE {conditions} AND seq > %(after)s AND seq < %(before)s"
        self._order = f"seq {order}"

    def rows(self, system: System, after: int, before: int) -> Iterator[StoredRow]:
        for fetched in _fetches(self._wanted):
            statement = _bounded(self._source, self._order, fetched)
            found = system.rows(statement, **self._values, after=after, before=before)
            yield from found
            if _were_last(found, fetched):
                return
            if self._newest:
                before = found[-1][0]
            else:
                after = found[-1][0]


def history_rows(system: System, request: ReadHistory) -> Iterator[StoredRow]:
    """Yield the rows of an actor's events after a revision."""
    after, after_seq = request.after_revision, MAX_SEQ
    for fetched in _fetches(records_wanted(request)):
        found = system.rows(
            _bounded(_HISTORY, "revision, seq", fetched, ", revision"),
            actor=column_text(request.actor),
            after=after,
            after_seq=after_seq,
        )
        for seq, crc, record, _ in found:
            yield seq, crc, record
        if _were_last(found, fetched):
            return
        after, after_seq = found[-1][3], found[-1][0]


def _fetches(wanted: int) -> Iterator[int]:
    """Yield how many rows to fetch: more than are wanted, which says whether there are more."""
    place = next((n for n, rows in enumerate(_FETCHES) if rows > wanted), len(_FETCHES) - 1)
    yield from _FETCHES[place:]
    while True:
        yield _FETCHES[-1]


def _were_last(found: list[Row], fetched: int) -> bool:
    """Return whether no rows come after these, of which so many were asked for."""
    return len(found) < fetched and sum(len(row[2]) for row in found) < MAX_PAGE_BYTES


@functools.lru_cache(256)
def _bounded(source: str, order: str, fetched: int, more: str = "") -> str:
    """Return a statement for so many rows, but for those that make it more than a page of bytes."""
    return f"""
SELECT seq, crc, record{more} FROM (
    SELECT seq, crc, record{more}, bytes,
        sum(bytes) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total
    FROM (
        SELECT seq, crc, record{more}, bytes FROM {{schema}}.{source}
        ORDER BY {order} LIMIT {fetched}
    ) AS fetched
) AS counted
WHERE total - bytes < {MAX_PAGE_BYTES} ORDER BY {order}"""  # noqa: S608 - constants


_HISTORY = (
    "events WHERE system_id = %(system)s AND actor = %(actor)s AND revision IS NOT NULL"
    " AND (revision, seq) > (%(after)s, %(after_seq)s)"
)
