"""The history of one actor, and the state that it adds up to."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import structs

from papyra._error_copy import copy_of
from papyra._logs import fields
from papyra._safe_repr import shown, text_of, type_and_text, type_name
from papyra.actor import ActorContext
from papyra.eventsourcing.bases import BaseReader
from papyra.eventsourcing.bookkeeping import Books, Note
from papyra.eventsourcing.resumption import Past, Resumption
from papyra.eventsourcing.schema import Schema
from papyra.eventsourcing.snapshots import Snapshots
from papyra.eventsourcing.steps import Step
from papyra.exceptions import (
    InvalidEvent,
    InvalidRecord,
    InvalidRequest,
    PersistenceError,
    PositionsExhausted,
    RecoveryFailed,
    ReplyNotKept,
    RevisionConflict,
    StoreUnavailable,
)
from papyra.persistence import codec
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.decisions import (
    Decision,
    decisions_after,
    events_after,
    mark_passed_over,
)
from papyra.persistence.messages import (
    MAX_REASON,
    Append,
    AppendEncoded,
    AppendMany,
    EncodedHistory,
    HistoryPage,
    ReadEncodedHistory,
    ReadHistory,
)
from papyra.persistence.records import RESERVED, PersistedEvent
from papyra.persistence.timer_changes import TIMER
from papyra.ref import Answered

StateT = TypeVar("StateT")

logger = logging.getLogger("papyra")

#: Events that a recovery reads at a time: others' appends wait no longer than for these.
PAGE = 1_000
#: As many take no longer where nothing has to be decoded for it.
ENCODED_PAGE = 4 * PAGE

#: What can't be changed in place, whatever `apply` does.
_SCALARS = frozenset({int, float, str, bytes, bool, complex, range, type(None)})
#: Errors after which it is certain that an append has stored nothing.
_NOTHING_STORED = (InvalidRecord, InvalidRequest, PositionsExhausted, StoreUnavailable)
#: Values in a state that are looked at, to find out whether it can be changed in place.
MAX_PARTS = 10_000


class History(Generic[StateT]):
    """One actor's events in the store, and their sum: the only place where the two are changed."""

    def __init__(
        self,
        schema: Schema,
        context: ActorContext,
        initial_state: Callable[[], StateT],
        apply: Callable[[StateT, Any], StateT],
        snapshots: Snapshots[StateT] | None = None,
        *,
        bases: BaseReader[StateT],
        window: int,
    ) -> None:
        self._schema = schema
        self._context = context
        self._address = str(context.self_ref.address)
        self._system_id = context.system.system_id
        self._clock = context.clock
        self._persistence = context.persistence
        self._initial_state = initial_state
        self._apply = apply
        self._snapshots = snapshots
        self._bases = bases
        self._allows_none = False
        #: returns whether code runs in the actor's own task
        self.runs_here = context.runs_here
        #: the sum of the events, if it is known: as long as there is no `failure`
        self.total: StateT
        #: what else the events add up to
        self.books = Books(window)
        #: position in the history that `state` is the sum up to
        self.revision = 0
        #: where a recovery ends; `None` for the newest event
        self._until: int | None = None
        #: the command that is handled once more, while what it persists is stored already
        self.resumption: Resumption[StateT] | None = None
        self._present: Past[StateT] | None = None
        #: of the command at hand, if it has a key: what its events say about it
        self.command_metadata: Mapping[str, str] | None = None
        #: of the events that the last recovery has passed over, as operators have decided
        self.passed_over: tuple[int, ...] = ()
        #: whether the store may hold more: an append has failed, or its answer was lost
        self.is_in_doubt = False
        #: why there is no state, or that nobody has asked for one yet
        self.failure: RecoveryFailed | None = RecoveryFailed(
            f"{self._address} has not been recovered yet", actor=self._address
        )

    @property
    def state(self) -> StateT:
        """The sum of the events. Raises `RecoveryFailed` while it is not known."""
        if self.failure is not None:
            raise copy_of(self.failure)
        return self.total

    async def recover(self, *, from_beginning: bool) -> None:
        """Read the history, behind the newest snapshot if there is one. Raises `RecoveryFailed`.

        It may go on from a state that is known, where only what follows is in doubt.
        """
        from_beginning |= self.failure is not None
        self.failure = RecoveryFailed(f"{self._address} is recovering", actor=self._address)
        try:
            async with self._context.system.recoveries:
                await self._replay(from_beginning=from_beginning)
        except RecoveryFailed as failure:
            self.failure = failure
            raise
        self.failure, self.is_in_doubt = None, False

    async def append(
        self,
        events: Sequence[object],
        metadata: Mapping[str, str] | None = None,
        notes: Sequence[Note] = (),
    ) -> None:
        """Store `events` next to each other, and move on to the state that they lead to.

        Each has that metadata, and the notes follow. Raises what `apply` raises, and what the
        append raises; then the state is what it was.
        """
        if self.failure is not None:
            raise copy_of(self.failure)
        before = self.total
        state, records = self._next(before, events, metadata, notes)
        request = _append_of(records) if notes or len(records) > 1 else Append(records[0])
        appended: Any
        ask = self._persistence.ask_at_once(request)
        try:
            if ask is None:
                appended = await self._persistence.ask(request)
            else:
                await ask.done
                if ask.error is not None:
                    raise ask.error
                appended = ask.reply
        except RevisionConflict as conflict:
            self.lose(conflict)
            raise
        except PersistenceError as error:
            if not _is_immutable(before):
                self.lose(error)
            self.is_in_doubt |= not isinstance(error, _NOTHING_STORED)
            raise
        except BaseException as error:
            # Cancelled, most likely: whether it is stored, the store knows.
            if ask is not None:
                ask.given_up = True
            self.lose(error)
            raise
        self.total = state
        self.revision += len(records)
        if metadata or notes:
            self._take_in(records)
        if self._snapshots is not None:
            self._take_snapshot(appended.last_seq)

    def append_nowait(
        self,
        events: Sequence[object],
        answered: Answered,
        metadata: Mapping[str, str] | None = None,
        notes: Sequence[Note] = (),
    ) -> None:
        """Have `events` stored, move on to the state that they lead to, and do not wait.

        As `append`, but `answered` is called with the outcome. Should that be an error, `lose` the
        state.
        """
        before = self.state
        state, records = self._next(before, events, metadata, notes)
        revision, save = self.revision + len(records), None
        if metadata or notes:
            self._take_in(records)
        if self._snapshots is not None:
            save = self._snapshots.take(state, revision, self.books.kept)

        def stored(reply: Any, error: Exception | None) -> None:
            answered(reply, error)
            if save is not None and error is None:
                save(reply.last_seq)

        request = _append_of(records) if notes or len(records) > 1 else Append(records[0])
        try:
            self._persistence.request(request, answered if save is None else stored)
        except BaseException as error:
            if metadata or notes or not _is_immutable(before):
                self.lose(error)
            raise
        self.total = state
        self.revision = revision

    async def resume(self, idempotency_key: str, first_revision: int) -> None:
        """Go back before the first event of a command that is to be handled once more.

        `state` and `revision` are those of then, until `meet` has brought back all of its events,
        or `return_to_present` is called. Raises `ReplyNotKept` if these, or what was before, are
        not in the store any more; `RecoveryFailed`, and what reading raises.
        """
        before = await self._past(first_revision - 1)
        resumption = Resumption(idempotency_key, before, self._schema)
        read = self._context.system.backend.execute
        async for record in events_after(read, self._address, before.revision):
            resumption.add(record)
        if before.revision != first_revision - 1 or resumption.first_revision != first_revision:
            raise ReplyNotKept(
                f"this command was begun before, and cut short. It can't be handled once more, as "
                f"revision {first_revision} is not in the store any more"
            )
        self.resumption, self._present = resumption, Past(self.total, self.revision)
        self.total, self.revision = before

    def meet(self, events: Sequence[object]) -> bool:
        """Move on past `events`, if the command that is handled once more has stored them.

        Returns whether it has; if not, all that it has stored is met, and this is the present.
        Raises `ReplyNotKept` for other events than it has stored.
        """
        assert self.resumption is not None
        if self.resumption.divergence is not None:
            raise self.resumption.divergence
        if self.resumption.is_through:
            self.return_to_present()
            return False
        decoded, revision = self.resumption.meet(events)
        for event in decoded:
            self.total = self._applied(self.total, event)
        self.revision = revision
        return True

    def return_to_present(self) -> None:
        """Have the state of now again, if it is another one."""
        if self._present is not None:
            self.total, self.revision = self._present
        self.resumption = self._present = None

    async def _past(self, revision: int) -> Past[StateT]:
        """Return the state at a revision, or a later one if that is the first that there is."""
        then: History[StateT] = History(
            *(self._schema, self._context, self._initial_state, self._apply),
            bases=self._bases,
            window=1,
        )
        then._until = revision
        if self._snapshots is not None and (found := await self._snapshots.find(revision + 1)):
            then.total, then.revision, _ = found
            then._allows_none, then.failure = self._allows_none, None
        await then.recover(from_beginning=False)
        return Past(then.total, then.revision)

    def lose(self, error: BaseException) -> None:
        """Note that only the store knows the state now, because of `error`."""
        self.failure = RecoveryFailed(
            f"the state of {self._address} is not known before it is read again: something was "
            f"not persisted: {type_and_text(error)}",
            actor=self._address,
            revision=self.revision,
        )
        self.failure.__cause__ = error

    def _next(
        self,
        state: StateT,
        events: Sequence[object],
        metadata: Mapping[str, str] | None,
        notes: Sequence[Note],
    ) -> tuple[StateT, list[PersistedEvent]]:
        """Return the state after `events`, and the records of them, and of the notes."""
        encode, apply, before = self._schema.encode, self._apply, state
        system_id, address, now = self._system_id, self._address, self._clock.time()
        revision, records = self.revision, []
        for event in events:
            revision += 1
            (name, version), payload = encode(event)
            said = {**metadata} if metadata else {}
            record = PersistedEvent(
                system_id, address, name, payload, now, None, revision, version, said
            )
            records.append(record)
        for name, payload in notes:
            revision += 1
            # Where a command stores notes alone, these name its key.
            said = {**metadata} if metadata and not events else {}
            record = PersistedEvent(system_id, address, name, payload, now, None, revision, 1, said)
            records.append(record)
        try:
            for event in events:
                state = apply(state, event)
                if state is None and not self._allows_none:
                    raise _no_state(type_name(event))
        except BaseException as error:
            if not _is_immutable(before):
                self.lose(error)
            raise
        return state, records

    def _take_in(self, records: Sequence[Step]) -> None:
        take_in = self.books.take_in
        for record in records:
            take_in(record)

    def _applied(self, state: StateT, event: object) -> StateT:
        following = self._apply(state, event)
        if following is None and not self._allows_none:
            raise _no_state(type_name(event))
        return following

    def _take_snapshot(self, last_seq: int) -> None:
        """Have a snapshot saved if one is due, now that the last event is stored."""
        if self._snapshots is None:
            return
        save = self._snapshots.take(self.total, self.revision, self.books.kept)
        if save is not None:
            save(last_seq)

    async def _replay(self, *, from_beginning: bool) -> None:
        """Replay the history; again, should decisions turn up that change what it adds up to."""
        decisions: dict[int, Decision] = {}
        while True:
            try:
                await self._replay_by(decisions, from_beginning=from_beginning)
            except RecoveryFailed:
                found = await self._decisions_ahead()
                if found.keys() <= decisions.keys():
                    raise
                decisions |= found
                from_beginning = True
            else:
                break
        self.passed_over = tuple(sorted({each.revision for each in decisions.values()}))
        for decision in decisions.values():
            logger.warning(
                "%s was recovered without its event of revision %d, which an operator has decided "
                "to pass over: %s",
                *(self._address, decision.revision, shown(decision.reason, length=MAX_REASON)),
                extra=fields(revision=decision.revision),
            )

    async def _decisions_ahead(self) -> dict[int, Decision]:
        """Return the decisions behind the revision that was reached, by their own revisions."""
        try:
            return await decisions_after(
                self._context.system.backend.execute, self._address, self.revision
            )
        except PersistenceError:
            return {}  # what could not be read before says why

    async def _replay_by(self, decisions: Mapping[int, Decision], *, from_beginning: bool) -> None:
        if from_beginning:
            state, self.revision = self._initial_state(), 0
            self._allows_none = state is None
            self.books.clear()
            if self._snapshots is not None:
                # What is passed over may be part of a newer one.
                before = min((each.revision for each in decisions.values()), default=None)
                if (found := await self._snapshots.load(before)) is not None:
                    state, self.revision, self.books.kept = found
        else:
            state = self.total
        last_seq, more, is_usual = 0, True, not decisions and self._schema.steps is not None
        while more and (self._until is None or self.revision < self._until):
            page = await self._page(is_encoded=is_usual)
            more = page.more
            if isinstance(page, HistoryPage):
                events: Sequence[PersistedEvent] = page.events
                if decisions:
                    events = tuple(mark_passed_over(events, self.revision, decisions))
                state = self._sum_up(state, events)
                self._keep_books([each for each in events if _concerns_books(each)])
                if page.events:
                    last_seq = page.events[-1].seq or 0
                continue
            state, is_usual = self._sum_up_runs(state, page)
            if is_usual:
                last_seq = page.last_seq or last_seq
            # If not, once more, in the way that can tell what is wrong, if anything is.
            more |= not is_usual
        self.total = state
        if last_seq:
            # For who wakes often and persists seldom.
            self._take_snapshot(last_seq)

    async def _page(self, *, is_encoded: bool) -> HistoryPage | EncodedHistory:
        """Return a page of the history, encoded where the store can give it so."""
        request, rest = ReadHistory, PAGE
        if is_encoded:
            request, rest = ReadEncodedHistory, ENCODED_PAGE
        if self._until is not None:
            rest = max(min(rest, self._until - self.revision), 1)
        backend = self._context.system.backend
        try:
            page = await backend.execute(request(self._address, self.revision, rest))
            return cast("HistoryPage | EncodedHistory", page)
        except PersistenceError as error:
            raise self._failed(f"its history can't be read: {text_of(error)}") from error

    def _sum_up_runs(self, state: StateT, page: EncodedHistory) -> tuple[StateT, bool]:
        """Return the state after stored events, as `_sum_up`, and whether these were all."""
        decoder = self._schema.steps
        assert decoder is not None
        for run in page.runs:
            steps = decoder.decode(run, self._address, self.revision, is_own=page.is_own)
            if steps is None:
                return state, False
            are_events = decoder.holding_events.issuperset(map(type, steps))
            state = (self._add_up if are_events else self._sum_up)(state, steps)
            if type(steps[0]) in decoder.holding_marks:
                self._keep_books(steps)
        return state, True

    def _add_up(self, state: StateT, steps: Sequence[Step]) -> StateT:
        """Return the state after steps that hold events, and follow; and move on."""
        apply, allows_none = self._apply, self._allows_none
        step, done = steps[0], 0
        try:
            # Most are such, and here is what a recovery spends its time with.
            for done, step in enumerate(steps):  # noqa: B007
                state = apply(state, step.payload)
                if state is None and not allows_none:
                    raise _no_state(step.event_type)
        except Exception as error:
            self.revision += done
            raise self._failed(_why(error), step) from error
        self.revision += len(steps)
        return state

    def _sum_up(self, state: StateT, records: Sequence[Step]) -> StateT:
        """Return the state after stored events, and move on. Raises `RecoveryFailed`."""
        newest, apply, convert = self._schema.newest, self._apply, msgspec.convert
        decoder = self._schema.steps
        decoded = frozenset[type]() if decoder is None else decoder.holding_events
        for record in records:
            if record.revision != self.revision + 1 and not self._is_base_ahead(record):
                raise self._out_of_order(record)
            event_class = newest.get((record.event_type, record.event_version))
            try:
                if type(record) in decoded:
                    state = self._applied(state, record.payload)
                elif event_class is None:
                    state = self._state_after(state, record)
                else:
                    state = apply(state, convert(record.payload, event_class, str_keys=True))
                    if state is None and not self._allows_none:
                        raise _no_state(record.event_type)
            except Exception as error:
                raise self._failed(_why(error), record) from error
            self.revision += 1
        return state

    def _keep_books(self, records: Sequence[Step]) -> None:
        """Add stored events to the books. Raises `RecoveryFailed`."""
        for record in records:
            try:
                self.books.take_in(record)
            except Exception as error:
                raise self._failed(_why(error), record) from error

    def _state_after(self, state: StateT, record: Step) -> StateT:
        """Return the state after a base, or after an event that has to be upcast."""
        if record.event_type == BASE_TYPE:
            # Whatever was before: it is the sum of that, too.
            self.revision = (record.revision or 0) - 1
            return self._bases.state_in(cast("PersistedEvent", record))
        for event in self._schema.decode(record):
            state = self._applied(state, event)
        return state

    def _is_base_ahead(self, record: Step) -> bool:
        return record.event_type == BASE_TYPE and (record.revision or 0) > self.revision

    def _out_of_order(self, record: Step) -> RecoveryFailed:
        if (record.revision or 0) <= self.revision:
            return self._failed(f"revision {record.revision} is doubled", record)
        return self._failed(f"revision {self.revision + 1} is missing", record)

    def _failed(self, why: str, record: Step | None = None) -> RecoveryFailed:
        if record is None:
            return RecoveryFailed(f"{self._address} can't be recovered: {why}", actor=self._address)
        return RecoveryFailed(
            f"{self._address} can't be recovered past revision {self.revision}: event "
            f"{shown(record.event_type)} of version {record.event_version}: {why}",
            actor=self._address,
            revision=self.revision + 1,
            event_type=record.event_type,
        )


