"""An actor as the rest of the runtime sees it: its mailbox, and its place in the tree."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio

from papyra._home_loop import HomeLoop
from papyra._runtime.cancellation import shield_from_interrupts
from papyra._runtime.children import Children
from papyra._runtime.context_variables import captured
from papyra._runtime.deadlock_detection import Waits
from papyra._runtime.death_watch import DeathWatch
from papyra._runtime.failures import Failures, Outcome, Supervisor
from papyra._runtime.loop import Life
from papyra._runtime.props import Recipe
from papyra._runtime.recorder import Facts
from papyra._signal import Signal
from papyra._text import text_of, type_name
from papyra.address import ActorAddress
from papyra.clock import Clock
from papyra.context import ActorContext
from papyra.dispatcher import Dispatcher
from papyra.exceptions import (
    ActorStopped,
    NoChildrenNow,
    UnhandledMessage,
)
from papyra.mailbox import Mailbox
from papyra.ref import ActorRef, Ask, Terminated, Told, current_cell
from papyra.supervision import Decision, SupervisionPolicy

if TYPE_CHECKING:
    from papyra.system import ActorSystem

__all__ = ("Cell", "Runtime", "spawn")


class Runtime(Protocol):
    """What a cell needs of the system."""

    @property
    def clock(self) -> Clock: ...

    @property
    def dispatcher(self) -> Dispatcher | None: ...

    @property
    def mailbox_capacity(self) -> int: ...

    @property
    def loop(self) -> HomeLoop: ...

    @property
    def propagate(self) -> Sequence[ContextVar[Any]]: ...

    @property
    def system(self) -> ActorSystem: ...

    def launch(self, cell: Cell) -> None:
        """Run `cell` in a task of its own."""
        ...

    def interrupt(self, error: BaseException) -> None:
        """End the system, as `error`, which is no `Exception`, demands; it comes out of it."""
        ...

    async def park(self) -> None:
        """Return when all actors have stopped."""
        ...


def spawn(
    parent: Supervisor,
    runtime: Runtime,
    address: ActorAddress,
    recipe: Recipe,
    facts: Facts,
) -> ActorRef:
    """Make an actor, give it to `parent`, start it, and return its ref."""
    cell = Cell(parent, runtime, address, recipe, facts)
    # First, as it may raise: outside of the event loop, for one.
    runtime.launch(cell)
    parent.children.add(cell)
    return cell.ref


class Cell:
    """One actor across all its instances: what refs, contexts, parents and children reach it by.

    What it does with its messages is its `Life`, and what others decide about it reaches that
    through `order` and `scope`.
    """

    def __init__(
        self,
        parent: Supervisor,
        runtime: Runtime,
        address: ActorAddress,
        recipe: Recipe,
        facts: Facts,
    ) -> None:
        self.address = address
        self.clock = runtime.clock
        self.dispatcher = runtime.dispatcher
        self.loop = runtime.loop
        self.mailbox: Mailbox[object] = Mailbox(
            recipe.capacity(runtime.mailbox_capacity), self.loop.new_signal
        )
        #: the context variables that travel with messages
        self.propagate = runtime.propagate
        self.put_nowait: Callable[[object], None] = (
            self._put_with_values if self.propagate else self.mailbox.put_nowait
        )
        self.ref = ActorRef(self)
        self.children = Children()
        #: set when the actor has stopped, and all that follows from it is done
        self.stopped = anyio.Event()

        self.parent = parent
        self.facts = facts
        self.failures = Failures(self, parent, facts)
        self.death_watch = DeathWatch(self.ref, self.mailbox)
        self.context = ActorContext(self, runtime.system)
        #: what somebody decided, to be obeyed before the next message
        self.order: Literal[Decision.RESTART, Decision.STOP] | None = None
        #: seconds before the next restart
        self.restart_delay = 0.0
        #: why it stops
        self.reason: Literal["stopped", "failed", "cancelled"] = "stopped"
        #: the error, its own or another's, for which it stops or restarts
        self.cause: BaseException | None = None
        #: around all that the actor does; shielded, as a cancelled caller of the system must not
        #: tear actors down out of order
        self.scope = anyio.CancelScope(shield=True)
        self.can_have_children = False
        #: the task that the actor lives in
        self.task: object = None

        #: whether it is part of the system, which waits for no user's actor
        self.is_systems_own = address.name.startswith("$")
        self.waits = Waits(self)

        self._runtime = runtime
        self._running: Coroutine[Any, Any, None] | None = None
        self._life = Life(self, recipe)

    @property
    def variables(self) -> Context:
        """What is set where the actor lives."""
        return self._life.variables

    @property
    def policy(self) -> SupervisionPolicy:
        return self._life.actor.supervision

    async def decide(self, child: ActorRef, error: Exception) -> Decision:
        decision = await self._life.actor.on_child_failure(child, error)
        if not isinstance(decision, Decision):
            raise TypeError(f"on_child_failure returned {decision!r}, which is no Decision")
        return decision

    @property
    def shields_children(self) -> bool:
        return False

    def child_was_cancelled(self) -> None:
        raise AssertionError("it does not go on")

    async def fail(self, error: Exception) -> Outcome:
        outcome = await self.failures.judge(error, "a child")
        if outcome is not Decision.RESUME:
            self.obey(outcome, error)
        return outcome

    @property
    def parent_ref(self) -> ActorRef | None:
        return self.parent.ref

    def spawn(self, recipe: Recipe, name: str | None) -> ActorRef:
        self.loop.check()
        if not self.can_have_children:
            # In __init__ there is nobody yet to supervise them, should it fail.
            raise NoChildrenNow(
                f"{self.address} can have children from on_start on, until it stops"
            )
        recipe.check()
        address = self.address.child(self.children.free_name(recipe.actor_class, name))
        return spawn(self, self._runtime, address, recipe, self.facts)

    def watch(self, other: Cell) -> None:
        self.loop.check()
        self.death_watch.add(other.death_watch)

    def unwatch(self, other: Cell) -> None:
        self.loop.check()
        self.death_watch.remove(other.death_watch)

    async def queue_up(self, item: object, admitted: Signal | None = None) -> None:
        """Put a message into the mailbox when there is room."""
        await self.mailbox.queue_up(self._with_values(item) if self.propagate else item, admitted)

    async def queue_up_told(self, message: object) -> None:
        """Put a message that was told into the mailbox when there is room.

        Raises `WouldDeadlock` if there can't be any before the caller goes on.
        """
        self.loop.check()
        caller = self.caller()
        admitted = self.loop.new_signal()
        counts = caller is not None and caller.waits.begin(self, admitted)
        try:
            await self.queue_up(message, admitted)
        finally:
            if caller is not None and counts:
                caller.waits.end()

    def forget_watches(self) -> None:
        """Take back every `watch`, and the notices of deaths that are in the mailbox."""
        self.death_watch.forget()
        self.mailbox.discard(Terminated)

    def refuse_nowait(self, message: object, *, expects_reply: bool) -> None:
        """Make a dead letter of `message`; raise `MailboxFull` if the store has no room for it."""
        self.facts.dead_letter_nowait(self.address, message, expects_reply)

    def leave(self, message: object, *, expects_reply: bool) -> None:
        """Make a dead letter of a message that was in the mailbox."""
        self.facts.dead_letter_left(self.address, message, expects_reply)

    async def refuse(self, message: object, *, expects_reply: bool) -> None:
        await self.facts.dead_letter(self.address, message, expects_reply)

    def caller(self) -> Cell | None:
        """Return the actor that uses this one's ref.

        None of another loop: context variables get also into threads that run loops of their own.
        """
        caller = current_cell.get()
        if caller is None or caller.loop is self.loop or caller.loop.is_same(self.loop):
            return caller
        return None

    def runs_in_this_task(self) -> bool:
        """Return whether this is called by the actor itself."""
        return self.loop.current_task() is self.task

    def unhandled(self, message: object) -> UnhandledMessage:
        """Make a dead letter of `message`, and fail the ask that it came with, if any."""
        error = UnhandledMessage(f"{self.address} does not handle {type_name(message)}")
        if not self._life.refuse_at_hand(message, error):
            self.leave(message, expects_reply=False)
        return error

    def obey(self, order: Literal[Decision.RESTART, Decision.STOP], cause: Exception) -> None:
        """Restart or stop after the message at hand, because of `cause`."""
        if order is Decision.STOP:
            self.reason = "failed"
            self.stop_now(cause)
        elif self.order is None:
            self.order, self.cause = order, cause
            self.mailbox.wake()

    def stop_now(self, cause: BaseException | None = None) -> None:
        """Stop after the message at hand."""
        if self.order is not Decision.STOP:
            self.order, self.cause = Decision.STOP, cause
        self.mailbox.close()

    def stopped_error(self, what: str, handled: Literal["never", "maybe"]) -> ActorStopped:
        """Return the error for who asked this actor, which stops or has stopped."""
        why = "" if self.cause is None else f": {type_name(self.cause)}: {text_of(self.cause)}"
        error = ActorStopped(f"{self.address} {what}{why}", handled=handled)
        error.__cause__ = self.cause
        return error

    async def stop(self) -> None:
        """Stop after what is in the mailbox, and wait for that unless it would be in vain."""
        self.loop.check()
        self.mailbox.close()
        caller = self.caller()
        if caller is None:
            await self.stopped.wait()
        else:
            await caller.waits.for_end_of(self)

    def cancel(self) -> None:
        """Cancel what this actor and its descendants are doing."""
        ahead = [self]
        while ahead:
            cell = ahead.pop()
            cell.reason = "cancelled"
            cell.stop_now()
            cell.scope.cancel()
            ahead += cell.children

    def run(self) -> Coroutine[Any, Any, None]:
        """Return what runs one incarnation."""
        self._running = shield_from_interrupts(self._life.run)()
        return self._running

    def discard_run(self) -> None:
        """Let go of an incarnation whose task was cancelled before it has begun."""
        if self._running is not None:
            self._running.close()

    def _put_with_values(self, item: object) -> None:
        self.mailbox.put_nowait(self._with_values(item))

    def _with_values(self, item: object) -> object:
        """Return `item` with what is to travel along; a batch has no one sender."""
        message = item.message if type(item) is Ask else item
        values = () if self._life.takes_in_batches(message) else captured(self.propagate)
        if type(item) is Ask:
            item.values = values
            return item
        return Told(item, values) if values else item

    @property
    def begun(self) -> int:
        """How many incarnations have begun to run."""
        return self._life.begun

    def launch_again(self) -> None:
        """Run the next incarnation."""
        self.scope = anyio.CancelScope(shield=True)
        if self.reason == "cancelled":
            self.scope.cancel()
        self._runtime.launch(self)

    def interrupt(self, error: BaseException) -> None:
        """End the system with `error`."""
        self._runtime.interrupt(error)

    async def park(self) -> None:
        """Return when all actors of the system have stopped."""
        await self._runtime.park()
