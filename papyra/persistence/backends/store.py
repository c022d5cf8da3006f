"""The contract of a backend: `Store`, and all that its author has to know.

A store keeps records; `PersistenceBackend(store)` is what users hold. Everything else is done by
that one, the same for every store: it checks and encodes records and gives them their positions,
counts metrics, has one caller at a time, opens on first use, applies the policy and the clock of
its user, and tells who watches. So a store is one class without a base class of ours: a handful of
coroutine methods, and three attributes that are data. `papyra.testing.conformance` proves it.

They run on asyncio and on trio, by anyio. What waits for a disk belongs into a thread, as
`anyio.to_thread.run_sync` makes one. A call that is cancelled there waits for its thread, but not
where asyncio's own `Task.cancel` does it: so a lock that the threads take keeps one that is left
behind, and still writes, from the one of the next call.

Around a store there are

- `papyra.persistence.backends.base.PersistenceBackend`, for its users, with what limits and clock
  they choose;
- `papyra.persistence.codec.decode`, which makes a record of its bytes and its position or raises
  `StoreError`, and ``may_be_a_record``, which tells the records of newer versions from damage;
- `papyra.persistence.records.kind_of`, for a column of kinds;
- `papyra.exceptions`, for what has a name: `BackendInUse` where another writer keeps this one out,
  `StoreFenced` where one has taken over, `StoreReadOnly`, `StoreDamaged`;
- `papyra.persistence.backends.registry`, whose `Registration` gives it a scheme for its URLs, all
  the commands, and ``PAPYRA_TEST_STORE``.

What a store may leave out has a small protocol of its own: `Histories`, without which there are no
event-sourced actors, and `HistoryScanning`, which checks them; `EncodedHistories`, `Identified` and
`Snapshots`, which save those actors time; `Rebasing`, which lets a compaction remove what these
have made superfluous; `Losing`, whose server may forget; `Positions`, for those who follow the
store and keep theirs in it; `Inbox`, where a command reaches the system that writes; `Outbox`,
where an application leaves events; `Migrating`, for tables that change from version to version;
and `Summarizing`. None of them changes `Store`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from papyra.persistence.backends.paging import collect_history, collect_page
from papyra.persistence.inbox import Inbox
from papyra.persistence.messages import EncodedHistory, HistoryPage, Page, Read, ReadHistory
from papyra.persistence.outbox import HandedOver, RefusedEvent
from papyra.persistence.positions import Positions
from papyra.persistence.records import Record
from papyra.persistence.reports import (
    CompactionReport,
    MigrationReport,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    ReportProgress,
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy
from papyra.persistence.snapshots import Snapshots, StoredSnapshot

__all__ = (
    "MAX_SEQ",
    "OPTIONAL_PARTS",
    "Batch",
    "Capabilities",
    "EncodedHistories",
    "Histories",
    "HistoryScanning",
    "Identified",
    "Inbox",
    "Losing",
    "Migrating",
    "NewBase",
    "Outbox",
    "Positions",
    "Rebasing",
    "Snapshots",
    "Store",
    "StoredSnapshot",
    "Summarizing",
    "collect_history",
    "collect_page",
)

#: The greatest position, which every store can write down, 14 digits long.
MAX_SEQ = 10**14 - 1


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """The capabilities of a store. A verb that it does not have succeeds and does nothing."""

    #: records outlive the process
    durable: bool
    #: a scan can find something, and `recover` can mend it
    recovery: bool
    #: `compact` frees what retention hides
    compaction: bool
    #: `read`, `scan` and `summarize` may be called after `close`
    readable_when_closed: bool
    #: how many append requests a host takes at once, at most; what they hold is one commit
    batch_limit: int = 10_000


class Batch(msgspec.Struct, frozen=True):
    """The records of one `Store.append`: numbered from `first_seq`, and each of them encoded.

    `first_seq` is mostly the one after the last that was given. It is a greater one where records
    are restored from a store that has gaps: a gap is no damage. Encoded, a record is one line of
    JSON in UTF-8 without its position, which `papyra.persistence.codec.decode` takes beside it.
    A batch is never empty. The `timestamp` of a record that is new may be an int, and one that only
    a float can hold; its payload may be anything that was encoded.
    """

    first_seq: int
    records: Sequence[Record]
    encoded: Sequence[bytes]
    #: whether the records had these positions in another store, and so may get them again if this
    #: fails
    restored: bool = False
    #: whether more of the same request follows at once: what makes it durable may wait for that
    more: bool = False


class Store(Protocol):
    """Keeps records, in the order of their positions.

    Its methods are never called concurrently, never before `open`, and never after `close`, but
    for those that `Capabilities.readable_when_closed` names. After `close` it may be opened again.
    An error that is a `PersistenceError` reaches the caller as it is; any other one becomes the
    cause of a `StoreError`, which says what was being done. Any call may be cancelled at any await.
    Every position fits into 14 digits, every other number into 64 bits.

    A store that is made to be looked at (`Registration.from_url` is told so) writes nothing: it
    raises in `open` if there is none, and `StoreReadOnly` in `claim`, `recover`, and a `compact`
    that is no dry run.
    """

    @property
    def name(self) -> str:
        """The kind of store, in one word, as reports have it: ``json``, ``redis``.

        It is the name of the entry point, too, if there is one.
        """

    @property
    def location(self) -> str:
        """The location of the records: a path, or a URL without its secrets; empty for memory."""

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of this store; always the same."""

    async def open(self) -> None:
        """Make the store ready, creating it if there is none. Take over from no other writer.

        One that is kept out for as long as another one writes may raise `BackendInUse` here.
        If this raises, nothing is left open, and it may be called again.
        """

    async def last_seq(self) -> int:
        """Return the greatest position that was ever given, by whichever writer, or 0.

        No recovery, no compaction and no crash makes it less than that of an acknowledged record.
        """

    async def claim(self) -> int:
        """Become the writer, settle what is in doubt, and return the greatest position ever given.

        Called before the first append since the opening, and before the next one after an append
        that raised or was cancelled, or after a recovery. What such an append has left is removed,
        or counts as given: its positions are given again only if nothing of it will ever be shown.
        For most stores this is `last_seq`.

        Two writers never get the same position. A store keeps the second one out, or lets it take
        over, or at least fails the append of whoever comes late: one that is as old as
        ``batch.first_seq <= last_seq``, which is to be looked up in the same transaction. That
        holds after the records at those positions were compacted, too.
        """

    async def append(self, batch: Batch) -> None:
        """Store the whole batch or, raising or cancelled, none of it.

        On return it is as durable as the store promises, and reads show it.
        """

    async def flush(self) -> None:
        """Make everything that was appended as durable as the store can.

        Called before `close`, and when the store is entered, so perhaps before any `claim`.
        """

    async def close(self) -> None:
        """Let go of everything that `open` took, also if this raises."""

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        """Return a page of what `policy` lets through at Unix time `now`.

        `collect_page` makes and bounds it, out of the records of that kind and between those
        positions and times, in the direction of the read, each with its encoded bytes; the type,
        the actor and the limit are its own affair. It takes no more of them than it needs, so that
        they may come from a cursor. A record that can't be decoded is passed over.

        ``policy.of(kind)`` returns the limits of a kind, here and in `compact`. A store goes by
        those alone. Once one kind has its own, the policy that a store is given has no general
        limits: a store that knows only of them hides and removes nothing then.

        Limits count records and their encoded bytes, of that kind alone, from the newest on, and
        end with the first that does not fit. Age is another matter: times need not rise with
        positions, so each record is judged by its own, and counts while it is hidden.
        """

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        """Check every record; change nothing. What is wrong is reported, and raises nothing.

        Where `decode` fails that is ``corrupt``, with its `seq` if it is known; and
        ``unknown_kind`` where `may_be_a_record` says so. A store of histories that has no
        `scan_histories` reports what is wrong with them, too.
        `report_progress` may be called now and then, from any thread.
        """

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        """Mend what a scan finds, keep every record that can be read, and scan again.

        Of what can't be read, that of an unknown kind stays where it is, and in the scan: a newer
        version has written it. For a quarantine, what is removed goes to `config.quarantine_dir`,
        beside the store if that is `None`, or to where a store without files keeps such things;
        the report names each place. May come before any `claim`; one follows.
        Without the capability, change nothing and say ``supported=False``.
        """

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Remove what `policy` hides at Unix time `now`; on a dry run, report what would be left.

        It is what a read under that policy does not show, and the numbers of a dry run are those of
        the real one. `CompactionReport.of_kinds` makes the report out of those of each kind. May
        come before any `claim`. Where there is damage, it may raise `StoreDamaged`, or leave that
        to `recover`. Positions are not given again.

        Without the capability, change nothing and say ``supported=False``.
        """


@runtime_checkable
class Histories(Protocol):
    """An optional part of a `Store`: the events of single actors, by their revisions.

    An actor's history is its events that have a revision: 1, 2, 3, ..., in the order of their
    positions. What is appended follows already: that is checked before. Restored records had their
    revisions in another store, and are taken as they are, holes included. `compact` removes no
    event that has a revision, whatever its policy hides, and reports how many of those it hides:
    see `Rebasing`.

    Both methods cost what they return, and at most the logarithm of what is stored.
    """

    async def read_history(self, request: ReadHistory) -> HistoryPage:
        """Return a page of one actor's history. `collect_history` makes and bounds it.

        Retention hides nothing here. An event that can't be decoded is passed over.
        """

    async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        """Return the greatest revision of each of `actors`; those without a history may be missing.

        Called after `claim`, and before an append that goes on with one of those histories.
        """


@runtime_checkable
class EncodedHistories(Protocol):
    """An optional part of a store with `Histories`: it gives them out without decoding them.

    Those who recover decode what is stored right into their own events, in a third of the time.
    """

    async def read_encoded_history(self, request: ReadHistory) -> EncodedHistory | HistoryPage:
        """Return a page of one actor's history as `Histories.read_history` does, but encoded.

        Where something is special about what is stored, so that not all of it can be given out as
        it is, return what that returns.
        """


@runtime_checkable
class HistoryScanning(Protocol):
    """An optional part of a `Store`: the check of histories, apart from `scan`.

    A start does without it. Without this part, it is done by `scan`.
    """

    async def scan_histories(self) -> Sequence[PersistenceAnomaly]:
        """Return the ``history`` anomalies, as `history_check.HistoryCheck` finds them.

        That is one for each revision before which others are missing, or that is there twice.
        """


@runtime_checkable
class Identified(Protocol):
    """An optional part of a `Store`: an id of its own.

    Whoever keeps a place in a store outside of it, as a snapshot does, notes whose place that is.
    """

    async def store_id(self) -> str:
        """Return the id of this store: made once, at random, and not changed by anything.

        Of two stores, be one a copy of the other, each has its own. One that lost its id has a new
        one. A store to be looked at makes none: it returns the empty string where there is none.
        """


@runtime_checkable
class Losing(Protocol):
    """An optional part of a `Store`: its server may lose what it has acknowledged.

    `Store.last_seq` goes on from the greatest position that is known, so that none is given twice.
    Those who follow have to know where the store ends by now.
    """

    async def stored_seq(self) -> int:
        """Return the greatest position that the server knows of: after a loss, a lesser one."""
        ...


class NewBase(msgspec.Struct, frozen=True):
    """A base to be stored: an event that takes the place of the one at its position.

    Both have the same actor, revision and time. See `papyra.persistence.bases`.
    """

    actor: str
    revision: int
    seq: int
    encoded: bytes


@runtime_checkable
class Rebasing(Protocol):
    """An optional part of a `Store`: without it, a compaction keeps every history whole."""

    async def compact_histories(
        self, bases: Sequence[NewBase], policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        """Do as `compact` does, and have some histories begin with a base.

        Of the actor of each base, the event at its position becomes the base, and those of smaller
        revisions are removed. `policy` hides all of these, and no actor has two bases.

        At no time is there less than either the old events or the base: it is as durable as
        anything here before the first of them goes. An interruption may leave some of those that it
        stands for before it: the first ones, so that there is no hole before it.
        """


@runtime_checkable
class Outbox(Protocol):
    """An optional part of a `Store`: what applications hand over in transactions of their own.

    `handed_over` and `refused` are also called on a store that is looked at, and return nothing
    where an older version has no outbox. See `papyra.persistence.outbox`.
    """

    async def handed_over(self, after: int | None, size: int) -> Sequence[HandedOver]:
        """Return the first of what waits, in its order; what is not committed is not there.

        Together it has up to `size` bytes, or it is one that has more. `after` is the id of the
        last that was returned before; `None` begins at the beginning.
        """
        ...

    async def take_over(self, handed: Sequence[HandedOver], batch: Batch) -> None:
        """Do as `append` does, and remove in the same transaction what the batch was made of.

        `handed` is what `handed_over` has returned, but for what was set aside since, and there is
        a record for each. Raises `StoreError` if that is not there any more as it was, and stores
        nothing then.
        """
        ...

    async def set_aside(self, refused: Sequence[tuple[HandedOver, str]], now: float) -> None:
        """Move what can't be taken over to where it is kept with the reason and Unix time.

        What is not there any more as it was is passed over.
        """
        ...

    async def refused(self, after: int | None) -> Sequence[RefusedEvent]:
        """Return some of what was set aside, by its ids; `after` is as in `handed_over`."""
        ...


@runtime_checkable
class Migrating(Protocol):
    """An optional part of a `Store`: its tables have versions, and are brought to the newest.

    Its `open` raises `StoreOutdated` for older ones, and `StoreTooNew` for newer ones.
    """

    async def migrate(self, *, dry_run: bool) -> MigrationReport:
        """Bring the tables to the version that this program writes, and keep everything.

        It is called before `open`, or after `close`, or, on a dry run, at any time. It opens the
        store for itself, keeps writers out, be they of other systems in the same tables, and
        raises `BackendInUse` while there is one. Each step is one transaction.
        """
        ...


@runtime_checkable
class Summarizing(Protocol):
    """An optional part of a `Store`: without it, a summary reads everything, hidden or not."""

    async def summarize(self) -> StoreSummary:
        """Return what the store holds, what retention hides included."""


#: Every optional part of a `Store`. What wraps a store has those that this one has.
OPTIONAL_PARTS = (
    *(Histories, EncodedHistories, HistoryScanning, Identified, Losing, Snapshots, Rebasing),
    *(Positions, Inbox, Outbox, Migrating, Summarizing),
)
