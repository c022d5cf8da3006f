"""Salvage: every row that can be read, around pages that can't."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from papyra.persistence.backends._sqlite.errors import is_damage

__all__ = ("Lost", "salvaged")

#: Selects the rows whose first column, an integer, is from one number to another, in order.
Select: TypeAlias = Callable[[int, int], Iterator[tuple[Any, ...]]]
#: Is told from which number to which rows can't be read, if there are any.
Lost: TypeAlias = Callable[[int, int], None]

#: Selections that are tried and fail, at most: a page higher up leads to very many rows.
_FAILURES = 100_000


def salvaged(select: Select, first: int, last: int, lost: Lost) -> Iterator[tuple[Any, ...]]:
    """Yield the rows from `first` to `last` that can be read: what fails is halved again."""
    ranges, failures = [(first, last)], 0
    lost_from: int | None = None
    while ranges:
        start, stop = ranges.pop()
        try:
            for row in select(start, stop):
                if lost_from is not None:
                    lost(lost_from, row[0] - 1)
                    lost_from = None
                start = row[0] + 1
                yield row
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            lost_from = start if lost_from is None else lost_from
            failures += 1
            if start < stop and failures < _FAILURES:
                middle = (start + stop) // 2
                ranges += [(middle + 1, stop), (start, middle)]
    if lost_from is not None:
        lost(lost_from, last)
