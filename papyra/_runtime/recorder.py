"""The recorder: store the steps of actors' lives, dead letters and audits, or log them."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from papyra._logs import fields
from papyra._safe_repr import MEANT, shown, type_name
from papyra.address import ActorAddress
from papyra.audit import AuditReport
from papyra.class_counters import ClassCounters, CountersByClass, name_of_class
from papyra.clock import Clock
from papyra.durable_timers import is_of_timers
from papyra.events import (
    ActorCrashed,
    ActorRestarted,
    ActorStarted,
    ActorStopped,
    LifecycleEvent,
)
from papyra.exceptions import MailboxClosed, MailboxFull, UnencodablePayload
from papyra.mailbox import Mailbox
from papyra.persistence import codec
from papyra.persistence.messages import Append
from papyra.persistence.records import PersistedAudit, PersistedDeadLetter, PersistedEvent, Record

logger = logging.getLogger("papyra")

#: How much a message may take up to be stored as it is: about its bytes, and eight for each value
#: in it. Nobody sends a letter so that it is found dead, and the event loop has other work to do.
_ROOM = 1024 * 1024
#: Types of large values of which little is looked at to show them.
_SHORTENED = frozenset({dict, list, tuple, set, frozenset, str, bytes})


class Recorders(Protocol):
    """The recorders of a system, one for each class of actors."""

    def for_class(self, actor_class: type) -> Recorder:
        """Return the recorder that counts for a class."""


class Recorder(Recorders, Protocol):
    """The place where a cell reports lifecycle events and dead letters."""

    #: of the class that it is for
    counters: ClassCounters

    def lifecycle(self, address: ActorAddress, event: LifecycleEvent) -> None:
        """Record a step of an actor's life. Does not wait: a life goes on."""

    def dead_letter_nowait(self, target: ActorAddress, message: object, asked: bool) -> None:
        """Record a message that was not handled; raise `MailboxFull` if the store is behind."""

    def dead_letter_left(self, target: ActorAddress, message: object, asked: bool) -> None:
        """Record a message that was left in a mailbox, even if the store is behind."""

    async def dead_letter(self, target: ActorAddress, message: object, asked: bool) -> None:
        """Record a message that was not handled; wait if the store is behind."""

    def unclaimed(self, address: ActorAddress, message: object) -> None:
        """Take note of a reply whose asker had given up by then."""


class SystemRecorder:
    """Record through the system's persistence actor, and count for audits on the way."""

    def __init__(
        self,
        system_id: str,
        clock: Clock,
        store: Mailbox[object],
        by_class: CountersByClass | None = None,
    ) -> None:
        self._system_id = system_id
        self._clock = clock
        self._store = store
        self.counts: dict[type[LifecycleEvent], int] = dict.fromkeys(
            (ActorStarted, ActorStopped, ActorCrashed, ActorRestarted), 0
        )
        self.dead_letters = 0
        self.unclaimed_replies = 0
        self._by_class = CountersByClass() if by_class is None else by_class
        self._recorders: dict[ClassCounters, ClassRecorder] = {}
        #: the class that was asked for last, as most are of the one before; nothing keeps it alive
        self._latest_class: Callable[[], type | None] = lambda: None
        self._latest: ClassRecorder
        #: the latest of them: who replied, and to what type of message
        self.latest_unclaimed: deque[tuple[str, str]] = deque(maxlen=10)

    def for_class(self, actor_class: type) -> ClassRecorder:
        """Return the recorder that counts for a class, too."""
        if self._latest_class() is actor_class:
            return self._latest
        counters = self._by_class.of(actor_class)
        found = self._recorders.get(counters)
        if found is None:
            found = self._recorders[counters] = ClassRecorder(self, counters)
        self._latest_class, self._latest = weakref.ref(actor_class), found
        return found

    def lifecycle(self, address: ActorAddress, event: LifecycleEvent) -> None:
        """Record a step of an actor's life."""
        self.counts[type(event)] += 1
        self._push(
            PersistedEvent(
                self._system_id, str(address), type(event).__name__, event, self._clock.time()
            )
        )

    def audit(self, report: AuditReport) -> None:
        """Record the system's health."""
        self._push(PersistedAudit(self._system_id, report, self._clock.time()))

    def dead_letter_nowait(self, target: ActorAddress, message: object, asked: bool) -> None:
        """Record a message that was not handled; raise `MailboxFull` if the store is behind."""
        # There is no end to what may be sent to an actor that has stopped.
        if not (self._store.has_room or self._store.closed):
            raise MailboxFull
        self._push(self._dead_letter(target, message, asked))

    def dead_letter_left(self, target: ActorAddress, message: object, asked: bool) -> None:
        """Record a message that was left in a mailbox, even if the store is behind."""
        self._push(self._dead_letter(target, message, asked))

    async def dead_letter(self, target: ActorAddress, message: object, asked: bool) -> None:
        """Record a message that was not handled; wait if the store is behind."""
        record = self._dead_letter(target, message, asked)
        try:
            await self._store.put(Append(record))
        except MailboxClosed:
            _log_unrecorded(record)

    def unclaimed(self, address: ActorAddress, message: object) -> None:
        """Take note of a reply whose asker had given up by then."""
        self.unclaimed_replies += 1
        self.latest_unclaimed.append((str(address), type_name(message)))
        logger.info(
            "%s replied to %s too late",
            *(address, type_name(message)),
            extra=fields(actor=str(address), message_type=type_name(message)),
        )

    def _dead_letter(
        self, target: ActorAddress, message: object, asked: bool
    ) -> PersistedDeadLetter:
        self.dead_letters += 1
        try:
            return self._letter(target, message, asked, storable(message))
        except MEANT:
            # The program is to end, but there is a word of this first.
            self._push(self._letter(target, message, asked, {"repr": f"<{type_name(message)}>"}))
            raise

    def _letter(
        self, target: ActorAddress, message: object, asked: bool, payload: object
    ) -> PersistedDeadLetter:
        return PersistedDeadLetter(
            self._system_id,
            str(target),
            type_name(message),
            payload,
            asked,
            self._clock.time(),
        )

    def _push(self, record: Record) -> None:
        try:
            # Beyond the capacity if need be: these are no more than mailboxes hold, and nobody is
            # there to wait.
            self._store.push(Append(record))
        except MailboxClosed:
            _log_unrecorded(record)


