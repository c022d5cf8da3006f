"""References to actors: tell, ask and stop them."""

from __future__ import annotations

import contextlib
import dataclasses
from asyncio import InvalidStateError
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar, copy_context
from threading import get_ident
from typing import Any, Final, Literal, NoReturn, Protocol, TypeAlias, overload

import msgspec

from papyra._durations import is_seconds, seconds
from papyra._home_loop import HomeLoop
from papyra._safe_repr import shown, type_name
from papyra._signal import Latch, Signal, wake
from papyra.address import ActorAddress
from papyra.clock import Clock
from papyra.exceptions import (
    ActorStopped,
    AskTimeout,
    IdempotencyKeysUnsupported,
    InvalidIdempotencyKey,
    InvalidPolicy,
    MailboxClosed,
    MailboxFull,
    RepeatedFailure,
    ReplyNotKept,
    UnhandledMessage,
    WouldDeadlock,
    WrongLoop,
)
from papyra.mailbox import Mailbox
from papyra.message import Message, ReplyT
from papyra.output_gate import OutputGate, current_gate
from papyra.retry import Retry

#: Context variables with the values that they had at a message's sender; without those unset there.
Values: TypeAlias = Sequence[tuple[ContextVar[Any], Any]]

#: Called with a reply, or an error, where an actor gives it.
Answered: TypeAlias = Callable[[object, Exception | None], None]

#: What an actor is fed from: entered, and iterated over, by a task of the runtime's.
Source: TypeAlias = AbstractAsyncContextManager[AsyncIterator[object]]
#: Returns the message that says that a source has ended, with the error that it has raised.
LastMessage: TypeAlias = Callable[[Exception | None], object]

#: In place of a reply that has not come; `None` is one like any other.
_NO_REPLY: Final = object()

#: The errors of an ask that would be as wrong the next time.
_SENSELESS: Final = (
    *(InvalidPolicy, UnhandledMessage, WouldDeadlock, WrongLoop),
    *(InvalidIdempotencyKey, IdempotencyKeysUnsupported, ReplyNotKept, RepeatedFailure),
)
#: Characters of an idempotency key.
MAX_KEY: Final = 1_024


class Wait(Protocol):
    """An actor's wait for another one, noted for the detection of deadlocks."""

    def end(self) -> None:
        """Note that the wait is over."""


class Feed(Protocol):
    """What an actor gets out of one source."""

    def end(self) -> None:
        """Put no more into the mailbox, and drop what waits there. Does nothing at its end."""


class Recipient(Protocol):
    """The actor behind a ref."""

    address: ActorAddress
    mailbox: Mailbox[object]
    loop: HomeLoop
    clock: Clock
    stopped: Latch

    @property
    def put_nowait(self) -> Callable[[object], None]:
        """What puts a message into the mailbox, as `Mailbox.put_nowait` does."""

    @property
    def keeps_keys(self) -> bool:
        """Whether it knows by an idempotency key that it has handled a message before."""

    async def queue_up(self, item: object) -> None:
        """Put `item` into the mailbox when there is room."""

    async def queue_up_told(self, message: object) -> None:
        """Put a message that was told into the mailbox; raise `WouldDeadlock` if it can't wait."""

    def begin_wait(self, until: Signal, *, limited: bool) -> Wait | None:
        """Note the wait of the actor that runs here, if one does, for this one.

        Return what ends the wait, if it counts; raise `WouldDeadlock` if it could never end.
        """

    async def refuse(self, message: object, *, expects_reply: bool) -> None:
        """Make a dead letter of `message`; wait if the store has no room for it."""

    def refuse_nowait(self, message: object, *, expects_reply: bool) -> None:
        """Make a dead letter of `message`; raise `MailboxFull` if the store has no room for it."""

    def refuse_anyway(self, message: object) -> None:
        """Make a dead letter of `message`, whether the store has room for it or not."""

    def feed(self, source: Source, last: LastMessage, over: Callable[[Feed], None]) -> Feed:
        """Feed the actor; raise `ActorStopped` if it has stopped, or is stopping, or asleep."""

    def stopped_error(self, what: str, handled: Literal["never", "maybe"]) -> ActorStopped:
        """Return the error for who asked an actor that has stopped, or is about to."""

    async def stop(self) -> None:
        """Stop after the messages in the mailbox; wait for that unless it would be in vain."""


