"""How much is run: enough in a few minutes, or, with ``PAPYRA_CI=1``, all of it.

Without that variable, tests run on fewer event loops, commands are carried out by the tests or by
forks of them, and what is tried at random or step by step is tried less often. The variables of
single files, which their docstrings name, count before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

__all__ = ("CI", "STEP", "count", "some")

T = TypeVar("T")

CI = bool(os.environ.get("PAPYRA_CI"))
#: Every how many-th step is tried where in CI each is.
STEP = 1 if CI else 13


def count(variable: str, few: int, many: int) -> int:
    """Return how many of something are tried: what `variable` says, or few, or in CI many."""
    return int(os.environ.get(variable, many if CI else few))


def some(items: Iterable[T], *, every: int) -> list[T]:
    """Return every how many-th of the items, from the first on; in CI all of them."""
    return list(items)[:: 1 if CI else every]
