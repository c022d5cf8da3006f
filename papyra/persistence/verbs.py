"""The verbs of persistence: each builds one request and executes it."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable
from typing import Literal, TypedDict, TypeVar, Unpack, cast, overload

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import InvalidRecord
from papyra.persistence.messages import (
    Append,
    Appended,
    AppendMany,
    Compact,
    Flush,
    Flushed,
    HistoryPage,
    Identify,
    ListPositions,
    LoadedSnapshot,
    LoadPosition,
    LoadSnapshot,
    Migrate,
    Page,
    Read,
    ReadHistory,
    Recover,
    RemovePosition,
    Request,
    Restore,
    SavePosition,
    Scan,
    Summarize,
    TakeOutbox,
)
from papyra.persistence.records import (
    Kind,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)
from papyra.persistence.reports import (
    CompactionReport,
    MigrationReport,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy

ReplyT = TypeVar("ReplyT")


class Filters(TypedDict, total=False):
    """What selects the records of a stream; the arguments are those of `Read`."""

    after: int
    since: float | None
    until: float | None
    event_type: str | None
    actor: str | None


class PersistenceVerbs(abc.ABC):
    """Each verb builds a request and executes it. How, `execute` decides."""

    @abc.abstractmethod
    async def execute(self, request: Request[ReplyT]) -> ReplyT:
        """Execute `request` and return the reply."""

    @abc.abstractmethod
    def watch_scans(self, watcher: ReportProgress) -> Callable[[], None]:
        """Call `watcher` with the progress of every scan, and return what ends that."""

    async def append(self, *records: Record) -> Appended:
        """Store `records` next to each other, all or none, and return where.

        On return they are as durable as the backend promises. Raises `InvalidRecord`,
        `UnencodablePayload`, `BackendClosed` or `StoreError`; then none of them is stored.
        """
        if len(records) == 1:
            return await self.execute(Append(records[0]))
        return await self.execute(AppendMany(records))

    async def record_event(self, record: PersistedEvent) -> Appended:
        """Store one event; as `append`."""
        _expect(record, PersistedEvent)
        return await self.append(record)

    async def record_audit(self, record: PersistedAudit) -> Appended:
        """Store one audit; as `append`."""
        _expect(record, PersistedAudit)
        return await self.append(record)

    async def record_dead_letter(self, record: PersistedDeadLetter) -> Appended:
        """Store one dead letter; as `append`."""
        _expect(record, PersistedDeadLetter)
        return await self.append(record)

    async def read(
        self,
        kind: Kind,
        *,
        after: int = 0,
        since: float | None = None,
        until: float | None = None,
        limit: int | None = None,
        event_type: str | None = None,
        actor: str | None = None,
        newest: bool = False,
        before: int | None = None,
    ) -> Page:
        """Return one page of records; the arguments are those of `Read`."""
        return await self.execute(
            Read(kind, after, since, until, limit, event_type, actor, newest, before)
        )

    async def read_history(
        self, actor: str, *, after_revision: int = 0, limit: int | None = None
    ) -> HistoryPage:
        """Return one page of an actor's history; the arguments are those of `ReadHistory`."""
        return await self.execute(ReadHistory(actor, after_revision, limit))

    async def load_snapshot(
        self, actor: str, *, version: int = 1, before_revision: int | None = None
    ) -> LoadedSnapshot:
        """Return an actor's newest snapshot to be believed; the arguments are of `LoadSnapshot`."""
        return await self.execute(LoadSnapshot(actor, version, before_revision))

    async def load_position(self, name: str) -> bytes | None:
        """Return the position that a name has, or `None`; see `LoadPosition`."""
        return (await self.execute(LoadPosition(name))).data

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Set the position that a name has if it is `expected`, which may be `None` for nothing.

        Return whether it was set; if so it is as durable as a record. Raises `StoreFenced` where
        another writer has taken over; see `SavePosition`.
        """
        return (await self.execute(SavePosition(name, data, expected))).is_saved

    async def remove_position(self, name: str, expected: bytes) -> bool:
        """Remove the position that a name has if it is `expected`; return whether it was."""
        return (await self.execute(RemovePosition(name, expected))).is_removed

    async def list_positions(self) -> list[str]:
        """Return the names that have a position, in an order of the store's own."""
        names: list[str] = []
        more = True
        while more:
            page = await self.execute(ListPositions(names[-1] if names else None))
            names += page.names
            more = page.more
        return names

    async def store_id(self) -> str | None:
        """Return the id of the store, which it keeps as long as it lives; see `Identify`."""
        return (await self.execute(Identify())).store_id

    async def list_events(
        self, limit: int | None = None, since: float | None = None
    ) -> list[PersistedEvent]:
        """Return events, oldest first: the newest `limit` of those at Unix time `since` or newer.

        It walks pages back from the newest event there is when it is called; what is appended
        meanwhile is not in it.
        """
        return cast("list[PersistedEvent]", await self._list("event", limit, since))

    async def list_audits(
        self, limit: int | None = None, since: float | None = None
    ) -> list[PersistedAudit]:
        """Return audits; as `list_events`."""
        return cast("list[PersistedAudit]", await self._list("audit", limit, since))

    async def list_dead_letters(
        self, limit: int | None = None, since: float | None = None
    ) -> list[PersistedDeadLetter]:
        """Return dead letters; as `list_events`."""
        return cast("list[PersistedDeadLetter]", await self._list("dead_letter", limit, since))

    @overload
    def stream(
        self, kind: Literal["event"], **filters: Unpack[Filters]
    ) -> AsyncIterator[PersistedEvent]: ...
    @overload
    def stream(
        self, kind: Literal["audit"], **filters: Unpack[Filters]
    ) -> AsyncIterator[PersistedAudit]: ...
    @overload
    def stream(
        self, kind: Literal["dead_letter"], **filters: Unpack[Filters]
    ) -> AsyncIterator[PersistedDeadLetter]: ...
    @overload
    def stream(self, kind: Kind, **filters: Unpack[Filters]) -> AsyncIterator[Record]: ...
    async def stream(
        self,
        kind: Kind,
        *,
        after: int = 0,
        since: float | None = None,
        until: float | None = None,
        event_type: str | None = None,
        actor: str | None = None,
    ) -> AsyncIterator[Record]:
        """Yield records, oldest first, page by page, until there are no more.

        Others may use the backend between two pages; what they append is yielded too.
        """
        request = Read(kind, after, since, until, None, event_type, actor)
        while True:
            page = await self.execute(request)
            for record in page.records:
                yield record
            if not page.more:
                return
            request = msgspec.structs.replace(request, after=page.next_after)

    async def restore(self, *records: Record) -> Appended:
        """Store records that come from another store at the positions that they have there.

        For copies: who has kept a position goes on with it. See `Restore`; raises what `append`
        raises, and `InvalidRequest` for positions that have been given here already.
        """
        return await self.execute(Restore(records))

    async def summarize(self) -> StoreSummary:
        """Say what the store holds, what retention hides included."""
        return await self.execute(Summarize())

    async def scan(self, progress: ReportProgress | None = None) -> PersistenceScanReport:
        """Check every stored record and report what is wrong. Changes nothing.

        `progress` watches scans until this one is done; see `watch_scans`.
        """
        if progress is None:
            return await self.execute(Scan())
        unwatch = self.watch_scans(progress)
        try:
            return await self.execute(Scan())
        finally:
            unwatch()

    async def recover(
        self, config: PersistenceRecoveryConfig | None = None
    ) -> PersistenceRecoveryReport:
        """Repair what a scan finds, and scan again. Keeps every record that can be read."""
        return await self.execute(Recover(config))

    async def compact(
        self, policy: RetentionPolicy | None = None, *, dry_run: bool = False
    ) -> CompactionReport:
        """Remove what retention hides, by `policy` or the backend's own, where the backend can.

        Events that are part of a history stay, hidden or not: the report says how many. With
        `dry_run` it changes nothing, and reports what would be left.
        """
        return await self.execute(Compact(policy, dry_run))

    async def take_outbox(self) -> int:
        """Take over the events that applications have handed over by now; return how many.

        A system does that by itself, some times a second: this is for who can't wait. On return,
        everything that was committed before the call is appended, or was set aside. See
        `papyra.persistence.outbox`; raises what `append` raises.
        """
        count = 0
        while True:
            taken = await self.execute(TakeOutbox())
            count += taken.count
            if not taken.more:
                return count

    async def migrate(self, *, dry_run: bool = False) -> MigrationReport:
        """Bring the tables of the store to the version that this Papyra writes, keeping all of it.

        A store of an older version is refused (`StoreOutdated`) until this is done, by whoever has
        it alone. Each step is one transaction: a crash leaves the version before it or after it.
        Tables that are not there yet are made. With `dry_run` it changes nothing, and reports what
        would be done. See `Migrate`; a store without tables has nothing to do.
        """
        return await self.execute(Migrate(dry_run))

    async def flush(self) -> Flushed:
        """Return once everything appended so far is as durable as the backend makes it."""
        return await self.execute(Flush())

    async def _list(self, kind: Kind, limit: int | None, since: float | None) -> list[Record]:
        pages: list[tuple[Record, ...]] = []
        request = Read(kind, since=since, limit=limit, newest=True)
        wanted = limit
        while True:
            page = await self.execute(request)
            pages.append(page.records)
            if wanted is not None:
                wanted -= len(page.records)
            if not page.more or wanted == 0:
                return [record for records in reversed(pages) for record in records]
            request = msgspec.structs.replace(request, before=page.next_before, limit=wanted)


def _expect(record: object, record_type: type) -> None:
    if type(record) is not record_type:
        raise InvalidRecord(f"the record must be a {record_type.__name__}, not {shown(record)}")