class Ask(msgspec.Struct, eq=False):
    """A message in a mailbox whose sender waits for the reply. Only the runtime sees these."""

    # A struct, as it is made in half the time.
    message: object
    #: set once there is a reply or an error
    done: Signal
    reply: object = _NO_REPLY
    error: Exception | None = None
    #: the sender's context variables, set where some are registered
    values: Values = ()
    #: whether the sender has stopped waiting for the reply
    given_up: bool = False
    #: by which a repeated message is recognized
    idempotency_key: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the sender waits, and has neither a reply nor an error."""
        return self.reply is _NO_REPLY and self.error is None and not self.given_up

    def resolve(self, reply: object) -> None:
        """Give the sender its reply."""
        self.reply = reply
        try:
            self.done.set_result(None)
        except InvalidStateError:  # as `wake` does, without the call
            return

    def fail(self, error: Exception) -> None:
        """Have the sender raise `error`."""
        self.error = error
        wake(self.done)


# gc=False: only mailboxes hold any, and those who handle them, and a mailbox is emptied at its end.
# Otherwise each message that is told in a trace is one more thing to visit.
class Told(msgspec.Struct, eq=False, gc=False):
    """A message in a mailbox, with context variables of its sender. Only the runtime sees these."""

    message: object
    values: Values


class ActorRef:
    """A handle to an actor. It stays valid across restarts, and after the actor has stopped.

    It is used in the event loop that its system was started on. Elsewhere, so in another thread,
    its methods raise `WrongLoop`: ``system.portal.call(ref.ask, message)`` is the way from there.
    """

    __slots__ = ("__weakref__", "_cell", "_mailbox", "_put_nowait", "_thread")

    def __init__(self, cell: Recipient) -> None:
        self._cell = cell
        self._mailbox = cell.mailbox
        self._put_nowait = cell.put_nowait
        self._thread = cell.loop.thread

    @property
    def address(self) -> ActorAddress:
        """Where the actor is."""
        return self._cell.address

    @property
    def is_alive(self) -> bool:
        """Whether it takes messages: false from the moment it was told to stop."""
        return not self._mailbox.closed

    async def tell(self, message: object) -> None:
        """Put `message` into the mailbox, and wait for room if there is none (backpressure).

        It returns once the message is in the mailbox, at once and without a task switch if there is
        room. Messages of one sender are handled in the order they were told. A message to an actor
        that has stopped becomes a dead letter; that is no error. Raises `WouldDeadlock` in an actor
        whose wait for room could not end before it goes on, as for room in its own mailbox.
        """
        if get_ident() != self._thread:
            self._cell.loop.refuse()
        if OutputGate.shut and (gate := current_gate.get()) is not None:
            await gate.opened()
        try:
            self._put_nowait(message)
        except MailboxFull:
            await self._cell.queue_up_told(message)
        except MailboxClosed:
            self._cell.loop.check()
            await self._cell.refuse(message, expects_reply=False)

    def tell_nowait(self, message: object) -> None:
        """Put `message` into the mailbox; raise `MailboxFull` if there is no room.

        A message to an actor that has stopped becomes a dead letter, and `MailboxFull` is raised if
        the store has no room for it.
        """
        if get_ident() != self._thread:
            self._cell.loop.refuse()
        if OutputGate.shut and (gate := current_gate.get()) is not None and gate.is_shut:
            gate.hold(_HeldMessage(self, message))
            return
        self._put(message)

    def _put_held(self, message: object) -> None:
        """Put a message that waited, whose sender has no other way to learn that there is no room.

        So there is: these are no more than what their sender's appends have held up.
        """
        try:
            self._put_nowait(message)
        except MailboxFull:
            self._mailbox.push(message)
        except MailboxClosed:
            self._cell.refuse_anyway(message)

    def ask_at_once(self, message: object) -> Ask | None:
        """Put `message` into the mailbox as `ask` does; `None` where that would wait, or raise.

        For an actor that waits for `Ask.done` by itself, which takes half the time. It must know
        that it does not wait for itself, and note it where it has `Ask.given_up`.
        """
        if OutputGate.shut:
            return None
        ask = Ask(message, self._cell.loop.new_signal())
        try:
            self._put_nowait(ask)
        except (MailboxFull, MailboxClosed):
            return None
        return ask

    def request(self, message: object, answered: Answered) -> None:
        """Put `message` into the mailbox, and have `answered` called with its reply or its error.

        It is called where the reply is given, in the other actor's task, so it must not wait. There
        is room for the message, whatever the mailbox's capacity: who asks like this has to bound it
        otherwise. Raises `ActorStopped` if the actor has stopped, or is stopping.
        """
        self._cell.loop.check()
        call = _Call(answered)
        call.ask = Ask(message, call)
        try:
            self._mailbox.push(call.ask)
        except MailboxClosed:
            try:
                self._cell.put_nowait(call.ask)  # which wakes an entity
            except MailboxClosed:
                raise self._cell.stopped_error("is stopping", "never") from None

    def feed(
        self,
        source: Source,
        last: LastMessage,
        over: Callable[[Feed], None] = lambda _: None,
    ) -> Feed:
        """Have the actor handle what comes out of `source`, in order, as messages.

        No more than 32 items wait in the mailbox, whatever its capacity; more are taken out of
        `source` when these are handled, so when their replies would be given. It ends with this
        life of the actor, restarts included: what waits is dropped then. Where `source` ends, or
        raises, the message that `last` returns comes after the last item. `over` is called at the
        end, whichever it is. Raises `ActorStopped` for an actor that is stopping, or asleep.
        """
        self._cell.loop.check()
        return self._cell.feed(source, last, over)

    def _put(self, message: object) -> None:
        try:
            self._put_nowait(message)
        except MailboxFull:
            raise MailboxFull(
                f"the mailbox of {self.address} holds {len(self._mailbox)} messages: "
                "wait for room with 'await ref.tell(...)'"
            ) from None
        except MailboxClosed:
            self._refuse_nowait(message)

    def _refuse_nowait(self, message: object) -> None:
        self._cell.loop.check()
        try:
            self._cell.refuse_nowait(message, expects_reply=False)
        except MailboxFull:
            raise MailboxFull(
                f"{self.address} takes no more messages, and the store has no room for another "
                "dead letter: wait for it with 'await ref.tell(...)'"
            ) from None

    @overload
    async def ask(
        self,
        message: Message[ReplyT],
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> ReplyT: ...

    @overload
    async def ask(
        self,
        message: object,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> Any: ...

    async def ask(
        self,
        message: object,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Send `message`, wait, and return what the actor's ``receive`` returned for it.

        What ``receive`` raised is raised here too. Other errors: `ActorStopped` if the actor has
        stopped, or stops before it replies; `UnhandledMessage` if it has no use for the message;
        `AskTimeout` after `timeout` seconds, `None` or infinity for no limit; `InvalidPolicy` for a
        timeout that makes no sense; `WouldDeadlock` in the actor itself, and in one that it waits
        for, if neither has a time limit. A sender that gives up while the message is in the
        mailbox does not take it back.

        With `retry` it is sent again after errors that this covers, each time with the same
        `timeout`; the last error is raised. What the actor did before it failed to reply is not
        undone: it may handle the message more than once. The errors of an ask that makes no sense
        (`UnhandledMessage`, `WouldDeadlock`, `InvalidPolicy`, `WrongLoop`) are raised at once.

        With an `idempotency_key`, an event-sourced actor that has stored events for a message with
        that key stores nothing, and replies what it replied then, as long as it is among the newest
        keys that it keeps: see `EventSourced.idempotency_window`. Raises `RepeatedFailure` if that
        was a `Failure`, `ReplyNotKept` if the reply is not known, `InvalidIdempotencyKey`, and
        `IdempotencyKeysUnsupported` for an actor of another class.
        """
        if retry is not None:
            return await self._ask_again(message, timeout, retry, idempotency_key)
        self._cell.loop.check()
        if timeout is not None and not is_seconds(timeout):
            raise InvalidPolicy(f"timeout is seconds, 0 or more, not {shown(timeout)}")
        ask = Ask(message, self._cell.loop.new_signal())
        if idempotency_key is not None:
            ask.idempotency_key = self._checked(idempotency_key)
        wait = self._cell.begin_wait(ask.done, limited=timeout is not None)
        try:
            if timeout is not None:
                await self._send_within(ask, timeout)
            elif OutputGate.shut:
                await self._send(ask)
            else:
                try:
                    self._put_nowait(ask)
                except (MailboxFull, MailboxClosed):
                    await self._put_ask(ask)
                await ask.done
        except BaseException:
            ask.given_up = True
            raise
        finally:
            if wait is not None:
                wait.end()
        if ask.error is not None:
            raise ask.error
        return ask.reply

    async def stop(self) -> None:
        """Have the actor handle the messages in its mailbox, and return when it has stopped.

        From now on it takes no more messages. Its children stop before it. Inside an actor that
        must itself stop first (the actor itself, one of its descendants, or one that the actor
        waits for in turn) it returns at once, and the actor stops when it can.
        """
        await self._cell.stop()

    async def _ask_again(
        self, message: object, timeout: float | None, retry: Retry, idempotency_key: str | None
    ) -> Any:
        """Ask until there is a reply, or `retry` gives up."""
        if not isinstance(retry, Retry):
            raise InvalidPolicy(f"retry is a Retry, not {shown(retry)}")
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self.ask(message, timeout, idempotency_key=idempotency_key)
            except _SENSELESS:
                raise
            except Exception as error:
                delay = retry.delay_after(attempts, error)
                if delay is None:
                    raise
            await self._cell.clock.sleep(delay)

    def _checked(self, idempotency_key: object) -> str:
        """Return a key with which this actor can be asked. Raises as `ask` does."""
        if not self._cell.keeps_keys:
            raise IdempotencyKeysUnsupported(
                f"{self.address} keeps no idempotency keys: only event-sourced actors do"
            )
        return checked_key(idempotency_key)

    async def _send_within(self, ask: Ask, timeout: float) -> None:
        """Send `ask` as `_send` does; raise `AskTimeout` if it takes longer than `timeout`."""
        with self._cell.clock.move_on_after(seconds(timeout)):
            await self._send(ask)
        if ask.reply is _NO_REPLY and ask.error is None:
            raise AskTimeout(
                f"{self.address} did not reply to {type_name(ask.message)} within {timeout} seconds"
            )

    async def _send(self, ask: Ask) -> None:
        """Put `ask` into the mailbox, once the sender's gate is open, and wait for the answer."""
        if (gate := current_gate.get()) is not None:
            await gate.opened()
        await self._put_ask(ask)
        await ask.done

    async def _put_ask(self, ask: Ask) -> None:
        """Put `ask` into the mailbox when there is room, or fail it."""
        try:
            self._put_nowait(ask)
        except MailboxFull:
            await self._cell.queue_up(ask)
        except MailboxClosed:
            await self._cell.refuse(ask.message, expects_reply=True)
            what = "has stopped" if self._cell.stopped.is_set() else "is stopping"
            ask.fail(self._cell.stopped_error(what, "never"))

    def __repr__(self) -> str:
        return f"<ActorRef {self.address}>"


