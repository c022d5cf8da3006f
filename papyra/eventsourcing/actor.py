"""Event-sourced actors, as users write them."""

from __future__ import annotations

import abc
import contextlib
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from papyra._error_copy import copy_of
from papyra._logs import fields
from papyra._safe_repr import printable, shown, text_of, type_and_text, type_name
from papyra.actor import Actor, Failure
from papyra.due_timers import TimerDue, TimerFailed, TimersChanged, is_of_timers
from papyra.events import ActorRecoveredWithout, ActorRecoveryFailed
from papyra.eventsourcing.bases import BaseReader
from papyra.eventsourcing.bookkeeping import COMMAND, KEY, REPLIED, KeyedCommand, Note, Replied
from papyra.eventsourcing.history import History
from papyra.eventsourcing.keyed_replies import keep_reply, reply_again
from papyra.eventsourcing.observed import ObservedHistory, ObservedSnapshots
from papyra.eventsourcing.resumption import Resumption
from papyra.eventsourcing.schema import Schema, upcasters_of
from papyra.eventsourcing.snapshots import SnapshotPolicy, Snapshots, StateCodec, state_type_of
from papyra.eventsourcing.timers import (
    Occurrence,
    Timer,
    TimerMessages,
    as_names,
    as_timers,
    given_up,
    is_missed,
    next_due,
    occurrence_of,
)
from papyra.exceptions import (
    InvalidActor,
    InvalidIdempotencyKey,
    InvalidPolicy,
    InvalidRecord,
    InvalidSchema,
    MailboxFull,
    PersistenceError,
    RecoveryFailed,
    ReplyNotKept,
    UnhandledMessage,
    WrongTask,
)
from papyra.persistence.messages import MAX_REASON, Append
from papyra.persistence.records import RESERVED, PersistedDeadLetter
from papyra.persistence.timers import (
    TIMER,
    Change,
    Failed,
    Fired,
    Missed,
    Outcome,
    Pending,
    Unscheduled,
)
from papyra.retry import Retry

StateT = TypeVar("StateT")

logger = logging.getLogger("papyra")

#: Seconds after a failed recovery before the next, at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0

#: Where a function keeps that it looks for timers that are brought.
_BRINGS_TIMERS = "__papyra_brings_timers__"

#: Characters that are kept of the name of a command's type.
MAX_TYPE = 200
#: Idempotency keys that one actor may keep: they are part of each snapshot.
MAX_WINDOW = 100_000
#: Appends that one actor may wait for; then it handles no message until they are answered.
MAX_OUTSTANDING = 1_000


