"""Timers that are brought to their actor: what it makes of each, and what it notes of that."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from papyra._safe_repr import shown, type_and_text
from papyra.actor import ActorContext, Failure
from papyra.durable_timers import TimerDue, TimerFailed, TimersChanged, is_of_timers
from papyra.eventsourcing.bookkeeping import Note
from papyra.eventsourcing.history import History
from papyra.eventsourcing.occurrences import (
    Occurrence,
    given_up,
    is_missed,
    next_due,
    occurrence_of,
)
from papyra.eventsourcing.recovery import Recovery
from papyra.eventsourcing.timer import Timer, as_names, as_timers
from papyra.eventsourcing.timer_messages import TimerMessages
from papyra.exceptions import InvalidTimer, MissingExtra, RecordTooLarge, UnhandledMessage
from papyra.persistence.messages import MAX_REASON, Append
from papyra.persistence.records import PersistedDeadLetter
from papyra.persistence.timer_changes import (
    TIMER,
    Change,
    Failed,
    Fired,
    Outcome,
    Pending,
    Unscheduled,
)
from papyra.retry import Retry

StateT = TypeVar("StateT")

#: What handles a message of a timer: ``receive``.
Receive: TypeAlias = Callable[[Any], Coroutine[Any, Any, Any]]

logger = logging.getLogger("papyra")

#: Seconds until a timer is looked at again of which nobody can say when it comes next, once it has
#: been tried as often as others.
_UNKNOWN_PAUSE = 600.0

#: Where a function keeps that it looks for timers that are brought.
_BRINGS_TIMERS = "__papyra_brings_timers__"


class TimerDelivery(Generic[StateT]):
    """The durable timers of one actor, from its own side."""

    def __init__(
        self,
        history: History[StateT],
        recovery: Recovery[StateT],
        context: ActorContext,
        messages: TimerMessages,
        retry: Retry,
    ) -> None:
        self._history = history
        self._recovery = recovery
        self._context = context
        self._self_ref = context.self_ref
        self._address = str(context.self_ref.address)
        self._clock, self._timers = context.clock, context.system.timers
        self._messages = messages
        self._retry = retry
        #: whose message is being handled
        self.occurrence: Occurrence | None = None
        #: the timer at hand, until the note that it has fired is stored
        self.unnoted: Pending | None = None

    def changes(
        self, schedule: Timer | Iterable[Timer], unschedule: str | Iterable[str]
    ) -> list[Note]:
        """Return what is to be stored of timers that are taken back, and scheduled.

        Raises `InvalidTimer`, and `MissingExtra`.
        """
        notes: list[Note] = []
        if unschedule != ():
            pending, names = self._history.books.kept.timers, as_names(unschedule)
            notes = [(TIMER, Unscheduled(each)) for each in names if each in pending]
        now = self._clock.time()
        if type(schedule) is Timer:
            notes.append((TIMER, schedule.scheduled(self._messages, now)))
        elif timers := as_timers(schedule):
            notes += [(TIMER, each.scheduled(self._messages, now)) for each in timers]
        else:
            return notes
        self._timers.attend(self._self_ref)
        return notes

    def with_fired(self, notes: Sequence[Note]) -> Sequence[Note]:
        """Return `notes` behind the one that the timer at hand has fired, which is `unnoted`."""
        assert self.unnoted is not None
        return [(TIMER, self._fired(self.unnoted, "handled")), *notes]

    def note_stored(self) -> None:
        """Take note that what `with_fired` has returned is stored, or on its way."""
        self.unnoted = None

    async def receive(
        self, timer: TimerDue | TimerFailed | TimersChanged, receive: Receive
    ) -> object:
        """Handle a timer that is brought; or note that this has failed."""
        if isinstance(timer, TimersChanged):
            self._history.is_in_doubt = True
            await self._recovery.settle()
            return "noted"
        pending = await self._pending(timer)
        if pending is None:
            return "stale"
        if isinstance(timer, TimerFailed):
            return await self._note_failure(pending, timer.error)
        if (error := self._why_unknown(pending)) is not None:
            # Nothing could be noted, and it would be handled again and again.
            return Failure(error)
        scheduled = pending.scheduled
        if (
            scheduled.missed == "skip"
            and not pending.attempts
            and is_missed(scheduled, pending.due, timer.seen)
        ):
            return await self._note(self._fired(pending, "skipped"))
        return await self._handle(pending, receive)

    async def _handle(self, pending: Pending, receive: Receive) -> object:
        try:
            messages = self._messages.decode(pending.scheduled)
        except InvalidTimer as error:
            return Failure(error)  # the actor is well
        if not messages:
            return await self._note(self._fired(pending, "skipped"))
        (message,) = messages
        self.occurrence = occurrence_of(self._address, pending)
        self.unnoted = pending
        try:
            handling, telemetry = receive(message), self._context.system.telemetry
            if telemetry is not None:
                late = max(0.0, self._clock.time() - pending.due)
                handling = telemetry.timer(
                    *(self._self_ref.address, pending.name, late),
                    *(pending.scheduled.cause, handling),
                )
            reply = await handling
            is_refused = type(reply) is Failure and not isinstance(reply.error, UnhandledMessage)
            if self.unnoted is not None:
                if is_refused:
                    return reply
                await self._note(self._fired(self.unnoted, "handled"))
        finally:
            self.unnoted = self.occurrence = None
        return "handled"

    async def _pending(self, timer: TimerDue | TimerFailed) -> Pending | None:
        """Return the timer that is brought, if it is what is pending."""
        key = timer.name, timer.generation, timer.due
        is_current = self._timers.is_current(self._address, *key)
        if (self._own_pending(*key) is not None) != is_current:
            # An operator has changed it, most likely; the store knows.
            self._history.is_in_doubt = True
            await self._recovery.settle()
        return self._own_pending(*key)

    def _own_pending(self, name: str, generation: int, due: float) -> Pending | None:
        pending = self._history.books.kept.timers.get(name)
        if pending is None or (pending.generation, pending.due) != (generation, due):
            return None
        return pending

    async def _note_failure(self, pending: Pending, error: Exception) -> str:
        """Note that an occurrence comes again; or, after too many failures, that it is over."""
        attempts, now = pending.attempts + 1, self._clock.time()
        why = type_and_text(error)[:MAX_REASON]
        delay = self._retry.delay_after(attempts, error)
        if delay is None and self._why_unknown(pending) is not None:
            delay = _UNKNOWN_PAUSE
            logger.error(
                "timer %s of %s waits, and is looked at again in %g s: %s",
                *(shown(pending.name), self._address, delay, why),
            )
        if delay is not None:
            return await self._note(Failed(pending.name, pending.due, attempts, now + delay, why))
        logger.error(
            "timer %s of %s is given up after %d attempts: %s",
            *(shown(pending.name), self._address, attempts, why),
        )
        # First, as it is better found twice than not at all.
        payload = given_up(self._address, pending, attempts, why)
        try:
            await self._store_letter(pending, payload, now)
        except RecordTooLarge:
            # With what is said about it, the message is larger than what it was stored in.
            await self._store_letter(pending, {**payload, "message": None}, now)
        return await self._note(self._fired(pending, "failed"))

    async def _store_letter(self, pending: Pending, payload: Mapping[str, Any], now: float) -> None:
        letter = PersistedDeadLetter(
            *(self._context.system.system_id, self._address, pending.scheduled.message_type),
            *(payload, False, now),
        )
        await self._context.persistence.ask(Append(letter))

    def _why_unknown(self, pending: Pending) -> Exception | None:
        """Return why nobody can say when a timer comes next, as its time zone is gone, say."""
        if pending.scheduled.cron is None:
            return None
        try:
            next_due(pending.scheduled, pending.due, self._clock.time())
        except (InvalidTimer, MissingExtra) as error:
            return error
        return None

    async def _note(self, change: Change) -> str:
        """Store a change of a timer by itself."""
        await self._recovery.know_state()
        await self._recovery.append((), None, [(TIMER, change)])
        self.unnoted = None
        return "noted"

    def _fired(self, pending: Pending, outcome: Outcome) -> Fired:
        """Return the note that an occurrence is over, and which one is next as of now."""
        following = next_due(pending.scheduled, pending.due, self._clock.time())
        return Fired(pending.name, pending.due, following, outcome)


def bring_timers_to(actor_class: Any, delivery_of: Callable[[Any], TimerDelivery[Any]]) -> None:
    """Have `receive` of a class be given the messages that its timers bring."""
    receive: Any = actor_class.receive
    if getattr(receive, _BRINGS_TIMERS, False):
        return

    @functools.wraps(receive)
    def brought(self: Any, message: Any) -> Awaitable[Any]:
        if is_of_timers(message):
            return delivery_of(self).receive(message, functools.partial(receive, self))
        handling: Awaitable[Any] = receive(self, message)
        return handling

    setattr(brought, _BRINGS_TIMERS, True)
    actor_class.receive = brought
