"""The trimming of histories: what goes with a base, by the rows that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from papyra._safe_repr import shown
from papyra.exceptions import StoreDamaged, StoreError
from papyra.persistence import codec
from papyra.persistence.backends._sql.tables import checksum
from papyra.persistence.backends.store import NewBase

__all__ = ("Freed", "StepRow", "freed_by")

#: Position, checksum, bytes and revision of an event of a history.
StepRow: TypeAlias = tuple[int, int, bytes, int]


class Freed(NamedTuple):
    """The room that bases make."""

    #: that go
    records: int
    #: encoded; fewer than none where a base takes more than what goes
    bytes: int


def freed_by(base: NewBase, rows: Iterable[StepRow]) -> Freed:
    """Return what goes with a base, by the rows of its actor up to its revision.

    Raises `StoreDamaged` unless each of them is what was stored there: what is removed must be what
    the base stands for, and what a column says may be wrong.
    """
    records = size = places = 0
    for seq, crc, encoded, revision in rows:
        if not _is_sound(base.actor, seq, crc, encoded, revision):
            raise StoreDamaged(
                f"record {seq} of the history of {shown(base.actor)} is damaged: recover the store "
                "before trimming its histories"
            )
        if revision < base.revision:
            records += 1
            size += len(encoded)
        elif seq == base.seq:
            places += 1
            size += len(encoded) - len(base.encoded)
    if places != 1:
        raise StoreError(
            f"the history of {shown(base.actor)} has no revision {base.revision} at position "
            f"{base.seq}: nothing was trimmed"
        )
    return Freed(records, size)


def _is_sound(actor: str, seq: int, crc: object, encoded: object, revision: int) -> bool:
    return (
        isinstance(encoded, bytes)
        and crc == checksum(seq, encoded)
        and codec.concerned(encoded) == (actor, revision)
    )
