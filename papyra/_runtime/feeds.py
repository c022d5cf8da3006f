"""Feed an actor: what comes out of an iterator becomes messages, no more than it can handle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NoReturn

import anyio

from papyra._signal import NewSignal, Signal, wake
from papyra.exceptions import MailboxClosed, UnhandledMessage
from papyra.mailbox import Mailbox
from papyra.persistence.records import PersistedDeadLetter
from papyra.ref import Ask, LastMessage, Source

__all__ = ("MAX_WAITING", "Feed", "is_fed")

#: Items of one feed that wait in a mailbox, at most.
MAX_WAITING = 32


class Feed:
    """Puts what comes out of a source into a mailbox, and takes more once that is handled.

    `over` is called once, when it has ended.
    """

    def __init__(
        self,
        mailbox: Mailbox[object],
        new_signal: NewSignal,
        source: Source,
        last: LastMessage,
        over: Callable[[Feed], None],
    ) -> None:
        self.has_begun = False
        self._mailbox = mailbox
        self._new_signal = new_signal
        self._source = source
        self._last = last
        self._over = over
        self._scope = anyio.CancelScope()
        self._is_over = False
        self._waiting = 0
        self._room: Signal | None = None
        self._error: Exception | None = None

    async def run(self) -> None:
        """Put items into the mailbox until the source, or this, ends."""
        self.has_begun = True
        try:
            with self._scope:
                async with self._source as items:
                    async for item in items:
                        if self._waiting >= MAX_WAITING:
                            await self._has_room()
                        if self._is_over or self._error is not None:
                            return  # and its cancellation has yet to strike
                        await self._put(item)
        except MailboxClosed:
            self._end()  # what it holds is still handled
        except Exception as error:  # noqa: BLE001 - the actor gets it
            self._error = error
        except anyio.get_cancelled_exc_class():
            pass  # whoever has cancelled this task alone, the actor is told that it has ended
        finally:
            self._say_last()

    def end(self) -> None:
        """End, and take what waits out of the mailbox."""
        if not self._is_over:
            self._end()
            self._scope.cancel()
            self._mailbox.drop(self._is_own)

    def _end(self) -> None:
        self._is_over = True
        self._over(self)

    def handled(self, ask: Ask) -> None:
        """Take note that an item was handled, or never will be."""
        self._waiting -= 1
        if self._room is not None and self._waiting <= MAX_WAITING // 2:
            wake(self._room)
            self._room = None
        if type(ask.error) is UnhandledMessage and type(ask.message) is PersistedDeadLetter:
            # It is one itself by now, and would come out of the source in turn, for ever.
            self._error = ask.error
            self._scope.cancel()
            self._mailbox.drop(self._is_own)

    async def _put(self, item: object) -> None:
        handled = _Handled(self)
        handled.ask = ask = Ask(item, handled)
        self._waiting += 1
        await self._mailbox.put(ask)  # in turn with those who send, be there ever so little room

    async def _has_room(self) -> None:
        self._room = self._new_signal()
        await self._room

    def _say_last(self) -> None:
        if self._is_over:
            return
        self._end()
        with contextlib.suppress(MailboxClosed):  # then it is stopping, and need not know
            self._mailbox.push(self._last(self._error))

    def _is_own(self, item: object) -> bool:
        return type(item) is Ask and type(item.done) is _Handled and item.done.feed is self


class _Handled:
    """In place of an ask's signal: tells a feed that an item was handled."""

    __slots__ = ("ask", "feed")

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.ask: Ask | None = None

    def set_result(self, _: None, /) -> None:
        ask, self.ask = self.ask, None
        if ask is not None:
            self.feed.handled(ask)

    def done(self) -> bool:
        return self.ask is None

    def __await__(self) -> NoReturn:
        raise AssertionError("nobody waits for it")


def is_fed(ask: Ask) -> bool:
    """Return whether it is an item of a feed, which nobody misses in a mailbox: the source has it.

    It is dropped with its feed, and made no dead letter.
    """
    return type(ask.done) is _Handled