def _append_of(records: Sequence[PersistedEvent]) -> Append | AppendMany:
    """Return the request to store records, which are events of an actor, or notes."""
    if len(records) > 1:
        return AppendMany(tuple(records))
    record = records[0]
    # A timer was looked at when it was made, and to look at it once more takes longer than to
    # encode it.
    encoded = codec.encode_known(record) if record.event_type == TIMER else None
    return Append(record) if encoded is None else AppendEncoded(record, encoded)


def _concerns_books(record: Step) -> bool:
    return bool(record.metadata) or record.event_type.startswith(RESERVED)


def _why(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return f"it is no such event: {text_of(error)}"
    return type_and_text(error)


def _no_state(event_type: str) -> InvalidEvent:
    return InvalidEvent(f"apply returned None for {event_type}: it has to return the next state")


def _is_immutable(state: object) -> bool:
    """Return whether `apply` can't have changed `state` itself, nor anything in it.

    What is too large to be looked through may have been changed.
    """
    ahead, looked_at = [state], 0
    while ahead:
        each = ahead.pop()
        looked_at += 1
        parts = _parts_of(each)
        if parts is None or looked_at + len(parts) > MAX_PARTS:
            return False
        ahead += parts
    return True


def _parts_of(state: object) -> Collection[object] | None:
    """Return what is in a value that can't be changed itself, or `None` for any other."""
    kind = type(state)
    if kind in _SCALARS:
        return ()
    if kind is tuple or kind is frozenset:
        return cast("Collection[object]", state)
    if issubclass(kind, msgspec.Struct):
        return structs.astuple(state) if kind.__struct_config__.frozen else None  # type: ignore[arg-type]
    if dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return [getattr(state, field.name, None) for field in dataclasses.fields(kind)]
    return None
