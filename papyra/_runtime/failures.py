"""Supervision at work: have a failure decided about, record it, and apply it to siblings."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal, Protocol

from papyra._logs import fields
from papyra._runtime.lifecycle import Lifecycle
from papyra._runtime.recorder import Recorder
from papyra._runtime.restart_backoff import RestartBackoff
from papyra._safe_repr import MEANT, has_short_traceback, text_of, type_and_text, type_name
from papyra.address import ActorAddress
from papyra.clock import Clock
from papyra.events import ActorCrashed
from papyra.ref import ActorRef
from papyra.supervision import Decision, OneForAll, SupervisionPolicy

logger = logging.getLogger("papyra")

#: The directive for the actor that failed; an escalation comes to one of these.
Outcome = Literal[Decision.RESUME, Decision.RESTART, Decision.STOP]


class Supervised(Protocol):
    """An actor that may fail."""

    address: ActorAddress
    ref: ActorRef
    clock: Clock
    lifecycle: Lifecycle


class Supervisor(Protocol):
    """The parent of a cell: another cell, or the guardian of the top-level actors."""

    @property
    def ref(self) -> ActorRef | None:
        """The parent as others see it; `None` for the guardian."""

    @property
    def policy(self) -> SupervisionPolicy:
        """How it supervises its children."""

    @property
    def children(self) -> Iterable[Supervised]:
        """The actors it supervises."""

    @property
    def shields_children(self) -> bool:
        """Whether nothing but the end of the system stops them, not even Ctrl-C."""

    def child_was_cancelled(self) -> None:
        """Take note that somebody cancelled the task of a child that goes on all the same."""

    async def decide(self, child: ActorRef, error: Exception) -> Decision:
        """Decide about a child's failure."""

    async def fail(self, error: Exception) -> Outcome:
        """Fail as a child did that was told to escalate; return the outcome for the supervisor."""


class Failures:
    """The failures of one cell, in all its incarnations."""

    __slots__ = (
        "_backoff",
        "_cell",
        "_parent",
        "_recorder",
    )

    def __init__(self, cell: Supervised, parent: Supervisor, recorder: Recorder) -> None:
        self._cell = cell
        self._parent = parent
        self._recorder = recorder
        # Most actors never restart, and it takes 700 bytes.
        self._backoff: RestartBackoff | None = None

    async def decide(
        self, error: Exception, where: str, message_type: str | None = None
    ) -> Outcome:
        """Have the parent decide about `error`, record it, and see to the others concerned."""
        try:
            decision = await self._parent.decide(self._cell.ref, error)
            if decision is Decision.RESTART and not self._may_restart(self._parent.policy):
                decision = Decision.STOP
            all_for_one = isinstance(self._parent.policy, OneForAll)
        except Exception as another:  # noqa: BLE001 - logged
            address = str(self._cell.address)
            _log(
                another, f"nobody could decide about {address}, which is stopped now", actor=address
            )
            decision, all_for_one = Decision.STOP, False
        self.record(error, where, decision, message_type)
        if decision is Decision.ESCALATE:
            outcome = await self._parent.fail(error)
            return Decision.RESUME if outcome is Decision.RESUME else Decision.STOP
        if all_for_one and decision is not Decision.RESUME:
            for sibling in self._parent.children:
                if sibling is not self._cell:
                    sibling.lifecycle.restart_delay = self._cell.lifecycle.restart_delay
                    sibling.lifecycle.apply(decision, error)
        return decision

    def record(
        self,
        error: Exception,
        where: str,
        decision: Decision | None = None,
        message_type: str | None = None,
    ) -> None:
        """Record `error`, which the actor raised, and the decision about it."""
        address = str(self._cell.address)
        _log(error, f"{address} raised in {where}", actor=address, message_type=message_type)
        self._recorder.lifecycle(
            self._cell.address,
            ActorCrashed(
                type_name(error),
                text_of(error),
                where,
                None if decision is None else decision.value,
                message_type,
            ),
        )

    def _may_restart(self, policy: SupervisionPolicy) -> bool:
        if self._backoff is None:
            self._backoff = RestartBackoff()
        delay = self._backoff.next_delay(policy, self._cell.clock.monotonic())
        if delay is None:
            logger.error(
                "%s would restart more than %d times in %g seconds, so it is stopped",
                self._cell.address,
                policy.most_restarts,
                policy.within,
            )
            return False
        self._cell.lifecycle.restart_delay = delay
        return True


def _log(error: Exception, what: str, **known: str | None) -> None:
    extra = fields(**known)
    try:
        if has_short_traceback(error):
            logger.error("%s", what, exc_info=error, extra=extra)
            return
        what += f": {type_and_text(error)}, of more errors than can be shown"
        logger.error("%s", what, extra=extra)
    except MEANT:
        raise
    except BaseException:  # noqa: BLE001 - a user's object, and this one has no traceback to show
        what += f": {type_name(error)}, whose traceback can't be shown"
        logger.error("%s", what, extra=extra)  # noqa: TRY400 - as it says
