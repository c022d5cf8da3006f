"""The protocol of a persistence actor: its requests, and what it replies.

Each request names the type of its reply: an ``Append`` is a ``Request[Appended]``. All of them are
frozen structs, tagged with their names, so they can be encoded and decoded as a union.
"""

from __future__ import annotations

import math
from typing import TypeAlias, assert_never

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import InvalidRequest
from papyra.message import Message, ReplyT
from papyra.persistence.metrics import MetricsSnapshot
from papyra.persistence.positions import check_position_data, check_position_name
from papyra.persistence.records import (
    KINDS,
    MAX_VERSION,
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
    StoreSummary,
)
from papyra.persistence.retention import RetentionPolicy
from papyra.persistence.snapshots import Snapshot

#: Bytes of the state in a snapshot, at most: those of a record.
MAX_STATE_BYTES = 64 * 1024 * 1024
#: Characters of a reason, at most.
MAX_REASON = 1_000


class Appended(msgspec.Struct, frozen=True, tag=True):
    """The positions at which records were stored: `first_seq` to `last_seq`, both included.

    For an `AppendMany` of nothing, `last_seq` is the store's last and `first_seq` the one after.
    """

    first_seq: int
    last_seq: int


class Page(msgspec.Struct, frozen=True, tag=True):
    """A bounded run of records, oldest first."""

    records: tuple[Record, ...]
    #: give it as `after` to read on towards the newest
    next_after: int
    #: whether there may be more matching records in the direction of the read. Pages are bounded
    #: by what they examine too, so a filtered page may be short, even empty, and not the last one.
    more: bool
    #: give it as `before` to read on towards the oldest
    next_before: int


class HistoryPage(msgspec.Struct, frozen=True, tag=True):
    """A bounded run of one actor's history, oldest first."""

    #: each with its `revision`
    events: tuple[PersistedEvent, ...]
    #: give it as `after_revision` to read on
    next_after: int
    #: whether there are more of them
    more: bool


class AllPage(msgspec.Struct, frozen=True, tag=True):
    """A bounded run of records of several kinds, in the order of their positions."""

    records: tuple[Record, ...]
    #: give it as `after` to read on
    next_after: int
    #: the position up to which there was something to be read; at the end, that is `next_after`
    head: int
    #: the id of the store; `None` if it has none, or nobody else can write it
    store_id: str | None = None


class Anchor(msgspec.Struct, frozen=True):
    """A record that somebody has read, so that another one at its position is noticed."""

    kind: Kind
    seq: int
    #: see `papyra.persistence.anchors`
    checksum: str
    #: the id of the store; `None` if that has none
    store_id: str | None = None


class EncodedRun(msgspec.Struct, frozen=True):
    """Some records of a history, as they are stored."""

    #: JSON objects, one after the other, in lines or not; each may have fields of the store's own
    data: bytes
    #: how many there are
    count: int


class EncodedHistory(msgspec.Struct, frozen=True, tag=True):
    """A bounded run of one actor's history, oldest first.

    Every record is whole, and as an append has encoded it.
    """

    runs: tuple[EncodedRun, ...]
    #: whether each is known to be the actor's; else there may be others among them
    is_own: bool
    #: the position of the last of them; 0 if there is none
    last_seq: int
    #: whether there may be more
    more: bool


class Flushed(msgspec.Struct, frozen=True, tag=True):
    """Every record up to `last_seq` is as durable as the backend makes it."""

    last_seq: int


class Identity(msgspec.Struct, frozen=True, tag=True):
    """The identity of a store."""

    #: its id; `None` for a store that has none, or none yet where it is only looked at
    store_id: str | None


class SnapshotSaved(msgspec.Struct, frozen=True, tag=True):
    """A snapshot was saved, and is as durable as the records of the store."""

    revision: int
    #: bytes that it takes
    size: int


class LoadedSnapshot(msgspec.Struct, frozen=True, tag=True):
    """The newest snapshot of an actor that can be believed."""

    #: `None` if there is none
    snapshot: Snapshot | None
    #: in words, each newer one that was passed over, and why
    passed_over: tuple[str, ...] = ()


class LoadedPosition(msgspec.Struct, frozen=True, tag=True):
    """The position that a name has."""

    #: `None` if there is nothing
    data: bytes | None


class PositionSaved(msgspec.Struct, frozen=True, tag=True):
    """A position was set, if it was as expected."""

    #: whether it is set, and as durable as the records; else nothing was changed
    is_saved: bool


