"""Migrations: the versions of a database's tables, and the steps from each to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from papyra.exceptions import StoreOutdated, StoreTooNew

__all__ = ("Migration", "newest", "pending", "require_version")


class Migration(NamedTuple):
    """The step to a version from the one before, which is one transaction."""

    version: int
    #: in words, for whoever is asked whether to do it
    what: str
    #: the tables that it makes
    tables: frozenset[str]
    statements: tuple[str, ...]


def newest(migrations: Sequence[Migration]) -> int:
    """Return the version that this program writes."""
    return migrations[-1].version


def pending(migrations: Sequence[Migration], found: object) -> list[Migration]:
    """Return the steps that tables of a version need, 0 where there are none.

    Raises `StoreTooNew` for a version that this program does not know.
    """
    known = newest(migrations)
    if type(found) is not int or not 0 <= found <= known:
        raise StoreTooNew(
            f"the tables are of version {found!r}, and this Papyra knows version {known}: "
            "a newer Papyra has made them, and reads them"
        )
    return [each for each in migrations if each.version > found]


def require_version(migrations: Sequence[Migration], found: object, oldest: int) -> None:
    """Raise `StoreTooNew`, or for a version before `oldest` `StoreOutdated`."""
    pending(migrations, found)
    if isinstance(found, int) and found < oldest:
        raise StoreOutdated(
            f"the tables are of version {found}, and this Papyra needs version {oldest}: "
            "'papyra migrate STORE', or migrate() of its backend, brings them there, and keeps "
            "everything in them"
        )
