"""The state machine of an actor: its directive, the reason it stops, its restarts, its scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias

import anyio

from papyra._safe_repr import type_and_text
from papyra.address import ActorAddress
from papyra.exceptions import ActorStopped
from papyra.mailbox import Mailbox
from papyra.output_gate import OutputGate
from papyra.supervision import Decision

#: The directive to stop, and to leave what is in the mailbox to another life.
PASSIVATE: Final = "passivate"

#: An instruction that is followed before the next message.
Directive: TypeAlias = Literal[Decision.RESTART, Decision.STOP, "passivate"]
#: Why an actor stopped, as its last lifecycle event says.
Reason: TypeAlias = Literal["stopped", "failed", "cancelled"]


class Lifecycle:
    """The state of one actor between its first incarnation and its end.

    Others move it by `apply`, `stop` and `cancel`; the actor loop, by the rest.
    """

    __slots__ = (
        "_address",
        "_mailbox",
        "can_have_children",
        "cause",
        "directive",
        "gate",
        "incarnation",
        "reason",
        "restart_delay",
        "restarts",
        "scope",
        "settlement",
        "task",
        "will_restart",
    )

    def __init__(self, address: ActorAddress, mailbox: Mailbox[object]) -> None:
        self._address = address
        self._mailbox = mailbox
        #: pending, to be followed before the next message
        self.directive: Directive | None = None
        self.reason: Reason = "stopped"
        #: the error, its own or another's, for which it stops or restarts
        self.cause: BaseException | None = None
        #: number of the incarnation that runs: 1, 2, 3, ...; 0 before the first has begun
        self.incarnation = 0
        #: whether another incarnation follows the one that ends
        self.will_restart = False
        #: new instances that were made, or tried
        self.restarts = 0
        #: seconds before the next restart
        self.restart_delay = 0.0
        #: around the whole incarnation; shielded, as a cancelled caller of the system must
        #: not tear actors down out of order
        self.scope = anyio.CancelScope(shield=True)
        #: the task of the incarnation
        self.task: object = None
        self.can_have_children = False
        #: what the actor gives out passes it, once it has one
        self.gate: OutputGate | None = None
        #: has to return before the next message is handled; what it raises refuses that message
        self.settlement: Callable[[], Awaitable[None]] | None = None

    @property
    def is_restart(self) -> bool:
        """Whether the incarnation that runs follows another."""
        return self.incarnation > 1

    @property
    def passivates(self) -> bool:
        """Whether what is in the mailbox is left to another life."""
        return self.directive == PASSIVATE

    def passivate(self) -> None:
        """Stop after the message at hand, and leave the mailbox open, with what is in it."""
        if self.directive is not Decision.STOP:
            self.directive, self.cause = PASSIVATE, None
            self._mailbox.wake()

    def apply(self, directive: Directive, cause: Exception) -> None:
        """Restart or stop after the message at hand, because of `cause`."""
        if directive is Decision.STOP:
            self.reason = "failed"
            self.stop(cause)
        elif self.directive is None:
            self.directive, self.cause = directive, cause
            self._mailbox.wake()

    def stop(self, cause: BaseException | None = None) -> None:
        """Stop after the message at hand."""
        if self.directive is not Decision.STOP:
            self.directive, self.cause = Decision.STOP, cause
        self._mailbox.close()

    def cancel(self) -> None:
        """Cancel the message at hand, and stop."""
        self.reason = "cancelled"
        self.stop()
        self.scope.cancel()

    def begin(self, task: object) -> None:
        """Begin an incarnation in `task`."""
        self.incarnation += 1
        self.will_restart = False
        self.task = task
        self.settlement = None

    def begin_restart(self) -> None:
        """Count a restart, which clears the cause of it."""
        self.restarts += 1
        self.cause = None

    def restart(self, cause: BaseException) -> None:
        """Have another incarnation follow this one, which has ended because of `cause`."""
        self.will_restart, self.cause = True, cause

    def fail(self, cause: BaseException) -> None:
        """Have this incarnation be the last, because of `cause`."""
        self.will_restart, self.reason, self.cause = False, "failed", cause

    def end_cancelled(self) -> None:
        """Have this incarnation be the last, as it was cancelled."""
        self.will_restart, self.reason = False, "cancelled"

    def renew_scope(self) -> None:
        """Give the next incarnation a scope of its own, cancelled if the actor is."""
        self.scope = anyio.CancelScope(shield=True)
        if self.reason == "cancelled":
            self.scope.cancel()

    def stopped_error(self, what: str, handled: Literal["never", "maybe"]) -> ActorStopped:
        """Return the error for who asked this actor, which stops or has stopped."""
        why = "" if self.cause is None else f": {type_and_text(self.cause)}"
        error = ActorStopped(f"{self._address} {what}{why}", handled=handled)
        error.__cause__ = self.cause
        return error
