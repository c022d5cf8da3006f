"""Optional parts of a `Store` whose operations block."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from papyra.persistence.backends._io.blocking_operations import (
    BlockingEncodedHistories,
    BlockingInbox,
    BlockingMigrating,
    BlockingOutbox,
    BlockingPositions,
    BlockingRebasing,
)
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends._io.threaded_store import ThreadedStore
from papyra.persistence.backends._io.worker_thread import WorkerThread
from papyra.persistence.backends.store import Batch, NewBase
from papyra.persistence.messages import EncodedHistory, HistoryPage, ReadHistory
from papyra.persistence.outbox import HandedOver, RefusedEvent
from papyra.persistence.reports import CompactionReport, MigrationReport
from papyra.persistence.retention import RetentionPolicy

__all__ = (
    "ThreadedEncodedHistories",
    "ThreadedInbox",
    "ThreadedMigrating",
    "ThreadedOutbox",
    "ThreadedPositions",
    "ThreadedRebasing",
)


class ThreadedEncodedHistories(ThreadedStore):
    """One with `EncodedHistories`."""

    blocking: BlockingEncodedHistories

    async def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        """Return a page of one actor's history, as it is stored."""
        timeout = self.call_timeout
        return await self._run(self.blocking.read_encoded_history, request, timeout=timeout)


class ThreadedRebasing(ThreadedStore):
    """One with `Rebasing`."""

    blocking: BlockingRebasing

    async def compact_histories(
        self, bases: Sequence[NewBase], policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Store bases and remove what they stand for, and then do as `compact` does."""
        if dry_run:
            return await self._run(self.blocking.count_hidden, policy, now, bases)
        self._require_writable()
        return await self._run(self.blocking.drop_hidden, policy, now, bases)


class ThreadedPositions(ThreadedStore):
    """One with `Positions`."""

    blocking: BlockingPositions

    async def load_position(self, name: str) -> bytes | None:
        """Return a position, or `None`."""
        return await self._run(self.blocking.load_position, name, timeout=self.call_timeout)

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Set a position in one step, if it is as expected."""
        self._require_writable()
        timeout = self.call_timeout
        return await self._run(self.blocking.save_position, name, data, expected, timeout=timeout)

    async def remove_position(self, name: str, expected: bytes) -> bool:
        """Remove a position, if it is as expected."""
        self._require_writable()
        timeout = self.call_timeout
        return await self._run(self.blocking.remove_position, name, expected, timeout=timeout)

    async def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        """Return a page of the names of positions."""
        timeout = self.call_timeout
        return await self._run(self.blocking.list_positions, after, limit, timeout=timeout)


class ThreadedInbox(ThreadedStore):
    """One with an `Inbox`."""

    blocking: BlockingInbox

    async def post(self, request_id: str, data: bytes) -> None:
        """Leave a request beside the records."""
        requests = self.blocking.requests
        await self._run(requests.post, request_id, data, timeout=self.call_timeout)

    async def posted(self) -> list[str]:
        """Return the ids of requests that wait."""
        return await self._run(self.blocking.requests.posted, timeout=self.call_timeout)

    async def take(self, request_id: str) -> bytes | None:
        """Take a request."""
        self._require_writable()
        requests = self.blocking.requests
        return await self._run(requests.take, request_id, timeout=self.call_timeout)

    async def answer(self, request_id: str, data: bytes) -> None:
        """Leave an answer beside the records."""
        requests = self.blocking.requests
        await self._run(requests.answer, request_id, data, timeout=self.call_timeout)

    async def answered(self, request_id: str) -> bytes | None:
        """Return the answer to a request, and remove it."""
        requests = self.blocking.requests
        return await self._run(requests.answered, request_id, timeout=self.call_timeout)

    async def withdraw(self, request_id: str) -> bool:
        """Take a request back."""
        requests = self.blocking.requests
        return await self._run(requests.withdraw, request_id, timeout=self.call_timeout)

    async def is_attended(self) -> bool:
        """Return whether there seems to be a writer, as far as that can be told."""
        return await self._run(self.blocking.holder, timeout=self.call_timeout) is not None


class ThreadedMigrating(ThreadedStore):
    """One with `Migrating`."""

    blocking: BlockingMigrating

    async def migrate(self, *, dry_run: bool) -> MigrationReport:
        """Bring the tables to the newest version, in a thread for that alone."""
        if not dry_run:
            self._require_writable()
        thread = WorkerThread(self._thread_name)
        try:
            return await thread.run(functools.partial(self.blocking.migrate, dry_run=dry_run))
        except self._driver_errors as error:
            raise self._named(error) from error
        finally:
            thread.stop()


class ThreadedOutbox(ThreadedStore):
    """One with an `Outbox`."""

    blocking: BlockingOutbox

    async def handed_over(self, after: int | None, size: int) -> Sequence[HandedOver]:
        """Return the first of what waits in the outbox, of so many bytes."""
        timeout = self.call_timeout
        return await self._run(self.blocking.handed_over, after, size, timeout=timeout)

    async def take_over(self, handed: Sequence[HandedOver], batch: Batch) -> None:
        """Store a batch, and remove from the outbox what it was made of, in one transaction."""
        token, timeout = CommitToken(), self.call_timeout
        await self._run(self.blocking.append, batch, token, handed, timeout=timeout, token=token)

    async def set_aside(self, refused: Sequence[tuple[HandedOver, str]], now: float) -> None:
        """Move what can't be taken over to the table of what was refused, in one transaction."""
        self._require_writable()
        await self._run(self.blocking.set_aside, refused, now, timeout=self.call_timeout)

    async def refused(self, after: int | None) -> Sequence[RefusedEvent]:
        """Return some of what was set aside."""
        return await self._run(self.blocking.refused, after, timeout=self.call_timeout)
