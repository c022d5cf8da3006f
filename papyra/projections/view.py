"""View: the database that a projection writes, and what is asked of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy
from papyra.projections.builds import Build, Builds
from papyra.projections.database import ViewDatabase

__all__ = ("View", "checked_lease")

TxT = TypeVar("TxT")


class View(ABC, Generic[TxT]):
    """A database that projections write; `TxT` is the transaction that they get.

    It may hold other tables, and be other programs' as well. Nothing is opened until a projection
    runs, or one of these is called.
    """

    #: seconds after which another runner may take over from one that was not heard of
    lease: float = 10.0

    @property
    @abstractmethod
    def location(self) -> str:
        """The location of the database, without its secrets."""

    def is_there(self) -> bool:
        """Return whether there may be such a database, without making one."""
        return True

    @abstractmethod
    def database(self) -> ViewDatabase[TxT]:
        """Return a connection that is to be opened."""

    def read_status(self) -> Sequence[Build]:
        """Return every build of every projection in this view. Blocks; changes nothing.

        Raises `ViewUnavailable` if the database can't be reached.
        """
        if not self.is_there():
            return ()
        with _opened(self.database(), to_read=True) as database:
            return Builds(database, "").all() if database.has_tables() else ()

    def post(self, name: str, request: str) -> bool:
        """Ask the runner of a projection for something; return whether there is such a projection.

        It looks for that once a second, and empties it when it is done. Blocks. Raises
        `ViewUnavailable` if the database can't be reached.
        """
        if not self.is_there():
            return False
        with _opened(self.database(), to_read=False) as database:
            if not database.has_tables():
                return False
            with database.transaction():
                return Builds(database, name).post(request)


def checked_lease(lease: object) -> float:
    """Return the seconds of a lease. Raises `InvalidPolicy`."""
    if not is_seconds(lease, 0.1, finite=True):
        raise InvalidPolicy(f"lease is seconds, 0.1 or more, not {shown(lease)}")
    return float(lease)  # type: ignore[arg-type]


class _opened(AbstractContextManager[ViewDatabase[Any]]):  # noqa: N801 - as contextlib's own
    def __init__(self, database: ViewDatabase[Any], *, to_read: bool) -> None:
        self._database = database
        self._to_read = to_read

    def __enter__(self) -> ViewDatabase[Any]:
        self._database.open(to_read=self._to_read)
        return self._database

    def __exit__(self, *exc_info: object) -> None:
        self._database.close()
