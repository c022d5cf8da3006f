"""What retention hides of a kind: up to which position, by the totals of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from papyra.persistence.backends._sql.blocks import Totals
from papyra.persistence.retention import Limits

__all__ = ("FOREVER", "Hidden", "hidden_by")

FOREVER = float("inf")

#: Returns position and weight of each record in a block, the newest first: its bytes, or one.
Weights: TypeAlias = Callable[[Totals, bool], Iterable[tuple[int, int]]]


class Hidden(NamedTuple):
    """What retention hides of a kind: all up to a position, and all that is older than a time."""

    through: int
    oldest: float


def hidden_by(
    limits: Limits, now: float, newest_blocks: Callable[[], Iterable[Totals]], weights: Weights
) -> Hidden:
    """Return what `limits` hide of a kind at Unix time `now`, by its blocks, the newest first."""
    through = 0
    for limit, in_bytes in ((limits.max_records, False), (limits.max_total_bytes, True)):
        if limit is not None:
            through = max(through, _last_surplus(limit, newest_blocks(), weights, in_bytes))
    oldest = limits.oldest_time(now)
    return Hidden(through, -FOREVER if oldest is None else oldest)


def _last_surplus(left: int, blocks: Iterable[Totals], weights: Weights, in_bytes: bool) -> int:
    """Return the position of the newest record that does not fit into a limit, or 0."""
    for block in blocks:
        size = block.bytes if in_bytes else block.records
        if size > left:
            for seq, weight in weights(block, in_bytes):
                if weight > left:
                    return seq
                left -= weight
            return 0
        left -= size
    return 0
