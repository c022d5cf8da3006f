"""ViewDatabase: one connection to the database of a view, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

__all__ = ("ViewDatabase",)

TxT = TypeVar("TxT")


class ViewDatabase(ABC, Generic[TxT]):
    """A connection, all of whose calls block. Used by one thread, but for `interrupt`.

    SQL is given with ``?`` for each parameter.
    """

    #: SQL for Unix time in seconds, by the clock of the database
    now: str
    #: SQL behind a SELECT that locks the row for the transaction
    for_update: str = ""
    #: whether users' code has the transaction
    in_handler = False

    @abstractmethod
    def open(self, *, to_read: bool = False) -> None:
        """Connect. Raises `ViewUnavailable`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection, whatever state it is in. Raises nothing."""

    @abstractmethod
    def interrupt(self) -> None:
        """Have what is being executed fail, from any thread. Raises nothing."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[TxT]:
        """Commit what is written within, or, where that or the commit raises, none of it."""

    @abstractmethod
    def transaction_check(self) -> Callable[[], bool]:
        """Return what returns, at no cost, whether the transaction is still as it was begun."""

    @abstractmethod
    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""

    @abstractmethod
    def change(self, sql: str, *parameters: Any) -> int:
        """Execute a statement, and return how many rows it has changed."""

    @abstractmethod
    def has_tables(self) -> bool:
        """Return whether Papyra's own tables are there."""

    @abstractmethod
    def outage(self, error: BaseException) -> str | None:
        """Return what an error says about the database itself; `None` if it is about what was done.

        So it is where trying again later may help, without anything being changed by anybody.
        """

    @abstractmethod
    def is_refused(self, error: BaseException) -> bool:
        """Return whether an error is that a handler was not allowed to end the transaction."""
