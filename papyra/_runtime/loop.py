"""The actor loop: start an actor, handle its messages, restart it, and stop it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, Token
from typing import Any, Protocol, TypeAlias, cast

import anyio
from anyio.lowlevel import checkpoint

from papyra._cancellation import (
    cancel_groups_left_open,
    cancelled_by_its_task,
    cancelled_within,
    enable_interrupts_in_methods,
    meet_cancellation,
    take_cancellation,
    without_cancellation,
)
from papyra._error_copy import copy_of
from papyra._home_loop import HomeLoop
from papyra._runtime.belongings import Belongings
from papyra._runtime.children import Children
from papyra._runtime.context_variables import carrying
from papyra._runtime.dead_letters import DeadLetters
from papyra._runtime.failures import Failures, Supervisor
from papyra._runtime.feeds import is_fed
from papyra._runtime.lifecycle import Lifecycle
from papyra._runtime.props import Props
from papyra._runtime.recorder import Recorder
from papyra._safe_repr import MEANT, type_and_text, type_name
from papyra.actor import Actor, ActorContext, Failure, HandlesOnce, handles_once
from papyra.address import ActorAddress
from papyra.class_counters import ClassCounters
from papyra.clock import Clock
from papyra.dispatcher import Dispatcher
from papyra.events import ActorRestarted, ActorStarted
from papyra.events import ActorStopped as ActorStoppedEvent
from papyra.exceptions import (
    ActorInitializationError,
    PapyraError,
    TaskGroupLeftOpen,
)
from papyra.mailbox import Mailbox
from papyra.output_gate import OutputGate
from papyra.ref import ActorRef, Ask, Terminated, Told, Values
from papyra.supervision import Decision
from papyra.telemetry import Telemetry
from papyra.volatile_timers import OwnMessage, is_own_message

#: What an empty mailbox gives; `None` is a message like any other.
_NOTHING = object()

#: The methods of an actor that Ctrl-C may interrupt wherever it is. What is around them it may not.
_METHODS_OF_USERS = ("__init__", "on_start", "receive", "receive_batch", "on_stop")

#: The name of a context variable that says what a message belongs to, if one travels with it.
CORRELATION = "correlation_id"

#: Handles a message, or the run that it starts, and returns how many it were.
Handle: TypeAlias = Callable[[object], Coroutine[Any, Any, int]]

_NO_TYPES: frozenset[type] = frozenset()


class LoopOwner(Protocol):
    """The cell whose actor a loop runs."""

    address: ActorAddress
    ref: ActorRef
    mailbox: Mailbox[object]
    clock: Clock
    dispatcher: Dispatcher | None
    #: the context variables that travel with messages
    propagate: Sequence[ContextVar[Any]]
    telemetry: Telemetry | None
    loop: HomeLoop
    lifecycle: Lifecycle
    failures: Failures
    recorder: Recorder
    dead_letters: DeadLetters
    context: ActorContext

    @property
    def counters(self) -> ClassCounters:
        """The counters of its class."""

    @property
    def is_woken(self) -> bool:
        """Whether the first instance is made like those of restarts: in the task, supervised."""

    @property
    def parent(self) -> Supervisor:
        """The supervisor."""

    @property
    def children(self) -> Children[Any]:
        """The living children."""

    @property
    def has_ended(self) -> bool:
        """Whether all who want to know have been told that the actor has stopped."""

    def new_variables(self) -> Context:
        """Return the context that an incarnation starts from."""

    def forget_watches(self) -> None:
        """Take back every watch."""

    def end_feeds(self) -> None:
        """End what feeds this incarnation."""

    def launch_again(self) -> None:
        """Run the next incarnation."""

    def interrupt(self, error: BaseException) -> None:
        """End the system with `error`."""

    async def park(self) -> None:
        """Return when all actors of the system have stopped."""

    def end(self) -> None:
        """Tell all who want to know that the actor has stopped."""


class ActorLoop:
    """Runs the actor of one cell: one incarnation after the other, each in a task of its own.

    So one leaves nothing to the next: no context variable, no cancellation, no scope that it has
    not left. The loop is in `_incarnation`. Whatever ends it, `_stop` and `_end` see to it that
    nobody waits in vain.
    """

    __slots__ = (
        "_at_hand",
        "_batch_types",
        "_carried",
        "_cell",
        "_correlation",
        "_correlation_id",
        "_handle_next",
        "_is_surrounded",
        "_lifecycle",
        "_mailbox",
        "_observes",
        "_props",
        "_run_at_hand",
        "_run_types",
        "_settled_for",
        "_started",
        "_struck",
        "_throughput",
        "_token",
        "_values",
        "actor",
        "belongings",
        "variables",
    )

    def __init__(self, cell: LoopOwner, props: Props) -> None:
        self._cell = cell
        self._mailbox = cell.mailbox
        self._lifecycle = cell.lifecycle
        self._props = props
        types = props.actor_class.batch_types
        # Most actors have none, and a frozenset takes 200 bytes, even if it is empty.
        self._batch_types = frozenset(types) if types else _NO_TYPES
        # What the mailbox may hold of a run: messages told, and messages asked, to be looked into.
        self._run_types = self._batch_types | {Ask} if types else _NO_TYPES
        self._started = False  # whether on_stop is owed
        #: what was being handled when a cancellation struck
        self._struck: Sequence[object] = ()
        self._throughput = (cell.dispatcher or Dispatcher).throughput
        # Where telemetry is all there is, its variable is set where the message is handled.
        is_alone = cell.telemetry is not None and len(cell.propagate) == 1 and not types
        self._is_surrounded = cell.dispatcher is not None or (bool(cell.propagate) and not is_alone)
        #: what the incarnation that runs has beside its state, once it has anything
        self.belongings: Belongings | None = None
        #: handles a message, or the run that it starts; returns how many it were
        self._handle_next: Handle
        #: what is being handled, as it was in the mailbox: one message, or a run of them
        self._at_hand: object = _NOTHING
        self._run_at_hand: Sequence[object] = ()
        #: what the message at hand has brought along
        self._values: Values = ()
        #: by which the variable of telemetry becomes what it was, where it is set
        self._token: Token[Any] | None = None
        self._carried: Values = ()
        #: whether the handling of messages that have brought this is observed, as far as is known
        self._observes = False
        #: the message that is to be handled once something is settled
        self._settled_for: object = _NOTHING
        #: the variable that says what a message belongs to, and that of the message at hand
        self._correlation = _correlation_in(cell.propagate) if cell.propagate else None
        self._correlation_id: object = None
        #: the context that the instance is made in; the incarnation's task starts from a copy
        self.variables = cell.new_variables()
        self.actor: Actor
        if not cell.parent.shields_children:
            enable_interrupts_in_methods(props.actor_class, _METHODS_OF_USERS)
        if cell.is_woken:
            return  # whoever sends a message does not call __init__
        try:
            self.actor = self.variables.run(props.make, cell.context)
        except PapyraError:
            raise  # it says what is wrong already
        except Exception as error:
            raise ActorInitializationError(
                f"{props.actor_class.__name__}.__init__ raised {type_and_text(error)}"
            ) from error

    @property
    def keeps_keys(self) -> bool:
        """Whether a message may have an idempotency key."""
        return handles_once(self._props.actor_class)

    def at_hand(self) -> tuple[str | None, str | None]:
        """Return the type of the message that is handled, and what it belongs to, for logs."""
        item = self._run_at_hand[0] if self._run_at_hand else self._at_hand
        if self._settled_for is not _NOTHING:
            item = self._settled_for
        if item is _NOTHING:
            return None, None
        correlation_id = self._correlation_id
        return (
            type_name(item.message if type(item) is Ask else item),
            correlation_id if isinstance(correlation_id, str) else None,
        )

    def takes_in_batches(self, message: object) -> bool:
        """Return whether `message` is one for ``receive_batch``."""
        return bool(self._batch_types) and self._is_batched(message)

    def refuse_at_hand(self, message: object, error: Exception) -> bool:
        """Have `message` refused with `error`; return whether it is being handled."""
        for item in self._run_at_hand or [self._at_hand]:
            ask = item if type(item) is Ask else None
            if ask is None and item is message:
                self._cell.dead_letters.postpone(message, asked=False)
                return True
            if ask is not None and ask.message is message and ask.error is None:
                self._cell.dead_letters.postpone(message, asked=not is_fed(ask))
                ask.error = error
                self._give(ask, functools.partial(ask.fail, error))
                return True
        return False

    async def run(self) -> None:
        """Run one incarnation, in the task that is running; then start the next, or end."""
        left_open = False
        try:
            self._lifecycle.begin(self._cell.loop.current_task())
            try:
                with self._lifecycle.scope:
                    # Nothing gets out of here that is not the event loop's own.
                    try:
                        self._lifecycle.will_restart = await self._incarnation()
                    except BaseException as caught:
                        if self._is_closed_by(caught):
                            raise
                        await self._end_incarnation(caught)
                    if not self._lifecycle.will_restart:
                        await self._stop()
            except anyio.get_cancelled_exc_class():
                pass  # asyncio's own, which the scope lets pass, and which has been dealt with
            except Exception as error:  # noqa: BLE001 - the scope's: one within it stands open
                left_open = True
                self._leave_open(error)
            await meet_cancellation()
            if self._lifecycle.will_restart:
                self.variables = self._cell.new_variables()
                self._cell.launch_again()
            else:
                self._end()
        except KeyboardInterrupt as blow:
            self._break_off(blow)
            raise
        if left_open:
            # A task that ended within a group of its own would end the group that it is in itself.
            await self._cell.park()

    def _break_off(self, blow: KeyboardInterrupt) -> None:
        """End at once: a second Ctrl-C has struck in the runtime itself, as asyncio lets it."""
        self._lifecycle.fail(blow)
        self._cell.interrupt(blow)
        self._fail_struck(None)
        self._mailbox.close()
        self._cell.children.cancel()
        self._cell.dead_letters.empty_mailbox_at_once()
        if not self._cell.has_ended:
            self._end()

    async def _end_incarnation(self, caught: BaseException) -> None:
        try:
            await self._be_struck(caught)
        except anyio.get_cancelled_exc_class():
            self._lifecycle.end_cancelled()
            self._fail_struck(None)

    def _is_closed_by(self, caught: BaseException) -> bool:
        """Return whether the event loop is gone, so that nothing can be awaited any more."""
        return isinstance(caught, GeneratorExit) and not self._cell.loop.is_in(self._lifecycle.task)

    async def _incarnation(self) -> bool:  # noqa: PLR0912 - in one function, as said below
        """Start, handle messages, and return whether supervision wants another incarnation."""
        self._handle_next = self._measured(self._handler())
        if not self._throughput and not self._lifecycle.is_restart:
            await self._next_turn()
        if not await self._begin():
            return self._lifecycle.will_restart
        handled = 0
        # In one function, as an idle actor keeps all coroutines in memory down to where it waits.
        while self._lifecycle.directive is None:
            try:
                if handled >= self._throughput and len(self._mailbox):
                    handled = 0
                    if not await self._let_others_run():
                        break
                if (item := self._mailbox.pop(_NOTHING)) is not _NOTHING:
                    handle = self._handle_next  # called as a method, it is looked up for longer
                    handled += await handle(item)
                elif self._mailbox.closed:
                    break
                else:
                    self._at_hand = _NOTHING  # not to keep it in memory
                    if self._token is not None:
                        self._carry(())
                    if self._cell.dead_letters.postponed:
                        await self._cell.dead_letters.add_postponed()
                    if (wakeup := self._mailbox.wakeup()) is not None:
                        await wakeup
                    handled = 0
            except anyio.get_cancelled_exc_class():
                if not self._outlives_cancellation():
                    raise
        return await self._clear_for_restart()

    async def _clear_for_restart(self) -> bool:
        """Stop the instance, and its children, if it is to be restarted; return whether it is."""
        if self._lifecycle.directive is not Decision.RESTART:
            return False
        self._lifecycle.directive = None
        await self._end_belongings()
        await self._stop_children(drain=False)
        await self._stop_instance(record=True)
        return True

    async def _let_others_run(self) -> bool:
        """Wait until the others had their turn; return whether the actor goes on after that."""
        if self._cell.dead_letters.postponed:
            await self._cell.dead_letters.add_postponed()
        await self._next_turn()
        return self._lifecycle.directive is None

    def _handler(self) -> Handle:
        """Return what handles a message, or the run that it starts; it returns how many it were."""
        if self._cell.propagate:
            return self._handle_with_values if self._is_surrounded else self._handle_with_value
        return self._handle_or_run if self._batch_types else self._handle

    @property
    def ahead(self) -> tuple[Values, bool] | None:
        """The context variables of the message that comes next, and whether it was asked."""
        item = self._settled_for
        if item is not _NOTHING:
            return self._values, type(item) is Ask
        item = next(self._mailbox.peek(1), None)
        if type(item) is Ask or type(item) is Told:
            return item.values, type(item) is Ask
        return None

    def _handle_with_values(self, item: object) -> Coroutine[Any, Any, int]:
        # A message may be anything, and only its type can be asked without it.
        self._values = item.values if type(item) is Ask or type(item) is Told else ()
        return self._handle_or_run(item.message if type(item) is Told else item)

    async def _handle_with_value(self, item: object) -> int:
        """Handle one message as `_handle` does, with the one variable as it was at its sender.

        In one function, as each message passes here where there is telemetry, recorded or not. The
        variable stays as it is while there are more messages, as most of those have the same.
        """
        ask: Ask | None = None
        values: Values = ()
        message = item
        if type(item) is Told:
            values = item.values
            message = item = item.message
        elif type(item) is Ask:
            ask, message, values = item, item.message, item.values
        if self._lifecycle.settlement is not None:
            self._values = values
            if not await self._settle(item, message):
                return 1
            self._values = ()
        self._at_hand = item
        if self._carried is not values:
            self._carry(values)
        try:
            if ask is None or ask.idempotency_key is None:
                handling = self.actor.receive(message)
            else:
                handling = self._receive_once(message, ask.idempotency_key)
            if self._observes:
                observed = self._observe_at_hand(handling)
                self._observes = observed is not handling
                handling = observed
            reply = await handling
        except BaseException as caught:  # noqa: BLE001 - raised again unless supervision takes it
            self._carry(())
            await self._handle_failure(caught, "receive", message, [item])
        else:
            if ask is not None:
                self._answer(ask, reply)
        return 1

    def _carry(self, values: Values) -> None:
        """Set the variable of telemetry as `values` say; without any, to what it was at first."""
        if self._token is not None:
            try:  # noqa: SIM105 - in a third of the time, and each ask passes here
                self._token.var.reset(self._token)
            except ValueError:
                pass  # whoever closes a task that was left to itself does so in another context
            self._token = None
        self._carried, self._observes = values, bool(values)
        for variable, value in values:
            self._token = variable.set(value)

    def _handle_or_run(self, item: object) -> Coroutine[Any, Any, int]:
        message = item.message if type(item) is Ask else item
        if self._batch_types and self._is_batched(message):
            return self._handle_run(item, message)
        return self._handle(item)

    def take_over(self, belongings: Belongings) -> None:
        """Have `belongings` belong to the incarnation, and its messages to itself be handled."""
        self.belongings = belongings
        self._handle_next = self._measured(self._handle_or_take)

    def _measured(self, handle: Handle) -> Handle:
        """Return `handle`, with the time that it takes counted where the system measures."""
        counters, now = self._cell.counters, self._cell.clock.monotonic
        if counters.receive_seconds is None:
            return handle
        took = counters.receive_seconds.add

        async def measured(item: object) -> int:
            began = now()
            try:
                count = await handle(item)
            finally:
                took(now() - began)
            counters.handled += count
            return count

        return measured

    def _handle_or_take(self, item: object) -> Coroutine[Any, Any, int]:
        """Return what handles `item`, be it a message of the actor to itself, unless that is over.

        Only those that may have such pass this way.
        """
        assert self.belongings is not None
        if is_own_message(item):
            return self._take(item, self.belongings)
        self.belongings.note_activity(item)
        return self._handler()(item)

    def _take(self, item: OwnMessage, belongings: Belongings) -> Coroutine[Any, Any, int]:
        try:
            is_due = item.take()
        except BaseException as caught:  # noqa: BLE001 - raised again unless supervision takes it
            return self._fail_to_take(caught, item)
        if not is_due:
            return _pass_over()
        belongings.note_activity(item)
        if self._cell.telemetry is not None and not self._is_surrounded:
            return self._handle_with_value(Told(item.message, item.values))
        self._values = item.values
        return self._handle_or_run(item.message)

    async def _fail_to_take(self, caught: BaseException, item: OwnMessage) -> int:
        """Fail, as the key of a timer, which is a user's object, has raised."""
        await self._handle_failure(caught, "the key of a timer", item.message, [item])
        return 1

    async def _end_belongings(self) -> None:
        """End what belongs to the incarnation, and make dead letters of results left over."""
        if self.belongings is None:
            return
        self._lifecycle.can_have_children = False
        refuse = functools.partial(self._cell.dead_letters.postpone, asked=False)
        await self.belongings.end(refuse)

    async def _handle(self, item: object) -> int:
        """Handle one message."""
        ask = item if type(item) is Ask else None
        message = item if ask is None else ask.message
        if self._lifecycle.settlement is not None and not await self._settle(item, message):
            return 1
        self._at_hand = item
        try:
            if ask is None or ask.idempotency_key is None:
                handling = self.actor.receive(message)
            else:
                handling = self._receive_once(message, ask.idempotency_key)
            if self._is_surrounded:
                handling = self._surround(message, handling)
            reply = await handling
        except BaseException as caught:  # noqa: BLE001 - raised again unless supervision takes it
            await self._handle_failure(caught, "receive", message, [item])
        else:
            if ask is not None:
                self._answer(ask, reply)
        return 1

    def _receive_once(self, message: object, idempotency_key: str) -> Coroutine[Any, Any, Any]:
        # Who asks another actor has been refused.
        return cast("HandlesOnce", self.actor).receive_once(message, idempotency_key)

    async def _settle(self, item: object, message: object) -> bool:
        """Settle what the messages before have left; return whether `message` can be handled."""
        assert self._lifecycle.settlement is not None
        self._settled_for = item
        try:
            await self._lifecycle.settlement()
        except BaseException as caught:
            error = self._failure(caught)
            if error is None:
                self._struck = [item]
                raise
            self._fail([item], error)
            if type(message) is not Terminated:
                asked = type(item) is Ask and not is_fed(item)
                self._cell.dead_letters.postpone(message, asked=asked)
            return False
        finally:
            self._settled_for = _NOTHING
        return True

    def _surround(self, message: object, handling: Coroutine[Any, Any, Any]) -> Any:
        """Return `handling` with what belongs around it."""
        if self._cell.dispatcher is not None:
            handling = self._cell.dispatcher.handle(self._cell.ref, (message,), handling)
        if self._cell.propagate:
            # Outermost: instruments see the sender's variables, too.
            observe = self._observe_at_hand if self._cell.telemetry is not None else None
            values, self._values = self._values, ()  # not to keep them in memory
            if self._correlation is not None:
                brought = (value for variable, value in values if variable is self._correlation)
                self._correlation_id = next(brought, None)
            handling = carrying(self._cell.propagate, values, handling, observe)
        return handling

    def _observe_at_hand(self, handling: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        cell, item = self._cell, self._at_hand
        assert cell.telemetry is not None
        is_asked = type(item) is Ask
        message = item.message if type(item) is Ask else item
        actor_type = self._props.actor_class.__name__
        return cell.telemetry.receive(
            cell.address, actor_type, message, handling, is_asked=is_asked
        )

    async def _next_turn(self) -> None:
        if self._cell.dispatcher is None:
            await checkpoint()
        else:
            await self._cell.dispatcher.next_turn(self._cell.ref)

    async def _handle_run(self, first: object, message: object) -> int:
        """Handle the run of adjacent messages of batch types that starts with `first`."""
        run, messages = [first], [message]
        try:
            if self._mailbox.holds_any():
                length, has_asks = self._run_length()
                run += self._mailbox.pop_run(length)
                messages = run
                if has_asks or type(first) is Ask:
                    messages = [item.message if type(item) is Ask else item for item in run]
            self._run_at_hand = run
            handling = self.actor.receive_batch(messages)
            if self._cell.dispatcher is not None:
                handling = self._cell.dispatcher.handle(self._cell.ref, messages, handling)
            replies = await handling
            if len(replies) != len(messages):
                raise TypeError(
                    f"receive_batch returned {len(replies)} replies to {len(messages)} messages"
                )
            answers: Sequence[tuple[Ask, object]] = ()
            if len(run) == 1:
                if type(first) is Ask:
                    answers = ((first, replies[0]),)
            elif messages is not run:
                answers = [
                    (item, replies[position])
                    for position, item in enumerate(run)
                    if type(item) is Ask
                ]
        except BaseException as caught:  # noqa: BLE001 - raised again unless supervision takes it
            await self._handle_failure(caught, "receive_batch", message, run)
        else:
            for ask, reply in answers:
                self._answer(ask, reply)
        self._run_at_hand = ()
        return len(run)

    def _answer(self, ask: Ask, reply: object) -> None:
        gate = self._lifecycle.gate
        if gate is not None and OutputGate.shut and gate.is_shut:
            self._give(ask, functools.partial(self._answer_now, ask, reply))
        elif ask.given_up or type(reply) is Failure:
            self._answer_now(ask, reply)
        else:
            ask.resolve(reply)

    def _give(self, ask: Ask, release: Callable[[], None]) -> None:
        """Call `release`, which wakes who asked, when nothing stands at the gate any more."""
        if self._lifecycle.gate is None or not self._lifecycle.gate.is_shut:
            release()
        else:
            self._lifecycle.gate.hold(_HeldReply(ask, release))

    def _answer_now(self, ask: Ask, reply: object) -> None:
        if ask.given_up:
            self._cell.recorder.unclaimed(self._cell.address, ask.message)
        elif type(reply) is Failure:
            ask.fail(reply.error)
        else:
            ask.resolve(reply)

    def _run_length(self) -> tuple[int, bool]:
        """Return how many more of the oldest messages can be part of a run, and if any is asked."""
        length, types = self._mailbox.run(self._run_types, self.actor.batch_limit - 1)
        has_asks = Ask in types
        if has_asks:
            for position, item in enumerate(self._mailbox.peek(length)):
                if type(item) is Ask and not self._is_batched(item.message):
                    return position, True
        return length, has_asks

    def _is_batched(self, message: object) -> bool:
        try:
            return type(message) in self._batch_types
        except MEANT:
            raise
        except BaseException:  # noqa: BLE001 - a type that can't be hashed is none of them
            return False

    async def _handle_failure(
        self, caught: BaseException, where: str, message: object, items: Sequence[object]
    ) -> None:
        error = self._failure(caught)
        if error is None:
            self._struck = items
            raise caught
        self._fail(items, error)
        self._run_at_hand = ()
        outcome = await self._cell.failures.decide(error, where, type_name(message))
        if outcome is not Decision.RESUME:
            self._lifecycle.apply(outcome, error)

    def _fail(self, items: Sequence[object], error: Exception | None) -> None:
        for item in items:
            if type(item) is Ask:
                failure: Exception = (
                    self._lifecycle.stopped_error("was cancelled before it could reply", "maybe")
                    if error is None
                    else error
                )
                self._give(item, functools.partial(item.fail, failure))

    async def _begin(self) -> bool:
        """Run ``on_start``, on a new instance if this is a restart.

        Return whether the actor is ready for messages. If not, `Lifecycle.will_restart`
        says what supervision wants.
        """
        where, self._at_hand = "__init__", _NOTHING
        try:
            if self._lifecycle.is_restart:
                if not await self._back_off():
                    return False
                self._lifecycle.begin_restart()
            if self._lifecycle.is_restart or self._cell.is_woken:
                self.actor = self._props.make(self._cell.context)
            where = "on_start"
            self._lifecycle.can_have_children = True
            await self.actor.on_start()
        except BaseException as caught:
            error = self._failure(caught)
            if error is None:
                raise
            await self._decide_about_ended(error, where)
            if self._lifecycle.will_restart and self._mailbox.closed:
                # Whoever wants it to stop need not wait until it starts.
                self._lifecycle.fail(error)
            return False
        self._started = True
        if self._lifecycle.passivates and len(self._mailbox):
            self._lifecycle.directive = None  # from on_start: first comes what woke the entity
        self._cell.recorder.lifecycle(
            self._cell.address,
            ActorRestarted(self._lifecycle.restarts)
            if self._lifecycle.is_restart
            else ActorStarted(self._props.actor_class.__name__),
        )
        return True

    async def _decide_about_ended(self, error: Exception, where: str) -> None:
        """Have supervision decide about an instance that is not running: there is no resuming."""
        await self._end_belongings()
        outcome = await self._cell.failures.decide(error, where)
        await self._stop_children(drain=False)
        if outcome is Decision.RESTART and self._lifecycle.directive is not Decision.STOP:
            self._lifecycle.restart(error)
        else:
            self._lifecycle.fail(error)

    async def _back_off(self) -> bool:
        """Wait as long as supervision says before a restart; return whether there is to be one.

        Somebody who wants the actor to stop does not have to wait for that.
        """
        self._cell.forget_watches()
        self._cell.end_feeds()
        if self._lifecycle.restart_delay:
            with self._cell.clock.move_on_after(self._lifecycle.restart_delay):
                await self._mailbox.wait_closed()
        return self._lifecycle.directive is not Decision.STOP

    def _failure(self, caught: BaseException) -> Exception | None:
        """Return the error that supervision has to deal with.

        `None` for a cancellation of this actor, whosever it is, and for what is to end the program.
        """
        rest = without_cancellation(caught)
        if rest is not None:
            return rest if isinstance(rest, Exception) else None
        if self._lifecycle.scope.cancel_called or cancelled_within() or cancelled_by_its_task():
            return None
        # asyncio raises this also in those who wait for a future that somebody cancelled. Nobody
        # cancelled this actor, so it has failed like any other.
        error = PapyraError(f"something that {self._cell.address} waited for was cancelled")
        error.__cause__ = caught
        return error

    def _outlives_cancellation(self) -> bool:
        """Return whether the actor goes on, although somebody cancelled its task.

        If so, it starts over with what it was handling.
        """
        if (
            self._lifecycle.scope.cancel_called
            or cancelled_within()
            or not self._cell.parent.shields_children
        ):
            return False
        self._cell.parent.child_was_cancelled()
        take_cancellation()
        self._mailbox.put_back(self._struck)
        self._struck = ()
        return True

    async def _be_struck(self, caught: BaseException) -> None:
        """End the incarnation as `caught` demands, which is no failure of the actor's own."""
        cell = self._cell
        interrupt = without_cancellation(caught)
        if interrupt is not None:
            if not self._struck:  # it has struck beside the actor's own code
                items = self._run_at_hand or [self._at_hand]
                self._struck = [each for each in items if type(each) is Ask and each.is_open]
            self._lifecycle.fail(interrupt)
            cell.interrupt(interrupt)
        elif not self._lifecycle.scope.cancel_called:
            await self._be_cancelled()
        self._fail_struck(None)

    async def _be_cancelled(self) -> None:
        """End the incarnation, as neither the system nor supervision has cancelled it.

        Either somebody cancelled the task: that ends the actor. Or it was in a task group, in which
        a task failed: leaving that in ``on_stop`` raises the error, and supervision decides.
        """
        cell = self._cell
        await self._end_belongings()
        await self._stop_children(drain=False)
        error = await self._stop_instance()
        if cancelled_within():
            return  # it is still in that group, and `run` finds it there
        if cancelled_by_its_task():
            self._lifecycle.end_cancelled()
            if error is not None:
                cell.failures.record(error, "on_stop")
            return
        if error is None:
            error = PapyraError(f"a scope that {cell.address} had entered was cancelled")
        self._fail_struck(error)
        await self._decide_about_ended(error, "on_stop")

    def _fail_struck(self, error: Exception | None) -> None:
        items, self._struck = self._struck, ()
        self._fail(items, error)

    def _leave_open(self, caught: Exception) -> None:
        """Stop, as the actor is still in a task group, or a scope, that nobody else can leave."""
        error = TaskGroupLeftOpen(
            f"{self._cell.address} has ended within a task group, or a cancel scope, that it "
            "entered: what on_start enters, on_stop has to leave"
        )
        error.__cause__ = caught
        self._lifecycle.fail(error)
        self._cell.failures.record(error, "on_stop", Decision.STOP)
        self._fail_struck(error)
        self._mailbox.close()
        self._cell.dead_letters.empty_mailbox_at_once()
        cancel_groups_left_open()

    async def _stop(self) -> None:
        """Stop what there is of the actor, in order."""
        try:
            await self._end_belongings()
            if not self._lifecycle.passivates:
                self._mailbox.close()
                await self._cell.dead_letters.empty_mailbox()
            await self._stop_children(drain=self._lifecycle.reason == "stopped")
        except anyio.get_cancelled_exc_class():
            self._lifecycle.end_cancelled()
        await self._stop_instance(record=True)

    def _end(self) -> None:
        """Say that the actor has stopped, to all who want to know."""
        if self._lifecycle.gate is not None:
            self._lifecycle.gate.leave()
        try:
            self._cell.dead_letters.add_postponed_anyway()  # what on_stop may have added
            self._cell.recorder.lifecycle(
                self._cell.address,
                ActorStoppedEvent(self._lifecycle.reason, self._cell.dead_letters.left),
            )
        finally:
            self._cell.end()

    async def _stop_children(self, *, drain: bool) -> None:
        """Stop the children, whoever is cancelled meanwhile; then let the cancellation strike."""
        self._lifecycle.can_have_children = False
        children, blow = self._cell.children, None
        # When this actor is cancelled its descendants are too, so this does not take long.
        with anyio.CancelScope(shield=True):
            while len(children):
                try:
                    await children.stop(drain=drain, cause=self._lifecycle.cause)
                except anyio.get_cancelled_exc_class() as error:
                    drain, blow = False, error
        if blow is not None:
            raise blow

    async def _stop_instance(self, *, record: bool = False) -> Exception | None:
        """Run ``on_stop`` if it is owed, and return, or record, what it raised."""
        if not self._started:
            return None
        self._started = False
        if self._token is not None:
            self._carry(())
        try:
            try:
                if self._lifecycle.gate is not None:
                    await self._lifecycle.gate.drained()
            finally:
                await self.actor.on_stop()
        except BaseException as caught:
            if self._is_closed_by(caught):
                raise
            error = self._failure(caught)
            if error is None and (interrupt := without_cancellation(caught)) is not None:
                self._cell.interrupt(interrupt)
            if error is not None and record:
                self._cell.failures.record(error, "on_stop")
            return error
        return None


def _correlation_in(propagate: Sequence[ContextVar[Any]]) -> ContextVar[Any] | None:
    return next((each for each in propagate if each.name == CORRELATION), None)


async def _pass_over() -> int:
    """Handle a message that was taken back: it took a place in the mailbox, and nothing else."""
    return 1


class _HeldReply:
    """A reply, or an error, that waits at the output gate."""

    def __init__(self, ask: Ask, release: Callable[[], None]) -> None:
        self._ask = ask
        self.release = release

    def fail(self, error: Exception) -> None:
        self._ask.fail(copy_of(error))
