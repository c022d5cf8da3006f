"""The `Store` of the PostgreSQL backend."""

from __future__ import annotations

import psycopg

from papyra.persistence.backends._io.threaded_parts import (
    ThreadedEncodedHistories,
    ThreadedInbox,
    ThreadedMigrating,
    ThreadedOutbox,
    ThreadedPositions,
    ThreadedRebasing,
)
from papyra.persistence.backends._postgres.blocking_store import NAME, BlockingStore
from papyra.persistence.backends._postgres.settings import Settings
from papyra.persistence.backends._postgres.text import column_text
from papyra.persistence.backends.store import StoredSnapshot

__all__ = ("PostgresStore",)


class PostgresStore(
    ThreadedEncodedHistories,
    ThreadedRebasing,
    ThreadedPositions,
    ThreadedInbox,
    ThreadedMigrating,
    ThreadedOutbox,
):
    """A `Store` in a PostgreSQL database."""

    name = NAME
    blocking: BlockingStore
    _driver_errors = (psycopg.Error,)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        super().__init__(
            BlockingStore(settings),
            thread_name=f"papyra {settings.system_id}",
            shown_name=settings.location,
            read_only=settings.read_only,
            # Each statement has one of its own.
            call_timeout=None,
        )

    @property
    def location(self) -> str:
        """The URL, without anything that may be secret."""
        return self.settings.location

    def snapshot_owner(self, actor: str) -> str:
        """Return the address, as columns have it."""
        return column_text(actor)

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return await self._run(self.blocking.load_listed, stored)

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove a snapshot, if it is there."""
        self._require_writable()
        await self._run(self.blocking.remove_listed, stored)

    def _named(self, error: Exception, operation: str = "") -> Exception:
        del operation
        return error
