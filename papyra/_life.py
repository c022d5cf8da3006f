"""The life of one actor: the loop that handles its messages, from the first start to the end."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from papyra._contexts import Values, carrying, run_in
from papyra._facts import text_of
from papyra._recipe import Recipe
from papyra.actor import Failure
from papyra.dispatcher import Dispatcher
from papyra.events import ActorRestarted, ActorStarted
from papyra.events import ActorStopped as ActorStoppedEvent
from papyra.exceptions import ActorInitializationError, PapyraError
from papyra.ref import Ask, Terminated, Told, current_cell
from papyra.supervision import Decision

if TYPE_CHECKING:
    from papyra._cell import Cell

__all__ = ("Life",)

#: What an empty mailbox gives; `None` is a message like any other.
_NOTHING = object()


class Life:
    """Runs the actor of one cell, one instance after the other.

    The loop is in `_incarnation`. Whatever ends it, `_end` sees to it that nobody waits in vain.
    """

    def __init__(self, cell: Cell, recipe: Recipe) -> None:
        self._cell = cell
        self._mailbox = cell.mailbox
        self._recipe = recipe
        self._batch_types = frozenset(recipe.actor_class.batch_types)
        # What the mailbox may hold of a run: messages told, and messages asked, to be looked into.
        self._run_types = self._batch_types | {Ask}
        self._started = False  # whether on_stop is owed
        self._restarts = 0
        self._dispatcher = cell.dispatcher
        self._throughput = (cell.dispatcher or Dispatcher).throughput
        self._is_surrounded = cell.dispatcher is not None or bool(cell.propagate)
        #: what is being handled, as it was in the mailbox: one message, or a run of them
        self._at_hand: object = _NOTHING
        self._run_at_hand: Sequence[object] = ()
        #: what of it the actor had no use for, and whether it was asked; dead letters soon
        self._refused: list[tuple[object, bool]] = []
        #: what the message at hand has brought along
        self._values: Values = ()
        #: the context that the instance is made in; the actor's task starts from a copy
        self.variables = self._new_variables()
        try:
            self.actor = self.variables.run(recipe.make, cell.context)
        except PapyraError:
            raise  # it says what is wrong already
        except Exception as error:
            raise ActorInitializationError(
                f"{recipe.actor_class.__name__}.__init__ raised "
                f"{type(error).__name__}: {text_of(error)}"
            ) from error

    def takes_in_batches(self, message: object) -> bool:
        """Return whether `message` is one for ``receive_batch``."""
        return type(message) in self._batch_types

    def refuse_at_hand(self, message: object, error: Exception) -> bool:
        """Have `message` refused with `error`; return whether it is being handled."""
        for item in self._run_at_hand or [self._at_hand]:
            ask = item if type(item) is Ask else None
            if ask is None and item is message:
                self._refused.append((message, False))
                return True
            if ask is not None and ask.message is message and ask.error is None:
                ask.fail(error)
                self._refused.append((message, True))
                return True
        return False

    async def run(self) -> None:
        self._cell.task = self._cell.loop.current_task()
        with self._cell.scope:
            try:
                await self._live()
            finally:
                # The first instance has lived in the context of the task itself.
                end = self._end()
                await (run_in(self.variables, end) if self._restarts else end)

    async def _live(self) -> None:
        if not self._throughput:
            await self._next_turn()
        another = await self._incarnation()
        while another:
            self.variables = self._new_variables()
            another = await run_in(self.variables, self._incarnation(anew=True))

    async def _incarnation(self, *, anew: bool = False) -> bool:
        """Start an instance, have it handle messages, and return whether another is to follow."""
        if not await self._begin(anew):
            return False
        handle = self._handle_with_values if self._cell.propagate else self._handle
        handled = -1 if anew else 0  # a restart has had its turn for the first message already
        while True:
            if handled >= self._throughput and len(self._mailbox):
                # A busy actor lets the others run now and then.
                await self._next_turn()
                handled = 0
            if self._cell.order is not None:
                return await self._carry_out_order()
            item = self._mailbox.pop(_NOTHING)
            if item is not _NOTHING:
                handled += await handle(item)
            elif self._mailbox.closed:
                return False
            else:
                self._at_hand = _NOTHING  # not to keep it in memory
                await self._mailbox.wait()
                handled = 0

    def _new_variables(self) -> Context:
        variables = self._cell.loop.empty_context.copy()
        variables.run(current_cell.set, self._cell)
        return variables

    async def _handle_with_values(self, item: object) -> int:
        self._values = item.values if isinstance(item, (Ask, Told)) else ()
        return await self._handle(item.message if isinstance(item, Told) else item)

    async def _handle(self, item: object) -> int:
        """Handle one message, or the run of them that it starts; return how many there were."""
        ask = item if type(item) is Ask else None
        message = item if ask is None else ask.message
        if type(message) in self._batch_types:
            return await self._handle_run(item, message)
        self._at_hand = item
        try:
            handling = self.actor.receive(message)
            if self._is_surrounded:
                handling = self._surround(message, handling)
            reply = await handling
        except BaseException as caught:  # noqa: BLE001 - raised again unless supervision takes it
            await self._handle_failure(caught, "receive", message, [item])
        else:
            if ask is not None:
                self._answer(ask, reply)
            if self._refused:
                await self._refuse_unhandled()
        return 1

    def _surround(self, message: object, handling: Coroutine[Any, Any, Any]) -> Any:
        """Return `handling` with what belongs around it."""
        if self._cell.propagate:
            handling = carrying(self._cell.propagate, self._values, handling)
        if self._dispatcher is not None:
            handling = self._dispatcher.handle(self._cell.ref, (message,), handling)
        return handling

    async def _next_turn(self) -> None:
        if self._dispatcher is None:
            await checkpoint()
        else:
            await self._dispatcher.next_turn(self._cell.ref)

    async def _handle_run(self, first: object, message: object) -> int:
        """Handle the run of adjacent messages of batch types that starts with `first`."""
        run, messages = [first], [message]
        if len(self._mailbox):
            run += self._mailbox.pop_run(self._run_length())
            messages = run
            if Ask in map(type, run):
                messages = [item.message if type(item) is Ask else item for item in run]
        self._run_at_hand = run
        try:
            handling = self.actor.receive_batch(messages)
            if self._dispatcher is not None:
                handling = self._dispatcher.handle(self._cell.ref, messages, handling)
            replies = await handling
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
                self._answer(ask, reply)
            if self._refused:
                await self._refuse_unhandled()
        self._run_at_hand = ()
        return len(run)

    async def _refuse_unhandled(self) -> None:
        while self._refused:
            message, asked = self._refused.pop(0)
            await self._cell.refuse(message, expects_reply=asked)

    def _answer(self, ask: Ask, reply: object) -> None:
        if ask.given_up:
            self._cell.facts.unclaimed(self._cell.address, ask.message)
        elif type(reply) is Failure:
            ask.fail(reply.error)
        else:
            ask.resolve(reply)

    def _run_length(self) -> int:
        """Return how many more messages, from the oldest on, can be part of a run."""
        types = self._mailbox.types(self._run_types, self.actor.batch_limit - 1)
        if Ask in types:
            for position, item in enumerate(self._mailbox.peek(len(types))):
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
                    self._cell.stopped_error("was cancelled before it could reply", "maybe")
                    if error is None
                    else error
                )
        if error is None:
            raise caught
        self._run_at_hand = ()
        await self._refuse_unhandled()
        outcome = await self._cell.failures.judge(error, where, type(message).__name__)
        if outcome is not Decision.RESUME:
            self._cell.obey(outcome, error)

    async def _begin(self, anew: bool) -> bool:
        """Run ``on_start``, for a restart on a new instance; return whether the actor goes on.

        It goes on as supervision says, so one that could not start may go on with a restart.
        """
        if anew and not await self._back_off():
            return False
        where = "__init__"
        try:
            if anew:
                self._restarts += 1
                self._cell.cause = None
                self.actor = self._recipe.make(self._cell.context)
            where = "on_start"
            self._cell.can_have_children = True
            await self.actor.on_start()
        except BaseException as caught:
            error = self._own_failure(caught)
            if error is None:
                raise
            outcome = await self._cell.failures.judge(error, where)
            if outcome is not Decision.RESTART or self._cell.order is Decision.STOP:
                # An instance that could not start has nothing to resume either.
                self._cell.reason, self._cell.cause = "failed", error
                return False
            self._cell.obey(outcome, error)
        else:
            self._started = True
            self._cell.facts.lifecycle(
                self._cell.address,
                ActorRestarted(self._restarts)
                if anew
                else ActorStarted(self._recipe.actor_class.__name__),
            )
        return True

    async def _back_off(self) -> bool:
        """Wait as long as supervision says before a restart; return whether there is to be one.

        Somebody who wants the actor to stop does not have to wait for that.
        """
        if self._cell.restart_delay:
            with self._cell.clock.move_on_after(self._cell.restart_delay):
                await self._mailbox.wait_closed()
        return self._cell.order is not Decision.STOP

    async def _carry_out_order(self) -> bool:
        """Do what was decided, and return whether another instance is to follow."""
        order, self._cell.order = self._cell.order, None
        if order is Decision.STOP:
            return False
        await self._stop_children(drain=False)
        await self._dismiss()
        return True

    def _own_failure(self, caught: BaseException) -> Exception | None:
        """Return the error that supervision has to deal with, or `None` to let `caught` pass."""
        if isinstance(caught, Exception):
            return caught
        if (
            isinstance(caught, anyio.get_cancelled_exc_class())
            and not self._cell.scope.cancel_called
        ):
            # asyncio raises this also in those who wait for a future that somebody cancelled.
            # Nobody cancelled this actor, so it has failed like any other.
            error = PapyraError(f"something that {self._cell.address} waited for was cancelled")
            error.__cause__ = caught
            return error
        return None

    async def _end(self) -> None:
        self._mailbox.close()
        unhandled = self._refuse_the_rest()
        try:
            await self._stop_children(drain=self._cell.reason == "stopped")
            await self._dismiss()
        finally:
            cell = self._cell
            cell.facts.lifecycle(cell.address, ActorStoppedEvent(cell.reason, unhandled))
            cell.parent.children.remove(cell)
            cell.death_watch.end()
            cell.stopped.set()

    def _refuse_the_rest(self) -> int:
        for message, asked in self._refused:
            self._cell.leave(message, expects_reply=asked)
        unhandled = 0
        while (item := self._mailbox.pop(_NOTHING)) is not _NOTHING:
            match item:
                case Terminated():
                    continue  # the runtime's own, and nobody misses it
                case Ask(message=message):
                    item.fail(self._cell.stopped_error("stopped before it could reply", "never"))
                    self._cell.leave(message, expects_reply=True)
                case Told(message=message) | message:
                    self._cell.leave(message, expects_reply=False)
            unhandled += 1
        return unhandled

    async def _stop_children(self, *, drain: bool) -> None:
        self._cell.can_have_children = False
        # When this actor is cancelled its descendants are too, so this does not take long.
        with anyio.CancelScope(shield=True):
            await self._cell.children.stop(drain=drain, cause=self._cell.cause)

    async def _dismiss(self) -> None:
        """Run ``on_stop`` if it is owed."""
        if self._started:
            self._started = False
            try:
                await self.actor.on_stop()
            except BaseException as caught:
                error = self._own_failure(caught)
                if error is None:
                    raise
                self._cell.failures.record(error, "on_stop")
