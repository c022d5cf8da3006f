"""The loop that runs one actor, and what happens when the actor fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
from anyio.lowlevel import checkpoint

from papyra._children import Children
from papyra._facts import Facts
from papyra._failures import Failures, Outcome, Supervisor
from papyra._signal import NewSignal
from papyra._watch import DeathWatch
from papyra.actor import Actor, Failure
from papyra.address import ActorAddress
from papyra.clock import Clock
from papyra.context import ActorContext
from papyra.events import ActorRestarted, ActorStarted
from papyra.events import ActorStopped as ActorStoppedEvent
from papyra.exceptions import (
    ActorInitializationError,
    ActorStopped,
    NoChildrenNow,
    PapyraError,
    WouldDeadlock,
)
from papyra.mailbox import Mailbox
from papyra.ref import ActorRef, Ask, Terminated, current_cell
from papyra.supervision import Decision, SupervisionPolicy

if TYPE_CHECKING:
    from papyra.system import ActorSystem

__all__ = ("Cell", "Runtime", "spawn")

#: A busy actor lets the others run after this many messages.
FAIRNESS = 100

#: What an empty mailbox gives; `None` is a message like any other.
_NOTHING = object()


class Runtime(Protocol):
    """What a cell needs of the system."""

    @property
    def clock(self) -> Clock: ...

    @property
    def mailbox_capacity(self) -> int: ...

    @property
    def new_signal(self) -> NewSignal: ...

    @property
    def system(self) -> ActorSystem: ...

    def launch(self, cell: Cell) -> None:
        """Run `cell` in a task of its own."""
        ...


def spawn(
    parent: Supervisor,
    runtime: Runtime,
    address: ActorAddress,
    actor_class: type[Actor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    capacity: int | None,
    facts: Facts,
) -> ActorRef:
    """Make an actor, give it to `parent`, start it, and return its ref."""
    cell = Cell(parent, runtime, address, actor_class, args, kwargs, capacity, facts)
    parent.children.add(cell)
    runtime.launch(cell)
    return cell.ref


class Cell:
    """One actor across all its incarnations: its mailbox, its loop, its place in the tree.

    The loop is in `_live`. Whatever ends it, `_end` sees to it that nobody waits in vain.
    """

    def __init__(
        self,
        parent: Supervisor,
        runtime: Runtime,
        address: ActorAddress,
        actor_class: type[Actor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        capacity: int | None,
        facts: Facts,
    ) -> None:
        self.address = address
        self.clock = runtime.clock
        if capacity is None:
            capacity = actor_class.mailbox_capacity
        if capacity is None:
            capacity = runtime.mailbox_capacity
        self.new_signal = runtime.new_signal
        self.mailbox: Mailbox[object] = Mailbox(capacity, self.new_signal)
        self.ref = ActorRef(self)
        self.children = Children()
        #: set when the actor has stopped, and all that follows from it is done
        self.stopped = anyio.Event()

        self._parent = parent
        self._runtime = runtime
        self._facts = facts
        self._factory = (actor_class, args, kwargs)
        self._batch_types = frozenset(actor_class.batch_types)
        # What the mailbox may hold of a run: messages told, and messages asked, to be looked into.
        self._run_types = self._batch_types | {Ask}
        self._context = ActorContext(self, runtime.system)
        # Shielded: a cancelled caller of the system must not tear actors down out of order.
        self._scope = anyio.CancelScope(shield=True)
        #: what somebody else decided, to be obeyed before the next message
        self._order: Literal[Decision.RESTART, Decision.STOP] | None = None
        self._reason: Literal["stopped", "failed", "cancelled"] = "stopped"
        self._started = False  # whether on_stop is owed
        self._can_have_children = False
        self._restarts = 0
        self._failures = Failures(self, parent, facts)
        self._death_watch = DeathWatch(self.ref, self.mailbox)
        self._waits_for: Cell | None = None
        self._task_id: int | None = None

        try:
            self._actor = self._construct()
        except PapyraError:
            raise  # it says what is wrong already
        except Exception as error:
            raise ActorInitializationError(
                f"{actor_class.__name__}.__init__ raised {type(error).__name__}: {error}"
            ) from error

    # As a supervisor

    @property
    def policy(self) -> SupervisionPolicy:
        return self._actor.supervision

    async def decide(self, child: ActorRef, error: Exception) -> Decision:
        decision = await self._actor.on_child_failure(child, error)
        if not isinstance(decision, Decision):
            raise TypeError(f"on_child_failure returned {decision!r}, which is no Decision")
        return decision

    async def fail(self, error: Exception) -> Outcome:
        outcome = await self._failures.judge(error, "a child")
        if outcome is not Decision.RESUME:
            self.obey(outcome)
        return outcome

    # What refs and contexts ask for

    @property
    def parent_ref(self) -> ActorRef | None:
        return self._parent.ref

    def spawn(
        self,
        actor_class: type[Actor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str | None,
        capacity: int | None,
    ) -> ActorRef:
        if not self._can_have_children:
            # In __init__ there is nobody yet to supervise them, should it fail.
            raise NoChildrenNow(
                f"{self.address} can have children from on_start on, until it stops"
            )
        address = self.address.child(self.children.free_name(actor_class, name))
        return spawn(
            self,
            self._runtime,
            address,
            actor_class,
            args,
            kwargs,
            capacity=capacity,
            facts=self._facts,
        )

    def watch(self, other: Cell) -> None:
        self._death_watch.add(other._death_watch)

    def unwatch(self, other: Cell) -> None:
        self._death_watch.remove(other._death_watch)

    def refuse_nowait(self, message: object, *, expects_reply: bool) -> None:
        self._facts.dead_letter_nowait(self.address, message, expects_reply)

    async def refuse(self, message: object, *, expects_reply: bool) -> None:
        await self._facts.dead_letter(self.address, message, expects_reply)

    def refuse_to_wait_for_itself(self) -> None:
        if anyio.get_current_task().id == self._task_id:
            raise WouldDeadlock(
                f"{self.address} can't ask itself: it would wait for a message that it handles next"
            )

    def obey(self, order: Literal[Decision.RESTART, Decision.STOP]) -> None:
        """Restart or stop after the message at hand."""
        if order is Decision.STOP:
            self._reason = "failed"
            self.stop_now()
        elif self._order is None:
            self._order = order
            self.mailbox.wake()

    def stop_now(self) -> None:
        """Stop after the message at hand."""
        self._order = Decision.STOP
        self.mailbox.close()

    async def stop(self) -> None:
        """Stop after what is in the mailbox, and wait for that unless it would be in vain."""
        self.mailbox.close()
        caller = current_cell.get()
        if caller is None:
            await self.stopped.wait()
        elif not self._can_stop_only_after(caller):
            caller._waits_for = self
            try:
                await self.stopped.wait()
            finally:
                caller._waits_for = None

    def cancel(self) -> None:
        """Cancel what this actor and its descendants are doing."""
        ahead = [self]
        while ahead:
            cell = ahead.pop()
            cell._reason = "cancelled"
            cell.stop_now()
            cell._scope.cancel()
            ahead += cell.children

    # The life

    async def run(self) -> None:
        current_cell.set(self)
        self._task_id = anyio.get_current_task().id
        with self._scope:
            try:
                await self._live()
            finally:
                await self._end()

    async def _live(self) -> None:
        if not await self._begin():
            return
        handled = 0
        while True:
            if self._order is not None and not await self._carry_out_order():
                return
            if handled >= FAIRNESS:
                await checkpoint()
                handled = 0
            item = self.mailbox.pop(_NOTHING)
            if item is not _NOTHING:
                handled += await self._handle(item)
            elif self.mailbox.closed:
                return
            else:
                await self.mailbox.wait()
                handled = 0

    async def _handle(self, item: object) -> int:
        """Handle one message, or the run of them that it starts; return how many there were."""
        ask = item if type(item) is Ask else None
        message = item if ask is None else ask.message
        if type(message) in self._batch_types:
            return await self._handle_run(item, message)
        try:
            reply = await self._actor.receive(message)
        except BaseException as caught:  # noqa: BLE001 - raised again unless supervision takes it
            await self._handle_failure(caught, "receive", message, [item])
        else:
            if ask is not None:
                _answer(ask, reply)
        return 1

    async def _handle_run(self, first: object, message: object) -> int:
        """Handle the run of adjacent messages of batch types that starts with `first`."""
        run, messages = [first], [message]
        if len(self.mailbox):
            run += self.mailbox.pop_run(self._run_length())
            messages = run
            if Ask in map(type, run):
                messages = [item.message if type(item) is Ask else item for item in run]
        try:
            replies = await self._actor.receive_batch(messages)
            if len(replies) != len(messages):
                raise TypeError(
                    f"receive_batch returned {len(replies)} replies to {len(messages)} messages"
                )
            answers = [
                (item, replies[position])
                for position, item in enumerate(run if messages is not run else ())
                if type(item) is Ask
            ]
        except BaseException as caught:  # noqa: BLE001 - raised again unless supervision takes it
            await self._handle_failure(caught, "receive_batch", message, run)
        else:
            for ask, reply in answers:
                _answer(ask, reply)
        return len(run)

    def _run_length(self) -> int:
        """Return how many more messages, from the oldest on, can be part of a run."""
        types = self.mailbox.types(self._run_types, self._actor.batch_limit - 1)
        if Ask in types:
            for position, item in enumerate(self.mailbox.peek(len(types))):
                if type(item) is Ask and type(item.message) not in self._batch_types:
                    return position
        return len(types)

    async def _handle_failure(
        self, caught: BaseException, where: str, message: object, items: Sequence[object]
    ) -> None:
        error = self._own_failure(caught)
        for item in items:
            if type(item) is Ask:
                item.fail(
                    error or ActorStopped(f"{self.address} was cancelled before it could reply")
                )
        if error is None:
            raise caught
        outcome = await self._failures.judge(error, where, type(message).__name__)
        if outcome is not Decision.RESUME:
            self.obey(outcome)

    async def _begin(self, *, anew: bool = False) -> bool:
        """Run ``on_start``, on new instances as long as supervision allows it.

        Return whether the actor is ready for messages.
        """
        while True:
            where = "__init__"
            try:
                if anew:
                    self._restarts += 1
                    self._actor = self._construct()
                where = "on_start"
                self._can_have_children = True
                await self._actor.on_start()
            except BaseException as caught:
                error = self._own_failure(caught)
                if error is None:
                    raise
                outcome = await self._failures.judge(error, where)
                await self._stop_children(drain=False)
                if outcome is not Decision.RESTART or self._order is Decision.STOP:
                    # An instance that could not start has nothing to resume either.
                    self._reason = "failed"
                    return False
                anew = True
            else:
                self._started = True
                self._facts.lifecycle(
                    self.address,
                    ActorRestarted(self._restarts)
                    if anew
                    else ActorStarted(self._factory[0].__name__),
                )
                return True

    async def _carry_out_order(self) -> bool:
        """Do what was decided, and return whether the actor goes on."""
        order, self._order = self._order, None
        if order is Decision.STOP:
            return False
        await self._stop_children(drain=False)
        await self._dismiss()
        return await self._begin(anew=True)

    def _own_failure(self, caught: BaseException) -> Exception | None:
        """Return the error that supervision has to deal with, or `None` to let `caught` pass."""
        if isinstance(caught, Exception):
            return caught
        if isinstance(caught, anyio.get_cancelled_exc_class()) and not self._scope.cancel_called:
            # asyncio raises this also in those who wait for a future that somebody cancelled.
            # Nobody cancelled this actor, so it has failed like any other.
            error = PapyraError(f"something that {self.address} waited for was cancelled")
            error.__cause__ = caught
            return error
        return None

    async def _end(self) -> None:
        self.mailbox.close()
        unhandled = self._refuse_the_rest()
        try:
            await self._stop_children(drain=self._reason == "stopped")
            await self._dismiss()
        finally:
            self._facts.lifecycle(self.address, ActorStoppedEvent(self._reason, unhandled))
            self._parent.children.remove(self)
            self._death_watch.end()
            self.stopped.set()

    def _refuse_the_rest(self) -> int:
        unhandled = 0
        while (item := self.mailbox.pop(_NOTHING)) is not _NOTHING:
            match item:
                case Terminated():
                    continue  # the runtime's own, and nobody misses it
                case Ask(message=message):
                    item.fail(ActorStopped(f"{self.address} stopped before it could reply"))
                    self.refuse_nowait(message, expects_reply=True)
                case message:
                    self.refuse_nowait(message, expects_reply=False)
            unhandled += 1
        return unhandled

    async def _stop_children(self, *, drain: bool) -> None:
        self._can_have_children = False
        # When this actor is cancelled its descendants are too, so this does not take long.
        with anyio.CancelScope(shield=True):
            await self.children.stop(drain=drain)

    async def _dismiss(self) -> None:
        """Run ``on_stop`` if it is owed."""
        if self._started:
            self._started = False
            try:
                await self._actor.on_stop()
            except BaseException as caught:
                error = self._own_failure(caught)
                if error is None:
                    raise
                self._failures.record(error, "on_stop")

    def _construct(self) -> Actor:
        actor_class, args, kwargs = self._factory
        # In two steps, so that __init__ can use the context already.
        actor = actor_class.__new__(actor_class)
        actor.context = self._context
        actor.__init__(*args, **kwargs)  # type: ignore[misc]
        return actor

    def _can_stop_only_after(self, other: Cell) -> bool:
        """Return whether this cell, or one that it must wait for, is `other`."""
        seen: set[Cell] = set()
        ahead = [self]
        while ahead:
            cell = ahead.pop()
            if cell is other:
                return True
            if cell not in seen:
                seen.add(cell)
                ahead += cell.children
                if cell._waits_for is not None:
                    ahead.append(cell._waits_for)
        return False


def _answer(ask: Ask, reply: object) -> None:
    if type(reply) is Failure:
        ask.fail(reply.error)
    else:
        ask.resolve(reply)
