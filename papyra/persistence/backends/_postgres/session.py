"""The session: a connection while there is one, and tries to get another while there is none."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

from papyra.exceptions import (
    PersistenceError,
    StoreNotAcknowledged,
    StoreNotReady,
    StoreNotWritable,
    StoreUnreachable,
)
from papyra.persistence.backends._postgres.connection import Connection, connect
from papyra.persistence.backends._postgres.errors import store_error
from papyra.persistence.backends._postgres.settings import Settings
from papyra.persistence.backends._postgres.system import System

__all__ = ("Patience", "Session")

ResultT = TypeVar("ResultT")

#: Seconds from the first try to the second, at most; and from a later one to the next.
_BACKOFF, _LONGEST_BACKOFF = 0.05, 1.0
#: What passes by itself, or with another connection.
_PASSING = (StoreUnreachable, StoreNotReady)


class Patience:
    """The tries of one operation: as many as there is time for, with more and more between them.

    Waits as in "Exponential Backoff And Jitter" of the AWS Architecture Blog: with full jitter.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._give_up_at = time.monotonic() + settings.retry_for
        self._failures = 0

    def wait(self, error: PersistenceError, *, unless_acknowledged: bool = False) -> None:
        """Wait for the next try, or raise `error` if there is none.

        A commit that no standby has confirmed is one to be tried again where that is waited for.
        """
        delay = random.uniform(0, min(_LONGEST_BACKOFF, _BACKOFF * 2**self._failures))  # noqa: S311
        self._failures += 1
        # Of several, another one is promoted.
        is_failover = isinstance(error, StoreNotWritable) and self._settings.has_several_hosts
        is_unconfirmed = unless_acknowledged and isinstance(error, StoreNotAcknowledged)
        if not (isinstance(error, _PASSING) or is_failover or is_unconfirmed):
            raise error
        if self._is_over(delay):
            raise error
        time.sleep(delay)

    def _is_over(self, delay: float) -> bool:
        """Return whether there is no time for another try.

        Unless there is to be none at all, there is a second one: the first may have taken all of it
        to find out that an old connection is no more.
        """
        is_first = self._failures == 1 and self._settings.retry_for > 0
        return not is_first and time.monotonic() + delay > self._give_up_at


class Session:
    """The connection of a store, for its thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        #: who is connected, for others
        self.writer = ""

    def call(self, operation: Callable[[System], ResultT]) -> ResultT:
        """Return what `operation` returns, trying again while the trouble may pass.

        So it must not mind being made twice. Raises a `PersistenceError`, with the error of psycopg
        as its cause.
        """
        patience = Patience(self._settings)
        while True:
            try:
                return self.attempt(operation)
            except PersistenceError as error:
                patience.wait(error)

    def attempt(self, operation: Callable[[System], ResultT]) -> ResultT:
        """Return what `operation` returns, trying it once."""
        try:
            if self._connection is None:
                self._connection = connect(self._settings, self.writer)
            return operation(System(self._connection, self._settings))
        except psycopg.Error as error:
            self._drop_if_lost(error)
            # An error holds its connection, which knows the password; a copy holds none.
            cause = copy.copy(error)
        except StoreNotWritable:
            self.close()  # the next one may lead elsewhere
            raise
        raise self._named(cause) from cause

    def _named(self, error: psycopg.Error) -> PersistenceError:
        """Return what an error of psycopg means, without anything secret in it."""
        meant = store_error(error, self._settings.location)
        text = str(meant)
        for secret in self._settings.secrets:
            if secret in text:
                text = text.replace(secret, "...")
                error.args = (text,)
        return type(meant)(text)

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _drop_if_lost(self, error: psycopg.Error) -> None:
        """Let go of a connection that is no more, or leads to where nothing can be written."""
        connection = self._connection
        if connection is None:
            return
        status = connection.info.transaction_status
        is_idle = status == psycopg.pq.TransactionStatus.IDLE
        if connection.closed or not is_idle or error.sqlstate in {"25006", "26000", "0A000"}:
            self.close()
