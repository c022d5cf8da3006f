"""The outbox of a system: what waits in it, and taking it out."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from papyra.exceptions import StoreError
from papyra.persistence.outbox import HandedOver, RefusedEvent

__all__ = ("count", "handed_over", "refused", "remove", "set_aside")

#: Events of a part, at most.
_EVENTS = 1_000
#: Before every id that there can be.
_FIRST = -(2**63)

# Whatever type somebody has given a value, it is read as its bytes.
_SELECT = """
SELECT id, CAST(record AS BLOB) FROM papyra_outbox
WHERE system_id = ? AND id {than} ? ORDER BY id LIMIT ?
"""


def handed_over(
    connection: sqlite3.Connection, system_id: str, after: int | None, size: int
) -> list[HandedOver]:
    """Return the first that wait, after an id, of so many bytes together; or one of more."""
    than, start = (">=", _FIRST) if after is None else (">", after)
    found: list[HandedOver] = []
    for number, data in connection.execute(_SELECT.format(than=than), (system_id, start, _EVENTS)):
        size -= len(data)
        if found and size < 0:
            break
        found.append(HandedOver(number, data))
    return found


def remove(connection: sqlite3.Connection, system_id: str, handed: Sequence[HandedOver]) -> None:
    """Remove what was read, which is from one id to another. Raises `StoreError` if it differs.

    An application may have taken back what it had handed over, or changed it, and an id may be that
    of another event by now: then nothing is taken over, and it is read again.
    """
    if not handed:
        return
    first, last = handed[0].id, handed[-1].id
    found = connection.execute(
        "SELECT id, CAST(record AS BLOB) FROM papyra_outbox "
        "WHERE system_id = ? AND id BETWEEN ? AND ? ORDER BY id",
        (system_id, first, last),
    )
    if [HandedOver(*row) for row in found] != list(handed):
        raise StoreError("the outbox was changed while it was read: it is looked at again")
    connection.execute(
        "DELETE FROM papyra_outbox WHERE system_id = ? AND id BETWEEN ? AND ?",
        (system_id, first, last),
    )


def set_aside(
    connection: sqlite3.Connection, system_id: str, handed: HandedOver, reason: str, now: float
) -> None:
    """Move what can't be taken over to the table of what was refused, if it is still there."""
    where = (system_id, handed.id, handed.data)
    connection.execute(
        "INSERT INTO papyra_outbox_refused (system_id, record, reason, refused_at) "
        "SELECT system_id, record, ?, ? FROM papyra_outbox "
        "WHERE system_id = ? AND id = ? AND CAST(record AS BLOB) = ?",
        (reason, now, *where),
    )
    connection.execute(
        "DELETE FROM papyra_outbox WHERE system_id = ? AND id = ? AND CAST(record AS BLOB) = ?",
        where,
    )


def refused(
    connection: sqlite3.Connection, system_id: str, after: int | None
) -> list[RefusedEvent]:
    """Return some of what was set aside, after an id."""
    rows = connection.execute(
        "SELECT id, CAST(reason AS BLOB) FROM papyra_outbox_refused "
        "WHERE system_id = ? AND id > ? ORDER BY id LIMIT ?",
        (system_id, _FIRST if after is None else after, _EVENTS),
    )
    return [RefusedEvent(number, reason.decode(errors="replace")) for number, reason in rows]


def count(connection: sqlite3.Connection, system_id: str) -> tuple[int, int]:
    """Return how many wait, and how many were set aside."""
    row: tuple[int, int] = connection.execute(
        "SELECT (SELECT count(*) FROM papyra_outbox WHERE system_id = ?), "
        "(SELECT count(*) FROM papyra_outbox_refused WHERE system_id = ?)",
        (system_id, system_id),
    ).fetchone()
    return row
