"""Persistence on Redis Streams: one stream for each kind, on any Redis from 6.2 on, or Valkey."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path

import anyio
import msgspec

from papyra._durations import LONGEST, is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import (
    BackendClosed,
    InvalidPolicy,
    InvalidRequest,
    StoreError,
    StoreFenced,
    StoreReadOnly,
)
from papyra.persistence.backends._io.asyncio_bridge import AsyncioBridge
from papyra.persistence.backends._redis.actor_index import ActorIndex
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.compaction import Compaction
from papyra.persistence.backends._redis.config import RedisStreamsConfig
from papyra.persistence.backends._redis.consumer_groups import (
    Consumer,
    ConsumerGroup,
    Delivery,
    Pending,
    deliveries_of,
)
from papyra.persistence.backends._redis.fenced_writer import Writer
from papyra.persistence.backends._redis.following import Follower
from papyra.persistence.backends._redis.histories import HistoryReader
from papyra.persistence.backends._redis.positions import RedisPositions
from papyra.persistence.backends._redis.reader import Reader
from papyra.persistence.backends._redis.repair import renumber, repair
from papyra.persistence.backends._redis.request_keys import RequestKeys
from papyra.persistence.backends._redis.scan import StoreScan
from papyra.persistence.backends._redis.snapshots import RedisSnapshots, owner_of
from papyra.persistence.backends._redis.store_state import (
    FORMAT,
    StoreState,
    read_state,
)
from papyra.persistence.backends._redis.stream_iterator import Session
from papyra.persistence.backends._redis.stream_scan import Findings
from papyra.persistence.backends._redis.summary import summarize
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.store import Batch, Capabilities, NewBase, StoredSnapshot
from papyra.persistence.messages import EncodedHistory, HistoryPage, Page, Read, ReadHistory
from papyra.persistence.records import KINDS, Kind, Record
from papyra.persistence.reports import (
    CompactionReport,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    ScanProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy

__all__ = ("Delivery", "Pending", "RedisStreamsConfig", "RedisStreamsPersistence")

logger = logging.getLogger("papyra")

#: what reports call it
NAME = "redis"
#: how often it is tried at least, when closing, to take back what is in doubt
CLOSING_TRIES = 3
#: how often a recovery looks at what it has left, at most
ROUNDS = 4


class RedisStreamsPersistence(PersistenceBackend):
    """Keeps its records in Redis Streams: ``{prefix:system_id}:events``, ``:audits`` and so on.

    A batch is one call of a script: it is stored whole or not at all, and exactly once, however
    often its answer is lost. What an acknowledgement means is said with `RedisStreamsConfig`.

    **A store has one writer.** With its first write a backend becomes the writer, and takes over
    from the one before, whose next write raises `StoreFenced`; opening, reading, scanning and
    following take nothing over. Closed and opened again, a fenced backend may take over in turn.

    While the server can't be reached, or is not ready, calls are tried again for
    ``config.retry_for`` seconds. An append that raises is not shown, and taken back before anything
    else is written, or on closing; its positions stay unused. Where another writer has taken over,
    a process that ends before it could do so leaves it stored: the log says which positions.

    Positions are not given again while this backend knows of them, whatever the server has lost,
    which the log says at the level of errors. Opening warns of a server that may evict the store,
    of keys that expire, and of records that are missing. Errors of the server have names:
    `StoreUnreachable`, `StoreNotReady`, `StoreNotWritable`, `StoreFull`, `StoreAccessDenied`,
    `StoreWrongType`, `StoreNotAcknowledged`.

    What concerns one actor is found by an index, the sorted set ``{...}:actors``, which a writer
    keeps up to date. `compact` keeps every event with a revision, unless histories may be trimmed:
    then their bases are in the hash ``{...}:bases``. `recover` removes what is damaged, and counts
    anew what others have given other numbers; in mode ``quarantine`` it copies what it removes to
    ``{...}:quarantine:<kind>``. What the index costs and takes, and what a server that is killed
    may do to a store, the guide in ``papyra/persistence/backends/README.md`` says.
    """

    store: RedisStore

    def __init__(
        self,
        config: RedisStreamsConfig | None = None,
        *,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        config = RedisStreamsConfig() if config is None else config
        if not isinstance(config, RedisStreamsConfig):
            raise InvalidPolicy(f"config is a RedisStreamsConfig, not a {type(config).__name__}")
        self.config = config
        super().__init__(RedisStore(config), retention_policy=retention_policy, clock=clock)
        self._iterators = Session(
            *(self.store.client, self.store.asyncio, self._check_open),
            *(lambda: self.store.in_doubt, self.store.find_id),
        )

    def __repr__(self) -> str:
        return f"RedisStreamsPersistence({self.config!r})"

    def reader(
        self, *, index_directory: Path | None = None, opening: ReportProgress | None = None
    ) -> RedisStreamsPersistence:
        """Return a backend that reads the same streams, with `read_only`."""
        del index_directory, opening  # nothing has to be found out
        return RedisStreamsPersistence(
            msgspec.structs.replace(self.config, read_only=True),
            retention_policy=self._retention,
            clock=self.clock,
        )

    # For other programs. None of this goes through the mailbox of the actor that hosts the backend:
    # each call, and each iterator, has a connection of its own.

    def follow(self, kind: Kind = "event", after: int | None = 0) -> AsyncIterator[Record]:
        """Yield the records of a kind after the seq `after`, oldest first, and then as they come.

        `None` begins with the next that is appended. The iterator never ends by itself. While the
        server can't be reached it waits, and goes on after the last record that it has yielded. To
        resume in another process, keep the `seq` of the last record that was handled. Entries that
        can't be read are left out, with a warning in the log. Raises `BackendClosed` once the
        backend is closed, and a `StoreError` for what does not pass by itself.
        """
        _check_position(after)
        return Follower(self._iterators, _check_kind(kind), self._begin(after))

    def consume(
        self,
        group: str,
        consumer: str,
        kind: Kind = "event",
        *,
        after: int | None = 0,
        claim_after: float | None = 60.0,
    ) -> AsyncIterator[Delivery]:
        """Yield records to one consumer of a group: each to one of them, until it is acknowledged.

        A group that is not there yet begins after the seq `after`; with the next record for `None`,
        and where the store ends before that seq. First comes what this consumer has not
        acknowledged; then what is new. What another consumer got `claim_after` seconds ago and has
        not acknowledged is taken over, within a quarter of that time more; so give it more time
        than handling one takes. `None` takes over nothing. A record may be delivered more than
        once, but each is until someone has called `ack`; what is compacted before that is not.
        Waits for the server as `follow` does.
        """
        _check_position(after)
        _check_names(group, consumer)
        if claim_after is not None:
            _check_seconds(claim_after, least=0.001)
        begin = self._begin(after)
        return Consumer(self._iterators, _check_kind(kind), group, consumer, begin, claim_after)

    async def ack(self, group: str, *deliveries: Delivery) -> int:
        """Acknowledge what was handled. Returns how many of it were pending still."""
        _check_names(group)
        count = 0
        for kind in KINDS:
            ids = [delivery.id for delivery in deliveries if delivery.kind == kind]
            if ids:
                count += await self.store.asyncio.run(self._group(kind, group).ack, ids)
        return count

    async def pending(self, group: str, kind: Kind = "event", count: int = 100) -> list[Pending]:
        """Return up to `count` deliveries of a group that were not acknowledged, oldest first."""
        _check_names(group)
        return await self.store.asyncio.run(self._group(kind, group).pending, count)

    async def claim(
        self,
        group: str,
        consumer: str,
        kind: Kind = "event",
        *,
        min_idle: float = 60.0,
        count: int = 100,
    ) -> list[Delivery]:
        """Take over up to `count` deliveries that were not acknowledged for `min_idle` seconds."""
        _check_names(group, consumer)
        _check_seconds(min_idle)
        take_over = self._group(kind, group).claim
        raws = await self.store.asyncio.run(take_over, consumer, min_idle, count)
        return deliveries_of(kind, raws)

    async def detach(self) -> None:
        """Close the backend and let go of its host."""
        try:
            await super().detach()
        finally:
            await self.store.disconnect()

    async def aclose(self) -> None:
        """Flush and close, the connections of iterators too. Closing twice is allowed."""
        try:
            await super().aclose()
        finally:
            if self.is_closed:
                await self.store.disconnect()

    def _begin(self, after: int | None) -> int | None:
        """Return where those begin who are asked later: what this process appends comes behind."""
        return self.last_seq if after is None and self.is_writer else after

    def _group(self, kind: Kind, group: str) -> ConsumerGroup:
        return ConsumerGroup(self.store.client, _check_kind(kind), group)

    def _check_open(self) -> None:
        if self.is_closed:
            raise BackendClosed(f"this {type(self).__name__} is closed")


class RedisStore:
    """A `Store` on Redis Streams, whose calls run on asyncio."""

    name = NAME
    # For the time of a commit the server does nothing else: a few milliseconds.
    capabilities = Capabilities(
        durable=True,
        recovery=True,
        compaction=True,
        readable_when_closed=False,
        batch_limit=1_000,
    )

    def __init__(self, config: RedisStreamsConfig) -> None:
        self.config = config
        self.asyncio = AsyncioBridge()
        self.client = RedisClient(config)
        self.writer = Writer(self.client)
        self._scanner = StoreScan(self.client)
        self._index = ActorIndex(self.client)
        self._reader = Reader(self.client, self._index)
        self._histories = HistoryReader(self.client, self._index)
        self._compaction = Compaction(self.client, self.writer, self._reader, self._index)
        self._snapshots = RedisSnapshots(self.client, self.writer)
        self._positions = RedisPositions(self.client, self.writer)
        self._requests = RequestKeys(self.client)
        #: whether an append may follow without a `claim` of the writer
        self._is_settled = False
        #: whether the last change of a position has raised, and may be made yet
        self._is_position_in_doubt = False

    @property
    def location(self) -> str:
        """The URL, without anything that may be secret, and what the keys begin with."""
        return f"{self.config.location} {self.client.keys.tag}"

    async def open(self) -> None:
        """Look at what is there, and warn of what threatens it."""
        self._is_settled = False
        self.writer.release()
        self.client.reopen()
        try:
            await self.asyncio.run(self._look, opening=True)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.disconnect()
            raise

    async def last_seq(self) -> int:
        """Return the greatest position that is known to be given, by whichever writer."""
        return await self.asyncio.run(self._look)

    async def stored_seq(self) -> int:
        """Return the greatest position that the server knows of."""
        return (await self.asyncio.run(self._read_state)).last

    async def close(self) -> None:
        """Take back what is in doubt, if the server can be reached, and disconnect."""
        try:
            if self.writer.in_doubt is not None:
                await self.asyncio.run(self.writer.claim, tries=CLOSING_TRIES)
        except StoreFenced as error:
            logger.info("what was in doubt is settled: %s", error)
        except StoreError as error:
            self._log_in_doubt(error)
        finally:
            await self.disconnect()

    async def disconnect(self) -> None:
        """Close all connections, those of iterators too."""
        try:
            await self.asyncio.run(self.client.close)
        finally:
            self.asyncio.stop()

    def _log_in_doubt(self, error: StoreError) -> None:
        in_doubt = self.writer.in_doubt
        if in_doubt is not None:
            logger.error(
                "%s: the append of the records %d to %d has failed; they may have been stored, "
                "and could not be taken back: %s",
                self.location,
                in_doubt.seqs[0],
                in_doubt.seqs[-1],
                error,
            )

    async def claim(self) -> int:
        """Become the writer, and take back what is in doubt."""
        self._must_write()
        if not self._is_settled:
            await self._settle()
        return self.writer.last_seq

    async def append(self, batch: Batch) -> None:
        """Store a batch with one call of a script."""
        try:
            await self.asyncio.run(self.writer.append, batch)
        finally:
            # What is in doubt is taken back before anything else is written.
            self._is_settled = self.writer.in_doubt is None

    async def flush(self) -> None:
        """Wait until what was written is on the server's disk, if it can tell."""
        if self.writer.is_claimed:
            await self.asyncio.run(self.writer.sync)

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of what `policy` shows at Unix time `now`, without what is in doubt."""
        return await self.asyncio.run(self._reader.page, request, policy, now, self.in_doubt)

    async def read_history(self, request: ReadHistory) -> HistoryPage:
        """Return a page of one actor's history, without what is in doubt."""
        return await self.asyncio.run(self._histories.page, request, self.in_doubt)

    async def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        """Return a page of one actor's history as it is stored, without what is in doubt."""
        return await self.asyncio.run(self._histories.encoded_page, request, self.in_doubt)

    async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Return the greatest revision of each of `actors`."""
        return await self.asyncio.run(self._index.last_revisions, list(actors))

    async def store_id(self) -> str:
        """Return the id of the store, which a reader does not make."""
        if self.config.read_only:
            return await self.asyncio.run(self._snapshots.find_id)
        return await self.asyncio.run(self._snapshots.ensure_id)

    async def find_id(self) -> str:
        """Return the id of the store, or the empty string if there is none. Runs on asyncio."""
        return await self._snapshots.find_id()

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Save a snapshot beside the streams, as durably as an append, and as the writer."""
        await self.claim()
        await self.asyncio.run(self._snapshots.save, owner_of(actor), revision, data)

    async def snapshot_revisions(self, actor: str) -> list[int]:
        """Return the revisions of an actor's snapshots."""
        return await self.asyncio.run(self._snapshots.revisions, owner_of(actor))

    async def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None`."""
        return await self.asyncio.run(self._snapshots.load, owner_of(actor), revision)

    async def remove_snapshot(self, actor: str, revision: int) -> None:
        """Remove a snapshot, if it is there.

        Whoever has never written may do so beside the writer, as it may compact the store.
        """
        self._must_write()
        if self.writer.is_claimed:
            await self.claim()
        await self.asyncio.run(self._snapshots.remove, owner_of(actor), revision)

    def snapshot_owner(self, actor: str) -> str:
        """Return how the names of an actor's snapshots begin."""
        return owner_of(actor)

    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        """List snapshots by their names."""
        return await self.asyncio.run(self._snapshots.page, after, limit)

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, or `None`."""
        return await self.asyncio.run(self._snapshots.load_listed, stored)

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove a snapshot, if it is there, as the writer."""
        await self.claim()
        await self.asyncio.run(self._snapshots.remove, stored.owner, stored.revision)

    async def load_position(self, name: str) -> bytes | None:
        """Return a position, or `None`; no change that raised is made after that."""
        if self._is_position_in_doubt:
            with contextlib.suppress(StoreFenced):  # whose epoch is greater, too
                await self._settle()
            self._is_position_in_doubt = False
        return await self.asyncio.run(self._positions.load, name)

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Set a position beside the streams, if it is as expected, as durably as an append."""
        return await self._change_position(name, data, expected)

    async def remove_position(self, name: str, expected: bytes) -> bool:
        """Remove a position, if it is as expected, as durably as an append."""
        return await self._change_position(name, None, expected)

    async def _change_position(
        self, name: str, wanted: bytes | None, expected: bytes | None
    ) -> bool:
        self._must_write()
        self._is_position_in_doubt = True
        try:
            is_done = await self.asyncio.run(self._positions.change, name, wanted, expected)
        except BaseException:
            # It may be on its way: once the epoch has grown, it comes too late.
            self._is_settled = False
            raise
        self._is_position_in_doubt = False
        return is_done

    async def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        """List the names of positions."""
        return await self.asyncio.run(self._positions.page, after, limit)

    async def post(self, request_id: str, data: bytes) -> None:
        """Leave a request in the hash ``{...}:requests``, for an hour at most."""
        await self.asyncio.run(self._requests.post, request_id, data)

    async def posted(self) -> list[str]:
        """Return the ids of requests that wait, as long as this is the writer."""
        if not self.writer.is_claimed:
            return []
        return await self.asyncio.run(self._requests.posted, self.writer.epoch)

    async def take(self, request_id: str) -> bytes | None:
        """Take a request out of the hash."""
        return await self.asyncio.run(self._requests.take, request_id)

    async def answer(self, request_id: str, data: bytes) -> None:
        """Leave an answer in a key of its own, for an hour."""
        await self.asyncio.run(self._requests.answer, request_id, data)

    async def answered(self, request_id: str) -> bytes | None:
        """Return the answer to a request, and remove its key."""
        return await self.asyncio.run(self._requests.answered, request_id)

    async def withdraw(self, request_id: str) -> bool:
        """Take a request back out of the hash."""
        return await self.asyncio.run(self._requests.withdraw, request_id)

    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        """Move a snapshot to the hash for damaged ones, as the writer."""
        del directory
        await self.claim()
        return await self.asyncio.run(self._snapshots.quarantine, stored.owner, stored.revision)

    async def is_attended(self) -> bool:
        """Return whether the writer is still connected, if the server tells."""
        return await self.asyncio.run(self._requests.is_attended)

    async def summarize(self) -> StoreSummary:
        """Sum up the counters that the server keeps."""
        return await self.asyncio.run(summarize, self.client)

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every entry, and report how many are done."""
        await self._settle_in_doubt()

        def advance(done: int, total: int) -> None:
            report_progress(ScanProgress(done, total))

        return _report(await self.asyncio.run(self._scanner.scan, advance))

    async def scan_histories(self) -> Sequence[PersistenceAnomaly]:
        """Check the revisions of every actor."""
        await self._settle_in_doubt()
        return await self.asyncio.run(self._scanner.scan_histories)

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Remove what is damaged, and count anew what has other numbers."""
        self._must_write()
        await self._settle_in_doubt()
        return await self.asyncio.run(self._mend, config)

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Trim the streams up to the first record that `policy` shows at Unix time `now`."""
        return await self.compact_histories((), policy, now, dry_run=dry_run)

    async def compact_histories(
        self, bases: Sequence[NewBase], policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Trim the streams, then write bases and remove what they stand for.

        Bases are confirmed as appends are before an event goes. Raises `StoreFenced` where another
        writer has taken over.
        """
        if not dry_run:
            self._must_write()
        await self._settle_in_doubt()
        compact = self._compaction.foresee if dry_run else self._compaction.compact
        return await self.asyncio.run(compact, NAME, policy, now, bases)

    @property
    def in_doubt(self) -> range:
        """The positions of an append that has raised, and may be stored until it is taken back."""
        in_doubt = self.writer.in_doubt
        return range(0) if in_doubt is None else in_doubt.seqs

    def _must_write(self) -> None:
        if self.config.read_only:
            raise StoreReadOnly(f"{self.client.keys.tag} was opened to be read only")

    async def _settle(self) -> None:
        await self.asyncio.run(self.writer.claim)
        self._is_settled = True

    async def _settle_in_doubt(self) -> None:
        """Take back what is in doubt."""
        if self.writer.in_doubt is not None:
            self._must_write()
            await self._settle()

    # On asyncio

    async def _read_state(self) -> StoreState:
        state = await read_state(self.client)
        self.writer.note(state)
        return state

    async def _look(self, *, opening: bool = False) -> int:
        state = await read_state(self.client)
        if state.format > FORMAT:
            raise StoreError(f"{self.client.keys.tag} was written by a newer version of Papyra")
        if opening:
            for line in state.losses:
                logger.error("%s: %s: a scan says more", self.location, line)
            for line in state.threats(await self.client.info()):
                logger.warning("%s: %s", self.location, line)
        return self.writer.note(state)

    async def _mend(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        removed, copies = 0, list[str]()
        for _ in range(ROUNDS):
            found = await self._scanner.scan()
            if not found.needs_repair:
                break
            repaired = await repair(self.client, found, quarantine=config.mode == "quarantine")
            if repaired is None:
                continue  # somebody has taken over
            removed, copies = removed + repaired[0], list(dict.fromkeys(copies + repaired[1]))
            if found.wrong_counters or found.renumberings:
                # They are made anew from what is there, once nothing is there that should not be.
                self._is_settled = False
                await self.writer.claim(anew=True)
                await renumber(self.client, found, self.writer.epoch)
                self.writer.release()
                await self.writer.claim(anew=True)
            if found.stray_base:
                await self._compaction.thinning.pass_over(found.stray_base)
            await self._index_anew(found)
        found = await self._scanner.scan()
        return PersistenceRecoveryReport(
            NAME,
            supported=True,
            scan=_report(found),
            records_kept=found.records,
            records_removed=removed,
            quarantined=tuple(copies),
        )

    async def _index_anew(self, found: Findings) -> None:
        """Make the index anew, if it is wrong, or the records have changed to which it leads."""
        index = (await read_state(self.client)).index
        if found.index_is_wrong or index.size or index.noted:
            await self._index.forget()
            await self._index.catch_up("event", "indexed")


def _report(found: Findings) -> PersistenceScanReport:
    return PersistenceScanReport(NAME, found.records, found.bytes_read, tuple(found.anomalies))


def _check_kind(kind: Kind) -> Kind:
    if kind not in KINDS:
        raise InvalidRequest(f"kind is one of {', '.join(KINDS)}, not {shown(kind)}")
    return kind


def _check_position(after: int | None) -> None:
    if after is not None and (type(after) is not int or after < 0):
        raise InvalidRequest(f"after is a seq, from 0 on, or None, not {shown(after)}")


def _check_names(*names: str) -> None:
    for name in names:
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"groups and consumers have names, not {shown(name)}")


def _check_seconds(seconds: float, least: float = 0.0) -> None:
    if not is_seconds(seconds, least) or seconds > LONGEST:
        raise InvalidRequest(f"this is no number of seconds: {shown(seconds)}")


def from_url(url: str, *, read_only: bool) -> RedisStreamsPersistence:
    """Return the backend that a URL means."""
    del read_only  # looking needs no leave of the writer
    config = RedisStreamsConfig.from_url(url)
    config.check_options()
    return RedisStreamsPersistence(config)


@contextlib.asynccontextmanager
async def beside(backend: PersistenceBackend) -> AsyncIterator[RedisStreamsPersistence]:
    """Make a store of its own on the same server, and remove it afterwards."""
    assert isinstance(backend, RedisStreamsPersistence)
    config = msgspec.structs.replace(
        backend.config, prefix="papyra-bench", system_id=uuid.uuid4().hex, read_only=False
    )
    try:
        yield RedisStreamsPersistence(config)
    finally:
        with anyio.CancelScope(shield=True):
            client = RedisClient(config)
            await client.call(lambda connected: connected.delete(*config.keys.everything))
            await client.close()