class EventSourced(Actor, Generic[StateT]):
    """An actor whose state is the sum of its events.

    Before its first message it reads its history, and applies each event in turn. Messages that
    arrive meanwhile wait. `receive` decides, and says what has happened with `persist`; `apply`
    says what that does to the state, now and in each recovery::

        class Account(EventSourced[int]):
            events = (Deposited, Withdrawn)

            def initial_state(self) -> int:
                return 0

            def apply(self, state: int, event: Deposited | Withdrawn) -> int:
                ...

    Its history is that of its address, so an actor that is to come back needs a name of its own.

    If the history can't be read, decoded or applied, nothing is handled: who asks gets
    `RecoveryFailed` at once, what is told becomes a dead letter, and it is tried again with a
    message after a while.
    """

    #: the types of its events; the history is decoded into these
    events: ClassVar[tuple[type, ...]] = ()
    #: functions that were marked with `upcaster`, beside those in the body of the class
    upcasters: ClassVar[Iterable[object]] = ()
    #: when its state is saved beside its events, for quicker recoveries; `None` for never
    snapshots: ClassVar[SnapshotPolicy | None] = None
    #: the types of messages that durable timers may bring; they are stored under their names, and
    #: are named as events are
    timer_messages: ClassVar[tuple[type, ...]] = ()
    #: how often a timer comes whose message could not be handled, and after which delays
    timer_retry: ClassVar[Retry] = Retry(5, backoff=2.0, jitter=0.5, max_backoff=600.0)

    #: how many idempotency keys are kept, the newest ones: a command that is repeated later than so
    #: many others with keys is taken for a new one
    idempotency_window: ClassVar[int] = 1_000

    _timer_messages: ClassVar[TimerMessages | None] = None
    _occurrence: Occurrence | None = None
    #: the timer at hand, until the note that it has fired is stored
    _unnoted: Pending | None = None
    _schema: ClassVar[Schema | None] = None
    _state_codec: ClassVar[StateCodec[Any] | None] = None
    _history: History[StateT] | None = None
    #: whether an append has failed on which the state depends
    _is_lost = False
    #: whether `on_recovered` has returned since the last recovery
    _is_prepared = False
    _pause = 0.0
    _retry_at = 0.0
    #: of the command at hand, if it has a key: what its events say about it
    _key_metadata: Mapping[str, str] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("initial_state", "apply"):
            if inspect.iscoroutinefunction(getattr(cls, name)):
                raise InvalidActor(f"{cls.__name__}.{name} is pure, so not 'async def'")
        if "on_start" in vars(cls):
            raise InvalidActor(
                f"{cls.__name__} is recovered when it starts: what follows belongs to on_recovered"
            )
        if cls.batch_types:
            raise InvalidActor(f"{cls.__name__} handles its messages one by one: no batch_types")
        if not isinstance(cls.events, (tuple, list)):
            raise InvalidSchema(f"{cls.__name__}.events is a tuple of classes")
        window = cls.idempotency_window
        if type(window) is not int or not 0 < window <= MAX_WINDOW:
            raise InvalidPolicy(
                f"{cls.__name__}.idempotency_window is a whole number from 1 to {MAX_WINDOW:,}, "
                f"not {shown(window)}"
            )
        members = {
            name: member for each in reversed(cls.__mro__) for name, member in vars(each).items()
        }
        steps = upcasters_of([*members.values(), *cls.upcasters])
        cls._schema = Schema(cls.__name__, cls.events, steps)
        cls._state_codec = _state_codec_of(cls)
        if not isinstance(cls.timer_messages, (tuple, list)):
            raise InvalidSchema(f"{cls.__name__}.timer_messages is a tuple of classes")
        if not isinstance(cls.timer_retry, Retry):
            raise InvalidPolicy(f"{cls.__name__}.timer_retry is a Retry")
        if cls.timer_messages:
            cls._timer_messages = TimerMessages(cls.__name__, cls.timer_messages)
            _bring_timers_to(cls)

    @abc.abstractmethod
    def initial_state(self) -> StateT:
        """Return the state before the first event."""

    @abc.abstractmethod
    def apply(self, state: StateT, event: Any) -> StateT:
        """Return the state after `event`.

        It must be pure: no I/O, no clock, nothing random. An event for which it raises is not
        stored.
        """

    async def on_recovered(self) -> None:
        """Prepare for messages, now that `state` is known. Called after each recovery.

        What it raises fails the start of the actor. Later it goes to the one who asked, and the
        next message has it called again.
        """

    @property
    def state(self) -> StateT:
        """The sum of all events so far: a value that `apply` replaces, and nobody changes.

        Raises `RecoveryFailed` where it is not known: before the recovery, and after an append of
        which only the store knows what has become.
        """
        history = self._history
        if history is None or history.failure is not None:
            return self._own_history().state
        return history.total

    @property
    def revision(self) -> int:
        """How many events there are in the history of this actor."""
        return self._own_history().revision

    @property
    def scheduled(self) -> Mapping[str, Pending]:
        """The durable timers of this actor that are pending, by their names."""
        return MappingProxyType(self._own_history().books.kept.timers)

    @property
    def occurrence(self) -> Occurrence | None:
        """The occurrence whose message is being handled; `None` for a message of anybody else's."""
        return self._occurrence

    async def schedule(
        self,
        name: str,
        message: object,
        *,
        at: datetime | float | None = None,
        after: float | None = None,
        every: float | None = None,
        cron: str | None = None,
        tz: str | None = None,
        missed: Missed = "once",
    ) -> None:
        """Have `message`, of one of the `timer_messages`, come to this actor at a time.

        It comes `at` an aware datetime, or Unix time; `after` seconds; `every` so many seconds, the
        n-th n times so many from now; or by a `cron` expression, in the time zone called `tz`. One
        of the same name is replaced, and its message comes no more. On return that is as durable as
        the backend promises. It wakes an entity, also after a restart: see `ActorSystem.entities`.

        What is seen more than a minute late, or more than a period, was `missed`: it comes
        ``"once"``, once for each time that was missed (``"all"``), or never (``"skip"``).

        Raises `InvalidTimer` for what makes no sense, `MissingExtra` for `cron` without the extra
        that is called so, and what `persist` raises.
        """
        timer = Timer(
            name, message, at=at, after=after, every=every, cron=cron, tz=tz, missed=missed
        )
        await self.persist(schedule=timer)

    async def unschedule(self, *names: str) -> None:
        """Take timers back: what they would bring comes no more. It may be that there are none.

        Raises as `persist` does.
        """
        await self.persist(unschedule=names)

    async def persist(
        self,
        *events: object,
        schedule: Timer | Iterable[Timer] = (),
        unschedule: str | Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Store `events` next to each other, all or none, and take on the state they lead to.

        Timers that are scheduled, or taken back by their names, are part of the same append.

        They are applied first: what `apply` raises is raised here, and nothing is stored. On return
        they are as durable as the backend promises. If the append raises, the state is what it was.
        Whether they are stored all the same, as an answer can get lost, is settled before the next
        message; also if it is cancelled.

        `metadata` goes with each of them, as in `PersistedEvent`: correlation ids, say.

        Raises `InvalidEvent` for one of another type than `events` names, `InvalidRecord` for
        metadata that is none, `WrongTask` outside of the actor's own task, and what `append`
        raises; `RevisionConflict` if somebody else has written this history.
        """
        history = self._history
        if history is None or not history.runs_here():
            history = self._check_task()
        if history.failure is not None:
            # The message at hand has seen the state. If that was not kept, it must not go on.
            await self.context.output_gate().opened()
            await self._settle()
        notes: Sequence[Note] = ()
        if schedule != () or unschedule != ():
            notes = self._timer_notes(schedule, unschedule)
        if not (events or notes) or (
            history.resumption is not None and self._has_stored(history, events)
        ):
            return
        if self._unnoted is not None:
            notes = self._with_fired(notes)
        metadata = self._key_metadata if metadata is None else self._metadata(metadata)
        try:
            await history.append(events, metadata, notes)
        except BaseException:
            self._suspect(history, notes)
            raise
        self._unnoted = None

    def persist_nowait(
        self,
        *events: object,
        schedule: Timer | Iterable[Timer] = (),
        unschedule: str | Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Have `events` stored, take on the state that they lead to at once, and go on.

        So the store can write many at a time, and the next message does not wait. What this actor
        gives out from now on does: replies, errors, tells and asks are held, in order, until what
        was persisted before them is stored. So nobody hears of what was not kept. If the append
        fails, who depends on it gets its error, what was to be told is dropped, and the actor
        recovers from the store before it handles the next message.

        Raises what `apply` raises, and as `persist` does for events and tasks that it refuses.
        """
        history = self._check_task()
        notes: Sequence[Note] = ()
        if schedule != () or unschedule != ():
            notes = self._timer_notes(schedule, unschedule)
        if (events or notes) and not self._has_stored(history, events):
            notes = self._with_fired(notes)
            self._append_nowait(history, events, self._metadata(metadata), notes)
            self._unnoted = None

    def _has_stored(self, history: History[StateT], events: Sequence[object]) -> bool:
        """Return whether a command that is handled once more has stored this the first time."""
        if history.resumption is None:
            return False
        if not events and not history.resumption.is_through:
            return True  # timers alone, before an event that is there
        return history.meet(events)

    async def receive_once(self, message: Any, idempotency_key: str) -> Any:
        """Handle one message that was asked with an idempotency key. The runtime calls it.

        Unless there is a reply with this key already, `receive` is called; once more, where a
        command with this key was cut short.
        """
        history, command_type = self._own_history(), printable(type_name(message))[:MAX_TYPE]
        handled = history.books.kept.commands.get(idempotency_key)
        try:
            if handled is not None:
                _check_same(handled, command_type, idempotency_key)
                if handled.reply is not None:
                    return reply_again(handled.reply, message)
                await history.resume(idempotency_key, handled.revision)
        except (InvalidIdempotencyKey, ReplyNotKept, RecoveryFailed, PersistenceError) as error:
            return Failure(error)
        self._key_metadata, resumption = (
            {KEY: idempotency_key, COMMAND: command_type},
            history.resumption,
        )
        try:
            reply = (
                await self._receive_resumed(resumption, message)
                if resumption
                else await self.receive(message)
            )
        finally:
            self._key_metadata = None
            history.return_to_present()
        if resumption is not None and resumption.divergence is not None:
            return Failure(resumption.divergence)
        if history.failure is None and idempotency_key in history.books.kept.commands:
            replied = Replied(idempotency_key, keep_reply(message, reply))
            self._append_nowait(history, (), notes=[Note(REPLIED, replied)])
        return reply

    async def _receive_resumed(self, resumption: Resumption[StateT], message: Any) -> Any:
        """Return what `receive` does, and note if that is something else than the first time."""
        try:
            reply = await self.receive(message)
        except ReplyNotKept as error:
            if error is resumption.divergence:
                return None
            raise
        if not resumption.is_through:
            resumption.diverge()
        return reply

    def _metadata(self, metadata: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """Return what is stored with events: what the user says, and what the command does."""
        if metadata is None:
            return self._key_metadata
        if not isinstance(metadata, Mapping) or any(
            not isinstance(name, str) or name.startswith(RESERVED) for name in metadata
        ):
            raise InvalidRecord(
                f"metadata is strings by their names, which do not begin with {RESERVED!r}, "
                f"not {shown(metadata)}"
            )
        return {**metadata, **(self._key_metadata or {})}

    def _append_nowait(
        self,
        history: History[StateT],
        events: Sequence[object],
        metadata: Mapping[str, str] | None = None,
        notes: Sequence[Note] = (),
    ) -> None:
        gate = self.context.output_gate()

        def answered(reply: object, error: Exception | None) -> None:
            del reply
            if error is not None and self._history is history:
                self._is_lost = True
                self.context.settle_first(self._settle)
                if notes:
                    self.context.system.timers.suspect()
            gate.answer(error)

        try:
            history.append_nowait(events, answered, metadata, notes)
        finally:
            if history.failure is not None:
                self.context.settle_first(self._settle)
        gate.expect()
        if gate.outstanding >= MAX_OUTSTANDING:
            self.context.settle_first(self._settle)

    async def on_start(self) -> None:
        """Recover. Subclasses have `on_recovered`."""
        schema = type(self)._schema
        assert schema is not None  # this class is abstract
        policy, state_codec = self.snapshots, self._state_codec
        telemetry = self.context.system.telemetry
        snapshots = None
        if policy is not None and state_codec is not None:
            snapshots = (
                Snapshots(policy, state_codec, self.context)
                if telemetry is None
                else ObservedSnapshots(policy, state_codec, self.context, telemetry)
            )
        bases: BaseReader[StateT] = BaseReader(type(self), policy)
        self._history = (History if telemetry is None else ObservedHistory)(
            *(schema, self.context, self.initial_state, self.apply, snapshots),
            bases=bases,
            window=self.idempotency_window,
        )
        # From now on, so that tasks that are started before the first event pass it, too.
        self.context.output_gate()
        self.context.settle_first(self._settle)
        # Whoever asks is told, and has it tried again.
        with contextlib.suppress(RecoveryFailed):
            await self._settle()

    def _suspect(self, history: History[StateT], notes: Sequence[Note]) -> None:
        """Have what an append has left open settled before the next message."""
        if history.failure is not None or history.is_in_doubt:
            self.context.settle_first(self._settle)
            if notes:
                self.context.system.timers.suspect()

    def _timer_notes(
        self, schedule: Timer | Iterable[Timer], unschedule: str | Iterable[str]
    ) -> list[Note]:
        """Return what is to be stored of timers that are taken back, and scheduled."""
        notes = []
        if unschedule != ():
            pending, names = self._own_history().books.kept.timers, as_names(unschedule)
            notes = [_note_of(Unscheduled(each)) for each in names if each in pending]
        if timers := as_timers(schedule):
            messages = self._timer_messages or TimerMessages(type(self).__name__, ())
            now = self.context.clock.time()
            notes += [Note(TIMER, each.scheduled(messages, now)) for each in timers]
            self.context.system.timers.attend(self.context.self_ref)
        return notes

    def _with_fired(self, notes: Sequence[Note]) -> Sequence[Note]:
        """Return `notes` behind the one that the timer at hand has fired, if there is one."""
        if self._unnoted is None:
            return notes
        return [_note_of(self._fired(self._unnoted, "handled")), *notes]

    def _fired(self, pending: Pending, outcome: Outcome) -> Fired:
        """Return the note that an occurrence is over, and which one is next as of now."""
        following = next_due(pending.scheduled, pending.due, self.context.clock.time())
        return Fired(pending.name, pending.due, following, outcome)

    async def _receive_due(
        self,
        timer: TimerDue | TimerFailed | TimersChanged,
        receive: Callable[[Any, Any], Coroutine[Any, Any, Any]],
    ) -> Any:
        """Handle a timer that is brought; or note that this has failed."""
        if isinstance(timer, TimersChanged):
            self._check_task().is_in_doubt = True
            await self._settle()
            return "noted"
        pending = await self._pending(timer)
        if pending is None:
            return "stale"
        if isinstance(timer, TimerFailed):
            return await self._note_failure(pending, timer.error)
        scheduled = pending.scheduled
        if (
            scheduled.missed == "skip"
            and not pending.attempts
            and is_missed(scheduled, pending.due, timer.seen)
        ):
            return await self._note(self._fired(pending, "skipped"))
        assert self._timer_messages is not None
        message = self._timer_messages.decode(scheduled)
        self._occurrence = occurrence_of(str(self.context.self_ref.address), pending)
        self._unnoted = pending
        try:
            handling, telemetry = receive(self, message), self.context.system.telemetry
            if telemetry is not None:
                late = max(0.0, self.context.clock.time() - pending.due)
                handling = telemetry.timer(
                    *(self.context.self_ref.address, pending.name, late, scheduled.cause, handling)
                )
            reply = await handling
            is_refused = type(reply) is Failure and not isinstance(reply.error, UnhandledMessage)
            if self._unnoted is not None:
                if is_refused:
                    return reply
                await self._note(self._fired(self._unnoted, "handled"))
        finally:
            self._unnoted = self._occurrence = None
        return "handled"

    async def _pending(self, timer: TimerDue | TimerFailed) -> Pending | None:
        """Return the timer that is brought, if it is what is pending."""
        history, key = self._check_task(), (timer.name, timer.generation, timer.due)
        address = str(self.context.self_ref.address)
        is_current = self.context.system.timers.is_current(address, *key)
        if (self._own_pending(*key) is not None) != is_current:
            # An operator has changed it, most likely; the store knows.
            history.is_in_doubt = True
            await self._settle()
        return self._own_pending(*key)

    def _own_pending(self, name: str, generation: int, due: float) -> Pending | None:
        pending = self.scheduled.get(name)
        if pending is None or (pending.generation, pending.due) != (generation, due):
            return None
        return pending

    async def _note_failure(self, pending: Pending, error: Exception) -> str:
        """Note that an occurrence comes again; or, after too many failures, that it is over."""
        attempts, now = pending.attempts + 1, self.context.clock.time()
        why = type_and_text(error)[:MAX_REASON]
        delay = self.timer_retry.delay_after(attempts, error)
        if delay is not None:
            return await self._note(Failed(pending.name, pending.due, attempts, now + delay, why))
        address = str(self.context.self_ref.address)
        logger.error(
            "timer %s of %s is given up after %d attempts: %s",
            *(shown(pending.name), address, attempts, why),
        )
        # First, as it is better found twice than not at all.
        letter = given_up(address, pending, attempts, why)
        await self.context.persistence.ask(
            Append(
                PersistedDeadLetter(
                    *(self.context.system.system_id, address, pending.scheduled.message_type),
                    *(letter, False, now),
                )
            )
        )
        return await self._note(self._fired(pending, "failed"))

    async def _note(self, change: Change) -> str:
        """Store a change of a timer by itself."""
        history = self._check_task()
        if history.failure is not None:
            await self.context.output_gate().opened()
            await self._settle()
        notes = [_note_of(change)]
        try:
            await history.append((), None, notes)
        except BaseException:
            self._suspect(history, notes)
            raise
        self._unnoted = None
        return "noted"

    async def _settle(self) -> None:
        """Wait for appends if there are too many; recover if need be, unless it has just failed."""
        history = self._own_history()
        await self.context.settle_outputs()
        if history.failure is not None or history.is_in_doubt or self._is_lost:
            await self._recover(history)
            if history.books.kept.timers and self._timer_messages is not None:
                self.context.system.timers.attend(self.context.self_ref)
        self.context.settle_first(None)
        if not self._is_prepared:
            await self._prepare()

    async def _recover(self, history: History[StateT]) -> None:
        clock = self.context.clock
        if history.failure is not None and clock.monotonic() < self._retry_at:
            raise copy_of(history.failure)
        is_known = history.failure is None and not self._is_lost
        revision = history.revision
        try:
            await history.recover(from_beginning=not is_known)
        except RecoveryFailed as failure:
            self.context.counters.recovery_errors += 1
            self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
            self._retry_at = clock.monotonic() + self._pause
            self._record_failure(failure)
            raise
        self.context.counters.recoveries += 1
        if history.passed_over:
            self._record(ActorRecoveredWithout(history.passed_over))
        self._pause = self._retry_at = 0.0
        self._is_lost = False
        self._is_prepared &= is_known and history.revision == revision

    async def _prepare(self) -> None:
        self._is_prepared = True  # before it has, as it may persist, and settle what comes of that
        # What it persists is no part of the command at hand, in which a recovery may be necessary.
        of_command, self._key_metadata = self._key_metadata, None
        try:
            await self.on_recovered()
        except BaseException:
            self._is_prepared = False
            self.context.settle_first(self._settle)
            raise
        finally:
            self._key_metadata = of_command

    def _record_failure(self, failure: RecoveryFailed) -> None:
        logger.error("%s", failure, extra=fields(revision=failure.revision))
        self._record(ActorRecoveryFailed(failure.revision, failure.event_type, text_of(failure)))

    def _record(self, fact: ActorRecoveryFailed | ActorRecoveredWithout) -> None:
        """Have what became of a recovery be known, as far as the store allows."""
        try:
            self.context.persistence.tell_nowait(Append(self.context.event(fact)))
        except MailboxFull:
            logger.warning("not recorded, as the store has no room for it: %s", fact)

    def _check_task(self) -> History[StateT]:
        history = self._history or self._own_history()
        if not self.context.is_own_task:
            raise WrongTask(
                f"{type(self).__name__} persists while it handles a message, in its own task: "
                "what other tasks find out, they tell it"
            )
        return history

    def _own_history(self) -> History[StateT]:
        if self._history is None:
            raise RecoveryFailed(f"{type(self).__name__} has not been started: it has no state yet")
        return self._history


def _check_same(handled: KeyedCommand, command_type: str, idempotency_key: str) -> None:
    if handled.type != command_type:
        raise InvalidIdempotencyKey(
            f"the idempotency key {shown(idempotency_key)} is that of another command, a "
            f"{handled.type}"
        )


def _note_of(change: Change) -> Note:
    return Note(TIMER, change)


def _bring_timers_to(actor_class: type[EventSourced[Any]]) -> None:
    """Have `receive` of a class be given the messages that its timers bring."""
    receive: Any = actor_class.receive
    if getattr(receive, _BRINGS_TIMERS, False):
        return

    @functools.wraps(receive)
    def brought(self: EventSourced[Any], message: Any) -> Awaitable[Any]:
        if is_of_timers(message):
            return self._receive_due(message, receive)
        handling: Awaitable[Any] = receive(self, message)
        return handling

    setattr(brought, _BRINGS_TIMERS, True)
    actor_class.receive = brought  # type: ignore[method-assign, assignment]


def _state_codec_of(actor_class: type[EventSourced[Any]]) -> StateCodec[Any] | None:
    """Return the codec of an actor's states if it has snapshots.

    Raises `InvalidPolicy`, and `InvalidSchema` for a state that could not be read back.
    """
    policy, name = actor_class.snapshots, actor_class.__name__
    if policy is None:
        return None
    if not isinstance(policy, SnapshotPolicy):
        raise InvalidPolicy(f"{name}.snapshots is a SnapshotPolicy, not {shown(policy)}")
    state_type = state_type_of(actor_class)
    if state_type is not Any and not isinstance(state_type, TypeVar):
        return StateCodec(name, state_type)
    if getattr(actor_class.initial_state, "__isabstractmethod__", False):
        return None  # a subclass is to say it
    raise InvalidSchema(
        f"{name} has snapshots, so it must be known what its state is: say what initial_state "
        "returns, as in 'def initial_state(self) -> Balance'"
    )
