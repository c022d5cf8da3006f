"""One store between its opening and its closing: where it ends, and how it fails."""

from __future__ import annotations

import contextlib
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Literal, ParamSpec, TypeVar, cast

import anyio

from papyra._safe_repr import shown
from papyra.exceptions import (
    BackendClosed,
    BackendInUse,
    InvalidRecord,
    InvalidRequest,
    PersistenceError,
    PositionsExhausted,
    StoreChanged,
    StoreError,
    StoreFenced,
    StoreMoved,
)
from papyra.persistence import codec
from papyra.persistence.backends.revisions import Revisions, histories_of, part_of_histories
from papyra.persistence.backends.store import (
    MAX_SEQ,
    Batch,
    EncodedHistories,
    Losing,
    Store,
)
from papyra.persistence.commit_counters import CommitCounters
from papyra.persistence.messages import (
    Appended,
    EncodedHistory,
    HistoryPage,
    ReadEncodedHistory,
    ReadHistory,
)
from papyra.persistence.metrics import PersistenceMetrics
from papyra.persistence.records import Record

Operation = Literal["write", "read", "scan", "recovery", "compaction", "snapshot"]

_RECORDS = (tuple, list)
_WRITES = ("write", "snapshot")
#: Says that others write the store, or that it is not the one any more that was opened.
_LOST = (StoreFenced, BackendInUse, StoreMoved, StoreChanged)
#: Characters of what a store raises that are passed on.
_ERROR_LENGTH = 4000

ResultT = TypeVar("ResultT")
Parameters = ParamSpec("Parameters")