class PositionRemoved(msgspec.Struct, frozen=True, tag=True):
    """A position was removed, if it was as expected."""

    #: whether it is removed; else nothing was changed
    is_removed: bool


class PositionNames(msgspec.Struct, frozen=True, tag=True):
    """Names that have a position, in an order of the store's own."""

    #: give the last one as `after` to read on
    names: tuple[str, ...]
    #: whether there may be more
    more: bool


class EventSkipped(msgspec.Struct, frozen=True, tag=True):
    """An event is passed over from now on, as the decision of this revision says."""

    #: of the decision, which is an event of the same history
    revision: int
    reason: str
    #: whether it was made just now; else it was there already, and nothing was stored
    is_new: bool


class Attended(msgspec.Struct, frozen=True, tag=True):
    """So many requests that others had posted are answered."""

    #: `None` if it could not be seen whether there are any
    count: int | None
    #: so many events of applications were taken over; `None` if that has failed
    taken: int | None = 0


class TimerChanged(msgspec.Struct, frozen=True, tag=True):
    """A durable timer was taken back, or is due now."""

    #: of the event that says so; of the last one of the history, if there was nothing to do
    revision: int
    #: whether there was anything to do
    is_new: bool


class OutboxTaken(msgspec.Struct, frozen=True, tag=True):
    """So many events of applications were taken over, at positions next to each other."""

    count: int
    #: whether there may be more of them
    more: bool


class Request(msgspec.Struct, Message[ReplyT], frozen=True, tag=True):
    """A request to a persistence actor, whose reply is a `ReplyT`."""


class Append(Request[Appended], frozen=True, gc=False):
    """Store one record.

    It is encoded when it is written, with its neighbours, which is after ``tell`` has returned: a
    payload that can be changed belongs to the store from then on.
    """

    record: Record


class AppendEncoded(Append, frozen=True, gc=False):
    """Store one event, which was encoded already: see `codec.encode_known`.

    Only for those of Papyra itself who have looked at the payload: nobody looks at it again.
    """

    encoded: bytes


class AppendMany(Request[Appended], frozen=True):
    """Store these records next to each other: all of them or, if any is bad, none."""

    records: tuple[Record, ...]


class Read(Request[Page], frozen=True):
    """Read a page of one kind's records, oldest first.

    Raises `InvalidRequest` when an argument is of the wrong type or range.
    """

    kind: Kind
    #: only records with a greater `seq`
    after: int = 0
    #: only records at this Unix time or newer
    since: float | None = None
    #: only records at this Unix time or older
    until: float | None = None
    #: at most this many; pages are bounded, so there may be more of them all the same
    limit: int | None = None
    #: only events of this type
    event_type: str | None = None
    #: only what concerns this actor: the address of an event, the target of a dead letter
    actor: str | None = None
    #: start from the newest match, not the oldest; the page itself is oldest first all the same
    newest: bool = False
    #: only records with a smaller `seq`
    before: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidRequest(f"kind is one of {', '.join(KINDS)}, not {shown(self.kind)}")
        for name in ("after", "limit", "before"):
            value = getattr(self, name)
            if value is None and name != "after":
                continue
            if type(value) is not int or value < 0:
                raise InvalidRequest(f"{name} is a whole number, 0 or greater, not {shown(value)}")
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None and not _is_moment(value):
                raise InvalidRequest(f"{name} is Unix time in seconds, not {shown(value)}")
        for name in ("event_type", "actor"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"{name} is a string, not {shown(value)}")
        if self.event_type is not None and self.kind != "event":
            raise InvalidRequest(
                f"event_type selects events, not records of kind {shown(self.kind)}"
            )
        if self.actor is not None and self.kind == "audit":
            raise InvalidRequest("actor selects events or dead letters: an audit is of a system")

    def selects(self, record: Record) -> bool:
        """Return whether `record`, of this kind, is of the type and actor asked for."""
        match record:
            case PersistedEvent():
                return (self.event_type is None or record.event_type == self.event_type) and (
                    self.actor is None or record.actor_address == self.actor
                )
            case PersistedDeadLetter():
                return self.actor in (None, record.target)
            case PersistedAudit():
                return True
            case _:
                assert_never(record)