def checked_key(idempotency_key: object) -> str:
    """Return an idempotency key that is one. Raises `InvalidIdempotencyKey`."""
    if type(idempotency_key) is str and 0 < len(idempotency_key) <= MAX_KEY:
        if idempotency_key.isascii():
            return idempotency_key
        with contextlib.suppress(UnicodeEncodeError):
            idempotency_key.encode()
            return idempotency_key
    raise InvalidIdempotencyKey(
        f"an idempotency key is a string of 1 to {MAX_KEY:,} characters, "
        f"not {shown(idempotency_key)}"
    )


class _Call:
    """In place of an ask's signal: calls a function, once, where the reply is given."""

    __slots__ = ("_answered", "ask")

    def __init__(self, answered: Answered) -> None:
        self._answered: Answered | None = answered
        self.ask: Ask

    def set_result(self, _: None, /) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            ask = self.ask
            answered(ask.reply if ask.error is None else None, ask.error)

    def done(self) -> bool:
        return self._answered is None

    def __await__(self) -> NoReturn:
        raise AssertionError("nobody waits for it")


class _HeldMessage:
    """A message that waits at the output gate of its sender."""

    def __init__(self, ref: ActorRef, message: object) -> None:
        self._ref = ref
        self._message = message
        self._context = copy_context()

    def release(self) -> None:
        # Its sender's variables travel with it, not those of whoever opens the gate.
        self._context.run(self._ref._put_held, self._message)

    def fail(self, error: Exception) -> None:
        """Drop it: what it comes from was not kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Terminated:
    """The notice to an actor that one which it watches has stopped."""

    ref: ActorRef