class StoreSession:
    """Opens a store when it is needed, gives positions, counts, and names what it raises.

    For one task at a time. `stored` is called with each batch before whoever appended it knows, and
    `overtaken` when there is more in the store than those batches.
    """

    def __init__(
        self,
        store: Store,
        metrics: PersistenceMetrics,
        stored: Callable[[Batch], None],
        overtaken: Callable[[], None],
        *,
        backend: str,
    ) -> None:
        self.state: Literal["new", "open", "closed"] = "new"
        #: the greatest position that is known to be given
        self.last_seq = 0
        #: the last revisions of actors; nothing is known of them while the store is not claimed
        self.revisions = Revisions(self._last_revisions)
        self._store = store
        self._losing = store if isinstance(store, Losing) else None
        self.metrics = metrics
        #: counts commits by size and time, where somebody wants to know
        self.commit_counters: CommitCounters | None = None
        self._stored = stored
        self._overtaken = overtaken
        #: what errors call it
        self._backend = backend
        #: whether an append may follow without a `claim`
        self._is_claimed = False
        #: whether one was claimed since the opening, and nobody is known to have taken over
        self.is_writer = False

    def reopen(self) -> None:
        """Let the store be opened again if it was closed."""
        if self.state == "closed":
            self.state = "new"

    async def make_ready(self, operation: str) -> None:
        """Open the store if it is new. Raises `BackendClosed` for what it can't do closed."""
        if self.state == "new":
            with _store_errors("open"):
                await self._store.open()
            try:
                with _store_errors("open"):
                    self.last_seq = await self._store.last_seq()
            except BaseException:
                with anyio.CancelScope(shield=True), _store_errors("close"):
                    await self._store.close()
                raise
            self.unclaim()
            self.is_writer = False
            self.state = "open"
        elif self.state == "closed" and (
            operation in _WRITES or not self._store.capabilities.readable_when_closed
        ):
            raise BackendClosed(
                f"this {self._backend} is closed: "
                "host it again, or enter it with 'async with', to go on"
            )

    async def shut(self) -> None:
        """Flush and close the store if it is open."""
        was_open = self.state == "open"
        self.state = "closed"
        self.unclaim()
        if was_open:
            try:
                with _store_errors("flush"):
                    await self._store.flush()
            finally:
                with _store_errors("close"):
                    await self._store.close()

    async def attempt(
        self,
        operation: Operation,
        method: Callable[Parameters, Awaitable[ResultT]],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> ResultT:
        """Return what a method of the store returns; count what it raises."""
        try:
            await self.make_ready(operation)
            with _store_errors(operation):
                return await method(*args, **kwargs)
        except PersistenceError as error:
            self._judge(error)
            counter = f"{operation}_errors"
            setattr(self.metrics, counter, getattr(self.metrics, counter) + 1)
            raise

    async def attempt_as_writer(
        self,
        method: Callable[Parameters, Awaitable[ResultT]],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> ResultT:
        """Return what a method of the store returns that only the writer calls.

        Whatever it raises, the store is claimed again before it is written next.
        """
        is_done = False
        try:
            await self.make_ready("write")
            if not self._is_claimed:
                await self._claim()
            with _store_errors("write"):
                result = await method(*args, **kwargs)
            is_done = True
        except PersistenceError:
            self.metrics.write_errors += 1
            raise
        finally:
            if not is_done:
                self.unclaim()
        return result

    async def attempt_closed(
        self,
        operation: str,
        method: Callable[Parameters, Awaitable[ResultT]],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> ResultT:
        """Return what a method of the store returns that is for one that is not open."""
        with _store_errors(operation):
            return await method(*args, **kwargs)

    def write(
        self,
        records: Sequence[Record],
        encoded: Sequence[bytes],
        size: int,
        append: Callable[[Batch], Awaitable[None]] | None = None,
    ) -> Coroutine[Any, Any, int]:
        """Store records of so many encoded bytes, and return the position of the first.

        `append` is a method of the store that does as its `append` does, and more.
        """
        last_seq = self.last_seq + len(records)
        if self._is_claimed and last_seq <= MAX_SEQ and records:
            # So it is open, too.
            return self._append(Batch(self.last_seq + 1, records, encoded), size, append)
        return self._write_first(records, encoded, size, append)

    async def _write_first(
        self,
        records: Sequence[Record],
        encoded: Sequence[bytes],
        size: int,
        append: Callable[[Batch], Awaitable[None]] | None,
    ) -> int:
        """Store records as `write` does, where there is something to be done before, or to say."""
        if self.state != "open":
            await self.make_ready("write")
        if not records:
            return self.last_seq + 1
        if not self._is_claimed:
            await self._claim()
        if self.last_seq + len(records) > MAX_SEQ:
            self.revisions.forget()  # they were to be the last ones
            raise self._exhausted(len(records))
        return await self._append(Batch(self.last_seq + 1, records, encoded), size, append)

    async def restore(self, records: Sequence[Record]) -> Appended:
        """Store records at their own positions, run by run of those without a gap."""
        try:
            return await self._write_runs(records)
        except PersistenceError:
            self.metrics.write_errors += 1
            raise

    async def flush(self) -> int:
        """Flush the store, and return the greatest position that was given."""
        await self._store.flush()
        if not self._is_claimed:
            self.last_seq = await self._store.last_seq()
        return self.last_seq

    async def read_history(self, request: ReadHistory) -> HistoryPage | EncodedHistory:
        """Return a page of one actor's history; encoded, if that is asked for and the store can."""
        histories = histories_of(self._store)
        if type(request) is ReadEncodedHistory:
            if isinstance(histories, EncodedHistories):
                return await self.attempt("read", histories.read_encoded_history, request)
            request = ReadHistory(request.actor, request.after_revision, request.limit)
        return await self.attempt("read", histories.read_history, request)

    async def head(self) -> int:
        """Return the position up to which reads show what there is, for good.

        For a writer that is the last that it knows to be given. What is in doubt is behind it, and
        will be before it, or nowhere, once the store is claimed again.
        """
        if self.is_writer:
            return self.last_seq
        look = self._store.last_seq if self._losing is None else self._losing.stored_seq
        last_seq = await self.attempt("read", look)
        if not self._is_claimed:  # else the next append is to fail, as it comes late
            self.last_seq = last_seq if self._losing is None else max(last_seq, self.last_seq)
        return last_seq

    async def look_for_successor(self) -> None:
        """Find out whether another one has taken over, where the store lets it, and has written.

        What is in doubt is settled by that: whether it is there, or another one's is.
        """
        if not self.is_writer or not self._store.capabilities.durable:
            return
        if not self._is_claimed:
            await self.attempt("read", self._claim)
        elif await self.attempt("read", self._store.last_seq) > self.last_seq:
            self._lose()

    def unclaim(self) -> None:
        """Have the store claimed again before the next append."""
        self._is_claimed = False
        self.revisions.forget()

    def saw(self, records: Sequence[Record]) -> None:
        """Note how far what a read has shown goes: others may write the store."""
        if records and not self._is_claimed:
            self.last_seq = max(self.last_seq, records[-1].seq or 0)

    async def _last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        histories = histories_of(self._store)
        await self.make_ready("write")
        if not self._is_claimed:
            await self._claim()
        with _store_errors("read"):
            return await histories.last_revisions(actors)

    async def _claim(self) -> None:
        try:
            with _store_errors("write"):
                last_seq = await self._store.claim()
        except PersistenceError as error:
            self._judge(error)
            raise
        if last_seq != self.last_seq:
            self.last_seq = last_seq
            self._overtaken()
        self._is_claimed = self.is_writer = True

    def _judge(self, error: PersistenceError) -> None:
        if isinstance(error, _LOST):
            self._lose()

    def _lose(self) -> None:
        """Be no writer any more: what others write is seen by looking."""
        if self.is_writer:
            self.is_writer = False
            self._overtaken()

    async def _append(
        self,
        batch: Batch,
        size: int,
        append: Callable[[Batch], Awaitable[None]] | None = None,
    ) -> int:
        """Have the store append, and return the position of the first."""
        count = len(batch.records)
        # Whatever raises, or is cancelled: what became of the batch, the store knows.
        self._is_claimed = False
        try:
            appending = (append or self._store.append)(batch)
            if self.commit_counters is not None:
                appending = self.commit_counters.observe(appending, count)
            await appending
        except PersistenceError as error:
            self._judge(error)
            raise
        except Exception as error:
            raise _store_error("write", error) from error
        else:
            self._is_claimed = self.is_writer = True
        finally:
            if not self._is_claimed:
                self.unclaim()
        self.last_seq = batch.first_seq + count - 1
        metrics = self.metrics
        metrics.commits += 1
        metrics.records_written += count
        metrics.bytes_written += size
        self._stored(batch)
        return batch.first_seq

    async def _write_runs(self, records: Sequence[Record]) -> Appended:
        if type(records) not in _RECORDS:
            raise InvalidRecord(f"Restore takes a tuple of records, not {shown(records)}")
        encoded = codec.encode(records, restored=True)
        await self.make_ready("write")
        if records and not self._is_claimed:
            await self._claim()
        seqs = [record.seq for record in records]
        last = self.last_seq
        for seq in seqs:
            if type(seq) is not int or not last < seq <= MAX_SEQ:
                raise InvalidRequest(
                    f"record {shown(seq)} can't be restored after record {last}: "
                    f"positions only rise, up to {MAX_SEQ}"
                )
            last = seq
        first = seqs[0] or 0 if seqs else last + 1
        start = 0
        for stop in range(1, len(seqs) + 1):
            more = stop < len(seqs)
            if more and seqs[stop] == cast("int", seqs[stop - 1]) + 1:
                continue
            part, first_seq = encoded[start:stop], cast("int", seqs[start])
            batch = Batch(first_seq, records[start:stop], part, restored=True, more=more)
            if part_of_histories(batch.records):
                self.revisions.forget()
            await self._append(batch, sum(map(len, part)))
            start = stop
        return Appended(first, last)

    def _exhausted(self, count: int) -> PositionsExhausted:
        return PositionsExhausted(
            f"there are no positions for {count} records after {self.last_seq}: the greatest is "
            f"{MAX_SEQ}. Copy the store into a new one, with new positions, to go on"
        )


@contextlib.contextmanager
def _store_errors(operation: str) -> Iterator[None]:
    """Turn what a store raises into a `StoreError` that says during which operation."""
    try:
        yield
    except PersistenceError:
        raise
    except Exception as error:
        raise _store_error(operation, error) from error


def _store_error(operation: str, error: Exception) -> StoreError:
    path = getattr(error, "filename", None)
    text = shown(error, length=_ERROR_LENGTH)
    place = "" if path is None or str(path) in text else f": {path}"
    return StoreError(f"{operation} failed: {text}{place}")
