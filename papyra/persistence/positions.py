"""Positions: small values by name beside the records, each changed by compare-and-set.

They are for whoever follows a store and has no other place to note how far that is, so that two who
do so under one name can't overwrite each other. They are no records: nobody who follows the store
is told of them. Unlike snapshots, they are as lasting as the records; and as they say which store
they are about, a copy of the store has none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from papyra._safe_repr import shown
from papyra.exceptions import InvalidRequest

#: Characters of a name, at most: up to 1,000 bytes in UTF-8.
MAX_POSITION_NAME = 250
#: Bytes of a position, at most.
MAX_POSITION_BYTES = 64 * 1024


@runtime_checkable
class Positions(Protocol):
    """An optional part of a `Store`: bytes beside the records, by name, changed by compare-and-set.

    A name is text, from 1 to `MAX_POSITION_NAME` characters of what UTF-8 can encode, and names
    that differ in anything are different ones. Data is up to `MAX_POSITION_BYTES`, and may be
    empty, which is not the same as nothing. It is as durable as the records: on return as an append
    is. A scan, a recovery, a compaction and a copy leave it alone.

    `save_position` and `remove_position` are called after `claim`, as `append` is. They are the
    writer's: one that another writer has taken over from changes nothing, and raises `StoreFenced`.
    Raising or cancelled, they have done all or nothing. `load_position` and `list_positions` are
    called on stores that are only looked at, too, and find nothing where an older version has no
    place for positions.
    """

    async def load_position(self, name: str) -> bytes | None:
        """Return what was saved last, or `None` if there is nothing.

        Raises `StoreDamaged` where that can be told not to be what was saved.
        """

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Store `data` if `expected` is what is there; `None` stands for nothing.

        Return whether it was: if not, nothing is changed.
        """

    async def remove_position(self, name: str, expected: bytes) -> bool:
        """Remove what is there if it is `expected`; return whether it was."""

    async def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        """Return up to `limit` of the names that have a position, in an order of the store's own.

        The first page comes after `None`, the next after the last of this one, be that there still
        or not; fewer than `limit` are the last page.
        """


def check_position_name(name: object) -> None:
    """Raise `InvalidRequest` for what is no name of a position."""
    if type(name) is not str or not 0 < len(name) <= MAX_POSITION_NAME:
        raise InvalidRequest(
            f"the name of a position is a string of 1 to {MAX_POSITION_NAME} characters, "
            f"not {shown(name)}"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"the name of a position is text that UTF-8 can encode, not {shown(name)}"
        ) from None


def check_position_data(field: str, data: object) -> None:
    """Raise `InvalidRequest` for what can't be kept as a position."""
    if type(data) is not bytes:
        raise InvalidRequest(f"{field} is bytes, not {shown(data)}")
    if len(data) > MAX_POSITION_BYTES:
        raise InvalidRequest(
            f"{field} has at most {MAX_POSITION_BYTES:,} bytes, and this has {len(data):,}"
        )