class ClassRecorder:
    """Record as the system's recorder does, and count by the class of the actors."""

    __slots__ = ("_recorder", "counters")

    def __init__(self, recorder: SystemRecorder, counters: ClassCounters) -> None:
        self._recorder = recorder
        self.counters = counters

    def for_class(self, actor_class: type) -> ClassRecorder:
        return self._recorder.for_class(actor_class)

    def lifecycle(self, address: ActorAddress, event: LifecycleEvent) -> None:
        self.counters.steps[type(event)] += 1
        self._recorder.lifecycle(address, event)

    # What a durable timer brings is no dead letter: it comes again.

    def dead_letter_nowait(self, target: ActorAddress, message: object, asked: bool) -> None:
        if not is_of_timers(message):
            self._recorder.dead_letter_nowait(target, message, asked)
            self.counters.dead_letters += 1

    def dead_letter_left(self, target: ActorAddress, message: object, asked: bool) -> None:
        if not is_of_timers(message):
            self.counters.dead_letters += 1
            self._recorder.dead_letter_left(target, message, asked)

    async def dead_letter(self, target: ActorAddress, message: object, asked: bool) -> None:
        if not is_of_timers(message):
            self.counters.dead_letters += 1
            await self._recorder.dead_letter(target, message, asked)

    def unclaimed(self, address: ActorAddress, message: object) -> None:
        self.counters.unclaimed_replies += 1
        self._recorder.unclaimed(address, message)


class LoggingRecorder:
    """Log in place of recording, for the persistence actor, which records nothing of itself."""

    def __init__(self, actor_class: type) -> None:
        self.counters = ClassCounters(name_of_class(actor_class))

    def for_class(self, actor_class: type) -> LoggingRecorder:
        del actor_class
        return self

    def lifecycle(self, address: ActorAddress, event: LifecycleEvent) -> None:
        if isinstance(event, ActorStopped) and event.unhandled:
            logger.error("%s stopped with %d requests not handled", address, event.unhandled)

    def dead_letter_nowait(self, target: ActorAddress, message: object, asked: bool) -> None:
        logger.warning(
            "%s has stopped and can't %s %s",
            target,
            "reply to" if asked else "handle",
            type_name(message),
        )

    def dead_letter_left(self, target: ActorAddress, message: object, asked: bool) -> None:
        self.dead_letter_nowait(target, message, asked)

    async def dead_letter(self, target: ActorAddress, message: object, asked: bool) -> None:
        self.dead_letter_nowait(target, message, asked)

    def unclaimed(self, address: ActorAddress, message: object) -> None:
        """Somebody did not wait for the store. That is their business."""


def _log_unrecorded(record: Record) -> None:
    # No payloads: they are for the store, which may be kept more safely than logs are.
    actor: str | None = None
    match record:
        case PersistedEvent():
            what, actor = f"{record.event_type} of {record.actor_address}", record.actor_address
        case PersistedDeadLetter():
            what, actor = f"a dead letter, {record.message_type}, to {record.target}", record.target
        case PersistedAudit():
            what = "an audit"
    logger.warning(
        "not recorded, as the system's persistence actor has stopped: %s",
        what,
        extra=fields(system=record.system_id, actor=actor),
    )


def storable(message: object) -> object:
    """Return the payload of a dead letter: the message as it is now, or a description of it."""
    room = codec.Room(_ROOM)
    try:
        return codec.plain(message, room)
    except UnencodablePayload:
        if room.left < 0 and not any(type(message) is kind for kind in _SHORTENED):
            return {"repr": f"<{type_name(message)}, too large to be kept>"}
    # A message may hold anything; that it could not be stored is no reason to lose it.
    return {"repr": shown(message)}
