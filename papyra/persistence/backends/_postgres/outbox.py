"""The outbox of a system: what waits in it, and taking it out."""

from __future__ import annotations

from collections.abc import Sequence

from papyra.exceptions import StoreError
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.outbox import HandedOver, RefusedEvent

__all__ = ("count", "handed_over", "put_back", "refused", "remove", "set_aside")

#: Events of a part, at most.
_EVENTS = 1_000
#: Before every id that there can be.
_FIRST = -(2**63)

# What is behind the limit is not even read: events may be large.
_SELECT = """
SELECT id, record FROM (
    SELECT id, record, octet_length(record::text) AS own,
        sum(octet_length(record::text)) OVER (ORDER BY id) AS upto
    FROM (
        SELECT id, record FROM {schema}.papyra_outbox
        WHERE system_id = %(system)s AND id > %(after)s ORDER BY id LIMIT %(limit)s
    ) AS first
) AS sized
WHERE upto <= %(size)s OR upto = own ORDER BY id
"""


def handed_over(system: System, after: int | None, size: int) -> list[HandedOver]:
    """Return the first that wait, after an id, of so many bytes together; or one of more."""
    start = _FIRST if after is None else after
    rows = system.rows(_SELECT, after=start, size=size, limit=_EVENTS)
    return [HandedOver(number, bytes(data)) for number, data in rows]


def remove(system: System, handed: Sequence[HandedOver]) -> None:
    """Remove what was read. Raises `StoreError` if it is not there any more as it was.

    An application may have taken back what it had handed over, or changed it.
    """
    if not handed:
        return
    rows = system.rows(
        "DELETE FROM {schema}.papyra_outbox WHERE system_id = %(system)s AND id = ANY(%(ids)s)"
        " RETURNING id, record",
        ids=[each.id for each in handed],
    )
    if {number: bytes(data) for number, data in rows} != {each.id: each.data for each in handed}:
        raise StoreError("the outbox was changed while it was read: it is looked at again")


def put_back(system: System, handed: Sequence[HandedOver]) -> None:
    """Undo a removal, in the transaction that takes back what was appended with it."""
    for each in handed:
        system.run(
            "INSERT INTO {schema}.papyra_outbox (id, system_id, record)"
            " VALUES (%(id)s, %(system)s, %(record)s::json)",
            id=each.id,
            record=each.data.decode(),
        )


def set_aside(system: System, handed: HandedOver, reason: str, now: float) -> None:
    """Move what can't be taken over to the table of what was refused, if it is still there."""
    system.run(
        "WITH taken AS ("
        " DELETE FROM {schema}.papyra_outbox WHERE system_id = %(system)s AND id = %(id)s"
        " AND record::text = %(record)s RETURNING system_id, record)"
        " INSERT INTO {schema}.papyra_outbox_refused (system_id, record, reason, refused_at)"
        " SELECT system_id, record, %(reason)s, %(now)s FROM taken",
        id=handed.id,
        record=handed.data.decode(),
        reason=reason.replace("\0", "\\0"),
        now=now,
    )


def refused(system: System, after: int | None) -> list[RefusedEvent]:
    """Return some of what was set aside, after an id."""
    rows = system.rows(
        "SELECT id, reason FROM {schema}.papyra_outbox_refused"
        " WHERE system_id = %(system)s AND id > %(after)s ORDER BY id LIMIT %(limit)s",
        after=_FIRST if after is None else after,
        limit=_EVENTS,
    )
    return [RefusedEvent(number, reason) for number, reason in rows]


def count(system: System) -> tuple[int, int]:
    """Return how many wait, and how many were set aside."""
    waiting, refused = system.row(
        "SELECT (SELECT count(*) FROM {schema}.papyra_outbox WHERE system_id = %(system)s),"
        " (SELECT count(*) FROM {schema}.papyra_outbox_refused WHERE system_id = %(system)s)"
    )
    return int(waiting), int(refused)
