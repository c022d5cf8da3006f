"""The trimming of histories: a base takes the place of an event, and those before it go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from papyra.exceptions import StoreError
from papyra.persistence.backends._postgres.arrays import JsonArray
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.text import column_text
from papyra.persistence.backends._sql.tables import checksum
from papyra.persistence.backends._sql.trimming import Freed, StepRow, freed_by
from papyra.persistence.backends.store import NewBase
from papyra.persistence.bases import BASE_TYPE

__all__ = ("count_freed", "trim")

_OF_ACTOR = "system_id = %(system)s AND actor = %(actor)s"
#: Rows that are fetched together.
_FETCHED = 100


def count_freed(system: System, bases: Sequence[NewBase]) -> Freed:
    """Return what `trim` would remove. Raises `StoreDamaged` where it would."""
    freed = [freed_by(base, _rows(system, base)) for base in bases]
    return Freed(sum(each.records for each in freed), sum(each.bytes for each in freed))


def trim(system: System, bases: Sequence[NewBase]) -> None:
    """Have histories begin with their bases, within a transaction.

    Snapshots of what is removed go, too: what they were taken after is not there any more. Raises
    `StoreDamaged` where not each event is what was stored, and `StoreError` if a base is not there
    when it is read back.
    """
    for base in bases:
        freed_by(base, _rows(system, base))
        _place(system, base)
        for table in ("events", "snapshots"):
            system.run(
                f"DELETE FROM {{schema}}.{table} WHERE {_OF_ACTOR}"  # noqa: S608 - constants
                " AND revision < %(revision)s",
                actor=column_text(base.actor),
                revision=base.revision,
            )


def _rows(system: System, base: NewBase) -> Iterator[StepRow]:
    revision, seq = 0, 0
    while True:
        rows = system.rows(
            "SELECT seq, crc, record, revision FROM {schema}.events"  # noqa: S608
            f" WHERE {_OF_ACTOR} AND revision IS NOT NULL AND revision <= %(last)s"
            " AND (revision, seq) > (%(revision)s, %(seq)s)"
            f" ORDER BY revision, seq LIMIT {_FETCHED}",
            actor=column_text(base.actor),
            last=base.revision,
            revision=revision,
            seq=seq,
        )
        yield from rows
        if len(rows) < _FETCHED:
            return
        seq, revision = rows[-1][0], rows[-1][3]


def _place(system: System, base: NewBase) -> None:
    """Put a base in the place of its event, and read it back."""
    crc = checksum(base.seq, base.encoded)
    stored = system.rows(
        "UPDATE {schema}.events SET type = %(type)s, crc = %(crc)s, bytes = %(bytes)s,"
        " record = (%(record)b)[1] WHERE system_id = %(system)s AND seq = %(seq)s"
        " RETURNING crc, record",
        type=BASE_TYPE,
        crc=crc,
        bytes=len(base.encoded),
        record=JsonArray.of([base.encoded]),
        seq=base.seq,
    )
    if stored != [(crc, base.encoded)]:
        raise StoreError(f"the base at position {base.seq} is not there; nothing was changed")
