"""Event-sourced actors, as users write them."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from papyra.actor import Actor
from papyra.eventsourcing.bases import BaseReader
from papyra.eventsourcing.bookkeeping import Note
from papyra.eventsourcing.definition import Definition, define
from papyra.eventsourcing.history import History
from papyra.eventsourcing.keyed_commands import KeyedCommands, all_metadata
from papyra.eventsourcing.observed import ObservedHistory, ObservedSnapshots
from papyra.eventsourcing.occurrences import Occurrence
from papyra.eventsourcing.recovery import Recovery
from papyra.eventsourcing.snapshots import SnapshotPolicy, Snapshots
from papyra.eventsourcing.timer import Timer
from papyra.eventsourcing.timer_delivery import TimerDelivery, bring_timers_to
from papyra.exceptions import RecoveryFailed, WrongTask
from papyra.persistence.timer_changes import Missed, Pending
from papyra.retry import Retry

StateT = TypeVar("StateT")


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
    #: are named as events are, and upcasters lead to them as to events
    timer_messages: ClassVar[tuple[type, ...]] = ()
    #: how often a timer comes whose message could not be handled, and after which delays
    timer_retry: ClassVar[Retry] = Retry(5, backoff=2.0, jitter=0.5, max_backoff=600.0)

    #: how many idempotency keys are kept, the newest ones: a command that is repeated later than so
    #: many others with keys is taken for a new one
    idempotency_window: ClassVar[int] = 1_000

    _definition: ClassVar[Definition | None] = None
    _history: History[StateT] | None = None
    _recovery: Recovery[StateT]
    #: made when they are needed: most actors have neither
    _delivery: TimerDelivery[StateT] | None = None
    _keyed_commands: KeyedCommands[StateT] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._definition = define(cls)
        if cls.timer_messages:
            bring_timers_to(cls, EventSourced._timer_delivery)

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
        return None if self._delivery is None else self._delivery.occurrence

    def schedule(
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
    ) -> Coroutine[Any, Any, None]:
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
        return self.persist(schedule=timer)  # a coroutine of its own takes longer

    def unschedule(self, *names: str) -> Coroutine[Any, Any, None]:
        """Take timers back: what they would bring comes no more. It may be that there are none.

        Raises as `persist` does.
        """
        return self.persist(unschedule=names)

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
            await self._recovery.know_state()
        notes: Sequence[Note] = ()
        if schedule != () or unschedule != ():
            notes = self._timer_delivery().changes(schedule, unschedule)
        if not (events or notes) or (
            history.resumption is not None and self._has_stored(history, events)
        ):
            return
        delivery, said = self._delivery, history.command_metadata
        if delivery is not None and delivery.unnoted is not None:
            notes = delivery.with_fired(notes)
        if metadata is not None:
            said = all_metadata(metadata, said)
        try:
            # The recovery's own `append` would be one coroutine more.
            await history.append(events, said, notes)
        except BaseException:
            self._recovery.suspect(notes)
            raise
        if delivery is not None:
            delivery.note_stored()

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
            notes = self._timer_delivery().changes(schedule, unschedule)
        if not (events or notes) or self._has_stored(history, events):
            return
        delivery, said = self._delivery, history.command_metadata
        if delivery is not None and delivery.unnoted is not None:
            notes = delivery.with_fired(notes)
        if metadata is not None:
            said = all_metadata(metadata, said)
        self._recovery.append_nowait(events, said, notes)
        if delivery is not None:
            delivery.note_stored()

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
        if self._keyed_commands is None:
            history = self._own_history()
            self._keyed_commands = KeyedCommands(history, self._recovery, self.receive)
        return await self._keyed_commands.handle(message, idempotency_key)

    async def on_start(self) -> None:
        """Recover. Subclasses have `on_recovered`."""
        definition, policy = self._definition, self.snapshots
        telemetry = self.context.system.telemetry
        assert definition is not None  # this class is abstract
        snapshots = None
        if policy is not None and definition.state_codec is not None:
            snapshots = (
                Snapshots(policy, definition.state_codec, self.context)
                if telemetry is None
                else ObservedSnapshots(policy, definition.state_codec, self.context, telemetry)
            )
        bases: BaseReader[StateT] = BaseReader(type(self), policy)
        self._history = (History if telemetry is None else ObservedHistory)(
            *(definition.schema, self.context, self.initial_state, self.apply, snapshots),
            bases=bases,
            window=self.idempotency_window,
        )
        self._recovery = Recovery(
            self._history, self.context, self._attend_timers, self.on_recovered
        )
        # From now on, so that tasks that are started before the first event pass it, too.
        self.context.output_gate()
        self._recovery.settle_first()
        # Whoever asks is told, and has it tried again.
        with contextlib.suppress(RecoveryFailed):
            await self._recovery.settle()

    def _attend_timers(self) -> None:
        """Have the system look after the timers of this actor, if there are any."""
        if self.timer_messages and self._own_history().books.kept.timers:
            self.context.system.timers.attend(self.context.self_ref)

    def _timer_delivery(self) -> TimerDelivery[StateT]:
        if self._delivery is None:
            history = self._check_task()
            assert self._definition is not None
            messages = self._definition.timer_messages
            self._delivery = TimerDelivery(
                *(history, self._recovery, self.context, messages, self.timer_retry)
            )
        return self._delivery

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
