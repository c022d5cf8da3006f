"""What becomes of an actor's failures: who decides, what is recorded, who else is concerned."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Literal, Protocol

from papyra._runtime.recorder import Facts
from papyra._text import MEANT, text_of, type_name
from papyra.events import ActorCrashed
from papyra.supervision import Decision, OneForAll, SupervisionPolicy

if TYPE_CHECKING:
    from papyra._runtime.cell import Cell
    from papyra._runtime.children import Children
    from papyra.ref import ActorRef

__all__ = ("Failures", "Outcome", "Supervisor")

logger = logging.getLogger("papyra")

#: What is left to do for the actor that failed; an escalation comes to one of these.
Outcome = Literal[Decision.RESUME, Decision.RESTART, Decision.STOP]


class Supervisor(Protocol):
    """The parent of a cell: another cell, or the guardian of the top-level actors."""

    @property
    def ref(self) -> ActorRef | None:
        """The parent as others see it; `None` for the guardian."""
        ...

    @property
    def policy(self) -> SupervisionPolicy:
        """How it supervises its children."""
        ...

    @property
    def children(self) -> Children:
        """The cells it supervises."""
        ...

    @property
    def shields_children(self) -> bool:
        """Whether nothing but the end of the system stops them, not even Ctrl-C."""
        ...

    def child_was_cancelled(self) -> None:
        """Take note that somebody cancelled the task of a child that goes on all the same."""
        ...

    async def decide(self, child: ActorRef, error: Exception) -> Decision:
        """Decide about a child's failure."""
        ...

    async def fail(self, error: Exception) -> Outcome:
        """Fail as a child did that was told to escalate; return what happens to the supervisor."""
        ...


class Failures:
    """The failures of one cell, in all its incarnations."""

    def __init__(self, cell: Cell, parent: Supervisor, facts: Facts) -> None:
        self._cell = cell
        self._parent = parent
        self._facts = facts
        self._restarted_at: deque[float] = deque()

    async def judge(self, error: Exception, where: str, message_type: str | None = None) -> Outcome:
        """Have the parent decide about `error`, record it, and see to the others concerned."""
        try:
            decision = await self._parent.decide(self._cell.ref, error)
            if decision is Decision.RESTART and not self._may_restart(self._parent.policy):
                decision = Decision.STOP
            all_for_one = isinstance(self._parent.policy, OneForAll)
        except Exception as another:  # noqa: BLE001 - logged
            _log(another, f"nobody could decide about {self._cell.address}, which is stopped now")
            decision, all_for_one = Decision.STOP, False
        self.record(error, where, decision, message_type)
        if decision is Decision.ESCALATE:
            fate = await self._parent.fail(error)
            return Decision.RESUME if fate is Decision.RESUME else Decision.STOP
        if all_for_one and decision is not Decision.RESUME:
            for sibling in self._parent.children:
                if sibling is not self._cell:
                    sibling.restart_delay = self._cell.restart_delay
                    sibling.obey(decision, error)
        return decision

    def record(
        self,
        error: Exception,
        where: str,
        decision: Decision | None = None,
        message_type: str | None = None,
    ) -> None:
        """Record that the actor raised `error`, and what was decided about it."""
        _log(error, f"{self._cell.address} raised in {where}")
        self._facts.lifecycle(
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
        now = self._cell.clock.monotonic()
        while self._restarted_at and now - self._restarted_at[0] > policy.within:
            self._restarted_at.popleft()
        if len(self._restarted_at) >= policy.max_restarts:
            logger.error(
                "%s would restart more than %d times in %g seconds, so it is stopped",
                self._cell.address,
                policy.max_restarts,
                policy.within,
            )
            return False
        self._restarted_at.append(now)
        self._cell.restart_delay = policy.delay(len(self._restarted_at))
        return True


def _log(error: Exception, what: str) -> None:
    try:
        logger.error("%s", what, exc_info=error)
    except MEANT:
        raise
    except BaseException:  # noqa: BLE001 - a user's object, and this one has no traceback to show
        what += f": {type_name(error)}, whose traceback can't be shown"
        logger.error("%s", what)  # noqa: TRY400 - as it says