class ReadAll(Request[AllPage], frozen=True):
    """Read a page of some kinds of records together, in the order of their positions.

    Retention hides nothing here: it is for those who follow a store. Raises `InvalidRequest` when
    an argument is of the wrong type or range, and `StoreReplaced` for a position after the end of
    the store, or where another record is than the one that was read.
    """

    #: only records with a greater `seq`
    after: int = 0
    kinds: tuple[Kind, ...] = ("event",)
    #: only events of this type
    event_type: str | None = None
    #: only what concerns this actor: the address of an event, the target of a dead letter
    actor: str | None = None
    #: what was read last, if it may have been replaced
    anchor: Anchor | None = None
    #: whether to find out anew if another writer has taken over, and if the store is still the
    #: same, though there is nothing new in it
    afresh: bool = False

    def __post_init__(self) -> None:
        if type(self.kinds) is not tuple or not self.kinds:
            raise InvalidRequest(f"kinds is a tuple of kinds, not {shown(self.kinds)}")
        self.reads()  # which check the rest
        if self.anchor is not None and not isinstance(self.anchor, Anchor):
            raise InvalidRequest(f"anchor is an Anchor, not {shown(self.anchor)}")

    def reads(self) -> list[Read]:
        """Return a read of each of the kinds."""
        actor, event_type = self.actor, self.event_type
        return [
            Read(kind, self.after, event_type=event_type, actor=actor)
            for kind in dict.fromkeys(self.kinds)
        ]


class ReadHistory(Request[HistoryPage], frozen=True):
    """Read a page of the history of one actor, in the order of revisions.

    That is every event of the actor that has a revision, those that retention hides included. It
    costs as much as that page, however much else there is in the store. An event that can't be
    decoded is passed over: a revision is missing then. Raises `HistoriesUnsupported`, and
    `InvalidRequest` when an argument is of the wrong type or range.
    """

    #: the actor's address
    actor: str
    #: only events with a greater revision
    after_revision: int = 0
    #: at most this many; pages are bounded, so there may be more of them all the same
    limit: int | None = None

    def __post_init__(self) -> None:
        if type(self.actor) is not str:
            raise InvalidRequest(f"actor is a string, not {shown(self.actor)}")
        for name in ("after_revision", "limit"):
            value = getattr(self, name)
            if (type(value) is not int or value < 0) and (name, value) != ("limit", None):
                raise InvalidRequest(f"{name} is a whole number, 0 or greater, not {shown(value)}")


class ReadEncodedHistory(ReadHistory, frozen=True):
    """Read a page of a history for somebody who decodes it: for recoveries, which are to be quick.

    The reply is an `EncodedHistory`, or a `HistoryPage` as to a `ReadHistory`, where the store has
    nothing else, or something is special about a record.
    """


