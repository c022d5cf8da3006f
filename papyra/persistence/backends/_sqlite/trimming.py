"""The trimming of histories: a base takes the place of an event, and those before it go."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence

from papyra.exceptions import StoreError
from papyra.persistence.backends._sql.tables import checksum, json_text, text_key
from papyra.persistence.backends._sql.trimming import Freed, freed_by
from papyra.persistence.backends.store import NewBase
from papyra.persistence.bases import BASE_TYPE

__all__ = ("count_freed", "trim")

_OF_ACTOR = "system_id = ? AND actor = ? AND revision IS NOT NULL"


def count_freed(connection: sqlite3.Connection, system_id: str, bases: Sequence[NewBase]) -> Freed:
    """Return what `trim` would remove. Raises `StoreDamaged` where it would."""
    freed = [_freed_by(connection, system_id, base) for base in bases]
    return Freed(sum(each.records for each in freed), sum(each.bytes for each in freed))


def trim(connection: sqlite3.Connection, system_id: str, bases: Sequence[NewBase]) -> None:
    """Have histories begin with their bases, within a transaction.

    Snapshots of what is removed go, too: what they were taken after is not there any more. Raises
    `StoreDamaged` where not each event is what was stored, and `StoreError` if a base is not there
    when it is read back.
    """
    for base in bases:
        _freed_by(connection, system_id, base)
        _place(connection, system_id, base)
        key = (system_id, text_key(base.actor), base.revision)
        connection.execute(
            f"DELETE FROM events WHERE {_OF_ACTOR} AND revision < ?",  # noqa: S608 - a constant
            key,
        )
        connection.execute(
            "DELETE FROM snapshots WHERE system_id = ? AND actor = ? AND revision < ?", key
        )


def _freed_by(connection: sqlite3.Connection, system_id: str, base: NewBase) -> Freed:
    rows = connection.execute(
        "SELECT seq, crc, record, revision FROM events INDEXED BY histories "  # noqa: S608
        f"WHERE {_OF_ACTOR} AND revision <= ?",
        (system_id, text_key(base.actor), base.revision),
    )
    # An error holds what has led to it, and an open cursor would hold a checkpoint back.
    with contextlib.closing(rows):
        return freed_by(base, rows)


def _place(connection: sqlite3.Connection, system_id: str, base: NewBase) -> None:
    """Put a base in the place of its event, and read it back."""
    crc, place = checksum(base.seq, base.encoded), (system_id, base.seq)
    connection.execute(
        "UPDATE events SET type = ?, crc = ?, record = ? WHERE system_id = ? AND seq = ?",
        (BASE_TYPE, crc, json_text(base.encoded), *place),
    )
    stored = connection.execute(
        "SELECT crc, record FROM events WHERE system_id = ? AND seq = ?", place
    ).fetchone()
    if stored != (crc, base.encoded):
        raise StoreError(f"the base at position {base.seq} is not there; nothing was changed")
