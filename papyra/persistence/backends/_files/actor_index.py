"""Where in a file the lines of one actor begin: an entry for each line, found by its actor.

What was added of late is in a dictionary. The rest is numbers: a hash of the actor's address above,
where the line begins below, sorted, in a few runs of falling length. So adding one costs next to
nothing, and finding an actor's a search in each run. It is never believed over the lines: who reads
one looks at whose it is.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload
from zlib import crc32

#: What one line takes here.
ENTRY_BYTES = 8
#: Bits that say where a line begins: files up to a terabyte.
_OFFSET_BITS = 40
_OFFSETS = (1 << _OFFSET_BITS) - 1
#: Entries that are in the dictionary, at most. They take about 100 bytes.
_RECENT = 1 << 16
#: How much longer a run is than the one that follows; and the longest that is merged with others.
_RATIO, _LONGEST = 4, 1 << 20


class ActorIndex:
    """The lines of actors in one file, up to where it was read."""

    def __init__(self) -> None:
        self._runs: list[array[int]] = []
        self._recent: dict[str, list[int]] = {}
        self._recent_entries = 0

    def __len__(self) -> int:
        return self._recent_entries + sum(map(len, self._runs))

    def add(self, actor: str, offset: int) -> None:
        """Add a line of an actor's that begins at byte `offset`, behind all that were added."""
        offsets = self._recent.get(actor)
        if offsets is None:
            self._recent[actor] = [offset]
        else:
            offsets.append(offset)
        self._recent_entries += 1
        if self._recent_entries >= _RECENT:
            self._sort_in()

    def offsets(self, actor: str) -> Sequence[int]:
        """Return where lines begin that may be an actor's, in their order; all of its are there.

        They are looked up as they are taken, so a few of many cost what they cost.
        """
        first = _hash(actor) << _OFFSET_BITS
        parts: list[_Part] = []
        for run in self._runs:
            start = bisect_left(run, first)
            stop = bisect_left(run, first + _OFFSETS + 1, start)
            if start < stop:
                parts.append(_Part(run, start, stop))
        if (recent := self._recent.get(actor)) is not None:
            parts.append(_Part(recent, 0, len(recent)))
        return _Offsets(parts)

    def dump(self) -> bytes:
        """Return the entries as bytes; `load` reads them on the same machine."""
        self._sort_in()
        return _merged(*self._runs).tobytes()

    @classmethod
    def load(cls, data: bytes) -> ActorIndex:
        """Return the index that `dump` wrote. Raises `ValueError` if that can't be."""
        index, run = cls(), array("Q")
        run.frombytes(data)
        if run.tolist() != sorted(run):
            raise ValueError("the entries of an index don't rise")
        if run:
            index._runs.append(run)
        return index

    def _sort_in(self) -> None:
        recent, self._recent, self._recent_entries = self._recent, {}, 0
        if not recent:
            return
        run = array("Q", sorted(_entries(recent)))
        while self._runs and len(self._runs[-1]) < _RATIO * len(run) and len(run) < _LONGEST:
            run = _merged(self._runs.pop(), run)
        self._runs.append(run)


class _Part(NamedTuple):
    """The entries of one actor in a run, or among those that were added of late."""

    entries: Sequence[int]
    start: int
    stop: int


class _Offsets(Sequence[int]):
    """Where an actor's lines begin. In each part, all are behind those of the part before."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._length = sum([part.stop - part.start for part in parts])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, position: int) -> int: ...
    @overload
    def __getitem__(self, position: slice) -> list[int]: ...
    def __getitem__(self, position: int | slice) -> int | list[int]:
        if isinstance(position, slice):
            start, stop, step = position.indices(self._length)
            if step != 1:
                return [self[number] for number in range(start, stop, step)]
            return self._between(start, stop)
        (offset,) = self._between(*_one(position, self._length))
        return offset

    def _between(self, first: int, last: int) -> list[int]:
        found: list[int] = []
        for entries, start, stop in self._parts:
            if last <= 0:
                break
            if first < stop - start:
                found += entries[start + max(first, 0) : min(start + last, stop)]
            first, last = first - (stop - start), last - (stop - start)
        return [entry & _OFFSETS for entry in found]


def _one(position: int, length: int) -> tuple[int, int]:
    number = range(length)[position]  # raises `IndexError`
    return number, number + 1


def _entries(offsets_by_actor: dict[str, list[int]]) -> Iterable[int]:
    for actor, offsets in offsets_by_actor.items():
        above = _hash(actor) << _OFFSET_BITS
        for offset in offsets:
            yield above | offset


def _merged(*runs: array[int]) -> array[int]:
    # Timsort takes what is sorted already as it is, and merges it in one pass.
    return array("Q", sorted([entry for run in runs for entry in run]))


def _hash(actor: str) -> int:
    """Return the same 24 bits for an actor on every machine."""
    return crc32(actor.encode("utf-8", "surrogatepass")) & 0xFFFFFF
