"""Recovery: an actor knows its state before each message, or handles none."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from papyra._error_copy import copy_of
from papyra._logs import fields
from papyra._safe_repr import text_of
from papyra.actor import ActorContext
from papyra.events import ActorRecoveredWithout, ActorRecoveryFailed
from papyra.eventsourcing.bookkeeping import Note
from papyra.eventsourcing.history import History
from papyra.exceptions import MailboxFull, RecoveryFailed
from papyra.persistence.messages import Append

StateT = TypeVar("StateT")

logger = logging.getLogger("papyra")

#: Seconds after a failed recovery before the next, at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0

#: Appends that one actor may wait for; then it handles no message until they are answered.
MAX_OUTSTANDING = 1_000


class Recovery(Generic[StateT]):
    """Settles what one actor's appends have left open, and recovers it where that takes it.

    `recovered` is called when the history was read, and `prepare` when a message is to follow.
    """

    def __init__(
        self,
        history: History[StateT],
        context: ActorContext,
        recovered: Callable[[], None],
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        self._history = history
        self._context = context
        self._recovered = recovered
        self._prepare = prepare
        #: whether an append has failed on which the state depends
        self._is_lost = False
        #: whether `prepare` has returned since the last recovery
        self._is_prepared = False
        self._pause = 0.0
        self._retry_at = 0.0

    def settle_first(self) -> None:
        """Have what is open be settled before the next message."""
        self._context.settle_first(self.settle)

    async def settle(self) -> None:
        """Wait for appends if there are too many; recover if need be, unless it has just failed."""
        history = self._history
        await self._context.settle_outputs()
        if history.failure is not None or history.is_in_doubt or self._is_lost:
            await self._recover()
            self._recovered()
        self._context.settle_first(None)
        if not self._is_prepared:
            await self._be_prepared()

    async def append(self, events: Sequence[object], metadata: Any, notes: Sequence[Note]) -> None:
        """Append as the history does; what that leaves open is settled before the next message."""
        try:
            await self._history.append(events, metadata, notes)
        except BaseException:
            self.suspect(notes)
            raise

    def suspect(self, notes: Sequence[Note]) -> None:
        """Take note that an append has failed."""
        if self._history.failure is not None or self._history.is_in_doubt:
            self.settle_first()
            if notes:
                self._context.system.timers.suspect()

    def append_nowait(
        self, events: Sequence[object], metadata: Any = None, notes: Sequence[Note] = ()
    ) -> None:
        """Append as the history does, behind the output gate."""
        history, gate = self._history, self._context.output_gate()

        def answered(reply: object, error: Exception | None) -> None:
            del reply
            if error is not None:
                self._is_lost = True
                self.settle_first()
                if notes:
                    self._context.system.timers.suspect()
            gate.answer(error)

        try:
            history.append_nowait(events, answered, metadata, notes)
        finally:
            if history.failure is not None:
                self.settle_first()
        gate.expect()
        if gate.outstanding >= MAX_OUTSTANDING:
            self.settle_first()

    async def know_state(self) -> None:
        """Raise unless the state is known, or known again, that the message at hand has seen."""
        if self._history.failure is not None:
            # If what it has seen was not kept, it must not go on.
            await self._context.output_gate().opened()
            await self.settle()

    async def _recover(self) -> None:
        clock, history = self._context.clock, self._history
        if history.failure is not None and clock.monotonic() < self._retry_at:
            raise copy_of(history.failure)
        is_known = history.failure is None and not self._is_lost
        revision = history.revision
        try:
            await history.recover(from_beginning=not is_known)
        except RecoveryFailed as failure:
            self._context.counters.recovery_errors += 1
            self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
            self._retry_at = clock.monotonic() + self._pause
            self._record_failure(failure)
            raise
        self._context.counters.recoveries += 1
        if history.passed_over:
            self._record(ActorRecoveredWithout(history.passed_over))
        self._pause = self._retry_at = 0.0
        self._is_lost = False
        self._is_prepared &= is_known and history.revision == revision

    async def _be_prepared(self) -> None:
        self._is_prepared = True  # before it has, as it may persist, and settle what comes of that
        # What it persists is no part of the command at hand, in which a recovery may be necessary.
        history = self._history
        of_command, history.command_metadata = history.command_metadata, None
        try:
            await self._prepare()
        except BaseException:
            self._is_prepared = False
            self.settle_first()
            raise
        finally:
            history.command_metadata = of_command

    def _record_failure(self, failure: RecoveryFailed) -> None:
        logger.error("%s", failure, extra=fields(revision=failure.revision))
        self._record(ActorRecoveryFailed(failure.revision, failure.event_type, text_of(failure)))

    def _record(self, fact: ActorRecoveryFailed | ActorRecoveredWithout) -> None:
        """Have what became of a recovery be known, as far as the store allows."""
        try:
            self._context.persistence.tell_nowait(Append(self._context.event(fact)))
        except MailboxFull:
            logger.warning("not recorded, as the store has no room for it: %s", fact)