class SaveSnapshot(Request[SnapshotSaved], frozen=True):
    """Save a snapshot of an actor beside the records, and keep the newest few.

    Raises `SnapshotsUnsupported`; `InvalidRequest` if that event is not at that place, or an
    argument is of the wrong type or range.
    """

    #: the actor's address
    actor: str
    #: of the last event that is part of the state
    revision: int
    #: where that event is
    seq: int
    #: the state, as JSON
    state: msgspec.Raw
    #: Unix time in seconds
    timestamp: float
    #: of the state's meaning
    version: int = 1
    #: how many of the actor's snapshots are kept, the newest ones, this one included
    keep: int = 2
    #: of the state's type: see `Snapshot`
    shape: str = ""
    #: what else the events add up to, as JSON: see `Snapshot`
    bookkeeping: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        _check_text("actor", self.actor)
        _check_text("shape", self.shape)
        for name in ("revision", "seq", "version", "keep"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= MAX_VERSION:
                raise InvalidRequest(f"{name} is a whole number from 1 on, not {shown(value)}")
        for name, value in (("state", self.state), ("bookkeeping", self.bookkeeping)):
            if value is msgspec.UNSET and name != "state":
                continue
            if not isinstance(value, msgspec.Raw) or len(value) > MAX_STATE_BYTES:
                raise InvalidRequest(
                    f"{name} is JSON in a msgspec.Raw, of at most {MAX_STATE_BYTES // 1024**2} MiB"
                )
        if not _is_moment(self.timestamp) or math.isinf(self.timestamp):
            raise InvalidRequest(f"timestamp is Unix time in seconds, not {shown(self.timestamp)}")


class LoadSnapshot(Request[LoadedSnapshot], frozen=True):
    """Load the newest snapshot of an actor that can be believed.

    Passed over is one that is damaged, of another actor, version or store, or taken after an event
    that is not in this store any more. Raises `SnapshotsUnsupported`, and `InvalidRequest` when an
    argument is of the wrong type or range.
    """

    #: the actor's address
    actor: str
    #: of the state's meaning
    version: int = 1
    #: only a snapshot with a smaller revision: that one could not be used
    before_revision: int | None = None

    def __post_init__(self) -> None:
        _check_text("actor", self.actor)
        for name in ("version", "before_revision"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and (name, value) != ("before_revision", None):
                raise InvalidRequest(f"{name} is a whole number from 1 on, not {shown(value)}")


class LoadPosition(Request[LoadedPosition], frozen=True):
    """Load the position that a name has; see `papyra.persistence.positions`.

    Raises `PositionsUnsupported`, `StoreDamaged`, and `InvalidRequest` when an argument is of the
    wrong type or range.
    """

    #: up to 250 characters
    name: str

    def __post_init__(self) -> None:
        check_position_name(self.name)


class SavePosition(Request[PositionSaved], frozen=True):
    """Set the position that a name has, if it is as expected, and make it as durable as a record.

    Only the writer of a store does that, and becomes it if need be: raises `StoreFenced` where
    another one has taken over, `PositionsUnsupported`, and `InvalidRequest` when an argument is of
    the wrong type or range. Whatever raises has set it or not, and nothing in between: load it.
    """

    #: up to 250 characters
    name: str
    #: up to 64 KiB
    data: bytes
    #: what is there, as it was loaded or saved; `None` for nothing
    expected: bytes | None

    def __post_init__(self) -> None:
        check_position_name(self.name)
        check_position_data("data", self.data)
        if self.expected is not None:
            check_position_data("expected", self.expected)


class RemovePosition(Request[PositionRemoved], frozen=True):
    """Remove the position that a name has, if it is as expected; raises as a `SavePosition`."""

    #: up to 250 characters
    name: str
    #: what is there, as it was loaded or saved
    expected: bytes

    def __post_init__(self) -> None:
        check_position_name(self.name)
        check_position_data("expected", self.expected)


class ListPositions(Request[PositionNames], frozen=True):
    """List the names that have a position, page by page.

    Raises `PositionsUnsupported`, and `InvalidRequest` when an argument is of the wrong type or
    range.
    """

    #: only names behind this one, which was the last of a page; `None` for the first page
    after: str | None = None
    #: at most this many; pages are bounded, so there may be more of them all the same
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.after is not None:
            check_position_name(self.after)
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            raise InvalidRequest(f"limit is a whole number from 1 on, not {shown(self.limit)}")


class SkipEvent(Request[EventSkipped], frozen=True):
    """Record an operator's decision that recoveries pass over one event of an actor.

    It is an event of type ``papyra.event_skipped``, behind the last one of that history; an event
    that is passed over already stays so, and nothing is stored. A revision that is missing, while
    there are later ones, can be passed over, too. An actor that is awake and has a state learns of
    it when it persists next, which raises `RevisionConflict`; it then recovers from the store.
    Raises `InvalidRequest` for a revision that there is not, or that is such a decision itself, and
    if an argument is of the wrong type or range; otherwise as an `Append` does.
    """

    #: the actor's address
    actor: str
    #: of the event
    revision: int
    #: why, in up to 1,000 characters; not empty
    reason: str

    def __post_init__(self) -> None:
        _check_text("actor", self.actor)
        _check_text("reason", self.reason)
        if type(self.revision) is not int or not 0 < self.revision <= MAX_VERSION:
            raise InvalidRequest(
                f"revision is a whole number from 1 on, not {shown(self.revision)}"
            )
        if not self.reason.strip() or len(self.reason) > MAX_REASON:
            raise InvalidRequest(
                f"a reason has from 1 to {MAX_REASON:,} characters, not {shown(self.reason)}"
            )


class _ChangeTimer(Request[TimerChanged], frozen=True):
    #: the address of the actor
    actor: str
    #: of the timer
    name: str

    def __post_init__(self) -> None:
        _check_text("actor", self.actor)
        _check_text("name", self.name)


class CancelTimer(_ChangeTimer, frozen=True, tag=True):
    """Take a pending durable timer of an actor back, as an operator.

    That is an event of type ``papyra.timer``, behind the last one of that history. An actor that is
    awake learns of it; until it has, what it persists is refused with `RevisionConflict`. Raises
    `InvalidRequest` if there is no such timer, or an argument is of the wrong type; otherwise as an
    `Append` does.
    """


class FireTimer(_ChangeTimer, frozen=True, tag=True):
    """Have a pending durable timer of an actor be due now, as an operator.

    It is brought to its actor as soon as a system runs, with all its tries; one that recurs goes on
    as before. A timer that is due, and has not failed, stays as it is. Otherwise as `CancelTimer`.
    """


class Attend(Request[Attended], frozen=True):
    """Carry out, and answer, what other processes have posted for the writer of the store.

    A system asks for it once a second, if its store is durable; if that has an outbox, more often,
    and some of that is taken over, too. For those who follow, it is found out whether another one
    has taken over the store. Raises nothing for what is posted or handed over, be it what it may:
    that is answered with the reason why not, or set aside.
    """


class TakeOutbox(Request[OutboxTaken], frozen=True):
    """Take over the oldest events that applications have handed over, as one commit.

    What can't be appended is set aside. A system does that by itself, some times a second. Raises
    what an `Append` does; a store without an outbox has nothing to take over.
    """


class Identify(Request[Identity], frozen=True):
    """Return the id of the store, making one if it has none yet."""


class Restore(Request[Appended], frozen=True):
    """Store records that come from another store at the positions that they have there.

    Their `seq` rises from one to the next, and the first is greater than the last that was given
    here. Positions that are left out stay unused. A run of records without a gap is stored whole
    or not at all; of several runs, a failure leaves a beginning.
    """

    records: tuple[Record, ...]


class Summarize(Request[StoreSummary], frozen=True):
    """Say what the store holds, without reading all of it where that can be helped."""


class GetMetrics(Request[MetricsSnapshot], frozen=True):
    """Return the counters as they are."""


class ResetMetrics(Request[MetricsSnapshot], frozen=True):
    """Set every counter to zero; the reply holds what they had counted until then."""


class Scan(Request[PersistenceScanReport], frozen=True):
    """Check every stored record. Changes nothing. `watch_scans` says how far it is."""

    #: whether histories and snapshots are left out: each is checked when its actor recovers, too
    records_only: bool = False


class Recover(Request[PersistenceRecoveryReport], frozen=True):
    """Repair what a scan finds, and scan again. `None` stands for the default config."""

    config: PersistenceRecoveryConfig | None = None
    #: whether snapshots that are not to be believed are left where they are
    records_only: bool = False


class Compact(Request[CompactionReport], frozen=True):
    """Remove what retention hides, where the backend can.

    Raises `InvalidRequest` when an argument is of the wrong type.
    """

    #: by this policy, not by the backend's own
    policy: RetentionPolicy | None = None
    #: change nothing, and report what would be left
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.policy is not None and not isinstance(self.policy, RetentionPolicy):
            raise InvalidRequest(f"policy is a RetentionPolicy, not {shown(self.policy)}")
        if type(self.dry_run) is not bool:
            raise InvalidRequest(f"dry_run is True or False, not {shown(self.dry_run)}")


class Migrate(Request[MigrationReport], frozen=True):
    """Bring the tables of a store to the version that this Papyra writes, where it has tables.

    It needs the store for itself: raises `BackendInUse` while a system writes it, `StoreTooNew` for
    tables of a newer version, and `InvalidRequest` when an argument is of the wrong type.
    """

    #: change nothing, and report what would be done
    dry_run: bool = False

    def __post_init__(self) -> None:
        if type(self.dry_run) is not bool:
            raise InvalidRequest(f"dry_run is True or False, not {shown(self.dry_run)}")


class Flush(Request[Flushed], frozen=True):
    """Make everything appended so far as durable as the backend can."""


def _check_text(name: str, value: object) -> None:
    if type(value) is not str:
        raise InvalidRequest(f"{name} is a string, not {shown(value)}")


def _is_moment(value: object) -> bool:
    try:
        return type(value) in (float, int) and not math.isnan(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond all floats
        return False


AnyRequest: TypeAlias = (
    Append
    | AppendMany
    | Restore
    | Read
    | ReadAll
    | ReadHistory
    | ReadEncodedHistory
    | SaveSnapshot
    | LoadSnapshot
    | LoadPosition
    | SavePosition
    | RemovePosition
    | ListPositions
    | SkipEvent
    | CancelTimer
    | FireTimer
    | Attend
    | TakeOutbox
    | Identify
    | Summarize
    | GetMetrics
    | ResetMetrics
    | Scan
    | Recover
    | Compact
    | Migrate
    | Flush
)
